"""Where events come from, and how they are put together into requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol


class Event(NamedTuple):
    """One event as the text that is sent: nothing of it is parsed and written again, so nothing of it can change."""

    number: int
    """Which one of its source, from 1: the line of a file, blank lines counted."""
    text: bytes
    problem: str | None = None
    """Why it cannot be sent at all."""


class Source(Protocol):
    """A stream of events."""

    unit: str
    """What `Event.number` counts: `event` or `line`."""
    total: int | None
    """How many events there will be, where that is known."""
    problem: str | None
    """Why the stream ended early, if it did."""

    def events(self) -> AsyncIterator[Event | None]:
        """Every event in turn; None means that the next one is not there yet, so what was collected had better go."""

    def stop(self) -> None:
        """Makes `events` give what is there already, without waiting or inventing more, and end."""


async def batches(events: AsyncIterator[Event | None], count: int, size: int) -> AsyncIterator[list[Event]]:
    """The events in lists of at most `count` events and `size` bytes; a single larger event comes alone."""
    batch: list[Event] = []
    weight = 0
    async for event in events:
        heavier = weight + len(event.text) + 1 if event is not None else weight
        if batch and (event is None or heavier > size):
            yield batch
            batch, heavier = [], heavier - weight
        weight = heavier
        if event is not None:
            batch.append(event)
        if len(batch) == count:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch
