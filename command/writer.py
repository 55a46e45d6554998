"""What writes into the ledger for a command process: a connection, its lane of counters, and the one commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from psycopg.types.numeric import Int2, Int4

from chronicle import arrays, database
from chronicle.errors import DatabaseAway
from chronicle.events import Events
from command.statement import Statement

RECORD_RECEIVED = """
WITH received AS (
    INSERT INTO facts (batch_id, action, lane, event_count, event_ids, event_uuids, topics, sources, payloads,
                       timestamps, request_ids, request_sizes)
    VALUES (%(batch_id)s, 'RECEIVED', %(lane)s,
            CASE WHEN NOT %(again)s::bool OR pg_logical_emit_message(true, 'chronicle', '') IS NOT NULL
                 THEN %(event_count)s::int END,
            %(event_ids)s, %(event_uuids)s, %(topics)s, %(sources)s, %(payloads)s, %(timestamps)s, %(request_ids)s,
            %(request_sizes)s)
    ON CONFLICT (batch_id, action, attempt) DO NOTHING
    RETURNING id, batch_id, recorded_at, event_count
), sent AS (
    INSERT INTO outbox (batch_id, received_at, event_count)
    SELECT batch_id, recorded_at, event_count FROM received
), tally AS (
    SELECT r.id, r.batch_id, r.recorded_at, t.topic, t.event_count
    FROM received r CROSS JOIN unnest(%(names)s::text[], %(counts)s::int[]) AS t(topic, event_count)
), indexed AS (
    INSERT INTO fact_topics (topic, action, recorded_at, fact_id, batch_id, event_count)
    SELECT topic, 'RECEIVED', recorded_at, id, batch_id, event_count FROM tally
)
INSERT INTO stats (topic, lane, received)
SELECT topic, %(lane)s, event_count FROM tally ORDER BY topic
ON CONFLICT (topic, lane) DO UPDATE SET received = stats.received + excluded.received
"""
"""Run again it may write no row, and then its commit would not wait for a synchronous standby, which may not have the
rows of the first try yet. So it writes a message into the WAL, which nobody reads."""


class Writer:
    """A connection that commits batches, and the lane of `stats` that is its own while it lasts."""

    def __init__(self, connection: database.AsyncConnection, lane: int) -> None:
        self.connection = connection
        self.lane = lane
        self._record_received = Statement(connection, RECORD_RECEIVED)

    @classmethod
    async def open(cls, url: str, patience: float | None = None) -> Writer:
        """`patience`: seconds for each answer of PostgreSQL; None: as any session has. Raises DatabaseAway."""
        connection = await database.connect_async(url, "command")
        connection.patience = patience or connection.patience
        with database.ours():
            row = await (await connection.execute(*database.lane_query(1))).fetchone()
        if row is None:
            await connection.close()
            raise DatabaseAway("no free lane: too many command processes")
        return cls(connection, -1 - row[0])

    async def close(self) -> None:
        """Gives connection and lane back."""
        self._record_received.close()
        await self.connection.close()

    async def give_up(self) -> None:
        """Closes it, and ends what the session may still wait for."""
        self._record_received.close()
        await self.connection.give_up()

    async def record_received(
        self, batch_id: UUID, events: Events, requests: Sequence[tuple[str, int]] = (), *, again: bool = False
    ) -> None:
        """One statement, one synchronous commit. Run `again` under the same id, it changes nothing.

        `requests`: the ids of the requests that brought the events, in this order, and how many each.

        Raises DatabaseAway where the outcome is unknown or nothing was done, psycopg.Error where PostgreSQL refused.
        """
        tally = Counter(events.topics)
        event_uuids = arrays.uuids(events.event_ids)
        with database.ours():
            await self._record_received.execute(
                {
                    "batch_id": batch_id,
                    "again": again,
                    "lane": Int2(self.lane),
                    "event_count": Int4(len(events)),
                    "event_ids": None if event_uuids else arrays.TextArray(events.event_ids),
                    "event_uuids": event_uuids,
                    "topics": arrays.TextArray(events.topics),
                    "sources": arrays.TextArray(events.sources),
                    "payloads": arrays.JsonArray(events.payloads),
                    "timestamps": arrays.MomentArray(events.timestamps),
                    "names": arrays.TextArray(tally),
                    "counts": arrays.IntArray(tally.values()),
                    "request_ids": arrays.TextArray(request_id for request_id, _ in requests),
                    "request_sizes": arrays.IntArray(size for _, size in requests),
                }
            )
