"""Real servers for tests: the whole of ChronicleWeaver as `chronicle up` runs it, and how to wait for a fact."""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import TypeVar

from chronicle import runfile
from chronicle.up import binaries, children, cluster, ports
from chronicle.up.privileges import Account, account_for, before_exec
from chronicle.up.servers import Postgres

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
OURS = (
    "DATABASE_URL",
    "QUERY_DATABASE_URL",
    "REDIS_URL",
    "WORKER_COUNT",
    "AGGREGATOR_URL",
    "EVENT_COUNT",
    "DUPLICATE_RATIO",
    "BATCH_SIZE",
)
START_SECONDS = 90.0
SAYS_IT_RUNS = "ChronicleWeaver is running\n"


def eventually(check: Callable[[], T], timeout: float = 10.0, every: float = 0.05) -> T:
    """The first truthy answer of `check`, asked again and again; its last failure where there is none in time."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if answer := check():
                return answer
            failure = AssertionError(f"still {answer!r} after {timeout} s")
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            raise failure
        time.sleep(every)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on."""
    return ports.free()


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has collected yet does not."""
    state = process_field("stat", pid)
    return bool(state) and not state.startswith("Z")


def process_field(name: str, pid: int) -> str:
    """What `ps` says about a process; empty where there is none."""
    command = ["ps", "-ww", "-o", f"{name}=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


CACHESTAT = 451


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "since_then"))


def unwritten_pages(path: Path, beyond: int = 0) -> int | None:
    """How many pages of a file, from so many bytes on, are not on the disk yet; 0 where it is gone.

    None where the kernel does not say: Linux does from 6.5 on.
    """
    libc, to_the_end, pages = ctypes.CDLL(None), _Range(beyond, 0), _Pages()
    with suppress(FileNotFoundError), path.open("rb") as file:
        given = (file.fileno(), ctypes.byref(to_the_end), ctypes.byref(pages), 0)
        if sys.platform != "linux" or libc.syscall(CACHESTAT, *given):
            return None
    return int(pages.dirty + pages.writeback)


def family(pid: int) -> list[int]:
    """A process and its children; the process first, so that it makes no more of them once it is stopped."""
    command = ["ps", "-A", "-o", "ppid=", "-o", "pid="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in listing.splitlines()]
    return [pid, *(int(child) for parent, child in pairs if int(parent) == pid)]


@contextmanager
def standing_still(pids: Sequence[int]) -> Iterator[None]:
    """The processes are stopped (SIGSTOP) meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def own_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would change how ChronicleWeaver or libpq behaves, and with `more`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in OURS and not name.startswith(("PG", "CHRONICLE_", "PYTEST_"))
    }
    return kept | more


def start_with(server: Postgres, **settings: str) -> None:
    """Starts PostgreSQL on data that is there already with these settings, instead of those that make it durable."""
    folder, _ = binaries.postgres()
    chosen = {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""} | settings
    server.process = children.spawn(
        [folder / "postgres", "-D", server.data, "-p", str(server.port)]
        + [word for name, value in chosen.items() for word in ("-c", f"{name}={value}")],
        environment=cluster.ENVIRONMENT,
        folder=cluster.FOLDER,
        death_signal=signal.SIGINT,
        log=server.log.path,
        account=account_for(server.data, [folder / "postgres"]),
    )
    eventually(server.answers, timeout=30)


def stop_server(server: Postgres) -> None:
    """A clean stop, where it runs."""
    if server.process and server.process.poll() is None:
        children.stop(server.process, server.stop_steps)


class Stack:
    """`chronicle up` on a home of its own, on a port of its own."""

    def __init__(
        self,
        home: Path,
        port: int | None = None,
        env: dict[str, str] | None = None,
        *,
        options: Sequence[str] = (),
        account: Account | None = None,
    ) -> None:
        """`env` is added to the environment, `options` to `up`; `account` is who runs it (only root may choose)."""
        self.home = home
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = own_environment(CHRONICLE_HOME=str(home), AGGREGATOR_URL=self.url) | (env or {})
        self.process: Popen[bytes] | None = None
        self._options = options
        self._account = account
        self._log = home.with_name(f"{home.name}.log")

    def launch(self) -> Popen[bytes]:
        """Starts it and does not wait."""
        command = [sys.executable, "-m", "chronicle", "up", "--port", str(self.port), *self._options]
        with self._log.open("ab") as log:
            self.process = Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=before_exec(signal.SIGTERM, self._account),  # noqa: PLW1509
            )
        return self.process

    def start(self) -> None:
        """Starts it and waits until /ready answers 200. Raises AssertionError, with the log, where it does not."""
        process = self.launch()
        try:
            # Not /ready alone: until it says that it runs, the end of a child is for it a start that failed.
            eventually(
                lambda: process.poll() is not None or (SAYS_IT_RUNS in self.log() and self.is_ready()), START_SECONDS
            )
            assert process.poll() is None, f"chronicle up ended with {process.returncode}"
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.log()}") from None

    def is_ready(self) -> bool:
        """Whether /ready answers 200 now."""
        # Longer than a child that was killed several times is not started again, on a slow machine.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def run(self) -> dict[str, runfile.Part]:
        """What run.json says; empty where there is none."""
        return runfile.read(self.home)

    def pids(self) -> dict[str, int]:
        """The processes of run.json by name."""
        return {name: part["pid"] for name, part in self.run().items() if "pid" in part}

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, and the exit code. Raises AssertionError, with the log, if it still runs after `timeout` seconds."""
        assert self.process
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"chronicle up still runs after {timeout} s\n{self.log()}") from None

    def kill(self) -> None:
        """SIGKILL to the supervisor and to every process of run.json; returns when they are gone."""
        pids = set(self.pids().values())
        if self.process:
            self.process.kill()  # first, so that it restarts none of the others
            self.process.wait()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        eventually(lambda: not [pid for pid in pids if is_alive(pid)])

    def close(self) -> None:
        """Stops it if it runs; for fixtures."""
        if self.process and self.process.poll() is None:
            self.stop()

    def log(self) -> str:
        """All that it has written to standard output and standard error."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""
