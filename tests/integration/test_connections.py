"""Answers that are read slowly: their readers are cut, before what they hold takes the memory of all. And requests that
are refused before the application sees them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from chronicle import connections, http
from chronicle.errors import Problem
from chronicle.up import ports

SIZE = 16 * 2**20


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers everything with SIZE bytes."""
    await Response(b"x" * SIZE)(scope, receive, send)


@contextmanager
def serving(app: ASGIApp, refuses: connections.Refuses | None = None) -> Iterator[tuple[http.Server, int]]:
    """A server of this application on the connections of ChronicleWeaver, and its port."""
    config = uvicorn.Config(
        app, http=connections.Connection, ws="none", lifespan="off", log_config=None, timeout_keep_alive=60
    )
    listener = ports.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = http.Server(config, listener, refuses)
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


def test_an_answer_that_many_get_takes_the_room_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_UNSENT_BYTES", 3 * SIZE)
    shared = b"x" * SIZE

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(shared)(scope, receive, send)

    with serving(app) as (_, port), ExitStack() as held:
        waiting = [held.enter_context(asked(port)) for _ in range(6)]
        assert all(read(connection, SIZE) >= SIZE for connection in waiting)


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


PROBLEM = Problem(type="unavailable", loc=[], msg="not now")
REFUSED = b'{"detail":[{"type":"unavailable","loc":[],"msg":"not now"}]}'


@pytest.fixture
def picky() -> Iterator[int]:
    """Where a server answers a path with itself, but for /no, of which the application must not hear."""

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"] != "/no"
        await Response(scope["path"])(scope, receive, send)

    with serving(echo, lambda scope: PROBLEM if scope["path"] == "/no" else None) as (_, port):
        yield port


def request(path: str, *headers: str, body: bytes = b"") -> bytes:
    """A request to POST something."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(client: HTTPConnection, path: str) -> tuple[int, bytes, str | None]:
    """Posts a body of 1 MB, and gives status and body of the answer, and when to try again."""
    client.request("POST", path, b"x" * 10**6)
    answer = client.getresponse()
    return answer.status, answer.read(), answer.headers["retry-after"]


def test_a_connection_goes_on_after_a_request_that_was_refused(picky: int) -> None:
    client = HTTPConnection("127.0.0.1", picky, timeout=30)
    client.connect()
    own = client.sock.getsockname()
    assert [ask(client, path) for path in ("/no", "/yes", "/no", "/no", "/yes")] == [
        (503, REFUSED, "1"),
        (200, b"/yes", None),
        (503, REFUSED, "1"),
        (503, REFUSED, "1"),
        (200, b"/yes", None),
    ]
    assert client.sock.getsockname() == own
    client.close()


def test_answers_to_pipelined_requests_keep_their_order_where_some_are_refused(picky: int) -> None:
    paths = ["/1", "/no", "/2", "/no", "/no", "/3"]
    with socket.create_connection(("127.0.0.1", picky), timeout=30) as connection:
        connection.sendall(b"".join(request(path, body=b"body") for path in paths) + request("/4", "Connection: close"))
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in received.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"/1", REFUSED, b"/2", REFUSED, REFUSED, b"/3", b"/4"]


def test_a_refusal_closes_where_the_client_asks_for_that_and_has_the_requests_own_id(picky: int) -> None:
    with socket.create_connection(("127.0.0.1", picky), timeout=30) as connection:
        connection.sendall(request("/no", "Connection: close", "X-Request-ID: mine"))
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert received.startswith(b"HTTP/1.1 503 ")
    assert received.endswith(REFUSED)
    assert b"\r\nconnection: close\r\n" in received
    assert b"\r\nx-request-id: mine\r\n" in received
