"""The page in a real browser: Debian's Chromium, driven by playwright. `make test-browser` installs the latter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Stack

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The system that the tests of this process share."""
    yield from running(tmp_path_factory.mktemp("browsed"))


@pytest.fixture
def fresh_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An empty system of a test's own."""
    yield from running(tmp_path_factory.mktemp("fresh"))


def running(home: Path, **environment: str) -> Iterator[Stack]:
    """A system on a home of its own, with these variables."""
    stack = Stack(home, env=environment)
    stack.start()
    yield stack
    stack.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium without a window. As root it does without its sandbox, which only other users can have."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
