"""A real HTTP server in the place of the command service, which misbehaves as a test asks for."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Queue
from typing import NamedTuple

LIMIT = 7
"""Events in a request of the small services below; one more is a 413."""


class Reply(NamedTuple):
    """What the service does with one request."""

    status: int = 200
    headers: str = ""
    body: object = None
    before_body: bool = False
    """Breaks the connection with the request half read."""
    silent: bool = False
    """Breaks the connection (or, with status 0, keeps it open) in place of an answer."""


HANG = Reply(status=0, silent=True)
Behaviour = Callable[[int], Reply]


class Service:
    """A small HTTP server for one test; `behave` decides about each request by its number, from 0."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.requests = 0
        self.bodies: Queue[bytes] = Queue()
        """Bodies read, whatever became of them."""
        self.accepted: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self.answer(reader, writer):
                pass
        writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"post /publish http/1.1")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        reply = self.behave(self.requests)
        self.requests += 1
        if reply.before_body:
            return False
        body = await reader.readexactly(length)
        self.bodies.put(body)
        if reply.status == 200:
            reply = self.judge(json.loads(body)["events"], reply)
        if reply == HANG:
            await reader.read()
        if reply.silent:
            return False
        content = json.dumps(reply.body).encode()
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{reply.headers}content-length: {len(content)}\r\n\r\n".encode())
        writer.write(content)
        await writer.drain()
        return True

    def judge(self, events: list[dict[str, object]], reply: Reply) -> Reply:
        """What the real service says: too many, a bad one among them, or accepted."""
        if len(events) > LIMIT:
            return Reply(413, body={"detail": f"at most {LIMIT} events"})
        for index, event in enumerate(events):
            if "bad" in event:
                place = ["body", "events", index, "bad"]
                return Reply(422, body={"detail": [{"type": "x", "loc": place, "msg": "is bad"}]})
        self.accepted += [json.dumps(event) for event in events]
        return reply._replace(body={"status": "success", "events_count": len(events)})


@contextmanager
def running(behave: Behaviour = lambda _: Reply()) -> Iterator[Service]:
    """A service that listens in a thread of its own."""
    service = Service(behave)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(service.serve, "127.0.0.1", 0, limit=2**24))
    service.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def close() -> None:
        server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    try:
        yield service
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def nobody_listening() -> Iterator[str]:
    """A URL that refuses connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
