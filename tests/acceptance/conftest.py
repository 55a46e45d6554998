"""The system that the acceptance tests speak to, over HTTP only.

Each test process starts one system of its own for the tests that only use it. CHRONICLE_TEST_URL names a running one
instead, which nobody else may use meanwhile; tests that must stop or kill a process are then skipped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from api import Api
from servers import Stack

RUNNING_SYSTEM = os.environ.get("CHRONICLE_TEST_URL")


@pytest.fixture(autouse=True)
def turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Against one running system the tests of several processes take turns: they compare its totals."""
    if RUNNING_SYSTEM is None:
        yield
        return
    with (tmp_path_factory.getbasetemp().parent / "turn").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The system that the tests of this process share; they leave it running."""
    if RUNNING_SYSTEM is not None:
        pytest.skip("this test reads the run.json of its system, which CHRONICLE_TEST_URL does not give")
    stack = Stack(tmp_path_factory.mktemp("stack"))
    stack.start()
    yield stack
    stack.close()


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest) -> str:
    """Where the system under test answers."""
    if RUNNING_SYSTEM is not None:
        return RUNNING_SYSTEM.rstrip("/")
    stack: Stack = request.getfixturevalue("stack")
    return stack.url


@pytest.fixture(scope="session")
def gateway(url: str) -> bool:
    """Whether a server of another make answers there, and judges by itself what is HTTP: ours does not name itself."""
    return "server" in httpx2.get(f"{url}/health").headers


@pytest.fixture(scope="session")
def api(url: str) -> Iterator[Api]:
    """The client of the system under test."""
    with Api(url) as client:
        yield client


@pytest.fixture(scope="session")
def copy_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Makes a home that is as a first start leaves it: the next one takes two thirds of the time."""
    folder = tmp_path_factory.getbasetemp()
    made = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "made"
    with made.with_name("making").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            stack = Stack(made.with_name(f"made-by-{os.getpid()}"))
            stack.start()
            stack.stop()
            shutil.rmtree(stack.home / "logs")
            stack.home.rename(made)

    def copy(home: Path) -> None:
        subprocess.run(["cp", "-a", made, home], check=True)  # with the owner: as root, the servers are nobody

    return copy


@pytest.fixture
def own_stack(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A fresh system for one test, which may stop and kill it."""
    if RUNNING_SYSTEM is not None:
        pytest.skip("this test stops or kills processes, which CHRONICLE_TEST_URL does not allow")
    home = tmp_path_factory.mktemp("own") / "home"
    request.getfixturevalue("copy_home")(home)
    stack = Stack(home)
    stack.start()
    yield stack
    stack.close()


@pytest.fixture
def own_api(own_stack: Stack) -> Iterator[Api]:
    """The client of `own_stack`."""
    with Api(own_stack.url) as client:
        yield client
