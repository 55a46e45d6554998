"""Whether more requests come than this process can even look at: then each is refused before it costs anything.

Too much work shows in the event loop first. What waits there, or in the kernel, waits unseen by everything that
counts requests; and a refusal that comes after that wait is no quick one.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import HTTPScope

from chronicle import metrics
from chronicle.errors import Problem

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

    def refuses(self, scope: HTTPScope) -> Problem | None:
        """Why a request is not even looked at, for `chronicle.http.serve`; one that does not publish always is."""
        if self.under_way < FEW or (scope["method"], scope["path"]) != ("POST", "/publish"):
            return None
        if max(self._late, time.monotonic() - self._due) <= LATE_SECONDS:
            return None
        metrics.answered("/publish", "POST", 503, 0)
        return Problem(type="unavailable", loc=[], msg="more requests come than can be taken: try again later")


class Counted:
    """Counts the requests to publish that are under way. Pure ASGI."""

    def __init__(self, app: ASGIApp, load: Load) -> None:
        self.app = app
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        publishes = scope["type"] == "http" and scope["path"] == "/publish"
        self._load.under_way += publishes
        try:
            await self.app(scope, receive, send)
        finally:
            self._load.under_way -= publishes
