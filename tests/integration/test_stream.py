"""The stream: facts are numbered after their commit, so that what is seen later never has a lower position."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from given import LARGE_BLOCKS, LARGE_BYTES, blocks_read, event, large, receive, until_blocked
from servers import eventually
from structlog.testing import capture_logs

from chronicle import database, rebuild, verify
from chronicle.ledger import RECORD_POSITIONS
from projector.failed import retry_batch
from projector.projection import project, project_apart
from projector.sequencer import MOST_FACTS, TAKE_TURN, Sequencer, number
from projector.worker import Worker
from query import stream

Message = tuple[int, dict[str, Any]]
ANY_FILTER = {"topic": None, "event_id": None}


def parsed(pieces: Sequence[bytes]) -> list[Message]:
    """Position and event of each message."""
    messages = [block.splitlines() for block in b"".join(pieces).decode().split("\n\n")[:-1]]
    return [
        (int(second.removeprefix("id: ")), msgspec.json.decode(first.removeprefix("data: ")))
        for first, second in messages
    ]


async def pages(url: str, topics: stream.Topics = (), after: int = 0) -> list[tuple[int, list[Message]]]:
    """Every page that follows a position: where it leads, and its messages."""
    found = []
    async with database.read_pool(url, "query", 2) as pool, pool.connection() as connection:
        while (page := await stream.read(connection, topics, after)).position > after:
            after = page.position
            found.append((after, parsed(page.pieces)))
    return found


async def all_after(url: str, after: int = 0, *topics: str) -> list[Message]:
    return [message for _, messages in await pages(url, topics, after) for message in messages]


def ids(messages: Sequence[Message]) -> list[str]:
    return [event["event_id"] for _, event in messages]


@contextmanager
def held_open(url: str, batch_ids: list[UUID]) -> Iterator[None]:
    """The batches are projected in a transaction that has not been committed yet."""
    with database.connect(url, "early") as connection, connection.transaction():
        project(connection, batch_ids, 0)
        yield


async def test_what_commits_late_comes_late_and_nothing_is_skipped(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    early, later = await receive(database_url, [event("a"), event("b")], [event("c"), event("d")])
    with held_open(database_url, [early]):
        project(db, [later], 1)
        number(db)
        seen = await all_after(database_url)
        assert ids(seen) == ["c", "d"]
    number(db)
    seen += await all_after(database_url, seen[-1][0])
    assert ids(seen) == ["c", "d", "a", "b"]
    positions = [position for position, _ in seen]
    assert positions == sorted(set(positions))
    for index, position in enumerate([0, *positions]):
        assert await all_after(database_url, position) == seen[index:]
    assert [text for _, _, violations in verify.run(database_url) for text in violations] == []


async def test_a_long_transaction_of_somebody_else_holds_up_nothing(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    [batch_id] = await receive(database_url, [event("a")])
    with database.connect(database_url, "somebody") as connection, connection.transaction():
        connection.execute("SELECT pg_current_xact_id()")
        project(db, [batch_id], 0)
        assert number(db) == 1
        assert ids(await all_after(database_url)) == ["a"]


def test_a_backlog_is_numbered_without_a_pair_of_each_with_each(database_url: str, db: psycopg.Connection[Any]) -> None:
    """Where ANALYZE has found none, as in quiet times, PostgreSQL plans for one, and 10,000 then took it 15 s."""

    def add(facts: int) -> None:
        db.execute("INSERT INTO unsequenced SELECT id, gen_random_uuid(), 0 FROM generate_series(1, %s) AS id", [facts])

    with database.connect(database_url, "sequencer", statement_timeout="4s") as connection:
        add(200)
        assert number(connection) == 200
        db.execute("ANALYZE unsequenced")
        add(MOST_FACTS + 1)
        assert [number(connection) for _ in range(3)] == [MOST_FACTS, 1, 0]


async def test_who_waits_for_the_turn_sees_what_was_committed_meanwhile_whatever_isolation_is_the_default(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    first, second = await receive(database_url, [event("a")], [event("b")])
    project(db, [first], 0)
    with database.connect(database_url, "sequencer") as waiting:
        waiting.execute("SET default_transaction_isolation = 'serializable'")
        numbered: list[int] = []
        thread = threading.Thread(target=lambda: numbered.append(number(waiting)))
        with db.transaction():
            db.execute(TAKE_TURN)
            thread.start()
            until_blocked(database_url, "sequencer")
            with database.connect(database_url, "projector") as connection:
                project(connection, [second], 1)
        thread.join()
    assert numbered == [2]


async def test_readers_see_growing_positions_while_several_workers_and_sequencers_are_at_it(database_url: str) -> None:
    batches = [[event(f"{batch}-{n}") for n in range(random.randrange(1, 6))] for batch in range(120)]
    waiting = await receive(database_url, *batches)
    random.shuffle(waiting)
    stop, projected = threading.Event(), threading.Event()

    def work(worker_id: int) -> None:
        with database.connect(database_url, "worker") as connection:
            for batch_id in waiting[worker_id::4]:
                with connection.transaction():
                    project(connection, [batch_id], worker_id)
                    stop.wait(random.random() / 50)
                projected.set()

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    sequencers = [threading.Thread(target=Sequencer(database_url, stop, projected).run) for _ in range(3)]
    for thread in (*workers, *sequencers):
        thread.start()
    seen: list[Message] = []
    while any(thread.is_alive() for thread in workers):
        seen += await all_after(database_url, seen[-1][0] if seen else 0)
    for thread in workers:
        thread.join()
    stop.set()
    for thread in sequencers:
        thread.join()
    seen += await all_after(database_url, seen[-1][0] if seen else 0)
    positions = [position for position, _ in seen]
    assert positions == sorted(set(positions))
    assert sorted(ids(seen)) == sorted(each["event_id"] for batch in batches for each in batch)


async def test_only_first_sightings_of_the_wanted_topics_come(database_url: str, db: psycopg.Connection[Any]) -> None:
    events = [event("a"), event("a"), event("b", topic="u"), event("c", topic=""), event("d"), event("b", topic="u")]
    [*batch_ids] = await receive(database_url, events, [event("d"), event("e", topic="u")], [event("f", topic="v")])
    for batch_id in batch_ids:
        project(db, [batch_id], 0)
    number(db)
    assert ids(await all_after(database_url)) == ["a", "b", "c", "d", "e", "f"]
    assert ids(await all_after(database_url, 0, "u")) == ["b", "e"]
    assert ids(await all_after(database_url, 0, "")) == ["c"]
    assert ids(await all_after(database_url, 0, "t", "v")) == ["a", "d", "f"]
    assert await pages(database_url, ("none",)) == [(4 * RECORD_POSITIONS, [])]


@pytest.mark.parametrize("size", [stream.MOST_EVENTS - 1, stream.MOST_EVENTS, 2 * stream.MOST_EVENTS + 1])
async def test_large_batches_come_in_bounded_pages(size: int, database_url: str, db: psycopg.Connection[Any]) -> None:
    batches = [[event(f"{batch}-{n}", topic=f"t{n % 2}") for n in range(size)] for batch in range(3)]
    for batch_id in await receive(database_url, *batches):
        project(db, [batch_id], 0)
    number(db)
    for topics in ((), ("t1",), ("t0", "t1")):
        found = await pages(database_url, topics)
        assert max(len(messages) for _, messages in found) <= stream.MOST_EVENTS
        wanted = [e["event_id"] for batch in batches for e in batch if not topics or e["topic"] in topics]
        assert ids([message for _, messages in found for message in messages]) == wanted


async def test_pages_are_bounded_in_bytes_and_have_at_least_one_event(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    payload = {"text": "x" * (stream.PAGE_BYTES // 3)}
    large = {"text": "x" * (stream.PAGE_BYTES * 2)}
    events = [*(event(f"{n}", payload=payload) for n in range(7)), event("large", payload=large), event("last")]
    project(db, await receive(database_url, events), 0)
    number(db)
    found = await pages(database_url)
    assert [len(messages) for _, messages in found] == [3, 3, 2, 1]
    assert ids([message for _, messages in found for message in messages]) == [e["event_id"] for e in events]


async def test_a_page_unfolds_no_further_facts_than_it_may_read(database_url: str, db: psycopg.Connection[Any]) -> None:
    facts = 6 * stream.READ_BYTES // LARGE_BYTES
    for batch_id in await receive(database_url, *[[large(f"{n}")] for n in range(facts)]):
        project(db, [batch_id], 0)
    number(db)
    for topics in ((), ("t",), ("none",)):
        statement = stream.PAGE_BY_TOPIC if topics else stream.PAGE_OF_ALL
        where = {"sequence": 0, "position": 0, "topics": list(topics)}
        assert blocks_read(db, statement, where) < facts * LARGE_BLOCKS / 2
        wanted = [] if topics == ("none",) else [f"{n}" for n in range(facts)]
        assert ids(await all_after(database_url, 0, *topics)) == wanted


async def test_a_rare_topic_is_looked_for_in_bounded_steps(database_url: str, db: psycopg.Connection[Any]) -> None:
    facts = stream.MOST_FACTS + 50
    batch_ids = await receive(database_url, *[[event(f"{n}")] for n in range(facts)], [event("rare", topic="rare")])
    for start in range(0, len(batch_ids), 100):
        project(db, batch_ids[start : start + 100], 0)
    number(db)
    found = await pages(database_url, ("rare",))
    assert [(position // RECORD_POSITIONS - 1, ids(messages)) for position, messages in found] == [
        (stream.MOST_FACTS, []),
        (facts + 1, ["rare"]),
    ]


async def test_an_event_that_failed_comes_once_it_was_tried_again(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id <> 'poison')")
    [batch_id] = await receive(database_url, [event("a"), event("poison"), event("b")])
    project_apart(db, batch_id, 0)
    number(db)
    seen = await all_after(database_url)
    assert ids(seen) == ["a", "b"]
    db.execute("ALTER TABLE processed_events DROP CONSTRAINT poison")
    retry_batch(db, batch_id, 1, ANY_FILTER)
    number(db)
    assert ids(await all_after(database_url, seen[-1][0])) == ["poison"]
    assert ids(await all_after(database_url)) == ["a", "b", "poison"]


async def test_a_rebuild_changes_nothing_and_after_a_reset_positions_go_on(
    database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    project(db, await receive(database_url, [event("a"), event("b", topic="u")]), 0)
    number(db)
    before = await all_after(database_url)
    rebuild.rebuild(database_url)
    assert await all_after(database_url) == before
    assert ids(await all_after(database_url, 0, "u")) == ["b"]
    project(db, await receive(database_url, [event("waits")]), 0)
    rebuild.reset(database_url, queue)
    assert number(db) == 0
    assert await all_after(database_url) == []
    project(db, await receive(database_url, [event("a")]), 0)
    number(db)
    assert ids(await all_after(database_url, before[-1][0])) == ["a"]


async def test_the_sequencer_of_a_process_is_woken_by_its_workers_and_numbers_all_before_it_ends(
    database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    stop, projected = threading.Event(), threading.Event()
    worker = Worker(database_url, queue, threading.Event(), projected=projected)
    await receive(database_url, [event("a")])
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 hour'")
    eventually(worker.run_once)
    worker.close()
    assert projected.is_set()
    stop.set()
    Sequencer(database_url, stop, projected).run()
    assert ids(await all_after(database_url)) == ["a"]


async def test_the_sequencer_finds_facts_that_nobody_woke_it_for(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    project(db, await receive(database_url, [event("a")]), 0)
    stop, projected = threading.Event(), threading.Event()
    thread = threading.Thread(target=Sequencer(database_url, stop, projected).run)
    thread.start()
    eventually(lambda: database.value(db, "SELECT count(*) FROM stream") == 1)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


async def test_a_round_that_took_long_is_followed_by_a_pause_that_has_an_end(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.sequencer.REST", 10**6)
    stop, projected = threading.Event(), threading.Event()
    thread = threading.Thread(target=Sequencer(database_url, stop, projected).run)
    thread.start()
    for count, name in enumerate(("a", "b"), start=1):
        project(db, await receive(database_url, [event(name)]), 0)
        projected.set()
        eventually(lambda count=count: database.value(db, "SELECT count(*) FROM stream") == count)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


async def test_the_sequencer_waits_for_postgresql_and_says_so_once(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    stop, projected = threading.Event(), threading.Event()
    thread = threading.Thread(target=Sequencer(database_url, stop, projected).run)
    with capture_logs() as logged:
        db.execute("ALTER TABLE unsequenced RENAME TO hidden")
        thread.start()
        eventually(lambda: [each["event"] for each in logged] == ["sequencer waits"])
        projected.set()
        eventually(lambda: not projected.is_set())
        db.execute("ALTER TABLE hidden RENAME TO unsequenced")
        eventually(lambda: [each["event"] for each in logged] == ["sequencer waits", "sequencer goes on"])
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
