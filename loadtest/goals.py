"""What the figures should be: ratios within one run, and bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

Figures = dict[str, float]
"""What one run has measured, by name."""


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


def _most(begin: str, end: str) -> Callable[[Figures], float]:
    """The largest of the figures whose names begin and end so."""

    def most(figures: Figures) -> float:
        found = [figure for name, figure in figures.items() if name.startswith(begin) and name.endswith(end)]
        if not found:
            raise KeyError(begin, end)
        return max(found)

    return most


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
    Goal(
        "single, 32 connections: share of the ceiling",
        _ratio("single events/s", "ceiling of single events/s"),
        0.5,
        True,
    ),
    Goal(
        "single, 128 connections: share of the ceiling",
        _ratio("single, 128 connections events/s", "ceiling of single, 128 connections events/s"),
        0.5,
        True,
    ),
    Goal("single, 32 connections: p95", _figure("single p95 ms"), 15, False, " ms"),
    Goal("k6: p95", _figure("k6 p95 ms"), 10, False, " ms"),
    Goal(
        "k6: last event projected after the end of the load", _figure("k6 last event projected ms"), 1000, False, " ms"
    ),
    Goal("bulk at half load: lag p99", _figure("bulk at half load: lag p99 ms"), 100, False, " ms"),
    Goal("single at half load: lag p99", _figure("single at half load: lag p99 ms"), 100, False, " ms"),
    Goal("bulk with all stored, as a share", _figure("bulk events/s, the share that is left"), 0.8, True),
    Goal("single with all stored, as a share", _figure("single events/s, the share that is left"), 0.8, True),
    Goal("the read that slows down most, as a multiple", _most_slowed_read, 1.5, False),
    Goal("the slowest read with all stored: p95", _most("grown: GET", "p95 ms"), 50, False, " ms"),
    Goal("memory of the API at most", _most("", "api peak MB"), 200, False, " MB"),
    Goal("memory of the projector at most", _most("", "projector peak MB"), 200, False, " MB"),
    Goal("ledger on disk, an event", _figure("facts: bytes an event"), 60, False, " bytes"),
)
