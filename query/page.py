"""The page for people: what it is made of, and the two routes that tell it what it shows.

These two are the page's own, change with it, and are not in the OpenAPI document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import psycopg
import redis.asyncio
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from chronicle import assets, http, logs
from chronicle.errors import ChronicleError
from query import history, snapshot
from query.broadcast import Broadcast
from query.feed import STREAM_HEADERS
from query.parameters import WHOLE
from query.sessions import Sessions
from query.watch import LOOK_SECONDS

HERE = Path(__file__).parent / "assets"
GREETING = {"message": "ChronicleWeaver is running...", "docs": "/docs"}

ROOT: dict[int | str, dict[str, Any]] = {
    200: {"description": "That it runs; to browsers, a page that shows it", "content": {"text/html": {}}}
}

log = logs.get(__name__)


def add_routes(app: FastAPI, sessions: Sessions, client: redis.asyncio.Redis | None) -> None:
    """Adds `/`, /assets and /dashboard; `client` is Redis where known."""
    files = StaticFiles(directory=HERE)
    broadcast = Broadcast(lambda: _frame(sessions, client))

    @app.get("/", tags=["health"], responses=ROOT)
    async def root(request: Request) -> Response:
        """That it runs; a browser gets the page."""
        if prefers_html(request.headers.getlist("accept")):
            response = await assets.page(files, "dashboard.html", request)
        else:
            response = JSONResponse(GREETING)
        response.headers["Vary"] = "Accept"
        return response

    @app.get("/dashboard/stream", include_in_schema=False)
    async def get_stream(request: Request) -> Response:
        """What the page shows, once a second, as server-sent events."""
        if http.HEAD in request.scope:
            return Response(media_type="text/event-stream", headers=STREAM_HEADERS)
        frames = broadcast.stream(request.state.stopping)
        return StreamingResponse(frames, media_type="text/event-stream", headers=STREAM_HEADERS)

    @app.get("/dashboard/history", include_in_schema=False)
    async def get_history(minutes: Annotated[int, Query(ge=1, le=1440), WHOLE] = 15) -> Response:
        """What was received in each minute, and what became of it."""
        body = await sessions.ask(lambda connection: history.by_minute(connection, minutes))
        return http.encoded(body)

    assets.serve(app, "/assets", HERE)
    assets.serve(app, "/assets/vendor", HERE / "vendor")


async def _frame(sessions: Sessions, client: redis.asyncio.Redis | None) -> bytes:
    """A snapshot as JSON; where there is none to be had, what is missing."""
    queue = await snapshot.look(client)
    try:
        taken = await sessions.ask(lambda connection: snapshot.take(connection, queue), LOOK_SECONDS)
    except (ChronicleError, psycopg.Error) as error:
        log.warning("no snapshot", error=str(error))
        missing = type(error).__doc__ if isinstance(error, ChronicleError) else "PostgreSQL refused to answer."
        return msgspec.json.encode({"away": missing})
    return msgspec.json.encode(taken)


def prefers_html(accept: list[str]) -> bool:
    """Whether a client with these Accept headers asks for HTML, and not rather for JSON (RFC 9110, 12.5.1)."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for entry in ",".join(accept).split(","):
        kind, weight = _weighted(entry)
        if kind in weights:
            weights[kind] = weight
    return weights["text/html"] > weights["application/json"]


def _weighted(entry: str) -> tuple[str, float]:
    kind, *parameters = [part.strip().lower() for part in entry.split(";")]
    try:
        return kind, float(next((part[2:] for part in parameters if part.startswith("q=")), "1"))
    except ValueError:
        return kind, 0.0
