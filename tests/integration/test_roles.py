"""Database roles: each service can do its work and nothing else, whoever migrates, and a rebuild changes none of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from given import columns, event, new_database, other_database, receive
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from servers import eventually
from structlog.testing import capture_logs

from chronicle import database, history, rebuild, roles, schema, verify
from chronicle.errors import NotAllowed
from chronicle.ledger import new_batch_id
from chronicle.tables import metadata
from chronicle.up.children import stop
from chronicle.up.servers import Postgres, start
from command.dispatch import Dispatcher
from command.writer import Writer
from projector import failed
from projector.projection import project_apart
from projector.worker import Worker
from query import audit, events, snapshot, stats, system, trail
from query import history as minutes

SERVICES = ("command", "projector", "query")
EVERYTHING = {"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"}
RELATIONS = (*metadata.tables, "received_events", "audit_log", "alembic_version")

ALLOWED = {
    ("command", "facts"): {"SELECT", "INSERT"},
    ("command", "outbox"): {"INSERT"},
    ("command", "fact_topics"): {"INSERT"},
    ("command", "stats"): {"SELECT", "INSERT", "UPDATE"},
    ("command", "history"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("command", "alembic_version"): {"SELECT"},
    ("projector", "facts"): {"SELECT", "INSERT"},
    ("projector", "outbox"): {"SELECT", "UPDATE", "DELETE"},
    ("projector", "processed_events"): {"SELECT", "INSERT"},
    ("projector", "dropped_events"): {"SELECT", "INSERT"},
    ("projector", "failed_events"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("projector", "fact_topics"): {"INSERT"},
    ("projector", "stats"): {"SELECT", "INSERT", "UPDATE"},
    ("projector", "unsequenced"): {"SELECT", "INSERT", "DELETE"},
    ("projector", "stream"): {"SELECT", "INSERT"},
    ("projector", "history"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("projector", "workers"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("projector", "received_events"): {"SELECT"},
    ("projector", "alembic_version"): {"SELECT"},
} | {("query", relation): {"SELECT"} for relation in RELATIONS}

FORBIDDEN = [
    (service, privilege, relation)
    for service in SERVICES
    for relation in RELATIONS
    for privilege in sorted(EVERYTHING - ALLOWED.get((service, relation), set()))
    if privilege == "SELECT" or relation not in roles.VIEWS  # which nobody can write to
]

ATTEMPT = {
    "SELECT": "SELECT * FROM {0}",
    "INSERT": "INSERT INTO {0} DEFAULT VALUES",
    "UPDATE": "UPDATE {0} SET {1} = {1}",
    "DELETE": "DELETE FROM {0}",
    "TRUNCATE": "TRUNCATE {0}",
}

BY_OTHER_MEANS = (
    "ALTER TABLE facts DISABLE TRIGGER ALL",
    "SET session_replication_role = replica",
    "DROP TABLE facts CASCADE",
    "DROP TRIGGER facts_append_only ON facts",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE TABLE mine (n int)",
    "SET ROLE chronicle",
    "INSERT INTO facts (batch_id, action, lane, event_count) VALUES (gen_random_uuid(), 'QUEUED', 0, 1) "
    "ON CONFLICT (batch_id, action, attempt) DO UPDATE SET lane = 1",
)


def as_user(url: str, user: str) -> str:
    """The URL of the same database for another user, whose password is `password`."""
    return make_conninfo(url, user=user, password="password")


def make_user(url: str, name: str, options: str) -> str:
    """The URL of the database for a login that is made where it is not there yet."""
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
            connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'password' {options}")
    return as_user(url, name)


def logins(url: str) -> dict[str, str]:
    """The URL for each service as a login of its own, which has nothing but the membership in the service's role."""
    return {service: make_user(url, f"only_{service}", f"IN ROLE {roles.SERVICES[service]}") for service in SERVICES}


@pytest.fixture
def login(database_url: str) -> dict[str, str]:
    """The logins of the services in a database of this test's own."""
    return logins(database_url)


@pytest.fixture(scope="module")
def refusing(postgres_url: str, template: str) -> Iterator[dict[str, str]]:
    """The logins of the services in a database that stays as it is, since all that is tried there is refused."""
    for url in new_database(postgres_url, template):
        yield logins(url)


def column(relation: str) -> str:
    named = {"alembic_version": "version_num", "stats": "lane", "history": "minute", "workers": "worker_id"}
    return named.get(relation, "batch_id")


@pytest.mark.parametrize(("service", "privilege", "relation"), FORBIDDEN)
def test_what_is_not_a_services_work_is_refused(
    service: str, privilege: str, relation: str, refusing: dict[str, str]
) -> None:
    with psycopg.connect(refusing[service]) as connection, pytest.raises(pg.InsufficientPrivilege):
        connection.execute(ATTEMPT[privilege].format(relation, column(relation)))


