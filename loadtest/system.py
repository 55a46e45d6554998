"""What is measured: a whole ChronicleWeaver as `chronicle up` runs it, or a PostgreSQL alone, each on a fresh home."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from chronicle import schema
from chronicle.errors import ChronicleError
from chronicle.up.children import stop
from chronicle.up.servers import Postgres, start
from tests.servers import ROOT, Stack, eventually

SETTLE_SECONDS = 600.0


class Broken(ChronicleError):
    """`chronicle verify` found a broken invariant: what was measured is worth nothing."""


@contextmanager
def chronicle() -> Iterator[Stack]:
    """All of ChronicleWeaver with an empty database."""
    with _home() as home:
        stack = Stack(home / "home")
        stack.start()
        try:
            yield stack
        finally:
            stack.close()


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of the same PostgreSQL, with the same settings and tables, and nothing else that runs."""
    with _home() as home:
        server = Postgres(home)
        try:
            start(server)
            schema.migrate(server.url)
            yield server.url
        finally:
            if server.process:
                stop(server.process, server.stop_steps)


@contextmanager
def _home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="chronicle-bench-"))
    home.chmod(0o711)  # as root the servers are nobody, who must pass through
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def ask(stack: Stack, path: str) -> Any:
    """The answer to a GET."""
    with urlopen(f"{stack.url}{path}", timeout=60) as answer:
        return json.load(answer)


def settle(stack: Stack) -> float:
    """Returns, with the seconds that it took, once the last event is projected."""
    begun = time.monotonic()
    eventually(lambda: ask(stack, "/stats")["in_flight"] == 0, SETTLE_SECONDS, every=0.01)
    return time.monotonic() - begun


def verify(stack: Stack) -> None:
    """Raises Broken, with the table, where `chronicle verify` finds a broken invariant."""
    done = subprocess.run(
        [sys.executable, "-m", "chronicle", "verify"],
        cwd=ROOT,
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Broken(f"chronicle verify:\n{done.stdout}{done.stderr}")


def memory(stack: Stack) -> dict[str, float]:
    """MB of memory of each process of ours, now and at most, resident and unshared; of PostgreSQL's all together.

    Empty where there is no /proc.
    """
    pids = stack.pids()
    if not Path(f"/proc/{pids['api']}/smaps_rollup").exists():
        return {}
    found = {"postgres MB": sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in _family(pids["postgres"])) / 1000}
    for name in ("supervisor", "api", "projector", "broker"):
        found[f"{name} MB"] = _kilobytes(pids[name], "status", "VmRSS:") / 1000
        found[f"{name} peak MB"] = _kilobytes(pids[name], "status", "VmHWM:") / 1000
        found[f"{name} unshared MB"] = _kilobytes(pids[name], "smaps_rollup", "Private_") / 1000
    return found


def _family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _kilobytes(pid: int, file: str, name: str) -> int:
    """The sum of the lines of a process's file that begin with `name`; 0 of one that has just ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(name))
    return 0
