"""rebuild replays the ledger's decisions; reset empties everything; both while others write."""

from __future__ import annotations

import random
import threading
from contextlib import nullcontext
from typing import Any

import psycopg
import pytest
from given import event, receive

from chronicle import broker, database, rebuild, verify
from chronicle.errors import BrokerAway, ChronicleError, SchemaBehind
from chronicle.ledger import READ_MODELS
from chronicle.replay import COLUMNS, LEDGER_SAYS
from projector import failed
from projector.projection import project, project_apart


def read_models(db: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    """Every row of every read model, as text."""
    return {
        table: db.execute(f"SELECT r::text FROM (SELECT {COLUMNS[table]} FROM {table}) AS r ORDER BY 1").fetchall()
        for table in READ_MODELS
    }


async def fill(url: str, db: psycopg.Connection[Any]) -> None:
    """Duplicates, conflicts, a failed event, a batch in flight; projected in another order than received."""
    db.execute("ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id <> 'poison')")
    batches = [
        [event(f"k{random.randrange(30)}", topic=f"t{random.randrange(3)}", payload={"n": random.randrange(2)})]
        * random.randrange(1, 4)
        for _ in range(40)
    ]
    *batch_ids, poison, _ = await receive(url, *batches, [event("x"), event("poison")], [event("in flight")])
    random.shuffle(batch_ids)
    for number, batch_id in enumerate(batch_ids):
        project(db, [batch_id], number % 3)
    project_apart(db, poison, 1)
    db.execute("ALTER TABLE processed_events DROP CONSTRAINT poison")


async def test_a_rebuild_gives_back_the_same_read_models(database_url: str, db: psycopg.Connection[Any]) -> None:
    await fill(database_url, db)
    before = read_models(db)
    assert all(before.values())
    for table in READ_MODELS:
        db.execute(f"DELETE FROM {table}")
    rebuild.rebuild(database_url)
    assert read_models(db) == before


def work(db: psycopg.Connection[Any], statement: str) -> int:
    """How many rows all steps of a statement's plan made or threw away."""

    def of(node: dict[str, Any]) -> int:
        thrown_away = sum(count for name, count in node.items() if name.startswith("Rows Removed"))
        own = (node["Actual Rows"] + thrown_away) * node["Actual Loops"]
        return round(own) + sum(map(of, node.get("Plans", ())))

    return of(database.value(db, f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")[0]["Plan"])


async def test_a_replay_takes_no_more_than_its_events(database_url: str, db: psycopg.Connection[Any]) -> None:
    # Without statistics, as after the first minute of a new system.
    batches = [[event(f"e{batch}-{number}") for number in range(500)] for batch in range(8)]
    batch_ids = await receive(database_url, *batches)
    project(db, batch_ids, 0)
    events = sum(map(len, batches))
    db.execute("CREATE SCHEMA chronicle_rebuild CREATE TABLE replayed (id bigint)")
    db.execute(rebuild.NOTE_FRESH_FACTS.encode(), {"since": "-infinity"})
    db.execute("DELETE FROM chronicle_rebuild.fresh WHERE batch_id <> %s", [batch_ids[0]])
    for table, says in LEDGER_SAYS.items():
        assert work(db, says.format(audit_log="audit_log")) < 20 * events, table
        assert work(db, says.format(audit_log=rebuild.FRESH)) < 20 * len(batches[0]), table


async def test_after_a_rebuild_the_schema_is_the_same(database_url: str, db: psycopg.Connection[Any]) -> None:
    names = """
        SELECT c.relname, obj_description(c.oid), c.reloptions::text FROM pg_class c
        WHERE relnamespace = 'public'::regnamespace ORDER BY 1
    """
    before = db.execute(names).fetchall()
    rebuild.rebuild(database_url)
    assert db.execute(names).fetchall() == before
    assert database.value(db, "SELECT to_regnamespace('chronicle_rebuild')") is None


async def test_a_rebuild_while_workers_project_loses_nothing(database_url: str, db: psycopg.Connection[Any]) -> None:
    await fill(database_url, db)
    stop = threading.Event()
    batch_ids = await receive(database_url, *[[event(f"n{n}"), event(f"k{n % 40}", topic="t0")] for n in range(400)])

    def work() -> None:
        with database.connect(database_url, "worker") as connection:
            while batch_ids and not stop.is_set():
                project(connection, [batch_ids.pop()], 7)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(2):
        rebuild.rebuild(database_url)
    stop.set()
    thread.join()
    assert [(name, violations) for _, name, violations in verify.run(database_url) if violations] == []


async def test_what_an_interrupted_rebuild_left_is_in_nobodys_way(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    await fill(database_url, db)
    before = read_models(db)
    db.execute("CREATE SCHEMA chronicle_rebuild; CREATE TABLE chronicle_rebuild.stats (left_over int)")
    rebuild.rebuild(database_url)
    assert read_models(db) == before


async def test_what_depends_on_a_read_model_is_named_and_nothing_is_left(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    await fill(database_url, db)
    db.execute("CREATE VIEW of_theirs AS SELECT count(*) FROM processed_events; CREATE SCHEMA rebuild")
    with pytest.raises(ChronicleError, match="view of_theirs depends on table processed_events"):
        rebuild.rebuild(database_url)
    assert database.value(db, "SELECT to_regnamespace('chronicle_rebuild')") is None
    assert database.value(db, "SELECT to_regnamespace('rebuild')")


async def test_nothing_is_reset_where_redis_can_only_be_read(
    database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    await fill(database_url, db)
    before = read_models(db)
    client = broker.connect(queue)
    client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(BrokerAway):
            rebuild.reset(database_url, queue)
    finally:
        client.replicaof("NO", "ONE")
        client.close()
    assert read_models(db) == before


async def test_a_rebuild_or_a_reset_while_another_runs_is_refused(
    database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    """A reset in the middle of a rebuild would be followed by the swap, and bring back what is deleted."""
    await fill(database_url, db)
    before = read_models(db)
    db.execute("SELECT pg_advisory_lock(%s)", [rebuild.REBUILD_LOCK])
    for another in (lambda: rebuild.rebuild(database_url), lambda: rebuild.reset(database_url, queue)):
        with pytest.raises(ChronicleError, match="is running"):
            another()
    assert read_models(db) == before


async def test_who_keeps_a_rebuild_or_a_reset_from_the_tables_is_named(
    database_url: str, queue: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "PATIENCE_SECONDS", 0)
    with database.connect(database_url, "backup") as reader, reader.transaction():
        reader.execute("SELECT FROM facts")
        for another in (lambda: rebuild.rebuild(database_url), lambda: rebuild.reset(database_url, queue)):
            with pytest.raises(ChronicleError, match=rf"chronicle-backup \(pid {reader.info.backend_pid}, idle in"):
                another()


async def test_the_tables_of_another_version_are_left_alone(
    database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.execute("ALTER TABLE processed_events ADD COLUMN newer int")
    for another in (
        lambda: rebuild.rebuild(database_url),
        lambda: rebuild.reset(database_url, queue),
        lambda: failed.show(database_url, None, None),
        lambda: failed.retry(database_url, None, None),
    ):
        with pytest.raises(SchemaBehind, match="run a newer ChronicleWeaver"):
            another()
    assert db.execute("SELECT newer FROM processed_events").fetchall() == []


@pytest.mark.parametrize("failing", [False, True])
def test_the_next_rebuild_does_not_wait_for_the_end_of_the_last_ones_session(
    monkeypatch: pytest.MonkeyPatch, database_url: str, failing: bool
) -> None:
    with database.connect(database_url, "rebuild") as lingering, monkeypatch.context() as patched:
        patched.setattr(database, "connect", lambda *_, **__: nullcontext(lingering))
        if failing:
            patched.setattr(rebuild, "READ_MODELS", ["no_such_table"])
        with pytest.raises(KeyError) if failing else nullcontext():
            rebuild.rebuild(database_url)
        patched.undo()
        rebuild.rebuild(database_url)


async def test_a_reset_without_redis_empties_nothing(database_url: str, db: psycopg.Connection[Any]) -> None:
    await fill(database_url, db)
    before = database.value(db, "SELECT count(*) FROM facts")
    with pytest.raises(BrokerAway):
        rebuild.reset(database_url, "redis://127.0.0.1:1")
    assert database.value(db, "SELECT count(*) FROM facts") == before > 0


async def test_a_reset_empties_everything_and_the_next_event_is_the_first(
    database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    await fill(database_url, db)
    client = broker.connect(queue)
    client.xadd(broker.STREAM, {broker.FIELD: "x"})
    rebuild.reset(database_url, queue)
    assert not client.exists(broker.STREAM)
    client.close()
    for table in (*READ_MODELS, "facts", "outbox"):
        assert database.value(db, f"SELECT count(*) FROM {table}") == 0, table
    project(db, await receive(database_url, [event("k1")]), 0)
    assert database.value(db, "SELECT sum(processed) FROM stats") == 1
    assert [(name, violations) for _, name, violations in verify.run(database_url) if violations] == []
