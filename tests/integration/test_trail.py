"""One event by its key: every sighting of it, with all of its facts, and nothing of any other event."""

from __future__ import annotations

import itertools
import json
from datetime import datetime
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from given import LARGE_BLOCKS, LARGE_BYTES, blocks_read, columns, event, large, receive

from chronicle import database
from chronicle.errors import NotThere
from chronicle.ledger import new_batch_id
from command.writer import Writer
from projector import failed
from projector.projection import project, project_apart
from query import trail

POISON = "ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id NOT LIKE 'poison%') NOT VALID"
CURE = "ALTER TABLE processed_events DROP CONSTRAINT poison"


async def ask(url: str, topic: str, event_id: str, limit: int = 100) -> dict[str, Any]:
    connection = await database.connect_async(url, "query")
    try:
        answer: dict[str, Any] = json.loads(await trail.trail(connection, topic, event_id, limit))
        return answer
    finally:
        await connection.close()


async def why_not(url: str, topic: str, event_id: str) -> str:
    """The kind of the 404 that the stored event is answered with."""
    connection = await database.connect_async(url, "query")
    try:
        with pytest.raises(NotThere) as refused:
            await trail.stored(connection, topic, event_id)
        return refused.value.problem["type"]
    finally:
        await connection.close()


def told(sighting: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(fact["action"], fact["reason"]) for fact in sighting["facts"]]


