"""What the query service knows of the whole system: the counters, the backlog, the workers' heartbeats, the broker.

One snapshot, at bounded cost. Whether the system gets on is judged by the real backlog and by how old heartbeats are,
not by what workers say of themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
import redis.asyncio
from psycopg.rows import class_row

from chronicle import broker
from chronicle.errors import BrokerAway

LATE_SECONDS = 5.0
"""A batch that is in flight for longer says that projecting does not get on."""

SILENT_SECONDS = 6.0
"""A worker without a heartbeat for so long (three are due) hangs, or is dead."""

MOST_BATCHES = 100_000
"""Batches in flight are counted up to so many."""

BROKER_SECONDS = 1.0

UNSEQUENCED = """coalesce((
    SELECT extract(epoch FROM clock_timestamp() - f.recorded_at)
    FROM (SELECT batch_id, attempt FROM unsequenced ORDER BY fact_id LIMIT 1) AS first
    JOIN facts f ON f.batch_id = first.batch_id AND f.action = 'PROCESSED' AND f.attempt = first.attempt
), 0)::float8"""
"""For how many seconds the first projection without its place in the stream has waited; 0 where there is none."""

LOOK = f"""
SELECT received, processed, duplicates, conflicts, failed, received - processed - dropped - failed AS in_flight,
       (SELECT count(*) FROM (SELECT FROM outbox LIMIT {MOST_BATCHES}) AS waiting) AS batches,
       (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(received_at)), 0)::float8 FROM outbox) AS oldest,
       {UNSEQUENCED} AS unsequenced,
       (SELECT coalesce(json_agg(said ORDER BY said.worker_id), '[]') FROM (
           SELECT worker_id, process, state, extract(epoch FROM clock_timestamp() - seen_at)::float8 AS heartbeat_age,
                  extract(epoch FROM clock_timestamp() - projected_at)::float8 AS projected_age
           FROM workers
       ) AS said) AS workers
FROM (
    SELECT coalesce(sum(received), 0)::bigint AS received, coalesce(sum(processed), 0)::bigint AS processed,
           coalesce(sum(dropped), 0)::bigint AS dropped, coalesce(sum(failed), 0)::bigint AS failed,
           coalesce(sum(conflicts), 0)::bigint AS conflicts,
           coalesce(sum(dropped) - sum(conflicts), 0)::bigint AS duplicates
    FROM stats
) AS books
"""


@dataclass(frozen=True)
class Look:
    """What one look at the database saw; ages in seconds, by the clock of the database.

    `oldest` is that of the oldest batch in flight, `unsequenced` that of the first projection without its place in the
    stream.
    """

    received: int
    processed: int
    duplicates: int
    conflicts: int
    failed: int
    in_flight: int
    batches: int
    oldest: float
    unsequenced: float
    workers: list[dict[str, Any]]

    def alive(self) -> list[dict[str, Any]]:
        """The workers whose heartbeat is fresh."""
        return [worker for worker in self.workers if worker["heartbeat_age"] <= SILENT_SECONDS]

    def silent(self) -> list[dict[str, Any]]:
        """The workers that neither beat nor said goodbye."""
        return [worker for worker in self.workers if worker["heartbeat_age"] > SILENT_SECONDS]


async def look(connection: psycopg.AsyncConnection[Any]) -> Look:
    """One statement, one snapshot."""
    async with connection.cursor(row_factory=class_row(Look)) as cursor:
        found = await (await cursor.execute(LOOK)).fetchone()
    assert found
    return found


@dataclass(frozen=True)
class Queue:
    """The stream of tickets: how many it holds, and how many of them some worker has taken and not acknowledged."""

    tickets: int
    pending: int


async def queue(client: redis.asyncio.Redis) -> Queue | None:
    """The stream as it is; None where Redis is away, or slow to answer."""
    try:
        with broker.ours():
            async with asyncio.timeout(BROKER_SECONDS), client.pipeline(transaction=False) as pipeline:
                pipeline.xlen(broker.STREAM)
                pipeline.xinfo_groups(broker.STREAM)
                tickets, groups = await pipeline.execute(raise_on_error=False)
    except BrokerAway:
        return None
    if isinstance(tickets, Exception):
        return None
    # Where there is no stream yet there is no group either, and Redis calls that an error.
    pending = [] if isinstance(groups, Exception) else [g["pending"] for g in groups if g["name"] == broker.GROUP]
    return Queue(tickets, sum(pending))


def report(seen: Look, schema: str, off: Sequence[str], *, asks_broker: bool, stream: Queue | None) -> dict[str, Any]:
    """The answer of /ready?verbose. `off`: what DURABILITY gives; `stream`: None where Redis is away, or not known."""
    found = problems(seen, broker_is_away=asks_broker and stream is None)
    known = asdict(stream) if stream else {}
    checks = {
        "database": {"status": "up"},
        "schema": {"version": schema},
        "durability": {"off": off},
        "broker": {"status": ("up" if stream else "away") if asks_broker else "not known"} | known,
        "backlog": {"batches": seen.batches, "events": seen.in_flight, "oldest_seconds": seen.oldest},
        "unsequenced": {"oldest_seconds": seen.unsequenced},
        "workers": seen.workers,
    }
    return {"status": "degraded" if found else "ready", "problems": found, "checks": checks}


def problems(seen: Look, *, broker_is_away: bool) -> list[str]:
    """What keeps the system from getting on, in words; none where all is well."""
    found = []
    if seen.oldest > LATE_SECONDS:
        found.append(
            f"the oldest of {seen.batches} batches in flight has waited for {seen.oldest:.0f} s: projecting lags behind"
        )
    if seen.unsequenced > LATE_SECONDS:
        found.append(
            f"a projection has waited for {seen.unsequenced:.0f} s for its place in the stream: subscribers wait"
        )
    if not seen.alive():
        found.append("no projector worker is alive")
    found += [
        f"worker {worker['worker_id']} ({worker['process']}) has said nothing for {worker['heartbeat_age']:.0f} s"
        for worker in seen.silent()
    ]
    if broker_is_away:
        found.append("Redis is away: workers take batches from the outbox")
    return found
