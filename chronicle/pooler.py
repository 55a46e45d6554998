"""Poolers, like pgbouncer: who may not be behind one, because it hands its sessions round between clients."""

from __future__ import annotations

from typing import Any

from psycopg import ConnectionInfo

from chronicle.errors import DatabaseAway


def refuse(told: ConnectionInfo, row: tuple[Any, ...] | None) -> None:
    """Takes a connection and the row of BEGIN_SESSION, whose last value is the process that really answers.

    Raises DatabaseAway where it is not the one that the server named when it was connected to: advisory locks (lanes,
    worker ids), the role, the time-outs and prepared statements all belong to the session.
    """
    if row and row[-1] != told.backend_pid:
        raise DatabaseAway(
            "a pooler stands before PostgreSQL: only `chronicle query` works through one, everything else needs "
            "PostgreSQL's own address"
        )
