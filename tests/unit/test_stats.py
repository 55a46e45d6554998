"""An answer that many ask for at the same time is made once for all of them, after they have asked."""

from __future__ import annotations

import asyncio

import pytest

from chronicle.errors import DatabaseAway
from query.stats import Shared


async def test_who_asks_while_an_answer_is_made_gets_the_next_one() -> None:
    made, begun, go_on = 0, asyncio.Event(), asyncio.Event()

    async def make() -> bytes:
        nonlocal made
        made += 1
        mine = made
        begun.set()
        await go_on.wait()
        return b"%d" % mine

    shared = Shared(make)
    first = [asyncio.create_task(shared.get()) for _ in range(2)]
    await begun.wait()
    later = [asyncio.create_task(shared.get()) for _ in range(3)]
    go_on.set()
    assert await asyncio.gather(*first, *later) == [b"1", b"1", b"2", b"2", b"2"]
    assert await shared.get() == b"3"


async def test_who_leaves_takes_the_answer_from_nobody_and_errors_reach_all() -> None:
    async def make() -> bytes:
        await asyncio.sleep(0)
        raise DatabaseAway

    shared = Shared(make)
    leaving, staying = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(DatabaseAway):
        await staying
    with pytest.raises(DatabaseAway):
        await shared.get()


async def test_an_answer_that_is_not_made_in_time_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("query.stats.ANSWER_SECONDS", 0.05)
    go_on = asyncio.Event()

    async def make() -> bytes:
        await go_on.wait()
        return b""

    shared = Shared(make)
    answers = await asyncio.gather(shared.get(), shared.get(), return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseAway, DatabaseAway]
    go_on.set()
    assert await shared.get() == b""
