"""A client of the HTTP API as the acceptance tests use it: what goes in, what comes back, and how to wait for it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, NotRequired, Self, TypedDict, cast

import httpx2
from servers import eventually

SETTLE_SECONDS = 60.0

Params = dict[str, str | int | None]


class Event(TypedDict):
    """What a publisher sends, and what /events gives back."""

    event_id: str
    topic: str
    source: str
    payload: dict[str, Any]
    timestamp: str


class EventsPage(TypedDict):
    """An answer of /events."""

    count: int
    events: list[Event]
    next_cursor: str | None


class Stats(TypedDict):
    """An answer of /stats."""

    received: int
    unique_processed: int
    duplicated_dropped: int
    failed: int
    in_flight: int
    topics: list[str]
    uptime: int


class Record(TypedDict):
    """One step of one event, as /audit tells it."""

    id: int
    event_id: str
    topic: str
    source: str
    action: str
    worker_id: int | None
    created_at: str
    reason: NotRequired[str | None]


class AuditPage(TypedDict):
    """An answer of /audit."""

    count: int
    audit_logs: list[Record]
    next_cursor: str | None


class Counters(TypedDict):
    """How many events took each step."""

    received: int
    queued: int
    processed: int
    dropped: int
    failed: int


class Summary(TypedDict):
    """An answer of /audit/summary."""

    total_received: int
    total_queued: int
    total_processed: int
    total_dropped: int
    total_failed: int
    by_topic: dict[str, Counters]
    by_worker: dict[str, Counters]


class Problem(TypedDict):
    """One entry of an error answer's `detail`."""

    type: str
    loc: list[str | int]
    msg: str


def fresh(prefix: str = "topic") -> str:
    """A name that no other test, run or publisher uses."""
    return f"{prefix}-{uuid.uuid4().hex}"


def event(
    topic: str,
    event_id: str | None = None,
    *,
    source: str = "acceptance",
    timestamp: str = "2025-01-01T00:00:00Z",
    **payload: Any,
) -> Event:
    """An event of `topic` whose payload has the keyword arguments; without `event_id` one that no other event has."""
    return {
        "event_id": fresh("event") if event_id is None else event_id,
        "topic": topic,
        "source": source,
        "payload": {"message": "Event content", "timestamp": "2025-01-01T00:00:00", **payload},
        "timestamp": timestamp,
    }


def series(topic: str, size: int, prefix: str = "e") -> list[Event]:
    """`size` events of `topic` with ids e0, e1, … whose timestamps are one second apart, oldest first."""
    return [
        event(topic, f"{prefix}{n}", timestamp=f"2025-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z", number=n)
        for n in range(size)
    ]


def ids(events: Sequence[Event]) -> list[str]:
    """The event ids, in order."""
    return [each["event_id"] for each in events]


def moment(text: str) -> datetime:
    """The instant that an answer names; raises ValueError where it is not ISO 8601 in UTC with a Z."""
    if not text.endswith("Z"):
        raise ValueError(f"{text!r} does not end with Z")
    return datetime.fromisoformat(text)


def problems(answer: httpx2.Response, status: int) -> list[Problem]:
    """The `detail` of an error answer; fails unless it has this status and the one shape that errors have."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"].startswith("application/json")
    assert len(answer.content) < 4096
    body = answer.json()
    assert isinstance(body["detail"], list)
    assert body["detail"]
    for entry in body["detail"]:
        assert {"type", "loc", "msg"} <= entry.keys()
        assert isinstance(entry["type"], str)
        assert isinstance(entry["loc"], list)
        assert isinstance(entry["msg"], str)
    return cast(list[Problem], body["detail"])


def problem(answer: httpx2.Response, status: int, loc: list[str | int]) -> Problem:
    """The first entry of an error answer's `detail`; fails unless it has this status and points to `loc`."""
    first = problems(answer, status)[0]
    assert first["loc"] == loc, first
    return first


