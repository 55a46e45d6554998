"""Events that failed: shown, tried again, and recorded as facts like any other; a batch that kills its worker."""

from __future__ import annotations

import os
import re
import threading
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic.config import Config
from given import event, receive, until_blocked
from servers import eventually

from alembic import command
from chronicle import database, rebuild, schema, verify
from chronicle.errors import DatabaseAway
from chronicle.ledger import new_batch_id
from command.dispatch import Dispatcher
from projector import failed, outbox
from projector.projection import project, project_apart
from projector.worker import APART, NO_MORE, Worker

POISON = "ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id NOT LIKE 'poison%') NOT VALID"
CURE = "ALTER TABLE processed_events DROP CONSTRAINT poison"


async def poison(url: str, db: psycopg.Connection[Any]) -> None:
    db.execute(POISON)
    same, other = event("a"), event("poison-1", payload={"n": 2})
    batches = await receive(url, [event("a"), event("poison-1"), event("poison-2", topic="u")], [same, other])
    for batch_id in batches:
        project_apart(db, batch_id, 7)  # who tries again has another number


def broken(url: str) -> list[str]:
    return [name for _, name, violations in verify.run(url) if violations]


async def test_failed_events_are_shown_with_their_errors(
    database_url: str, db: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await poison(database_url, db)
    failed.show(database_url, None, None)
    shown = capsys.readouterr().out
    assert "3 failed events" in shown
    assert "poison-2" in shown
    failed.show(database_url, "u", None)
    assert "1 failed events" in capsys.readouterr().out


async def test_a_failed_event_is_shown_as_it_is_and_harmless(
    database_url: str, db: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    db.execute(POISON)
    [batch_id] = await receive(database_url, [event("poison-:rocket:\x1b[31m")])
    project_apart(db, batch_id, 0)
    failed.show(database_url, None, None)
    cells = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    columns = ["".join(cell.strip() for cell in column) for column in zip(*cells, strict=True)]
    assert columns[1] == "poison-:rocket:�[31m"
    assert columns[2] == str(batch_id)


async def test_a_retry_while_the_cause_is_there_changes_nothing(database_url: str, db: psycopg.Connection[Any]) -> None:
    await poison(database_url, db)
    facts = db.execute("SELECT * FROM facts").fetchall()
    assert not failed.retry(database_url, None, None)
    assert db.execute("SELECT * FROM facts").fetchall() == facts
    assert db.execute("SELECT count(*) FROM failed_events").fetchone() == (3,)
    assert broken(database_url) == []


async def test_a_retry_that_succeeds_is_recorded_and_counted(database_url: str, db: psycopg.Connection[Any]) -> None:
    await poison(database_url, db)
    db.execute(CURE)
    assert failed.retry(database_url, None, None)
    assert db.execute("SELECT count(*) FROM failed_events").fetchone() == (0,)
    assert db.execute("SELECT sum(received), sum(processed), sum(dropped), sum(failed) FROM stats").fetchone() == (
        5,
        3,
        2,
        0,
    )
    assert db.execute("SELECT DISTINCT failed FROM stats").fetchall() == [(0,)]
    trail = db.execute(
        "SELECT action, reason FROM audit_log WHERE event_id = 'poison-1' AND worker_id IS NOT NULL ORDER BY created_at"
    ).fetchall()
    assert [row[0] for row in trail] == ["FAILED", "FAILED", "PROCESSED", "DROPPED"]
    assert trail[3] == ("DROPPED", "conflict")
    assert broken(database_url) == []


async def test_retries_of_an_older_version_are_taken_off_who_failed(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    await poison(database_url, db)
    db.execute(CURE)
    failed.retry(database_url, None, None)
    counted = db.execute("SELECT * FROM stats ORDER BY topic, lane").fetchall()
    config = Config()
    config.set_main_option("script_location", str(schema.scripts()))
    engine = sqlalchemy.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as config.attributes["connection"]:
        command.downgrade(config, "0008")
    engine.dispose()
    assert database.value(db, "SELECT min(failed) FROM stats") == -2
    schema.migrate(database_url)
    assert db.execute("SELECT * FROM stats ORDER BY topic, lane").fetchall() == counted


async def test_neighbours_are_tried_at_once(database_url: str, db: psycopg.Connection[Any]) -> None:
    """A try unfolds the whole batch: ten thousand events, each for itself, took more than a minute."""
    db.execute(POISON)
    names = ["poison-1", "poison-2", "a", "poison-3", "poison-4", "poison-5", "b", "poison-6"]
    [batch_id] = await receive(database_url, [event(name) for name in names])
    project_apart(db, batch_id, 0)
    db.execute(CURE)
    assert failed.retry(database_url, None, None)
    tries = db.execute(
        "SELECT array_agg(event_id ORDER BY position) FROM processed_events WHERE event_id LIKE 'poison%' "
        "GROUP BY xmin::text ORDER BY 1"
    ).fetchall()
    assert tries == [(["poison-1", "poison-2"],), (["poison-3", "poison-4", "poison-5"],), (["poison-6"],)]
    assert broken(database_url) == []


async def test_one_event_can_be_tried_alone(database_url: str, db: psycopg.Connection[Any]) -> None:
    await poison(database_url, db)
    db.execute(CURE)
    assert failed.retry(database_url, "u", "poison-2")
    assert db.execute("SELECT DISTINCT event_id FROM failed_events").fetchall() == [("poison-1",)]
    assert failed.retry(database_url, None, None)
    assert broken(database_url) == []


async def test_two_retries_at_once_store_each_event_once(database_url: str, db: psycopg.Connection[Any]) -> None:
    await poison(database_url, db)
    db.execute(CURE)
    threads = [threading.Thread(target=failed.retry, args=(database_url, None, None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.execute("SELECT sum(processed), sum(dropped), sum(failed) FROM stats").fetchone() == (3, 2, 0)
    assert broken(database_url) == []


async def test_two_retries_of_a_batch_hold_up_no_projection(database_url: str, db: psycopg.Connection[Any]) -> None:
    await poison(database_url, db)
    db.execute(CURE)
    threads = [threading.Thread(target=failed.retry, args=(database_url, topic, None)) for topic in ("u", "t")]
    with database.connect(database_url, "holder") as holder, holder.transaction(force_rollback=True):
        holder.execute("INSERT INTO processed_events VALUES ('poison-2', 'u', '', '{}', now(), gen_random_uuid(), 1)")
        for blocked, thread in enumerate(threads, start=1):
            thread.start()
            until_blocked(database_url, "failed", blocked)
        [batch_id] = await receive(database_url, [event("new")])
        db.execute("SET lock_timeout = '5s'")
        assert project(db, [batch_id], 0) == [batch_id]
    for thread in threads:
        thread.join()
    assert db.execute("SELECT count(*) FROM failed_events").fetchone() == (0,)
    assert broken(database_url) == []


async def test_a_rebuild_knows_what_was_retried(database_url: str, db: psycopg.Connection[Any]) -> None:
    await poison(database_url, db)
    db.execute(CURE)
    assert failed.retry(database_url, "u", None)
    for table in ("processed_events", "failed_events", "stats", "dropped_events", "fact_topics"):
        db.execute(f"DELETE FROM {table}")
    rebuild.rebuild(database_url)
    assert db.execute("SELECT DISTINCT event_id FROM failed_events").fetchall() == [("poison-1",)]
    assert broken(database_url) == []


KILLER = """
CREATE FUNCTION killer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF NEW.event_id = 'killer' THEN {}; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER killer BEFORE INSERT ON processed_events FOR EACH ROW EXECUTE FUNCTION killer()
"""
ENDS_THE_SESSION = "PERFORM pg_terminate_backend(pg_backend_pid())"
INSERT = "INSERT ON processed_events"
TAKES_TOO_LONG = "RAISE EXCEPTION USING ERRCODE = 'query_canceled', MESSAGE = 'statement timeout'"


@pytest.mark.parametrize("each_time", [ENDS_THE_SESSION, TAKES_TOO_LONG])
async def test_a_batch_that_ends_its_workers_session_or_takes_too_long_each_time_is_given_up(
    each_time: str, database_url: str, queue: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "OVERDUE_SECONDS", 0.02)
    db.execute(KILLER.format(each_time))
    stop = threading.Event()
    workers = [threading.Thread(target=Worker(database_url, queue, stop).run) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        batch_ids = await receive(database_url, [event("a")], [event("killer"), event("b")], [event("c")])
        dispatcher = Dispatcher(database_url, queue)
        await dispatcher.send(batch_ids)
        await dispatcher.close()
        eventually(lambda: database.value(db, "SELECT count(*) FROM processed_events") == 2)
        eventually(lambda: database.value(db, "SELECT count(*) FROM outbox") == 0, timeout=60)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    errors = db.execute("SELECT event_id, error FROM failed_events ORDER BY event_id").fetchall()
    assert [row[0] for row in errors] == ["b", "killer"]
    attempts = int(re.findall(r"(\d+) attempts", errors[0][1])[0])
    assert NO_MORE <= attempts <= NO_MORE + len(workers)  # who find it at the same time count a try each
    assert broken(database_url) == []


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        ("ALTER TABLE stats ADD CONSTRAINT no CHECK (processed = 0)", "ALTER TABLE stats DROP CONSTRAINT no"),
        (f"REVOKE {INSERT} FROM chronicle_projector", f"GRANT {INSERT} TO chronicle_projector"),
        (KILLER.format("PERFORM nowhere()").replace("'killer'", "'a'"), "DROP TRIGGER killer ON processed_events"),
    ],
)
async def test_a_batch_that_is_refused_for_long_by_no_fault_of_its_events_is_projected_once_it_no_longer_is(
    refuse: str, allow: str, database_url: str, db: psycopg.Connection[Any]
) -> None:
    await receive(database_url, [event("a")])
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
    db.execute(refuse)
    worker = Worker(database_url, "redis://127.0.0.1:1/0", threading.Event())
    for _ in range(NO_MORE + 1):
        assert not worker.run_once()  # or, without Redis, it would try again without a pause
    db.execute(allow)
    worker.run_once()
    worker.close()
    assert db.execute("SELECT sum(processed), sum(failed) FROM stats").fetchone() == (1, 0)
    assert broken(database_url) == []


async def test_an_event_that_is_too_long_for_an_index_fails_alone(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    """psycopg has the same class for this as for a lost connection."""
    db.execute("CREATE INDEX ON processed_events ((payload ->> 'message'))")
    too_long = event("too long", payload={"message": os.urandom(8000).hex()})
    await receive(database_url, [event("a")], [event("b"), too_long])
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
    worker = Worker(database_url, "redis://127.0.0.1:1/0", threading.Event())
    for _ in range(APART):
        worker.run_once()
    worker.close()
    assert db.execute("SELECT event_id FROM processed_events ORDER BY 1").fetchall() == [("a",), ("b",)]
    [(failed_event, error)] = db.execute("SELECT event_id, error FROM failed_events").fetchall()
    assert failed_event == "too long"
    assert error.startswith("index row")
    assert broken(database_url) == []


def test_batches_that_came_back_repeatedly_are_tried_last_each_for_itself_and_in_any_order() -> None:
    back, new, again, once = [outbox.Batch(new_batch_id(), 1, attempts, 0.0) for attempts in (2, 0, 3, 1)]
    tries = [list(outbox.grouped([back, new, again, once])) for _ in range(100)]
    assert {len(groups) for groups in tries} == {3}
    assert all(groups[0] == [new, once] for groups in tries)
    assert {groups[1][0] for groups in tries} == {groups[2][0] for groups in tries} == {back, again}


async def test_many_batches_that_come_back_hide_no_new_one(database_url: str, db: psycopg.Connection[Any]) -> None:
    db.execute(
        "INSERT INTO outbox SELECT gen_random_uuid(), now() - interval '1 hour', 1, 2 FROM generate_series(1, 1000)"
    )
    new = new_batch_id()
    db.execute("INSERT INTO outbox VALUES (%s, now() - interval '1 minute', 1)", [new])
    eventually(lambda: new in outbox.overdue(db, []), every=0)


async def test_a_lock_that_is_held_for_long_counts_as_no_attempt(
    worker: Worker, database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.SESSION, "lock_timeout", "100ms")
    await receive(database_url, [event("a")])
    with database.connect(database_url, "holder") as holder, holder.transaction():
        holder.execute("LOCK TABLE processed_events IN ACCESS EXCLUSIVE MODE")

        def times_out() -> bool:
            try:
                worker.run_once()
            except DatabaseAway as error:
                return "lock timeout" in str(error)
            return False

        eventually(times_out)
    assert db.execute("SELECT attempts FROM outbox").fetchall() == [(0,)]
