"""Tickets are hints: whatever Redis loses, doubles or leaves lying, each batch is projected once, and by itself."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from itertools import pairwise, takewhile
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from given import event, receive, until_blocked
from servers import eventually

from chronicle import broker, database
from chronicle.errors import DatabaseAway
from chronicle.ledger import new_batch_id
from command.dispatch import MANY_EVENTS, SECOND_ROUND_EVENTS, THIRD_ROUND_EVENTS, Dispatcher
from projector import heartbeat, outbox
from projector.projection import SESSION, project
from projector.turn import Turn
from projector.worker import APART, Worker


@pytest.fixture
def client(queue: str) -> Iterator[redis.Redis]:
    client = broker.connect(queue)
    yield client
    client.close()


@pytest.fixture
def workers(database_url: str, queue: str) -> Iterator[Callable[..., Worker]]:
    """Makes workers."""
    made: list[Worker] = []

    def make(url: str = queue, turn: Any = None) -> Worker:
        made.append(Worker(database_url, url, threading.Event(), turn))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


class CountedTurn(Turn):
    """The turn that workers of a process share, which counts who asks for it."""

    asked = 0

    def own(self, meanwhile: Callable[[], object]) -> AbstractContextManager[Callable[[], None]]:
        self.asked += 1
        return super().own(meanwhile)


class Waited(Exception):
    """The turn was not free."""


def waited() -> None:
    raise Waited


def in_flight(db: psycopg.Connection[Any]) -> int:
    return database.value(db, "SELECT count(*) FROM outbox")


def left(client: redis.Redis) -> tuple[int, int]:
    """How many tickets are in the stream, and how many of them are pending."""
    pending = client.xpending(broker.STREAM, broker.GROUP)["pending"] if client.exists(broker.STREAM) else 0
    return client.xlen(broker.STREAM), pending


async def dispatch(database_url: str, queue: str, batch_ids: list[UUID]) -> bool:
    dispatcher = Dispatcher(database_url, queue)
    sent = await dispatcher.send(batch_ids) and await dispatcher.record_queued(batch_ids)
    await dispatcher.close()
    return sent


async def left_by_somebody(client: redis.Redis, database_url: str, queue: str) -> None:
    """A batch whose ticket was handed out to a consumer that died."""
    broker.ensure_group(client)
    await dispatch(database_url, queue, await receive(database_url, [event("a")]))
    client.xreadgroup(broker.GROUP, "somebody who died", {broker.STREAM: ">"})


@asynccontextmanager
async def dispatching(database_url: str, queue: str) -> AsyncIterator[Dispatcher]:
    """A dispatcher at work."""
    dispatcher = Dispatcher(database_url, queue)
    running = [asyncio.create_task(part) for part in (dispatcher.send_all(), dispatcher.record_all())]
    try:
        yield dispatcher
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await dispatcher.close()


HELD_NUMBERS = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


HOLD_ITS_PLACE = "SELECT pg_advisory_xact_lock(%s)"
"""A worker that projects the batch with this key waits where it would announce it."""


def run_until_idle(worker: Worker, db: psycopg.Connection[Any]) -> None:
    def idle() -> bool:
        worker.run_once()
        return in_flight(db) == 0

    eventually(idle)


def until_empty(worker: Worker, client: redis.Redis) -> None:
    """Lets the worker work until no ticket is left."""

    def empty() -> bool:
        worker.run_once()
        return left(client) == (0, 0)

    eventually(empty)


async def test_a_ticket_leads_to_its_batch_and_is_gone_afterwards(
    worker: Worker, client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    worker.run_once()
    batch_ids = await receive(database_url, [event("a")], [event("b")])
    assert await dispatch(database_url, queue, batch_ids)
    assert left(client) == (2, 0)
    queued = "SELECT count(*) FROM facts WHERE action = 'QUEUED' AND lane < 0"
    assert database.value(db, queued) == 2
    assert worker.run_once()
    assert in_flight(db) == 0
    assert left(client) == (0, 0)
    assert database.value(db, queued) == 2


async def test_a_worker_reads_no_table_whole_however_small(
    worker: Worker, database_url: str, db: psycopg.Connection[Any]
) -> None:
    await receive(database_url, *([event(f"{n}"), event("same")] for n in range(3)))
    db.execute("ANALYZE")
    run_until_idle(worker, db)
    worker.close()  # which tells its statistics
    told = "SELECT {}::int FROM pg_stat_user_tables WHERE relname = '{}'"
    assert eventually(lambda: database.value(db, told.format("n_tup_ins", "processed_events"))) == 4
    assert [database.value(db, told.format("seq_scan", name)) for name in ("facts", "processed_events")] == [0, 0]


async def test_what_was_prepared_for_an_empty_outbox_reads_no_more_than_it_takes_of_a_full_one(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    """ANALYZE found nothing in its pages, which is so in quiet times, and a plan stays while a backlog comes."""

    def take(batch_ids: list[UUID]) -> None:
        assert [batch.batch_id for batch in outbox.waiting(session, batch_ids)] == batch_ids
        assert outbox.count_attempt(session, batch_ids) == set(batch_ids)
        assert project(session, batch_ids, 0) == sorted(batch_ids)
        session.execute("SELECT pg_stat_force_next_flush()")

    told = "SELECT sum(idx_tup_read)::int FROM pg_stat_user_indexes WHERE relname = 'outbox'"
    with database.connect(database_url, "test", **SESSION) as session:
        take(await receive(database_url, *([event(f"{n}")] for n in range(50))))
        db.execute("ANALYZE outbox")
        take(await receive(database_url, [event("a")]))
        before = database.value(db, told)
        take((await receive(database_url, *([event(f"b{n}")] for n in range(300))))[-5:])
        assert 5 * 5 <= database.value(db, told) - before < 5 * 10


async def test_a_ticket_is_acknowledged_after_the_commit(
    worker: Worker, client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    worker.run_once()
    [batch_id] = await receive(database_url, [event("a")])
    await dispatch(database_url, queue, [batch_id])
    thread = threading.Thread(target=worker.run_once)
    with db.transaction():
        db.execute(HOLD_ITS_PLACE, [batch_id.int >> 64])
        thread.start()
        until_blocked(database_url, "projector")
        assert left(client) == (1, 1)
    thread.join()
    assert left(client) == (0, 0)


async def test_a_ticket_sent_before_there_was_a_group_is_read(
    client: redis.Redis, database_url: str, queue: str
) -> None:
    await dispatch(database_url, queue, await receive(database_url, [event("a")]))
    broker.ensure_group(client)
    assert client.xreadgroup(broker.GROUP, "test", {broker.STREAM: ">"})


async def test_a_ticket_that_comes_twice_or_late_changes_nothing(
    worker: Worker, client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    batch_ids = await receive(database_url, [event("a")])
    for _ in range(3):
        await dispatch(database_url, queue, batch_ids)
    run_until_idle(worker, db)
    await dispatch(database_url, queue, batch_ids)
    until_empty(worker, client)
    assert db.execute("SELECT sum(processed), sum(dropped), sum(queued) FROM stats").fetchone() == (1, 0, 1)


async def test_a_batch_without_a_ticket_is_found_in_the_outbox(
    worker: Worker, database_url: str, db: psycopg.Connection[Any]
) -> None:
    await receive(database_url, [event("a")])
    run_until_idle(worker, db)
    assert db.execute("SELECT lane FROM facts WHERE action = 'QUEUED'").fetchone() == (worker.worker_id,)


@pytest.mark.parametrize(
    "fault",
    [
        lambda client: client.flushall(),
        lambda client: client.delete(broker.STREAM),
        lambda client: client.xgroup_destroy(broker.STREAM, broker.GROUP),
    ],
    ids=["FLUSHALL", "DEL", "group destroyed"],
)
async def test_what_redis_loses_is_projected_all_the_same(
    fault: Callable[[redis.Redis], Any],
    worker: Worker,
    client: redis.Redis,
    database_url: str,
    queue: str,
    db: psycopg.Connection[Any],
) -> None:
    worker.run_once()
    await dispatch(database_url, queue, await receive(database_url, [event("a")], [event("b")]))
    fault(client)
    run_until_idle(worker, db)
    await dispatch(database_url, queue, await receive(database_url, [event("c")]))
    run_until_idle(worker, db)
    until_empty(worker, client)


async def test_a_reader_that_blocks_while_the_stream_is_deleted_goes_on(
    worker: Worker, client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    worker.run_once()
    thread = threading.Thread(target=worker.run_once)
    thread.start()
    eventually(lambda: any(c["flags"] == "b" for c in client.client_list()), every=0.001)
    client.delete(broker.STREAM)
    thread.join()
    await dispatch(database_url, queue, await receive(database_url, [event("a")]))
    run_until_idle(worker, db)


async def test_a_ticket_that_another_worker_left_pending_is_taken_over(
    workers: Callable[[], Worker],
    client: redis.Redis,
    database_url: str,
    queue: str,
    db: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.worker.ABANDONED_MILLISECONDS", 1)
    monkeypatch.setattr("projector.worker.SWEEP_SECONDS", 0)
    await left_by_somebody(client, database_url, queue)
    worker = workers()
    until_empty(worker, client)
    assert in_flight(db) == 0


async def test_an_idle_worker_takes_over_too_what_another_left(
    worker: Worker,
    client: redis.Redis,
    database_url: str,
    queue: str,
    db: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A single worker that has nothing to do: each of its steps lasts as long as it blocks for a ticket."""
    monkeypatch.setattr("projector.worker.ABANDONED_MILLISECONDS", 1)
    monkeypatch.setattr("projector.worker.SWEEP_SECONDS", 0.2)
    await left_by_somebody(client, database_url, queue)
    run_until_idle(worker, db)
    until_empty(worker, client)


