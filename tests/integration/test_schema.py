"""The schema: migrations and table metadata say the same, several migrate at once, the ledger is append-only."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import threading
import uuid
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from given import event, needs_postgres, receive
from psycopg import errors as pg

import chronicle
import command
import projector
import query
from chronicle import database, ledger, roles, schema, tables
from chronicle.errors import DatabaseAway, SchemaBehind
from projector import projection
from query import audit, trail
from tests.servers import ROOT

CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
               a.attstorage::text, a.attstattarget, coll.collname, pg_get_expr(d.adbin, d.adrelid),
               col_description(c.oid, a.attnum), c.reloptions::text, obj_description(c.oid)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        LEFT JOIN pg_collation coll ON coll.oid = a.attcollation
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname <> 'alembic_version'
        ORDER BY 1, 2""",
    "constraints": """
        SELECT conname, contype::text, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conname NOT LIKE 'alembic%' ORDER BY 1""",
    "indexes": """
        SELECT indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1""",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1",
    "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
    "privileges": """
        SELECT c.relname, coalesce(nullif(held.grantee, 0)::regrole::text, 'PUBLIC'), held.privilege_type
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS held
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v') AND c.relname <> 'alembic_version'
        ORDER BY 1, 2, 3""",
    "functions": "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
}


def catalog(url: str) -> dict[str, list[Any]]:
    with psycopg.connect(url) as connection:
        return {name: connection.execute(statement).fetchall() for name, statement in CATALOG.items()}


@pytest.mark.parametrize("part", CATALOG)
def test_migrations_and_metadata_make_the_same_schema(part: str, database_url: str, empty_url: str) -> None:
    engine = sqlalchemy.create_engine(empty_url)
    with engine.begin() as connection:
        tables.metadata.create_all(connection)
        made_by_hand = (
            *(tables.UNCOMPRESSED, tables.NO_STATISTICS),
            *(tables.RECEIVED_EVENTS_VIEW, tables.AUDIT_LOG_VIEW, tables.APPEND_ONLY),
        )
        for statement in made_by_hand:
            connection.connection.driver_connection.execute(statement)
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num text)")
        roles.grant(connection.connection.driver_connection)
    engine.dispose()
    migrated, declared = catalog(database_url)[part], catalog(empty_url)[part]
    assert migrated
    assert migrated == declared


def test_services_need_the_version_that_alembic_goes_to() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.scripts()))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.head()]


async def test_analyze_unfolds_none_of_the_batches(database_url: str, db: psycopg.Connection[Any]) -> None:
    await receive(database_url, [event("a")])
    db.execute("ANALYZE facts")
    looked_at = {name for (name,) in db.execute("SELECT attname FROM pg_stats WHERE tablename = 'facts'")}
    scalars = {column.name for column in tables.facts.columns if not isinstance(column.type, sqlalchemy.ARRAY)}
    assert looked_at == scalars


def test_several_migrate_at_once_and_each_succeeds(empty_url: str) -> None:
    failures: list[Exception] = []

    def migrate() -> None:
        try:
            schema.migrate(empty_url)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.connect(empty_url, "test") as connection:
        schema.check(connection.execute(schema.VERSION).fetchone())


def test_alembic_is_loaded_only_where_there_is_something_to_migrate(empty_url: str) -> None:
    program = "import sys; from chronicle import schema; schema.migrate(sys.argv[1]); print('alembic' in sys.modules)"
    for loaded in ("True\n", "False\n"):
        command = [sys.executable, "-c", program, empty_url]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == loaded


@pytest.mark.parametrize(("version", "way"), [("0000", "run `chronicle migrate`"), ("9999", "run a newer ")])
def test_a_schema_of_another_version_is_named(db: psycopg.Connection[Any], version: str, way: str) -> None:
    db.execute("UPDATE alembic_version SET version_num = %s", [version])
    with pytest.raises(SchemaBehind, match=f"is at {version}, .*: {way}"):
        schema.check(db.execute(schema.VERSION).fetchone())


def test_a_newer_schema_is_left_as_it_is(database_url: str, db: psycopg.Connection[Any]) -> None:
    db.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaBehind, match="run a newer ChronicleWeaver"):
        schema.migrate(database_url)
    assert database.value(db, schema.VERSION) == "9999"


def test_a_database_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(DatabaseAway, match="cannot migrate"):
        schema.migrate("postgresql://nobody@127.0.0.1:1/none")


