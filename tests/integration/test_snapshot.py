"""What the page shows, from the database and Redis: one snapshot for all watchers, and the minutes of a day."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest
from given import event, receive
from servers import free_port

from chronicle import broker, database
from projector.projection import project
from query import history, snapshot
from query.broadcast import HEARTBEAT, Broadcast

NOT_ASKED = snapshot.Queue(away="not asked")


async def take(url: str, queue: snapshot.Queue = NOT_ASKED) -> dict[str, Any]:
    connection = await database.connect_async(url, "query")
    try:
        taken: dict[str, Any] = json.loads(msgspec.json.encode(await snapshot.take(connection, queue)))
        return taken
    finally:
        await connection.close()


async def test_an_empty_system_has_empty_books(database_url: str) -> None:
    taken = await take(database_url)
    assert set(taken["books"].values()) == {0}
    assert taken["outbox"] == {"batches": 0, "events": 0, "oldest_seconds": None, "late": False}
    assert taken["unsequenced"] == {"oldest_seconds": 0, "late": False}
    assert taken["topics"] == taken["workers"] == taken["newest"]["audit_logs"] == []


async def test_the_books_tell_duplicates_from_conflicts_and_add_up(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    first, second, _ = await receive(
        database_url,
        [event("a"), event("b"), event("c", topic="u")],
        [event("a"), event("b", payload={"n": 2}), event("a")],
        [event("d"), event("e")],
    )
    project(db, [first], 0)
    project(db, [second], 1)
    taken = await take(database_url)
    assert taken["books"] == {
        "received": 8,
        "unique": 3,
        "duplicates": 2,
        "conflicts": 1,
        "failed": 0,
        "in_flight": 2,
        "off_by": 0,
    }
    assert taken["outbox"]["events"] == 2
    assert taken["outbox"]["oldest_seconds"] > 0
    assert not taken["outbox"]["late"]
    assert taken["unsequenced"]["oldest_seconds"] > 0
    assert not taken["unsequenced"]["late"]
    db.execute("UPDATE outbox SET received_at = received_at - interval '6 seconds'")
    assert (await take(database_url))["outbox"]["late"]
    assert [(t["topic"], t["received"], t["unique"], t["duplicates"], t["conflicts"]) for t in taken["topics"]] == [
        ("t", 7, 2, 2, 1),
        ("u", 1, 1, 0, 0),
    ]
    last_seen = db.execute("SELECT max(recorded_at) FROM facts WHERE action = 'RECEIVED'").fetchone()
    assert datetime.fromisoformat(taken["topics"][0]["last_seen"]) == (last_seen or (None,))[0]
    assert [(e["topic"], e["event_id"]) for e in taken["newest"]["audit_logs"]] == [("u", "c"), ("t", "b"), ("t", "a")]


async def test_books_that_do_not_balance_say_by_how_much(database_url: str, db: psycopg.Connection[Any]) -> None:
    await receive(database_url, [event("a")], [event("b"), event("c")])
    db.execute("DELETE FROM outbox WHERE event_count = 2")
    assert (await take(database_url))["books"]["off_by"] == 2


async def test_of_many_topics_the_largest_are_shown(database_url: str, db: psycopg.Connection[Any]) -> None:
    most = snapshot.MOST_TOPICS
    await receive(database_url, [event("a", topic=f"t{n:03}") for n in range(most + 9) for _ in range(2 if n else 5)])
    taken = await take(database_url)
    assert taken["topic_count"] == most + 9
    assert [t["topic"] for t in taken["topics"]] == [f"t{n:03}" for n in range(most)]


HEARTBEAT_ROW = """
INSERT INTO workers (worker_id, process, started_at, seen_at, state, projected_at)
VALUES (%s, 'host:1', now(), now() - make_interval(secs => %s), 'projecting', now())
"""


async def test_workers_show_their_silence_what_they_projected_and_what_they_hold(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    project(db, await receive(database_url, [event("a"), event("a"), event("b")]), 1)
    for worker_id, silent in ((0, 30), (1, 0)):
        db.execute(HEARTBEAT_ROW, [worker_id, silent])
    queue = snapshot.Queue(length=2, pending=2, pending_by_consumer={"worker-0": 2})
    workers = (await take(database_url, queue))["workers"]
    assert [(w["worker_id"], w["projected"], w["pending"]) for w in workers] == [(0, 0, 2), (1, 3, 0)]
    assert workers[0]["silent_seconds"] >= 30
    assert [w["silent"] for w in workers] == [True, False]
    assert [w["pending"] for w in (await take(database_url))["workers"]] == [None, None]


async def test_redis_is_looked_at_and_its_absence_is_no_error(queue: str) -> None:
    client, nobody = broker.connect_async(queue), broker.connect_async(f"redis://127.0.0.1:{free_port()}")
    try:
        assert await snapshot.look(client) == snapshot.Queue(length=0, pending=0)
        with broker.connect(queue) as tickets:
            broker.ensure_group(tickets)
            for _ in range(3):
                tickets.xadd(broker.STREAM, {broker.FIELD: "x"})
            tickets.xreadgroup(broker.GROUP, "worker-7", {broker.STREAM: ">"}, count=2)
        assert await snapshot.look(client) == snapshot.Queue(length=3, pending=2, pending_by_consumer={"worker-7": 2})
        assert "does not answer" in str((await snapshot.look(nobody)).away)
        assert "REDIS_URL" in str((await snapshot.look(None)).away)
    finally:
        await client.aclose()
        await nobody.aclose()


async def minutes(url: str, back: int) -> dict[str, list[Any]]:
    connection = await database.connect_async(url, "query")
    try:
        found: dict[str, list[Any]] = json.loads(await history.by_minute(connection, back))
        return found
    finally:
        await connection.close()


async def test_history_is_what_each_minute_brought(database_url: str, db: psycopg.Connection[Any]) -> None:
    this = datetime.now(UTC).replace(second=0, microsecond=0)
    kept = [(40, 5, 5, 0, 0, 0), (4, 10, 8, 2, 0, 1), (3, 30, 20, 6, 3, 2), (2, 30, 21, 7, 1, 2), (1, 4, 3, 1, 0, 0)]
    for ago, received, processed, dropped, failed, conflicts in kept:
        db.execute(
            "INSERT INTO history (minute, received, queued, processed, dropped, failed, conflicts) "
            "VALUES (%s, %s, 0, %s, %s, %s, %s)",
            [this - timedelta(minutes=ago), received, processed, dropped, failed, conflicts],
        )
    found = await minutes(database_url, 15)
    assert [datetime.fromisoformat(minute) for minute in found["minutes"]] == [
        this - timedelta(minutes=ago) for ago in (4, 3, 2, 1)
    ]
    assert found["received"] == [None, 20, 0, 4]  # the last minute followed a reset
    assert found["unique"] == [None, 12, 1, 3]
    assert found["duplicates"] == [None, 3, 1, 1]
    assert found["conflicts"] == [None, 1, 0, 0]
    assert found["failed"] == [None, 3, 0, 0]  # two of the three were tried again, and are no more
    assert found["in_flight"] == [0, 1, 1, 0]
    assert len((await minutes(database_url, 60))["minutes"]) == 5


async def test_all_watchers_share_what_is_made_and_nothing_is_made_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("query.broadcast.SECONDS", 0.01)
    made = 0

    async def make() -> bytes:
        nonlocal made
        made += 1
        return b"%d" % made

    broadcast, stopping = Broadcast(make), asyncio.Event()
    first, second = broadcast.stream(stopping), broadcast.stream(stopping)
    frame, other = await asyncio.gather(anext(first), anext(second))
    assert frame == other == b"data: 1\n\n"
    assert await anext(first) == b"data: 2\n\n"
    await first.aclose()
    await second.aclose()
    await asyncio.sleep(0)  # lets what was cancelled end
    assert asyncio.all_tasks() == {asyncio.current_task()}
    before = made
    third = broadcast.stream(stopping)
    assert await anext(third) == b"data: %d\n\n" % (before + 1)
    stopping.set()
    assert [frame async for frame in third] == []


async def test_a_watcher_hears_that_the_service_lives_while_a_frame_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("query.broadcast.HEARTBEAT_SECONDS", 0.01)
    release = asyncio.Event()

    async def make() -> bytes:
        await release.wait()
        return b"{}"

    stream = Broadcast(make).stream(asyncio.Event())
    assert await anext(stream) == HEARTBEAT
    release.set()
    while (frame := await anext(stream)) == HEARTBEAT:
        pass
    assert frame == b"data: {}\n\n"
    await stream.aclose()
