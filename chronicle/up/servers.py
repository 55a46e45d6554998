"""A PostgreSQL and a Valkey of our own in CHRONICLE_HOME: direct children, whole again whatever was killed.

Whoever starts a server holds the lock of the home (`chronicle up` does): one that is found on the same data is then an
orphan of an earlier run, and is ended. Both listen on 127.0.0.1 alone, without unix sockets (which go stale, and whose
paths may not be long), and ask for the password that the home keeps.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

from chronicle.errors import StartError
from chronicle.up import binaries, cluster, ports
from chronicle.up.children import Log, Pause, Step, end_orphan, exists, spawn
from chronicle.up.privileges import account_for

HOST = "127.0.0.1"
LEFTOVERS_SECONDS = 15.0
"""How long the last processes of a killed server may hold on to its memory."""


class Postgres:
    """PostgreSQL on CHRONICLE_HOME/postgres. It keeps its port for life, so that URLs stay good over a restart."""

    name = "postgres"
    stop_steps: tuple[Step, ...] = ((signal.SIGINT, 8.5), (signal.SIGQUIT, 9.2))  # fast, then immediate shutdown

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.data = self.home / self.name
        self.log = Log(self.home / "logs" / "postgres.log")
        self.port = ports.free()
        self.process: Popen[bytes] | None = None
        self._password = _password(self.home)

    @property
    def url(self) -> str:
        return f"postgresql://{cluster.USER}:{self._password}@{HOST}:{self.port}/{cluster.DATABASE}"

    def launch(self, pause: Pause) -> Popen[bytes]:
        """Starts the process, with what has to come before; does not wait until it answers."""
        folder, version = binaries.postgres()
        account = account_for(self.data, [folder / "initdb", folder / "postgres"])
        self.log.begin()
        self._clear_away(pause)
        if not (self.data / "PG_VERSION").exists():
            cluster.make(
                self.data, folder, version, password=self._password, log=self.log, account=account, pause=pause
            )
        self._check_version(version)
        options = [word for name, value in cluster.settings(self.data).items() for word in ("-c", f"{name}={value}")]
        self.process = spawn(
            [folder / "postgres", "-D", self.data, "-p", str(self.port), *options],
            environment=cluster.ENVIRONMENT,
            folder=cluster.FOLDER,
            death_signal=signal.SIGINT,
            log=self.log.path,
            account=account,
        )
        return self.process

    def answers(self) -> bool:
        """Whether it takes connections."""
        pid = self.process.pid if self.process else None
        status = self._status()
        return status[:1] == [str(pid)] and status[7:8] in (["ready"], ["standby"])

    def _status(self) -> list[str]:
        """The lines of postmaster.pid: the first is the process, the eighth how far it is."""
        try:
            return [line.strip() for line in (self.data / "postmaster.pid").read_text(errors="replace").splitlines()]
        except OSError:
            return []

    def _clear_away(self, pause: Pause) -> None:
        """Ends a server that still runs on the data, and removes a pid file that names a stranger."""
        status = self._status()
        if not status or not status[0].isdecimal():
            return
        pid, words = int(status[0]), ("postgres", f"-D {self.data} ")
        end_orphan(pid, words, ((signal.SIGINT, 10.0), (signal.SIGQUIT, 15.0)), pause)
        if exists(pid):
            # A stranger or a zombie. PostgreSQL looks at the number alone, and would refuse to start for ever.
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _check_version(self, version: int) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(version):
            raise StartError(
                f"the data in {self.data} needs PostgreSQL {made_by}, and what is installed is PostgreSQL {version}: "
                "install that version, or set CHRONICLE_HOME to a new folder"
            )


class Valkey:
    """Valkey, which keeps nothing on disk: all that it ever holds is hints."""

    name = "broker"
    stop_steps: tuple[Step, ...] = ((signal.SIGTERM, 5.0),)

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.data = self.home / "valkey"
        self.log = Log(self.home / "logs" / "valkey.log")
        self.port = ports.free()
        self.process: Popen[bytes] | None = None
        self._password = _password(self.home)
        self._pid_file = self.home / "valkey.pid"

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def launch(self, pause: Pause) -> Popen[bytes]:
        """Starts the process, after ending one that an earlier run left; does not wait until it answers."""
        program = binaries.broker()
        account = account_for(self.data, [program])
        self._end_orphan(pause)
        self.data.mkdir(mode=0o700, exist_ok=True)
        if account:
            os.chown(self.data, account.uid, account.gid)
        self.process = spawn(
            [program, "-", "--dir", self.data],
            environment=cluster.ENVIRONMENT,
            folder=cluster.FOLDER,
            death_signal=signal.SIGTERM,
            log=self.log.begin(),
            given=self._configuration(),
            account=account,
        )
        self._pid_file.write_text(f"{self.process.pid}\n")
        return self.process

    def answers(self) -> bool:
        """Whether it answers a PING."""
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=2) as connection:
            connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as answer:
                return answer.readline() == b"+OK\r\n" and answer.readline() == b"+PONG\r\n"
        return False

    def _configuration(self) -> str:
        """Read from standard input: the password is neither in a file more nor in the list of processes."""
        lines = (
            f"bind {HOST}",
            f"port {self.port}",
            "protected-mode yes",
            f"requirepass {self._password}",
            'save ""',
            "appendonly no",
            "maxmemory 256mb",
            "maxmemory-policy noeviction",
            "daemonize no",
            "set-proc-title no",  # the command line says whose it is
        )
        return "\n".join(lines) + "\n"

    def _end_orphan(self, pause: Pause) -> None:
        with suppress(OSError, ValueError):
            end_orphan(int(self._pid_file.read_text()), (f"--dir {self.data} ",), self.stop_steps, pause)


def start(server: Postgres | Valkey, pause: Pause = time.sleep) -> None:
    """Starts a server and waits until it answers: without a limit while it lives, for recovery takes what it takes.

    Raises StartError with the end of its log where it dies. What `pause` raises goes through; the caller stops the
    server.
    """
    deadline = time.monotonic() + LEFTOVERS_SECONDS
    while not _comes_up(server, pause):
        if time.monotonic() > deadline or not _worth_another_try(server):
            code = server.process.returncode if server.process else None
            log = server.log
            raise StartError(
                f"{server.name} ended while it started (exit code {code}): {log.tail()} (more in {log.path})"
            )
        pause(0.2)


def _comes_up(server: Postgres | Valkey, pause: Pause) -> bool:
    process = server.launch(pause)
    while process.poll() is None:
        if server.answers():
            return True
        pause(0.02)
    return False


def _worth_another_try(server: Postgres | Valkey) -> bool:
    if not ports.is_free(server.port):
        server.port = ports.free()
        return True
    return "pre-existing shared memory block" in server.log.tail()


def _password(home: Path) -> str:
    """The password of this home's servers, made when it is asked for the first time."""
    kept = home / "password"
    with suppress(FileNotFoundError):
        return kept.read_text().strip()
    fresh = kept.with_suffix(".tmp")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(16))
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, kept)
    return kept.read_text()
