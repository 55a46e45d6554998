"""Hostile input over raw sockets: a small refusal in bounded time and memory; the next good request works."""

from __future__ import annotations

import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from api import Api, event, fresh
from hostile import CLOSED, GOOD, JSON, LEFT_TO_A_GATEWAY, MARK, MIB, QUICK, STALLED, Row, head, opened, post
from servers import Stack, eventually
from wire import Answer, exchange, parse

QUICK_SECONDS = 20.0
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture
def port(url: str) -> int:
    """Where the system under test listens."""
    return int(url.rpartition(":")[2])


def check(answer: Answer, row: Row, *, gateway: bool = False) -> None:
    """The answer that the row asks for, in the one shape that errors have."""
    assert answer.status == row.status, answer
    if row.status == CLOSED:
        return
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]
    assert ("server" in answer.headers) == gateway
    if row.status < 400:
        return
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.body) <= 4096
    assert MARK.encode() not in answer.body.lower()
    for problem in answer.json()["detail"]:
        assert set(problem) == {"type", "loc", "msg"}
        assert problem["msg"]
    if row.loc is not None:
        assert answer.json()["detail"][0]["loc"] == row.loc


def test_there_are_many_rows_and_each_has_its_name() -> None:
    names = [row.name for row in [*QUICK, *STALLED]]
    assert len(names) == len(set(names)) >= 80


@pytest.mark.parametrize("row", QUICK, ids=str)
def test_a_hostile_request_is_refused_and_the_next_one_works(row: Row, port: int, api: Api, gateway: bool) -> None:
    if gateway and row.name in LEFT_TO_A_GATEWAY:
        pytest.skip("the gateway judges this by itself")
    began = time.monotonic()
    check(exchange(port, row.chunks()), row, gateway=gateway)
    assert time.monotonic() - began < QUICK_SECONDS
    assert row.status < 400 or MARK not in api.summary()["by_topic"]
    api.publish(event(fresh()))


def test_what_takes_too_long_is_ended_while_others_work(port: int, api: Api, gateway: bool) -> None:
    if gateway:
        pytest.skip("the gateway ends by itself, and without an answer, what takes too long")
    topic = fresh()
    api.publish_settled(topic, event(topic, text="x" * 15 * MIB))
    with ExitStack() as held:
        idle = [held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(200)]
        reader = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        reader.sendall(head(f"/events?topic={topic}".encode()))
        pool = held.enter_context(ThreadPoolExecutor(len(STALLED)))
        waiting = [(pool.submit(exchange, port, row.chunks()), row) for row in STALLED]
        api.publish(event(fresh()))
        for answer, row in waiting:
            check(answer.result(), row)
        assert {connection.recv(1) for connection in idle} == {b""}
        if sys.platform == "linux":
            eventually(lambda: not established(reader), timeout=60)


def test_a_bad_request_never_takes_the_place_of_an_earlier_ones_answer(port: int, api: Api, gateway: bool) -> None:
    topic = fresh()
    good = post(json.dumps({"events": [event(topic)]}).encode()).replace(b"Connection: close\r\n", b"")
    # The last answer: a gateway gives one to the bad request, too.
    assert exchange(port, [good + b"no HTTP\r\n\r\n"]).status == (400 if gateway else 200)
    assert api.settled(topic, 1)["processed"] == 1


def test_pipelined_requests_are_answered_in_their_order(port: int) -> None:
    paths = [b"/health", b"/stats", b"/nothing", b"/health"]
    kept = [head(path).replace(b"Connection: close\r\n", b"") for path in paths[:-1]]
    with socket.create_connection(("127.0.0.1", port), timeout=QUICK_SECONDS) as connection:
        connection.sendall(b"".join(kept) + head(paths[-1]))
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert [int(part.split()[0]) for part in received.split(b"HTTP/1.1 ")[1:]] == [200, 200, 404, 200]


def test_a_client_that_asks_for_http_2_with_each_request_is_answered(port: int, api: Api) -> None:
    topic = fresh()
    good = post(json.dumps({"events": [event(topic)]}).encode(), b"Connection: Upgrade", b"Upgrade: h2c")
    assert exchange(port, [good]).status == 200
    chunked = head(b"/publish", b"Transfer-Encoding: chunked", b"Connection: upgrade", b"Upgrade: h2c", method=b"POST")
    body = json.dumps({"events": [event(topic)]}).encode()
    assert exchange(port, [chunked, b"%x\r\n" % len(body), body, b"\r\n0\r\n\r\n"]).status == 200
    assert api.settled(topic, 2)["processed"] == 2


def test_a_body_that_comes_byte_by_byte_is_whole(port: int, api: Api) -> None:
    topic = fresh()
    request = post(json.dumps({"events": [event(topic)]}).encode())
    assert exchange(port, [request[at : at + 1] for at in range(len(request))]).status == 200
    assert api.settled(topic, 1)["processed"] == 1


def test_an_answer_waits_for_a_client_that_reads_only_after_it_has_sent_all(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=QUICK_SECONDS) as connection:
        connection.sendall(post(b" " * 40 * MIB))
        assert parse(connection.recv(65_536)).status == 413


def test_a_trailer_is_no_header(port: int) -> None:
    request = head(b"/publish", JSON, b"Transfer-Encoding: chunked", method=b"POST")
    body = b"d\r\n" + b'{"events":[]}' + b"\r\n0\r\nContent-Type: text/plain\r\nX-Request-ID: trailing\r\n\r\n"
    answer = exchange(port, [request + body])
    assert answer.status == 200
    assert answer.headers["x-request-id"] != "trailing"


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/events", "/stats", "/audit", "/audit/summary", "/docs"])
def test_head_answers_like_get_without_a_body(api: Api, path: str) -> None:
    got, asked = api.http.get(path), api.http.head(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]
    assert int(asked.headers["content-length"]) > 0


def memory(stack: Stack, peak: bool = False) -> int:
    """Bytes that the API process holds, or has ever held."""
    status = Path(f"/proc/{stack.pids()['api']}/status").read_text()
    return int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) * 1024


@on_linux
def test_many_large_slow_uploads_take_little_memory_and_shut_nobody_out(stack: Stack, port: int, api: Api) -> None:
    api.publish(event(fresh()))
    before = memory(stack)
    with ExitStack() as held:
        for _ in range(20):
            slow = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=QUICK_SECONDS))
            slow.sendall(opened(b"Content-Length: %d" % (16 * MIB)) + b" " * (16 * MIB - 1))
        api.publish(event(fresh()))
        assert memory(stack) - before < 200 * MIB
        answer = parse(slow.recv(65_536))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    eventually(lambda: exchange(port, [post(GOOD.replace(MARK.encode(), b"later") + b" " * 15 * MIB)]).status == 200)


@on_linux
def test_bombs_take_memory_in_proportion_to_their_size(own_stack: Stack, own_api: Api) -> None:
    own_api.publish(event(fresh()))
    before = memory(own_stack, peak=True)
    for piece in (b"[],", b'"",', b"1,", b'"\\u0041",', b"1e200,", b"[" * 90 + b"]" * 90 + b","):
        value = piece * (15 * MIB // len(piece)) + b"1e999"
        body = GOOD.replace(b'"message"', b'"a": [' + value + b'], "message"')
        assert exchange(own_stack.port, [post(body)]).status == 422
    assert memory(own_stack, peak=True) - before < 200 * MIB


def established(connection: socket.socket) -> bool:
    """Whether the server still holds its end of the connection."""
    ends = f"{connection.getpeername()[1]:04X}", f"{connection.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if (local[-4:], remote[-4:]) == ends:
            return state == "01"
    return False
