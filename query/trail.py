"""One event by its key: as it is stored, and its trail, which is every fact about every sighting of it."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Annotated, Any
from uuid import UUID

import msgspec
import psycopg
from fastapi import FastAPI, Query
from fastapi.responses import Response
from fastapi.routing import APIRoute
from msgspec import Raw, Struct
from starlette.routing import Match
from starlette.types import Scope

from chronicle import http, openapi, paths
from chronicle.errors import NotThere
from chronicle.ledger import DROPPED_OF_EVENT
from query import models
from query.events import PAGE_BYTES, Event
from query.parameters import WHOLE, NamedEvent, NamedTopic
from query.sessions import Sessions


class Step(Struct):
    """One fact about one sighting."""

    action: str
    recorded_at: datetime
    waited_ms: float | None
    worker_id: int | None
    attempt: int
    reason: str | None


class Sighting(Struct):
    """One time that the event was received."""

    batch_id: UUID
    position: int
    source: str
    timestamp: datetime
    payload: Raw | None
    request_id: str | None
    outcome: str | None
    facts: list[Step]


class Trail(Struct):
    """An answer of /events/{topic}/{event_id}/trail."""

    event_id: str
    topic: str
    count: int
    sightings: list[Sighting]


class Route(APIRoute):
    """A GET route with names of events in its path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Compares the path as it was sent."""
        names = paths.names(self.path, scope)
        if names is None:
            return Match.NONE, {}
        found = {"endpoint": self.endpoint, "path_params": names, "route": self}
        return (Match.FULL if scope["method"] == "GET" else Match.PARTIAL), found


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Adds the two routes."""

    async def get_event(topic: NamedTopic, event_id: NamedEvent) -> Response:
        """One stored event. A 404 says whether it was never received, is in flight, or failed."""
        return http.encoded(await sessions.ask(lambda connection: stored(connection, topic, event_id)))

    async def get_trail(
        topic: NamedTopic, event_id: NamedEvent, limit: Annotated[int, Query(ge=1, le=1000), WHOLE] = 100
    ) -> Response:
        """Every fact about every sighting of one event: the stored sighting first, then the others in order of time."""
        return http.encoded(await sessions.ask(lambda connection: trail(connection, topic, event_id, limit)))

    for path, endpoint, model in (
        ("/events/{topic}/{event_id}", get_event, models.Event),
        ("/events/{topic}/{event_id}/trail", get_trail, models.Trail),
    ):
        app.router.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            tags=["query"],
            response_model=model,
            responses=openapi.NOT_THERE | openapi.INVALID | openapi.UNAVAILABLE,
            route_class_override=Route,
        )


KEY = "event_id = %(event_id)s AND topic = %(topic)s"

IN_FLIGHT = f"""
SELECT outbox.batch_id, e.position::int
FROM outbox
JOIN facts ON facts.batch_id = outbox.batch_id AND facts.action = 'RECEIVED'
CROSS JOIN LATERAL unnest(coalesce(facts.event_ids, facts.event_uuids::text[]), facts.topics)
    WITH ORDINALITY AS e(event_id, topic, position)
WHERE e.{KEY.replace("AND ", "AND e.")}
"""

STORED = f"""
SELECT p.event_id, p.topic, p.source, p.payload::text, p."timestamp",
       CASE WHEN p.event_id IS NOT NULL THEN 'stored'
            WHEN EXISTS ({IN_FLIGHT}) THEN 'in_flight'
            WHEN EXISTS (SELECT FROM failed_events WHERE {KEY}) THEN 'failed'
            ELSE 'not_received' END
FROM (VALUES (1)) AS always
LEFT JOIN (SELECT * FROM processed_events WHERE {KEY}) AS p ON true
"""

NOT_STORED = {
    "in_flight": "this event was received and is in flight: it is not projected yet",
    "failed": "this event was received and could not be projected: its trail says why",
    "not_received": "no event of this topic and event_id was ever received",
}


async def stored(connection: psycopg.AsyncConnection[Any], topic: str, event_id: str) -> bytes:
    """The stored event as JSON. Raises NotThere, which says what became of it."""
    row = await (await connection.execute(STORED, {"topic": topic, "event_id": event_id})).fetchone()
    *event, state = row or ("not_received",)
    if state != "stored":
        raise _not_there(state)
    return msgspec.json.encode(Event(event[0], event[1], event[2], Raw(event[3].encode()), event[4]))


def _not_there(state: str) -> NotThere:
    return NotThere(state, ["path", "event_id"], NOT_STORED[state])


READ_BYTES = 512 * 2**20
"""A trail has no further payloads where so much was read for them: those of a batch are read together."""

