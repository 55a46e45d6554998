"""Who may do what in the database: one role for each service, granted what its statements need and nothing more.

The owner of the tables migrates, rebuilds and resets. A service takes its role right after it has connected, where
the user of DATABASE_URL may (`chronicle.database`); a login that is a member of the role alone needs nothing else.
"""

from __future__ import annotations

from typing import Any

import psycopg

from chronicle import logs

SERVICES = {
    "command": "chronicle_command",
    "projector": "chronicle_projector",
    "sequencer": "chronicle_projector",
    "health": "chronicle_projector",
    "query": "chronicle_query",
}
"""The role of each service; sequencer and health check are parts of the projector. Roles belong to the whole cluster:
all databases in it share them."""

TABLES = (
    *("facts", "outbox", "processed_events", "dropped_events", "failed_events", "fact_topics", "stats"),
    *("unsequenced", "stream", "history", "workers"),
)
VIEWS = ("received_events", "audit_log")
VERSION_TABLE = "alembic_version"

GRANTS: dict[str, dict[str, str]] = {
    "chronicle_command": {
        "facts": "SELECT, INSERT",
        "outbox": "INSERT",
        "fact_topics": "INSERT",
        "stats": "SELECT, INSERT, UPDATE",
        "history": "SELECT, INSERT, UPDATE, DELETE",
        VERSION_TABLE: "SELECT",
    },
    "chronicle_projector": {
        "facts": "SELECT, INSERT",
        "outbox": "SELECT, UPDATE, DELETE",
        "processed_events": "SELECT, INSERT",
        "dropped_events": "SELECT, INSERT",
        "failed_events": "SELECT, INSERT, UPDATE, DELETE",
        "fact_topics": "INSERT",
        "stats": "SELECT, INSERT, UPDATE",
        "unsequenced": "SELECT, INSERT, DELETE",
        "stream": "SELECT, INSERT",
        "history": "SELECT, INSERT, UPDATE, DELETE",
        "workers": "SELECT, INSERT, UPDATE, DELETE",
        "received_events": "SELECT",
        VERSION_TABLE: "SELECT",
    },
    "chronicle_query": dict.fromkeys((*TABLES, *VIEWS, VERSION_TABLE), "SELECT"),
}
"""What each role may do. Nobody but the owner may update, delete or truncate facts, and a trigger refuses even that."""

HOW = (
    "let an administrator run, for each of them, CREATE ROLE name NOLOGIN and GRANT name TO the user of DATABASE_URL, "
    "then run `chronicle migrate` again"
)

log = logs.get(__name__)

GRANTABLE = """
SELECT rolname::text FROM pg_roles
WHERE rolname = ANY (%(roles)s::text[])
  AND pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = 'facts'::regclass), 'USAGE')
"""


def grant(connection: psycopg.Connection[Any]) -> None:
    """Gives the roles that exist what GRANTS says; does nothing where this user does not own the tables.

    Every `chronicle migrate` ends with it, for roles that an administrator made after the migration, and for tables
    that were restored without their privileges.
    """
    for (role,) in connection.execute(GRANTABLE, {"roles": list(GRANTS)}).fetchall():
        connection.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        for table, privileges in GRANTS[role].items():
            connection.execute(f"GRANT {privileges} ON {table} TO {role}")


MISSING = """
SELECT wanted FROM unnest(%(roles)s::text[]) AS wanted
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted)
"""


def warn_of_missing(connection: psycopg.Connection[Any]) -> None:
    """Says which roles could not be made: the services then keep all the rights of their user."""
    if missing := [row[0] for row in connection.execute(MISSING, {"roles": list(GRANTS)}).fetchall()]:
        log.warning("services keep all rights of their database user", missing_roles=missing, how=HOW)


PRIVILEGES = """
SELECT format('GRANT %%s ON %%I.%%I TO %%s%%s', held.privilege_type, %(schema)s::text, relname,
              CASE held.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(held.grantee)) END,
              CASE WHEN held.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class CROSS JOIN LATERAL aclexplode(relacl) AS held
WHERE relnamespace = 'public'::regnamespace AND relname = %(table)s AND held.grantee <> relowner
"""


def copy_privileges(connection: psycopg.Connection[Any], table: str, schema: str) -> None:
    """Grants on `schema`.table whatever others were granted on the live table, by us or by an administrator."""
    for (statement,) in connection.execute(PRIVILEGES, {"table": table, "schema": schema}).fetchall():
        connection.execute(statement)
