"""Answers that are read slowly: their readers are cut, before what they hold takes the memory of all."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from chronicle import connections, http
from chronicle.up import ports

SIZE = 16 * 2**20


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers everything with SIZE bytes."""
    await Response(b"x" * SIZE)(scope, receive, send)


@contextmanager
def serving(app: ASGIApp) -> Iterator[tuple[http.Server, int]]:
    """A server of this application on the connections of ChronicleWeaver, and its port."""
    config = uvicorn.Config(app, http=connections.Connection, ws="none", lifespan="off", log_config=None)
    listener = ports.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = http.Server(config, listener)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server, port
    server.should_exit = True
    thread.join()


@pytest.fixture
def port() -> Iterator[int]:
    """Where a server answers with SIZE bytes."""
    with serving(large) as (_, port):
        yield port


def asked(port: int) -> socket.socket:
    """A connection that has asked, and read the first bytes of the answer."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


def read(connection: socket.socket, most: int = SIZE * 2) -> int:
    """How many bytes come until the server ends the connection, or there are so many."""
    received = 0
    try:
        while received < most and (some := connection.recv(65_536)):
            received += len(some)
    except ConnectionResetError:
        pass
    return received


def test_an_answer_that_is_read_drop_by_drop_is_cut_after_a_while(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 2.0)

    began = time.monotonic()
    with asked(port) as connection:
        received = 0
        while time.monotonic() - began < 5:
            received += len(connection.recv(1000))
            time.sleep(0.1)
        assert received + read(connection) < SIZE


def test_who_reads_one_answer_after_the_other_is_not_cut(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 2.0)
    began = time.monotonic()
    with asked(port) as connection:
        while time.monotonic() - began < 5:
            assert read(connection, SIZE - 15) >= SIZE - 15
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def test_the_slowest_reader_makes_room_for_the_others(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_UNSENT_BYTES", 3 * SIZE)
    with ExitStack() as held:
        waiting = [held.enter_context(asked(port)) for _ in range(6)]
        whole = [read(connection, SIZE) >= SIZE for connection in waiting]
    assert whole[-3:] == [True] * 3
    assert whole[0] is False


def test_clients_that_came_while_the_server_was_busy_are_all_taken_at_once() -> None:
    """One after the other, each would wait for what those before it ask."""
    busy, go_on = threading.Event(), threading.Event()
    known: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        known.append(len(server.server_state.connections))
        busy.set()
        go_on.wait(20)
        await Response()(scope, receive, send)

    with serving(app) as (server, port), ExitStack() as held:
        for number in range(101):
            client = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert number or busy.wait(20)
        go_on.set()
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    assert known[:2] == [1, 101]
