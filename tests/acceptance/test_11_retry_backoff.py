"""The publisher against servers that break: what it tries again, how often, how long it waits, and what it keeps."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from api import Api, event, fresh, series
from publisher_runs import begin, end, kept, publish
from servers import Stack, eventually

Answer = tuple[int, dict[str, str]]
ACCEPT = 200
DROP_CONNECTION = 0


class Server(ThreadingHTTPServer):
    """Answers the n-th request as a plan says: with an error, with silence, or by passing it on to the real system."""

    daemon_threads = True

    def __init__(self, plan: Callable[[int], Answer], real: Api | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan = plan
        self.real = real
        self.arrivals: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One connection to a Server."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        """Takes the whole request, then answers by the plan."""
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.arrivals.append(time.monotonic())
            status, headers = self.server.plan(len(self.server.arrivals))
        if status == DROP_CONNECTION:
            self.close_connection = True
            return
        content = b'{"detail": [{"type": "broken", "loc": ["body"], "msg": "as planned"}]}'
        if status == ACCEPT and self.server.real is not None:
            answer = self.server.real.post_body(body)
            status, content = answer.status_code, answer.content
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keeps the test output free of access lines."""


@contextmanager
def serving(plan: Callable[[int], Answer], real: Api | None = None) -> Iterator[Server]:
    """A Server that listens on a free port until the block ends."""
    with Server(plan, real) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def first_then_accept(times: int, status: int, headers: dict[str, str] | None = None) -> Callable[[int], Answer]:
    """A plan: the first requests go wrong, all later ones are passed on."""
    return lambda number: (status, headers or {}) if number <= times else (ACCEPT, {})


def lines(where: Path, topic: str, size: int) -> Path:
    """A file of JSON Lines with `size` events of `topic`."""
    file = where / "input.jsonlines"
    file.write_text("".join(json.dumps(each) + "\n" for each in series(topic, size)))
    return file


@pytest.mark.parametrize("status", [429, 500, 502, 503, DROP_CONNECTION])
def test_a_request_that_fails_for_the_moment_is_sent_again(api: Api, tmp_path: Path, status: int) -> None:
    topic = fresh()
    file = lines(tmp_path, topic, 40)
    with serving(first_then_accept(2, status, {"retry-after": "0"}), api) as server:
        code, output = publish(server.url, tmp_path, "--file", str(file), BATCH_SIZE=40)
    assert code == 0, output
    assert len(server.arrivals) == 3
    assert api.settled(topic, 40)["processed"] == 40
    assert kept(tmp_path) == []


def test_a_request_is_tried_5_times_ever_more_slowly_and_then_kept(api: Api, tmp_path: Path) -> None:
    topic = fresh()
    file = lines(tmp_path, topic, 10)
    with serving(lambda _: (500, {})) as server:
        code, output = publish(server.url, tmp_path, "--file", str(file), BATCH_SIZE=10)
    assert code != 0
    first, second, third, fourth = (later - earlier for earlier, later in pairwise(server.arrivals))
    assert third + fourth > first + second
    [rest] = kept(tmp_path)
    assert rest.name in output
    assert [json.loads(line) for line in rest.read_text().splitlines()] == series(topic, 10)
    code, output = publish(api.url, tmp_path, "--file", str(rest))
    assert code == 0, output
    assert api.settled(topic, 10)["processed"] == 10


@pytest.mark.parametrize("status", [400, 401, 404, 405, 415])
def test_another_4xx_is_never_tried_again(tmp_path: Path, status: int) -> None:
    file = lines(tmp_path, fresh(), 5)
    with serving(lambda _: (status, {})) as server:
        code, _ = publish(server.url, tmp_path, "--file", str(file), BATCH_SIZE=5)
    assert code != 0
    assert len(server.arrivals) == 1
    [rest] = kept(tmp_path)
    assert len(rest.read_text().splitlines()) == 5


