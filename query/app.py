"""The query service: everything that is answered to GET."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.middleware import Middleware

from chronicle import broker, http, openapi
from chronicle.gate import ApiKeys
from chronicle.keys import Keyring
from chronicle.settings import Settings
from query import audit, cursor, events, feed, models, page, stats, trail, watch
from query.parameters import WHOLE, After, Cursor, EventId, From, LastEventId, Name, Readable, To, Topics
from query.sessions import Sessions


def create_app(
    settings: Settings,
    database_url: str,
    redis_url: str | None = None,
    *,
    keyring: Keyring = (),
) -> FastAPI:
    """The service over a database; nothing is opened before it runs. The broker, where known, is only looked at."""
    client = broker.connect_async(redis_url) if redis_url else None
    sessions = Sessions(database_url)
    started = time.monotonic()

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        await sessions.open()
        yield
        await sessions.close()
        if client:
            await client.aclose()

    closed = [Middleware(ApiKeys, keyring)]
    app = http.application("ChronicleWeaver", lifespan=running, middleware=closed, dependencies=[Readable])

    page.add_routes(app, sessions, client)

    @app.get("/health", tags=["health"])
    async def health() -> dict[str, str]:
        """Alive."""
        return {"status": "healthy"}

    watch.add_routes(app, sessions, client, allow_unsafe=settings.chronicle_allow_unsafe_database)

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
        place = cursor.decode(after, events.Place)
        return _json(await sessions.ask(lambda connection: events.page(connection, filters, limit, place)))

    subscribers = feed.Feed(sessions)

    @app.get(
        "/events/stream",
        tags=["query"],
        response_class=StreamingResponse,
        responses=openapi.EVENT_STREAM | openapi.INVALID | openapi.UNAVAILABLE,
    )
    async def get_stream(
        request: Request,
        *,
        topic: Topics = (),
        after: After = feed.NOW,
        last_event_id: LastEventId = None,
    ) -> Response:
        """Processed events as server-sent events, for as long as you listen; `Last-Event-ID` wins over `after`."""
        return await subscribers.answer(request, topic, last_event_id or after)

    trail.add_routes(app, sessions)

    @app.get("/stats", tags=["query"], response_model=models.Stats, responses=openapi.UNAVAILABLE)
    async def get_stats() -> dict[str, Any]:
        """The books: received = unique_processed + duplicated_dropped + failed + in_flight, in every answer."""
        uptime = int(time.monotonic() - started)
        return await sessions.ask(lambda connection: stats.totals(connection, uptime))

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
        place = cursor.decode(after, audit.Place)
        return _json(await sessions.ask(lambda connection: audit.page(connection, filters, limit, place)))

    @app.get("/audit/summary", tags=["query"], response_model=models.Summary, responses=openapi.UNAVAILABLE)
    async def get_summary() -> dict[str, Any]:
        """The five counters in all, by topic and by worker."""
        return await sessions.ask(stats.summary)

    openapi.describe(app, keyring=keyring)
    return app


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
