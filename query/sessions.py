"""The service's sessions of PostgreSQL: everything that it answers from the database is asked through them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg

from chronicle import database
from chronicle.errors import DatabaseAway
from query import metrics

POOL_SIZE = 10
ANSWER_SECONDS = 10
NOT_IN_TIME = "PostgreSQL did not answer in time"

Answer = TypeVar("Answer")
Work = Callable[[psycopg.AsyncConnection[Any]], Awaitable[Answer]]


class Sessions:
    """A pool of POOL_SIZE sessions at most, which can only read."""

    def __init__(self, url: str) -> None:
        """Nothing is opened before `open`."""
        self._pool = database.read_pool(url, "query", POOL_SIZE)

    async def open(self) -> None:
        """Begins to connect, and does not wait for it."""
        await self._pool.open()
        metrics.SESSIONS.set(0)
        metrics.MOST_SESSIONS.set(POOL_SIZE)

    async def close(self) -> None:
        """Ends all sessions."""
        await self._pool.close(timeout=2)

    async def renew(self) -> None:
        """Ends those that are free, and takes new ones for all."""
        await self._pool.drain()

    async def ask(self, work: Work[Answer], seconds: float = ANSWER_SECONDS) -> Answer:
        """Gives what the work on a session gives. Each statement of it is a snapshot of its own.

        Raises DatabaseAway, also where that takes longer than so many seconds, and psycopg.Error.
        """
        task = asyncio.create_task(self._on_a_live_session(work))
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # perhaps nobody waits any more
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            late = task.cancel()  # and not awaited: psycopg would wait for a stopped server to take the cancellation
        if late:
            raise DatabaseAway(NOT_IN_TIME)
        return task.result()

    async def _on_a_live_session(self, work: Work[Answer]) -> Answer:
        """After a restart of PostgreSQL the sessions are dead, and only using one shows it: then it takes another."""
        with database.ours():
            for _ in range(POOL_SIZE + 1):
                async with self._pool.connection() as connection:
                    try:
                        with metrics.SESSIONS.track_inprogress():
                            return await work(connection)
                    except psycopg.errors.SerializationFailure:
                        continue  # a replica broke it off, to go on with what it receives
                    except psycopg.OperationalError:
                        if not connection.broken:
                            raise
        raise DatabaseAway