async def test_who_takes_the_number_of_a_killed_worker_takes_its_tickets_at_once(
    worker: Worker, client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    broker.ensure_group(client)
    await dispatch(database_url, queue, await receive(database_url, [event("a")]))
    client.xreadgroup(broker.GROUP, "worker-0", {broker.STREAM: ">"})
    worker.run_once()
    assert worker.worker_id == 0
    assert left(client) == (0, 0)


async def test_own_pending_tickets_are_taken_back_at_the_start(
    worker: Worker, client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    """As after an XREADGROUP whose reply was lost: pending under the worker's own name, and no error anywhere."""
    worker.run_once()  # makes the group
    worker.run_once()
    consumer = next(c["name"] for c in client.xinfo_consumers(broker.STREAM, broker.GROUP))
    await dispatch(database_url, queue, await receive(database_url, [event("a")]))
    client.xreadgroup(broker.GROUP, consumer, {broker.STREAM: ">"})
    worker.reconnect()
    eventually(lambda: database.value(db, HELD_NUMBERS) == 0)  # it may have the same one again
    run_until_idle(worker, db)
    until_empty(worker, client)


async def test_tickets_of_a_reply_that_is_lost_just_after_an_outage_are_taken_back(
    monkeypatch: pytest.MonkeyPatch,
    worker: Worker,
    client: redis.Redis,
    database_url: str,
    queue: str,
    db: psycopg.Connection[Any],
) -> None:
    monkeypatch.setattr("projector.worker.AWAY_SECONDS", 0)
    worker.run_once()  # makes the group
    for _ in range(2):  # the first is the outage; the second comes when the worker has found nothing pending
        cut_while_it_reads(worker, client)
    await dispatch(database_url, queue, await receive(database_url, [event("a")]))
    client.xreadgroup(broker.GROUP, f"worker-{worker.worker_id}", {broker.STREAM: ">"})
    worker.run_once()
    assert left(client) == (0, 0)
    assert in_flight(db) == 0


def cut_while_it_reads(worker: Worker, client: redis.Redis) -> None:
    """The worker loses its connection to Redis while it waits for tickets."""
    reading = threading.Thread(target=worker.run_once)
    reading.start()
    eventually(lambda: client.info("clients")["blocked_clients"] == 1, every=0.005)
    assert client.client_kill_filter(_type="normal", skipme=True)
    reading.join()


async def test_an_entry_that_names_no_batch_is_thrown_away(
    worker: Worker, client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    for fields in ({"batch_id": "not a uuid"}, {"batch_id": b"\xff\xfe"}, {"other": "x"}):
        client.xadd(broker.STREAM, fields)
    await dispatch(database_url, queue, await receive(database_url, [event("a")]))
    run_until_idle(worker, db)
    until_empty(worker, client)


async def test_a_worker_that_waits_gets_all_tickets_of_a_round(
    client: redis.Redis, database_url: str, queue: str
) -> None:
    """Each round of the dispatcher is then one projection."""
    broker.ensure_group(client)
    reading = asyncio.create_task(
        asyncio.to_thread(client.xreadgroup, broker.GROUP, "reader", {broker.STREAM: ">"}, block=10_000)
    )
    await asyncio.to_thread(eventually, lambda: client.info("clients")["blocked_clients"] > 0)
    assert await dispatch(database_url, queue, [new_batch_id() for _ in range(20)])
    [(_, tickets)] = await reading
    assert len(tickets) == 20


async def test_many_events_do_not_wait_for_the_next_round(
    monkeypatch: pytest.MonkeyPatch, client: redis.Redis, database_url: str, queue: str
) -> None:
    monkeypatch.setattr("command.dispatch.ROUND_SECONDS", 3600)
    async with dispatching(database_url, queue) as dispatcher:
        for events, tickets in (1, 1), (MANY_EVENTS, 2), (MANY_EVENTS - 1, 2), (1, 4):
            dispatcher.add(new_batch_id(), events)
            await asyncio.to_thread(eventually, lambda tickets=tickets: client.xlen(broker.STREAM) == tickets)


async def test_the_more_events_come_the_longer_they_wait_for_others(
    monkeypatch: pytest.MonkeyPatch, client: redis.Redis, database_url: str, queue: str
) -> None:
    monkeypatch.setattr("command.dispatch.ROUND_SECONDS", 1)
    async with dispatching(database_url, queue) as dispatcher:
        for tickets, events in enumerate(
            (1, SECOND_ROUND_EVENTS - 1, SECOND_ROUND_EVENTS, THIRD_ROUND_EVENTS), start=1
        ):
            dispatcher.add(new_batch_id(), events)
            await asyncio.to_thread(eventually, lambda tickets=tickets: client.xlen(broker.STREAM) == tickets)
    sent = [int(ticket.partition("-")[0]) for ticket, _ in client.xrange(broker.STREAM)]
    few, some, more = (later - earlier for earlier, later in pairwise(sent))
    assert 900 <= few < 1800 <= some < 2800 <= more


async def test_a_batch_that_no_worker_takes_is_queued_all_the_same(
    client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    [batch_id] = await receive(database_url, [event("a"), event("b")])
    queued = "SELECT coalesce(sum(queued), 0) FROM stats"
    async with dispatching(database_url, queue) as dispatcher:
        dispatcher.add(batch_id, 2)
        await asyncio.to_thread(eventually, lambda: database.value(db, queued) == 2)
        assert client.xlen(broker.STREAM) == 1


async def test_without_redis_events_are_accepted_and_projected(
    workers: Callable[[str], Worker], database_url: str, db: psycopg.Connection[Any]
) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    batch_ids = await receive(database_url, [event("a")])
    assert not await dispatch(database_url, nowhere, batch_ids)
    run_until_idle(workers(nowhere), db)
    assert db.execute("SELECT sum(queued), sum(processed) FROM stats").fetchone() == (1, 1)


async def test_batches_without_tickets_are_taken_one_after_the_other_without_waiting_for_a_ticket(
    worker: Worker, client: redis.Redis, database_url: str, db: psycopg.Connection[Any]
) -> None:
    broker.ensure_group(client)
    await receive(database_url, *[[event(f"e{number}")] for number in range(3 * outbox.MOST_OVERDUE)])
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
    with client.monitor() as monitor:
        run_until_idle(worker, db)
        client.echo("done")
        asked = list(takewhile("ECHO done".__ne__, (heard["command"] for heard in monitor.listen())))
    waits = ["BLOCK" in command for command in asked if command.startswith("XREADGROUP")]
    assert waits[:2] == [True, True]  # for what was left pending under its name, and for what is new
    assert waits[2:] == [False, False]


async def test_tickets_that_nobody_would_be_given_are_removed(
    worker: Worker, client: redis.Redis, database_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.worker.SWEEP_SECONDS", 0)
    broker.ensure_group(client)
    held, passed = await receive(database_url, [event("a")], [event("b")])
    await dispatch(database_url, queue, [held])
    client.xreadgroup(broker.GROUP, "theirs", {broker.STREAM: ">"})
    await dispatch(database_url, queue, [passed])
    client.xgroup_setid(broker.STREAM, broker.GROUP, "$")
    worker.run_once()
    assert client.xlen(broker.STREAM) == 2  # for one of them is held
    client.xgroup_delconsumer(broker.STREAM, broker.GROUP, "theirs")
    worker.run_once()
    assert client.xlen(broker.STREAM) == 0


@pytest.fixture
def still() -> Iterator[socket.socket]:
    """A Redis that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@contextmanager
def asking(worker: Worker, still: socket.socket) -> Iterator[None]:
    """A step of a worker, as far as it waits for an answer of Redis."""
    step = threading.Thread(target=worker.run_once)
    step.start()
    connection, _ = still.accept()
    yield
    connection.close()
    step.join()


async def test_a_redis_that_stood_still_is_left_alone_for_a_while(
    workers: Callable[..., Worker], still: socket.socket, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.worker.AWAY_SECONDS", 3600)
    worker = workers(f"redis://127.0.0.1:{still.getsockname()[1]}/0")
    with asking(worker, still):
        pass
    run_until_idle(worker, db)
    still.setblocking(False)
    with pytest.raises(BlockingIOError):
        still.accept()


async def test_a_redis_that_stands_still_stops_no_other_worker(
    workers: Callable[..., Worker], still: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.worker.AWAY_SECONDS", 0)
    monkeypatch.setattr(heartbeat, "SECONDS", 0.1)
    turn = Turn()
    worker = workers(f"redis://127.0.0.1:{still.getsockname()[1]}/0", turn)
    with asking(worker, still), pytest.raises(Waited), turn.own(waited):  # nobody knows yet
        pass
    with asking(worker, still), turn.own(waited):
        pass


async def test_a_worker_that_does_not_give_up_its_turn_stops_no_other_worker(
    workers: Callable[..., Worker], database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.1)
    monkeypatch.setattr("projector.turn.LONGEST_SECONDS", 0.5)
    turn = Turn()
    worker = workers(turn=turn)
    with ThreadPoolExecutor() as threads, turn.own(waited):
        for number in range(2):
            await receive(database_url, [event(f"e{number}")])
            db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
            threads.submit(worker.run_once).result(timeout=10)
            assert in_flight(db) == 0
    with turn.own(waited):
        pass


async def test_in_quiet_times_what_was_published_first_wins(
    workers: Callable[..., Worker], client: redis.Redis, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    """Also where the worker that has its ticket is slow, and another one of its process is free."""
    broker.ensure_group(client)
    turn = CountedTurn()
    slow, free = (threading.Thread(target=workers(turn=turn).run_once) for _ in range(2))
    batch_ids = await receive(database_url, [event("a", source="first")], [event("a", source="second")])
    with db.transaction():
        db.execute(HOLD_ITS_PLACE, [batch_ids[0].int >> 64])
        for number, (thread, batch_id) in enumerate(zip((slow, free), batch_ids, strict=True)):
            await dispatch(database_url, queue, [batch_id])
            thread.start()
            if number == 0:
                until_blocked(database_url, "projector")
        with database.connect(database_url, "test") as other:
            eventually(lambda: turn.asked == 2 or in_flight(other) == 1)
    slow.join()
    free.join()
    assert db.execute("SELECT source FROM processed_events").fetchall() == [("first",)]


@pytest.mark.parametrize("attempts", [0, APART])
async def test_a_turn_ends_when_a_projection_has_its_place_in_the_order(
    attempts: int,
    workers: Callable[..., Worker],
    client: redis.Redis,
    database_url: str,
    queue: str,
    db: psycopg.Connection[Any],
) -> None:
    """Who is next need not wait for all of it."""
    broker.ensure_group(client)
    turn = Turn()
    slow, free = (threading.Thread(target=workers(turn=turn).run_once) for _ in range(2))
    batch_ids = await receive(database_url, [event("a")], [event("b")])
    db.execute("UPDATE outbox SET attempts = %s WHERE batch_id = %s", [attempts, batch_ids[0]])
    with db.transaction(force_rollback=True):
        db.execute(
            """
            INSERT INTO processed_events (event_id, topic, source, payload, "timestamp", batch_id, position)
            SELECT event_id, topic, source, payload, "timestamp", batch_id, position FROM received_events
            WHERE batch_id = %s
            """,
            batch_ids[:1],
        )
        await dispatch(database_url, queue, batch_ids[:1])
        slow.start()
        until_blocked(database_url, "projector")
        await dispatch(database_url, queue, batch_ids[1:])
        free.start()
        with database.connect(database_url, "test") as other:
            eventually(lambda: in_flight(other) == 1)
    slow.join()
    free.join()
    assert db.execute("SELECT event_id FROM processed_events ORDER BY 1").fetchall() == [("a",), ("b",)]


@pytest.mark.parametrize(("size", "taken"), [(1, 5), (4000, 2), (6000, 1), (20_000, 1)])
async def test_a_worker_counts_no_more_overdue_batches_than_it_tries_at_once(
    size: int, taken: int, database_url: str, db: psycopg.Connection[Any]
) -> None:
    await receive(database_url, *[[event(f"e{number}")] for number in range(5)])
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute', event_count = %s", [size])
    assert len(set(outbox.overdue(db, []))) == taken


async def test_in_a_backlog_only_what_is_older_than_the_tickets_that_come_is_overdue(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    """Or workers would take from each other what their next tickets name, and wait for it."""
    lost, *batch_ids = await receive(database_url, *([event(f"e{number}")] for number in range(5)))
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
    assert set(outbox.overdue(db, [])) == {lost, *batch_ids}
    assert outbox.overdue(db, batch_ids[1:3]) == []
    db.execute("UPDATE outbox SET received_at = received_at - interval '2 seconds' WHERE batch_id = %s", [lost])
    assert outbox.overdue(db, batch_ids[1:3]) == [lost]
    assert set(outbox.overdue(db, [new_batch_id()])) == {lost, *batch_ids}
    db.execute("UPDATE outbox SET received_at = now() + interval '10 minutes' WHERE batch_id = %s", [lost])
    assert outbox.overdue(db, batch_ids) == [lost]  # by a clock that was set right since


async def test_what_another_worker_holds_is_neither_waited_for_nor_counted(
    workers: Callable[..., Worker], database_url: str, db: psycopg.Connection[Any]
) -> None:
    held, free = await receive(database_url, [event("a")], [event("b")])
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute' WHERE batch_id = %s", [held])
    without_redis = workers("redis://127.0.0.1:1/0")
    with database.connect(database_url, "test") as other, db.transaction(force_rollback=True):
        db.execute("DELETE FROM outbox WHERE batch_id = %s", [held])
        assert outbox.count_attempt(other, [held, free]) == {free}
        assert without_redis.run_once() is False  # so that it pauses, and does not ask again and again
    assert db.execute("SELECT batch_id FROM outbox WHERE attempts > 0").fetchall() == [(free,)]


async def test_a_try_that_is_not_made_because_another_met_a_fault_does_not_count(
    worker: Worker, database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute(
        """
        CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full', MESSAGE = 'no space left'; END $$;
        CREATE TRIGGER no_space BEFORE INSERT ON processed_events EXECUTE FUNCTION no_space()
        """
    )
    await receive(database_url, *([event(f"e{number}")] for number in range(5)))
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute', attempts = %s", [outbox.ALONE])
    for _ in range(3):
        with pytest.raises(DatabaseAway, match="no space left"):
            worker.run_once()
    assert db.execute("SELECT DISTINCT attempts FROM outbox").fetchall() == [(outbox.ALONE,)]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_tickets_are_acknowledged_in_whichever_protocol(
    protocol: int,
    workers: Callable[..., Worker],
    client: redis.Redis,
    database_url: str,
    queue: str,
    db: psycopg.Connection[Any],
) -> None:
    worker = workers(f"{queue}?protocol={protocol}")
    worker.run_once()
    await dispatch(database_url, queue, await receive(database_url, [event("a")], [event("b")]))
    worker.run_once()
    assert (in_flight(db), left(client)) == (0, (0, 0))


async def test_workers_get_worker_ids_of_their_own_and_free_ones_again(workers: Callable[[], Worker]) -> None:
    first, second = workers(), workers()
    first.run_once()
    second.run_once()
    assert (first.worker_id, second.worker_id) == (0, 1)
    first.close()
    third = workers()
    eventually(lambda: third.run_once() or third.worker_id == 0)


CANCEL_PROJECTORS = """
SELECT pg_cancel_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'chronicle-projector'
"""


async def test_what_a_cancelled_statement_held_for_the_order_of_projections_is_given_back(
    worker: Worker, database_url: str, db: psycopg.Connection[Any]
) -> None:
    [batch_id] = await receive(database_url, [event("a")])
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
    with db.transaction(), ThreadPoolExecutor() as executor:
        db.execute(HOLD_ITS_PLACE, [batch_id.int >> 64])
        step = executor.submit(worker.run_once)
        until_blocked(database_url, "projector")
        with psycopg.connect(database_url, autocommit=True) as canceller:
            canceller.execute(CANCEL_PROJECTORS)
        assert not step.result()
    assert db.execute("SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1").fetchall() == []
    run_until_idle(worker, db)


async def test_a_batch_that_somebody_holds_holds_up_others_no_longer_than_a_lock_is_waited_for(
    database_url: str, queue: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.SESSION, "lock_timeout", "100ms")
    monkeypatch.setattr(outbox, "OVERDUE_SECONDS", 0.02)
    worker = Worker(database_url, queue, threading.Event())
    worker.run_once()
    held, other = await receive(database_url, [event("a")], [event("b")])
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT FROM outbox WHERE batch_id = %s FOR UPDATE", [held])
        await dispatch(database_url, queue, [held, other])
        with pytest.raises(DatabaseAway, match="lock timeout"):
            worker.run_once()
        worker.reconnect()
        worker.run_once()
        assert db.execute("SELECT batch_id FROM outbox").fetchall() == [(held,)]
    run_until_idle(worker, db)
    worker.close()


async def test_a_batch_whose_ticket_another_left_has_come_back(
    worker: Worker,
    client: redis.Redis,
    database_url: str,
    queue: str,
    db: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("projector.worker.ABANDONED_MILLISECONDS", 1)
    monkeypatch.setattr("projector.worker.SWEEP_SECONDS", 0)
    db.execute("ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id <> 'a')")
    await left_by_somebody(client, database_url, queue)
    eventually(lambda: worker.run_once() or left(client) == (0, 0))
    assert db.execute("SELECT attempts FROM outbox").fetchall() == [(1,)]


async def test_queued_facts_that_postgresql_refuses_are_left_to_the_workers(
    database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    dispatcher = Dispatcher(database_url, queue)
    batch_ids = await receive(database_url, [event("a")])
    db.execute("ALTER TABLE stats ADD CONSTRAINT no CHECK (queued = 0)")
    assert not await dispatcher.record_queued(batch_ids)
    db.execute("ALTER TABLE stats DROP CONSTRAINT no")
    assert await dispatcher.record_queued(batch_ids)
    await dispatcher.close()


async def test_a_batch_that_postgresql_refuses_does_not_hold_up_the_others(
    worker: Worker, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id <> 'poison')")
    batch_ids = await receive(database_url, [event("a")], [event("poison"), event("b")], [event("c")])
    worker.run_once()
    await dispatch(database_url, queue, batch_ids)
    worker.run_once()
    assert db.execute("SELECT batch_id, attempts FROM outbox").fetchall() == [(batch_ids[1], 0)]
    run_until_idle(worker, db)
    assert db.execute("SELECT event_id FROM failed_events").fetchall() == [("poison",)]
    assert db.execute("SELECT event_id FROM processed_events ORDER BY 1").fetchall() == [("a",), ("b",), ("c",)]


def test_a_worker_without_postgresql_says_so_and_goes_on_until_stopped(queue: str) -> None:
    worker = Worker("postgresql://nobody@127.0.0.1:1/none", queue, threading.Event())
    with pytest.raises(DatabaseAway):
        worker.run_once()
    stop = threading.Event()
    thread = threading.Thread(target=Worker("postgresql://nobody@127.0.0.1:1/none", queue, stop).run)
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
