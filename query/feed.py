"""/events/stream: subscribers, who listen for as long as they like, and what all those of a process share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from chronicle import http, logs, openapi
from chronicle.errors import ChronicleError, Overloaded
from query import parameters, stream
from query.sessions import Sessions
from query.stream import Page, Topics

MOST_SUBSCRIBERS = 500
POLL_SECONDS = 0.1
"""How often a process with subscribers asks for news: once for all of them."""

HEARTBEAT_SECONDS = 10.0
TROUBLE_SECONDS = 1.0
RECONNECT_MILLISECONDS = 1000
"""What browsers are told to wait before they connect again."""

MOST_READS = 4
"""Pages that a process reads at a time, so that there are sessions left for other routes."""

NOW = "now"
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""A gateway must pass each message on at once: nginx, for one, would gather them."""

TROUBLE = (ChronicleError, psycopg.Error)
"""What passes: the next look may do better."""

log = logs.get(__name__)

Answer = TypeVar("Answer")


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Adds /events/stream."""
    feed = Feed(sessions)

    @app.get(
        "/events/stream",
        tags=["query"],
        response_class=StreamingResponse,
        responses=openapi.EVENT_STREAM | openapi.INVALID | openapi.UNAVAILABLE,
    )
    async def get_stream(
        request: Request,
        *,
        topic: parameters.Topics = (),
        after: parameters.After = NOW,
        last_event_id: parameters.LastEventId = None,
    ) -> Response:
        """Processed events as server-sent events, for as long as you listen; `Last-Event-ID` wins over `after`."""
        return await feed.answer(request, topic, (last_event_id or "").strip() or after)


class Feed:
    """What all subscribers of a process share: one poll for news, and the pages that several of them want at once."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._turn = asyncio.Semaphore(MOST_READS)
        self._asking: dict[Hashable, asyncio.Task[Any]] = {}
        self._end = 0
        self._news = asyncio.Event()
        self._stopping = self._waits = False
        self._subscribers = 0
        self._watchers: list[asyncio.Task[None]] = []

    async def answer(self, request: Request, topics: Topics, after: str) -> Response:
        """The answer to who wants these topics from a position, or from NOW, on.

        Raises DatabaseAway, and Overloaded where there are too many subscribers.
        """
        end = await self._look()
        if self._subscribers >= MOST_SUBSCRIBERS:
            raise Overloaded(f"at most {MOST_SUBSCRIBERS} subscribers: try again later")
        if request.scope.get(http.HEAD):
            return EventSourceResponse((), headers=STREAM_HEADERS)
        position = end if after == NOW else int(after)
        return Subscription(self, tuple(sorted(set(topics))), position)

    @contextmanager
    def subscribed(self, stopping: asyncio.Event) -> Iterator[None]:
        """Counts a subscriber; there is somebody to poll for meanwhile, until the server stops."""
        self._subscribers += 1
        if not self._watchers:
            self._watchers = [http.service(work) for work in (self._poll(), self._await_stop(stopping))]
        try:
            yield
        finally:
            self._subscribers -= 1
            if not self._subscribers:
                for watcher in self._watchers:
                    watcher.cancel()
                self._watchers = []

    async def messages(self, topics: Topics, after: int) -> AsyncIterator[bytes]:
        """What a subscriber gets, in pieces, without end until the server stops.

        It begins with its position and no event: who loses the connection before the first event also resumes there.
        """
        yield format_sse_event(id=str(after), retry=RECONNECT_MILLISECONDS)
        told = time.monotonic()
        while not self._stopping:
            news = self._news  # taken before looking, so that what comes meanwhile is not missed
            behind = after < self._end
            page = await self._page(topics, after) if behind else Page(after, [])
            for piece in page.pieces:
                yield piece
                told = time.monotonic()
            if page.position == after:
                patience = told + HEARTBEAT_SECONDS - time.monotonic()
                await _first(news, min(TROUBLE_SECONDS, patience) if behind else patience)
            after = page.position
            del page  # not kept while the next one is read
            if time.monotonic() - told >= HEARTBEAT_SECONDS:
                yield format_sse_event(comment="waiting", id=str(after))
                told = time.monotonic()

    async def _page(self, topics: Topics, after: int) -> Page:
        """The page that follows a position; without progress where PostgreSQL is away."""

        async def read() -> Page:
            async with self._turn:
                page: Page = await self._sessions.ask(lambda connection: stream.read(connection, topics, after))
                return page

        try:
            return await self._once((topics, after), read)
        except TROUBLE:
            return Page(after, [])

    async def _once(self, what: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Asks once for all who want to know the same meanwhile. Raises DatabaseAway."""
        if what not in self._asking:
            self._asking[what] = asyncio.create_task(self._say(ask))
            self._asking[what].add_done_callback(lambda task: self._forget(what, task))
        answer: Answer = await asyncio.shield(self._asking[what])
        return answer

    def _forget(self, what: Hashable, task: asyncio.Task[Any]) -> None:
        del self._asking[what]
        if not task.cancelled():
            task.exception()  # of which those who still wait hear by themselves

    async def _say(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Logs when PostgreSQL begins to be away, or to refuse."""
        try:
            answer = await ask()
        except TROUBLE as error:
            if not self._waits:
                log.warning("subscribers wait", error=str(error))
            self._waits = True
            raise
        self._waits = False
        return answer

    async def _poll(self) -> None:
        while True:
            with suppress(*TROUBLE):
                await self._look()
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> int:
        """The position at which the stream ends; wakes the subscribers where that is news. Raises DatabaseAway."""
        end: int = await self._once(NOW, lambda: self._sessions.ask(stream.end))
        if end != self._end:
            self._end = end
            self._tell()
        return end

    async def _await_stop(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._stopping = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Subscription(EventSourceResponse):
    """The answer to one subscriber."""

    def __init__(self, feed: Feed, topics: Topics, after: int) -> None:
        self._feed = feed
        self._messages = feed.messages(topics, after)
        super().__init__(self._messages, headers=STREAM_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Writes until the subscriber goes, or the server stops."""
        with self._feed.subscribed(scope["state"]["stopping"]):
            async with aclosing(self._messages):  # type: ignore[type-var]
                await super().__call__(scope, receive, send)


async def _first(event: asyncio.Event, seconds: float) -> None:
    """Waits for the event, and no longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