class Api:
    """A connection pool to one running system; safe to share between threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx2.Client(base_url=url, timeout=30.0, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, events: Sequence[Event]) -> httpx2.Response:
        """The answer to POST /publish, whatever it is."""
        return self.http.post("/publish", json={"events": list(events)})

    def post_body(
        self, body: bytes | Iterator[bytes], content_type: str | None = "application/json"
    ) -> httpx2.Response:
        """The answer to POST /publish with exactly these bytes."""
        headers = {} if content_type is None else {"content-type": content_type}
        return self.http.post("/publish", content=body, headers=headers)

    def publish(self, *events: Event) -> None:
        """Publishes in one request; fails unless the answer is the 200 of the contract."""
        answer = self.post(events)
        assert answer.status_code == 200, answer.text[:500]
        assert answer.json() == {
            "status": "success",
            "message": f"Published {len(events)} events",
            "events_count": len(events),
        }

    def publish_settled(self, topic: str, *events: Event) -> Counters:
        """Publishes in one request and waits until nothing of `topic`, the topic of all of them, is in flight."""
        before = self.counters(topic)["received"]
        self.publish(*events)
        return self.settled(topic, before + len(events))

    def get(self, path: str, params: Params | None = None) -> Any:
        """The JSON of a GET that has to succeed; parameters that are None are left out."""
        answer = self.raw(path, params)
        assert answer.status_code == 200, answer.text[:500]
        return answer.json()

    def raw(self, path: str, params: Params | None = None) -> httpx2.Response:
        """The answer to a GET, whatever it is; parameters that are None are left out."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        return self.http.get(path, params=given)

    def events(self, **params: str | int | None) -> EventsPage:
        """One page of /events."""
        return cast(EventsPage, self.get("/events", params))

    def event_pages(self, **params: str | int | None) -> Iterator[EventsPage]:
        """Every page of /events, each read when it is asked for."""
        page = self.events(**params)
        yield page
        while page["next_cursor"] is not None:
            page = self.events(**params, cursor=page["next_cursor"])
            yield page

    def audit(self, **params: str | int | None) -> AuditPage:
        """One page of /audit."""
        return cast(AuditPage, self.get("/audit", params))

    def audit_pages(self, **params: str | int | None) -> Iterator[AuditPage]:
        """Every page of /audit, each read when it is asked for."""
        page = self.audit(**params)
        yield page
        while page["next_cursor"] is not None:
            page = self.audit(**params, cursor=page["next_cursor"])
            yield page

    def records(self, **params: str | int | None) -> list[Record]:
        """Every record of /audit that matches, newest first."""
        return [record for page in self.audit_pages(limit=1000, **params) for record in page["audit_logs"]]

    def stats(self) -> Stats:
        """The answer of /stats."""
        return cast(Stats, self.get("/stats"))

    def summary(self) -> Summary:
        """The answer of /audit/summary."""
        return cast(Summary, self.get("/audit/summary"))

    def counters(self, topic: str) -> Counters:
        """The counters of one topic; all zero where it is not known."""
        unknown = Counters(received=0, queued=0, processed=0, dropped=0, failed=0)
        return self.summary()["by_topic"].get(topic, unknown)

    def settled(self, topic: str, received: int) -> Counters:
        """Waits until `topic` received this many events and none of them is in flight; gives its counters."""

        def done() -> Counters:
            counters = self.counters(topic)
            assert counters["received"] == received
            assert counters["processed"] + counters["dropped"] + counters["failed"] == received
            return counters

        return eventually(done, timeout=SETTLE_SECONDS)

    def busy(self, requests: Sequence[Future[Any]]) -> bool:
        """Whether one of these requests is under way or any event is in flight; poll while it is."""
        return not all(request.done() for request in requests) or self.stats()["in_flight"] > 0

    def quiet(self) -> Stats:
        """Waits until nothing at all is in flight; gives the totals, to compare later ones with."""

        def still() -> Stats:
            stats = self.stats()
            assert stats["in_flight"] == 0
            return stats

        return eventually(still, timeout=SETTLE_SECONDS)
