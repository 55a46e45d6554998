"""Whether more requests come than this process can even look at: then each is refused before it costs anything.

Too much work shows in the event loop first. What waits there, or in the kernel, waits unseen by everything that
counts requests; and a refusal that comes after that wait is no quick one.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from chronicle import http
from chronicle.errors import Overloaded

LOOK_SECONDS = 0.05
LATE_SECONDS = 0.25
FEW = 64
"""So many requests at once are never too many, however slow the machine."""


class Load:
    """How late the event loop is, and how many requests to publish are under way."""

    def __init__(self) -> None:
        self.under_way = 0
        self._late = 0.0
        self._due = float("inf")

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            self._due = time.monotonic() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self._late = time.monotonic() - self._due

    def is_too_much(self) -> bool:
        """Whether one more request would be."""
        return self.under_way >= FEW and max(self._late, time.monotonic() - self._due) > LATE_SECONDS


class Admission:
    """Lets a request to publish through while there is no overload. Pure ASGI: a refusal must cost little."""

    def __init__(self, app: ASGIApp, load: Load) -> None:
        self.app = app
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] != "/publish":
            await self.app(scope, receive, send)
            return
        if self._load.is_too_much():
            refused = http.unavailable(Overloaded("more requests come than can be taken: try again later"))
            await refused(scope, receive, send)
            return
        self._load.under_way += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._load.under_way -= 1
