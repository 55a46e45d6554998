"""ChronicleWeaver on servers that a test may kill, stop and cut off, with a proxy on each way."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import psycopg
import redis

from chronicle import broker, database
from chronicle.up.children import spawn, stop
from chronicle.up.servers import Postgres, Valkey, start
from tests.servers import ROOT, Stack, eventually, family, own_environment

from .proxy import Proxy, pass_all


class System:
    """A PostgreSQL, a Valkey, `chronicle up` and one more projector process; the services reach both servers, and
    the clients the API, through proxies. The test itself goes to the servers directly.

    One thread makes and breaks it: children get a signal when the thread that started them ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = Postgres(folder)
        self.broker = Valkey(folder)
        self.proxies = {
            "postgres": Proxy(lambda: self.postgres.port),
            "broker": Proxy(lambda: self.broker.port),
            "api": Proxy(lambda: self.stack.port),
        }
        self.stack = Stack(folder / "home", env=self._environment())
        self.projector: Popen[bytes] | None = None

    def _environment(self) -> dict[str, str]:
        """What the services see: the servers, each behind its proxy."""
        return {
            "DATABASE_URL": self._behind_proxy(self.postgres),
            "REDIS_URL": self._behind_proxy(self.broker),
        }

    def _behind_proxy(self, server: Postgres | Valkey) -> str:
        return server.url.replace(f":{server.port}/", f":{self.proxies[server.name].port}/")

    def start(self) -> None:
        """Starts everything and waits until it is ready."""
        for server in (self.postgres, self.broker):
            start(server)
        self.stack.start()
        self.start_projector()

    def start_projector(self) -> None:
        """Starts the second projector process, unless it runs."""
        if self.projector is None or self.projector.poll() is not None:
            self.projector = self.chronicle("projector")

    def chronicle(self, *words: str) -> Popen[bytes]:
        """Starts a process of `chronicle` that works on this system."""
        return spawn(
            [sys.executable, "-m", "chronicle", *words],
            environment=own_environment(CHRONICLE_HOME=str(self.stack.home)) | self._environment(),
            folder=ROOT,
            death_signal=signal.SIGTERM,
            log=self.folder / "logs" / f"{words[0]}.log",
        )

    def start_server(self, server: Postgres | Valkey) -> None:
        """Starts a server that was killed, unless it runs."""
        if server.process is None or server.process.poll() is not None:
            start(server)

    def start_stack(self) -> None:
        """Starts `chronicle up` again, unless it runs. Raises AssertionError where it cannot, as without PostgreSQL."""
        if self.stack.process is None or self.stack.process.poll() is not None:
            self.stack.start()

    def heal(self) -> None:
        """Ends what faults may have left: the servers run, the network passes all, the API answers."""
        for proxy in self.proxies.values():
            proxy.rule = pass_all
        for server in (self.postgres, self.broker):
            self.start_server(server)
        self.start_stack()
        self.start_projector()
        eventually(self.stack.is_ready, timeout=30)

    def signal(self, pids: Sequence[int], number: signal.Signals) -> None:
        """Sends a signal to processes; those that are gone do not mind."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def pids(self, part: str) -> list[int]:
        """The processes of a part: api, projector (of `chronicle up`), second (projector), broker or postgres."""
        if part == "postgres":
            return family(self.postgres.process.pid) if self.postgres.process else []
        if part in {"broker", "second"}:
            process = self.broker.process if part == "broker" else self.projector
            return [process.pid] if process else []
        return [pid for name, pid in self.stack.pids().items() if name == part]

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection[Any]]:
        """A direct connection to PostgreSQL that waits for nothing longer than 5 s."""
        options = "-c lock_timeout=5s -c statement_timeout=10s"
        with psycopg.connect(self.postgres.url, autocommit=True, connect_timeout=5, options=options) as connection:
            yield connection

    @contextmanager
    def queue(self) -> Iterator[redis.Redis]:
        """A direct client of Valkey."""
        client = broker.connect(self.broker.url)
        try:
            yield client
        finally:
            client.close()

    def leftovers(self) -> dict[str, int]:
        """What is not worked off yet: batches in flight, tickets in the stream, tickets pending."""
        with self.session() as connection, self.queue() as client:
            pending: Any = client.xpending(broker.STREAM, broker.GROUP) if client.exists(broker.STREAM) else {}
            return {
                "outbox": database.value(connection, "SELECT count(*) FROM outbox"),
                "stream": int(client.xlen(broker.STREAM)),
                "pending": pending.get("pending", 0),
            }

    def failures(self) -> list[str]:
        """Lines of the services' logs with a traceback, or a part that failed: every fault should be met."""
        second = self.folder / "logs" / "projector.log"
        log = self.stack.log() + second.read_text(errors="replace")
        return [f"in the log: {line}" for line in log.splitlines() if '"exception":' in line or '"critical"' in line]

    def close(self) -> None:
        """Stops everything, whatever state it is in."""
        for part in ("api", "projector", "second", "broker", "postgres"):
            self.signal(self.pids(part), signal.SIGCONT)
        if self.projector:
            stop(self.projector, [(signal.SIGTERM, 5.0)])
        if self.stack.process and self.stack.process.poll() is None:
            self.stack.stop(timeout=15)
        for server in (self.broker, self.postgres):
            if server.process:
                stop(server.process, server.stop_steps)
        for proxy in self.proxies.values():
            proxy.close()
