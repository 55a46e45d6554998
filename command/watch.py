"""What a command process knows of its database, looked up once a second: is it there, is it ready, how full is it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psycopg
from psycopg.rows import TupleRow

from chronicle import database
from chronicle.errors import ChronicleError, DatabaseAway

INTERVAL_SECONDS = 1.0
STALE_SECONDS = 4.0

IN_FLIGHT = "SELECT coalesce(sum(received - processed - dropped - failed), 0)::bigint FROM stats"


class Watch:
    """Looks at the database now and then; `check` tells what it saw without touching the database."""

    def __init__(self, url: str, in_flight: Callable[[int], None]) -> None:
        self._url = url
        self._in_flight = in_flight
        self._problem: ChronicleError | None = DatabaseAway()
        self._seen = time.monotonic()

    def check(self) -> None:
        """Raises what is wrong: DatabaseAway (also when the last look is too long ago) or SchemaBehind."""
        if self._problem:
            raise self._problem
        if time.monotonic() - self._seen > STALE_SECONDS:
            raise DatabaseAway("PostgreSQL does not answer")

    async def run(self) -> None:
        """Looks until cancelled."""
        connection: psycopg.AsyncConnection[TupleRow] | None = None
        while True:
            try:
                connection = connection or await database.connect_async(self._url, "command")
                await self._look(connection)
                self._problem = None
            except ChronicleError as error:
                self._problem = error
                if connection:
                    await connection.close()
                connection = None
            self._seen = time.monotonic()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _look(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        with database.ours():
            version = await (await connection.execute(database.SCHEMA_VERSION)).fetchone()
            database.check_schema(version)
            row = await (await connection.execute(IN_FLIGHT)).fetchone()
        if row:
            self._in_flight(row[0])
