"""Requests to publish are refused while the event loop is late and many are under way, and only then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from command.load import FEW, LATE_SECONDS, LOOK_SECONDS, Admission, Load


@pytest.fixture
async def load() -> AsyncIterator[Load]:
    """A load whose look at the event loop has begun."""
    load = Load()
    looking = asyncio.create_task(load.run())
    await asyncio.sleep(0)
    yield load
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking


async def status(load: Load, path: str = "/publish") -> int:
    """What a request is answered."""
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert load.under_way == before + (path == "/publish")
        await Response()(scope, receive, send)

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        seen.append(message)

    before = load.under_way
    await Admission(app, load)({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
    assert load.under_way == before
    assert seen[0]["status"] == 200 or b"retry-after" in dict(seen[0]["headers"])
    return int(seen[0]["status"])


def be_late() -> None:
    """Keeps the event loop from its work."""
    time.sleep(LOOK_SECONDS + LATE_SECONDS + 0.05)


async def test_many_requests_are_no_overload_while_the_loop_is_in_time(load: Load) -> None:
    load.under_way = FEW * 10
    assert await status(load) == 200


async def test_a_late_loop_is_no_overload_while_requests_are_few(load: Load) -> None:
    load.under_way = FEW - 1
    be_late()
    assert await status(load) == 200


async def test_both_together_are_and_only_publishing_is_refused(load: Load) -> None:
    load.under_way = FEW
    be_late()
    assert await status(load) == 503
    assert await status(load, "/health") == 200


async def test_what_waited_meanwhile_is_refused_too_and_what_comes_later_is_not(load: Load) -> None:
    load.under_way = FEW
    be_late()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await status(load) == 503
    await asyncio.sleep(LOOK_SECONDS * 2)
    assert await status(load) == 200
