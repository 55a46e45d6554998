"""Servers for all tests: one PostgreSQL and one Valkey for each test process, started only when a test asks."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from chronicle.up.children import stop
from chronicle.up.servers import Postgres, Valkey, start

settings.register_profile("untimed", deadline=None)  # no test is about how fast this machine is at the moment
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many test processes again as there are cores: much of the time tests wait, for servers and deadlines."""
    return (3 * (os.cpu_count() or 1) + 1) // 2


@pytest.fixture(scope="session", autouse=True)
def _signals_end_what_tests_start() -> None:
    """A process that ignores a signal has its children ignore it, as under nohup or behind a script's `&`: not one that
    handles it by doing nothing."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """The CHRONICLE_HOME of the session's servers. Other users may pass through it: as root, the servers are nobody."""
    home = Path(tempfile.mkdtemp(prefix="chronicle-tests-"))
    home.chmod(0o711)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(server_home: Path) -> Iterator[str]:
    """The URL of a PostgreSQL; its database `chronicle` is empty."""
    with _running(Postgres(server_home)) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(server_home: Path) -> Iterator[str]:
    """The URL of a Valkey."""
    with _running(Valkey(server_home)) as url:
        yield url


@contextmanager
def _running(server: Postgres | Valkey) -> Iterator[str]:
    try:
        start(server)
        yield server.url
    finally:
        if server.process:
            stop(server.process, server.stop_steps)
