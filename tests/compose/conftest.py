"""The whole of compose.yml, on Docker: a project of its own, on a port of its own, with volumes of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from servers import free_port
from stack import ENGINES, Stack


def engine() -> list[str]:
    """`docker compose` or docker-compose, whichever is there and finds Docker running; skips the test without."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no Docker here, or it does not run")
    for words in ENGINES:
        if (
            shutil.which(words[0])
            and not subprocess.run([*words, "version"], capture_output=True, check=False).returncode
        ):
            return words
    pytest.skip("there is neither `docker compose` nor docker-compose here")


@pytest.fixture(scope="session")
def built() -> Iterator[Stack]:
    """The project, built and running; gone in the end, with all that it stored."""
    stack = Stack(engine(), f"chronicle-test-{os.getpid()}", free_port())
    try:
        stack("up", "-d", "--build")
        yield stack
    finally:
        stack("--profile", "publisher", "--profile", "benchmark", "down", "-v", "--remove-orphans")


@pytest.fixture
def stack(built: Stack) -> Stack:
    """The project, ready for a test: the one before may have stopped something."""
    built("up", "-d", "--scale", "projector=1")
    built.wait_until_ready()
    return built
