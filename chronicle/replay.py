"""What the ledger says each read model must be. `rebuild` makes the tables from this, `verify` compares them with it.

Decisions are replayed, never taken again: the positions in PROCESSED and DROPPED facts say who won.
"""

from __future__ import annotations

COLUMNS = {
    "processed_events": 'event_id, topic, source, payload, "timestamp", batch_id, position',
    "dropped_events": "event_id, topic, batch_id, position, reason",
    "failed_events": "event_id, topic, batch_id, position, error",
    "fact_topics": "topic, action, recorded_at, fact_id, batch_id, event_count",
    "stats": "topic, lane, received, queued, processed, dropped, failed, conflicts",
}

LEDGER_SAYS = {
    "processed_events": """
        SELECT e.event_id, e.topic, e.source, e.payload, e."timestamp", won.batch_id, e.position
        FROM (
            SELECT batch_id, array_agg(position) AS positions FROM {audit_log} a
            WHERE action = 'PROCESSED' GROUP BY batch_id
        ) AS won
        CROSS JOIN LATERAL (
            SELECT r.* FROM unnest(won.positions) AS these(position)
            JOIN received_events r ON r.batch_id = won.batch_id AND r.position = these.position
            OFFSET 0
        ) AS e
    """,
    "dropped_events": """
        SELECT a.event_id, a.topic, a.batch_id, a.position, a.reason FROM {audit_log} a WHERE a.action = 'DROPPED'
    """,
    "failed_events": """
        SELECT a.event_id, a.topic, a.batch_id, a.position, a.reason AS error
        FROM {audit_log} a
        WHERE a.action = 'FAILED' AND NOT EXISTS (
            SELECT FROM facts later
            WHERE later.batch_id = a.batch_id AND later.attempt > a.attempt AND a.position = ANY (later.positions)
        )
    """,
    "fact_topics": """
        SELECT a.topic, a.action, a.created_at AS recorded_at, a.fact_id, a.batch_id, count(*)::int AS event_count
        FROM {audit_log} a
        GROUP BY a.topic, a.action, a.created_at, a.fact_id, a.batch_id
    """,
    "stats": """
        WITH counted AS MATERIALIZED (
            SELECT a.topic, a.lane, CASE WHEN a.attempt > 0 THEN a.batch_id END AS retried, count(*) AS events,
                   count(*) FILTER (WHERE a.action = 'RECEIVED') AS received,
                   count(*) FILTER (WHERE a.action = 'QUEUED') AS queued,
                   count(*) FILTER (WHERE a.action = 'PROCESSED') AS processed,
                   count(*) FILTER (WHERE a.action = 'DROPPED') AS dropped,
                   count(*) FILTER (WHERE a.action = 'FAILED') AS failed,
                   count(*) FILTER (WHERE a.action = 'DROPPED' AND a.reason = 'conflict') AS conflicts
            FROM {audit_log} a
            GROUP BY a.topic, a.lane, retried
        )
        SELECT topic, lane, sum(received)::bigint AS received, sum(queued)::bigint AS queued,
               sum(processed)::bigint AS processed, sum(dropped)::bigint AS dropped, sum(failed)::bigint AS failed,
               sum(conflicts)::bigint AS conflicts
        FROM (
            SELECT topic, lane, received, queued, processed, dropped, failed, conflicts FROM counted
            UNION ALL
            SELECT c.topic, f.lane, 0, 0, 0, 0, -c.events, 0
            FROM counted c JOIN facts f ON f.batch_id = c.retried AND f.action = 'FAILED'
        ) AS each_lane
        GROUP BY topic, lane
    """,
}
"""For each read model, the rows that the records of the relation `{audit_log}` make, in the order of COLUMNS.

Events that were tried again are taken off the worker that had them FAILED, once.

OFFSET 0 keeps PostgreSQL to one batch at a time: whatever it guesses of the sizes, it neither unfolds the whole ledger
for a few batches nor compares each event with each.
"""