@pytest.mark.parametrize("statement", BY_OTHER_MEANS)
@pytest.mark.parametrize("service", SERVICES)
def test_the_ledger_cannot_be_changed_by_other_means(service: str, statement: str, refusing: dict[str, str]) -> None:
    with psycopg.connect(refusing[service]) as connection, pytest.raises(pg.InsufficientPrivilege):
        connection.execute(statement)


def test_every_table_and_view_is_decided_on_for_every_role() -> None:
    for service in SERVICES:
        granted = {table: set(text.split(", ")) for table, text in roles.GRANTS[roles.SERVICES[service]].items()}
        assert granted == {table: words for (name, table), words in ALLOWED.items() if name == service}


async def test_all_three_services_work_with_nothing_but_their_roles(login: dict[str, str], queue: str) -> None:
    events_twice = [event("a"), event("b", topic="u")] * 2
    dispatcher, writer = Dispatcher(login["command"], queue), await Writer.open(login["command"])
    batch_id = new_batch_id()
    await writer.record_received(batch_id, columns(*events_twice))
    assert await dispatcher.send([batch_id])
    assert await dispatcher.record_queued([batch_id])
    await writer.connection.execute(history.SAMPLE)
    await writer.close()
    await dispatcher.close()
    worker = Worker(login["projector"], queue, threading.Event(), keeps_history=True)
    eventually(worker.run_once)
    async with database.read_pool(login["query"], "query", 2) as pool, pool.connection() as connection:
        books = json.loads(await stats.totals(connection, 0))
        assert (books["unique_processed"], books["duplicated_dropped"], books["in_flight"]) == (2, 2, 0)
        assert json.loads(await stats.summary(connection))["total_queued"] == 4
        filters = dict.fromkeys(("topic", "source", "event_id", "from", "to", "action"))
        assert b'"count":2' in (await events.page(connection, filters, 10, None)).replace(b" ", b"")
        assert b"PROCESSED" in await audit.page(connection, filters, 10, None)
        assert b"DROPPED" in await trail.trail(connection, "t", "a", 10)
        assert b'"minutes":["' in await minutes.by_minute(connection, 15)
        assert (await snapshot.take(connection, await snapshot.look(None))).books.unique == 2
        assert len((await system.look(connection)).workers) == 1
        worker.close()
        assert (await system.look(connection)).workers == []


