"""A statement that runs without a cursor: answers, refusals, connections that are lost; in both event loops."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from given import Run, WayTo
from psycopg.pq import ConnStatus
from servers import eventually

from chronicle import database
from command.statement import Statement

INSERT = "INSERT INTO kept SELECT %(text)s WHERE %(text)s <> ''"
MORE_THAN_A_SOCKET_TAKES = "x" * 64 * 2**20


@asynccontextmanager
async def prepared(url: str, statement: str) -> AsyncIterator[tuple[Any, Statement]]:
    """A connection that has a table `kept`, and the statement on it."""
    connection = await database.connect_async(url, "command")
    await connection.execute("CREATE TEMP TABLE kept (text text)")
    ready = Statement(connection, statement)
    async with asyncio.timeout(30):
        yield connection, ready
    ready.close()
    await connection.close()


async def kept(connection: Any) -> list[str]:
    """What the table has."""
    return [text for (text,) in await (await connection.execute("SELECT text FROM kept ORDER BY 1")).fetchall()]


def test_it_runs_again_and_again_beside_other_statements(run: Run, database_url: str) -> None:
    async def scenario() -> None:
        async with prepared(database_url, INSERT) as (connection, statement):
            for count, text in enumerate(("a", "b", "c"), start=1):
                await statement.execute({"text": text})
                assert len(await kept(connection)) == count
            assert await kept(connection) == ["a", "b", "c"]

    run(scenario())


def test_more_goes_through_than_a_socket_takes_at_once(run: Run, database_url: str) -> None:
    async def scenario() -> None:
        async with prepared(database_url, INSERT) as (connection, statement):
            await statement.execute({"text": MORE_THAN_A_SOCKET_TAKES})
            assert await kept(connection) == [MORE_THAN_A_SOCKET_TAKES]

    run(scenario())


def test_what_postgresql_refuses_is_raised_and_nothing_else_is_lost(run: Run, database_url: str) -> None:
    async def scenario() -> None:
        async with prepared(database_url, "INSERT INTO kept SELECT (1 / %(number)s::text::int)::text") as (
            connection,
            statement,
        ):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await statement.execute({"number": "0"})
            await statement.execute({"number": "1"})
            assert await kept(connection) == ["1"]

    run(scenario())


def test_what_cannot_be_prepared_is_raised_each_time(run: Run, database_url: str) -> None:
    async def scenario() -> None:
        async with prepared(database_url, "INSERT INTO nowhere VALUES (%(text)s)") as (connection, statement):
            with pytest.raises(psycopg.errors.UndefinedTable):
                await statement.execute({"text": "a"})
            await connection.execute("ALTER TABLE kept RENAME TO nowhere")
            await statement.execute({"text": "a"})

    run(scenario())


def test_a_connection_that_is_cut_at_rest_leaves_the_event_loop(
    run: Run, database_url: str, db: psycopg.Connection[Any]
) -> None:
    async def scenario() -> None:
        async with prepared(database_url, INSERT) as (connection, statement):
            await statement.execute({"text": "a"})
            socket = connection.pgconn.socket
            db.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
            await asyncio.to_thread(eventually, lambda: connection.pgconn.status == ConnStatus.BAD)
            assert not asyncio.get_running_loop().remove_reader(socket)
            with pytest.raises(psycopg.OperationalError):
                await statement.execute({"text": "b"})

    run(scenario())


def test_a_connection_that_is_reset_right_after_an_answer_is_an_error(
    run: Run, database_url: str, way_to: WayTo
) -> None:
    proxy, url = way_to(database_url)

    async def scenario() -> None:
        async with prepared(url, INSERT) as (connection, statement):
            await statement.execute({"text": "a"})
            answered = asyncio.create_task(statement.execute({"text": "b"}))
            await asyncio.sleep(0)
            select.select([connection.pgconn.socket], [], [])  # not the loop: it is to see both at once
            proxy.cut()
            await answered
            with pytest.raises(psycopg.OperationalError):
                await statement.execute({"text": "c"})

    run(scenario())


def test_a_connection_that_is_cut_before_its_first_statement_is_an_error(
    run: Run, database_url: str, db: psycopg.Connection[Any]
) -> None:
    async def scenario() -> None:
        async with prepared(database_url, INSERT) as (connection, statement):
            db.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])  # and waits for its end
            with pytest.raises(psycopg.OperationalError):
                await statement.execute({"text": "a"})

    run(scenario())


def test_a_connection_that_is_cut_while_it_works_is_an_error(
    run: Run, database_url: str, db: psycopg.Connection[Any]
) -> None:
    async def scenario() -> None:
        async with prepared(database_url, "INSERT INTO kept SELECT pg_sleep(%(seconds)s)::text") as (
            connection,
            statement,
        ):
            running = asyncio.create_task(statement.execute({"seconds": "60"}))
            asleep = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
            await asyncio.to_thread(eventually, lambda: database.value(db, asleep, [connection.info.backend_pid]))
            db.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
            with pytest.raises(psycopg.errors.AdminShutdown):
                await running

    run(scenario())


def test_a_connection_that_is_cut_while_it_takes_the_parameters_is_an_error(
    run: Run, database_url: str, db: psycopg.Connection[Any]
) -> None:
    async def scenario() -> None:
        async with prepared(database_url, INSERT) as (connection, statement):
            await statement.execute({"text": "a"})
            backend = connection.info.backend_pid
            os.kill(backend, signal.SIGSTOP)
            try:
                sending = asyncio.create_task(statement.execute({"text": MORE_THAN_A_SOCKET_TAKES}))
                await asyncio.sleep(0)
                assert connection.pgconn.flush() == 1  # it does not take all of it
                db.execute("SELECT pg_terminate_backend(%s)", [backend])
            finally:
                os.kill(backend, signal.SIGCONT)
            with pytest.raises(psycopg.OperationalError):
                await sending

    run(scenario())
