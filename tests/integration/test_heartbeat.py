"""Heartbeats of workers, by the clock of the database, and the history of the counters that they keep by the way."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import psycopg
import pytest
from given import event, receive, until_blocked
from servers import eventually
from structlog.testing import capture_logs

from chronicle import database, history
from chronicle.errors import DatabaseAway
from command.watch import Watch
from projector import heartbeat
from projector.heartbeat import Heartbeat
from projector.turn import Turn
from projector.worker import Worker

AGE = "SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM workers WHERE worker_id = %s"
SEEN = "SELECT seen_at FROM workers WHERE worker_id = 0"


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and samples whenever it could."""
    monkeypatch.setattr(heartbeat, "SECONDS", 0.0)
    monkeypatch.setattr(history, "SECONDS", 0.0)


def workers(db: psycopg.Connection[Any]) -> dict[int, str]:
    return dict(db.execute("SELECT worker_id, state FROM workers ORDER BY worker_id").fetchall())


async def test_a_worker_beats_from_its_loop_and_says_goodbye(
    database_url: str, queue: str, db: psycopg.Connection[Any], always_due: None
) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=Worker(database_url, queue, stop).run)
    thread.start()
    try:
        eventually(lambda: workers(db) == {0: "idle"})
        [process, started, projected] = db.execute("SELECT process, started_at, projected_at FROM workers").fetchone()
        assert process.endswith(f":{os.getpid()}")
        assert projected is None
        seen = database.value(db, SEEN)
        await receive(database_url, [event("a")])
        eventually(lambda: database.value(db, "SELECT projected_at > seen_at - interval '1 minute' FROM workers"))
        assert database.value(db, SEEN) > seen
        assert database.value(db, "SELECT started_at FROM workers") == started
        assert 0 <= database.value(db, AGE, [0]) < 2
    finally:
        stop.set()
        thread.join()
    assert workers(db) == {}


