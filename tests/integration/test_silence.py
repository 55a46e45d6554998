"""A session that PostgreSQL no longer answers, while it answers all others: it is given up, and another is taken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any

import psycopg
import pytest
from given import WayTo, columns, event, receive
from servers import eventually, standing_still

from chronicle import database, verify
from chronicle.errors import DatabaseAway
from chronicle.settings import Settings
from command.receive import Receiver
from command.watch import Watch
from projector.worker import Worker
from tests.chaos.proxy import committed, cut_answers

WRITERS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"


def silent(db: psycopg.Connection[Any], service: str) -> AbstractContextManager[None]:
    """All present sessions of the service stand still meanwhile; those that come later do not."""
    pids = [pid for (pid,) in db.execute(BACKENDS, [f"chronicle-{service}"])]
    assert pids
    return standing_still(pids)


async def test_a_commit_that_is_not_answered_is_given_up_and_others_are_made(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command.receive.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("command.receive.PATIENCE_SECONDS", 0.2)
    receiver = Receiver(database_url, Settings(), lambda *_: None)
    running = asyncio.create_task(receiver.run())
    await receiver.receive(columns(event("before")), 1, "r")
    with silent(db, "command"):
        with pytest.raises(DatabaseAway):
            async with asyncio.timeout(10):
                await receiver.receive(columns(event("unknown")), 1, "r")
        await asyncio.to_thread(eventually, lambda: database.value(db, WRITERS) > 1)
        await receiver.receive(columns(event("after")), 1, "r")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    eventually(lambda: received(db) in (["after", "before"], ["after", "before", "unknown"]))


def received(db: psycopg.Connection[Any]) -> list[str]:
    return [event_id for (event_id,) in db.execute("SELECT event_id FROM received_events ORDER BY 1")]


async def test_a_watch_that_is_not_answered_looks_again(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command.watch.STALE_SECONDS", 0.5)
    monkeypatch.setattr("command.watch.INTERVAL_SECONDS", 0.01)
    looks = 0

    def looked(_in_flight: int) -> None:
        nonlocal looks
        looks += 1

    watching = asyncio.create_task(Watch(database_url, looked).run())
    await asyncio.to_thread(eventually, lambda: looks > 0)
    with silent(db, "command"):
        seen = looks
        await asyncio.to_thread(eventually, lambda: looks > seen + 1)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(database.SESSION, "statement_timeout", "300ms")
    monkeypatch.setattr(database, "GRACE_SECONDS", 0.2)


async def test_a_worker_that_is_not_answered_takes_another_session(
    impatient: None, database_url: str, db: psycopg.Connection[Any]
) -> None:
    with closing(Worker(database_url, "redis://127.0.0.1:1/0", threading.Event())) as worker:
        worker.run_once()
        await receive(database_url, [event("a")])
        db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
        with silent(db, "projector"):
            with pytest.raises(DatabaseAway, match=r"no answer to a statement for 0\.5 s"):
                worker.run_once()
            worker.reconnect()
            assert worker.run_once()
    assert [name for _, name, violations in verify.run(database_url) if violations] == []


def test_what_a_session_that_is_given_up_may_wait_for_is_ended(database_url: str, db: psycopg.Connection[Any]) -> None:
    connection = database.connect(database_url, "sleeper")
    connection.patience = 0.3
    with pytest.raises(psycopg.OperationalError, match="no answer"):
        connection.execute("SELECT pg_sleep(600)")
    assert connection.closed
    eventually(lambda: db.execute(BACKENDS, ["chronicle-sleeper"]).fetchall() == [])


async def test_what_a_session_of_an_event_loop_may_wait_for_is_ended(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    connection = await database.connect_async(database_url, "sleeper")
    connection.patience = 0.3
    with pytest.raises(psycopg.OperationalError, match="no answer"):
        await connection.execute("SELECT pg_sleep(600)")
    eventually(lambda: db.execute(BACKENDS, ["chronicle-sleeper"]).fetchall() == [])


def test_who_gives_statements_all_time_has_all_patience(database_url: str) -> None:
    with database.connect(database_url, "test", statement_timeout="0") as connection:
        assert connection.patience is None
    with database.connect(database_url, "test", statement_timeout="90s") as connection:
        assert connection.patience == 95


@pytest.mark.parametrize("sqlstate", ["22023", "XX002"])
async def test_a_commit_that_may_have_succeeded_is_not_made_again_under_other_ids_where_postgresql_refuses_it(
    sqlstate: str, way_to: WayTo, database_url: str, db: psycopg.Connection[Any]
) -> None:
    proxy, url = way_to(database_url)
    receiver = Receiver(url, Settings(), lambda *_: None)
    running = asyncio.create_task(receiver.run())
    await receiver.receive(columns(event("before")), 1, "r")
    proxy.rule = cut_answers(refusing_what_follows(db, sqlstate), times=1)
    requests = [receiver.receive(columns(event(name)), 1, "r") for name in ("a", "b")]
    answers = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseAway, DatabaseAway]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert received(db) == ["a", "b", "before"]


def refusing_what_follows(db: psycopg.Connection[Any], sqlstate: str) -> Callable[[bytes], bool]:
    """Finds the answer to a commit, and lets PostgreSQL refuse every other one from then on."""

    def found(chunk: bytes) -> bool:
        if committed(chunk):
            db.execute(REFUSE.format(sqlstate))
            return True
        return False

    return found


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '{}'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON facts FOR EACH ROW EXECUTE FUNCTION refuse()
"""
