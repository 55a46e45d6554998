"""What the figures say: medians, ratios against the goals, and results.json, which keeps all of it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from chronicle.up import binaries

Figures = dict[str, float]


class Results(TypedDict):
    """results.json: the figures of each run, in the order of the runs."""

    date: str
    machine: str
    command: str
    runs: list[Figures]


@dataclass(frozen=True)
class Goal:
    """A ratio or a figure of one run, and the bound that it should keep."""

    what: str
    of: Callable[[Figures], float]
    bound: float
    at_least: bool
    unit: str = ""

    def value(self, runs: Sequence[Figures]) -> float | None:
        """The median over the runs that have what it is made of; None where none has."""
        values = []
        for figures in runs:
            with suppress(KeyError):
                values.append(self.of(figures))
        return median(values) if values else None

    def is_met(self, value: float) -> bool:
        """Whether the value keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def text(self) -> str:
        """The bound as people write it."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{self.unit}"


def _ratio(of: str, to: str) -> Callable[[Figures], float]:
    return lambda figures: figures[of] / figures[to]


def _figure(name: str) -> Callable[[Figures], float]:
    return lambda figures: figures[name]


def _largest(end: str) -> Callable[[Figures], float]:
    def largest(figures: Figures) -> float:
        found = [figure for name, figure in figures.items() if name.endswith(end)]
        if not found:
            raise KeyError(end)
        return max(found)

    return largest


def _slowest_read(figures: Figures) -> float:
    found = [figure for name, figure in figures.items() if name.startswith("grown: GET") and name.endswith("p95 ms")]
    if not found:
        raise KeyError("grown: GET")
    return max(found)


def _most_slowed_read(figures: Figures) -> float:
    reads = [name for name in figures if name.startswith("small: GET") and name.endswith("p50 ms")]
    if not reads:
        raise KeyError("small: GET")
    return max(figures[name.replace("small", "grown", 1)] / figures[name] for name in reads)


GOALS = (
    Goal("bulk, as a share of the floor", _ratio("bulk events/s", "floor events/s"), 0.6, True),
    Goal(
        "bulk, as a multiple of the afternoon version",
        _ratio("bulk events/s", "afternoon bulk events/s"),
        1.3,
        True,
    ),
    Goal(
        "single, as a multiple of the afternoon version",
        _ratio("single events/s", "afternoon single events/s"),
        3.0,
        True,
    ),
    Goal("single, as a share of the ceiling", _ratio("single events/s", "ceiling of single events/s"), 0.5, True),
    Goal("single, 32 connections: p95", _figure("single p95 ms"), 15, False, " ms"),
    Goal("k6: p95", _figure("k6 p95 ms"), 10, False, " ms"),
    Goal(
        "k6: last event projected after the end of the load", _figure("k6 last event projected ms"), 1000, False, " ms"
    ),
    Goal("bulk at half load: lag p99", _figure("bulk at half load: lag p99 ms"), 100, False, " ms"),
    Goal("single at half load: lag p99", _figure("single at half load: lag p99 ms"), 100, False, " ms"),
    Goal("bulk with all stored, as a share", _ratio("grown: bulk events/s", "small: bulk events/s"), 0.8, True),
    Goal("single with all stored, as a share", _ratio("grown: single events/s", "small: single events/s"), 0.8, True),
    Goal("the read that slows down most, as a multiple", _most_slowed_read, 1.5, False),
    Goal("the slowest read with all stored: p95", _slowest_read, 50, False, " ms"),
    Goal("memory of the API at most", _largest("api peak MB"), 200, False, " MB"),
    Goal("memory of the projector at most", _largest("projector peak MB"), 200, False, " MB"),
    Goal("ledger on disk, an event", _figure("facts: bytes an event"), 60, False, " bytes"),
)


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of each figure over the runs that have it."""
    names = dict.fromkeys(name for figures in runs for name in figures)
    return {name: median(figures[name] for figures in runs if name in figures) for name in names}


def begin(words: Sequence[str]) -> Results:
    """Results without figures yet; `words` are the command line's."""
    command = "make bench" + (f" ARGS='{' '.join(words)}'" if words else "")
    return Results(date=f"{datetime.now(UTC):%Y-%m-%d}", machine=_machine(), command=command, runs=[])


def write(results: Results, file: Path) -> None:
    """Keeps the results."""
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def read(file: Path) -> Results:
    """The results that were kept."""
    found: Results = json.loads(file.read_text())
    return found


def show(results: Results) -> None:
    """Prints every figure and every goal."""
    figures = Table("figure", "median", "from", "to", title=f"{len(results['runs'])} runs, {results['machine']}")
    for name, middle in medians(results["runs"]).items():
        values = [run[name] for run in results["runs"] if name in run]
        figures.add_row(name, number(middle), number(min(values)), number(max(values)))
    goals = Table("goal", "seen", "bound", "met")
    for goal in GOALS:
        if (value := goal.value(results["runs"])) is not None:
            goals.add_row(goal.what, number(value) + goal.unit, goal.text(), "yes" if goal.is_met(value) else "no")
    console = Console()
    console.print(figures, goals, markup=False)


def number(value: float) -> str:
    """A figure as people read it: 52,000 or 12.3 or 0.43."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


MARKED = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)


def into_readme(results: Results, readme: Path) -> None:
    """Writes rates and goals between the README's marks."""
    text = f"{_rates(results)}\n{_goals(results)}\n{results['date']}, {results['machine']}: `{results['command']}`.\n"
    readme.write_text(MARKED.sub(lambda marks: marks[1] + text + marks[2], readme.read_text()))


def _rates(results: Results) -> str:
    figures = medians(results["runs"])
    shapes = ("bulk", "hundreds", "single", "single, 128 connections")
    rows = {
        "ChronicleWeaver": "{} events/s",
        "the afternoon version": "afternoon {} events/s",
        "ceiling: nothing behind validation": "ceiling of {} events/s",
    }
    lines = [f"| events/s | {' | '.join(shapes)} |", "|---" * (len(shapes) + 1) + "|"]
    for who, name in rows.items():
        cells = [number(figures[key]) if (key := name.format(shape)) in figures else "" for shape in shapes]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    floor = number(figures["floor events/s"]) if "floor events/s" in figures else ""
    return "\n".join([*lines, f"| floor: COPY | {floor} | | | |"]) + "\n"


def _goals(results: Results) -> str:
    lines = ["| | seen | goal |", "|---|---|---|"]
    for goal in GOALS:
        if (value := goal.value(results["runs"])) is not None:
            missed = "" if goal.is_met(value) else " (missed)"
            lines.append(f"| {goal.what} | {number(value)}{goal.unit}{missed} | {goal.text()} |")
    return "\n".join(lines) + "\n"


def _machine() -> str:
    """Cores, processor, versions, and what one fsync costs: nothing that names the machine."""
    folder, _ = binaries.postgres()
    postgres = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    version = postgres.split()[2]
    return (
        f"{os.cpu_count()} cores ({_processor()}), Python {platform.python_version()}, PostgreSQL {version}, "
        f"{_fsync_milliseconds():.2f} ms an fsync"
    )


def _processor() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.machine()


def _fsync_milliseconds() -> float:
    """Median of writing 8 KB and waiting for the disk, where the databases will be."""
    took = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            begun = time.monotonic()
            file.write(bytes(8192))
            file.flush()
            os.fsync(file.fileno())
            took.append(time.monotonic() - begun)
    return median(took) * 1000
