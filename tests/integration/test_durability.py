"""A database that may lose what it has committed is named and not published to; our sessions pin their own commits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from given import event
from servers import eventually, start_with, stop_server
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from chronicle import database, schema
from chronicle.settings import Settings
from chronicle.up.servers import Postgres, start
from command.app import create_app as command_app
from command.writer import Writer
from query.app import create_app as query_app

SETTINGS = ("fsync", "full_page_writes", "synchronous_commit")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A migrated PostgreSQL whose settings, unlike those of our embedded ones, a test may change while it runs."""
    server = Postgres(tmp_path_factory.mktemp("durability"))
    try:
        start(server)
        schema.migrate(server.url)
        stop_server(server)
        start_with(server)
        yield server
    finally:
        stop_server(server)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def switched(url: str, name: str, value: str = "off") -> Iterator[None]:
    """The whole cluster's setting, changed while everybody is connected."""
    execute(url, f"ALTER SYSTEM SET {name} = {value}", "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        execute(url, f"ALTER SYSTEM RESET {name}", "SELECT pg_reload_conf()")


@pytest.fixture
def command(server: Postgres, queue: str) -> Iterator[TestClient]:
    """The command service."""
    with TestClient(command_app(Settings(), server.url, queue), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def query(server: Postgres) -> Iterator[TestClient]:
    """The query service."""
    with TestClient(query_app(Settings(), server.url), raise_server_exceptions=False) as client:
        yield client


def said(client: TestClient, status: int) -> str:
    """What /ready says; fails unless it has this status."""
    answer = client.get("/ready")
    assert answer.status_code == status, answer.text
    return answer.text


def publish(client: TestClient, event_id: str) -> int:
    return client.post("/publish", json={"events": [event(event_id)]}).status_code


@pytest.mark.parametrize("name", SETTINGS)
def test_what_may_lose_commits_is_named_and_not_published_to(
    name: str, server: Postgres, command: TestClient, query: TestClient
) -> None:
    assert publish(command, f"{name} before") == 200
    with switched(server.url, name):
        for client in (command, query):
            assert f"{name} = off" in eventually(lambda client=client: said(client, 503), timeout=15)
        refusal = command.post("/publish", json={"events": [event(f"{name} refused")]})
        assert refusal.status_code == 503
        assert f"{name} = off" in refusal.json()["detail"][0]["msg"]
        assert refusal.headers["retry-after"]
        assert query.get("/stats").status_code == 200
    for client in (command, query):
        eventually(lambda client=client: said(client, 200), timeout=15)
    assert publish(command, f"{name} after") == 200
    with psycopg.connect(server.url) as connection:
        rows = connection.execute(
            "SELECT event_id FROM received_events WHERE event_id LIKE %s", [f"{name} %"]
        ).fetchall()
    assert {row[0] for row in rows} == {f"{name} before", f"{name} after"}


@pytest.mark.parametrize("level", ["ALTER DATABASE chronicle", "ALTER ROLE chronicle"])
def test_publishing_goes_on_once_what_is_set_for_new_sessions_is_right(
    level: str, server: Postgres, queue: str
) -> None:
    execute(server.url, f"{level} SET synchronous_commit = off")
    try:
        eventually(lambda: set_to(server.url) == "off")
        with (
            TestClient(command_app(Settings(), server.url, queue)) as command,
            TestClient(query_app(Settings(), server.url)) as query,
        ):
            for client in (command, query):
                eventually(lambda client=client: "synchronous_commit = off" in said(client, 503), timeout=15)
            execute(server.url, f"{level} RESET synchronous_commit")
            for client in (command, query):
                eventually(lambda client=client: said(client, 200), timeout=15)
            assert publish(command, f"{level} reset") == 200
    finally:
        execute(server.url, f"{level} RESET synchronous_commit")


def test_it_is_refused_from_the_first_event_on(server: Postgres, queue: str) -> None:
    with (
        switched(server.url, "fsync"),
        capture_logs() as logged,
        TestClient(command_app(Settings(), server.url, queue)) as client,
    ):
        assert publish(client, "too early") == 503
        [loud] = [entry for entry in logged if entry["log_level"] == "critical"]
    assert loud["off"] == ["fsync"]


def test_the_loss_can_be_accepted(server: Postgres, queue: str) -> None:
    settings = Settings(chronicle_allow_unsafe_database=True)
    with (
        switched(server.url, "fsync"),
        capture_logs() as logged,
        TestClient(command_app(settings, server.url, queue)) as command,
        TestClient(query_app(settings, server.url)) as query,
    ):
        assert publish(command, "may be lost") == 200
        for client in (command, query):
            eventually(lambda client=client: said(client, 200), timeout=15)
    assert [entry["off"] for entry in logged if entry["log_level"] == "critical"] == [["fsync"]]


@pytest.mark.parametrize(
    ("configured", "ours"),
    [
        ("off", "on"),
        ("on", "on"),
        ("local", "local"),
        ("remote_write", "remote_write"),
        ("remote_apply", "remote_apply"),
    ],
)
@pytest.mark.parametrize("level", ["ALTER SYSTEM", "ALTER DATABASE chronicle", "ALTER ROLE chronicle"])
async def test_our_commits_wait_for_the_disk_whatever_is_configured(
    level: str, configured: str, ours: str, server: Postgres
) -> None:
    execute(server.url, f"{level} SET synchronous_commit = {configured}", "SELECT pg_reload_conf()")
    try:
        eventually(lambda: set_to(server.url) == configured)
        writer = await Writer.open(server.url)
        assert await (await writer.connection.execute("SHOW synchronous_commit")).fetchone() == (ours,)
        await writer.close()
    finally:
        execute(server.url, f"{level} RESET synchronous_commit", "SELECT pg_reload_conf()")


async def test_a_reload_does_not_change_commits_of_a_session_that_is_open(server: Postgres) -> None:
    writer = await Writer.open(server.url)
    with switched(server.url, "synchronous_commit"):
        eventually(lambda: set_to(server.url) == "off")
        assert await (await writer.connection.execute("SHOW synchronous_commit")).fetchone() == ("on",)
    await writer.close()


def set_to(url: str) -> str:
    """What a session that says nothing gets."""
    with psycopg.connect(url) as connection:
        return str(database.value(connection, "SHOW synchronous_commit"))


def test_a_commit_that_is_tried_again_waits_for_the_standby_as_well(server: Postgres, command: TestClient) -> None:
    """The first try is committed, here alone, when its session is ended while it waits."""
    waits = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with switched(server.url, "synchronous_standby_names", "'absent'"), ThreadPoolExecutor() as client:
        with psycopg.connect(server.url, autocommit=True) as admin:
            publishing = client.submit(command.post, "/publish", json={"events": [event("standby")]})
            eventually(lambda: admin.execute(waits).fetchone())
        assert publishing.result().status_code == 503
