"""receive: durable before the answer, several requests in one commit, nothing doubled when a commit is tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from given import columns, event, receive, until_blocked
from starlette.testclient import TestClient

from chronicle import database
from chronicle.errors import DatabaseAway, InvalidRequest, Overloaded, SchemaBehind
from chronicle.events import Events
from chronicle.ledger import new_batch_id
from chronicle.settings import Settings
from command.app import create_app
from command.receive import BATCH_EVENTS, FEW_EVENTS, NOT_IN_TIME, OVERLOAD_SECONDS, SMOOTHED, Receiver
from command.writer import Writer

Publish = Callable[..., Awaitable[None]]


@asynccontextmanager
async def receiving(url: str, **settings: Any) -> AsyncIterator[tuple[Receiver, list[UUID]]]:
    committed: list[UUID] = []
    receiver = Receiver(url, Settings(**settings), lambda batch_id, _: committed.append(batch_id))
    tasks = {asyncio.create_task(part) for part in (receiver.run(), receiver.answer_late())}
    try:
        yield receiver, committed
    finally:
        while tasks:
            for task in tasks:
                task.cancel()
            tasks = (await asyncio.wait(tasks, timeout=1))[1]


async def test_what_was_answered_is_in_the_ledger_outbox_and_counters(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    async with receiving(database_url) as (receiver, committed):
        await receiver.receive(columns(event("a"), event("b", topic="u", payload={"n": 1e300})), 100, "r")
        stored = db.execute("SELECT batch_id, event_id, topic, payload::text FROM received_events").fetchall()
        assert stored == [
            (committed[0], "a", "t", '{"message": "a"}'),
            (committed[0], "b", "u", '{"n": 1e+300}'),
        ]
        assert db.execute("SELECT batch_id, event_count FROM outbox").fetchall() == [(committed[0], 2)]
        counters = db.execute("SELECT topic, received, queued, processed FROM stats ORDER BY topic").fetchall()
        assert counters == [("t", 1, 0, 0), ("u", 1, 0, 0)]


async def test_ids_that_are_uuids_are_kept_as_such_and_read_like_any_other(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    ids = [str(uuid4()) for _ in range(3)]
    async with receiving(database_url) as (receiver, _):
        await receiver.receive(columns(*map(event, ids)), 1, "r")
        await receiver.receive(columns(event(ids[0].upper()), event(ids[1])), 1, "r")
    kept = "SELECT event_uuids::text[], event_ids FROM facts WHERE action = 'RECEIVED' ORDER BY id"
    assert db.execute(kept).fetchall() == [(ids, None), (None, [ids[0].upper(), ids[1]])]
    for view in ("received_events", "audit_log"):
        found = db.execute(f"SELECT event_id FROM {view}").fetchall()
        assert sorted(row[0] for row in found) == sorted([*ids, ids[0].upper(), ids[1]])


@asynccontextmanager
async def blocked(
    url: str, db: psycopg.Connection[Any], table: str, receiver: Receiver
) -> AsyncIterator[asyncio.Task[None]]:
    """A request whose transaction waits for a table."""
    with db.transaction():
        db.execute(f"LOCK TABLE {table} IN SHARE MODE")
        request = asyncio.create_task(receiver.receive(columns(event("a")), 1, "r"))
        await asyncio.to_thread(until_blocked, url, "command")
        yield request
    await request


async def test_an_answer_waits_for_the_commit(database_url: str, db: psycopg.Connection[Any]) -> None:
    async with (
        receiving(database_url) as (receiver, committed),
        blocked(database_url, db, "outbox", receiver) as request,
    ):
        assert not request.done()
        assert not committed


async def test_nothing_is_recorded_before_it_is_counted(database_url: str, db: psycopg.Connection[Any]) -> None:
    async with receiving(database_url) as (receiver, _), blocked(database_url, db, "stats", receiver):
        assert database.value(db, "SELECT count(*) FROM facts") == 0


async def test_the_commit_is_synchronous(database_url: str) -> None:
    writer = await Writer.open(database_url)
    row = await (await writer.connection.execute("SHOW synchronous_commit")).fetchone()
    await writer.close()
    assert row == ("on",)


async def test_requests_that_wait_are_committed_together(database_url: str, db: psycopg.Connection[Any]) -> None:
    async with receiving(database_url) as (receiver, committed):
        await receiver.receive(columns(event("first")), 1, "r")
        db.execute("BEGIN")
        db.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(receiver.receive(columns(event(f"e{n}")), 1, "r")) for n in range(50)]
        await asyncio.sleep(0)
        db.execute("COMMIT")
        await asyncio.gather(*waiting)
    assert db.execute("SELECT count(*) FROM received_events").fetchone() == (51,)
    assert len(committed) <= 3


@pytest.mark.parametrize("turns", [1, 2])
async def test_few_events_wait_for_those_that_are_on_their_way(database_url: str, turns: int) -> None:
    async with receiving(database_url) as (receiver, committed):
        await receiver.receive(columns(event("first")), 1, "r")
        for size, commits in ((1, 1), (FEW_EVENTS - 1, 1), (FEW_EVENTS, 2)):
            committed.clear()
            requests = [asyncio.create_task(receiver.receive(columns(event("a")), 1, "r")) for _ in range(size)]
            for _ in range(turns):
                await asyncio.sleep(0)
            requests.append(asyncio.create_task(receiver.receive(columns(event("later")), 1, "r")))
            await asyncio.gather(*requests)
            assert len(committed) == commits


async def test_what_is_not_committed_in_time_is_answered(
    monkeypatch: pytest.MonkeyPatch, database_url: str, db: psycopg.Connection[Any]
) -> None:
    monkeypatch.setattr("command.receive.ANSWER_SECONDS", 0.2)
    async with receiving(database_url) as (receiver, committed):
        with db.transaction():
            db.execute("LOCK TABLE outbox IN SHARE MODE")
            requests = [asyncio.create_task(receiver.receive(columns(event("a")), 1, "r"))]
            await asyncio.to_thread(until_blocked, database_url, "command")
            requests.append(asyncio.create_task(receiver.receive(columns(event("queued")), 1, "r")))
            async with asyncio.timeout(5):
                answers = await asyncio.gather(*requests, return_exceptions=True)
            assert list(map(str, answers)) == [NOT_IN_TIME, NOT_IN_TIME]
            assert not committed


async def test_a_batch_stays_within_its_bound_unless_one_request_alone_exceeds_it(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    sizes = [400, BATCH_EVENTS + 1, 400, 400, 400]
    async with receiving(database_url) as (receiver, _):
        db.execute("BEGIN")
        db.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        waiting = [
            asyncio.create_task(receiver.receive(columns(*[event(f"{n}-{e}") for e in range(size)]), 1, "r"))
            for n, size in enumerate(sizes)
        ]
        await asyncio.sleep(0)
        db.execute("COMMIT")
        await asyncio.gather(*waiting)
    counts = [count for (count,) in db.execute("SELECT event_count FROM outbox")]
    assert sum(counts) == sum(sizes)
    assert {count for count in counts if count > BATCH_EVENTS} == {BATCH_EVENTS + 1}
    assert any(400 < count < BATCH_EVENTS for count in counts)


async def test_a_commit_that_is_tried_again_changes_nothing(database_url: str, db: psycopg.Connection[Any]) -> None:
    writer, batch_id = await Writer.open(database_url), new_batch_id()
    for _ in range(3):
        await writer.record_received(batch_id, columns(event("a")))
    await writer.close()
    assert db.execute("SELECT count(*) FROM facts").fetchone() == (1,)
    assert db.execute("SELECT received FROM stats").fetchone() == (1,)


async def test_a_connection_that_is_cut_is_not_an_error(database_url: str, db: psycopg.Connection[Any]) -> None:
    async with receiving(database_url) as (receiver, _):
        for n in range(5):
            await receiver.receive(columns(event(f"e{n}")), 1, "r")
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'chronicle-command'"
            )
    assert db.execute("SELECT event_id FROM received_events ORDER BY 1").fetchall() == [(f"e{n}",) for n in range(5)]


TOO_LONG = random.Random(7).randbytes(3000).hex()


@pytest.mark.parametrize(("event_id", "topic"), [("nul\0", "t"), ("c", TOO_LONG)], ids=["NUL", "too long"])
async def test_a_value_that_postgresql_refuses_refuses_its_own_request_alone(
    event_id: str, topic: str, database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("CREATE INDEX ON facts (topics)")  # where not every topic has room
    bad = Events([event_id], [topic], ["s"], [b"{}"], [datetime.now(UTC)])
    async with receiving(database_url) as (receiver, _):
        answers = await asyncio.gather(
            receiver.receive(columns(event("a")), 1, "r"),
            receiver.receive(bad, 1, "r"),
            receiver.receive(columns(event("b")), 1, "r"),
            return_exceptions=True,
        )
    assert [type(answer) for answer in answers] == [type(None), InvalidRequest, type(None)]
    assert db.execute("SELECT event_id FROM received_events ORDER BY 1").fetchall() == [("a",), ("b",)]


REFUSE_THE_BATCH_THEN_END = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    IF NEW.event_count > 1 THEN RAISE SQLSTATE '22000'; END IF;
    PERFORM pg_terminate_backend(pg_backend_pid());
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON facts FOR EACH ROW EXECUTE FUNCTION refuse()
"""


