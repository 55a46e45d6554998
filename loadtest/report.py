"""What the figures say: results.json keeps them all; medians and goals go to the terminal and into the README."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from chronicle.up import binaries
from loadtest.goals import GOALS, Figures


class Results(TypedDict):
    """results.json: the figures of each run, in the order of the runs."""

    date: str
    machine: str
    command: str
    runs: list[Figures]


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
