"""What the page shows: the books, topics, workers, outbox and queue as they are now.

From counters: of rows only those of the outbox are counted, to tell whether the books balance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import psycopg
import redis.asyncio
from msgspec import Raw, Struct
from redis.exceptions import ResponseError

from chronicle import broker
from chronicle.errors import BrokerAway
from query import audit, system

MOST_TOPICS = 50
NEWEST = 20
BROKER_SECONDS = 0.25
"""Redis that takes longer is shown as away."""


class Books(Struct):
    """The counters of all topics. `duplicates` are those that are no conflicts; `off_by` is 0 where the books balance.

    In flight is counted twice: here as what has no outcome, in the outbox as what waits there. `off_by` compares them.
    """

    received: int
    unique: int
    duplicates: int
    conflicts: int
    failed: int
    in_flight: int
    off_by: int


class Outbox(Struct):
    """The batches in flight. `late`: the oldest has waited for longer than projecting may take."""

    batches: int
    events: int
    oldest_seconds: float | None
    late: bool


class Unsequenced(Struct):
    """What subscribers do not see yet. `late`: the first of it has waited for longer than giving places may take."""

    oldest_seconds: float
    late: bool


class Topic(Struct):
    """The counters of a topic, and when the last of its events was received."""

    topic: str
    received: int
    unique: int
    duplicates: int
    conflicts: int
    failed: int
    last_seen: datetime | None


class Worker(Struct):
    """A worker's heartbeat, how many events it has projected, and how many tickets it holds (None: not known)."""

    worker_id: int
    process: str
    state: str
    silent_seconds: float
    silent: bool
    projected_seconds: float | None
    projected: int
    pending: int | None


class Queue(Struct):
    """The stream of tickets. `away`: why nothing is known of it."""

    away: str | None = None
    length: int | None = None
    pending: int | None = None
    pending_by_consumer: dict[str, int] = {}


class Snapshot(Struct):
    """All of it. `newest` are the latest PROCESSED records of the audit trail."""

    at: datetime
    books: Books
    outbox: Outbox
    unsequenced: Unsequenced
    queue: Queue
    topic_count: int
    topics: list[Topic]
    workers: list[Worker]
    newest: Raw


# One statement, so that the counters and the outbox are of one moment.
COUNTED = f"""
WITH sums AS (
    SELECT grouping(topic) = 1 AS all_topics, topic, lane, sum(received)::bigint AS received,
           sum(processed)::bigint AS processed, sum(dropped - conflicts)::bigint AS duplicates,
           sum(conflicts)::bigint AS conflicts, sum(failed)::bigint AS failed,
           row_number() OVER (PARTITION BY grouping(topic), grouping(lane) ORDER BY sum(received) DESC, topic) AS rank,
           count(*) OVER (PARTITION BY grouping(topic), grouping(lane)) AS count
    FROM stats
    GROUP BY GROUPING SETS ((), (topic), (lane))
)
SELECT sums.all_topics, sums.lane, sums.count, sums.topic, coalesce(sums.received, 0), coalesce(sums.processed, 0),
       coalesce(sums.duplicates, 0), coalesce(sums.conflicts, 0), coalesce(sums.failed, 0), seen.last_seen, waiting.*
FROM sums
LEFT JOIN LATERAL (
    SELECT max(recorded_at) AS last_seen FROM fact_topics WHERE topic = sums.topic AND action = 'RECEIVED'
) AS seen ON NOT sums.all_topics
CROSS JOIN (
    SELECT clock_timestamp(), count(*), coalesce(sum(event_count), 0)::bigint,
           extract(epoch FROM clock_timestamp() - min(received_at))::float8, {system.UNSEQUENCED}
    FROM outbox
) AS waiting
WHERE sums.all_topics OR sums.rank <= %(topics)s
ORDER BY sums.rank
"""

HEARTBEATS = """
SELECT worker_id::int, process, state, age, age > %(silent)s,
       extract(epoch FROM clock_timestamp() - projected_at)::float8
FROM workers CROSS JOIN LATERAL (SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8) AS heartbeat(age)
ORDER BY worker_id
"""


async def take(connection: psycopg.AsyncConnection[Any], queue: Queue) -> Snapshot:
    """The snapshot of this moment; `queue` is what Redis said."""
    rows = await (await connection.execute(COUNTED, {"topics": MOST_TOPICS})).fetchall()
    whole = next(row for row in rows if row[0] and row[1] is None)
    outbox = Outbox(*(*whole[11:14], (whole[13] or 0) > system.LATE_SECONDS))
    projected = {row[1]: sum(row[5:9]) for row in rows if row[1] is not None}
    topics = [row for row in rows if not row[0]]
    heartbeats = await (await connection.execute(HEARTBEATS, {"silent": system.SILENT_SECONDS})).fetchall()
    newest = {"action": "PROCESSED", "topic": None, "event_id": None, "from": None, "to": None}
    return Snapshot(
        at=whole[10],
        books=_books(whole[4:9], outbox),
        outbox=outbox,
        unsequenced=Unsequenced(whole[14], whole[14] > system.LATE_SECONDS),
        queue=queue,
        topic_count=topics[0][2] if topics else 0,
        topics=[Topic(*row[3:10]) for row in topics],
        workers=[Worker(*(*row, projected.get(row[0], 0), _pending(queue, row[0]))) for row in heartbeats],
        newest=Raw(await audit.page(connection, newest, NEWEST, None)),
    )


def _books(total: Sequence[int], outbox: Outbox) -> Books:
    in_flight = total[0] - sum(total[1:])
    return Books(*(*total, in_flight, in_flight - outbox.events))


def _pending(queue: Queue, worker_id: int) -> int | None:
    return None if queue.away else queue.pending_by_consumer.get(f"worker-{worker_id}", 0)


async def look(client: redis.asyncio.Redis | None) -> Queue:
    """What Redis says; never an error, for events are projected without it too."""
    if client is None:
        return Queue(away="this service was not told where Redis is: REDIS_URL")
    try:
        async with asyncio.timeout(BROKER_SECONDS):
            stream = await system.queue(client)
            pending = await _pending_by_consumer(client) if stream else {}
    except (BrokerAway, TimeoutError):
        stream = None
    if stream is None:
        return Queue(away="Redis does not answer; events are projected from the outbox")
    return Queue(length=stream.tickets, pending=stream.pending, pending_by_consumer=pending)


async def _pending_by_consumer(client: redis.asyncio.Redis) -> dict[str, int]:
    with broker.ours():
        try:
            consumers = await client.xinfo_consumers(broker.STREAM, broker.GROUP)
        except ResponseError:
            return {}  # there is no stream, or no group, before the first worker or after FLUSHALL
    return {consumer["name"]: consumer["pending"] for consumer in consumers}
