"""/stats and /audit/summary: sums over the counters, one snapshot, whatever the number of events."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from fastapi import FastAPI

from chronicle import openapi
from chronicle.ledger import COUNTERS
from query import models
from query.sessions import Sessions


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Adds the two routes."""
    started = time.monotonic()

    @app.get("/stats", tags=["query"], response_model=models.Stats, responses=openapi.UNAVAILABLE)
    async def get_stats() -> dict[str, Any]:
        """The books: received = unique_processed + duplicated_dropped + failed + in_flight, in every answer."""
        uptime = int(time.monotonic() - started)
        return await sessions.ask(lambda connection: totals(connection, uptime))

    @app.get("/audit/summary", tags=["query"], response_model=models.Summary, responses=openapi.UNAVAILABLE)
    async def get_summary() -> dict[str, Any]:
        """The five counters in all, by topic and by worker."""
        return await sessions.ask(summary)


STATS = """
SELECT coalesce(sum(received), 0)::bigint, coalesce(sum(processed), 0)::bigint, coalesce(sum(dropped), 0)::bigint,
       coalesce(sum(failed), 0)::bigint, coalesce(array_agg(DISTINCT topic), '{}')
FROM stats
"""

SUMMARY = """
SELECT grouping(topic), grouping(lane), topic, lane, coalesce(sum(received), 0)::bigint,
       coalesce(sum(queued), 0)::bigint, coalesce(sum(processed), 0)::bigint, coalesce(sum(dropped), 0)::bigint,
       coalesce(sum(failed), 0)::bigint
FROM stats
GROUP BY GROUPING SETS ((), (topic), (lane))
ORDER BY topic, lane
"""


async def totals(connection: psycopg.AsyncConnection[Any], uptime: int) -> dict[str, Any]:
    """The books. What is received and has no outcome yet is in flight; `chronicle verify` holds that to the outbox."""
    row = await (await connection.execute(STATS)).fetchone()
    received, processed, dropped, failed, topics = row or (0, 0, 0, 0, [])
    return {
        "received": received,
        "unique_processed": processed,
        "duplicated_dropped": dropped,
        "failed": failed,
        "in_flight": received - processed - dropped - failed,
        "topics": topics,
        "uptime": uptime,
    }


async def summary(connection: psycopg.AsyncConnection[Any]) -> dict[str, Any]:
    """The five counters in all, by topic, and by worker (whose RECEIVED and QUEUED are nobody's, so 0)."""
    answer: dict[str, Any] = {f"total_{name}": 0 for name in COUNTERS} | {"by_topic": {}, "by_worker": {}}
    for all_topics, all_lanes, topic, lane, *counts in await (await connection.execute(SUMMARY)).fetchall():
        counters = dict(zip(COUNTERS, counts, strict=True))
        if not all_topics:
            answer["by_topic"][topic] = counters
        elif all_lanes:
            answer |= {f"total_{name}": count for name, count in counters.items()}
        elif lane >= 0:
            answer["by_worker"][str(lane)] = counters | {"received": 0, "queued": 0}
    return answer
