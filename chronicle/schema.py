"""The schema's version, and the migrations that lead to it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors as pg

from chronicle import database, roles
from chronicle.errors import ChronicleError, DatabaseAway, SchemaBehind

MIGRATION_LOCK = 0x43570000_00000000


def scripts() -> Path:
    """Where the migrations are: beside the packages in a checkout, inside this one when installed."""
    installed = Path(__file__).parent / "alembic"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "alembic"


@functools.cache
def head() -> str:
    """The schema version that this code needs: the number that the newest migration's file begins with.

    Not asked of Alembic, which takes half a second and 20 MB to import, in vain where there is nothing to migrate.
    """
    return max(script.name.partition("_")[0] for script in (scripts() / "versions").glob("[0-9]*_*.py"))


def migrate(url: str) -> None:
    """Brings the schema to `head`; safe when several run at once (they take turns). Raises ChronicleError."""
    try:
        with database.connect(url, "migrate", statement_timeout="0", lock_timeout="0") as connection:
            _check_encoding(connection.info)
            connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
            found = _version(connection)
            if found and found > head():
                check([found])
            if found != head():
                _upgrade(connection)
            with connection.transaction():
                roles.grant(connection)
                roles.warn_of_missing(connection)
    except (psycopg.Error, DatabaseAway) as error:
        raise DatabaseAway(f"cannot migrate: {database.first_line(error.__cause__ or error)}") from error


def _check_encoding(told: psycopg.ConnectionInfo) -> None:
    """Raises ChronicleError where the database cannot hold every character."""
    encoding = told.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ChronicleError(f"cannot migrate: the database is in {encoding}, make one with ENCODING 'UTF8'")


VERSION = "SELECT version_num FROM alembic_version"


def _version(connection: psycopg.Connection[Any]) -> Any:
    try:
        return database.value(connection, VERSION)
    except pg.UndefinedTable:
        return None


def _upgrade(connection: psycopg.Connection[Any]) -> None:
    """Runs the migrations that are missing, in the session that holds the lock."""
    import sqlalchemy  # noqa: PLC0415

    from alembic import command, config  # noqa: PLC0415

    alembic = config.Config()
    alembic.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: connection, poolclass=sqlalchemy.StaticPool
    )
    connection.autocommit = False
    try:
        with engine.connect() as session:
            alembic.attributes["connection"] = session
            command.upgrade(alembic, "head")
    except sqlalchemy.exc.DBAPIError as error:
        raise error.orig or error from None
    connection.autocommit = True


def check(version: Sequence[Any] | None) -> None:
    """Takes the row of VERSION; raises SchemaBehind where it is not the one that this code needs."""
    found = version[0] if version else "none"
    if found != head():
        way = "run a newer ChronicleWeaver" if version and found > head() else "run `chronicle migrate`"
        raise SchemaBehind(f"the schema is at {found}, this version needs {head()}: {way}")


def require(connection: psycopg.Connection[Any]) -> None:
    """Raises SchemaBehind where the database has another version's schema."""
    check(connection.execute(VERSION).fetchone())
