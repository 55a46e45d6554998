"""The ledger's words and numbers, and what more than one service writes into it: QUEUED facts, ids of batches."""

from __future__ import annotations

import secrets
import time
from uuid import UUID

ACTIONS = ("RECEIVED", "QUEUED", "PROCESSED", "DROPPED", "FAILED")
COUNTERS = tuple(action.lower() for action in ACTIONS)

READ_MODELS = ("processed_events", "dropped_events", "failed_events", "fact_topics", "stats")
"""The tables that `chronicle rebuild` makes again from the ledger."""

DROPPED_INDEX = "hashtextextended(event_id, 0)"
DROPPED_OF_EVENT = f"{DROPPED_INDEX} = hashtextextended(%(event_id)s, 0) AND event_id = %(event_id)s"
"""Which rows of `dropped_events` speak of an event. An index of whole ids cost bulk three hundredths more."""

RECORD_POSITIONS = 65_536
"""An audit record's id is its fact's id times this, plus the event's position in the batch (which stays below it)."""


def new_batch_id() -> UUID:
    """A UUID of version 7 that begins with the time: ids are in the order in which batches were made.

    After the milliseconds come 12 bits of the millisecond's fraction, steps of 0.25 microseconds (RFC 9562, section
    6.2, method 3), for a millisecond has room for two batches. New batches land side by side in an index.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62))


RECORD_QUEUED = """
WITH received AS MATERIALIZED (
    SELECT batch_id, recorded_at, event_count, topics FROM facts
    WHERE batch_id = ANY (%(batch_ids)s::uuid[]) AND topics IS NOT NULL
), queued AS (
    INSERT INTO facts (batch_id, action, recorded_at, lane, event_count)
    SELECT batch_id, 'QUEUED', greatest(clock_timestamp(), recorded_at), %(lane)s, event_count
    FROM received
    ORDER BY batch_id
    ON CONFLICT (batch_id, action, attempt) DO NOTHING
    RETURNING id, batch_id, recorded_at
), tally AS (
    SELECT q.id, q.batch_id, q.recorded_at, t.topic, t.event_count
    FROM queued q
    JOIN received r ON r.batch_id = q.batch_id
    CROSS JOIN LATERAL (
        SELECT topic, count(*)::int AS event_count FROM (SELECT unnest(r.topics) AS topic) AS each GROUP BY topic
    ) AS t
), indexed AS (
    INSERT INTO fact_topics (topic, action, recorded_at, fact_id, batch_id, event_count)
    SELECT topic, 'QUEUED', recorded_at, id, batch_id, event_count FROM tally
)
INSERT INTO stats (topic, lane, queued)
SELECT topic, %(lane)s, sum(event_count) FROM tally GROUP BY topic ORDER BY topic
ON CONFLICT (topic, lane) DO UPDATE SET queued = stats.queued + excluded.queued
"""
"""Writes QUEUED facts, with their counters, for those of `batch_ids` that have none yet, in the lane `lane`.

The dispatcher runs it once tickets are sent; a worker runs it before an outcome, so that times stay in order.

RECEIVED facts, which alone have topics, are told by that in what is prepared: a plan that was made while the ledger
was empty stays for a while, and with `action = 'RECEIVED'` it would read by action, which is all of the ledger.
"""
