"""What waits in the outbox, how often it came back, and how much of it makes one transaction."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from chronicle import database, logs
from chronicle.arrays import UuidArray

MOST_TICKETS = 64
"""Batches a transaction: small ones of three rounds of the dispatcher fit."""

MOST_EVENTS = 10_000
"""Events a transaction; one batch alone may have more."""

OVERDUE_SECONDS = 1.0
"""A batch that waits longer in the outbox is projected without a ticket."""

MOST_OVERDUE = 16

ALONE = 2
"""A batch that came back so often is projected alone."""


class Batch(NamedTuple):
    """A batch of the outbox; `received` by the monotonic clock of this process."""

    batch_id: UUID
    event_count: int
    attempts: int
    received: float


def waiting(
    connection: psycopg.Connection[Any], batch_ids: Collection[UUID], returned: Collection[UUID] = ()
) -> list[Batch]:
    """Those of the batches that wait to be projected, oldest first. `returned` have come back once more just now."""
    if not batch_ids:
        return []
    with database.ours():
        rows = connection.execute(WAITING, {"batch_ids": UuidArray(batch_ids)}, prepare=True).fetchall()
    now = time.monotonic()
    return [Batch(each, size, attempts + (each in returned), now - age) for each, size, attempts, age in rows]


def count_attempt(connection: psycopg.Connection[Any], batch_ids: Collection[UUID]) -> set[UUID]:
    """Those of the batches that wait and that nobody holds; for each it is noted that it came back once more."""
    if not batch_ids:
        return set()
    with database.ours():
        rows = connection.execute(COUNT_ATTEMPT, {"batch_ids": UuidArray(batch_ids)}, prepare=True)
        return {batch_id for (batch_id,) in rows}


def forgive_attempt(connection: psycopg.Connection[Any], group: Iterable[Batch]) -> None:
    """Takes back one attempt of each."""
    with database.ours():
        connection.execute(FORGIVE_ATTEMPT, {"batch_ids": [batch.batch_id for batch in group]})


def overdue(connection: psycopg.Connection[Any], at_hand: Collection[UUID]) -> list[UUID]:
    """Some of the batches that have waited too long: a random few of the oldest, so that workers spread.

    Too long is OVERDUE_SECONDS longer than the oldest of `at_hand`, whose tickets have just come (for those behind them
    the tickets are still on their way), or than now. A batch from the future is overdue as well: a clock was wrong.
    Gives no more than one transaction takes.
    """
    with database.ours():
        oldest = connection.execute(
            OVERDUE, {"seconds": OVERDUE_SECONDS, "at_hand": UuidArray(at_hand)}, prepare=True
        ).fetchall()
    chosen = random.sample(oldest, min(MOST_OVERDUE, len(oldest)))
    sums = itertools.accumulate(event_count for _, event_count in chosen)
    few = [batch_id for (batch_id, _), events in zip(chosen, sums, strict=True) if events <= MOST_EVENTS]
    return few or [batch_id for batch_id, _ in chosen[:1]]


def request_ids(connection: psycopg.Connection[Any], batch_ids: Sequence[UUID]) -> list[str]:
    """At most logs.MOST_NAMED of the requests that the batches are made of."""
    return database.value(connection, REQUESTS, {"batch_ids": batch_ids, "most": logs.MOST_NAMED}) or []


def fitting(batches: Collection[Batch]) -> int | None:
    """How many batches of this size a transaction takes, so that a worker leaves the others what they could do now."""
    events = sum(batch.event_count for batch in batches)
    return max(1, min(MOST_TICKETS, MOST_EVENTS * len(batches) // events)) if events else None


def grouped(batches: Collection[Batch]) -> Iterator[list[Batch]]:
    """The batches in groups of at most MOST_EVENTS events; after them those that came back repeatedly, each for itself.

    These in any order: one of them may end the session every time, and what is behind it must have its turn.
    """
    group: list[Batch] = []
    events = 0
    for batch in batches:
        if batch.attempts >= ALONE:
            continue
        if group and events + batch.event_count > MOST_EVENTS:
            yield group
            group, events = [], 0
        group.append(batch)
        events += batch.event_count
    if group:
        yield group
    alone = [batch for batch in batches if batch.attempts >= ALONE]
    yield from ([batch] for batch in random.sample(alone, len(alone)))


OVERDUE = """
WITH front AS MATERIALIZED (
    SELECT least(clock_timestamp(), min(received_at)) AS received_at
    FROM (SELECT received_at FROM outbox WHERE batch_id = ANY (%(at_hand)s::uuid[]) OFFSET 0) AS at_hand
)
(
    SELECT batch_id, event_count FROM outbox
    WHERE received_at < (SELECT received_at FROM front) - make_interval(secs => %(seconds)s)
      AND received_at
          < (SELECT received_at FROM front) - make_interval(secs => %(seconds)s * power(2, least(attempts, 3)))
    ORDER BY received_at
    LIMIT 256
) UNION (
    SELECT batch_id, event_count FROM outbox
    WHERE attempts = 0 AND received_at < (SELECT received_at FROM front) - make_interval(secs => %(seconds)s)
    ORDER BY received_at
    LIMIT 64
) UNION (
    SELECT batch_id, event_count FROM outbox
    WHERE received_at > clock_timestamp() + make_interval(secs => 60)
    LIMIT 256
)
"""
"""Some of those that nobody has tried yet are always among them, however many others come back again and again."""

WAITING = """
SELECT batch_id, event_count, attempts, extract(epoch FROM statement_timestamp() - received_at)::float8 AS age
FROM outbox
WHERE batch_id = ANY (%(batch_ids)s::uuid[])
ORDER BY age DESC
"""
"""A plan that was made while the outbox was empty stays while a backlog comes. So here is no order that an index has,
and no join below: with either PostgreSQL read all that waits."""

COUNT_ATTEMPT = """
WITH held AS (
    SELECT batch_id FROM outbox WHERE batch_id = ANY (%(batch_ids)s::uuid[]) ORDER BY batch_id FOR UPDATE SKIP LOCKED
)
UPDATE outbox SET attempts = attempts + 1 WHERE batch_id = ANY (ARRAY(SELECT batch_id FROM held))
RETURNING batch_id
"""

FORGIVE_ATTEMPT = """
UPDATE outbox SET attempts = attempts - 1 WHERE batch_id = ANY (%(batch_ids)s::uuid[]) AND attempts > 0
"""

REQUESTS = """
SELECT array_agg(request_id)
FROM (
    SELECT unnest(request_ids) AS request_id FROM facts
    WHERE batch_id = ANY (%(batch_ids)s::uuid[]) AND action = 'RECEIVED'
    LIMIT %(most)s
) AS named
"""
