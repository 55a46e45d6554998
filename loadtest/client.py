"""The lean client: requests that were made before go out as bytes over keep-alive connections of one process.

It shares the machine with what it measures, so it does as little as can be: a small fraction of what a real HTTP
library costs.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import quantiles

from chronicle.errors import ChronicleError

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Refused(ChronicleError):
    """An answer other than 200."""


class Connection:
    """One keep-alive connection with at most one request under way: `number`, whose latency counts from `since`."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number, self.since = 0, 0.0
        self._selector = selector
        self._unsent = memoryview(b"")
        self._answer = b""
        selector.register(self.socket, selectors.EVENT_READ, self)

    def send(self, number: int, request: bytes, since: float) -> None:
        """Begins to send a request."""
        self.number, self.since, self._answer = number, since, b""
        self._unsent = memoryview(request)
        self._write()
        if self._unsent:
            self._selector.modify(self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def proceed(self, events: int) -> bool:
        """Sends and receives what needs no waiting. True once the answer is whole; Refused where it is not 200."""
        if events & selectors.EVENT_WRITE:
            self._write()
            if not self._unsent:
                self._selector.modify(self.socket, selectors.EVENT_READ, self)
        return bool(events & selectors.EVENT_READ) and self._read()

    def _write(self) -> None:
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return

    def _read(self) -> bool:
        received = self.socket.recv(2**18)
        if not received:
            raise Refused("the connection was closed")
        self._answer += received
        head, blank, body = self._answer.partition(b"\r\n\r\n")
        length = LENGTH.search(head + b"\r\n")
        if not (blank and length and len(body) >= int(length[1])):
            return False
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Refused(f"{head[:100]!r} {body[:300]!r}")
        return True


def send(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    *,
    rate: float | None = None,
    answered: Callable[[int], None] | None = None,
) -> list[float]:
    """Sends each request over whichever of the connections is free, and gives their latencies in seconds, in order.

    Closed loop: each connection sends as soon as it has its answer. With a `rate` (requests a second) open loop: the
    n-th request is due n / rate after the start whatever the answers do, and its latency counts from then. `answered`
    is told the number of each request that is answered. Raises Refused for an answer other than 200.
    """
    latencies = [0.0] * len(requests)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        # In turn, so that none is idle for so long that the server closes it.
        free = deque(Connection(port, selector) for _ in range(connections))
        for connection in free:
            stack.enter_context(connection.socket)
        begun, sent, under_way = time.monotonic(), 0, 0
        while sent < len(requests) or under_way:
            now = time.monotonic()
            while free and sent < len(requests) and (rate is None or begun + sent / rate <= now):
                free.popleft().send(sent, requests[sent], now if rate is None else begun + sent / rate)
                sent, under_way = sent + 1, under_way + 1
            waits_for_time = rate is not None and free and sent < len(requests)
            for key, events in selector.select(begun + sent / rate - now if waits_for_time and rate else None):
                connection = key.data
                if not connection.proceed(events):
                    continue
                now = time.monotonic()
                latencies[connection.number] = now - connection.since
                if answered:
                    answered(connection.number)
                if rate is None and sent < len(requests):
                    connection.send(sent, requests[sent], now)
                    sent += 1
                else:
                    free.append(connection)
                    under_way -= 1
    return latencies


def milliseconds(latencies: Sequence[float], what: str) -> dict[str, float]:
    """Median, 95th and 99th percentile of latencies in seconds, as milliseconds by name."""
    cuts = quantiles(latencies, n=100)
    return {f"{what} p{percent} ms": cuts[percent - 1] * 1000 for percent in (50, 95, 99)}
