"""/audit and /events pages: no skip, no repeat, the same as the whole trail, and without reading every batch."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from given import LARGE_BLOCKS, LARGE_BYTES, blocks_read, event, large, receive

from chronicle import database
from projector.projection import project, project_apart
from query import audit, cursor, events

NO_FILTER = {"action": None, "topic": None, "event_id": None, "from": None, "to": None}


async def fill(url: str, db: psycopg.Connection[Any]) -> None:
    """Batches of different sizes over three topics, some in flight."""
    batches = [
        [
            event(f"k{random.randrange(60)}", topic=f"t{random.choice('aaaaab')}")
            for _ in range(random.choice([1, 2, 9, 30]))
        ]
        for _ in range(25)
    ]
    batch_ids = await receive(url, *batches, [event("k1", topic="rare"), event("k2", topic="rare")])
    random.shuffle(batch_ids)
    for batch_id in batch_ids[3:]:
        project(db, [batch_id], random.randrange(3))


async def pages(url: str, filters: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    """All records, page by page."""
    connection = await database.connect_async(url, "test")
    records: list[dict[str, Any]] = []
    place = None
    while True:
        page = json.loads(await audit.page(connection, NO_FILTER | filters, limit, place))
        assert page["count"] == len(page["audit_logs"]) <= limit
        records += page["audit_logs"]
        if page["next_cursor"] is None:
            await connection.close()
            return records
        assert page["count"] == limit
        place = cursor.decode(page["next_cursor"], audit.Place)


WHOLE = """
SELECT id, event_id, topic, action FROM audit_log
WHERE (%(action)s::text IS NULL OR action = %(action)s) AND (%(topic)s::text IS NULL OR topic = %(topic)s)
  AND (%(event_id)s::text IS NULL OR event_id = %(event_id)s)
  AND (%(from)s::timestamptz IS NULL OR created_at >= %(from)s)
  AND (%(to)s::timestamptz IS NULL OR created_at <= %(to)s)
