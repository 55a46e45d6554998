"""What the ledger says each read model must be. `rebuild` makes the tables from this, `verify` compares them with it.

Decisions are replayed, never taken again: the positions in PROCESSED and DROPPED facts say who won.
"""

from __future__ import annotations

CHOSEN = "e.batch_id = f.batch_id AND (f.positions IS NULL OR e.position = ANY (f.positions))"

COLUMNS = {
    "processed_events": 'event_id, topic, source, payload, "timestamp", batch_id, position',
    "dropped_events": "event_id, topic, batch_id, position, reason",
    "failed_events": "event_id, topic, batch_id, position, error",
    "fact_topics": "topic, action, recorded_at, fact_id, batch_id, event_count",
    "stats": "topic, lane, received, queued, processed, dropped, failed",
}

LEDGER_SAYS = {
    "processed_events": f"""
        SELECT e.event_id, e.topic, e.source, e.payload, e."timestamp", e.batch_id, e.position
        FROM {{facts}} f JOIN received_events e ON {CHOSEN}
        WHERE f.action = 'PROCESSED'
    """,
    "dropped_events": f"""
        SELECT e.event_id, e.topic, e.batch_id, e.position,
               CASE WHEN e.position = ANY (f.conflicts) THEN 'conflict' ELSE 'duplicate' END AS reason
        FROM {{facts}} f JOIN received_events e ON {CHOSEN}
        WHERE f.action = 'DROPPED'
    """,
    "failed_events": f"""
        SELECT e.event_id, e.topic, e.batch_id, e.position,
               f.errors[array_position(f.positions, e.position)] AS error
        FROM {{facts}} f JOIN received_events e ON {CHOSEN}
        WHERE f.action = 'FAILED' AND NOT EXISTS (
            SELECT FROM facts later
            WHERE later.batch_id = f.batch_id AND later.attempt > f.attempt AND e.position = ANY (later.positions)
        )
    """,
    "fact_topics": f"""
        SELECT e.topic, f.action, f.recorded_at, f.id AS fact_id, f.batch_id, count(*)::int AS event_count
        FROM {{facts}} f JOIN received_events e ON {CHOSEN}
        GROUP BY e.topic, f.action, f.recorded_at, f.id, f.batch_id
    """,
    "stats": f"""
        SELECT e.topic, f.lane, count(*) FILTER (WHERE f.action = 'RECEIVED') AS received,
               count(*) FILTER (WHERE f.action = 'QUEUED') AS queued,
               count(*) FILTER (WHERE f.action = 'PROCESSED') AS processed,
               count(*) FILTER (WHERE f.action = 'DROPPED') AS dropped,
               count(*) FILTER (WHERE f.action = 'FAILED') - count(*) FILTER (WHERE f.attempt > 0) AS failed
        FROM {{facts}} f JOIN received_events e ON {CHOSEN}
        GROUP BY e.topic, f.lane
    """,
}
"""For each read model, the rows that the facts of the relation `{facts}` (aliased f) make, in the order of COLUMNS."""
