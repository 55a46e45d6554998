"""The query service: everything that is answered to GET."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from chronicle import broker, http, openapi
from chronicle.gate import ApiKeys
from chronicle.keys import Keyring
from chronicle.settings import Settings
from query import audit, events, feed, page, stats, trail, watch
from query.parameters import Readable
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

    events.add_routes(app, sessions)
    feed.add_routes(app, sessions)
    trail.add_routes(app, sessions)
    stats.add_routes(app, sessions)
    audit.add_routes(app, sessions)
    openapi.describe(app, keyring=keyring)
    return app
