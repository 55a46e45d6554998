"""The counters by minute, for a day: command and projector processes write them, so that either may be down."""

from __future__ import annotations

SECONDS = 5.0
"""How often each of them does."""

NOT_KEPT = "the counters of this minute are not kept"

SAMPLE = """
SET LOCAL lock_timeout = '1s';
WITH counted AS (
    SELECT date_trunc('minute', clock_timestamp()) AS minute, coalesce(sum(received), 0) AS received,
           coalesce(sum(queued), 0) AS queued, coalesce(sum(processed), 0) AS processed,
           coalesce(sum(dropped), 0) AS dropped, coalesce(sum(failed), 0) AS failed,
           coalesce(sum(conflicts), 0) AS conflicts
    FROM stats
), forgotten AS (
    DELETE FROM history WHERE minute < clock_timestamp() - interval '25 hours'
), begun AS (
    INSERT INTO history (minute, received, queued, processed, dropped, failed, conflicts)
    SELECT minute - interval '1 minute', received, queued, processed, dropped, failed, conflicts FROM counted
    ON CONFLICT (minute) DO NOTHING
)
INSERT INTO history (minute, received, queued, processed, dropped, failed, conflicts)
SELECT minute, received, queued, processed, dropped, failed, conflicts FROM counted
ON CONFLICT (minute) DO UPDATE SET
    received = excluded.received, queued = excluded.queued, processed = excluded.processed,
    dropped = excluded.dropped, failed = excluded.failed, conflicts = excluded.conflicts
"""
"""Keeps the counters of all topics as those of this minute. Its cost does not grow with events or time.

Two statements in one transaction, which PostgreSQL makes of a message without parameters. Who runs them has more to do
than to wait for this table.

Where nobody looked in the minute before, they are also what it ended with: else nobody could say what the first minute
of a system, or after a pause, brings.
"""
