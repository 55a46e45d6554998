"""(3) project: the one transaction that turns batches into read models.

Claim, QUEUED where missing, insert the first sightings, judge the others, record the outcome, count: all of it or
nothing. Payloads never leave PostgreSQL. Locks are taken in one order everywhere (outbox rows by batch, QUEUED facts by
batch, events by topic and event_id), so that workers wait for each other and never deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from chronicle.ledger import RECORD_QUEUED

CLAIM = """
WITH held AS (
    SELECT batch_id FROM outbox WHERE batch_id = ANY (%(batch_ids)s::uuid[]) ORDER BY batch_id FOR UPDATE
)
DELETE FROM outbox USING held WHERE outbox.batch_id = held.batch_id RETURNING outbox.batch_id
"""

INSERT_FIRST_SIGHTINGS = """
WITH won AS (
    INSERT INTO processed_events (event_id, topic, source, payload, "timestamp", batch_id, position)
    SELECT DISTINCT ON (topic, event_id) event_id, topic, source, payload, "timestamp", batch_id, position
    FROM received_events
    WHERE batch_id = ANY (%(batch_ids)s::uuid[])
    ORDER BY topic, event_id, batch_id, position
    ON CONFLICT (topic, event_id) DO NOTHING
    RETURNING batch_id, position
)
SELECT batch_id, array_agg(position ORDER BY position)::text FROM won GROUP BY batch_id
"""

RECORD_OUTCOME = """
WITH won AS (
    SELECT w.batch_id, unnest(w.positions::int[]) AS position
    FROM unnest(%(won_batch_ids)s::uuid[], %(won_positions)s::text[]) AS w(batch_id, positions)
), judged AS MATERIALIZED (
    SELECT e.batch_id, e.position, e.event_id, e.topic, w.position IS NOT NULL AS first,
           CASE WHEN w.position IS NULL THEN e.payload END AS payload
    FROM received_events e
    LEFT JOIN won w ON w.batch_id = e.batch_id AND w.position = e.position
    WHERE e.batch_id = ANY (%(batch_ids)s::uuid[])
), dropped AS (
    SELECT j.batch_id, j.position, j.event_id, j.topic,
           CASE WHEN j.payload::text = p.payload::text OR j.payload::jsonb = p.payload::jsonb
                THEN 'duplicate' ELSE 'conflict' END AS reason
    FROM judged j
    CROSS JOIN LATERAL (
        SELECT stored.payload FROM processed_events stored
        WHERE stored.event_id = j.event_id AND stored.topic = j.topic
        OFFSET 0
    ) AS p
    WHERE NOT j.first
), kept AS (
    INSERT INTO dropped_events (event_id, topic, batch_id, position, reason)
    SELECT event_id, topic, batch_id, position, reason FROM dropped
    RETURNING batch_id, position, reason
), conflicting AS (
    SELECT batch_id, array_agg(position ORDER BY position) AS positions
    FROM kept
    WHERE reason = 'conflict'
    GROUP BY batch_id
), outcome AS (
    INSERT INTO facts (batch_id, action, recorded_at, lane, worker_id, event_count, positions, conflicts)
    SELECT j.batch_id, CASE WHEN j.first THEN 'PROCESSED' ELSE 'DROPPED' END,
           greatest(clock_timestamp(), q.recorded_at), %(worker_id)s, %(worker_id)s, count(*),
           CASE WHEN count(*) < q.event_count THEN array_agg(j.position ORDER BY j.position) END,
           CASE WHEN NOT j.first THEN c.positions END
    FROM judged j
    JOIN facts q ON q.batch_id = j.batch_id AND q.action = 'QUEUED'
    LEFT JOIN conflicting c ON c.batch_id = j.batch_id
    GROUP BY j.batch_id, j.first, q.recorded_at, q.event_count, c.positions
    RETURNING id, batch_id, action, recorded_at
), tally AS (
    SELECT o.id, o.batch_id, o.action, o.recorded_at, j.topic, count(*)::int AS event_count
    FROM judged j
    JOIN outcome o ON o.batch_id = j.batch_id AND o.action = CASE WHEN j.first THEN 'PROCESSED' ELSE 'DROPPED' END
    GROUP BY o.id, o.batch_id, o.action, o.recorded_at, j.topic
), indexed AS (
    INSERT INTO fact_topics (topic, action, recorded_at, fact_id, batch_id, event_count)
    SELECT topic, action, recorded_at, id, batch_id, event_count FROM tally
)
INSERT INTO stats (topic, lane, processed, dropped)
SELECT topic, %(worker_id)s, coalesce(sum(event_count) FILTER (WHERE action = 'PROCESSED'), 0),
       coalesce(sum(event_count) FILTER (WHERE action = 'DROPPED'), 0)
FROM tally
GROUP BY topic
ORDER BY topic
ON CONFLICT (topic, lane)
DO UPDATE SET processed = stats.processed + excluded.processed, dropped = stats.dropped + excluded.dropped
"""


def project(connection: psycopg.Connection[Any], batch_ids: Sequence[UUID], worker_id: int) -> list[UUID]:
    """Projects those of the batches that are in flight, in one READ COMMITTED transaction.

    Waits for another worker that holds one of them. Gives the batches that this call projected; the others were
    projected before, or are no longer there. Raises psycopg.Error, and then nothing has changed.
    """
    with connection.transaction():
        rows = connection.execute(CLAIM, {"batch_ids": list(batch_ids)}, prepare=True).fetchall()
        if not rows:
            return []
        claimed = {"batch_ids": sorted(row[0] for row in rows)}
        connection.execute(RECORD_QUEUED, claimed | {"lane": worker_id}, prepare=True)
        won = connection.execute(INSERT_FIRST_SIGHTINGS, claimed, prepare=True).fetchall()
        # A statement of its own: only a new snapshot shows the rows that other workers stored meanwhile.
        connection.execute(
            RECORD_OUTCOME,
            claimed
            | {
                "worker_id": worker_id,
                "won_batch_ids": [batch_id for batch_id, _ in won],
                "won_positions": [positions for _, positions in won],
            },
            prepare=True,
        )
    return claimed["batch_ids"]
