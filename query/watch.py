"""/ready and /metrics: what probes, people and Prometheus ask, of this service and of the whole system."""

from __future__ import annotations

from typing import Annotated, Any

import psycopg
import redis.asyncio
from fastapi import FastAPI, Query
from fastapi.responses import PlainTextResponse, Response

from chronicle import database, openapi, schema
from chronicle import metrics as shared
from chronicle.errors import ChronicleError
from query import metrics, models, system
from query.sessions import Sessions

LOOK_SECONDS = 3
"""Whoever watches wants to know soon that nothing can be seen; Prometheus waits for 10 s by default."""

Verbose = Annotated[str | None, Query(description="say how the whole system gets on, whatever the value is")]


def add_routes(app: FastAPI, sessions: Sessions, client: redis.asyncio.Redis | None, *, allow_unsafe: bool) -> None:
    """Adds the two routes. `client`: the broker, where it is known; `allow_unsafe`: durability is not asked for."""

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def get_metrics() -> Response:
        """What Prometheus reads of this service, and of the whole system. Answered also while PostgreSQL is away."""
        try:
            seen = await sessions.ask(system.look, LOOK_SECONDS)
        except (ChronicleError, psycopg.Error):
            seen = None
        stream = metrics.of_broker(await system.queue(client)) if client else ()
        return shared.answer(shared.build("query"), shared.Families([*metrics.of_database(seen), *stream]))

    @app.get(
        "/ready",
        tags=["health"],
        response_model=models.Ready,
        response_model_exclude_unset=True,
        responses=openapi.UNAVAILABLE,
    )
    async def ready(verbose: Verbose = None) -> dict[str, Any]:
        """Ready to answer, or a 503 that says what is missing."""

        async def look(connection: psycopg.AsyncConnection[Any]) -> Any:
            version = await (await connection.execute(schema.VERSION)).fetchone()
            return version, await (await connection.execute(database.DURABILITY)).fetchone()

        version, off = await sessions.ask(look)
        schema.check(version)
        if off[0] and not allow_unsafe:
            await sessions.renew()  # what a database or a role is given reaches new sessions alone
            database.check_durability(off[0])
        if verbose is None:
            return {"status": "ready"}
        seen = await sessions.ask(system.look, LOOK_SECONDS)
        stream = await system.queue(client) if client else None
        return system.report(seen, version[0], off[0], asks_broker=client is not None, stream=stream)
