"""A prepared statement that psycopg's connection runs without a cursor, for the one that each commit is made of.

A cursor converts the statement anew each time, and each of its waits adds the socket to the event loop and takes it out
again, for some ten system calls and another turn of the loop. At a few events a commit that took longer than all else
that Python does for it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.generators import send
from psycopg.pq import ExecStatus

from chronicle.database import AsyncConnection

PARAMETER = re.compile(r"%\((\w+)\)s")
NAME = b"chronicle"
LOOK_SECONDS = 0.1
"""How often it looks for an answer by itself, as psycopg does: uvloop never calls a reader whose socket was reset."""


class Statement:
    """One statement, with parameters as psycopg writes them, that gives no rows. One call at a time.

    An answer that does not come within the `patience` of the connection is none.

    PostgreSQL infers the types of the parameters, so an int is given as what it is there (psycopg's Int2, Int4). Other
    statements may run on the connection in between.
    """

    def __init__(self, connection: AsyncConnection, statement: str) -> None:
        self._connection, self._pgconn = connection, connection.pgconn
        self._socket = connection.pgconn.socket
        self._transformer = Transformer(connection)
        self._names = list(dict.fromkeys(PARAMETER.findall(statement)))
        self._formats = [PyFormat.AUTO] * len(self._names)
        self._statement = PARAMETER.sub(lambda found: f"${self._names.index(found[1]) + 1}", statement).encode()
        self._prepared = self._watched = False
        self._error: psycopg.Error | None = None
        self._answered: asyncio.Future[None] | None = None
        self._look_again: asyncio.TimerHandle | None = None
        self._asked = 0.0

    async def execute(self, parameters: Mapping[str, Any]) -> None:
        """Runs it. Raises psycopg.Error."""
        try:
            values = self._transformer.dump_sequence([parameters[name] for name in self._names], self._formats)
            if not self._prepared:
                self._pgconn.send_prepare(NAME, self._statement)
                await self._answer()
                self._prepared = True
            self._pgconn.send_query_prepared(NAME, values, self._transformer.formats)
            await self._answer()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Takes the socket out of the event loop, until the next call.

        Before it is closed, and right after an error, for libpq may then have closed it: libuv ends the process where
        a socket that it watches is closed.
        """
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._socket)

    async def _answer(self) -> None:
        loop = asyncio.get_running_loop()
        self._error, self._answered = None, loop.create_future()
        if self._pgconn.flush():  # more than the socket takes at once
            self.close()
            await self._connection.wait(send(self._pgconn))
        self._watch(loop)
        self._look_again = loop.call_later(LOOK_SECONDS, self._look)
        self._asked = loop.time()
        try:
            await self._answered
        finally:
            self._look_again.cancel()
        if self._error:
            raise self._error

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """The socket stays for the next time; to add it again costs little, and is needed after another statement.

        Raises psycopg.OperationalError where the connection was reset.
        """
        try:
            loop.add_reader(self._socket, self._read)
        except RuntimeError as error:  # uvloop's, where a reset came together with the last answer
            raise psycopg.OperationalError("the connection was reset") from error
        self._watched = True

    def _look(self) -> None:
        loop, patience = asyncio.get_running_loop(), self._connection.patience
        self._look_again = loop.call_later(LOOK_SECONDS, self._look)
        self._read()
        if self._answered and not self._answered.done() and patience and loop.time() - self._asked > patience:
            self._error = psycopg.OperationalError(f"no answer to a statement for {patience} s")
            self._end()

    def _read(self) -> None:
        """Takes what has come; after the last of an answer, or where the connection is lost, `_answer` goes on."""
        try:
            self._pgconn.consume_input()
            while not self._pgconn.is_busy():
                result = self._pgconn.get_result()
                if result is None:
                    self._end()
                    return
                if result.status != ExecStatus.COMMAND_OK:
                    self._error = error_from_result(result)
        except psycopg.Error as error:
            self.close()
            self._error = self._error or error
            self._end()

    def _end(self) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_result(None)
