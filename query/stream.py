"""/events/stream: processed events as server-sent events, in the order in which they got their places.

A position is one integer: the place of the fact in the stream, times RECORD_POSITIONS, plus the event's position in
its batch. It only grows, and stays exact in JavaScript up to 2^37 facts. Progress without an event is the last
position that a fact could have.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import psycopg
from fastapi.sse import EventSourceResponse, format_sse_event
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chronicle import http, logs
from chronicle.errors import ChronicleError, Overloaded
from chronicle.tables import RECORD_POSITIONS
from query.events import Event

MOST_SUBSCRIBERS = 500
POLL_SECONDS = 0.1
"""How often a process with subscribers asks for news: once for all of them."""

HEARTBEAT_SECONDS = 10.0
TROUBLE_SECONDS = 1.0
RECONNECT_MILLISECONDS = 1000
"""What browsers are told to wait before they connect again."""

MOST_READS = 4
"""Pages that a process reads at a time, so that there are sessions left for other routes."""

MOST_FACTS, MOST_EVENTS = 1000, 1000
PAGE_BYTES = 512 * 2**10
"""A page ends after so many facts that were looked at, or events, or bytes of payload."""

PIECE_BYTES = 64 * 2**10
"""What is written at once: a reader has ANSWER_SECONDS (chronicle/connections.py) for it, not for the whole answer."""

NOW = "now"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

log = logs.get(__name__)

Topics = tuple[str, ...]
Work = Callable[[psycopg.AsyncConnection[Any]], Awaitable[Any]]

# Facts first, by place and few enough; of a fact that has none of the topics nothing else is read.
PAGE = f"""
WITH ahead AS MATERIALIZED (
    SELECT s.sequence, f.batch_id, f.positions, {{events}} AS events
    FROM (
        SELECT sequence, batch_id, attempt FROM stream
        WHERE sequence >= %(sequence)s::bigint ORDER BY sequence LIMIT {MOST_FACTS}
    ) AS s
    CROSS JOIN LATERAL (
        SELECT id, batch_id, recorded_at, event_count, positions FROM facts
        WHERE facts.batch_id = s.batch_id AND facts.action = 'PROCESSED' AND facts.attempt = s.attempt
        OFFSET 0
    ) AS f
), taken AS MATERIALIZED (
    SELECT sequence, batch_id, positions, events FROM (
        SELECT ahead.*, sum(events) OVER (ORDER BY sequence ROWS UNBOUNDED PRECEDING) - events AS before FROM ahead
    ) AS counted
    WHERE before < {MOST_EVENTS}
), page AS (
    SELECT t.sequence, e.position, e.event_id, e.topic, e.source, e.payload::text AS payload, e."timestamp"
    FROM taken t
    JOIN facts r ON r.batch_id = t.batch_id AND r.action = 'RECEIVED'
    CROSS JOIN LATERAL (
        SELECT e.*
        FROM unnest(r.event_ids, r.topics, r.sources, r.payloads, r.timestamps)
            WITH ORDINALITY AS e(event_id, topic, source, payload, "timestamp", position)
        LEFT JOIN unnest(t.positions) AS chosen(position) ON chosen.position = e.position
        WHERE t.positions IS NULL OR chosen.position IS NOT NULL
    ) AS e
    WHERE t.events > 0 AND {{about}}
      AND (t.sequence > %(sequence)s OR e.position > %(position)s::int)
    ORDER BY t.sequence, e.position
    LIMIT {MOST_EVENTS} + 1
), sized AS (
    SELECT page.*, sum(octet_length(payload)) OVER (
        ORDER BY sequence, position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM page
)
SELECT scanned.last, sized.sequence, sized.position, sized.event_id, sized.topic, sized.source,
       CASE WHEN sized.bytes_before > {PAGE_BYTES} THEN NULL ELSE sized.payload END, sized."timestamp"
FROM (SELECT max(sequence) FROM taken) AS scanned(last)
LEFT JOIN sized ON true
ORDER BY sized.sequence, sized.position
"""

PAGE_OF_ALL = PAGE.format(events="f.event_count", about="true")

PAGE_BY_TOPIC = PAGE.format(
    events="""(
        SELECT coalesce(sum(t.event_count), 0) FROM fact_topics t
        WHERE t.topic = ANY (%(topics)s::text[]) AND t.action = 'PROCESSED' AND t.recorded_at = f.recorded_at
          AND t.fact_id = f.id
    )""",
    about="e.topic = ANY (%(topics)s::text[])",
)

LAST = "SELECT coalesce(max(sequence), 0) FROM stream"


class Page(NamedTuple):
    """Some of the stream, as it is written: pieces, and the position that they lead to."""

    position: int
    pieces: list[bytes]


async def read(connection: psycopg.AsyncConnection[Any], topics: Topics, after: int) -> Page:
    """What follows a position, of these topics (of all, where there are none). No progress: nothing follows yet."""
    sequence, position = divmod(after, RECORD_POSITIONS)
    where = {"sequence": sequence, "position": position, "topics": list(topics)}
    rows = await (await connection.execute(PAGE_BY_TOPIC if topics else PAGE_OF_ALL, where)).fetchall()
    last = rows[0][0]
    if last is None:
        return Page(after, [])
    found = [row for row in rows if row[1] is not None]
    shown = [row for row in found[:MOST_EVENTS] if row[6] is not None]
    messages = b"".join([_message(row) for row in shown])
    pieces = [messages[start : start + PIECE_BYTES] for start in range(0, len(messages), PIECE_BYTES)]
    whole = len(shown) == len(found)
    return Page(max(after, _end(last)) if whole else _at(*shown[-1][1:3]), pieces)


def _at(sequence: int, position: int) -> int:
    return sequence * RECORD_POSITIONS + position


def _end(sequence: int) -> int:
    return _at(sequence + 1, -1)


def _message(row: Sequence[Any]) -> bytes:
    """An event as a message; a line break, which in JSON can only stand between tokens, would end its line."""
    _, sequence, position, event_id, topic, source, payload, timestamp = row
    event = Event(event_id, topic, source, Raw(payload.encode()), timestamp)
    line = msgspec.json.encode(event).decode().replace("\r", " ").replace("\n", " ")
    return format_sse_event(data_str=line, id=str(_at(sequence, position)))


class Feed:
    """What all subscribers of a process share: one poll for news, and the pages that several of them want at once."""

    def __init__(self, snapshot: Callable[[Work], Awaitable[Any]]) -> None:
        """`snapshot` runs one statement on a session of the pool, in bounded time."""
        self._snapshot = snapshot
        self._turn = asyncio.Semaphore(MOST_READS)
        self._pages: dict[tuple[Topics, int], asyncio.Task[Page]] = {}
        self._end = 0
        self._news = asyncio.Event()
        self._stopping = self._waits = False
        self._subscribers = 0
        self._watchers: list[asyncio.Task[None]] = []

    async def answer(self, request: Request, topics: Topics, after: str) -> Response:
        """The answer to who wants these topics from a position, or from NOW, on.

        Raises DatabaseAway, and Overloaded where there are too many subscribers.
        """
        await self._look()
        if self._subscribers >= MOST_SUBSCRIBERS:
            raise Overloaded(f"at most {MOST_SUBSCRIBERS} subscribers: try again later")
        if request.scope.get(http.HEAD):
            return EventSourceResponse((), headers=HEADERS)
        position = self._end if after == NOW else int(after)
        return Subscription(self, tuple(sorted(set(topics))), position)

    @contextmanager
    def subscribed(self, stopping: asyncio.Event) -> Iterator[None]:
        """Counts a subscriber; there is somebody to poll for meanwhile, until the server stops."""
        self._subscribers += 1
        if not self._watchers:
            self._watchers = [asyncio.create_task(work) for work in (self._poll(), self._await_stop(stopping))]
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
        """Read once for all who ask for the same meanwhile; without progress where PostgreSQL is away."""
        key = topics, after
        if key not in self._pages:
            self._pages[key] = asyncio.create_task(self._read(topics, after))
            self._pages[key].add_done_callback(lambda _: self._pages.pop(key))
        return await asyncio.shield(self._pages[key])

    async def _read(self, topics: Topics, after: int) -> Page:
        async with self._turn:
            try:
                page: Page = await self._ask(lambda connection: read(connection, topics, after))
            except ChronicleError:
                return Page(after, [])
            return page

    async def _ask(self, work: Work) -> Any:
        """What the work gives. Logs when PostgreSQL begins to be away. Raises DatabaseAway."""
        try:
            answer = await self._snapshot(work)
        except ChronicleError as error:
            if not self._waits:
                log.warning("subscribers wait", error=str(error))
            self._waits = True
            raise
        self._waits = False
        return answer

    async def _poll(self) -> None:
        while True:
            with suppress(ChronicleError):
                await self._look()
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        """Finds out how far the stream goes, and wakes the subscribers where it goes on. Raises DatabaseAway."""

        async def last(connection: psycopg.AsyncConnection[Any]) -> Any:
            return await (await connection.execute(LAST)).fetchone()

        sequence = (await self._ask(last))[0]
        end = _end(sequence) if sequence else 0
        if end != self._end:
            self._end = end
            self._tell()

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
        super().__init__(self._messages, headers=HEADERS)

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
