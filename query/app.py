"""The query service: everything that is answered to GET."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

import psycopg
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response, StreamingResponse
from psycopg_pool import AsyncConnectionPool
from starlette.middleware import Middleware

from chronicle import broker, database, http, openapi
from chronicle.errors import DatabaseAway
from chronicle.gate import ApiKeys
from chronicle.keys import Keyring
from chronicle.settings import Settings
from query import audit, cursor, events, feed, metrics, models, page, stats, trail, watch
from query.parameters import WHOLE, After, Cursor, EventId, From, LastEventId, Name, Readable, To, Topics

POOL_SIZE = 10
ANSWER_SECONDS = 10

Answer = TypeVar("Answer")


def create_app(
    settings: Settings,
    database_url: str,
    redis_url: str | None = None,
    *,
    keyring: Keyring = (),
) -> FastAPI:
    """The service over a database; nothing is opened before it runs. The broker, where known, is only looked at."""
    client = broker.connect_async(redis_url) if redis_url else None
    pool = database.read_pool(database_url, "query", POOL_SIZE)
    started = time.monotonic()

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        await pool.open()
        metrics.SESSIONS.set(0)
        metrics.MOST_SESSIONS.set(POOL_SIZE)
        yield
        await pool.close(timeout=2)
        if client:
            await client.aclose()

    async def snapshot(
        work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[Answer]], seconds: float = ANSWER_SECONDS
    ) -> Answer:
        """Runs the work on a session of the pool, in bounded time. Each statement of it is a snapshot of its own."""
        task = asyncio.create_task(_on_a_live_session(pool, work))
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            # Not awaited: psycopg would wait for a stopped server to take the cancellation.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            task.cancel()
            raise DatabaseAway("PostgreSQL did not answer in time")
        return task.result()

    closed = [Middleware(ApiKeys, keyring)]
    app = http.application("ChronicleWeaver", lifespan=running, middleware=closed, dependencies=[Readable])

    page.add_routes(app, snapshot, client)

    @app.get("/health", tags=["health"])
    async def health() -> dict[str, str]:
        """Alive."""
        return {"status": "healthy"}

    watch.add_routes(app, snapshot, client, allow_unsafe=settings.chronicle_allow_unsafe_database)

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
        return _json(await snapshot(lambda connection: events.page(connection, filters, limit, place)))

    subscribers = feed.Feed(snapshot)

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

    trail.add_routes(app, snapshot)

    @app.get("/stats", tags=["query"], response_model=models.Stats, responses=openapi.UNAVAILABLE)
    async def get_stats() -> dict[str, Any]:
        """The books: received = unique_processed + duplicated_dropped + failed + in_flight, in every answer."""
        uptime = int(time.monotonic() - started)
        return await snapshot(lambda connection: stats.totals(connection, uptime))

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
        return _json(await snapshot(lambda connection: audit.page(connection, filters, limit, place)))

    @app.get("/audit/summary", tags=["query"], response_model=models.Summary, responses=openapi.UNAVAILABLE)
    async def get_summary() -> dict[str, Any]:
        """The five counters in all, by topic and by worker."""
        return await snapshot(stats.summary)

    openapi.describe(app, keyring=keyring)
    return app


async def _on_a_live_session(
    pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]],
    work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[Answer]],
) -> Answer:
    """After a restart of PostgreSQL the sessions are dead, and only using one shows it: then it takes another."""
    with database.ours():
        for _ in range(POOL_SIZE + 1):
            async with pool.connection() as connection:
                try:
                    with metrics.SESSIONS.track_inprogress():
                        return await work(connection)
                except psycopg.errors.SerializationFailure:
                    continue  # a replica broke it off, to go on with what it receives
                except psycopg.OperationalError:
                    if not connection.broken:
                        raise
    raise DatabaseAway


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
