"""Our sessions: some of what they are is as it must be, whatever the database, its user or the URL says."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from chronicle import database

LEVELS = ("DATABASE", "ROLE", "URL")
"""Who says what a session is to be."""

PIN = {"default_transaction_isolation": ("serializable", "read committed")}
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


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PIN)
async def test_what_must_hold_holds_whatever_others_say(name: str, level: str, database_url: str) -> None:
    set_to, ours = PIN[name]
    assert await shown(says(level, name, set_to, database_url), name) == [ours] * 3
