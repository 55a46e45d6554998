"""`chronicle up`: all of ChronicleWeaver on one machine. Start it, keep it running until a signal, stop it in order."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from subprocess import Popen

from chronicle import logs, runfile
from chronicle.errors import StartError
from chronicle.runfile import Part
from chronicle.settings import METRICS_FOLDER, METRICS_PROCESS, Settings
from chronicle.up import banner, ports, servers
from chronicle.up.children import Log, Step, finish, spawn, stop
from chronicle.up.home import emptied, end_leftovers, locked, marks
from chronicle.up.servers import Postgres, Valkey
from chronicle.up.wakeup import Stopped, Wakeup
from chronicle.up.writeback import Writeback

READY_SECONDS = 60.0
FIRST_DELAY, LONGEST_DELAY = 0.2, 5.0
STEADY_SECONDS = 10.0
"""A child that lived this long starts with the shortest delay again."""

SERVICES = ("api", "projector")
STOP_ORDER = (*SERVICES, "broker", "postgres")


@dataclass
class Child:
    """A process that is to run: how it starts, how it stops, and when it starts again."""

    name: str
    launch: Callable[[], Popen[bytes]]
    stop_steps: tuple[Step, ...]
    url: str | None = None
    metrics: str | None = None
    process: Popen[bytes] | None = None
    started: float = 0.0
    delay: float = FIRST_DELAY
    due: float = 0.0

    def start(self) -> None:
        """Starts the process. Raises StartError or OSError where that fails."""
        self.started = time.monotonic()
        self.process = self.launch()

    def ended(self) -> int | None:
        """The exit code of a process that has ended since the last look; then it is due again after a delay."""
        code = self.process.poll() if self.process else None
        if code is not None:
            self.process = None
            self.put_off()
        return code

    def put_off(self) -> None:
        """Sets when to start it again: a little later each time, as long as it does not live."""
        now = time.monotonic()
        self.delay = FIRST_DELAY if now - self.started > STEADY_SECONDS else min(self.delay * 2, LONGEST_DELAY)
        self.due = now + self.delay

    def is_of(self, part: str) -> bool:
        """Whether it is a process of this server or service."""
        return self.name.partition("-")[0] == part

    def stop(self, began: float) -> None:
        """Ends it, by the clock of a stop that began then."""
        if self.process:
            stop(self.process, self.stop_steps, began)

    def part(self) -> Part:
        """What run.json says about it."""
        part = Part()
        if self.process:
            part["pid"] = self.process.pid
        if self.url:
            part["url"] = self.url
        if self.metrics:
            part["metrics"] = self.metrics
        return part


def run(settings: Settings, host: str, port: int, *, api_processes: int, projector_processes: int) -> None:
    """Runs everything until SIGINT, SIGTERM or SIGHUP. Raises StartError where it cannot be started."""
    processes = dict(zip(SERVICES, (api_processes, projector_processes), strict=True))
    home = settings.chronicle_home.absolute()
    with locked(home), Wakeup() as wakeup, suppress(Stopped):
        end_leftovers(home, wakeup.pause)
        with ports.listen(host, port) as listening, ports.listen("127.0.0.1", 0) as scraped:
            Supervisor(settings, home, listening, scraped=scraped, wakeup=wakeup, processes=processes).run()


class Supervisor:
    """The children of one `chronicle up`."""

    def __init__(
        self,
        settings: Settings,
        home: Path,
        listening: socket.socket,
        *,
        scraped: socket.socket,
        wakeup: Wakeup,
        processes: Mapping[str, int],
    ) -> None:
        """`scraped`: the socket of the projectors' metrics; `processes`: how many of each service."""
        self._processes = processes
        self._settings = settings
        self._home = home
        self._listening = listening
        self._scraped = scraped
        self._metrics_url = "http://{}:{}/metrics".format(*ports.reachable(scraped))
        self._wakeup = wakeup
        self._log = logs.get(__name__)
        self._host, self._port = ports.reachable(listening)
        self._url = f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"
        self._database_url = settings.database_url
        self._redis_url = settings.redis_url
        self._children: dict[str, Child] = {}
        self._unwritten = False

    def run(self) -> None:
        """Starts, watches, stops. Raises Stopped, or StartError after stopping what had been started."""
        try:
            self._start_all()
            own_database = None if self._settings.database_url else self._database_url
            banner.show(self._url, self._home, own_database, self._metrics_url)
            while True:
                self._watch()
        finally:
            self._stop()

    def _start_all(self) -> None:
        try:
            self._start()
        except OSError as error:
            raise StartError(f"cannot start in {self._home}: {error}") from error

    def _start(self) -> None:
        if not self._redis_url:
            self._redis_url = self._start_server(Valkey(self._home))
        if not self._database_url:
            postgres = Postgres(self._home)
            self._database_url = self._start_server(postgres)
            if sys.platform == "linux":
                Writeback(postgres.data).start()
        self._migrate()
        fd, metrics_fd = self._listening.fileno(), self._scraped.fileno()
        self._start_service("api", ["--fd", str(fd)], until=3.0, fd=fd, url=self._url)
        options = ["--metrics-fd", str(metrics_fd)]
        self._start_service("projector", options, until=4.5, fd=metrics_fd, metrics=self._metrics_url)
        self._write_runfile()
        self._await_ready()

    def _start_server(self, server: Postgres | Valkey) -> str:
        child = Child(server.name, partial(server.launch, self._wakeup.pause), server.stop_steps)
        self._children[server.name] = child
        try:
            servers.start(server, self._wakeup.pause)
        finally:
            child.process, child.started, child.url = server.process, time.monotonic(), server.url
        self._log.info("server started", name=server.name, pid=server.process and server.process.pid)
        return server.url

    def _start_service(
        self, service: str, options: Sequence[str], *, until: float, fd: int, url: str = "", metrics: str = ""
    ) -> None:
        """Starts each process of a service on a socket; the first has its name, the others `name-2` and so on."""
        folder = emptied(self._home / "metrics" / service)
        for number in range(1, self._processes[service] + 1):
            name = service if number == 1 else f"{service}-{number}"
            together = self._processes[service] > 1
            counts_in = {METRICS_FOLDER: str(folder), METRICS_PROCESS: name} if together else {}
            launch = partial(self._spawn, service, *options, fds=[fd], environment=counts_in)
            self._children[name] = Child(name, launch, ((signal.SIGTERM, until),), url, metrics)
            self._children[name].start()

    def _migrate(self) -> None:
        log = Log(self._home / "logs" / "migrate.log")
        # In a process of its own: it can be broken off, and its libraries do not stay in our memory.
        if finish(self._spawn("migrate", log=log.begin()), self._wakeup.pause):
            raise StartError(log.tail(1).removeprefix("chronicle: ") or "chronicle migrate was killed")

    def _spawn(
        self,
        *words: str,
        log: Path | None = None,
        fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Popen[bytes]:
        return spawn(
            [sys.executable, *marks(self._home), "-m", "chronicle", *words],
            environment=self._environment() | dict(environment or {}),
            death_signal=signal.SIGTERM,
            log=log,
            pass_fds=fds,
        )

    def _environment(self) -> dict[str, str]:
        own = not self._settings.database_url
        # PGSSLMODE and the like are meant for another PostgreSQL than ours.
        kept = {name: value for name, value in os.environ.items() if not (own and name.startswith("PG"))}
        return kept | {
            "CHRONICLE_HOME": str(self._home),
            "DATABASE_URL": self._database_url or "",
            "REDIS_URL": self._redis_url or "",
        }

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        said = "nothing"
        while time.monotonic() < deadline:
            for child in self._children.values():
                if (code := child.ended()) is not None:
                    raise StartError(f"{child.name} ended while it started (exit code {code})")
            status, said = self._ask_ready()
            if status == 200:
                return
            self._wakeup.pause(0.1)
        raise StartError(f"not ready after {READY_SECONDS:.0f} s; {self._url}/ready says: {said}")

    def _ask_ready(self) -> tuple[int, str]:
        """Status and text of /ready; 0 where there is no answer yet."""
        connection = HTTPConnection(self._host, self._port, timeout=5)
        try:
            connection.request("GET", "/ready")
            # The connection waits in the backlog of our own socket until the API is up; a signal ends the wait.
            self._wakeup.pause(5, connection.sock)
            connection.sock.settimeout(0.5)
            answer = connection.getresponse()
            return answer.status, answer.read(500).decode(errors="replace")
        except (OSError, HTTPException) as error:
            return 0, str(error) or type(error).__name__
        finally:
            connection.close()

    def _watch(self) -> None:
        """One round: notes what has ended, starts what is due, waits for the next event."""
        changed = self._unwritten
        for child in self._children.values():
            if (code := child.ended()) is not None:
                changed = True
                self._log.warning("child ended", name=child.name, exit_code=code, restart_in=child.delay)
            if child.process is None and child.due <= time.monotonic():
                changed = self._restart(child) or changed
        if changed:
            self._write_runfile()
        waiting = [child.due for child in self._children.values() if child.process is None]
        self._wakeup.pause(min(waiting) - time.monotonic() if waiting else 1 if self._unwritten else 60)

    def _restart(self, child: Child) -> bool:
        try:
            child.start()
        except (StartError, OSError) as error:
            child.put_off()
            self._log.error("child cannot be started", name=child.name, error=str(error), restart_in=child.delay)
            return False
        self._log.info("child started again", name=child.name, pid=child.process and child.process.pid)
        return True

    def _write_runfile(self) -> None:
        parts = {"supervisor": Part(pid=os.getpid())}
        for name, url in (("postgres", self._database_url), ("broker", self._redis_url)):
            parts[name] = Part(url=url or "")
        parts |= {name: child.part() for name, child in self._children.items()}
        try:
            runfile.write(self._home, parts)
            self._unwritten = False
        except OSError as error:
            if not self._unwritten:
                self._log.error("run.json cannot be written", error=str(error))
            self._unwritten = True

    def _stop(self) -> None:
        """Ends the children, services first, all by the same clock, so that together they take no longer than 10 s."""
        began = time.monotonic()
        self._log.info("stopping")
        self._listening.close()
        self._scraped.close()
        for part in STOP_ORDER:
            running = [child for child in self._children.values() if child.process and child.is_of(part)]
            with ThreadPoolExecutor(max(len(running), 1)) as pool:
                for child in running:
                    pool.submit(child.stop, began)
        runfile.remove(self._home)
