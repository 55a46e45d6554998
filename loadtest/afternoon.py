"""What one would write in an afternoon instead: one service, one table a read model, no queue, and no batches.

It validates the same body and, in the request's own transaction, writes the audit trail event by event, stores first
sightings and counts. Done well for what it is: one set-based statement a request, sorted keys, a pool, the body parsed
by pydantic's core. Measured by `loadtest/rates.py`, on the PostgreSQL and with the client that ChronicleWeaver gets.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired

import asyncpg
from fastapi import FastAPI, HTTPException, Request
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import to_json
from typing_extensions import TypedDict

Name = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00]*$")]


class Payload(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    message: NotRequired[str]
    timestamp: NotRequired[datetime]


class Event(TypedDict):
    event_id: Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00]*$")]
    topic: Name
    source: Name
    payload: Payload
    timestamp: datetime


class Body(TypedDict):
    events: list[Event]


TABLES = """
CREATE TABLE processed_events (event_id text, topic text, source text, payload jsonb, timestamp timestamptz,
                               PRIMARY KEY (topic, event_id));
CREATE INDEX ON processed_events (topic, timestamp DESC);
CREATE TABLE audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id text, topic text, source text,
                    action text, created_at timestamptz DEFAULT clock_timestamp());
CREATE INDEX ON audit (event_id);
CREATE INDEX ON audit (topic, id);
CREATE INDEX ON audit (action, id);
CREATE INDEX ON audit (created_at);
CREATE TABLE counters (received bigint, processed bigint, dropped bigint);
INSERT INTO counters VALUES (0, 0, 0);
"""

# The counter row last, so that its lock is held no longer than the commit takes.
STORE = """
WITH given AS MATERIALIZED (
    SELECT *, row_number() OVER (PARTITION BY topic, event_id ORDER BY position) = 1 AS first
    FROM unnest($1::text[], $2::text[], $3::text[], $4::jsonb[], $5::timestamptz[])
        WITH ORDINALITY AS e(event_id, topic, source, payload, timestamp, position)
), stored AS (
    INSERT INTO processed_events (event_id, topic, source, payload, timestamp)
    SELECT event_id, topic, source, payload, timestamp FROM given WHERE first ORDER BY topic, event_id
    ON CONFLICT DO NOTHING
    RETURNING topic, event_id
), audited AS (
    INSERT INTO audit (event_id, topic, source, action)
    SELECT event_id, topic, source, action
    FROM given LEFT JOIN stored USING (topic, event_id)
    CROSS JOIN LATERAL (VALUES ('RECEIVED'), ('QUEUED'),
        (CASE WHEN first AND stored.* IS NOT NULL THEN 'PROCESSED' ELSE 'DROPPED' END)) AS a(action)
    RETURNING action
)
UPDATE counters SET received = counters.received + n.received, processed = counters.processed + n.processed,
                    dropped = counters.dropped + n.received - n.processed
FROM (SELECT count(*) FILTER (WHERE action = 'RECEIVED') AS received,
             count(*) FILTER (WHERE action = 'PROCESSED') AS processed FROM audited) AS n
"""

parse = TypeAdapter(Body).validate_json


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=16, max_size=16) as app.state.pool:
        await app.state.pool.execute(TABLES)
        yield


app = FastAPI(lifespan=running)


@app.post("/publish")
async def publish(request: Request) -> dict[str, Any]:
    try:
        events = parse(await request.body())["events"]
    except ValidationError as error:
        raise HTTPException(422, error.errors(include_url=False, include_input=False)) from None
    await app.state.pool.execute(
        STORE,
        [event["event_id"] for event in events],
        [event["topic"] for event in events],
        [event["source"] for event in events],
        [to_json(event["payload"]).decode() for event in events],
        [
            event["timestamp"] if event["timestamp"].tzinfo else event["timestamp"].replace(tzinfo=UTC)
            for event in events
        ],
    )
    return {"status": "success", "message": f"Published {len(events)} events", "events_count": len(events)}
