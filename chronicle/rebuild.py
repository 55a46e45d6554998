"""`chronicle rebuild` and `chronicle reset`: what an operator does to the tables while the services run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import tenacity
from psycopg import errors as pg
from sqlalchemy import MetaData, create_mock_engine

from chronicle import broker, database, roles, schema, tables
from chronicle.errors import ChronicleError
from chronicle.ledger import READ_MODELS
from chronicle.replay import COLUMNS, LEDGER_SAYS

SCHEMA = "chronicle_rebuild"
"""Is ours alone: whatever is in it is dropped."""

REBUILD_LOCK = 0x43570002_00000000

LOCK_WAIT = "500ms"
"""How long one try waits for the services to let go: below PostgreSQL's deadlock_timeout, so that it is never a
service that gives way."""

PATIENCE_SECONDS = 60
"""How long it tries, before it names who does not let go."""

HOLDERS = """
SELECT string_agg(
    DISTINCT format('%%s (pid %%s, %%s)', coalesce(nullif(application_name, ''), usename), pid, state), ', '
)
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE relation = ANY (%s::regclass[]) AND granted AND pid <> pg_backend_pid()
"""

NOTE_FRESH_FACTS = """
CREATE TABLE chronicle_rebuild.fresh AS
SELECT f.id, f.batch_id, f.action, f.attempt
FROM facts f
WHERE f.recorded_at >= %(since)s AND NOT EXISTS (SELECT FROM chronicle_rebuild.replayed r WHERE r.id = f.id)
"""

FRESH = """(
    SELECT audit_log.*
    FROM chronicle_rebuild.fresh n JOIN audit_log ON audit_log.batch_id = n.batch_id AND audit_log.fact_id = n.id
)"""

REMOVE_RETRIED = """
DELETE FROM chronicle_rebuild.failed_events d
USING chronicle_rebuild.fresh n JOIN facts f USING (batch_id, action, attempt)
WHERE f.attempt > 0 AND d.batch_id = f.batch_id AND d.position = ANY (f.positions)
"""

ADD_STATS = f"""
INSERT INTO chronicle_rebuild.stats ({COLUMNS["stats"]}) {LEDGER_SAYS["stats"].format(audit_log=FRESH)}
ON CONFLICT (topic, lane) DO UPDATE SET
    received = stats.received + excluded.received, queued = stats.queued + excluded.queued,
    processed = stats.processed + excluded.processed, dropped = stats.dropped + excluded.dropped,
    failed = stats.failed + excluded.failed, conflicts = stats.conflicts + excluded.conflicts
"""


def rebuild(url: str) -> None:
    """Makes the read models again from the ledger, beside the live ones, and puts them in their place.

    The services go on; they wait only while the last few facts are replayed and the tables change places. Raises
    ChronicleError where a rebuild or a reset runs, where the schema is another version's, where something of the
    user's depends on a read model, or where others leave no moment for the swap.
    """
    with database.connect(url, "rebuild", statement_timeout="0") as connection, database.ours(), _alone(connection):
        try:
            _make_tables(connection)
            since = database.value(connection, "SELECT clock_timestamp() - interval '10 minutes'")
            _replay(connection, "-infinity")
            _replay(connection, since)
            _exclusively(connection, lambda: _swap(connection, since))
        except pg.DependentObjectsStillExist as error:
            raise ChronicleError(f"{error.diag.message_primary}: {error.diag.message_detail}") from None
        finally:
            with suppress(psycopg.Error):
                connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        for table in READ_MODELS:
            connection.execute(f"ANALYZE {table}")


@contextmanager
def _alone(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """While no other rebuild or reset runs, on the schema of this version.

    PostgreSQL ends a session some time after it was closed, and its lock with it: for so long the next one would be
    refused.
    """
    schema.require(connection)
    if not database.value(connection, "SELECT pg_try_advisory_lock(%s)", [REBUILD_LOCK]):
        raise ChronicleError("a rebuild or a reset is running: try again once it has ended")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", [REBUILD_LOCK])


def _make_tables(connection: psycopg.Connection[Any]) -> None:
    """The read models' tables, empty, in a schema of their own; so constraints and indexes keep their names."""

    def execute(statement: Any, *_: Any, **__: Any) -> None:
        connection.execute(str(statement.compile(dialect=engine.dialect)))

    engine = create_mock_engine("postgresql+psycopg://", execute)
    metadata = MetaData(schema=SCHEMA)
    for name in READ_MODELS:
        tables.metadata.tables[name].to_metadata(metadata)
    with connection.transaction():
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
        connection.execute("CREATE TABLE chronicle_rebuild.replayed (id bigint PRIMARY KEY)")
        metadata.create_all(engine, checkfirst=False)