@pytest.mark.parametrize(
    "statement", ["UPDATE facts SET lane = 3", "DELETE FROM facts", "TRUNCATE facts", "TRUNCATE facts, outbox CASCADE"]
)
async def test_facts_cannot_be_changed_or_removed(
    statement: str, database_url: str, db: psycopg.Connection[Any]
) -> None:
    await receive(database_url, [event("a")])
    with pytest.raises(pg.RestrictViolation, match="append-only"):
        db.execute(statement)


@pytest.mark.parametrize("column", ["event_ids", "event_uuids", "topics", "sources", "payloads", "timestamps"])
async def test_a_batch_that_lacks_something_of_an_event_is_not_received(
    column: str, database_url: str, db: psycopg.Connection[Any]
) -> None:
    ids = "event_uuids" if column == "event_uuids" else "event_ids"
    fields = ", ".join([ids, "topics", "sources", "payloads", "timestamps"])
    await receive(database_url, [event(str(uuid.UUID(int=n)) if ids == "event_uuids" else f"e{n}") for n in (1, 2)])
    again = f"""
        INSERT INTO facts (batch_id, action, lane, event_count, {fields})
        SELECT gen_random_uuid(), 'RECEIVED', 0, 2, {{}} FROM facts LIMIT 1
    """
    db.execute(again.format(fields))
    with pytest.raises(pg.CheckViolation, match="ck_facts_whole"):
        db.execute(again.format(fields.replace(column, f"{column}[2:]")))


UNFINISHED = re.compile(r"(?<!')\{\w*\}|\bchronicle_rebuild\.|^SELECT a\.|\bapart\b", re.MULTILINE)
"""In what is made into statements only when it runs, or runs on the tables of a rebuild."""

BEGINNING = re.compile(r"\s*(WITH|SELECT|UPDATE|INSERT|DELETE)\b")
STATEMENTS = {
    f"{module}.{name}": text
    for package in (chronicle, command, projector, query)
    for _, module, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.endswith("__main__")
    for name, text in vars(importlib.import_module(module)).items()
    if name.isupper() and isinstance(text, str) and BEGINNING.match(text) and not UNFINISHED.search(text)
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_fits_the_schema(name: str, db: psycopg.Connection[Any]) -> None:
    text = STATEMENTS[name]
    named = dict.fromkeys(re.findall(r"%\((\w+)\)s", text))
    query = psycopg._queries.PostgresQuery(psycopg.adapt.Transformer(db))
    query.convert(text, named or [None] * len(re.findall("(?<!%)%s", text)))
    result = db.pgconn.prepare(b"", query.query)
    assert result.error_message.decode() == ""


@pytest.mark.parametrize(
    "statement",
    [ledger.RECORD_QUEUED, projection.CLAIM, projection.INSERT_FIRST_SIGHTINGS, projection.RECORD_OUTCOME],
    ids=["queued", "claim", "insert", "outcome"],
)
def test_a_plan_that_is_made_while_the_tables_are_empty_reads_no_more_than_the_batches(
    statement: str, db: psycopg.Connection[Any]
) -> None:
    scans = [node for node in nodes_of_kept_plan(db, statement) if node.get("Relation Name") in tables.metadata.tables]
    assert scans
    for scan in scans:
        looked_up = " ".join(node.get("Index Cond", "") for node in under(scan))
        assert re.search(r"\b(batch_id|event_id)\b", looked_up), scan


@pytest.mark.parametrize("statement", [audit.BY_EVENT, trail.TRAIL], ids=["audit", "trail"])
def test_what_was_dropped_of_an_event_is_found_by_its_index(statement: str, db: psycopg.Connection[Any]) -> None:
    db.execute("SET enable_seqscan = off")
    scans = [node for node in nodes_of_kept_plan(db, statement) if node.get("Relation Name") == "dropped_events"]
    assert scans
    for scan in scans:
        assert "hashtextextended" in " ".join(node.get("Index Cond", "") for node in under(scan)), scan


def nodes_of_kept_plan(db: psycopg.Connection[Any], statement: str) -> list[dict[str, Any]]:
    """The reading nodes of the plan that PostgreSQL keeps for a prepared statement, whatever its parameters will be."""
    needs_postgres(16, db)
    query = psycopg._queries.PostgresQuery(psycopg.adapt.Transformer(db))
    query.convert(statement, dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    result = db.pgconn.exec_(b"EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + query.query)
    plan = json.loads(result.get_value(0, 0) or b"[]")[0]["Plan"]
    return [node for node in under(plan) if node["Node Type"].endswith("Scan")]


def under(node: dict[str, Any]) -> list[dict[str, Any]]:
    """A node of a plan, and all below it."""
    return [node, *(each for child in node.get("Plans", ()) for each in under(child))]
