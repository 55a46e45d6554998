"""What the query service sees of the whole system, and what it calls a problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest
from given import event, receive

from chronicle import broker, database
from command.dispatch import Dispatcher
from projector.projection import project, project_apart
from query import system

CALM = system.Look(5, 3, 1, 1, 0, 0, 0, 0.0, 0.0, [{"worker_id": 0, "process": "a:1", "heartbeat_age": 1.0}])


async def look(url: str) -> system.Look:
    async with database.read_pool(url, "query", 2) as pool, pool.connection() as connection:
        return await system.look(connection)


async def test_an_empty_system_is_seen_as_such(database_url: str) -> None:
    assert await look(database_url) == system.Look(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, [])


async def test_a_look_sees_counters_backlog_and_heartbeats(database_url: str, db: psycopg.Connection[Any]) -> None:
    db.execute("ALTER TABLE processed_events ADD CHECK (event_id <> 'poison') NOT VALID")
    first, poisoned, *_ = await receive(
        database_url, [event("a"), event("a"), event("a", payload={"n": 1})], [event("poison")], [event("b")] * 2
    )
    project(db, [first], 0)
    project_apart(db, poisoned, 0)
    db.execute("UPDATE outbox SET received_at = received_at - interval '1 minute'")
    await receive(database_url, [event("c")])
    db.execute("INSERT INTO workers VALUES (3, 'host:1', now(), clock_timestamp() - interval '7 s', 'idle', now())")
    seen = await look(database_url)
    assert (seen.received, seen.processed, seen.duplicates, seen.conflicts, seen.failed) == (7, 1, 1, 1, 1)
    assert (seen.in_flight, seen.batches) == (3, 2)
    assert 60 <= seen.oldest < 90
    assert 0 < seen.unsequenced < 30
    [worker] = seen.workers
    assert (worker["worker_id"], worker["process"], worker["state"]) == (3, "host:1", "idle")
    assert 7 <= worker["heartbeat_age"] < 30
    assert seen.silent() == [worker]
    assert seen.alive() == []


async def test_the_cost_of_a_look_does_not_grow_with_what_is_stored(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    plan = "\n".join(row[0] for row in db.execute(f"EXPLAIN {system.LOOK}"))
    assert "processed_events" not in plan
    assert "Seq Scan on facts" not in plan
    db.execute(
        "INSERT INTO outbox SELECT gen_random_uuid(), now() - make_interval(secs => n), 1"
        f" FROM generate_series(1, {system.MOST_BATCHES + 10}) AS n"
    )
    assert (await look(database_url)).batches == system.MOST_BATCHES


async def test_the_stream_is_seen_with_what_is_pending(database_url: str, queue: str) -> None:
    client = broker.connect_async(queue)
    assert await system.queue(client) == system.Queue(0, 0)
    dispatcher = Dispatcher(database_url, queue)
    assert await dispatcher.send(await receive(database_url, [event("a")], [event("b")], [event("c")]))
    await dispatcher.close()
    assert await system.queue(client) == system.Queue(3, 0)
    taker = broker.connect(queue)
    broker.ensure_group(taker)
    taker.xreadgroup(broker.GROUP, "somebody", {broker.STREAM: ">"}, count=2)
    assert await system.queue(client) == system.Queue(3, 2)
    taker.close()
    await client.aclose()


async def test_a_broker_that_is_away_is_no_queue() -> None:
    client = broker.connect_async("redis://127.0.0.1:1/0")
    assert await system.queue(client) is None
    await client.aclose()


SILENT = [{"worker_id": 2, "process": "b:7", "heartbeat_age": 61.2}]


@pytest.mark.parametrize(
    ("seen", "away", "expected"),
    [
        (CALM, False, []),
        (replace(CALM, oldest=4.9, batches=9), False, []),
        (
            replace(CALM, oldest=12.3, batches=9),
            False,
            ["the oldest of 9 batches in flight has waited for 12 s: projecting lags behind"],
        ),
        (
            replace(CALM, unsequenced=7.2),
            False,
            ["a projection has waited for 7 s for its place in the stream: subscribers wait"],
        ),
        (replace(CALM, workers=[]), False, ["no projector worker is alive"]),
        (replace(CALM, workers=CALM.workers + SILENT), False, ["worker 2 (b:7) has said nothing for 61 s"]),
        (
            replace(CALM, workers=SILENT),
            True,
            [
                "no projector worker is alive",
                "worker 2 (b:7) has said nothing for 61 s",
                "Redis is away: workers take batches from the outbox",
            ],
        ),
    ],
)
def test_problems_are_said_in_words(seen: system.Look, away: bool, expected: list[str]) -> None:
    assert system.problems(seen, broker_is_away=away) == expected
