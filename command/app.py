"""The command service: POST /publish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from starlette.middleware import Middleware
from starlette.types import Receive, Scope

from chronicle import events, http, metrics, openapi
from chronicle.gate import ApiKeys
from chronicle.keys import Keyring
from chronicle.settings import Settings
from command.bodies import Bodies
from command.dispatch import Dispatcher
from command.load import Counted, Load
from command.receive import Receiver
from command.watch import Watch

LARGE_BODY = 2**20
"""A larger body is decoded in a thread, so that other requests go on."""


def create_app(settings: Settings, database_url: str, redis_url: str, *, keyring: Keyring = ()) -> FastAPI:
    """The service over a database and a broker; nothing is opened before it runs."""
    dispatcher = Dispatcher(database_url, redis_url)
    receiver = Receiver(database_url, settings, dispatcher.add)
    watch = Watch(database_url, receiver.set_in_flight, allow_unsafe=settings.chronicle_allow_unsafe_database)
    load = Load()
    bodies = Bodies(settings.chronicle_max_body_bytes, settings.chronicle_max_waiting_bytes)
    most = min(settings.chronicle_max_events, settings.chronicle_max_in_flight)  # more would never be let in

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        receivers = receiver.run(), receiver.answer_late()
        dispatchers = dispatcher.send_all(), dispatcher.record_all()
        tasks = {http.service(part) for part in (*receivers, *dispatchers, watch.run(), load.run())}
        yield
        while tasks:
            for task in tasks:
                task.cancel()
            # Again and again: psycopg waits for the server to take a cancellation, until it is cancelled once more.
            tasks = (await asyncio.wait(tasks, timeout=1))[1]
        await dispatcher.close()

    async def publish(scope: Scope, receive: Receive) -> bytes:
        body = await bodies.read(scope["headers"], receive)
        try:
            accepted = await _decoded(body, most)
            if count := len(accepted):
                await watch.durable()
                await receiver.receive(accepted, len(body), scope[http.REQUEST_ID])
        finally:
            bodies.forget(body)
        return b'{"status":"success","message":"Published %d events","events_count":%d}' % (count, count)

    doors = [Middleware(Counted, load), Middleware(ApiKeys, keyring)]
    app = http.application("ChronicleWeaver command", lifespan=running, middleware=doors)
    app.post("/publish", publish)
    app.state.refuses = load.refuses

    @app.get("/health", tags=["health"])
    async def health() -> dict[str, str]:
        """Alive."""
        return {"status": "healthy"}

    @app.get("/ready", tags=["health"], responses=openapi.UNAVAILABLE)
    async def ready() -> dict[str, str]:
        """Ready to accept events, or a 503 that says what is missing."""
        watch.check()
        return {"status": "ready"}

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def get_metrics() -> Response:
        """What Prometheus reads of this service."""
        return metrics.answer(metrics.build("command"))

    openapi.describe(app, keyring=keyring)
    return app


async def _decoded(body: bytes, max_events: int) -> events.Events:
    if len(body) > LARGE_BODY:
        return await asyncio.to_thread(events.decode, body, max_events)
    return events.decode(body, max_events)
