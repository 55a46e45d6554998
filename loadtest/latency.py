"""Latency and lag at half of the measured capacity, open loop: requests are due at their times whatever happens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from psycopg_pool import ConnectionPool

from chronicle import database
from loadtest import client, system, workload
from loadtest.rates import BULK, SINGLE, Shape
from tests.servers import Stack

SECONDS = 20
CONNECTIONS = 32
PROBES_A_SECOND = 10
PROBERS = 8
"""Events that are looked for at a time."""

ASK_SECONDS = 0.005
"""Between two looks for one event."""

IS_THERE = "SELECT EXISTS (SELECT FROM processed_events WHERE event_id = %s)"


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
    with Lag(stack, _probed(made, shape, seconds)) as lag:
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
    """How long chosen events take, from the answer to their request until GET /events?event_id= shows them.

    PostgreSQL is asked until an event is there, and the API once, then: asking the API all the time would be a load of
    its own, and the more of it the longer the lag. The time of that GET is part of the lag.
    """

    def __init__(self, stack: Stack, probed: dict[int, str]) -> None:
        self._stack = stack
        self._probed = probed
        self._threads = ThreadPoolExecutor(PROBERS)
        self._sessions = ConnectionPool(
            stack.run()["postgres"]["url"], kwargs={"autocommit": True}, min_size=PROBERS, open=False
        )
        self._lags: list[Future[float]] = []

    def __enter__(self) -> Lag:
        self._sessions.open(wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._sessions.close()

    def request_is_answered(self, number: int) -> None:
        """Starts to look for the event of this request, if it is one of the chosen."""
        if event_id := self._probed.get(number):
            self._lags.append(self._threads.submit(self._until_visible, event_id, time.monotonic()))

    def seconds(self) -> list[float]:
        """All lags."""
        return [lag.result() for lag in self._lags]

    def _until_visible(self, event_id: str, since: float) -> float:
        with self._sessions.connection() as session:
            while not database.value(session, IS_THERE, [event_id]):
                time.sleep(ASK_SECONDS)
        assert system.ask(self._stack, f"/events?event_id={event_id}")["count"] == 1
        return time.monotonic() - since
