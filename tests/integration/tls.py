"""TLS before a server that has none of its own, as a managed database has it: for tests of what our clients check."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trustme

POSTGRES_ASKS = 8
"""The bytes with which a client of PostgreSQL asks for TLS; the server agrees with an S
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL)."""


@contextmanager
def before(target: int, certificate: trustme.LeafCert, *, postgres: bool = False) -> Iterator[int]:
    """A port of 127.0.0.1 where the certificate is shown, and what comes is handed on to the port `target`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            if postgres:
                await reader.readexactly(POSTGRES_ASKS)
                writer.write(b"S")
                await writer.start_tls(context)
            inside, outside = await asyncio.open_connection("127.0.0.1", target)
            await asyncio.gather(_copy(reader, outside), _copy(inside, writer))

    loop = asyncio.new_event_loop()
    listening = asyncio.start_server(serve, "127.0.0.1", 0, ssl=None if postgres else context)
    server = loop.run_until_complete(listening)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while chunk := await source.read(65_536):
            sink.write(chunk)
            await sink.drain()
    finally:
        sink.close()
