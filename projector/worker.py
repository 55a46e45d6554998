"""A projector worker: takes tickets from the consumer group, or batches that wait in the outbox, and projects them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import redis
from psycopg import errors as pg

from chronicle import broker, database, logs
from chronicle.errors import ChronicleError, DatabaseAway
from projector import metrics, outbox
from projector.heartbeat import Heartbeat
from projector.order import let_go
from projector.outbox import MOST_TICKETS, Batch
from projector.projection import SESSION, abandon, project, project_apart
from projector.turn import Turn

SWEEP_SECONDS = 2.0
"""How often a busy worker looks for overdue batches, and any worker for tickets that others left."""

APART, NO_MORE = 3, 30
"""A batch that came back so often is taken apart, then given up: its events become FAILED."""

GIVEN_UP = "given up: {} attempts ended the session or took too long"

ABANDONED_MILLISECONDS = 10_000
PAUSE_SECONDS = 0.2

AWAY_SECONDS = 1.0
"""After Redis failed it is left alone for so long: to be told that it stands still takes three seconds each time."""

log = logs.get(__name__)


class Tickets(NamedTuple):
    """Ticket ids and the batches that they name; `again`: they were handed out before, and nobody acknowledged them."""

    named: dict[str, UUID]
    again: bool


NO_TICKETS = Tickets({}, again=False)


class Worker:
    """One worker: a connection to PostgreSQL (which holds its worker_id), one to Redis, and a loop."""

    def __init__(
        self,
        database_url: str,
        redis_url: str,
        stop: threading.Event,
        turn: Turn | None = None,
        projected: threading.Event | None = None,
        *,
        keeps_history: bool = False,
    ) -> None:
        """`turn` is shared by the workers of a process, of whom one `keeps_history`; `projected` is set after each
        commit, for the sequencer."""
        self._turn = turn or Turn()
        self._projected = projected or threading.Event()
        self._database_url = database_url
        self._redis = broker.connect(redis_url)
        self._stop = stop
        self._connection: psycopg.Connection[Any] | None = None
        self.worker_id = -1
        self._consumer = ""
        self._own_pending = True
        self._most_tickets = MOST_TICKETS
        self._swept = self._claimed = time.monotonic()
        self._redis_away = self._backlog = False
        self._redis_due = 0.0
        self._trouble = ""
        self._busy = False
        self._heartbeat = Heartbeat(keeps_history=keeps_history)

    def run(self) -> None:
        """Works until stopped; faults of PostgreSQL and Redis are logged and waited out."""
        while not self._stop.is_set():
            try:
                self._busy = busy = self.run_once()
                self._say("")
            except (ChronicleError, psycopg.Error) as error:
                self._say(str(error).strip())
                self.reconnect()
                busy = False
            if not busy:
                self._stop.wait(PAUSE_SECONDS if self._redis_away or self._connection is None else 0)
        self.close()

    def _say(self, trouble: str) -> None:
        """Logs what it waits for, or that it goes on: once, however often it tries."""
        if trouble and trouble != self._trouble:
            log.warning("worker waits", worker_id=self.worker_id, error=trouble)
        elif self._trouble and not trouble:
            log.info("worker goes on", worker_id=self.worker_id)
        self._trouble = trouble

    def close(self) -> None:
        """Gives up its connections, and with them its worker_id."""
        if self._connection:
            self._heartbeat.stop(self._connection)
        self.reconnect()
        self._redis.close()

    def run_once(self) -> bool:
        """One step: tickets, or overdue batches where none come. True where there were, and not all were refused.

        Raises DatabaseAway and psycopg.Error; Redis being away is no error here.
        """
        connection = self._connect()
        self._beat(connection)
        # In quiet times the workers of a process take turns until they have announced what they project, and so project
        # in the order of the tickets: what was published first is seen first. When more waits than one worker takes,
        # they work at the same time from the start.
        with self._turn.own(partial(self._beat, connection)) as end_turn:
            if self._stop.is_set():
                return False
            if self._redis_away:
                end_turn()  # it may stand still, and each worker waits for it by itself
            tickets = self._tickets()
            if len(tickets.named) >= self._most_tickets:
                end_turn()
            return self._work_off(connection, tickets, end_turn)

    def _beat(self, connection: psycopg.Connection[Any]) -> None:
        state = "without Redis" if self._redis_away else "busy" if self._busy else "idle"
        self._heartbeat.beat(connection, self.worker_id, state)

    def _work_off(self, connection: psycopg.Connection[Any], tickets: Tickets, announced: Callable[[], None]) -> bool:
        """Projects what the tickets name."""
        batch_ids = list(tickets.named.values())
        overdue: set[UUID] = set()
        busy, self._backlog = bool(batch_ids), False
        if not batch_ids or time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            overdue = set(outbox.overdue(connection, [] if tickets.again else batch_ids))
        returned = overdue.union(batch_ids if tickets.again else [])
        batches = outbox.waiting(connection, returned.union(batch_ids), returned)
        self._most_tickets = outbox.fitting(batches) or self._most_tickets
        for group in outbox.grouped(batches):
            # Committed before the try, for one that ends this process counts; and just before it, for one that is not
            # made because of what befell another does not. What came back and is held is left for now: others wait.
            counted = outbox.count_attempt(connection, returned.intersection(batch.batch_id for batch in group))
            if free := [batch for batch in group if batch.batch_id in counted or batch.batch_id not in returned]:
                done = self._project(connection, free, announced)
                self._backlog |= done and bool(overdue)
                busy |= done
            self._beat(connection)
        self._acknowledge(list(tickets.named))
        return busy

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = database.connect(self._database_url, "projector", **SESSION)
            with database.ours():
                row = connection.execute(*database.lane_query(0)).fetchone()
            if row is None:
                connection.close()
                raise DatabaseAway("no free worker_id: too many workers")
            self._connection, self.worker_id = connection, row[0]
            # Nobody else has this number, and whoever has it next finds the tickets that we leave.
            self._consumer = f"worker-{self.worker_id}"
            self._own_pending = True
        return self._connection

    def reconnect(self) -> None:
        """Lets go of PostgreSQL; the next step connects again, perhaps under another worker_id."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def _tickets(self) -> Tickets:
        """None where Redis has none or is away."""
        if time.monotonic() < self._redis_due:
            return NO_TICKETS
        try:
            tickets = self._read_tickets()
        except redis.ResponseError as error:
            if not broker.group_is_gone(error):
                return self._redis_failed(error)
            tickets = NO_TICKETS
            self._make_group()
        except (redis.RedisError, OSError) as error:
            return self._redis_failed(error)
        if self._redis_away:
            log.info("Redis is back", worker_id=self.worker_id)
            self._redis_away = False
        return tickets

    def _redis_failed(self, error: Exception) -> Tickets:
        self._own_pending = True
        self._redis_due = time.monotonic() + AWAY_SECONDS
        if not self._redis_away:
            log.warning("Redis away: batches are taken from the outbox", worker_id=self.worker_id, error=str(error))
            self._redis_away = True
        return NO_TICKETS

    def _make_group(self) -> None:
        try:
            broker.ensure_group(self._redis)
        except (redis.RedisError, OSError) as error:
            self._redis_failed(error)

    def _read_tickets(self) -> Tickets:
        if self._own_pending:
            # A reply that was lost on its way leaves its tickets pending under our name, with no error anywhere.
            if entries := self._read("0"):
                return Tickets(entries, again=True)
            self._own_pending = False
        if time.monotonic() - self._claimed > SWEEP_SECONDS:
            self._claimed = time.monotonic()
            _, abandoned, *_ = self._redis.xautoclaim(
                broker.STREAM, broker.GROUP, self._consumer, ABANDONED_MILLISECONDS, count=MOST_TICKETS
            )
            if abandoned:
                return Tickets(_named(abandoned), again=True)
            broker.forget_dead(self._redis)
        return Tickets(self._read(">"), again=False)

    def _read(self, start: str) -> dict[str, UUID]:
        reply: Any = self._redis.xreadgroup(
            broker.GROUP,
            self._consumer,
            {broker.STREAM: start},
            count=self._most_tickets,
            block=None if self._backlog else broker.BLOCK_MILLISECONDS,
        )
        if isinstance(reply, dict):  # RESP3, which REDIS_URL may ask for
            return _named(reply[broker.STREAM][0] if reply else [])
        return _named(reply[0][1] if reply else [])

    def _acknowledge(self, tickets: list[str]) -> None:
        if not tickets:
            return
        try:
            with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.xack(broker.STREAM, broker.GROUP, *tickets)
                pipeline.xdel(broker.STREAM, *tickets)
                pipeline.execute()
        except (redis.RedisError, OSError) as error:
            self._redis_failed(error)

    def _project(self, connection: psycopg.Connection[Any], group: list[Batch], announced: Callable[[], None]) -> bool:
        """Projects a group; where it is refused or takes too long, each batch alone: a bad one holds up no others.

        True where nothing was refused.
        """
        try:
            self._try(connection, group, announced)
        except psycopg.Error as error:
            self._refused(connection, group, error)
        else:
            self._projected.set()
            return True
        for batch in group if len(group) > 1 else ():
            self._project(connection, [batch], announced)
        return False

    def _try(self, connection: psycopg.Connection[Any], group: list[Batch], announced: Callable[[], None]) -> None:
        """As a whole; one that came back repeatedly apart, or no more. Raises psycopg.Error."""
        batch_id, attempts = group[0].batch_id, group[0].attempts
        if attempts >= NO_MORE:
            if abandon(connection, batch_id, self.worker_id, GIVEN_UP.format(attempts)):
                self._note_lag(group)
                log.error("batch given up", **self._about(connection, group), attempts=attempts)
        elif attempts >= APART:
            errors = project_apart(connection, batch_id, self.worker_id, announced)
            self._note_lag(group)
            if errors:
                log.error("events failed", **self._about(connection, group), events=len(errors))
        else:
            projected = set(project(connection, [batch.batch_id for batch in group], self.worker_id, announced))
            self._note_lag(batch for batch in group if batch.batch_id in projected)

    def _refused(self, connection: psycopg.Connection[Any], group: list[Batch], error: psycopg.Error) -> None:
        """Raises DatabaseAway where the session or the server is to blame."""
        metrics.PROJECT_FAILURES.inc()
        if isinstance(error, database.LOST) and not isinstance(error, (pg.QueryCanceled, *database.BEYOND_LIMITS)):
            self._not_their_fault(connection, group)
            raise DatabaseAway(str(error).strip()) from error
        let_go(connection)
        log.error("refused", **self._about(connection, group), error=str(error).strip())
        if group[0].attempts >= APART and not isinstance(error, pg.QueryCanceled):
            self._not_their_fault(connection, group)  # no event is refused, but the outcome, or anything

    def _note_lag(self, projected: Iterable[Batch]) -> None:
        self._heartbeat.projected()
        now = time.monotonic()
        for batch in projected:
            metrics.LAG.observe(now - batch.received)

    def _about(self, connection: psycopg.Connection[Any], group: list[Batch]) -> dict[str, Any]:
        """What a line of the log says about batches: the first, and some of the requests that they are made of."""
        requests = outbox.request_ids(connection, [batch.batch_id for batch in group])
        return {"batch_id": str(group[0].batch_id), "request_ids": requests, "worker_id": self.worker_id}

    def _not_their_fault(self, connection: psycopg.Connection[Any], group: list[Batch]) -> None:
        """A lock that was not free, a full disk, a refused counter count for nothing; the end of the session does."""
        if not connection.broken:
            outbox.forgive_attempt(connection, group)


def _named(entries: list[tuple[str, dict[str, str]]]) -> dict[str, UUID]:
    """Ticket ids and their batch ids; a ticket that names none (somebody else's entry) is taken for an old one."""
    named = {}
    for ticket, fields in entries:
        try:
            named[ticket] = UUID((fields or {}).get(broker.FIELD, ""))
        except ValueError:
            log.warning("a ticket that names no batch", ticket=ticket)
            named[ticket] = UUID(int=0)
    return named
