"""What both HTTP services share: answers, errors in one shape, request ids, serving."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chronicle import assets, logs, metrics
from chronicle.connections import RETRY_AFTER_SECONDS, Connection, Refuses, request_id_of
from chronicle.errors import ChronicleError, InvalidRequest, Problem

MOST_PROBLEMS = 10
FINISH_SECONDS = 2
"""What waits longer when the service stops is answered 503: `up` ends a process after 3 s."""

STOP_SECONDS = 8
HEAD = "chronicle.head"
"""In the scope of a GET request that was sent as HEAD: for routes whose answer has no end."""

REQUEST_ID = "chronicle.request_id"
"""In the scope of each request: the id that its answer and the log have."""

ACCEPTS = 128
"""New clients taken at once; more would make those wait that are here."""

NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
FULL_SECONDS = 0.5
"""How long new clients wait where the process can open no more files: the loop would ask again without an end."""

Endpoint = Callable[[Scope, Receive], Awaitable[bytes]]
"""Takes a request as ASGI has it, gives the JSON of its 200."""

log = logs.get(__name__)


def service(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Runs a part of the service; should it ever fail, the process stops, for its supervisor to start it again."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.critical("a part of the service failed", exc_info=error)
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    return task


def encoded(body: bytes) -> Response:
    """An answer that is JSON already."""
    return Response(body, media_type="application/json")


def problems(status: int, *found: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error answer: JSON whose `detail` lists what is wrong, in the shape of FastAPI's validation errors."""
    return JSONResponse({"detail": list(found[:MOST_PROBLEMS])}, status, headers)


def unavailable(error: Exception) -> JSONResponse:
    """The 503 that says what is missing, and when to try again."""
    # An error that came of another one tells of the inside: addresses, names of users.
    message = str(error) if error.__cause__ is None else (type(error).__doc__ or "")
    problem = Problem(type="unavailable", loc=[], msg=message)
    return problems(503, problem, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def _unavailable(_: Request, error: Exception) -> JSONResponse:
    return unavailable(error)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InvalidRequest)
    return problems(error.status, error.problem)


