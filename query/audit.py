"""/audit: the ledger's facts, unfolded into one record per event and action, newest first."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import psycopg
from fastapi import FastAPI, Query
from fastapi.responses import Response
from msgspec import Struct

from chronicle import http, openapi
from chronicle.ledger import ACTIONS, DROPPED_OF_EVENT
from query import cursor, models
from query.parameters import WHOLE, Cursor, EventId, From, Name, To
from query.sessions import Sessions


class Place(Struct, array_like=True):
    """A record's place in the order of /audit."""

    created_at: cursor.Moment
    fact_id: cursor.BigInt
    position: cursor.Int


class Record(Struct):
    """One thing that happened to one event."""

    id: int
    event_id: str
    topic: str
    source: str
    action: str
    worker_id: int | None
    reason: str | None
    created_at: datetime


class Page(Struct):
    """An answer of /audit."""

    count: int
    audit_logs: list[Record]
    next_cursor: str | None


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Adds /audit."""

    @app.get("/audit", tags=["query"], response_model=models.AuditPage, responses=openapi.INVALID | openapi.UNAVAILABLE)
    async def get_audit(
        *,
        action: Literal["RECEIVED", "QUEUED", "PROCESSED", "DROPPED", "FAILED"] | None = None,
        topic: Name = None,
        event_id: EventId = None,
        since: From = None,
        to: To = None,
        limit: Annotated[int, Query(ge=1, le=1000), WHOLE] = 100,
        after: Cursor = None,
    ) -> Response:
        """What happened to each event, newest first. `count` is the number of records returned."""
        filters = {"action": action, "topic": topic, "event_id": event_id, "from": since, "to": to}
        place = cursor.decode(after, Place)
        return http.encoded(await sessions.ask(lambda connection: page(connection, filters, limit, place)))


RECORDS = """
SELECT a.id, a.event_id, a.topic, a.source, a.action, a.worker_id, a.reason, a.created_at, a.fact_id, a.position
"""

IN_ORDER = """
  AND (%(fact_id)s::bigint IS NULL
       OR (a.created_at, a.fact_id, a.position) < (%(created_at)s::timestamptz, %(fact_id)s, %(position)s::int))
ORDER BY a.created_at DESC, a.fact_id DESC, a.position DESC
LIMIT %(limit)s + 1
"""

# Only as many facts, newest first, as a page of records needs; then only these are unfolded. Each action is an
# index scan of its own, merged. A cursor may stand inside a fact, so its fact comes again, and counts for nothing.
NEWEST = """
WITH newest AS MATERIALIZED (
    SELECT f.batch_id, f.action, f.recorded_at, f.fact_id, f.event_count
    FROM unnest(%(actions)s::text[]) AS wanted(action)
    CROSS JOIN LATERAL (
        SELECT batch_id, action, recorded_at, {fact_id} AS fact_id, event_count
        FROM {source}
        WHERE action = wanted.action AND {about}
          AND (%(from)s::timestamptz IS NULL OR recorded_at >= %(from)s)
          AND (%(to)s::timestamptz IS NULL OR recorded_at <= %(to)s)
          AND (%(fact_id)s::bigint IS NULL
               OR (recorded_at, {fact_id}) <= (%(created_at)s::timestamptz, %(fact_id)s))
        ORDER BY recorded_at DESC, {fact_id} DESC
        LIMIT %(limit)s + 2
    ) AS f
    ORDER BY f.recorded_at DESC, f.fact_id DESC
    LIMIT %(limit)s + 2
), enough AS MATERIALIZED (
    SELECT batch_id, action, fact_id,
           sum(CASE WHEN fact_id = %(fact_id)s::bigint THEN 0 ELSE event_count END)
               OVER (ORDER BY recorded_at DESC, fact_id DESC ROWS UNBOUNDED PRECEDING) - event_count AS before
    FROM newest
)
"""

UNFOLD_NEWEST = f"""{RECORDS}
FROM enough
CROSS JOIN LATERAL (
    SELECT * FROM audit_log
    WHERE audit_log.batch_id = enough.batch_id AND audit_log.action = enough.action
      AND audit_log.fact_id = enough.fact_id AND {{about}}
    OFFSET 0
) AS a
WHERE enough.before <= %(limit)s
{IN_ORDER}
"""

BY_TIME = NEWEST.format(source="facts", fact_id="id", about="true") + UNFOLD_NEWEST.format(about="true")

BY_TOPIC = NEWEST.format(source="fact_topics", fact_id="fact_id", about="topic = %(topic)s") + UNFOLD_NEWEST.format(
    about="audit_log.topic = %(topic)s"
)

BY_EVENT = f"""
WITH sighted AS MATERIALIZED (
    SELECT batch_id FROM processed_events WHERE event_id = %(event_id)s
    UNION SELECT batch_id FROM dropped_events WHERE {DROPPED_OF_EVENT}
    UNION SELECT batch_id FROM failed_events WHERE event_id = %(event_id)s
    UNION SELECT batch_id FROM outbox
)
{RECORDS}
FROM sighted
CROSS JOIN LATERAL (
    SELECT * FROM audit_log
    WHERE audit_log.batch_id = sighted.batch_id AND audit_log.event_id = %(event_id)s
      AND audit_log.action = ANY (%(actions)s::text[])
    OFFSET 0
) AS a
WHERE (%(topic)s::text IS NULL OR a.topic = %(topic)s)
  AND (%(from)s::timestamptz IS NULL OR a.created_at >= %(from)s)
  AND (%(to)s::timestamptz IS NULL OR a.created_at <= %(to)s)
{IN_ORDER}
"""


async def page(
    connection: psycopg.AsyncConnection[Any], filters: dict[str, Any], limit: int, after: Place | None
) -> bytes:
    """A page of audit records as JSON, `after` a place, with the cursor of the next page.

    `filters`: action, topic, event_id, from and to, each None where it does not count. No filter makes it look
    through all batches: an event is found by its sightings, a topic by `fact_topics`, the rest by the facts' indexes.
    """
    statement = BY_TIME if filters["topic"] is None else BY_TOPIC
    if filters["event_id"] is not None:
        statement = BY_EVENT
    place = after or Place(datetime.min, None, 0)  # type: ignore[arg-type]
    parameters = filters | {
        "actions": [filters["action"]] if filters["action"] else list(ACTIONS),
        "created_at": place.created_at,
        "fact_id": place.fact_id,
        "position": place.position,
        "limit": limit,
    }
    rows = await (await connection.execute(statement, parameters)).fetchall()
    last = rows[limit - 1] if len(rows) > limit else None
    records = [Record(*row[:8]) for row in rows[:limit]]
    return msgspec.json.encode(Page(len(records), records, cursor.encode(Place(*last[7:])) if last else None))
