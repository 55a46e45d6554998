"""/events: processed events, newest timestamp first."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
import psycopg
from fastapi import FastAPI, Query
from fastapi.responses import Response
from msgspec import Raw, Struct

from chronicle import http, openapi
from query import cursor, models
from query.parameters import WHOLE, Cursor, EventId, From, Name, To
from query.sessions import Sessions


class Place(Struct, array_like=True):
    """A processed event's place in the order of /events."""

    timestamp: cursor.Moment
    batch_id: UUID
    position: cursor.Int


class Event(Struct):
    """A processed event."""

    event_id: str
    topic: str
    source: str
    payload: Raw
    timestamp: datetime


class Page(Struct):
    """An answer of /events."""

    count: int
    events: list[Event]
    next_cursor: str | None


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Adds /events."""

    @app.get(
        "/events", tags=["query"], response_model=models.EventPage, responses=openapi.INVALID | openapi.UNAVAILABLE
    )
    async def get_events(
        *,
        topic: Name = None,
        source: Name = None,
        event_id: EventId = None,
        since: From = None,
        to: To = None,
        limit: Annotated[int, Query(ge=1, le=10_000), WHOLE] = 1000,
        after: Cursor = None,
    ) -> Response:
        """Processed events, newest timestamp first. `count` is how many match in all."""
        filters = {"topic": topic, "source": source, "event_id": event_id, "from": since, "to": to}
        place = cursor.decode(after, Place)
        return http.encoded(await sessions.ask(lambda connection: page(connection, filters, limit, place)))


PAGE_BYTES = 32 * 2**20
"""A page whose payloads are more ends with the event that goes beyond: answers are made in memory."""

MATCHES = """
    (%(topic)s::text IS NULL OR topic = %(topic)s)
    AND (%(source)s::text IS NULL OR source = %(source)s)
    AND (%(event_id)s::text IS NULL OR event_id = %(event_id)s)
    AND (%(from)s::timestamptz IS NULL OR "timestamp" >= %(from)s)
    AND (%(to)s::timestamptz IS NULL OR "timestamp" <= %(to)s)
"""

COUNT_BY_TOPIC = """
SELECT coalesce(sum(processed), 0)::bigint FROM stats WHERE (%(topic)s::text IS NULL OR topic = %(topic)s)
"""

COUNT = f"SELECT count(*) FROM processed_events WHERE {MATCHES}"

# One statement is one snapshot: the count and the page agree. Of a large payload `page` holds only where it is. It is
# read to be measured, row by row until the sum is beyond the bound (`LIMIT 1`), and again to be shown. What it has when
# compressed, the one length that PostgreSQL tells without reading it, may be a ninetieth of it, or all.
PAGE = f"""
WITH page AS MATERIALIZED (
    SELECT event_id, topic, source, payload, "timestamp", batch_id, position
    FROM processed_events
    WHERE {MATCHES}
      AND (%(batch_id)s::uuid IS NULL
           OR ("timestamp", batch_id, position) < (%(timestamp)s::timestamptz, %(batch_id)s, %(position)s::int))
    ORDER BY "timestamp" DESC, batch_id DESC, position DESC
    LIMIT %(limit)s + 1
), beyond AS MATERIALIZED (
    SELECT "timestamp", batch_id, position
    FROM (
        SELECT page.*, sum(octet_length(payload::text)) OVER (
            ORDER BY "timestamp" DESC, batch_id DESC, position DESC ROWS UNBOUNDED PRECEDING
        ) AS bytes
        FROM page
    ) AS measured
    WHERE bytes > %(bytes)s
    ORDER BY "timestamp" DESC, batch_id DESC, position DESC
    LIMIT 1
)
SELECT total.count, page.event_id, page.topic, page.source,
       CASE WHEN (page."timestamp", page.batch_id, page.position) < (SELECT * FROM beyond) THEN NULL
            ELSE page.payload::text END,
       page."timestamp", page.batch_id, page.position
FROM ({{count}}) AS total(count)
LEFT JOIN page ON true
ORDER BY page."timestamp" DESC, page.batch_id DESC, page.position DESC
"""
PAGE_BY_TOPIC = PAGE.format(count=COUNT_BY_TOPIC)
PAGE_COUNTED = PAGE.format(count=COUNT)


async def page(
    connection: psycopg.AsyncConnection[Any], filters: dict[str, Any], limit: int, after: Place | None
) -> bytes:
    """A page of events as JSON, `after` a place, with how many match in all and the cursor of the next page.

    `filters`: topic, source, event_id, from and to, each None where it does not count. The number of a topic's events
    is read from its counters; any other filter is counted. A page of more than PAGE_BYTES ends before `limit`.
    """
    place = after or Place(datetime.min, None, 0)  # type: ignore[arg-type]
    here = {"timestamp": place.timestamp, "batch_id": place.batch_id, "position": place.position}
    here |= {"limit": limit, "bytes": PAGE_BYTES}
    only_topic = all(value is None for name, value in filters.items() if name != "topic")
    answer = await connection.execute(PAGE_BY_TOPIC if only_topic else PAGE_COUNTED, filters | here)
    found = await answer.fetchall()
    rows = [row[1:] for row in found if row[1] is not None]
    shown = [row for row in rows[:limit] if row[3] is not None]
    last = shown[-1] if len(shown) < len(rows) else None
    return msgspec.json.encode(
        Page(
            found[0][0],
            [Event(row[0], row[1], row[2], Raw(row[3].encode()), row[4]) for row in shown],
            cursor.encode(Place(*last[4:])) if last else None,
        )
    )