ORDER BY created_at DESC, fact_id DESC, position DESC
"""

FILTERS: list[dict[str, Any]] = [
    {},
    {"action": "DROPPED"},
    {"action": "RECEIVED"},
    {"topic": "ta"},
    {"topic": "rare"},
    {"topic": "never seen"},
    {"topic": "ta", "action": "PROCESSED"},
    {"event_id": "k1"},
    {"event_id": "k1", "topic": "ta"},
    {"event_id": "k1", "action": "DROPPED"},
    {"event_id": "never seen"},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
async def test_pages_of_any_size_give_the_whole_trail(
    filters: dict[str, Any], database_url: str, db: psycopg.Connection[Any]
) -> None:
    await fill(database_url, db)
    whole = db.execute(WHOLE, NO_FILTER | filters).fetchall()
    for limit in (1, 2, 7, 1000) if len(whole) < 100 else (7, 50, 1000):
        found = await pages(database_url, filters, limit)
        assert [(r["id"], r["event_id"], r["topic"], r["action"]) for r in found] == whole


async def test_a_range_of_time_bounds_the_trail(database_url: str, db: psycopg.Connection[Any]) -> None:
    await fill(database_url, db)
    first, last = db.execute("SELECT min(recorded_at), max(recorded_at) FROM facts").fetchone() or (None, None)
    middle = first + (last - first) / 2
    for bounds in ({"from": middle}, {"to": middle}, {"from": first, "to": last}, {"from": last + timedelta(1)}):
        for more in ({}, {"topic": "ta"}, {"event_id": "k1"}):
            filters = bounds | more
            whole = db.execute(WHOLE, NO_FILTER | filters).fetchall()
            assert [r["id"] for r in await pages(database_url, filters, 20)] == [row[0] for row in whole]


async def test_a_cursor_goes_on_where_it_was_while_new_facts_arrive(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    await fill(database_url, db)
    before = [row[0] for row in db.execute(WHOLE, NO_FILTER).fetchall()]
    connection = await database.connect_async(database_url, "test")
    seen: list[int] = []
    place = None
    while True:
        page = json.loads(await audit.page(connection, NO_FILTER, 25, place))
        seen += [record["id"] for record in page["audit_logs"]]
        project(db, await receive(database_url, [event("new"), event("k1", topic="ta")]), 0)
        if page["next_cursor"] is None:
            break
        place = cursor.decode(page["next_cursor"], audit.Place)
    await connection.close()
    assert seen == before


async def scanned(db: psycopg.Connection[Any], statement: str, parameters: dict[str, Any]) -> dict[str, int]:
    """How many rows of each table a statement read."""
    plan = db.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters, prepare=False).fetchone()
    rows: dict[str, int] = {}

    def walk(node: dict[str, Any]) -> None:
        if name := node.get("Relation Name"):
            seen = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            rows[name] = rows.get(name, 0) + round(seen)
        for child in node.get("Plans", ()):
            walk(child)

    walk((plan or [[{}]])[0][0]["Plan"])
    return rows


BATCHES, SIZE = 2000, 20


ALL_FILTERS = (
    {}, {"action": "DROPPED"}, {"action": "FAILED"}, {"topic": "often"}, {"topic": "rare"}, {"topic": "never"},
    {"topic": "often", "action": "FAILED"}, {"event_id": "e77"}, {"event_id": "never"},
)  # fmt: skip


async def test_no_filter_reads_all_batches(database_url: str, db: psycopg.Connection[Any]) -> None:
    batches = [[event(f"e{n * SIZE + m}", topic="often") for m in range(SIZE)] for n in range(BATCHES)]
    for n in range(0, BATCHES, 7):
        batches[n][3] = event("e5", topic="often")
    batches[BATCHES // 2][7] = event("once", topic="rare")
    batch_ids = await receive(database_url, *batches)
    for start in range(0, BATCHES, 100):
        project(db, batch_ids[start : start + 100], 0)
    db.execute("VACUUM ANALYZE")
    for filters in ALL_FILTERS:
        statement = audit.BY_TIME if "topic" not in filters else audit.BY_TOPIC
        if "event_id" in filters:
            statement = audit.BY_EVENT
        parameters = NO_FILTER | filters | {"limit": 100, "created_at": datetime.min, "fact_id": None, "position": 0}
        actions = [filters["action"]] if "action" in filters else list(audit.ACTIONS)
        rows = await scanned(db, statement, parameters | {"actions": actions})
        assert sum(rows.values()) < BATCHES, (filters, rows)


NO_EVENT_FILTER = {"topic": None, "source": None, "event_id": None, "from": None, "to": None}


async def event_pages(url: str, filters: dict[str, Any], limit: int) -> tuple[list[dict[str, Any]], set[int]]:
    connection = await database.connect_async(url, "test")
    found: list[dict[str, Any]] = []
    counts: set[int] = set()
    place = None
    while True:
        page = json.loads(await events.page(connection, NO_EVENT_FILTER | filters, limit, place))
        assert sum(len(json.dumps(e["payload"])) for e in page["events"][:-1]) <= events.PAGE_BYTES
        found += page["events"]
        counts.add(page["count"])
        if page["next_cursor"] is None:
            await connection.close()
            return found, counts
        place = cursor.decode(page["next_cursor"], events.Place)


@pytest.mark.parametrize(("limit", "most_bytes"), [(1, 2**20), (3, 2**20), (10, 60), (1000, 0), (1000, 2**20)])
async def test_event_pages_give_every_event_once_in_order(
    limit: int, most_bytes: int, database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PAGE_BYTES", most_bytes)
    moments = [f"2025-01-01T00:00:{n % 7:02}.{n % 3:06}Z" for n in range(60)]
    batches = [[event(f"e{n}", topic=f"t{n % 2}", timestamp=moments[n])] for n in range(60)]
    for batch_id in await receive(database_url, *batches):
        project(db, [batch_id], 0)
    for filters, expected in (({}, 60), ({"topic": "t1"}, 30), ({"event_id": "e3"}, 1), ({"topic": "no"}, 0)):
        found, counts = await event_pages(database_url, filters, limit)
        assert counts == {expected}
        assert len({e["event_id"] for e in found}) == len(found) == expected
        times = [datetime.fromisoformat(e["timestamp"]) for e in found]
        assert times == sorted(times, reverse=True)


async def test_of_large_events_a_page_reads_those_that_it_shows(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them would be as many as `limit`, and take longer than an answer may."""
    monkeypatch.setattr(events, "PAGE_BYTES", 2 * LARGE_BYTES)
    project(db, await receive(database_url, *[[large(f"e{n}")] for n in range(20)]), 0)
    found, counts = await event_pages(database_url, {}, 1000)
    assert [e["event_id"] for e in found] == [f"e{n}" for n in reversed(range(20))]
    assert counts == {20}
    place = {"timestamp": datetime.min, "batch_id": None, "position": 0, "limit": 1000, "bytes": 2 * LARGE_BYTES}
    for statement in (events.PAGE_BY_TOPIC, events.PAGE_COUNTED):
        assert blocks_read(db, statement, NO_EVENT_FILTER | place) < 10 * LARGE_BLOCKS


async def test_a_page_is_bounded_by_what_payloads_are_when_they_are_not_compressed(
    database_url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PAGE_BYTES", 3 * LARGE_BYTES)
    payload = {"message": "0" * LARGE_BYTES}
    project(db, await receive(database_url, *[[event(f"e{n}", payload=payload)] for n in range(9)]), 0)
    connection = await database.connect_async(database_url, "test")
    page = json.loads(await events.page(connection, NO_EVENT_FILTER, 1000, None))
    await connection.close()
    assert [e["event_id"] for e in page["events"]] == ["e8", "e7", "e6"]
    assert page["events"][0]["payload"] == payload


async def test_the_errors_and_conflicts_of_a_fact_are_taken_apart_once(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    """For each record anew, a page over ten thousand of them took longer than an answer may."""
    names = [f"e{n}" for n in range(500)]
    stored, dropped, failed = await receive(
        database_url,
        [event(name) for name in names],
        [event(name, payload={"message": name if n % 2 else "other"}) for n, name in enumerate(names)],
        [event(name, topic="poison") for name in names],
    )
    project(db, [stored, dropped], 0)
    db.execute("ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (topic <> 'poison')")
    errors = project_apart(db, failed, 0)
    told = "SELECT position, reason FROM audit_log WHERE batch_id = %(batch_id)s AND action = %(action)s"
    reasons = {n: "conflict" if n % 2 else "duplicate" for n in range(1, len(names) + 1)}
    for batch_id, action, expected in (dropped, "DROPPED", reasons), (failed, "FAILED", errors):
        these = {"batch_id": batch_id, "action": action}
        assert dict(db.execute(told, these).fetchall()) == expected
        assert blocks_read(db, told, these) < len(names)
