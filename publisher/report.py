"""What a person sees of a run: a progress bar on a terminal, and a table at the end."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from publisher.sending import Advance
from publisher.tally import Reason, Tally


@contextmanager
def progress(console: Console, total: int | None) -> Iterator[Advance]:
    """A progress bar that the given function moves on; nothing where the output is no terminal for a person."""
    if not animated(console):
        yield lambda _: None
        return
    columns = TextColumn("publishing"), BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("publishing", total=total)
        yield lambda count: bar.advance(task, count)


def animated(console: Console) -> bool:
    """Whether something may move on the screen."""
    unwanted = os.environ.get("NO_COLOR") or os.environ.get("CI")
    return console.file.isatty() and not console.is_dumb_terminal and not unwanted


def summary(tally: Tally) -> Table:
    """The numbers of a run."""
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name in ("sent", "accepted", "failed", "retries"):
        table.add_row(name, str(getattr(tally, name)))
    table.add_row("seconds", f"{tally.seconds:.2f}")
    table.add_row("events/s", f"{tally.accepted / tally.seconds:.0f}" if tally.seconds else "-")
    for percent in (50, 95, 99):
        latency = tally.latency(percent)
        table.add_row(f"latency p{percent}, ms", "-" if latency is None else f"{latency * 1000:.1f}")
    return table


def failures(tally: Tally, unit: str, spill: Path) -> Iterator[str]:
    """Lines that say what was not accepted, why, where it is, and how to try again."""
    yield f"{events(tally.failed)} not accepted:"
    for text, reason in tally.reasons.items():
        yield f"  {events(reason.count)}: {text} ({places(reason, unit)})"
    others = tally.failed - sum(reason.count for reason in tally.reasons.values())
    if others:
        yield f"  {events(others)}: other reasons"
    yield f"kept in {spill}; to try again: chronicle publish --file {shlex.quote(str(spill))}"


def events(count: int) -> str:
    """A number of events in words."""
    return f"{count} event" if count == 1 else f"{count} events"


def places(reason: Reason, unit: str) -> str:
    """The first events that a reason is about, by number."""
    shown = ", ".join(str(number) for number in reason.numbers)
    more = ", …" if reason.count > len(reason.numbers) else ""
    return f"{unit} {shown}{more}" if reason.count == 1 else f"{unit}s {shown}{more}"


def show(console: Console, line: str) -> None:
    """Prints a line as it is, however long."""
    console.print(Text(line), soft_wrap=True)