def _replay(connection: psycopg.Connection[Any], since: Any) -> None:
    """Adds what the facts say that were recorded since then and have not been replayed yet.

    A fact may become visible later than one recorded after it, by as long as a transaction may last: seconds.
    """
    with connection.transaction():
        connection.execute(NOTE_FRESH_FACTS, {"since": since})
        connection.execute("ANALYZE chronicle_rebuild.fresh")
        for table in READ_MODELS:
            if table != "stats":
                rows = LEDGER_SAYS[table].format(audit_log=FRESH)
                connection.execute(f"INSERT INTO {SCHEMA}.{table} ({COLUMNS[table]}) {rows}")
        connection.execute(REMOVE_RETRIED)
        connection.execute(ADD_STATS)
        connection.execute("INSERT INTO chronicle_rebuild.replayed SELECT id FROM chronicle_rebuild.fresh")
        connection.execute("DROP TABLE chronicle_rebuild.fresh")


OWNER = "SELECT quote_ident(pg_get_userbyid(relowner)) FROM pg_class WHERE oid = 'facts'::regclass"


def _swap(connection: psycopg.Connection[Any], since: Any) -> None:
    _replay(connection, since)
    owner = database.value(connection, OWNER)
    for table in READ_MODELS:
        roles.copy_privileges(connection, table, SCHEMA)
        connection.execute(f"DROP TABLE public.{table}")
        connection.execute(f"ALTER TABLE {SCHEMA}.{table} SET SCHEMA public")
        connection.execute(f"ALTER TABLE public.{table} OWNER TO {owner}")
    connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


def reset(url: str, redis_url: str) -> None:
    """Empties ledger, read models and queue; the services go on. Raises ChronicleError, as rebuild does.

    Nothing is emptied where Redis cannot be used.
    """
    client = broker.connect(redis_url)
    with broker.ours():
        # First: a ticket that is sent from now on names a batch that will be no more, and does no harm.
        client.delete(broker.STREAM)
    client.close()

    def empty() -> None:
        connection.execute("ALTER TABLE facts DISABLE TRIGGER facts_no_truncate")
        connection.execute(f"TRUNCATE {', '.join(tables.metadata.tables)}")
        connection.execute("ALTER TABLE facts ENABLE TRIGGER facts_no_truncate")

    with database.connect(url, "reset") as connection, database.ours(), _alone(connection):
        _exclusively(connection, empty)


def _exclusively(connection: psycopg.Connection[Any], work: Callable[[], None]) -> None:
    """Does the work in a transaction that has the tables to itself; tries again while others hold them.

    Raises ChronicleError, with their names, where they do not let go.
    """
    names = list(tables.metadata.tables)

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type((pg.LockNotAvailable, pg.DeadlockDetected)),
        wait=tenacity.wait_random(0.05, 0.5),
        stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
        reraise=True,
    )
    def attempt() -> None:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
            connection.execute(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE")
            work()

    try:
        attempt()
    except pg.LockNotAvailable:
        holders = database.value(connection, HOLDERS, [names])
        raise ChronicleError(f"the tables are held by others, try again: {holders or 'the services'}") from None
