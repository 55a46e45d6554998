"""Too much: what cannot be taken is refused quickly, what was accepted is all there, and then all is normal again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psycopg
import pytest
from scrape import scrape
from servers import Stack, eventually, free_port

EVENTS = 1000
SECONDS = 5
REQUESTS_A_SECOND = 150
"""A thousand events each: about three times what two cores take."""

ROOM = 4 * 2**20
"""Bytes of bodies that the service may hold: twenty of these requests, so that the load is too much on any machine."""


IN_FLIGHT = 50_000

MANY = 80
"""Requests at once: more than are never too many (command.load.FEW)."""

STOPPED_SECONDS = 0.6
"""Later than a service may be that takes more of them (command.load.LATE_SECONDS)."""


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[Stack]:
    """A system with little room."""
    room = {"CHRONICLE_MAX_WAITING_BYTES": str(ROOM), "CHRONICLE_MAX_IN_FLIGHT": str(IN_FLIGHT)}
    stack = Stack(tmp_path / "home", env=room)
    stack.start()
    yield stack
    stack.close()


def body(count: int) -> bytes:
    run = uuid.uuid4().hex
    events = [
        {
            "event_id": f"{run}-{n}",
            "topic": f"topic-{n % 5}",
            "source": "overload",
            "payload": {"message": f"event {n}", "timestamp": "2025-01-01T00:00:00"},
            "timestamp": "2025-01-01T00:00:00Z",
        }
        for n in range(count)
    ]
    return json.dumps({"events": events}).encode()


def request(content: bytes, header: str = "") -> bytes:
    """A request to publish, as bytes."""
    head = f"POST /publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{header}"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def post(port: int, content: bytes) -> tuple[int, float, bool]:
    """Status (0 where there is no answer), seconds, and whether the answer says when to try again."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(40):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(content, "Connection: close\r\n"))
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return 0, time.monotonic() - began, False
    return int(answer.split()[1]), time.monotonic() - began, b"\r\nretry-after: " in answer.lower()


async def open_loop(port: int) -> list[tuple[int, float, bool]]:
    """Requests at a fixed rate, whatever becomes of those before."""
    sent: list[asyncio.Task[tuple[int, float, bool]]] = []
    bodies = [body(EVENTS) for _ in range(20)]
    began = time.monotonic()
    for number in range(SECONDS * REQUESTS_A_SECOND):
        await asyncio.sleep(max(began + number / REQUESTS_A_SECOND - time.monotonic(), 0))
        sent.append(asyncio.create_task(post(port, bodies[number % len(bodies)])))
    return await asyncio.gather(*sent)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    listing = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(listing.stdout) * 1024


@pytest.mark.timeout(240)
async def test_too_much_is_refused_quickly_and_loses_nothing(crowded: Stack) -> None:
    answers = await open_loop(crowded.port)
    statuses = Counter(status for status, _, _ in answers)
    assert set(statuses) == {200, 503}, statuses
    assert all(says_when for status, _, says_when in answers if status == 503)
    assert memory(crowded.pids()["api"]) < 500 * 2**20
    stats = eventually(lambda: _settled(crowded), timeout=60)
    assert stats["received"] == statuses[200] * EVENTS
    eventually(lambda: not _refused(crowded))


def _settled(stack: Stack) -> dict[str, int] | None:
    stats: dict[str, int] = httpx2.get(f"{stack.url}/stats", timeout=30).json()
    return stats if stats["in_flight"] == 0 else None


def test_without_workers_publishing_goes_on_until_the_limit(crowded: Stack) -> None:
    projector = crowded.pids()["projector"]
    os.kill(projector, signal.SIGSTOP)
    refused = eventually(lambda: _refused(crowded), timeout=60)
    assert "retry-after" in refused.headers
    assert "in flight" in refused.json()["detail"][0]["msg"]
    assert httpx2.get(f"{crowded.url}/stats").json()["in_flight"] == IN_FLIGHT
    os.kill(projector, signal.SIGCONT)
    eventually(lambda: _settled(crowded), timeout=30)
    eventually(lambda: not _refused(crowded))


def _refused(stack: Stack) -> httpx2.Response | None:
    answer = httpx2.post(f"{stack.url}/publish", content=body(EVENTS), timeout=30)
    assert answer.status_code in (200, 503)
    return answer if answer.status_code == 503 else None


def test_a_late_service_refuses_what_comes_on_top_of_many_requests(crowded: Stack) -> None:
    with ExitStack() as held, psycopg.connect(crowded.run()["postgres"]["url"]) as connection:
        connection.execute("LOCK TABLE facts IN ACCESS EXCLUSIVE MODE")
        address = "127.0.0.1", crowded.port
        *many, late = [held.enter_context(socket.create_connection(address, timeout=30)) for _ in range(MANY + 1)]
        for line in many:
            line.sendall(request(body(1)))
        for _ in range(2):  # by the second answer, what was sent before the first is under way
            assert httpx2.get(f"{crowded.url}/health").status_code == 200
        api = crowded.pids()["api"]
        os.kill(api, signal.SIGSTOP)
        late.sendall(request(body(1)))
        time.sleep(STOPPED_SECONDS)
        os.kill(api, signal.SIGCONT)
        answer = late.recv(65_536).lower()
        connection.rollback()
        assert {line.recv(65_536)[:12] for line in many} == {b"HTTP/1.1 200"}
    assert answer.startswith(b"http/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in answer
    assert b"more requests come" in answer
    seen = scrape(f"{crowded.url}/metrics")
    assert seen.value("chronicle_http_requests_total", route="/publish", status="503") == 1
    assert seen.value("chronicle_received_events_total") == MANY


FILES, CLIENTS = 260, 400


def test_more_clients_than_there_may_be_open_files_wait_and_cost_next_to_nothing(stack: Stack, tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "log"
    query = [sys.executable, "-m", "chronicle", "query", "--port", str(port)]
    with output.open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", *query], env=stack.environment, stderr=log
        )
    try:
        eventually(lambda: _answers(port), timeout=30)
        with ExitStack() as clients:
            for _ in range(CLIENTS):
                clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            looks = eventually(lambda: _looks(output, at_least=3))
        assert looks < 20  # or it asked all the time whether there is room
        eventually(lambda: _answers(port), timeout=30)
    finally:
        process.terminate()
        process.wait(timeout=15)


def _looks(output: Path, at_least: int) -> int:
    found = output.read_text().count("new clients wait")
    return found if found >= at_least else 0


def _answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
