"""PostgreSQL's data directory: made once, whole or not at all, and the settings that fit the machine it is on."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from chronicle.errors import StartError
from chronicle.up.children import Log, Pause, finish, spawn
from chronicle.up.privileges import Account, nameless

MIB, GIB = 2**20, 2**30

USER = DATABASE = "chronicle"
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LC_ALL": "C",
    "TZ": "UTC",
    "HOME": "/",
    # A session of PostgreSQL keeps so much freed memory (glibc). By itself it would give that of each projection back
    # to the kernel, and have it made anew, page by page, for the next.
    "GLIBC_TUNABLES": f"glibc.malloc.trim_threshold={32 * MIB}:glibc.malloc.mmap_threshold={32 * MIB}",
}
"""All that the servers see: a locale that is missing here, or a PG variable meant for psql, cannot disturb them."""

FOLDER = Path("/")
"""Where the servers work: ours may be closed to their user."""

BUILTIN_LOCALE_SINCE = 17


def make(
    data: Path, programs: Path, version: int, *, password: str, log: Log, account: Account | None, pause: Pause
) -> None:
    """Makes the data directory, with the user and the database `chronicle`.

    It gets its name when it is complete, so that one that was broken off is never taken for one that holds data.
    Raises StartError with the reason where that fails.
    """
    fresh = data.with_name(f"{data.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    _give(fresh, account)
    run = partial(_run, log=log, account=account, pause=pause)
    with _secret_file(data.parent, password, account) as secret:
        run([programs / "initdb", "--pgdata", fresh, "--pwfile", secret, *_initdb_options(version)])
    # Single-user mode: before anybody can connect, and without a client's settings.
    run(
        [programs / "postgres", "--single", "-D", fresh, "-c", "exit_on_error=on", "postgres"],
        given=f"CREATE DATABASE {DATABASE}\n",
    )
    os.replace(fresh, data)
    _sync(data.parent)


def settings(data: Path) -> dict[str, str]:
    """Server settings for this machine: a share of its memory and of the disk's free space; durability is on."""
    return {
        "shared_buffers": f"{min(4 * GIB, _memory() // 4) // MIB}MB",
        "max_wal_size": f"{min(4 * GIB, max(GIB // 4, shutil.disk_usage(data).free // 10)) // MIB}MB",
        "checkpoint_timeout": "15min",
        # The log is written while a large transaction runs, so that others do not wait for all of it at its end.
        "wal_writer_delay": "10ms",
        "max_connections": "200",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "random_page_cost": "1.1",
        "jit": "off",
        # ANALYZE of 30,000 rows of each table would take 0.4 s of a core, all at once, from what is under way.
        "default_statistics_target": "10",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_error_verbosity": "terse",  # DETAIL and CONTEXT quote payloads
        "lc_messages": "C",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
    }


def _initdb_options(version: int) -> list[str]:
    provider = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if version >= BUILTIN_LOCALE_SINCE else []
    return [
        f"--username={USER}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--data-checksums",
        "--wal-segsize=4",  # a new one is written with zeros and synced while commits wait: in 13 ms, not in 50
        *provider,
    ]


def _run(
    command: Sequence[str | Path], *, log: Log, account: Account | None, pause: Pause, given: str | None = None
) -> None:
    # initdb looks up the name of its user, and gives up where there is none.
    namespace = account is None and nameless()
    try:
        process = spawn(
            command,
            environment=ENVIRONMENT,
            folder=FOLDER,
            death_signal=signal.SIGTERM,
            log=log.path,
            given=given,
            account=account,
            own_namespace=namespace,
        )
    except StartError as error:
        if not namespace:
            raise
        raise StartError(
            f"PostgreSQL does not run as a user without a name, and {os.geteuid()} has none here ({error}): "
            "run as a user of this system, or set DATABASE_URL"
        ) from error
    if finish(process, pause):
        raise StartError(f"PostgreSQL's data directory could not be made: {log.tail()} (more in {log.path})")


@contextmanager
def _secret_file(folder: Path, secret: str, account: Account | None) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=folder)
    try:
        os.write(handle, secret.encode())
        os.close(handle)
        _give(Path(name), account)
        yield Path(name)
    finally:
        os.unlink(name)


def _give(path: Path, account: Account | None) -> None:
    if account:
        os.chown(path, account.uid, account.gid)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _memory() -> int:
    """Bytes of memory that this machine, or the container we are in, has."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return machine
