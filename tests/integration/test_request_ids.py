"""One request id, from the header of a request through the ledger to what the logs say of its batch."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from given import columns, event
from servers import eventually
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from chronicle import database, logs
from chronicle.ledger import new_batch_id
from chronicle.settings import Settings
from command.app import create_app
from command.receive import Receiver
from command.writer import Writer
from projector.worker import Worker

POISON = "ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id NOT LIKE 'poison%') NOT VALID"
LEDGER = "SELECT request_ids, request_sizes FROM facts WHERE action = 'RECEIVED'"


def test_an_id_is_in_the_answer_in_the_ledger_and_in_the_projectors_log(
    database_url: str, queue: str, db: psycopg.Connection[Any], worker: Worker
) -> None:
    db.execute(POISON)
    with TestClient(create_app(Settings(), database_url, queue)) as client:
        events = {"events": [event("poison"), event("b")]}
        answer = eventually(
            lambda: (
                (got := client.post("/publish", json=events, headers={"X-Request-ID": "trace-me-1"})).is_success and got
            )
        )
    assert answer.headers["x-request-id"] == "trace-me-1"
    assert db.execute(LEDGER).fetchall() == [(["trace-me-1"], [2])]
    with capture_logs() as lines:
        eventually(lambda: worker.run_once() and database.value(db, "SELECT count(*) = 0 FROM outbox"), timeout=30)
    about = {line["event"]: line for line in lines if line["log_level"] == "error"}
    assert about.keys() == {"refused", "events failed"}
    for line in about.values():
        assert line["request_ids"] == ["trace-me-1"], line
        assert line["batch_id"] == str(database.value(db, "SELECT DISTINCT batch_id FROM facts"))
    assert about["events failed"]["events"] == 1


async def test_the_log_names_a_bounded_number_of_requests(
    database_url: str, db: psycopg.Connection[Any], worker: Worker
) -> None:
    db.execute(POISON)
    parts = [(f"request-{n}", 1) for n in range(logs.MOST_NAMED + 5)]
    writer = await Writer.open(database_url)
    await writer.record_received(new_batch_id(), columns(*[event(f"poison-{n}") for n in range(len(parts))]), parts)
    await writer.close()
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
    with capture_logs() as lines:
        worker.run_once()
    first, *_ = [line for line in lines if line["event"] == "refused"]
    assert first["request_ids"] == [request_id for request_id, _ in parts[: logs.MOST_NAMED]]


def test_a_request_that_postgresql_refuses_is_named_in_the_log_of_command(
    database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("ALTER TABLE facts ADD CONSTRAINT refusing CHECK (event_count <> 3)")
    with capture_logs() as lines, TestClient(create_app(Settings(), database_url, queue)) as client:
        events = {"events": [event("a"), event("b"), event("c")]}
        answer = client.post("/publish", json=events, headers={"X-Request-ID": "trace-me-2"})
    assert answer.status_code == 500
    [refused] = [line for line in lines if line["event"].startswith("PostgreSQL refused")]
    assert refused["request_id"] == "trace-me-2"


async def test_a_commit_that_is_tried_again_names_its_requests(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.SESSION, "lock_timeout", "100ms")
    receiver = Receiver(database_url, Settings(), lambda *_: None)
    committing = asyncio.create_task(receiver.run())
    with capture_logs() as lines:
        with database.connect(database_url, "holder") as holder, holder.transaction():
            holder.execute("LOCK TABLE facts IN EXCLUSIVE MODE")
            waiting = asyncio.create_task(receiver.receive(columns(event("a")), 10, "trace-me-3"))
            await asyncio.to_thread(
                eventually, lambda: [line for line in lines if line["event"] == "commit is tried again"]
            )
        await waiting
    committing.cancel()
    again = next(line for line in lines if line["event"] == "commit is tried again")
    assert again["request_ids"] == ["trace-me-3"]
    assert db.execute(LEDGER).fetchall() == [(["trace-me-3"], [1])]
