"""Our sessions are as they must be whatever others say of them, and what ends one is not the fault of an event."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from given import columns, event, needs_postgres, new_database, receive
from psycopg import errors as pg
from psycopg.conninfo import make_conninfo
from servers import eventually
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from chronicle import database, rebuild, schema, verify
from chronicle.errors import ChronicleError, DatabaseAway
from chronicle.ledger import new_batch_id
from chronicle.settings import Settings
from command.writer import Writer
from projector.worker import Worker
from query.app import create_app
from query.sessions import Sessions

LEVELS = ("DATABASE", "ROLE", "URL")
"""Who says what a session is to be."""

PIN = {
    "default_transaction_isolation": ("serializable", "read committed"),
    "DateStyle": ("SQL, DMY", "ISO, DMY"),
    "TimeZone": ("Asia/Kathmandu", "UTC"),
    "client_encoding": ("LATIN1", "UTF8"),
    "search_path": ("app", "public"),
}
"""What somebody else sets, and what our sessions have all the same."""


def says(level: str, name: str, value: str, url: str) -> str:
    """The URL of the database, after the setting was made on this level."""
    if level == "URL":
        return make_conninfo(url, options=f"-c {name}={value.replace(' ', chr(92) + ' ')}")
    with psycopg.connect(url, autocommit=True) as connection:
        whose = connection.info.dbname if level == "DATABASE" else f"chronicle IN DATABASE {connection.info.dbname}"
        connection.execute(f"ALTER {level} {whose} SET {name} = '{value}'")
    with psycopg.connect(url) as connection:
        assert database.value(connection, "SELECT current_setting(%s)", [name]) == value
    return url


async def shown(url: str, name: str) -> list[str]:
    """What each kind of session that we open has."""
    show = f"SHOW {name}"
    with database.connect(url, "projector") as connection:
        found = [database.value(connection, show)]
    async with await database.connect_async(url, "command") as session:
        found += await (await session.execute(show)).fetchone() or ()
    async with database.read_pool(url, "query", 2) as pool, pool.connection() as session:
        found += await (await session.execute(show)).fetchone() or ()
    return found


@pytest.fixture
def administered(empty_url: str) -> str:
    """A database for which somebody set, in other ways than ours, all that PIN names before it was migrated."""
    for name, (set_to, _) in PIN.items():
        says("DATABASE", name, set_to, empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("CREATE SCHEMA app")
    schema.migrate(empty_url)
    return empty_url


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PIN)
async def test_what_must_hold_holds_whatever_others_say(name: str, level: str, database_url: str) -> None:
    set_to, ours = PIN[name]
    assert await shown(says(level, name, set_to, database_url), name) == [ours] * 3


@pytest.mark.parametrize(
    ("variable", "name"), [("PGDATESTYLE", "DateStyle"), ("PGTZ", "TimeZone"), ("PGCLIENTENCODING", "client_encoding")]
)
async def test_neither_does_the_environment_change_it(
    variable: str, name: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to, ours = PIN[name]
    monkeypatch.setenv(variable, set_to)
    assert await shown(database_url, name) == [ours] * 3


async def test_such_a_database_is_worked_in_like_any_other(administered: str, queue: str) -> None:
    sent = event("käse-\U0001f9c0", payload={"message": "Käse \U0001f9c0"})
    await receive(administered, [sent, sent])
    await work_off(administered, queue)
    rebuild.rebuild(administered)
    assert [text for _, _, violations in verify.run(administered) for text in violations] == []
    with TestClient(create_app(Settings(), administered)) as client:
        assert client.get("/events").json()["events"] == [sent]
        [record] = client.get("/audit?action=DROPPED").json()["audit_logs"]
        assert record["created_at"].endswith("Z")


async def work_off(url: str, queue: str) -> None:
    """Projects a batch that waits."""
    worker = Worker(url, queue, threading.Event())
    eventually(worker.run_once)  # it is overdue after a second, since no ticket names it
    worker.close()


async def test_a_schema_of_the_users_name_is_left_alone(empty_url: str, queue: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute("CREATE SCHEMA chronicle")
    schema.migrate(empty_url)
    await receive(empty_url, [event("a")])
    await work_off(empty_url, queue)
    assert tables(empty_url) == {"public"}


async def test_a_rebuild_with_another_search_path_makes_the_tables_that_the_services_use(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE SCHEMA app")
    url = says("URL", "search_path", "app", database_url)
    schema.migrate(url)
    await receive(database_url, [event("a")])
    rebuild.rebuild(url)
    assert tables(database_url) == {"public"}
    assert [text for _, _, violations in verify.run(url) for text in violations] == []


def tables(url: str) -> set[str]:
    """The schemas that have tables or views."""
    named = "SELECT DISTINCT relnamespace::regnamespace::text FROM pg_class WHERE relkind IN ('r', 'v')"
    with psycopg.connect(url) as connection:
        schemas = {str(row[0]) for row in connection.execute(named)}
    return schemas - {"pg_catalog", "information_schema"}


async def test_what_nobody_waits_for_any_more_is_ended(database_url: str) -> None:
    sessions = Sessions(database_url)
    await sessions.open()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work(_: psycopg.AsyncConnection[Any]) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    asking = asyncio.create_task(sessions.ask(work))
    await begun.wait()
    asking.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    assert asking.cancelled()
    await sessions.close()


async def test_a_client_encoding_of_the_url_changes_nothing(database_url: str) -> None:
    url = make_conninfo(database_url, client_encoding="LATIN1")
    assert await shown(url, "client_encoding") == ["UTF8"] * 3


async def test_a_session_that_can_only_read_is_had_where_the_url_wants_one_that_writes(database_url: str) -> None:
    url = make_conninfo(database_url, target_session_attrs="read-write")
    async with database.read_pool(url, "query", 2) as pool, pool.connection() as session:
        with pytest.raises(pg.ReadOnlySqlTransaction):
            await session.execute("CREATE TABLE mine (n int)")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_in_another_encoding_is_not_migrated(encoding: str, postgres_url: str) -> None:
    made_as = f"template0 ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C'"
    for url in new_database(postgres_url, made_as):
        with pytest.raises(ChronicleError, match=f"cannot migrate: the database is in {encoding}"):
            schema.migrate(url)
        with TestClient(create_app(Settings(), url)) as client:
            assert client.get("/ready").status_code == 503


@pytest.fixture
def impatient(database_url: str, db: psycopg.Connection[Any]) -> Iterator[str]:
    """A database where transactions end after half a second, and all that count in `stats` wait for longer."""
    needs_postgres(17, db)
    says("DATABASE", "transaction_timeout", "500ms", database_url)
    with db.transaction():
        db.execute("LOCK TABLE stats IN ACCESS EXCLUSIVE MODE")
        yield database_url


async def test_a_commit_that_the_administrator_ends_is_a_lost_session(impatient: str) -> None:
    writer = await Writer.open(impatient)
    with pytest.raises(DatabaseAway, match="transaction timeout"):
        await writer.record_received(new_batch_id(), columns(event("a")))
    await writer.close()


def test_an_answer_that_the_administrator_ends_is_a_503(impatient: str) -> None:
    with TestClient(create_app(Settings(), impatient)) as client:
        assert client.get("/stats").status_code == 503


async def test_a_projection_that_the_administrator_ends_is_not_the_fault_of_its_batch(
    database_url: str, queue: str, request: pytest.FixtureRequest
) -> None:
    await receive(database_url, [event("a")])
    worker = Worker(request.getfixturevalue("impatient"), queue, threading.Event())
    with capture_logs() as logged, pytest.raises(DatabaseAway, match="transaction timeout"):
        eventually(worker.run_once)
    assert [entry for entry in logged if entry["log_level"] == "error"] == []
    worker.close()


def test_a_transaction_that_was_idle_for_too_long_is_a_lost_session(db: psycopg.Connection[Any]) -> None:
    """Said by the server here: what a session that it ends is told comes together with the end, or is lost with it."""
    with pytest.raises(DatabaseAway, match="idle for too long"), database.ours():
        db.execute("DO $$ BEGIN RAISE SQLSTATE '25P03' USING MESSAGE = 'idle for too long'; END $$")
