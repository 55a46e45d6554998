"""`python -m tests.chaos.overload`: open-loop load at three times capacity. What is too much is refused quickly, memory
is bounded, what was accepted is all there, and then all is normal again. On Linux."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

import psycopg

from chronicle import verify
from tests.servers import Stack, eventually, family

from . import api
from .samples import MEMORY, Sample, Sampler, memory

TIMES, ENOUGH = 3, 0.9
CAPACITY_SECONDS = 10.0
CLOSED_LOOPS = 16
ANSWER_SECONDS = 40.0
NORMAL_SECONDS = 60.0
PROBES = 20

QUICK_SECONDS = 1.0
"""For 99 of 100 refusals, by the clock of a client that shares the machine."""

MIB_ALLOWED = 600
"""For the API: 64 MiB of bodies, decoded, and the batches under way."""

RECORDED = """
SELECT source, count(*) AS events
FROM facts CROSS JOIN LATERAL unnest(sources) AS source WHERE action = 'RECEIVED' GROUP BY source
"""


class Line(asyncio.Protocol):
    """A connection that is kept, with one request on it at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Some of an answer."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            self._received = b""
            if not self._answer.done():
                self._answer.set_result(head.lower())

    def connection_lost(self, exc: Exception | None) -> None:
        """It broke, or was closed."""
        if not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError())
            self._answer.exception()

    async def ask(self, request: bytes) -> bytes:
        """The head of the answer, in lower case. Raises OSError, TimeoutError."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._answer

    def is_open(self) -> bool:
        """Whether nobody has ended it: the service does where it is idle for long."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Ends it."""
        self._transport.abort()


class Load:
    """Requests of `events` events each: when they were answered, and how."""

    def __init__(self, port: int, events: int) -> None:
        self.seconds: dict[int, list[float]] = defaultdict(list)
        self.statuses: dict[str, int] = {}
        self.without_retry_after = 0
        self.events = events
        self._port = port
        self._idle: deque[Line] = deque()
        self._template = _template(events)

    async def post(self) -> tuple[int, float]:
        """One request: its status, 0 where there was no answer, and its seconds."""
        name = f"{len(self.statuses):08}"
        self.statuses[name] = 0
        began = time.monotonic()
        try:
            line = await self._line()
            head = await line.ask(self._template.replace(b"########", name.encode()))
            status = int(head.split(maxsplit=2)[1])
            (line.close if b"connection: close" in head else lambda: self._idle.append(line))()
            self.without_retry_after += status == 503 and b"\r\nretry-after:" not in head
        except (OSError, TimeoutError):
            status = 0
        took = time.monotonic() - began
        self.statuses[name] = status
        self.seconds[status].append(took)
        return status, took

    async def _line(self) -> Line:
        while self._idle:
            if (line := self._idle.pop()).is_open():
                return line
        return (await asyncio.get_running_loop().create_connection(Line, "127.0.0.1", self._port))[1]

    async def closed(self, seconds: float) -> None:
        """Each of CLOSED_LOOPS clients sends as soon as it is answered."""
        deadline = time.monotonic() + seconds

        async def loop() -> None:
            while time.monotonic() < deadline:
                await self.post()

        await asyncio.gather(*(loop() for _ in range(CLOSED_LOOPS)))

    async def open(self, rate: float, seconds: float) -> float:
        """So many requests a second by the clock, whatever becomes of those before; how many a second it came to."""
        requests = int(rate * seconds)
        began = time.monotonic()
        async with asyncio.TaskGroup() as posts:  # forgets those that are done: a client full of them stands still
            for number in range(requests):
                await asyncio.sleep(max(began + number / rate - time.monotonic(), 0))
                posts.create_task(self.post())
            return requests / (time.monotonic() - began)

    async def usual(self) -> float:
        """The median of some single requests, in seconds; infinity where one is not accepted."""
        answers = [await self.post() for _ in range(PROBES)]
        return statistics.median(took for _, took in answers) if {s for s, _ in answers} == {200} else float("inf")