def test_retry_after_is_honoured(api: Api, tmp_path: Path) -> None:
    topic = fresh()
    file = lines(tmp_path, topic, 5)
    with serving(first_then_accept(1, 503, {"retry-after": "3"}), api) as server:
        code, output = publish(server.url, tmp_path, "--file", str(file), BATCH_SIZE=5)
    assert code == 0, output
    first, second = server.arrivals
    assert second - first >= 3


def test_an_answer_that_was_lost_does_not_double_an_event(api: Api, tmp_path: Path) -> None:
    topic = fresh()
    file = lines(tmp_path, topic, 30)

    def plan(number: int) -> Answer:
        if number == 1:
            api.publish(*series(topic, 30))
            return DROP_CONNECTION, {}
        return ACCEPT, {}

    with serving(plan, api) as server:
        code, output = publish(server.url, tmp_path, "--file", str(file), BATCH_SIZE=30)
    assert code == 0, output
    counters = api.settled(topic, 60)
    assert (counters["processed"], counters["dropped"]) == (30, 30)


def test_nobody_listening_is_told_and_every_event_is_kept(tmp_path: Path) -> None:
    with serving(lambda _: (ACCEPT, {})) as server:
        url = server.url
    code, output = publish(url, tmp_path, EVENT_COUNT=50, BATCH_SIZE=50)
    assert code != 0
    assert "Traceback" not in output
    [rest] = kept(tmp_path)
    assert len(rest.read_text().splitlines()) == 50


def test_one_bad_event_in_a_file_does_not_stop_the_others(api: Api, tmp_path: Path) -> None:
    topic = fresh()
    bad = {**event(topic, "bad"), "timestamp": "not a time"}
    with (file := lines(tmp_path, topic, 20)).open("a") as more:
        more.write(json.dumps(bad) + "\n")
    code, _ = publish(api.url, tmp_path, "--file", str(file))
    assert code != 0
    assert api.settled(topic, 20)["processed"] == 20
    [rest] = kept(tmp_path)
    assert [json.loads(line) for line in rest.read_text().splitlines()] == [bad]


def received(api: Api) -> int:
    """How many events were received, or 0 while the API cannot be asked."""
    try:
        return api.stats()["received"]
    except httpx2.TransportError:
        return 0


def restarted(stack: Stack, before: int) -> int:
    """The process of the API once it is another than `before`, else 0."""
    now = stack.pids().get("api", before)
    return 0 if now == before else now


def test_the_api_killed_under_the_publisher_costs_nothing(own_stack: Stack, own_api: Api, tmp_path: Path) -> None:
    publisher = begin(own_stack.url, tmp_path, EVENT_COUNT=20_000, DUPLICATE_RATIO=0.3, BATCH_SIZE=100)
    eventually(lambda: own_api.stats()["received"] >= 1_000, timeout=30)
    first = own_stack.pids()["api"]
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: restarted(own_stack, first))
    eventually(lambda: received(own_api) >= 6_000, timeout=30)
    os.kill(second, signal.SIGKILL)
    code, output = end(publisher)
    assert code == 0, output
    stats = own_api.quiet()
    assert stats["unique_processed"] == 14_000
    assert stats["failed"] == 0
    assert stats["received"] >= 20_000
    assert stats["duplicated_dropped"] == stats["received"] - 14_000
    assert kept(tmp_path) == []


def test_the_system_restarted_under_the_publisher_costs_nothing(own_stack: Stack, own_api: Api, tmp_path: Path) -> None:
    publisher = begin(own_stack.url, tmp_path, EVENT_COUNT=20_000, DUPLICATE_RATIO=0.3, BATCH_SIZE=100)
    eventually(lambda: own_api.stats()["received"] >= 1_000, timeout=30)
    os.kill(own_stack.run()["postgres"]["pid"], signal.SIGKILL)
    code, output = end(publisher)
    assert code == 0, output
    stats = own_api.quiet()
    assert stats["unique_processed"] == 14_000
    assert stats["duplicated_dropped"] == stats["received"] - 14_000 >= 6_000