def _refused(_: Request, error: Exception) -> JSONResponse:
    """A 422 of FastAPI's own, without the input that it would echo."""
    assert isinstance(error, RequestValidationError)
    found = [(e["type"], list(e["loc"]), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
    return problems(422, *[Problem(type=kind, loc=loc, msg=message) for kind, loc, message in found])


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":  # each of them answers HEAD as well
        headers["Allow"] = "GET, HEAD"
    return problems(error.status_code, Problem(type="http_error", loc=[], msg=str(error.detail)), headers=headers)


def _gone(_: Request, __: Exception) -> JSONResponse:
    """Nobody reads this answer: the client left, or was refused, before its request was whole."""
    return problems(400, Problem(type="disconnected", loc=[], msg="the request is not whole"))


def _internal(request: Request, error: Exception) -> JSONResponse:
    log.error("internal error", path=request.url.path, exc_info=error)
    return problems(500, Problem(type="internal_error", loc=[], msg="Internal error"))


HANDLERS: dict[type[Exception], Callable[[Request, Exception], JSONResponse]] = {
    InvalidRequest: _invalid,
    ChronicleError: _unavailable,
    RequestValidationError: _refused,
    HTTPException: _http,
    ClientDisconnect: _gone,
    Exception: _internal,
}


def application(title: str, **options: Any) -> Application:
    """A FastAPI application whose errors all have our shape and whose answers all carry a request id."""
    app = Application(title=title, version="1", redirect_slashes=False, docs_url=None, redoc_url=None, **options)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(metrics.Requests, routes=app.router.routes)
    app.add_middleware(RequestIds)
    assets.document(app)
    return app


class Application(FastAPI):
    """FastAPI, with a way around its own middleware, which costs a request more than receiving an event does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._direct: dict[str, tuple[Route, ASGIApp]] = {}

    def post(self, path: str, endpoint: Endpoint) -> None:  # type: ignore[override]
        """Answers POST requests to a path through our middleware alone."""
        route = Route(path, endpoint, methods=["POST"])
        self.router.routes.append(route)
        app = _answering(endpoint)
        for middleware in reversed(self.user_middleware):
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        self._direct[path] = route, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the life of the application."""
        if scope.get("method") == "POST" and (direct := self._direct.get(scope["path"])):
            scope["route"], app = direct
            await app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _answering(endpoint: Endpoint) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await endpoint(scope, receive)
        except Exception as error:
            handler = next(HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS)
            await handler(Request(scope), error)(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


class RequestIds:
    """Gives each request an id (the client's own X-Request-ID where it is a plain one), for the answer and the logs.

    And answers HEAD like GET; the server leaves the body away.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        headers = [(b"x-request-id", request_id), (b"x-content-type-options", b"nosniff")]

        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", HEAD: True}
        # Never unbound: each request has a task, and so a context, of its own.
        scope[REQUEST_ID] = request_id.decode()
        structlog.contextvars.bind_contextvars(request_id=scope[REQUEST_ID])
        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # The server stops and waits no longer. It would answer 500 in a shape of its own.
            if not begun:
                stopping = unavailable(ChronicleError("the service stops: try again"))
                await stopping(scope, receive, send_with_id)


def front_door(command: FastAPI, query: FastAPI) -> ASGIApp:
    """One application out of both: /publish belongs to command, everything else to query."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan((command, query), receive, send)
        else:
            await (command if scope["path"] == "/publish" else query)(scope, receive, send)

    return app


async def _lifespan(apps: Sequence[FastAPI], receive: Receive, send: Send) -> None:
    await receive()
    first, second = apps
    async with first.router.lifespan_context(first), second.router.lifespan_context(second):
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


def serve(app: ASGIApp, listener: socket.socket, refuses: Refuses | None = None) -> None:
    """Answers on the socket until SIGTERM or SIGINT; then what is under way has FINISH_SECONDS to finish."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=FINISH_SECONDS,
    )
    Server(config, listener, refuses).run()


class Server(uvicorn.Server):
    """uvicorn, whose stop is bounded: what waits for a database that does not answer is left behind.

    And it takes many clients each time it looks. uvloop takes one: under load, when it looks seldom, the others would
    wait in the backlog, and the kernel would turn away those for whom there is no place.
    """

    def __init__(self, config: uvicorn.Config, listener: socket.socket, refuses: Refuses | None = None) -> None:
        super().__init__(config)
        self._listener = listener
        self._refuses = refuses
        self._arriving: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Begins to listen. Answers without end watch `stopping` of their request's state."""
        await super().startup(sockets=[])
        self._stopping = self.lifespan.state["stopping"] = asyncio.Event()
        # What is here now stays for ever: going through it again and again took a twentieth of all time.
        gc.freeze()
        gc.set_threshold(10_000)
        self._listener.setblocking(False)
        self._listen()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Takes no more clients, and ends."""
        self._stopping.set()
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        await super().shutdown(sockets=[])

    def _listen(self) -> None:
        if not self._stopping.is_set():
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            for _ in range(ACCEPTS):
                client, _ = self._listener.accept()
                arriving = loop.create_task(loop.connect_accepted_socket(self._connection, client))
                self._arriving.add(arriving)
                arriving.add_done_callback(self._arriving.discard)
        except OSError as error:  # nobody is left, or somebody has left already
            if error.errno in NO_FILES:
                log.warning("new clients wait", error=str(error), connections=len(self.server_state.connections))
                loop.remove_reader(self._listener)
                loop.call_later(FULL_SECONDS, self._listen)

    def _connection(self) -> Connection:
        connection = Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        connection.refuses = self._refuses
        return connection

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks for the stop."""
        last = threading.Timer(STOP_SECONDS, os._exit, (1,))
        last.daemon = True
        last.start()
        super().handle_exit(sig, frame)
