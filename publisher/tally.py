"""What a run has done so far, in numbers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from publisher.sources import Event

SHOWN_REASONS = 5
SHOWN_NUMBERS = 5


@dataclass
class Reason:
    """One reason why events were not accepted, and the first few of them."""

    count: int = 0
    numbers: list[int] = field(default_factory=list)


@dataclass
class Tally:
    """The counters of one run. Every event ends in `accepted` or in `failed`."""

    sent: int = 0
    """Events that went out at least once."""
    accepted: int = 0
    failed: int = 0
    retries: int = 0
    """Requests that were sent again because an earlier try failed."""
    latencies: array[float] = field(default_factory=lambda: array("d"))
    """Seconds from sending a request to its acceptance, waiting and earlier tries not included."""
    reasons: dict[str, Reason] = field(default_factory=dict)
    """The first few different reasons, in the order in which they turned up."""

    seconds: float = 0.0
    stopped: str | None = None
    """Why nothing more was sent from some moment on."""
    signal: int | None = None
    """The signal that ended the run early."""

    def fail(self, events: Sequence[Event], reason: str) -> None:
        """Counts events that were not accepted."""
        self.failed += len(events)
        if reason not in self.reasons and len(self.reasons) == SHOWN_REASONS:
            return
        known = self.reasons.setdefault(reason, Reason())
        known.count += len(events)
        known.numbers += [event.number for event in events[: SHOWN_NUMBERS - len(known.numbers)]]

    def latency(self, percent: float) -> float | None:
        """The latency in seconds that `percent` of the accepted requests did not exceed (nearest rank)."""
        if not self.latencies:
            return None
        ordered = sorted(self.latencies)
        rank = -(-len(ordered) * percent // 100)
        return ordered[max(int(rank), 1) - 1]