async def test_all_of_a_refused_batch_are_answered_where_postgresql_is_then_lost(
    monkeypatch: pytest.MonkeyPatch, database_url: str, db: psycopg.Connection[Any]
) -> None:
    monkeypatch.setattr("command.receive.PATIENCE_SECONDS", 0)
    db.execute(REFUSE_THE_BATCH_THEN_END)
    async with receiving(database_url) as (receiver, _):
        requests = [receiver.receive(columns(event(name)), 1, "r") for name in ("a", "b", "c")]
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseAway] * 3
    assert db.execute("SELECT count(*) FROM facts").fetchone() == (0,)


async def test_a_column_that_is_missing_says_that_the_schema_is_behind(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("ALTER TABLE facts RENAME COLUMN event_uuids TO absent")
    async with receiving(database_url) as (receiver, _):
        with pytest.raises(SchemaBehind):
            await receiver.receive(columns(event("a")), 1, "r")
        db.execute("ALTER TABLE facts RENAME COLUMN absent TO event_uuids")
        await receiver.receive(columns(event("a")), 1, "r")


async def test_too_much_in_flight_is_refused(database_url: str) -> None:
    async with receiving(database_url, chronicle_max_in_flight=10) as (receiver, _):
        receiver.set_in_flight(9)
        await receiver.receive(columns(event("a")), 1, "r")
        with pytest.raises(Overloaded, match="in flight"):
            await receiver.receive(columns(event("b"), event("c")), 1, "r")


async def test_what_waits_for_its_commit_is_in_flight_as_well(database_url: str) -> None:
    four = columns(*map(event, "abcd"))
    async with receiving(database_url, chronicle_max_in_flight=10) as (receiver, _):
        outcomes = await asyncio.gather(*(receiver.receive(four, 1, "r") for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), type(None), Overloaded]
        await receiver.receive(columns(event("e"), event("f")), 1, "r")


def test_more_events_than_may_be_in_flight_are_too_many_for_a_request(database_url: str, queue: str) -> None:
    """A 503 would ask the client to send again for ever what can never be let in."""
    with TestClient(create_app(Settings(chronicle_max_in_flight=2), database_url, queue)) as client:
        refused = client.post("/publish", json={"events": [event(f"e{number}") for number in range(3)]})
    assert (refused.status_code, refused.json()["detail"][0]["msg"]) == (413, "at most 2 events a request")


SLOW_COMMITS = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION slow()
"""


async def test_more_than_can_be_committed_soon_is_refused_at_once(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute(SLOW_COMMITS)
    full = columns(*map(event, map(str, range(BATCH_EVENTS))))
    async with receiving(database_url) as (receiver, _):
        await receiver.receive(columns(event("a")), 1, "r")
        waiting = {asyncio.create_task(receiver.receive(full, 1, "r")) for _ in range(100)}
        refused, let_in = await asyncio.wait(waiting, timeout=0.2)
        for request in let_in:
            request.cancel()
    # So far a commit takes half a second / SMOOTHED on average, and requests may wait OVERLOAD_SECONDS.
    most = round(OVERLOAD_SECONDS / (0.5 / SMOOTHED))
    assert most * 0.3 < len(let_in) <= most + 1
    assert {type(request.exception()) for request in refused} == {Overloaded}


async def test_without_postgresql_a_request_fails_in_bounded_time() -> None:
    async with receiving("postgresql://nobody@127.0.0.1:1/none") as (receiver, _):
        with pytest.raises(DatabaseAway):
            await receiver.receive(columns(event("a")), 1, "r")


async def test_command_processes_take_lanes_of_their_own(database_url: str) -> None:
    writers = [await Writer.open(database_url) for _ in range(3)]
    assert sorted(writer.lane for writer in writers) == [-3, -2, -1]
    for writer in writers:
        await writer.close()
    assert await receive(database_url, [event("a")])


async def test_a_server_that_only_reads_is_no_error_of_ours(database_url: str) -> None:
    writer = await Writer.open(database_url)
    await writer.connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(DatabaseAway):
        await writer.record_received(new_batch_id(), columns(event("a")))
    await writer.close()
