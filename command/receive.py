"""(1) receive: events become a RECEIVED fact, an outbox row and counters, in one synchronous commit.

Group commit: requests that arrive while a commit is under way wait and are committed together as one batch. An idle
service commits a request at once. One connection commits: with two, batches are half as large, and a batch costs by far
more than an event in it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, takewhile
from uuid import UUID

import psycopg

from chronicle import database, logs
from chronicle.errors import ChronicleError, DatabaseAway, InvalidRequest, Overloaded, SchemaBehind
from chronicle.events import Events
from chronicle.ledger import new_batch_id
from chronicle.settings import Settings
from command import metrics
from command.writer import Writer

BATCH_EVENTS = 2000
"""Requests are committed together up to so many events. To read what happened to one of them, or to project some of
them again, takes longer the more there are, and what a commit costs is little beside so many."""

FEW_EVENTS, TURNS, BLIND_TURNS = 32, 12, 8
"""A commit of fewer events waits some turns of the event loop, TURNS at most: of many clients that send again once they
are answered, the next requests are then in it. In the first BLIND_TURNS the answers to the last commit go out, and what
they bring is read; from then on it waits only while more come in each."""

ANSWER_SECONDS = 10
"""A request that is not committed by then is answered 503; whether it was is then unknown to the client."""

LOOK_SECONDS = 0.1
"""How often it looks for such requests: a timer for each would cost a small one a thirtieth of what all of it does."""

PATIENCE_SECONDS = 5
"""How long a batch is tried again, and requests wait for a lost PostgreSQL, before they are answered 503."""

NOT_IN_TIME = "PostgreSQL did not answer in time"
UNKNOWN = "PostgreSQL was lost during a commit, and refuses to repeat it"
NOT_STORABLE = "a value that PostgreSQL cannot store"

OVERLOAD_SECONDS = 2
"""Once a request would wait so long for its batch to begin, or the oldest has, others are refused at once."""

SMOOTHED = 8
"""What a commit takes is an average over about so many."""

log = logs.get(__name__)


@dataclass(slots=True, eq=False)
class Waiting:
    """One request: its events and how many, their bytes, its id, when it came, the future that its commit resolves."""

    events: Events
    count: int
    size: int
    request_id: str
    since: float
    done: asyncio.Future[None]


class Receiver:
    """Takes requests, commits them in batches, and hands the id and the size of each committed one on."""

    def __init__(self, url: str, settings: Settings, committed: Callable[[UUID, int], None]) -> None:
        self._url = url
        self._settings = settings
        self._committed = committed
        self._queue: deque[Waiting] = deque()
        self._committing: list[Waiting] = []
        self._queued = 0
        self._unanswered = 0
        self._commit_seconds = 0.0
        self._arrived = asyncio.Event()
        self._away_since: float | None = None
        self._in_flight = 0

    async def receive(self, events: Events, size: int, request_id: str) -> None:
        """Returns once the events are durable. `size`: the bytes of the request's body.

        Raises Overloaded, DatabaseAway (the outcome may then be unknown), or InvalidRequest for a value that PostgreSQL
        refused.
        """
        count = len(events)
        self._admit(count)
        done = asyncio.get_running_loop().create_future()
        waiting = Waiting(events, count, size, request_id, time.monotonic(), done)
        self._queue.append(waiting)
        self._queued += count
        self._unanswered += count
        self._arrived.set()
        try:
            await done
        finally:
            self._unanswered -= count

    def set_in_flight(self, events: int) -> None:
        """How many events all of the system has in flight, as last seen."""
        self._in_flight = events

    def _admit(self, count: int) -> None:
        if self._in_flight + self._unanswered + count > self._settings.chronicle_max_in_flight:
            raise Overloaded("too many events are in flight: try again later")
        if self._queue and self._wait() > OVERLOAD_SECONDS:
            raise Overloaded("requests wait too long for a commit: try again later")
        if self._away_since and time.monotonic() - self._away_since > PATIENCE_SECONDS:
            raise DatabaseAway

    def _wait(self) -> float:
        """How many seconds one more request would wait. By the age of the oldest alone too many would be let in: by the
        time it is old, what came after it is there as well."""
        return max(time.monotonic() - self._queue[0].since, self._queued / BATCH_EVENTS * self._commit_seconds)

    async def run(self) -> None:
        """Commits until cancelled."""
        writer: Writer | None = None
        while True:
            try:
                writer = writer or await Writer.open(self._url, ANSWER_SECONDS)
                self._away_since = None
                if requests := await self._next():
                    writer = await self._commit(writer, requests)
                    self._committing = []
            except (ChronicleError, psycopg.Error) as error:
                writer = None
                refused = database.as_ours(error)
                _resolve(self._committing, refused)
                self._lost(refused)
                await asyncio.sleep(0.2)

    async def answer_late(self) -> None:
        """Answers what waits for too long, whatever a commit is doing, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            late = takewhile(_waits_too_long, chain(self._committing, self._queue))
            _resolve(late, DatabaseAway(NOT_IN_TIME))

    def _lost(self, error: ChronicleError) -> None:
        """PostgreSQL cannot be reached: waiting requests are kept for a while, then refused."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            log.warning("database away", error=str(error))
        if now - self._away_since > PATIENCE_SECONDS:
            while self._queue:
                _resolve([self._pop()], error)

    def _pop(self) -> Waiting:
        first = self._queue.popleft()
        self._queued -= first.count
        return first

    async def _next(self) -> list[Waiting]:
        """Every request that waits, up to the bounds of a batch; the first one alone may exceed them."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        await self._let_come()
        requests: list[Waiting] = []
        events = size = 0
        while self._queue:
            first = self._queue[0]
            events, size = events + first.count, size + first.size
            if requests and (events > BATCH_EVENTS or size > self._settings.chronicle_max_body_bytes):
                break
            self._pop()
            if not first.done.done():
                requests.append(first)
        self._committing = requests
        return requests

    async def _let_come(self) -> None:
        before = 0
        for turn in range(TURNS):
            if self._queued >= FEW_EVENTS or (turn >= BLIND_TURNS and len(self._queue) == before):
                break
            before = len(self._queue)
            await asyncio.sleep(0)

    async def _commit(self, writer: Writer, requests: list[Waiting]) -> Writer | None:
        """Commits the requests as one batch and answers them; gives back the writer while it is usable."""
        batch_id = new_batch_id()
        events = Events.joined(request.events for request in requests)
        parts = [(request.request_id, request.count) for request in requests]
        began = time.monotonic()
        deadline = began + PATIENCE_SECONDS
        current: Writer | None = writer
        again = False
        while True:
            try:
                current = current or await Writer.open(self._url, ANSWER_SECONDS)
                await current.record_received(batch_id, events, parts, again=again)
            except psycopg.Error as error:
                if not again:
                    return await self._commit_apart(current, requests, error)
                if current:
                    await current.close()
                # An earlier try may have succeeded: not once more under other ids, and no refusal.
                raise DatabaseAway(f"{UNKNOWN}: {database.first_line(error)}") from error
            except ChronicleError as error:
                if current:
                    await current.give_up()
                if time.monotonic() > deadline or isinstance(error, SchemaBehind):
                    raise
                metrics.RECEIVE_RETRIES.inc()
                if not again:
                    ids = [request.request_id for request in requests[: logs.MOST_NAMED]]
                    log.warning("commit is tried again", batch_id=str(batch_id), request_ids=ids, error=str(error))
                current, again = None, True
                await asyncio.sleep(0.1)
            else:
                self._in_flight += len(events)  # until the next look at the database
                self._committed(batch_id, len(events))
                _resolve(requests, None)
                took = time.monotonic() - began
                self._commit_seconds += (took - self._commit_seconds) / SMOOTHED
                metrics.received(len(events), len(requests), took)
                return current

    async def _commit_apart(
        self, writer: Writer | None, requests: list[Waiting], error: psycopg.Error
    ) -> Writer | None:
        """PostgreSQL refused the batch: each request alone, so that only the one that it refuses is affected."""
        if len(requests) == 1:
            log.error(
                "PostgreSQL refused what validation let through",
                request_id=requests[0].request_id,
                sqlstate=error.sqlstate,
                error=str(error),
            )
            refuses_values = isinstance(error, (psycopg.DataError, *database.BEYOND_LIMITS))
            invalid = InvalidRequest("not_storable", ["body", "events"], NOT_STORABLE)
            _resolve(requests, invalid if refuses_values else error)
            return writer
        for request in requests:
            writer = await self._commit(writer or await Writer.open(self._url, ANSWER_SECONDS), [request])
        return writer


def _waits_too_long(request: Waiting) -> bool:
    return time.monotonic() - request.since > ANSWER_SECONDS


def _resolve(requests: Iterable[Waiting], error: Exception | None) -> None:
    for request in requests:
        if request.done.done():
            continue
        if error:
            request.done.set_exception(error)
        else:
            request.done.set_result(None)
