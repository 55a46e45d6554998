"""The counters by minute, for a day: command and projector processes write them, so that either may be down."""

from __future__ import annotations

SECONDS = 5.0
"""How often each of them does."""

SAMPLE = """
WITH forgotten AS (
    DELETE FROM history WHERE minute < clock_timestamp() - interval '25 hours'
)
INSERT INTO history (minute, received, queued, processed, dropped, failed, conflicts)
SELECT date_trunc('minute', clock_timestamp()), coalesce(sum(received), 0), coalesce(sum(queued), 0),
       coalesce(sum(processed), 0), coalesce(sum(dropped), 0), coalesce(sum(failed), 0), coalesce(sum(conflicts), 0)
FROM stats
ON CONFLICT (minute) DO UPDATE SET
    received = excluded.received, queued = excluded.queued, processed = excluded.processed,
    dropped = excluded.dropped, failed = excluded.failed, conflicts = excluded.conflicts
"""
"""Keeps the counters of all topics as those of this minute. Its cost does not grow with events or time."""
