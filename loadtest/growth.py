"""Growth: rates, reads, disk and memory where a hundredth of the events is stored, and where all of them are.

The events come through POST /publish like any others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import quantiles
from typing import Any

import psycopg

from chronicle import database
from loadtest import client, system, workload
from loadtest.rates import BULK, SINGLE, measure
from query import cursor
from query.events import Place
from tests.servers import Stack

FILL = 100_000
"""Events that are sent at a time; then the projector catches up, so that no backlog is refused."""

REQUESTS = 20
TOPIC = "topic-1"
RARE = b"rare"


def to(stored: int, scale: float) -> dict[str, float]:
    """Figures at `stored` / 100 and at `stored` processed events, the latter ending with `, grown`."""
    found: dict[str, float] = {}
    with system.chronicle() as stack, psycopg.connect(stack.run()["postgres"]["url"], autocommit=True) as connection:
        begun = database.value(connection, "SELECT pg_current_wal_lsn()")
        _publish(stack, [event.replace(TOPIC.encode(), RARE) for event in workload.events(10)])
        for size, name in ((stored // 100, "small"), (stored, "grown")):
            _fill(stack, size)
            figures = dict(_reads(stack, connection)) | _rates(stack, scale) | system.memory(stack)
            found |= {f"{name}: {what}": figure for what, figure in figures.items()}
        found |= _bytes(connection, begun)
        system.verify(stack)
    return found


def _fill(stack: Stack, stored: int) -> None:
    while (missing := stored - system.ask(stack, "/stats")["unique_processed"]) > 0:
        _publish(stack, workload.events(max(min(FILL, int(missing / (1 - workload.DUPLICATES))), 2)))


def _publish(stack: Stack, made: list[bytes]) -> None:
    client.send(stack.port, workload.requests(made, BULK.size), BULK.connections)
    system.settle(stack)


def _rates(stack: Stack, scale: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for shape in (replace(BULK, events=BULK.events // 4), SINGLE):
        found |= measure(stack.port, shape, scale, partial(system.settle, stack))
    return {name: value for name, value in found.items() if name.endswith("events/s")}


def _reads(stack: Stack, connection: psycopg.Connection[Any]) -> Iterator[tuple[str, float]]:
    """Median and 95th percentile of each read, in milliseconds: one after the other, with nothing else under way."""
    event_id = database.value(connection, "SELECT event_id FROM dropped_events LIMIT 1")
    for path in (
        "/stats",
        f"/events?topic={TOPIC}",
        f"/events?topic={TOPIC}&cursor={_middle(connection)}",
        f"/audit?event_id={event_id}",
        f"/audit?topic={TOPIC}",
        f"/audit?topic={RARE.decode()}",
        "/audit?action=DROPPED",
        "/audit/summary",
    ):
        latencies = client.send(stack.port, [workload.get(path)] * REQUESTS, 1)
        cuts = quantiles(latencies, n=20)
        name = path.partition("cursor=")[0].replace(event_id, "").replace("&", ", deep cursor")
        yield f"GET {name} p50 ms", cuts[9] * 1000
        yield f"GET {name} p95 ms", cuts[18] * 1000


MIDDLE = """
SELECT "timestamp", batch_id, position FROM processed_events WHERE topic = %(topic)s
ORDER BY "timestamp" DESC, batch_id DESC, position DESC
OFFSET (SELECT sum(processed) / 2 FROM stats WHERE topic = %(topic)s) LIMIT 1
"""


def _middle(connection: psycopg.Connection[Any]) -> str:
    """The cursor that a client holds who has read half of a topic's events."""
    row = connection.execute(MIDDLE, {"topic": TOPIC}).fetchone()
    assert row, f"nothing is stored in {TOPIC}"
    return cursor.encode(Place(*row))


BYTES = """
SELECT relname, pg_total_relation_size(oid)::float / (SELECT sum(received) FROM stats)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
  AND relname IN ('facts', 'fact_topics', 'processed_events', 'dropped_events', 'stats')
"""


def _bytes(connection: psycopg.Connection[Any], begun: str) -> dict[str, float]:
    """Bytes of each table, with its indexes, and of WAL, for each event received."""
    wal = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)::float / sum(received) FROM stats"
    tables = {f"{name}: bytes an event": size for name, size in connection.execute(BYTES)}
    return tables | {"WAL: bytes an event": database.value(connection, wal, [begun])}
