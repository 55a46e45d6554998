"""/stats and /audit/summary: sums over the counters, one snapshot, whatever the number of events.

They grow with the number of topics, which is up to publishers: with 200,000 of them an answer has 60 MB. So who asks
while one is made gets the next, together with all the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import psycopg
from fastapi import FastAPI
from fastapi.responses import Response

from chronicle import http, openapi
from chronicle.errors import DatabaseAway
from chronicle.ledger import COUNTERS
from query import models
from query.sessions import ANSWER_SECONDS, NOT_IN_TIME, Sessions


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Adds the two routes."""
    started = time.monotonic()

    async def get_books(connection: psycopg.AsyncConnection[Any]) -> bytes:
        return await totals(connection, int(time.monotonic() - started))

    books, summaries = Shared(lambda: sessions.ask(get_books)), Shared(lambda: sessions.ask(summary))

    @app.get("/stats", tags=["query"], response_model=models.Stats, responses=openapi.UNAVAILABLE)
    async def get_stats() -> Response:
        """The books: received = unique_processed + duplicated_dropped + failed + in_flight, in every answer."""
        return http.encoded(await books.get())

    @app.get("/audit/summary", tags=["query"], response_model=models.Summary, responses=openapi.UNAVAILABLE)
    async def get_summary() -> Response:
        """The five counters in all, by topic and by worker."""
        return http.encoded(await summaries.get())


class Shared:
    """An answer for all who ask at the same time. One is made at a time, and begun after all who get it have asked."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[bytes] | None = None

    async def get(self) -> bytes:
        """The next answer. Raises what making it raises, and DatabaseAway where it does not come in time."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
            self._next.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # perhaps all have left
        try:
            return await asyncio.wait_for(asyncio.shield(self._next), ANSWER_SECONDS)
        except TimeoutError:
            raise DatabaseAway(NOT_IN_TIME) from None

    async def _run(self) -> bytes:
        async with self._turn:
            self._next = None
            return await self._make()


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


async def totals(connection: psycopg.AsyncConnection[Any], uptime: int) -> bytes:
    """The books, as JSON. What is received and has no outcome yet is in flight; `chronicle verify` holds that to the
    outbox."""
    row = await (await connection.execute(STATS)).fetchone()
    received, processed, dropped, failed, topics = row or (0, 0, 0, 0, [])
    return msgspec.json.encode(
        {
            "received": received,
            "unique_processed": processed,
            "duplicated_dropped": dropped,
            "failed": failed,
            "in_flight": received - processed - dropped - failed,
            "topics": topics,
            "uptime": uptime,
        }
    )


async def summary(connection: psycopg.AsyncConnection[Any]) -> bytes:
    """The five counters in all, by topic, and by worker (whose RECEIVED and QUEUED are nobody's, so 0), as JSON."""
    rows = await (await connection.execute(SUMMARY)).fetchall()
    return await asyncio.to_thread(_summed, rows)  # others are answered meanwhile, however many topics there are


def _summed(rows: list[tuple[Any, ...]]) -> bytes:
    answer: dict[str, Any] = {f"total_{name}": 0 for name in COUNTERS} | {"by_topic": {}, "by_worker": {}}
    for all_topics, all_lanes, topic, lane, *counts in rows:
        counters = dict(zip(COUNTERS, counts, strict=True))
        if not all_topics:
            answer["by_topic"][topic] = counters
        elif all_lanes:
            answer |= {f"total_{name}": count for name, count in counters.items()}
        elif lane >= 0:
            answer["by_worker"][str(lane)] = counters | {"received": 0, "queued": 0}
    return msgspec.json.encode(answer)
