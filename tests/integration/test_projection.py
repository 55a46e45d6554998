"""project: exactly once per (topic, event_id), whatever comes twice, late, at once or in another order."""

from __future__ import annotations

import random
import threading
from typing import Any
from uuid import UUID

import psycopg
import pytest
from given import actions, event, receive, until_blocked

from chronicle import database, verify
from chronicle.ledger import RECORD_QUEUED
from projector.projection import SESSION, project, project_apart

PLANS = "SELECT sum(custom_plans)::int, sum(generic_plans)::int FROM pg_prepared_statements"


async def test_a_projection_is_planned_once(database_url: str) -> None:
    batch_ids = await receive(database_url, *([event(f"{n}"), event("same")] for n in range(3)))
    with database.connect(database_url, "projector", **SESSION) as worker:
        for batch_id in batch_ids:
            assert project(worker, [batch_id], 0) == [batch_id]
        custom, generic = worker.execute(PLANS).fetchall()[0]
    assert (custom, generic > 0) == (0, True)


async def test_the_first_sighting_is_stored_and_later_ones_are_dropped(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    same, other = event("a"), event("a", payload={"message": "other"})
    [batch_id] = await receive(database_url, [event("a"), event("b"), same, other, event("a", topic="u")])
    assert project(db, [batch_id], 0) == [batch_id]
    assert db.execute("SELECT topic, event_id, position FROM processed_events ORDER BY position").fetchall() == [
        ("t", "a", 1),
        ("t", "b", 2),
        ("u", "a", 5),
    ]
    assert db.execute("SELECT event_id, position, reason FROM dropped_events ORDER BY position").fetchall() == [
        ("a", 3, "duplicate"),
        ("a", 4, "conflict"),
    ]
    assert db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


async def test_of_batches_that_are_projected_together_the_first_wins(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    batches = await receive(database_url, *[[event("a")]] * 6)
    project(db, batches[::-1], 0)
    assert db.execute("SELECT batch_id FROM processed_events").fetchall() == [(min(batches),)]


async def test_payloads_are_compared_by_what_they_mean(database_url: str, db: psycopg.Connection[Any]) -> None:
    first, turned = event("a", payload={"x": 1, "y": [2]}), event("a", payload={"y": [2.0], "x": 1.0})
    batches = await receive(database_url, [first], [turned], [event("a", payload={"x": 1, "y": [2, 3]})])
    for batch_id in batches:
        project(db, [batch_id], 0)
    reasons = db.execute("SELECT reason FROM dropped_events ORDER BY batch_id").fetchall()
    assert reasons == [("duplicate",), ("conflict",)]


async def test_a_large_payload_that_many_conflict_with_is_read_once(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    """Read with each of them, it took longer than a statement may, and the batch stayed in flight for ever."""
    large = {"items": [{"sku": f"A-{number}", "price": 19.99} for number in range(8000)]}
    turned = {"items": [{"price": 19.990, "sku": f"A-{number}"} for number in range(8000)]}
    others = [event("a", payload={"message": f"{number}"}) for number in range(9997)]
    batch_ids = await receive(database_url, [event("a", payload=large), event("a", payload=turned), *others])
    with database.connect(database_url, "projector") as session:
        assert project(session, batch_ids, 0) == batch_ids
    reasons = db.execute("SELECT reason, count(*) FROM dropped_events GROUP BY reason ORDER BY reason").fetchall()
    assert reasons == [("conflict", 9997), ("duplicate", 1)]
    assert not [name for _, name, violations in verify.run(database_url) if violations]


async def test_every_event_has_each_fact_once_and_in_order_of_time(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    batch_ids = await receive(database_url, [event("a"), event("b")], [event("b"), event("c")])
    project(db, batch_ids, 3)
    assert sorted(actions(db)) == sorted(
        [(e, a, None) for e in "abbc" for a in ("RECEIVED", "QUEUED")]
        + [(e, "PROCESSED", None) for e in "abc"]
        + [("b", "DROPPED", "duplicate")]
    )
    per_sighting = db.execute(
        "SELECT array_agg(action ORDER BY created_at, id), bool_and(worker_id IS NOT DISTINCT FROM "
        "CASE WHEN action IN ('PROCESSED', 'DROPPED') THEN 3 END) FROM audit_log GROUP BY batch_id, position"
    ).fetchall()
    assert all(row[0][:2] == ["RECEIVED", "QUEUED"] and row[1] for row in per_sighting)


async def test_a_batch_is_projected_once_however_often_it_is_named(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    [batch_id] = await receive(database_url, [event("a")])
    assert project(db, [batch_id, batch_id], 0) == [batch_id]
    assert project(db, [batch_id], 1) == []
    assert db.execute("SELECT sum(processed), sum(dropped), sum(queued) FROM stats").fetchone() == (1, 0, 1)


async def test_a_claim_waits_for_who_holds_the_batch(database_url: str, db: psycopg.Connection[Any]) -> None:
    """And takes it where they give it up: no row at once would say that it was projected already."""
    [batch_id] = await receive(database_url, [event("a")])
    projected: list[UUID] = []

    def claim() -> None:
        with database.connect(database_url, "waiter") as connection:
            projected.extend(project(connection, [batch_id], 1))

    thread = threading.Thread(target=claim)
    with db.transaction(force_rollback=True):
        db.execute("DELETE FROM outbox")
        thread.start()
        until_blocked(database_url, "waiter")
    thread.join()
    assert projected == [batch_id]


async def test_counters_add_up_by_topic_and_worker(database_url: str, db: psycopg.Connection[Any]) -> None:
    batch_ids = await receive(database_url, [event("a"), event("a")], [event("a"), event("b", topic="u")])
    project(db, batch_ids[:1], 0)
    project(db, batch_ids[1:], 1)
    rows = db.execute("SELECT topic, lane, processed, dropped FROM stats WHERE lane >= 0 ORDER BY 1, 2").fetchall()
    assert rows == [("t", 0, 1, 1), ("t", 1, 0, 1), ("u", 1, 1, 0)]


async def test_workers_at_once_store_each_event_once_and_never_deadlock(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    keys = [f"k{n}" for n in range(300)]
    batches = [[event(key, payload={"from": n % 3}) for key in random.sample(keys, 300)] for n in range(40)]
    batch_ids = await receive(database_url, *batches)
    failures: list[Exception] = []

    def work(worker_id: int) -> None:
        mine = random.Random(worker_id).sample(batch_ids, len(batch_ids))
        try:
            with database.connect(database_url, "test") as connection:
                for start in range(0, len(mine), 4):
                    project(connection, mine[start : start + 4], worker_id)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert db.execute("SELECT count(*) FROM processed_events").fetchone() == (300,)
    assert db.execute("SELECT count(*) FROM dropped_events").fetchone() == (300 * 39,)
    assert db.execute("SELECT sum(processed), sum(dropped) FROM stats").fetchone() == (300, 300 * 39)
    deadlocks = db.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert deadlocks == (0,)


async def test_of_two_projections_the_one_behind_waits_at_the_end_of_its_work(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    """It inserts first what only it has, whatever the order of keys; who shares nothing waits for nobody."""
    [ahead] = await receive(database_url, [event("a"), event("m", payload={"message": "ahead"})])
    [behind, apart] = await receive(database_url, [event("b"), event("m"), event("z")], [event("c"), event("d")])

    def project_behind() -> None:
        with database.connect(database_url, "behind") as connection:
            project(connection, [behind], 1)

    thread = threading.Thread(target=project_behind)
    with database.connect(database_url, "test", lock_timeout="100ms") as other, db.transaction():
        project(db, [ahead], 0)
        thread.start()
        until_blocked(database_url, "behind")
        with pytest.raises(psycopg.errors.LockNotAvailable):  # somebody is inserting it
            other.execute(
                "INSERT INTO processed_events SELECT 'z', topic, source, payload, timestamp, batch_id, position "
                "FROM received_events WHERE event_id = 'b'"
            )
        assert project(other, [apart], 2) == [apart]
    thread.join()
    assert db.execute("SELECT event_id, batch_id FROM processed_events ORDER BY 1").fetchall() == [
        ("a", ahead),
        ("b", behind),
        ("c", apart),
        ("d", apart),
        ("m", ahead),
        ("z", behind),
    ]
    assert db.execute("SELECT event_id, batch_id, reason FROM dropped_events").fetchall() == [("m", behind, "conflict")]


async def test_a_key_that_comes_often_here_and_there_is_no_pair_for_each(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    """It ends within the time that a session has for a statement, where 64 million pairs take many times as long."""
    ahead, behind = await receive(database_url, [event("a")] * 8000, [event("a")] * 8000)
    projected: list[UUID] = []

    def project_behind() -> None:
        with database.connect(database_url, "behind", **SESSION) as connection:
            projected.extend(project(connection, [behind], 1))

    thread = threading.Thread(target=project_behind)
    with db.transaction():
        project(db, [ahead], 0)
        thread.start()
        until_blocked(database_url, "behind")
    thread.join()
    assert projected == [behind]
    assert db.execute("SELECT batch_id, count(*) FROM dropped_events GROUP BY 1 ORDER BY 2").fetchall() == [
        (ahead, 7999),
        (behind, 8000),
    ]


async def test_who_is_behind_one_that_gives_up_stores_what_they_share(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    ahead, behind = await receive(database_url, [event("a"), event("m")], [event("m"), event("z")])
    projected: list[UUID] = []

    def project_behind() -> None:
        with database.connect(database_url, "behind") as connection:
            projected.extend(project(connection, [behind], 1))

    thread = threading.Thread(target=project_behind)
    with db.transaction(force_rollback=True):
        project(db, [ahead], 0)
        thread.start()
        until_blocked(database_url, "behind")
    thread.join()
    assert projected == [behind]
    assert project(db, [ahead], 0) == [ahead]
    assert db.execute("SELECT event_id, batch_id FROM processed_events ORDER BY 1").fetchall() == [
        ("a", ahead),
        ("m", behind),
        ("z", behind),
    ]


async def test_the_same_new_keys_in_another_order_at_the_same_moment_never_deadlock(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    workers, rounds = 4, 6
    keys = [[f"{n}-{key}" for key in range(500)] for n in range(rounds) for _ in range(workers)]
    batch_ids = await receive(database_url, *[[event(key) for key in random.sample(k, len(k))] for k in keys])
    moment = threading.Barrier(workers, timeout=30)
    failures: list[Exception] = []

    def work(worker_id: int) -> None:
        try:
            with database.connect(database_url, "test") as connection:
                for batch_id in batch_ids[worker_id::workers]:
                    moment.wait()
                    project(connection, [batch_id], worker_id)
        except (psycopg.Error, threading.BrokenBarrierError) as error:
            failures.append(error)
            moment.abort()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


async def test_a_loser_sees_what_the_winner_stored_after_it_began(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    """The winner commits while the loser waits for its key: invisible to the loser's first statement."""
    winner, loser = await receive(database_url, [event("a")], [event("a", payload={"message": "other"})])
    done = threading.Event()

    def lose() -> None:
        with database.connect(database_url, "loser") as connection:
            project(connection, [loser], 1)
        done.set()

    with db.transaction():
        project(db, [winner], 0)
        thread = threading.Thread(target=lose)
        thread.start()
        until_blocked(database_url, "loser")
        assert not done.is_set()
    thread.join()
    assert db.execute("SELECT reason FROM dropped_events").fetchall() == [("conflict",)]


async def test_nothing_is_stored_before_it_is_counted(database_url: str, db: psycopg.Connection[Any]) -> None:
    first, second = await receive(database_url, [event("a")], [event("b")])
    db.execute(RECORD_QUEUED, {"batch_ids": [first, second], "lane": -1})
    project(db, [first], 0)

    def count() -> None:
        with database.connect(database_url, "loser") as connection:
            project(connection, [second], 0)

    with db.transaction():
        db.execute("SELECT FROM stats WHERE lane = 0 FOR UPDATE")
        thread = threading.Thread(target=count)
        thread.start()
        until_blocked(database_url, "loser")
        assert db.execute("SELECT event_id FROM processed_events").fetchall() == [("a",)]
    thread.join()


POISON = """
CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.event_id LIKE 'poison%' THEN
        RAISE EXCEPTION 'refused: %', NEW.event_id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER poison BEFORE INSERT ON processed_events FOR EACH ROW EXECUTE FUNCTION poison()
"""


async def test_what_postgresql_refuses_fails_alone(database_url: str, db: psycopg.Connection[Any]) -> None:
    db.execute(POISON)
    events = [event("a"), event("poison-1"), event("b"), event("a"), event("poison-2", topic="u"), event("c")]
    [batch_id] = await receive(database_url, events)
    errors = project_apart(db, batch_id, 0)
    assert sorted(errors) == [2, 5]
    assert db.execute("SELECT event_id FROM processed_events ORDER BY 1").fetchall() == [("a",), ("b",), ("c",)]
    failed = db.execute(
        "SELECT event_id, position, error LIKE 'refused: poison%' FROM failed_events ORDER BY 1"
    ).fetchall()
    assert failed == [("poison-1", 2, True), ("poison-2", 5, True)]
    outcomes = db.execute(
        "SELECT event_id, action, reason FROM audit_log WHERE worker_id = 0 ORDER BY position"
    ).fetchall()
    assert [row[:2] for row in outcomes] == [
        ("a", "PROCESSED"),
        ("poison-1", "FAILED"),
        ("b", "PROCESSED"),
        ("a", "DROPPED"),
        ("poison-2", "FAILED"),
        ("c", "PROCESSED"),
    ]
    assert outcomes[1][2].startswith("refused: poison-1")
    assert db.execute("SELECT sum(processed), sum(dropped), sum(failed) FROM stats").fetchone() == (3, 1, 2)
