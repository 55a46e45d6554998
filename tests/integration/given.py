"""What the tests take as given: events, batches that were received, and what the audit log says of them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from servers import eventually

from chronicle import database
from chronicle.events import Events, decode
from chronicle.ledger import new_batch_id
from command.writer import Writer
from tests.chaos.proxy import Proxy

Run = Callable[[Coroutine[Any, Any, None]], None]
"""What runs a coroutine in an event loop of its own."""

WayTo = Callable[[str], tuple[Proxy, str]]
"""What puts a proxy before the server of a URL: the proxy, and the URL by which it is reached."""


def other_database(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    parts = conninfo_to_dict(url)
    return f"postgresql://{parts['user']}:{parts['password']}@{parts['host']}:{parts['port']}/{name}"


def new_database(postgres_url: str, source: str) -> Iterator[str]:
    """The URL of a copy of the database `source`, which is dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
        yield other_database(postgres_url, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def needs_postgres(version: int, connection: psycopg.Connection[Any]) -> None:
    """Skips a test of what an older PostgreSQL does not have."""
    if connection.info.server_version < version * 10_000:
        pytest.skip(f"PostgreSQL {version} has this first")


def event(event_id: str, topic: str = "t", **other: Any) -> dict[str, Any]:
    """An event as a publisher would send it."""
    return {
        "event_id": event_id,
        "topic": topic,
        "source": "test",
        "payload": {"message": event_id},
        "timestamp": "2025-01-01T00:00:00Z",
    } | other


LARGE_BYTES, LARGE_BLOCKS = 2**20, 2**7
"""How long the payload of a large event is, and how many blocks PostgreSQL keeps it in, at least."""


def large(event_id: str, **other: Any) -> dict[str, Any]:
    """An event with a large payload, which cannot be compressed."""
    return event(event_id, payload={"message": os.urandom(LARGE_BYTES // 2).hex()}, **other)


def blocks_read(connection: psycopg.Connection[Any], statement: str, parameters: dict[str, Any]) -> int:
    """How many blocks a statement reads, in memory or from the disk."""
    plan = database.value(connection, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def columns(*events: dict[str, Any]) -> Events:
    """The events as the command side holds them once they are checked."""
    return decode(json.dumps({"events": events}).encode(), 10_000)


async def receive(url: str, *batches: Sequence[dict[str, Any]]) -> list[uuid.UUID]:
    """Records each batch as received; its id."""
    writer = await Writer.open(url)
    ids = []
    for events in batches:
        ids.append(new_batch_id())
        await writer.record_received(ids[-1], columns(*events))
    await writer.close()
    return ids


def until_blocked(url: str, service: str, sessions: int = 1) -> None:
    """Returns once so many sessions of the service wait for a lock.

    Asked on a session of its own: a transaction sees pg_stat_activity as it was when it first looked.
    """
    with database.connect(url, "looking") as looking:
        eventually(lambda: database.value(looking, WAITING, [f"chronicle-{service}"]) >= sessions)


WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = %s AND wait_event_type = 'Lock'
"""


def actions(connection: psycopg.Connection[Any]) -> list[tuple[str, str, str | None]]:
    """What the audit log says: event_id, action and reason, in order."""
    rows = connection.execute("SELECT event_id, action, reason FROM audit_log ORDER BY created_at, id").fetchall()
    return [tuple(row) for row in rows]