async def test_failed_events_are_tried_again_with_the_projectors_login(
    login: dict[str, str], database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("ALTER TABLE processed_events ADD CONSTRAINT poison CHECK (event_id <> 'a') NOT VALID")
    [batch_id] = await receive(database_url, [event("a")])
    project_apart(db, batch_id, 0)
    db.execute("ALTER TABLE processed_events DROP CONSTRAINT poison")
    assert failed.retry(login["projector"], None, None)
    assert db.execute("SELECT processed, failed FROM stats WHERE lane >= 0").fetchall() == [(1, 0)]


async def test_a_service_takes_its_role_where_its_user_may(database_url: str) -> None:
    statement = "SELECT current_user::text"
    with database.connect(database_url, "projector") as connection:
        assert database.value(connection, statement) == "chronicle_projector"
    writer = await Writer.open(database_url)
    assert await (await writer.connection.execute(statement)).fetchone() == ("chronicle_command",)
    await writer.close()
    async with database.read_pool(database_url, "query", 2) as pool, pool.connection() as connection_:
        assert await (await connection_.execute(statement)).fetchone() == ("chronicle_query",)
    with database.connect(database_url, "rebuild") as connection:
        assert database.value(connection, statement) == "chronicle"


def test_a_missing_privilege_is_one_clear_error_and_not_the_events_fault(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    db.execute("REVOKE ALL ON outbox FROM chronicle_projector")
    with database.connect(database_url, "projector") as connection:
        with pytest.raises(NotAllowed, match=r"outbox: run `chronicle migrate`"), database.ours():
            connection.execute("DELETE FROM outbox")
        schema.migrate(database_url)
        connection.execute("DELETE FROM outbox")


def test_verify_names_who_could_change_facts(database_url: str, db: psycopg.Connection[Any]) -> None:
    db.execute("GRANT SELECT, UPDATE ON facts TO chronicle_query")
    broken = [text for number, _, texts in verify.run(database_url) for text in texts if number == 5]
    assert broken == ["chronicle_query may UPDATE facts"]


OWNERS = (
    "SELECT relname, pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
)


def test_a_rebuild_by_an_administrator_leaves_every_table_to_its_owner(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    before = db.execute(OWNERS).fetchall()
    rebuild.rebuild(make_user(database_url, "administrator", "SUPERUSER"))
    assert db.execute(OWNERS).fetchall() == before


async def test_after_a_rebuild_everybody_may_do_what_they_could(database_url: str, db: psycopg.Connection[Any]) -> None:
    make_user(database_url, "reporting", "")
    db.execute("GRANT SELECT ON stats TO reporting WITH GRANT OPTION; GRANT SELECT ON dropped_events TO PUBLIC")
    held = """
        SELECT relname, acl::text FROM pg_class, unnest(relacl) AS acl
        WHERE relnamespace = 'public'::regnamespace ORDER BY 1, 2
    """
    before = db.execute(held).fetchall()
    await receive(database_url, [event("a")])
    rebuild.rebuild(database_url)
    assert db.execute(held).fetchall() == before
    assert len(before) > 20


@pytest.fixture(scope="module")
def fresh_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL that has no role of ours yet."""
    home: Path = tmp_path_factory.mktemp("cluster")
    server = Postgres(home)
    start(server)
    yield server.url
    assert server.process
    stop(server.process, server.stop_steps)


def make_database(url: str, name: str, owner: str = "chronicle") -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER {owner}")
    parts = conninfo_to_dict(url)
    return (
        make_conninfo(other_database(url, name), user=owner, password="password")
        if owner != parts["user"]
        else (other_database(url, name))
    )


def drop_roles(url: str) -> None:
    """Takes the roles away, with the databases that depend on them."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname NOT IN ('chronicle', 'postgres')"
        for (name,) in connection.execute(names).fetchall():
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        for role in roles.GRANTS:
            connection.execute(f"DROP ROLE IF EXISTS {role}")


def role_of(url: str, service: str) -> str:
    with database.connect(url, service) as connection:
        return str(database.value(connection, "SELECT current_user::text"))


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_another_database_that_makes_the_roles_at_the_same_moment_is_no_obstacle(end: str, fresh_cluster: str) -> None:
    drop_roles(fresh_cluster)
    url = make_database(fresh_cluster, "second")
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    failures: list[Exception] = []

    def migrate() -> None:
        try:
            schema.migrate(url)
        except Exception as error:
            failures.append(error)

    with psycopg.connect(fresh_cluster, autocommit=True) as first:
        first.execute("BEGIN")
        first.execute("CREATE ROLE chronicle_command NOLOGIN")
        thread = threading.Thread(target=migrate)
        thread.start()
        eventually(lambda: database.value(first, waiting) or not thread.is_alive())
        first.execute(end)
        thread.join()
    assert failures == []
    assert [role_of(url, service) for service in SERVICES] == list(roles.GRANTS)


def test_a_user_who_may_make_roles_can_then_take_them_on(fresh_cluster: str) -> None:
    drop_roles(fresh_cluster)
    make_user(fresh_cluster, "maker", "CREATEROLE")
    for name in ("first_of_two", "second_of_two"):
        url = make_database(fresh_cluster, name, "maker")
        schema.migrate(url)
        assert [role_of(url, service) for service in SERVICES] == list(roles.GRANTS)


async def test_a_user_who_may_not_make_roles_is_told_and_works_as_before(fresh_cluster: str) -> None:
    drop_roles(fresh_cluster)
    make_user(fresh_cluster, "owner_only", "")
    url = make_database(fresh_cluster, "managed", "owner_only")
    with capture_logs() as logged:
        schema.migrate(url)
    [warning] = [entry for entry in logged if "missing_roles" in entry]
    assert warning["missing_roles"] == list(roles.GRANTS)
    assert role_of(url, "command") == "owner_only"
    await receive(url, [event("a")])


def test_roles_that_an_administrator_makes_later_are_granted_by_the_next_migrate(fresh_cluster: str) -> None:
    drop_roles(fresh_cluster)
    make_user(fresh_cluster, "owner_only", "")
    url = make_database(fresh_cluster, "managed_later", "owner_only")
    schema.migrate(url)
    with psycopg.connect(fresh_cluster, autocommit=True) as connection:
        for role in roles.GRANTS:
            connection.execute(f"CREATE ROLE {role} NOLOGIN; GRANT {role} TO owner_only")
    schema.migrate(url)
    with database.connect(url, "query") as connection, database.ours():
        assert database.value(connection, "SELECT current_user::text") == "chronicle_query"
        assert database.value(connection, "SELECT count(*) FROM audit_log") == 0
        with pytest.raises(pg.InsufficientPrivilege):
            connection.execute("DELETE FROM outbox")


def test_a_login_of_a_service_may_find_the_schema_migrated(login: dict[str, str]) -> None:
    schema.migrate(login["command"])