async def test_a_worker_that_hangs_in_a_projection_beats_no_longer(
    database_url: str, queue: str, db: psycopg.Connection[Any], always_due: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    with database.connect(database_url, "holder") as holder, holder.transaction():
        holder.execute("LOCK TABLE processed_events IN EXCLUSIVE MODE")
        thread = threading.Thread(target=Worker(database_url, queue, stop).run)
        thread.start()
        try:
            await receive(database_url, [event("a")])
            until_blocked(database_url, "projector")
            seen = database.value(db, SEEN)
            eventually(lambda: database.value(db, AGE, [0]) > 0.5)
            assert database.value(db, SEEN) == seen
        finally:
            stop.set()
            holder.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            thread.join()


def test_a_worker_that_waits_for_its_turn_beats(
    database_url: str, queue: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.02)
    stop, turn = threading.Event(), Turn()
    with turn.own(stop.set):
        thread = threading.Thread(target=Worker(database_url, queue, stop, turn).run)
        thread.start()
        for _ in range(3):
            seen = database.value(db, SEEN)
            eventually(lambda seen=seen: database.value(db, SEEN) != seen)
        stop.set()
    thread.join()


def test_beats_are_seldom(database_url: str, db: psycopg.Connection[Any]) -> None:
    beats = Heartbeat(keeps_history=False)
    beats.beat(db, 0, "idle")
    seen = database.value(db, SEEN)
    beats.beat(db, 0, "busy")
    assert database.value(db, SEEN) == seen
    beats.beat(db, 1, "busy")
    assert workers(db) == {1: "busy"}


def test_a_worker_under_another_number_leaves_no_row_behind_and_old_ones_go(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute(
        "INSERT INTO workers SELECT n, 'other:1', now(), now() - make_interval(mins => n), 'idle'"
        " FROM unnest('{5,59,61,90}'::int[]) AS n"
    )
    beats = Heartbeat(keeps_history=False)
    beats.beat(db, 90, "idle")
    assert workers(db) == {5: "idle", 59: "idle", 90: "idle"}
    beats.beat(db, 7, "busy")
    assert workers(db) == {5: "idle", 7: "busy", 59: "idle"}
    db.execute("UPDATE workers SET process = 'other:1' WHERE worker_id = 7")
    beats.beat(db, 8, "busy")
    assert workers(db) == {5: "idle", 7: "busy", 8: "busy", 59: "idle"}
    beats.stop(db)
    assert workers(db).keys() == {5, 7, 59}


def test_a_goodbye_takes_no_row_that_is_another_processs_by_now(database_url: str, db: psycopg.Connection[Any]) -> None:
    beats = Heartbeat(keeps_history=False)
    beats.beat(db, 0, "idle")
    db.execute("UPDATE workers SET process = 'other:1'")
    beats.stop(db)
    assert workers(db) == {0: "idle"}


def test_a_database_that_is_away_is_said_as_such(database_url: str) -> None:
    with database.connect(database_url, "projector") as connection:
        connection.close()
        with pytest.raises(DatabaseAway):
            Heartbeat(keeps_history=False).beat(connection, 0, "idle")


MINUTES = "SELECT minute, received, queued, processed, dropped, failed, conflicts FROM history ORDER BY minute"


async def test_history_has_the_counters_of_this_minute_and_of_a_day(
    database_url: str, db: psycopg.Connection[Any], worker: Worker
) -> None:
    db.execute(
        "INSERT INTO history SELECT date_trunc('minute', now()) - make_interval(hours => n), n, n, n, n, n, n"
        " FROM unnest('{24,25,26,1000}'::int[]) AS n"
    )
    db.execute("UPDATE history SET minute = minute - interval '1 minute' WHERE received = 25")
    db.execute(history.SAMPLE)
    assert [row[1] for row in db.execute(MINUTES)] == [24, 0, 0]  # the minute before, which nobody saw, and this one
    await receive(database_url, [event("a"), event("a"), event("a", payload={"n": 1})], [event("b")])
    eventually(lambda: worker.run_once() or database.value(db, "SELECT count(*) = 0 FROM outbox"))
    db.execute(history.SAMPLE)
    *_, last = db.execute(MINUTES).fetchall()
    assert last[1:] == (4, 4, 2, 2, 0, 1)
    assert database.value(db, "SELECT now() - max(minute) < interval '2 minutes' FROM history")
    assert database.value(db, "SELECT count(*) FROM history") <= 4


async def test_a_database_that_refuses_to_be_looked_at_makes_the_service_not_ready_until_it_does_no_more(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command.watch.INTERVAL_SECONDS", 0.01)
    for lane in (1, 2):
        db.execute("INSERT INTO stats (topic, lane, received) VALUES ('much', %s, 2::numeric ^ 62)", [lane])
    watch = Watch(database_url, lambda _: None)
    looking = asyncio.create_task(watch.run())

    def problem() -> str:
        try:
            watch.check()
        except DatabaseAway as error:
            return str(error)
        return ""

    await asyncio.to_thread(eventually, lambda: "PostgreSQL refuses" in problem())
    db.execute("DELETE FROM stats")
    await asyncio.to_thread(eventually, lambda: not problem())
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_nothing_but_the_history_waits_for_its_table(
    database_url: str, queue: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, always_due: None
) -> None:
    monkeypatch.setattr("command.watch.INTERVAL_SECONDS", 0.01)
    looks: list[int] = []
    watch = Watch(database_url, looks.append)
    worker = Worker(database_url, queue, threading.Event(), keeps_history=True)
    looking = asyncio.create_task(watch.run())
    with capture_logs() as logged:
        with db.transaction():
            db.execute("LOCK TABLE history")
            await asyncio.to_thread(worker.run_once)
            await asyncio.to_thread(eventually, lambda: len(looks) > 2)
            watch.check()
        db.execute("ALTER TABLE history ADD CONSTRAINT no CHECK (queued < 0) NOT VALID")
        await asyncio.to_thread(worker.run_once)
        seen = len(looks)
        await asyncio.to_thread(eventually, lambda: len(looks) > seen + 2)
        watch.check()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    worker.close()
    errors = [entry["error"] for entry in logged if entry["event"] == history.NOT_KEPT]
    for why in ("lock timeout", "check constraint"):
        assert sum(why in error for error in errors) >= 2  # of both


async def test_history_goes_on_with_either_side_alone_and_after_a_restart(
    database_url: str, queue: str, db: psycopg.Connection[Any], always_due: None
) -> None:
    await receive(database_url, [event("a")])
    watch = asyncio.create_task(Watch(database_url, lambda _: None).run())
    counted = "SELECT count(*) FROM history WHERE received = 1"
    await asyncio.to_thread(eventually, lambda: database.value(db, counted))
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    db.execute("UPDATE history SET minute = minute - interval '1 hour'")
    earlier = db.execute(MINUTES).fetchall()
    for keeps in (False, True):
        worker = Worker(database_url, queue, threading.Event(), keeps_history=keeps)
        deadline = time.monotonic() + 10
        while database.value(db, "SELECT count(*) FROM outbox") and time.monotonic() < deadline:
            worker.run_once()
        worker.run_once()
        worker.close()
        kept = db.execute(MINUTES).fetchall()
        assert kept[: len(earlier)] == earlier
        assert (len(kept) > len(earlier)) == keeps
    assert (earlier[-1][3], kept[-1][3]) == (0, 1)
