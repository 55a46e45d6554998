"""PostgreSQL or Valkey did what it was asked to, and the network lost its answer: nothing is doubled or left lying."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import closing
from typing import Any

import psycopg
import pytest
from given import Run, WayTo, columns, event, receive

from chronicle import broker, verify
from chronicle.errors import DatabaseAway
from chronicle.ledger import new_batch_id
from chronicle.settings import Settings
from command.dispatch import Dispatcher
from command.receive import Receiver
from projector.worker import Worker
from tests.chaos.proxy import anything, committed, cut_answers, pass_all


async def test_a_commit_whose_answer_is_lost_is_recorded_once(
    way_to: WayTo, database_url: str, db: psycopg.Connection[Any]
) -> None:
    proxy, url = way_to(database_url)
    receiver = Receiver(url, Settings(), lambda *_: None)
    task = asyncio.create_task(receiver.run())
    await receiver.receive(columns(event("a")), 1, "request")
    proxy.rule = cut_answers(committed, times=3)
    await receiver.receive(columns(event("b")), 1, "request")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert proxy.resets == 3
    assert db.execute("SELECT event_id FROM received_events ORDER BY 1").fetchall() == [("a",), ("b",)]
    assert db.execute("SELECT sum(received) FROM stats").fetchone() == (2,)


async def test_a_projection_whose_answer_is_lost_happened_once(
    way_to: WayTo, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    proxy, url = way_to(database_url)
    with closing(Worker(url, queue, threading.Event())) as worker:
        worker.run_once()
        batch_ids = await receive(database_url, [event("a"), event("a")])
        dispatcher = Dispatcher(database_url, queue)
        await dispatcher.send(batch_ids)
        await dispatcher.close()
        proxy.rule = cut_answers(lambda chunk: b"COMMIT\0" in chunk, times=1)
        with pytest.raises(DatabaseAway):
            worker.run_once()
        worker.reconnect()
        worker.run_once()
    assert db.execute("SELECT sum(processed), sum(dropped) FROM stats").fetchone() == (1, 1)
    assert [name for _, name, violations in verify.run(database_url) if violations] == []


async def test_tickets_whose_delivery_is_lost_are_read_again(
    monkeypatch: pytest.MonkeyPatch, way_to: WayTo, database_url: str, queue: str, db: psycopg.Connection[Any]
) -> None:
    monkeypatch.setattr("projector.worker.AWAY_SECONDS", 0)
    proxy, url = way_to(queue)
    with closing(Worker(database_url, url, threading.Event())) as worker, closing(broker.connect(queue)) as client:
        for _ in range(2):
            worker.run_once()  # makes the group, then finds that nothing is pending
        batch_ids = await receive(database_url, [event("a")])
        client.xadd(broker.STREAM, {broker.FIELD: str(batch_ids[0])})
        proxy.rule = cut_answers(anything, times=1)
        worker.run_once()
        proxy.rule = pass_all
        assert client.xpending(broker.STREAM, broker.GROUP)["pending"] == 1
        worker.run_once()
        assert client.xlen(broker.STREAM) == 0
    assert db.execute("SELECT event_id FROM processed_events").fetchall() == [("a",)]


def test_a_ticket_that_meets_a_reset_connection_is_one_that_was_not_sent(
    way_to: WayTo, run: Run, database_url: str, queue: str
) -> None:
    proxy, url = way_to(queue)

    async def scenario() -> None:
        loop, (bell, rung) = asyncio.get_running_loop(), socket.socketpair()
        woken = loop.create_future()
        loop.add_reader(rung, woken.set_result, None)
        dispatcher = Dispatcher(database_url, url)
        assert await dispatcher.send([new_batch_id()])
        # One look of the loop at its sockets sees both: it wakes this before it says that the connection is lost.
        bell.send(b"!")
        proxy.cut()
        await woken
        loop.remove_reader(rung)
        assert not await dispatcher.send([new_batch_id()])
        await dispatcher.close()
        bell.close()
        rung.close()

    run(scenario())
