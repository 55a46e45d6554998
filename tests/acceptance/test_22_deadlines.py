"""Deadlines: a server that stands still makes requests fail in bounded time, and is forgotten once it is back."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from servers import Stack, eventually, family, standing_still


def publish(stack: Stack, event_id: str, timeout: float = 30) -> httpx2.Response:
    event: dict[str, Any] = {
        "event_id": event_id,
        "topic": "deadlines",
        "source": "s",
        "payload": {},
        "timestamp": "2025-01-01T00:00:00Z",
    }
    return httpx2.post(f"{stack.url}/publish", json={"events": [event]}, timeout=timeout)


def stored(stack: Stack, event_id: str) -> bool:
    return bool(httpx2.get(f"{stack.url}/events", params={"event_id": event_id}).json()["count"])


def seconds(call: Callable[[], httpx2.Response]) -> tuple[float, httpx2.Response]:
    began = time.monotonic()
    answer = call()
    return time.monotonic() - began, answer


@pytest.mark.timeout(180)
def test_a_postgresql_that_stands_still_is_a_503_in_bounded_time(own_stack: Stack) -> None:
    assert publish(own_stack, "before").status_code == 200
    with standing_still(family(own_stack.pids()["postgres"])):
        calls = [
            lambda: publish(own_stack, "meanwhile"),
            lambda: publish(own_stack, "meanwhile too"),
            lambda: httpx2.get(f"{own_stack.url}/stats", timeout=30),
            lambda: httpx2.get(f"{own_stack.url}/ready", timeout=30),
        ]
        with ThreadPoolExecutor() as threads:
            answers = list(threads.map(seconds, calls))
        for took, answer in answers:
            assert answer.status_code == 503, answer.text
            assert "retry-after" in answer.headers
            assert took < 15
        assert httpx2.get(f"{own_stack.url}/health").status_code == 200
    took, answer = seconds(lambda: eventually(lambda: _ok(publish(own_stack, "after")), timeout=20))
    assert took < 5
    eventually(lambda: stored(own_stack, "after"), timeout=30)


def _ok(answer: httpx2.Response) -> httpx2.Response | None:
    return answer if answer.status_code == 200 else None


def test_after_postgresql_was_killed_the_next_publish_succeeds_within_five_seconds_of_its_return(
    own_stack: Stack,
) -> None:
    assert publish(own_stack, "before").status_code == 200
    os.kill(own_stack.pids()["postgres"], signal.SIGKILL)
    eventually(lambda: _ok(httpx2.get(f"{own_stack.url}/ready", timeout=30)), timeout=40)
    took, _ = seconds(lambda: eventually(lambda: _ok(publish(own_stack, "after")), timeout=20))
    assert took < 5
    eventually(lambda: stored(own_stack, "after"), timeout=30)


def test_a_broker_that_stands_still_delays_nothing_but_the_tickets(own_stack: Stack) -> None:
    assert publish(own_stack, "before").status_code == 200
    with standing_still(family(own_stack.pids()["broker"])):
        took, answer = seconds(lambda: publish(own_stack, "meanwhile"))
        assert answer.status_code == 200
        assert took < 5
        eventually(lambda: stored(own_stack, "meanwhile"), timeout=30)
    assert publish(own_stack, "after").status_code == 200
    eventually(lambda: stored(own_stack, "after"), timeout=30)


def test_workers_that_stand_still_let_go_of_their_batches(own_stack: Stack) -> None:
    """Another projector takes them over; so does the same one when it goes on."""
    with standing_still(family(own_stack.pids()["projector"])):
        assert publish(own_stack, "meanwhile").status_code == 200
        assert not stored(own_stack, "meanwhile")
    eventually(lambda: stored(own_stack, "meanwhile"), timeout=30)


@pytest.mark.timeout(60)
def test_the_stop_is_bounded_while_postgresql_stands_still(own_stack: Stack) -> None:
    with standing_still(family(own_stack.pids()["postgres"])):
        began = time.monotonic()
        own_stack.stop(timeout=12)
        assert time.monotonic() - began < 11


def test_who_still_waits_when_the_service_stops_is_told_to_come_again(own_stack: Stack) -> None:
    head = "POST /publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    with socket.create_connection(("127.0.0.1", own_stack.port), timeout=30) as client:
        client.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 100 ")
        assert own_stack.stop() == 0
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: " in answer.lower()
