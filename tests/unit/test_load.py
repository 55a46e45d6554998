"""Requests to publish are refused while the event loop is late and many are under way, and only then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from starlette.types import Message, Receive, Scope, Send

from command.load import FEW, LATE_SECONDS, LOOK_SECONDS, Counted, Load


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


def is_refused(load: Load, path: str = "/publish", method: str = "POST") -> bool:
    """Whether a request is, which must have a reason."""
    problem = load.refuses({"type": "http", "method": method, "path": path})  # type: ignore[arg-type,typeddict-item]
    assert problem is None or problem["type"] == "unavailable"
    return problem is not None


def be_late() -> None:
    """Keeps the event loop from its work."""
    time.sleep(LOOK_SECONDS + LATE_SECONDS + 0.05)


async def test_many_requests_are_no_overload_while_the_loop_is_in_time(load: Load) -> None:
    load.under_way = FEW * 10
    assert not is_refused(load)


async def test_a_late_loop_is_no_overload_while_requests_are_few(load: Load) -> None:
    load.under_way = FEW - 1
    be_late()
    assert not is_refused(load)


async def test_both_together_are_and_only_publishing_is_refused(load: Load) -> None:
    load.under_way = FEW
    be_late()
    assert is_refused(load)
    assert not is_refused(load, "/health")
    assert not is_refused(load, method="HEAD")  # whose answer must have no body


async def test_what_waited_meanwhile_is_refused_too_and_what_comes_later_is_not(load: Load) -> None:
    load.under_way = FEW
    be_late()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert is_refused(load)
    await asyncio.sleep(LOOK_SECONDS * 2)
    assert not is_refused(load)


@pytest.mark.parametrize(("path", "counted"), [("/publish", 1), ("/health", 0)])
async def test_requests_to_publish_are_counted_while_they_are_under_way(load: Load, path: str, counted: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert load.under_way == counted
        raise ConnectionResetError

    async def unused(*_: Message) -> Message:
        raise AssertionError

    with pytest.raises(ConnectionResetError):
        await Counted(app, load)({"type": "http", "method": "POST", "path": path}, unused, unused)
    assert load.under_way == 0
