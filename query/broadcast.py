"""A server-sent event stream that all watchers share: what they see is made once a second, while anybody watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from chronicle import http

SECONDS = 1.0
SHARE, MOST_SECONDS = 10, 5.0
"""Making frames takes at most a tenth of the time, unless there would then be none for longer than this."""

HEARTBEAT_SECONDS = 2.0
HEARTBEAT = b":\n\n"
"""A comment, which tells a watcher that the service is there while there is no frame."""


class Broadcast:
    """The latest frame, and who waits for the next one. A watcher that reads slowly misses frames, and holds none."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        """`make` gives the JSON of a frame, and raises nothing."""
        self._make = make
        self._frame = b""
        self._watchers = 0
        self._making: asyncio.Task[None] | None = None
        self._next: asyncio.Future[Any]

    async def stream(self, stopping: asyncio.Event) -> AsyncIterator[bytes]:
        """Frames as server-sent events, until the client leaves or the service stops."""
        stop: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
        self._enter()
        try:
            if self._frame:
                yield self._frame
            while not stop.done():
                frame = self._next
                await asyncio.wait({frame, stop}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not stop.done():
                    yield self._frame if frame.done() else HEARTBEAT
        finally:
            stop.cancel()
            self._leave()

    def _enter(self) -> None:
        self._watchers += 1
        if self._making is None:
            self._next = asyncio.get_running_loop().create_future()
            self._making = http.service(self._run())

    def _leave(self) -> None:
        self._watchers -= 1
        if self._watchers == 0 and self._making:
            self._making.cancel()
            self._making, self._frame = None, b""

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._frame = b"data: " + await self._make() + b"\n\n"
            self._next.set_result(None)
            self._next = loop.create_future()
            took = loop.time() - began
            await asyncio.sleep(max(SECONDS - took, min(took * (SHARE - 1), MOST_SECONDS)))
