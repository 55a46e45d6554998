"""SIGTERM under load: whatever was answered 200 is there afterwards, once, and the system ends cleanly."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event as Signal

import httpx2
from api import Api, fresh, ids, series
from servers import Stack, eventually


class Load:
    """Eight clients that publish to one topic until they are told to stop or the system is gone."""

    def __init__(self, api: Api, topic: str) -> None:
        self.accepted: set[str] = set()
        self.sent: set[str] = set()
        self.answers: set[int] = set()
        self._api = api
        self._topic = topic
        self._over = Signal()
        self._pool = ThreadPoolExecutor(8)
        self._clients: list[Future[None]] = [self._pool.submit(self._client, number) for number in range(8)]

    def _client(self, number: int) -> None:
        for request in range(1_000_000):
            events = series(self._topic, 20, prefix=f"{number}-{request}-")
            self.sent.update(ids(events))
            try:
                answer = self._api.post(events)
            except httpx2.TransportError:
                return
            self.answers.add(answer.status_code)
            if answer.status_code == 200:
                self.accepted.update(ids(events))
            if answer.status_code != 200 or self._over.is_set():
                return

    def end(self) -> None:
        """Waits for the clients; what went wrong in one of them is raised here."""
        self._over.set()
        for client in self._clients:
            client.result(timeout=60)
        self._pool.shutdown()


def test_every_event_answered_200_is_there_after_sigterm_under_load(own_stack: Stack) -> None:
    topic = fresh()
    with Api(own_stack.url) as api:
        load = Load(api, topic)
        eventually(lambda: len(load.accepted) >= 2_000, timeout=30)
        assert own_stack.stop() == 0
        load.end()
    assert load.answers <= {200, 503}
    own_stack.start()
    with Api(own_stack.url) as api:
        total = api.quiet()
        pages = api.event_pages(topic=topic, limit=10_000)
        stored = [event_id for page in pages for event_id in ids(page["events"])]
        assert load.accepted <= set(stored)
        assert set(stored) <= load.sent
        assert len(stored) == len(set(stored)) == total["unique_processed"] == total["received"]
        assert len(stored) % 20 == 0


def test_two_restarts_in_a_row_lose_and_double_nothing(own_stack: Stack) -> None:
    topic = fresh()
    expected: set[str] = set()
    for round_number in range(2):
        with Api(own_stack.url) as api:
            for request in range(20):
                events = series(topic, 50, prefix=f"{round_number}-{request}-")
                api.publish(*events)
                expected.update(ids(events))
        assert own_stack.stop() == 0
        own_stack.start()
    with Api(own_stack.url) as api:
        counters = api.settled(topic, 2_000)
        assert counters == {"received": 2_000, "queued": 2_000, "processed": 2_000, "dropped": 0, "failed": 0}
        assert set(ids(api.events(topic=topic, limit=10_000)["events"])) == expected
