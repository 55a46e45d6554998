"""Rates: events a second of ChronicleWeaver, and of what it is compared with, each begun on a fresh database."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from chronicle import database
from chronicle.ledger import new_batch_id
from chronicle.up import ports
from chronicle.up.children import spawn, stop
from loadtest import client, system, workload
from loadtest.report import medians
from tests.servers import ROOT, Stack, eventually

FLOOR_ROWS = 700
TURNS = 3


@dataclass(frozen=True)
class Shape:
    """How publishers send: events a request, connections, and events in all."""

    name: str
    size: int
    connections: int
    events: int

    def count(self, scale: float) -> int:
        """Events at this scale: at least two requests, or there would be no percentiles."""
        return max(int(self.events * scale), 2 * self.size)


BULK = Shape("bulk", 1000, 6, 400_000)
HUNDREDS = Shape("hundreds", 100, 8, 100_000)
SINGLE = Shape("single", 1, 32, 60_000)
SINGLE_128 = Shape("single, 128 connections", 1, 128, 60_000)
"""A turn is a third of them, some two seconds: what the last ones take to be projected, 40 ms, is little of it."""


def measure(port: int, shape: Shape, scale: float, projected: Callable[[], object]) -> dict[str, float]:
    """Events/s from the first request until `projected` returns, and the latencies of the requests."""
    requests = workload.requests(workload.events(shape.count(scale)), shape.size)
    begun = time.monotonic()
    latencies = client.send(port, requests, shape.connections)
    projected()
    rate = len(requests) * shape.size / (time.monotonic() - begun)
    return {f"{shape.name} events/s": rate} | client.milliseconds(latencies, shape.name)


def of_bulk(scale: float) -> dict[str, float]:
    """Many events a request, and the memory that they took. All invariants hold afterwards.

    Half of the floor is measured before BULK and half after it: a minute later the machine may be another.
    """
    with system.chronicle() as stack, _floor(scale) as floor:
        seconds = floor()
        found = measure(stack.port, BULK, scale, partial(system.settle, stack))
        seconds += floor()
        found |= measure(stack.port, HUNDREDS, scale, partial(system.settle, stack))
        found |= {f"{BULK.name}: {name}": megabytes for name, megabytes in system.memory(stack).items()}
        system.verify(stack)
    return found | {"floor events/s": BULK.count(scale) / seconds}


COPY_ROWS = 'COPY floor (event_id, topic, source, payload, "timestamp", batch_id, position) FROM STDIN'


@contextmanager
def _floor(scale: float) -> Iterator[Callable[[], float]]:
    """COPY of the events that survive deduplication, FLOOR_ROWS a commit, over one connection, with the same indexes.

    Each of two calls copies half of them, and gives the seconds: into one table, whose indexes grow as far as those of
    processed_events. The text to copy is made before. What is dropped costs nothing here, and counts for events/s.
    """
    kept = list(dict.fromkeys(workload.events(BULK.count(scale))))
    texts = [_copy_text(kept[start : start + FLOOR_ROWS]) for start in range(0, len(kept), FLOOR_ROWS)]
    halves = iter([texts[: len(texts) // 2], texts[len(texts) // 2 :]])
    with system.postgres() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE floor (LIKE processed_events INCLUDING ALL)")
        yield lambda: _copy(connection, next(halves))
        assert database.value(connection, "SELECT count(*) FROM floor") == len(kept)


def _copy(connection: psycopg.Connection[Any], texts: Iterable[bytes]) -> float:
    begun = time.monotonic()
    for text in texts:
        with connection.cursor().copy(COPY_ROWS) as copy:
            copy.write(text)
    return time.monotonic() - begun


def _copy_text(events: Sequence[bytes]) -> bytes:
    batch_id = new_batch_id()
    rows = []
    for position, event in enumerate(map(msgspec.json.decode, events), start=1):
        payload = msgspec.json.encode(event["payload"]).decode().replace("\\", "\\\\")
        rows.append(
            f"{event['event_id']}\t{event['topic']}\t{event['source']}\t{payload}\t{event['timestamp']}\t{batch_id}\t{position}\n"
        )
    return "".join(rows).encode()


def of_single(scale: float) -> dict[str, float]:
    """One event a request: ChronicleWeaver, its ceiling (see loadtest/ceiling.py) and the afternoon version in turn.

    Medians of TURNS turns, each with as much less to send: a minute later the machine may be another. Then the memory
    that it took. All invariants hold afterwards.
    """
    with (
        system.chronicle() as stack,
        system.chronicle() as idle,
        _ceiling(idle) as ceiling,
        _afternoon() as (afternoon, own_url),
    ):
        found = medians([_turn(stack, ceiling, afternoon, scale / TURNS) for _ in range(TURNS)])
        found |= {f"{SINGLE.name}: {name}": megabytes for name, megabytes in system.memory(stack).items()}
        system.verify(stack)
        assert system.ask(idle, "/stats")["received"] == 0
        _check_afternoon(own_url, TURNS * SINGLE.count(scale / TURNS))
    return found


def _turn(stack: Stack, ceiling: int, afternoon: int, scale: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for shape in (SINGLE, SINGLE_128):
        found |= measure(stack.port, shape, scale, partial(system.settle, stack))
        found |= _of_reference("ceiling of", ceiling, shape, scale)
    return found | _of_reference("afternoon", afternoon, SINGLE, scale)


def _of_reference(name: str, port: int, shape: Shape, scale: float) -> dict[str, float]:
    """Of a service that has nothing left to do once it has answered."""
    return {f"{name} {figure}": value for figure, value in measure(port, shape, scale, lambda: None).items()}


@contextmanager
def _ceiling(stack: Stack) -> Iterator[int]:
    port = ports.free()
    with ports.listen("127.0.0.1", port) as listening:
        fd = listening.fileno()
        with _running([sys.executable, "-m", "loadtest.ceiling", "api", "--fd", str(fd)], stack.environment, [fd]):
            client.send(port, [workload.get("/ready")], 1)  # it waits in the backlog until somebody accepts
            yield port


def of_afternoon(shapes: Sequence[Shape], scale: float) -> dict[str, float]:
    """The afternoon version (see loadtest/afternoon.py), which must have counted all that it was sent."""
    found: dict[str, float] = {}
    with _afternoon() as (port, own_url):
        for shape in shapes:
            found |= _of_reference("afternoon", port, shape, scale)
        _check_afternoon(own_url, sum(shape.count(scale) for shape in shapes))
    return found


def _check_afternoon(own_url: str, sent: int) -> None:
    with psycopg.connect(own_url) as connection:
        received, stored = connection.execute("SELECT received, processed FROM counters").fetchone() or (0, 0)
        assert received == sent
        assert stored == database.value(connection, "SELECT count(*) FROM processed_events")


@contextmanager
def _afternoon() -> Iterator[tuple[int, str]]:
    """Its port, and the URL of its database."""
    with system.postgres() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE afternoon")
        own_url, port = url.rpartition("/")[0] + "/afternoon", ports.free()
        words = ["uvicorn", "loadtest.afternoon:app", "--port", str(port), "--no-access-log", "--log-level", "warning"]
        with _running([sys.executable, "-m", *words], {**os.environ, "DATABASE_URL": own_url}):
            eventually(lambda: not ports.is_free(port), 30)
            yield port, own_url


@contextmanager
def _running(command: Sequence[str | Path], environment: dict[str, str], fds: Sequence[int] = ()) -> Iterator[None]:
    process = spawn(command, environment=environment, death_signal=signal.SIGTERM, folder=ROOT, pass_fds=fds)
    try:
        yield
    finally:
        stop(process, [(signal.SIGTERM, 5.0)])
