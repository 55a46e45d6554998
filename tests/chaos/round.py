"""One round: start everything, publish while the nemesis strikes, let it settle, check."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tests.servers import eventually

from . import checker
from .books import Books
from .journal import Journal, Outcome
from .nemesis import PROBLEMS, Nemesis, Step, plan
from .system import System
from .traffic import Line, Notes, Publisher, Traffic

SETTLE_SECONDS = 30
MOST_VIOLATIONS = 20
PROBE = 1000


@dataclass
class Report:
    """How a round went. `folder` holds its logs, its journal and its data where something was violated."""

    seed: int
    folder: Path
    steps: list[Step]
    violations: list[str] = field(default_factory=list)
    settled: float = 0.0
    summary: str = ""


def run(seed: int, seconds: float, say: Callable[[str], None] = print) -> Report:
    """Runs the round of a seed; `say` gets a line for everything that happens."""
    folder = Path(tempfile.mkdtemp(prefix=f"chronicle-chaos-{seed}-"))
    folder.chmod(0o711)  # as root, the servers run as somebody else, who has to pass
    report = Report(seed, folder, plan(seed, seconds))
    system, journal = System(folder), Journal(folder / "journal.jsonl")
    try:
        system.start()
        _play(system, journal, report, say)
    except PROBLEMS as error:
        report.violations.append(f"the round could not be played to its end: {error!r}")
    finally:
        system.close()
        journal.close()
    if not report.violations:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _play(system: System, journal: Journal, report: Report, say: Callable[[str], None]) -> None:
    traffic = Traffic(system.proxies["api"].port, journal, report.seed)
    books = Books(system.stack.port, journal)
    traffic.start()
    books.start()
    try:
        Nemesis(system, traffic, say).run(report.steps)
        system.heal()
    finally:
        traffic.stop()
    try:
        report.settled = settle(system, journal, report.seed)
    except AssertionError as error:
        report.violations.append(str(error))
    finally:
        books.stop()
    report.violations += books.violations
    report.violations += islice(checker.violations(journal, system), MOST_VIOLATIONS)
    counts = journal.counts()
    report.summary = (
        f"{counts[Outcome.OK]} requests ok, {counts[Outcome.REFUSED]} refused, {counts[Outcome.UNKNOWN]} unknown "
        f"({checker.stored_unknown(journal, system)} of them recorded); {journal.acknowledged} events ok, "
        f"{books.answers} answers of /stats; empty after {report.settled:.1f} s"
    )


def settle(system: System, journal: Notes, seed: int, name: int = PROBE) -> float:
    """The next request, of a client of this name, is accepted, and everything is worked off by itself; after how many
    seconds. Raises AssertionError where that takes longer than SETTLE_SECONDS."""
    began = time.monotonic()
    publisher, line = Publisher(name, seed), Line(system.stack.port, journal)

    def accepted() -> bool:
        request = publisher.request()
        line.send(request)
        return request.outcome is Outcome.OK

    def empty() -> bool:
        left = system.leftovers()
        assert not any(left.values()), f"left {SETTLE_SECONDS} s after the faults: {left}"
        return True

    try:
        eventually(accepted, timeout=SETTLE_SECONDS)
        eventually(empty, timeout=SETTLE_SECONDS + began - time.monotonic())
    finally:
        line.close()
    return time.monotonic() - began
