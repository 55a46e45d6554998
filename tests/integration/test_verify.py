"""verify names what is broken: each invariant is broken in the database, one at a time, and seen."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from given import event, receive

from chronicle import broker, verify
from projector.projection import project, project_apart


async def fill(url: str, db: psycopg.Connection[Any]) -> None:
    db.execute("ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id <> 'poison')")
    a, b, poison, _ = await receive(
        url,
        [event("a"), event("b", topic="u")],
        [event("a"), event("b", topic="u", payload={"other": True}), event("c")],
        [event("d"), event("poison")],
        [event("in flight")],
    )
    project(db, [a, b], 0)
    project_apart(db, poison, 1)
    db.execute("ALTER TABLE processed_events DROP CONSTRAINT poison")


FACTS = "ALTER TABLE facts DISABLE TRIGGER facts_append_only; {}; ALTER TABLE facts ENABLE TRIGGER facts_append_only"

BREAKS = {
    "a RECEIVED fact is removed": (1, FACTS.format("DELETE FROM facts WHERE action = 'RECEIVED' AND event_count = 3")),
    "an event is cut out of its fact": (
        1,
        "ALTER TABLE facts DROP CONSTRAINT ck_facts_whole;"
        + FACTS.format("UPDATE facts SET payloads = payloads[2:] WHERE action = 'RECEIVED' AND event_count = 3"),
    ),
    "an event of a fact is emptied": (
        1,
        FACTS.format("UPDATE facts SET topics[1] = NULL WHERE action = 'RECEIVED' AND event_count = 3"),
    ),
    "two PROCESSED facts for one key": (
        2,
        FACTS.format(
            "UPDATE facts SET positions = '{1,3}', event_count = 2 WHERE action = 'PROCESSED' AND positions = '{3}'"
        ),
    ),
    "the key is stored twice": (
        2,
        "ALTER TABLE processed_events DROP CONSTRAINT uq_processed_events_event_id_topic;"
        "INSERT INTO processed_events SELECT * FROM processed_events WHERE event_id = 'a'",
    ),
    "a winner is gone": (2, "DELETE FROM processed_events WHERE event_id = 'a'"),
    "a counter is off by one": (3, "UPDATE stats SET processed = processed + 1 WHERE topic = 'u' AND lane = 0"),
    "a counter is in another lane": (3, "UPDATE stats SET lane = 9 WHERE lane = 0 AND topic = 'u'"),
    "a counter is lost": (3, "DELETE FROM stats WHERE topic = 'u' AND lane < 0"),
    "a fact names another worker": (4, FACTS.format("UPDATE facts SET worker_id = 9 WHERE action = 'PROCESSED'")),
    "RECEIVED names a worker": (4, FACTS.format("UPDATE facts SET worker_id = 0 WHERE action = 'RECEIVED'")),
    "QUEUED is about a part": (
        4,
        FACTS.format("UPDATE facts SET positions = '{1}', event_count = 1 WHERE action = 'QUEUED' AND event_count = 2"),
    ),
    "an event FAILED that is stored": (
        5,
        "INSERT INTO facts (batch_id, action, attempt, lane, worker_id, event_count, positions, errors) "
        "SELECT batch_id, 'FAILED', 5, 0, 0, 1, '{1}', '{x}' FROM facts WHERE action = 'PROCESSED' LIMIT 1",
    ),
    "the trigger refuses nothing": (5, "UPDATE pg_proc SET prosrc = 'BEGIN END' WHERE proname = 'refuse_change'"),
    "the trigger is for some facts": (
        5,
        "DROP TRIGGER facts_append_only ON facts; CREATE TRIGGER facts_append_only BEFORE UPDATE OR DELETE ON facts "
        "FOR EACH ROW WHEN (false) EXECUTE FUNCTION refuse_change()",
    ),
    "the trigger looks at what is new": (
        5,
        "DROP TRIGGER facts_append_only ON facts; CREATE TRIGGER facts_append_only BEFORE INSERT ON facts "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()",
    ),
    "a column of the facts may be changed": (5, "GRANT UPDATE (payloads) ON facts TO PUBLIC"),
    "the unique constraint is an index of its name": (
        2,
        "ALTER TABLE processed_events DROP CONSTRAINT uq_processed_events_event_id_topic;"
        "CREATE INDEX uq_processed_events_event_id_topic ON processed_events (event_id, topic)",
    ),
    "a payload is none": (
        2,
        FACTS.format("UPDATE facts SET payloads[2] = '\"\\u0000\"' WHERE action = 'RECEIVED' AND event_count = 3"),
    ),
    "an outbox row is lost": (3, "DELETE FROM outbox"),
    "an outbox row came back": (
        4,
        "INSERT INTO outbox (batch_id, received_at, event_count) "
        "SELECT batch_id, recorded_at, event_count FROM facts WHERE action = 'RECEIVED' AND event_count = 3",
    ),
    "half a batch has no outcome": (
        4,
        FACTS.format("UPDATE facts SET positions = '{1}', event_count = 1 WHERE action = 'DROPPED'"),
    ),
    "an outcome is before its QUEUED": (
        5,
        FACTS.format("UPDATE facts SET recorded_at = recorded_at - interval '1 hour' WHERE action = 'DROPPED'"),
    ),
    "a QUEUED fact is missing": (
        5,
        FACTS.format("DELETE FROM facts WHERE action = 'QUEUED' AND event_count = 3"),
    ),
    "the append-only trigger is off": (5, "ALTER TABLE facts DISABLE TRIGGER facts_append_only"),
    "the truncate trigger is gone": (5, "DROP TRIGGER facts_no_truncate ON facts"),
    "a batch is stuck": (6, "UPDATE outbox SET received_at = received_at - interval '1 hour'"),
    "a stored payload is another": (7, "UPDATE processed_events SET payload = '{}' WHERE event_id = 'c'"),
    "a stored event's payload in the ledger is another": (
        7,
        FACTS.format("UPDATE facts SET payloads[3] = '{}' WHERE action = 'RECEIVED' AND event_count = 3"),
    ),
    "a duplicate's payload in the ledger is another": (
        2,
        FACTS.format("UPDATE facts SET payloads[1] = '{}' WHERE action = 'RECEIVED' AND event_count = 3"),
    ),
    "a stored event was never received": (
        7,
        "INSERT INTO processed_events SELECT 'ghost', topic, source, payload, timestamp, batch_id, 99 "
        "FROM processed_events WHERE event_id = 'c'",
    ),
    "a dropped sighting is forgotten": (7, "DELETE FROM dropped_events WHERE event_id = 'a'"),
    "a dropped sighting is kept twice": (7, "INSERT INTO dropped_events SELECT * FROM dropped_events LIMIT 1"),
    "a conflict is called a duplicate": (7, "UPDATE dropped_events SET reason = 'duplicate' WHERE reason = 'conflict'"),
    "a failed event is forgotten": (7, "DELETE FROM failed_events"),
    "the ledger's index forgets a topic": (7, "DELETE FROM fact_topics WHERE topic = 'u' AND action = 'DROPPED'"),
    "a fact is not in the stream": (9, "DELETE FROM unsequenced"),
    "a fact is in the stream and waits for it": (
        9,
        "INSERT INTO stream (fact_id, batch_id, attempt) SELECT fact_id, batch_id, attempt FROM unsequenced LIMIT 1",
    ),
    "the stream names what is no fact": (
        9,
        "INSERT INTO stream (fact_id, batch_id, attempt) SELECT fact_id + 999, batch_id, attempt FROM unsequenced "
        "LIMIT 1",
    ),
    "a fact waits for the stream": (
        9,
        FACTS.format(
            "UPDATE facts SET recorded_at = recorded_at - interval '1 hour' WHERE action IN ('RECEIVED', 'QUEUED', "
            "'PROCESSED')"
        ),
    ),
    "a payload is no object": (8, "UPDATE processed_events SET payload = '[]' WHERE event_id = 'c'"),
    "a time is beyond every reader": (8, "UPDATE processed_events SET timestamp = 'infinity' WHERE event_id = 'c'"),
}


async def test_a_sound_database_has_no_violations(database_url: str, db: psycopg.Connection[Any]) -> None:
    await fill(database_url, db)
    assert [(name, violations) for _, name, violations in verify.run(database_url) if violations] == []


@pytest.mark.parametrize("what", BREAKS)
async def test_what_is_broken_is_named(what: str, database_url: str, db: psycopg.Connection[Any]) -> None:
    await fill(database_url, db)
    invariant, statements = BREAKS[what]
    for statement in statements.split(";"):
        db.execute(statement)
    found = {number for number, _, violations in verify.run(database_url) if violations}
    assert invariant in found


async def test_the_report_says_what_and_where(
    database_url: str, queue: str, db: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await fill(database_url, db)
    assert verify.report(database_url, queue)
    assert "all" in capsys.readouterr().out
    db.execute("UPDATE stats SET processed = processed + 1 WHERE topic = 'u'")
    assert not verify.report(database_url, queue)
    assert "not in the ledger: (u," in capsys.readouterr().out


async def test_the_report_shows_a_name_as_it_is_whole_and_harmless(
    database_url: str,
    queue: str,
    db: psycopg.Connection[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = ":rocket:[bold]\x1b[2J" + "x" * 100
    await receive(database_url, [event("a", topic=name)])
    db.execute("UPDATE stats SET received = received + 1")
    assert not verify.report(database_url, queue)
    rows = [line.split("│")[3].strip() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert f"({name.replace(chr(27), '�')}," in "".join(rows)


async def test_a_ticket_that_nobody_will_take_away_is_named(
    database_url: str, queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = broker.connect(queue)
    client.xadd(broker.STREAM, {broker.FIELD: "00000000-0000-0000-0000-000000000000"}, id="1000-0")
    client.close()
    assert not verify.report(database_url, queue)
    assert "ticket 1000-0" in capsys.readouterr().out
