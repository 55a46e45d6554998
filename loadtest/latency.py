"""Latency and lag at half of the measured capacity, open loop: requests are due at their times whatever happens."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection

from loadtest import client, system, workload
from loadtest.rates import BULK, SINGLE, Shape
from tests.servers import Stack

SECONDS = 20
CONNECTIONS = 32
PROBES_A_SECOND = 10
ASK_SECONDS = 0.005
"""Between two looks for one event: looking without a pause would be a load of its own, and measure itself."""


def at_half_load(found: dict[str, float], scale: float) -> dict[str, float]:
    """Percentiles of single and bulk requests at half of the rates in `found`, which the same run has measured."""
    latencies: dict[str, float] = {}
    with system.chronicle() as stack:
        for shape in (SINGLE, BULK):
            latencies |= _open_loop(stack, shape, found[f"{shape.name} events/s"] / 2, SECONDS * scale)
        system.verify(stack)
    return latencies


def _open_loop(stack: Stack, shape: Shape, rate: float, seconds: float) -> dict[str, float]:
    made = workload.events(max(int(rate * seconds), 10 * shape.size))
    requests = workload.requests(made, shape.size)
    name = f"{shape.name} at half load"
    with Lag(stack.port, _probed(made, shape, seconds)) as lag:
        latencies = client.send(
            stack.port, requests, CONNECTIONS, rate=rate / shape.size, answered=lag.request_is_answered
        )
        lags = lag.seconds()
    system.settle(stack)
    return (
        client.milliseconds(latencies, name) | client.milliseconds(lags, f"{name}: lag") | {f"{name}: events/s": rate}
    )


def _probed(made: Sequence[bytes], shape: Shape, seconds: float) -> dict[int, str]:
    """By number of a request, an event that is new in it: PROBES_A_SECOND of them, evenly spread."""
    new = [(number, event_ids[0]) for number, event_ids in workload.first_sightings(made, shape.size).items()]
    return dict(new[:: max(1, int(len(new) / (PROBES_A_SECOND * seconds)))])


class Lag:
    """Asks GET /events?event_id= for chosen events, from the moment their request is answered until they are there.

    What a user would see, so it contains the time that the last GET takes.
    """

    def __init__(self, port: int, probed: dict[int, str]) -> None:
        self._port = port
        self._probed = probed
        self._threads = ThreadPoolExecutor(8)
        self._lags: list[Future[float]] = []

    def __enter__(self) -> Lag:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def request_is_answered(self, number: int) -> None:
        """Starts to look for the event of this request, if it is one of the chosen."""
        if event_id := self._probed.get(number):
            self._lags.append(self._threads.submit(self._until_visible, event_id, time.monotonic()))

    def seconds(self) -> list[float]:
        """All lags."""
        return [lag.result() for lag in self._lags]

    def _until_visible(self, event_id: str, since: float) -> float:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=system.SETTLE_SECONDS)
        try:
            while True:
                connection.request("GET", f"/events?event_id={event_id}")
                if json.load(connection.getresponse())["count"]:
                    return time.monotonic() - since
                time.sleep(ASK_SECONDS)
        finally:
            connection.close()
