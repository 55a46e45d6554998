"""What a command process knows of its database, looked up once a second: is it there, is it ready, how full is it.

What it sees of the counters is kept as history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psycopg

from chronicle import database, history, logs, schema
from chronicle.errors import ChronicleError, DatabaseAway, NotDurable

INTERVAL_SECONDS = 1.0
STALE_SECONDS = 4.0
FIRST_LOOK_SECONDS = 5.0

IN_FLIGHT = "SELECT coalesce(sum(received - processed - dropped - failed), 0)::bigint FROM stats"


log = logs.get(__name__)


class Watch:
    """Looks at the database now and then; `check` tells what it saw without touching the database."""

    def __init__(self, url: str, in_flight: Callable[[int], None], *, allow_unsafe: bool = False) -> None:
        """`allow_unsafe`: what the database may lose is logged, and nothing else."""
        self._url = url
        self._in_flight = in_flight
        self._allow_unsafe = allow_unsafe
        self._unsafe: NotDurable | None = None
        self._looked = asyncio.Event()
        self._problem: ChronicleError | None = DatabaseAway()
        self._seen = time.monotonic()
        self._sampled = float("-inf")

    def check(self) -> None:
        """Raises what is wrong: DatabaseAway (also when the last look is too long ago), SchemaBehind, NotDurable."""
        if self._problem:
            raise self._problem
        if self._unsafe and not self._allow_unsafe:
            raise self._unsafe
        if time.monotonic() - self._seen > STALE_SECONDS:
            raise DatabaseAway("PostgreSQL does not answer")

    async def durable(self) -> None:
        """Returns where commits last, as last seen. Raises NotDurable, or DatabaseAway before there is a first look."""
        if not self._looked.is_set():
            try:
                await asyncio.wait_for(self._looked.wait(), FIRST_LOOK_SECONDS)
            except TimeoutError:
                raise DatabaseAway from None
        if self._unsafe and not self._allow_unsafe:
            raise self._unsafe

    async def run(self) -> None:
        """Looks until cancelled."""
        connection: database.AsyncConnection | None = None
        while True:
            try:
                connection = connection or await self._connect()
                await self._look(connection)
                await self._keep_history(connection)
                self._problem = None
                if self._unsafe and not self._allow_unsafe:
                    # What is set for a database or a role reaches new sessions alone.
                    await connection.close()
                    connection = None
            except (ChronicleError, psycopg.Error) as error:
                self._problem = database.as_ours(error)
                if connection:
                    await connection.close()
                connection = None
            self._seen = time.monotonic()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _connect(self) -> database.AsyncConnection:
        connection = await database.connect_async(self._url, "command")
        connection.patience = STALE_SECONDS
        return connection

    async def _look(self, connection: database.AsyncConnection) -> None:
        with database.ours():
            off = await (await connection.execute(database.DURABILITY)).fetchone()
            self._note_durability(off[0] if off else [])
            version = await (await connection.execute(schema.VERSION)).fetchone()
            schema.check(version)
            # Last: what is committed until this is known would be forgotten.
            row = await (await connection.execute(IN_FLIGHT)).fetchone()
        if row:
            self._in_flight(row[0])

    async def _keep_history(self, connection: database.AsyncConnection) -> None:
        """Nothing else depends on it."""
        if time.monotonic() - self._sampled < history.SECONDS:
            return
        self._sampled = time.monotonic()
        try:
            await connection.execute(history.SAMPLE)
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.warning(history.NOT_KEPT, error=database.first_line(error))

    def _note_durability(self, off: list[str]) -> None:
        before = self._unsafe
        try:
            database.check_durability(off)
            self._unsafe = None
        except NotDurable as error:
            self._unsafe = error
        self._looked.set()
        if self._unsafe and str(self._unsafe) != str(before):
            log.critical("the database may lose what it has committed", off=off, publishing=self._allow_unsafe)
        if before and not self._unsafe:
            log.info("the database keeps what it has committed again")
