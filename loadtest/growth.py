"""Growth: rates, reads, disk and memory where a hundredth of the events is stored, and where all of them are.

The events come through POST /publish like any others. Each round measures a ChronicleWeaver with few events and the one
with all of them in turns, each with as much less to send: a minute later the machine may be another. Five rounds are
about what lies between two checkpoints of PostgreSQL, after each of which it writes whole pages for a while.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from statistics import quantiles
from typing import Any

import psycopg

from chronicle import database
from loadtest import client, system, workload
from loadtest.goals import Figures
from loadtest.rates import BULK, SINGLE, TURNS, Shape, measure
from loadtest.report import medians
from query import cursor
from query.events import Place
from tests.servers import Stack

FILL = 100_000
"""Events that are sent at a time; then the projector catches up, so that no backlog is refused."""

REQUESTS = 20
TOPIC = "topic-1"
RARE = b"rare"


def to(stored: int, scale: float, rounds: int) -> Figures:
    """Medians of figures at `stored` / 100 and at `stored` processed events, and of what share of a rate is left."""
    with system.chronicle() as grown, _connected(grown) as connection:
        begun = database.value(connection, "SELECT pg_current_wal_lsn()")
        _fill(grown, stored)
        found = medians([_round(grown, stored // 100, scale) for _ in range(rounds)])
        found |= _named("grown", system.memory(grown)) | _bytes(connection, begun)
        system.verify(grown)
    return found


def _round(grown: Stack, few: int, scale: float) -> Figures:
    with system.chronicle() as small:
        _fill(small, few)
        stacks = {"small": small, "grown": grown}
        found = _reads(stacks)
        for shape in (BULK, SINGLE):
            rate = f"{shape.name} events/s"
            found |= medians([_turn(stacks, shape, scale / TURNS) for _ in range(TURNS)])
            found[f"{rate}, the share that is left"] = found[f"grown: {rate}"] / found[f"small: {rate}"]
        return found | _named("small", system.memory(small))


def _turn(stacks: dict[str, Stack], shape: Shape, scale: float) -> Figures:
    rate = f"{shape.name} events/s"
    return {
        f"{name}: {rate}": measure(stack.port, shape, scale, partial(system.settle, stack))[rate]
        for name, stack in stacks.items()
    }


def _named(name: str, figures: Figures) -> Figures:
    return {f"{name}: {what}": figure for what, figure in figures.items()}


def _connected(stack: Stack) -> psycopg.Connection[Any]:
    return psycopg.connect(stack.run()["postgres"]["url"], autocommit=True)


def _fill(stack: Stack, stored: int) -> None:
    _publish(stack, [event.replace(TOPIC.encode(), RARE) for event in workload.events(10)])
    while (missing := stored - system.ask(stack, "/stats")["unique_processed"]) > 0:
        _publish(stack, workload.events(max(min(FILL, int(missing / (1 - workload.DUPLICATES))), 2)))


def _publish(stack: Stack, made: list[bytes]) -> None:
    client.send(stack.port, workload.requests(made, BULK.size), BULK.connections)
    system.settle(stack)


def _reads(stacks: dict[str, Stack]) -> Figures:
    """Median and 95th percentile of each read, in milliseconds: one after the other, with nothing else under way."""
    found: Figures = {}
    paths = {name: _paths(stack) for name, stack in stacks.items()}
    for read in paths["small"]:
        latencies: dict[str, list[float]] = {name: [] for name in stacks}
        for _, (name, stack) in product(range(TURNS), stacks.items()):
            latencies[name] += client.send(stack.port, [workload.get(paths[name][read])] * REQUESTS, 1)
        for name, these in latencies.items():
            cuts = quantiles(these, n=20)
            found |= {f"{name}: GET {read} p50 ms": cuts[9] * 1000, f"{name}: GET {read} p95 ms": cuts[18] * 1000}
    return found


def _paths(stack: Stack) -> dict[str, str]:
    """What each read asks of this system."""
    with _connected(stack) as connection:
        event_id = database.value(connection, "SELECT event_id FROM dropped_events LIMIT 1")
        middle = _middle(connection)
    return {
        "/stats": "/stats",
        f"/events?topic={TOPIC}": f"/events?topic={TOPIC}",
        f"/events?topic={TOPIC}, deep cursor": f"/events?topic={TOPIC}&cursor={middle}",
        "/audit?event_id=": f"/audit?event_id={event_id}",
        f"/audit?topic={TOPIC}": f"/audit?topic={TOPIC}",
        f"/audit?topic={RARE.decode()}": f"/audit?topic={RARE.decode()}",
        "/audit?action=DROPPED": "/audit?action=DROPPED",
        "/audit/summary": "/audit/summary",
    }


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


def _bytes(connection: psycopg.Connection[Any], begun: str) -> Figures:
    """Bytes of each table, with its indexes, and of WAL, for each event received."""
    wal = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)::float / sum(received) FROM stats"
    tables = {f"{name}: bytes an event": size for name, size in connection.execute(BYTES)}
    return tables | {"WAL: bytes an event": database.value(connection, wal, [begun])}