def _template(events: int) -> bytes:
    """A request with ######## in place of its name, which is the source of all its events and begins their ids."""
    body = json.dumps(
        {
            "events": [
                {
                    "event_id": f"########-{n}",
                    "topic": f"topic-{n % 5}",
                    "source": "########",
                    "payload": {"message": f"event {n}", "timestamp": "2025-01-01T00:00:00", "padding": "x" * 100},
                    "timestamp": "2025-01-01T00:00:00Z",
                }
                for n in range(events)
            ]
        }
    )
    head = "POST /publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def run(stack: Stack, events: int, seconds: float) -> list[str]:
    """Capacity, the overload, and what is wrong afterwards."""
    load = Load(stack.port, events)
    began = time.monotonic()
    await load.closed(CAPACITY_SECONDS)
    await asyncio.to_thread(_until_empty, stack)
    capacity = Counter(load.statuses.values())[200] / (time.monotonic() - began)
    usual = await load.usual()
    print(f"capacity: {capacity * events:,.0f} events/s; a single request takes {usual * 1000:.1f} ms", flush=True)
    load.seconds.clear()
    sampler = Sampler(lambda: _memory(stack))
    sampler.start()
    began = time.monotonic()
    sent = await load.open(TIMES * capacity, seconds)
    over = time.monotonic()
    accepted = len(load.seconds[200]) / (over - began)
    print(f"{sent / capacity:.1f} times capacity was sent, {accepted / capacity:.0%} of capacity accepted", flush=True)
    found = list(_answers(load))
    if sent < ENOUGH * TIMES * capacity:
        found.insert(0, f"this client can do {sent / capacity:.1f} times capacity only: give it more events a request")
    while await load.usual() > 2 * usual + 0.02 and time.monotonic() - over < NORMAL_SECONDS:
        pass
    normal = time.monotonic() - over
    await asyncio.to_thread(sampler.stop)
    print(f"normal after {normal:.1f} s; most memory: { {name: round(m) for name, m in sampler.most.items()} }")
    if normal >= NORMAL_SECONDS:
        found.append(f"requests still take longer than usual {NORMAL_SECONDS} s after the load")
    if sampler.most[f"{MEMORY}api"] > MIB_ALLOWED:
        found.append(f"the API took {sampler.most[f'{MEMORY}api']:.0f} MiB")
    await asyncio.to_thread(_until_empty, stack)
    return [*found, *_recorded(load, stack.run()["postgres"]["url"])]


def _answers(load: Load) -> Iterator[str]:
    for status, took in sorted(load.seconds.items()):
        p50, p99 = (sorted(took)[int(len(took) * share)] for share in (0.5, 0.99))
        print(f"{status}: {len(took)} answers, p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms", flush=True)
        if status not in {200, 503}:
            yield f"{len(took)} requests were answered {status}"
        if status == 503 and p99 > QUICK_SECONDS:
            yield f"99 of 100 refusals take up to {p99:.1f} s"
    if not load.seconds[503]:
        yield "nothing was refused: that was no overload"
    if load.without_retry_after:
        yield f"{load.without_retry_after} refusals without Retry-After"


def _recorded(load: Load, url: str) -> Iterator[str]:
    """What was accepted is there whole and once, what was refused is not."""
    with psycopg.connect(url) as connection:
        recorded = dict(connection.execute(RECORDED).fetchall())
    for name, status in load.statuses.items():
        count = recorded.get(name, 0)
        if count not in ({200: {load.events}, 503: {0}}.get(status, {0, load.events})):
            yield f"request {name} was answered {status}, and {count} of its events are recorded"
    for invariant, name, violated in verify.run(url):
        yield from (f"chronicle verify, invariant {invariant}, {name}: {text}" for text in violated)


def _memory(stack: Stack) -> Sample:
    return {f"{MEMORY}{name}": memory(family(pid)) for name, pid in stack.pids().items() if name != "supervisor"}


def _until_empty(stack: Stack) -> None:
    eventually(lambda: api.get(stack.port, "/stats")["in_flight"] == 0, timeout=300, every=0.2)


def main() -> int:
    """The exit code is 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.overload", description=__doc__)
    parser.add_argument("--events", type=int, default=100, help="a request")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chronicle-overload-"))
    folder.chmod(0o711)  # as root, the servers run as somebody else, who has to pass
    stack = Stack(folder / "home")
    stack.start()
    try:
        found = asyncio.run(run(stack, options.events, options.seconds))
    finally:
        stack.close()
    for violation in found[:20]:
        print("VIOLATED:", violation)
    if found:
        print("logs and data:", folder)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    print("holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
