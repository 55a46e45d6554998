"""Our sessions: some of what they are is as it must be, whatever the database, its user or the URL says."""

from __future__ import annotations

import threading

import psycopg
import pytest
from given import event, new_database, receive
from psycopg import errors as pg
from psycopg.conninfo import make_conninfo
from servers import eventually
from starlette.testclient import TestClient

from chronicle import database, rebuild, verify
from chronicle.errors import ChronicleError
from chronicle.settings import Settings
from projector.worker import Worker
from query.app import create_app

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
        level = level if level == "DATABASE" else "ROLE"
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
    database.migrate(empty_url)
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
    database.migrate(empty_url)
    await receive(empty_url, [event("a")])
    await work_off(empty_url, queue)
    assert tables(empty_url) == {"public"}


async def test_a_rebuild_with_another_search_path_makes_the_tables_that_the_services_use(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE SCHEMA app")
    url = says("URL", "search_path", "app", database_url)
    database.migrate(url)
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
            database.migrate(url)
        with TestClient(create_app(Settings(), url)) as client:
            assert client.get("/ready").status_code == 503
