"""A request is all or nothing, and its limits are told by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from api import Api, event, fresh, ids, problem, problems, series

MIB = 2**20


def assert_nothing_of(api: Api, topic: str) -> None:
    """No route knows the topic."""
    assert topic not in api.summary()["by_topic"]
    assert topic not in api.stats()["topics"]
    assert api.events(topic=topic)["count"] == 0
    assert api.audit(topic=topic)["count"] == 0


def large(topic: str, size: int) -> bytes:
    """A valid request of one event that is exactly `size` bytes."""
    body = json.dumps({"events": [event(topic, "large", text="")]}).encode()
    return body.replace(b'"text": ""', b'"text": "' + b"x" * (size - len(body)) + b'"')


@pytest.mark.parametrize("position", [0, 50, 99])
def test_one_bad_event_refuses_the_whole_request(api: Api, position: int) -> None:
    topic = fresh()
    events: list[Any] = series(topic, 100)
    events[position]["timestamp"] = "not a time"
    answer = api.post_body(json.dumps({"events": events}).encode())
    problem(answer, 422, ["body", "events", position, "timestamp"])
    assert_nothing_of(api, topic)


def test_the_good_events_of_a_refused_request_can_be_sent_again(api: Api) -> None:
    topic = fresh()
    good = series(topic, 30)
    problem(api.post([*good, event(topic, "")]), 422, ["body", "events", 30, "event_id"])
    counters = api.publish_settled(topic, *good)
    assert counters == {"received": 30, "queued": 30, "processed": 30, "dropped": 0, "failed": 0}


def test_a_refused_request_does_no_harm_to_others_sent_with_it(api: Api) -> None:
    topic = fresh()
    for number in range(10):
        assert api.post([event(topic, f"bad-{number}"), event(topic, "")]).status_code == 422
        api.publish(event(topic, f"good-{number}"))
    assert api.settled(topic, 10)["processed"] == 10
    assert set(ids(api.events(topic=topic)["events"])) == {f"good-{number}" for number in range(10)}


def test_exactly_10000_events_are_accepted(api: Api) -> None:
    topic = fresh()
    assert api.publish_settled(topic, *series(topic, 10_000))["processed"] == 10_000
    assert len(api.events(topic=topic, limit=10_000)["events"]) == 10_000


def test_10001_events_are_a_413_that_names_the_limit(api: Api) -> None:
    topic = fresh()
    [first, *_] = problems(api.post(series(topic, 10_001)), 413)
    assert "10000" in first["msg"].replace(",", "")
    assert_nothing_of(api, topic)


def test_a_body_of_exactly_16_mib_is_accepted(api: Api) -> None:
    topic = fresh()
    body = large(topic, 16 * MIB)
    assert len(body) == 16 * MIB
    assert api.post_body(body).status_code == 200
    assert api.settled(topic, 1)["processed"] == 1
    [stored] = api.events(topic=topic)["events"]
    assert stored == json.loads(body)["events"][0]


def test_a_body_over_16_mib_is_a_413_that_names_the_limit(api: Api) -> None:
    topic = fresh()
    [first, *_] = problems(api.post_body(large(topic, 16 * MIB + 1)), 413)
    assert "16 MiB" in first["msg"] or "16777216" in first["msg"].replace(",", "")
    assert_nothing_of(api, topic)


def test_a_body_over_16_mib_of_unannounced_length_is_a_413(api: Api) -> None:
    topic = fresh()
    body = large(topic, 17 * MIB)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 64 * 1024):
            yield body[start : start + 64 * 1024]

    problems(api.post_body(pieces()), 413)
    assert_nothing_of(api, topic)


def test_a_body_that_ends_early_stores_nothing(api: Api) -> None:
    topic = fresh()
    body = json.dumps({"events": series(topic, 100)}).encode()
    for length in (len(body) - 1, len(body) // 2, 20):
        problems(api.post_body(body[:length]), 422)
    assert_nothing_of(api, topic)


def test_topics_of_one_request_stand_or_fall_together(api: Api) -> None:
    topics = [fresh() for _ in range(5)]
    events = [each for topic in topics for each in series(topic, 10)]
    problem(api.post([*events, event("x" * 256)]), 422, ["body", "events", 50, "topic"])
    for topic in topics:
        assert_nothing_of(api, topic)
    api.publish(*events)
    for topic in topics:
        assert api.settled(topic, 10)["processed"] == 10
