"""Events of our own making, a chosen share of which are exact repeats of earlier ones."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec

from publisher.sources import Event

POOL_SIZE = 10_000
"""How many earlier events are kept to be repeated, whatever the length of the run."""

SOURCE = "chronicle-publisher"
TOPICS = 5
"""Events are spread over `topic-1` to this one."""

SEEDED_START = datetime(2025, 1, 1, tzinfo=UTC)
MESSAGES = (
    "user {} signed in",
    "user {} signed out",
    "order {} placed",
    "order {} shipped",
    "payment {} settled",
    "payment {} declined",
    "job {} finished",
    "request {} took longer than 500 ms",
)

Clock = Callable[[], datetime]


def seeded_clock() -> Clock:
    """A clock that shows the same times in every run, a millisecond apart, so that a seed gives equal events."""
    ticks = iter(range(10**12))
    return lambda: SEEDED_START + timedelta(milliseconds=next(ticks))


def wall_clock() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


def new_event(rng: random.Random, clock: Clock) -> bytes:
    """One event that nobody has seen, as JSON in the shape of POST /publish."""
    moment = clock().isoformat()
    event = {
        "event_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "topic": f"topic-{rng.randint(1, TOPICS)}",
        "source": SOURCE,
        "payload": {"message": rng.choice(MESSAGES).format(rng.randint(1, 99_999)), "timestamp": moment},
        "timestamp": moment,
    }
    return msgspec.json.encode(event)


def generate(count: int, duplicate_ratio: float, rng: random.Random, clock: Clock) -> Iterator[bytes]:
    """`count` events, exactly round(count * duplicate_ratio) of which repeat an earlier one byte for byte.

    The first event of a stream cannot be a repeat, so at most count - 1 are. Which positions repeat is drawn by
    selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S) and the pool of events to repeat is a reservoir sample of
    all earlier ones (algorithm R): both exact, both in one pass, and memory does not grow with `count`.
    """
    repeats = min(round(count * duplicate_ratio), max(count - 1, 0))
    pool: list[bytes] = []
    made = 0
    for position in range(count):
        if pool and rng.random() * (count - position) < repeats:
            repeats -= 1
            yield rng.choice(pool)
            continue
        event = new_event(rng, clock)
        made += 1
        if len(pool) < POOL_SIZE:
            pool.append(event)
        elif (slot := rng.randrange(made)) < POOL_SIZE:
            pool[slot] = event
        yield event


class Generator:
    """The source that makes its events up: fresh ones in every run, or the same ones again for the same seed."""

    unit = "event"
    problem: str | None = None

    def __init__(self, count: int, duplicate_ratio: float, seed: int | None) -> None:
        self.total: int | None = count
        self._stopped = False
        clock = wall_clock if seed is None else seeded_clock()
        self._texts = generate(count, duplicate_ratio, random.Random(seed), clock)

    async def events(self) -> AsyncIterator[Event | None]:
        """Every event in turn; none any more after `stop`."""
        for number, text in enumerate(self._texts, start=1):
            yield Event(number, text)
            if self._stopped:
                return

    def stop(self) -> None:
        """Ends the stream: an event that was not made yet is no loss."""
        self._stopped = True