# Batches have ids in order of time. The sighting that is stored comes first, even where it was not received first.
# Of an array, `[:]` has the size that it has when it is read. Payloads are measured one batch after the other, and no
# further than they are shown: to read and sort all of them took seconds.
TRAIL = f"""
WITH sighted AS (
    SELECT batch_id, position, 'PROCESSED' AS outcome, NULL AS reason FROM processed_events WHERE {KEY}
    UNION ALL SELECT batch_id, position, 'DROPPED', reason FROM dropped_events
              WHERE {DROPPED_OF_EVENT} AND topic = %(topic)s
    UNION ALL SELECT batch_id, position, 'FAILED', NULL FROM failed_events WHERE {KEY}
    UNION ALL SELECT f.*, NULL, NULL FROM ({IN_FLIGHT}) AS f
), shown AS MATERIALIZED (
    SELECT *, count(*) OVER () AS count,
           row_number() OVER (ORDER BY outcome IS NOT DISTINCT FROM 'PROCESSED' DESC, batch_id, position) AS number
    FROM sighted
    ORDER BY number
    LIMIT %(limit)s
), sightings AS MATERIALIZED (
    SELECT shown.*, r.sources[shown.position] AS source, r.timestamps[shown.position] AS "timestamp",
           (SELECT request.id
            FROM (SELECT q.id, sum(q.size) OVER (ORDER BY q.number) AS last
                  FROM unnest(r.request_ids, r.request_sizes) WITH ORDINALITY AS q(id, size, number)) AS request
            WHERE request.last >= shown.position ORDER BY request.last LIMIT 1) AS request_id
    FROM shown
    JOIN facts r ON r.batch_id = shown.batch_id AND r.action = 'RECEIVED'
), batches AS MATERIALIZED (
    SELECT wanted.number, r.batch_id, r.payloads
    FROM (
        SELECT batch_id, min(number) AS number FROM shown
        WHERE reason IS DISTINCT FROM 'duplicate' GROUP BY batch_id
    ) AS wanted
    JOIN facts r ON r.batch_id = wanted.batch_id AND r.action = 'RECEIVED'
), beyond AS MATERIALIZED (
    SELECT number
    FROM (
        SELECT number, sum(pg_column_size(payloads[:])) OVER so_far AS read_bytes,
               sum((SELECT sum(octet_length(e.payload::text))
                    FROM unnest(payloads) WITH ORDINALITY AS e(payload, position)
                    WHERE (batch_id, e.position) IN (SELECT batch_id, position FROM shown))) OVER so_far AS bytes
        FROM batches
        WINDOW so_far AS (ORDER BY number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ) AS measured
    WHERE bytes > %(bytes)s OR read_bytes > %(read_bytes)s
    ORDER BY number
    LIMIT 1
), paid AS (
    SELECT s.number, e.payload::text AS payload,
           sum(octet_length(e.payload::text)) OVER (ORDER BY s.number ROWS UNBOUNDED PRECEDING) AS bytes
    FROM batches b
    CROSS JOIN LATERAL unnest(b.payloads) WITH ORDINALITY AS e(payload, position)
    JOIN shown s ON s.batch_id = b.batch_id AND s.position = e.position AND s.reason IS DISTINCT FROM 'duplicate'
    WHERE b.number < coalesce((SELECT number FROM beyond), b.number + 1)
)
SELECT s.count, s.batch_id, s.position, s.source, s."timestamp",
       CASE WHEN p.bytes <= %(bytes)s THEN p.payload END, s.request_id, s.outcome,
       told.actions, told.moments, told.workers, told.attempts, told.reasons
FROM sightings s
LEFT JOIN paid p USING (number)
CROSS JOIN LATERAL (
    SELECT array_agg(f.action ORDER BY f.recorded_at, f.id) AS actions,
           array_agg(f.recorded_at ORDER BY f.recorded_at, f.id) AS moments,
           array_agg(f.worker_id ORDER BY f.recorded_at, f.id) AS workers,
           array_agg(f.attempt ORDER BY f.recorded_at, f.id) AS attempts,
           array_agg(CASE WHEN f.action = 'FAILED' THEN f.errors[array_position(f.positions, s.position)]
                          WHEN f.action = 'DROPPED' AND s.position = ANY (f.conflicts) THEN 'conflict'
                          WHEN f.action = 'DROPPED' THEN 'duplicate' END ORDER BY f.recorded_at, f.id) AS reasons
    FROM facts f
    WHERE f.batch_id = s.batch_id AND (f.positions IS NULL OR s.position = ANY (f.positions))
) AS told
ORDER BY s.number
"""


async def trail(connection: psycopg.AsyncConnection[Any], topic: str, event_id: str, limit: int) -> bytes:
    """The trail as JSON: at most `limit` sightings, of `count` in all, the stored one first, then in order of time.

    A duplicate has no payload: it equals the stored one. Payloads end where they are more than PAGE_BYTES together,
    or more than READ_BYTES are read for them.
    Raises NotThere for an event that was never received. No batch is looked through but those in flight.
    """
    parameters = {"topic": topic, "event_id": event_id, "limit": limit, "bytes": PAGE_BYTES, "read_bytes": READ_BYTES}
    rows = await (await connection.execute(TRAIL, parameters)).fetchall()
    if not rows:
        raise _not_there("not_received")
    return msgspec.json.encode(Trail(event_id, topic, rows[0][0], [_sighting(*row[1:]) for row in rows]))


def _sighting(*row: Any) -> Sighting:
    batch_id, position, source, timestamp, payload, request_id, outcome, actions, moments, *others = row
    waits = [None, *(round((later - former).total_seconds() * 1000, 3) for former, later in pairwise(moments))]
    steps = [Step(*step) for step in zip(actions, moments, waits, *others, strict=True)]
    return Sighting(
        batch_id, position, source, timestamp, payload and Raw(payload.encode()), request_id, outcome, steps
    )
