"""Runs `chronicle publish` as a user does: in a process of its own, from a directory of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from servers import own_environment


def begin(url: str, where: Path, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    """Starts `chronicle publish` in the directory `where`; `settings` are environment variables of the publisher."""
    return subprocess.Popen(
        [sys.executable, "-m", "chronicle", "publish", *arguments],
        cwd=where,
        env=own_environment(AGGREGATOR_URL=url, **{name: str(value) for name, value in settings.items()}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(publisher: subprocess.Popen[str], timeout: float = 90) -> tuple[int, str]:
    """Waits for a publisher; gives its exit code and all that it printed."""
    try:
        output, _ = publisher.communicate(timeout=timeout)
    finally:
        publisher.kill()
    return publisher.returncode, output


def publish(url: str, where: Path, *arguments: str, **settings: object) -> tuple[int, str]:
    """Runs `chronicle publish` to its end; gives its exit code and all that it printed."""
    return end(begin(url, where, *arguments, **settings))


def kept(where: Path) -> list[Path]:
    """The files of events that were not accepted."""
    return sorted(where.glob("*.jsonl"))
