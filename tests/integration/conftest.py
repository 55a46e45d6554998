"""A migrated database and an empty queue for each test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import uvloop
from given import Run, WayTo, new_database, other_database

from chronicle import broker, database, schema
from projector.worker import Worker
from tests.chaos.proxy import Proxy


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """The name of a migrated database that nobody is connected to."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
    schema.migrate(other_database(postgres_url, "migrated"))
    return "migrated"


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """A database with no tables."""
    yield from new_database(postgres_url, "template1")


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    yield from new_database(postgres_url, template)


@pytest.fixture
def queue(redis_url: str) -> Iterator[str]:
    """The URL of an empty Valkey."""
    client = broker.connect(redis_url)
    client.flushall()
    yield redis_url
    client.close()


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection for looking, and for breaking things."""
    with database.connect(database_url, "test") as connection:
        yield connection


@pytest.fixture
def worker(database_url: str, queue: str) -> Iterator[Worker]:
    """A worker that a test drives step by step."""
    worker = Worker(database_url, queue, threading.Event())
    yield worker
    worker.close()


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine in an event loop of its own: in Python's, and in the one that serves."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def way_to() -> Iterator[WayTo]:
    """Puts proxies before servers."""
    proxies: list[Proxy] = []

    def put(url: str) -> tuple[Proxy, str]:
        port = urlsplit(url).port
        assert port
        proxies.append(Proxy(lambda: port))
        return proxies[-1], url.replace(f":{port}/", f":{proxies[-1].port}/")

    yield put
    for proxy in proxies:
        proxy.close()