async def test_the_trail_has_every_fact_of_every_sighting_and_of_no_other_event(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    batches = await receive(
        database_url,
        [event("other"), event("e"), event("e", topic="u")],
        [event("e"), event("other", payload={"n": 2})],
        [event("e", payload={"n": 3}, source="elsewhere")],
    )
    for worker_id, batch_id in enumerate(batches):
        project(db, [batch_id], worker_id)
    found = await ask(database_url, "t", "e")
    assert (found["event_id"], found["topic"], found["count"]) == ("e", "t", 3)
    first, second, third = found["sightings"]
    assert [(s["batch_id"], s["position"]) for s in found["sightings"]] == [
        (str(batch_id), position) for batch_id, position in zip(batches, (2, 1, 1), strict=True)
    ]
    assert told(first) == [("RECEIVED", None), ("QUEUED", None), ("PROCESSED", None)]
    assert told(second) == [("RECEIVED", None), ("QUEUED", None), ("DROPPED", "duplicate")]
    assert told(third) == [("RECEIVED", None), ("QUEUED", None), ("DROPPED", "conflict")]
    assert [s["outcome"] for s in found["sightings"]] == ["PROCESSED", "DROPPED", "DROPPED"]
    assert [s["facts"][-1]["worker_id"] for s in found["sightings"]] == [0, 1, 2]
    assert [s["payload"] for s in found["sightings"]] == [{"message": "e"}, None, {"n": 3}]
    assert third["source"] == "elsewhere"


async def test_the_trail_says_how_long_each_fact_was_waited_for(database_url: str, db: psycopg.Connection[Any]) -> None:
    project(db, await receive(database_url, [event("e")]), 0)
    [sighting] = (await ask(database_url, "t", "e"))["sightings"]
    moments = [datetime.fromisoformat(fact["recorded_at"]) for fact in sighting["facts"]]
    waits = [fact["waited_ms"] for fact in sighting["facts"]]
    assert waits[0] is None
    assert waits[1:] == [
        pytest.approx((later - former).total_seconds() * 1000, abs=0.001) for former, later in pairwise(moments)
    ]


async def test_the_stored_sighting_comes_first_although_it_was_received_later(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    early, late = await receive(database_url, [event("e")], [event("e", payload={"n": 2})])
    project(db, [late], 0)
    assert [s["outcome"] for s in (await ask(database_url, "t", "e"))["sightings"]] == ["PROCESSED", None]
    project(db, [early], 0)
    found = (await ask(database_url, "t", "e"))["sightings"]
    assert [s["batch_id"] for s in found] == [str(late), str(early)]


async def test_what_is_not_stored_is_in_flight_or_failed_or_was_never_received(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute(POISON)
    [batch_id] = await receive(database_url, [event("poison"), event("e")])
    for event_id in ("poison", "e"):
        assert await why_not(database_url, "t", event_id) == "in_flight"
        [sighting] = (await ask(database_url, "t", event_id))["sightings"]
        assert sighting["outcome"] is None
        assert told(sighting)[0] == ("RECEIVED", None)
    project_apart(db, batch_id, 0)
    assert await why_not(database_url, "t", "poison") == "failed"
    assert await why_not(database_url, "t", "never") == "not_received"
    assert await why_not(database_url, "another topic", "e") == "not_received"
    with pytest.raises(NotThere, match="was ever received"):
        await ask(database_url, "another topic", "e")


async def test_an_event_that_failed_and_was_tried_again_shows_both_attempts(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute(POISON)
    [batch_id] = await receive(database_url, [event("a"), event("poison"), event("b")])
    project_apart(db, batch_id, 0)
    [sighting] = (await ask(database_url, "t", "poison"))["sightings"]
    assert sighting["outcome"] == "FAILED"
    assert "poison" in sighting["facts"][-1]["reason"]
    assert sighting["payload"] == {"message": "poison"}
    db.execute(CURE)
    assert failed.retry(database_url, None, None)
    [sighting] = (await ask(database_url, "t", "poison"))["sightings"]
    assert [(fact["action"], fact["attempt"]) for fact in sighting["facts"]] == [
        ("RECEIVED", 0),
        ("QUEUED", 0),
        ("FAILED", 0),
        ("PROCESSED", 1),
    ]
    assert sighting["outcome"] == "PROCESSED"


async def test_each_sighting_knows_the_request_that_brought_it(database_url: str, db: psycopg.Connection[Any]) -> None:
    writer = await Writer.open(database_url)
    events = columns(event("a"), event("b"), event("c"), event("d"))
    batch_id = new_batch_id()
    await writer.record_received(batch_id, events, [("first", 1), ("second", 2), ("third", 1)])
    await writer.close()
    project(db, [batch_id], 0)
    for event_id, request_id in (("a", "first"), ("b", "second"), ("c", "second"), ("d", "third")):
        [sighting] = (await ask(database_url, "t", event_id))["sightings"]
        assert sighting["request_id"] == request_id


async def test_a_trail_is_bounded_in_sightings_and_in_bytes(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = await receive(database_url, *[[event("e", payload={"n": n})] for n in range(5)])
    for batch_id in batches:
        project(db, [batch_id], 0)
    found = await ask(database_url, "t", "e", limit=2)
    assert (found["count"], len(found["sightings"])) == (5, 2)
    monkeypatch.setattr(trail, "PAGE_BYTES", 16)
    payloads = [sighting["payload"] for sighting in (await ask(database_url, "t", "e"))["sightings"]]
    assert payloads == [{"n": 0}, {"n": 1}, None, None, None]


async def test_a_trail_reads_no_further_payloads_than_it_shows(database_url: str, db: psycopg.Connection[Any]) -> None:
    for batch_id in await receive(database_url, *[[large("e")] for _ in range(20)]):
        project(db, [batch_id], 0)
    parameters = {"topic": "t", "event_id": "e", "limit": 100, "bytes": 2 * LARGE_BYTES, "read_bytes": 2**30}
    assert blocks_read(db, trail.TRAIL, parameters) < 20 * LARGE_BLOCKS
    assert (
        blocks_read(db, trail.TRAIL, parameters | {"bytes": 2**30, "read_bytes": 2 * LARGE_BYTES}) < 20 * LARGE_BLOCKS
    )


async def test_a_trail_is_bounded_in_what_is_read_for_its_payloads(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = event("zeros", payload={"message": "0" * LARGE_BYTES})
    for batch_id in await receive(database_url, *[[zeros, event("e", payload={"n": n})] for n in range(4)]):
        project(db, [batch_id], 0)
    monkeypatch.setattr(trail, "READ_BYTES", 3 * LARGE_BYTES)
    payloads = [sighting["payload"] for sighting in (await ask(database_url, "t", "e"))["sightings"]]
    assert payloads == [{"n": 0}, {"n": 1}, {"n": 2}, None]


async def test_of_a_batch_all_conflicts_have_their_payloads(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its payloads are read once, whatever of them is shown."""
    fill = event("other", payload={"message": "0" * LARGE_BYTES})
    [batch_id] = await receive(database_url, [fill, *[event("e", payload={"n": n}) for n in range(20)]])
    project(db, [batch_id], 0)
    monkeypatch.setattr(trail, "READ_BYTES", 2 * LARGE_BYTES)
    payloads = [sighting["payload"] for sighting in (await ask(database_url, "t", "e"))["sightings"]]
    assert payloads == [{"n": n} for n in range(20)]


BATCHES, SIZE = 1000, 20


async def test_no_event_makes_it_look_through_all_batches(database_url: str, db: psycopg.Connection[Any]) -> None:
    batches = [[event(f"e{n * SIZE + m}") for m in range(SIZE)] for n in range(BATCHES)]
    batch_ids = await receive(database_url, *batches)
    for start in range(0, BATCHES, 100):
        project(db, batch_ids[start : start + 100], 0)
    db.execute("VACUUM ANALYZE")
    for statement, event_id in itertools.product((trail.STORED, trail.TRAIL), ("e77", "never")):
        parameters = {"topic": "t", "event_id": event_id, "limit": 100, "bytes": 2**20, "read_bytes": 2**20}
        plan = db.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters, prepare=False).fetchone()
        assert read_rows((plan or [[{}]])[0][0]["Plan"]) < BATCHES / 10, (statement, event_id)


def read_rows(node: dict[str, Any]) -> float:
    """How many rows of tables a plan read."""
    own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return own * ("Relation Name" in node) + sum(read_rows(child) for child in node.get("Plans", ()))
