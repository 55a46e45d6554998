"""Events that arrive late or in any order are read by the time they tell, newest first."""

from __future__ import annotations

import random

from api import Api, event, fresh, ids, moment, series


def test_old_timestamps_that_arrive_late_take_their_place(api: Api) -> None:
    topic = fresh()
    for day in (5, 1, 9, 3, 7):
        api.publish_settled(topic, event(topic, f"day-{day}", timestamp=f"2025-01-0{day}T00:00:00Z"))
    assert ids(api.events(topic=topic)["events"]) == ["day-9", "day-7", "day-5", "day-3", "day-1"]


def test_any_order_of_arrival_reads_the_same(api: Api) -> None:
    topic = fresh()
    events = series(topic, 500)
    arrivals = random.Random(10).sample(events, len(events))
    for start in range(0, 500, 50):
        api.publish(*arrivals[start : start + 50])
    api.settled(topic, 500)
    assert api.events(topic=topic)["events"] == events[::-1]


def test_offsets_are_compared_as_instants(api: Api) -> None:
    topic = fresh()
    api.publish_settled(
        topic,
        event(topic, "third", timestamp="2025-01-01T12:00:00+09:00"),
        event(topic, "first", timestamp="2025-01-01T01:00:00-08:00"),
        event(topic, "second", timestamp="2025-01-01T05:00:00"),
        event(topic, "fourth", timestamp="2025-01-01T00:00:00+02:00"),
    )
    assert ids(api.events(topic=topic)["events"]) == ["first", "second", "third", "fourth"]


def test_the_oldest_and_the_newest_dates_stand_at_the_ends(api: Api) -> None:
    topic = fresh()
    api.publish_settled(
        topic,
        event(topic, "now", timestamp="2025-01-01T00:00:00Z"),
        event(topic, "end", timestamp="9999-12-31T23:59:59.999999Z"),
        event(topic, "beginning", timestamp="0001-01-01T00:00:00Z"),
        event(topic, "before 1970", timestamp="1969-12-31T23:59:59Z"),
    )
    read = api.events(topic=topic)["events"]
    assert ids(read) == ["end", "now", "before 1970", "beginning"]
    assert [moment(each["timestamp"]).year for each in read] == [9999, 2025, 1969, 1]


def test_a_late_event_is_found_by_its_own_time_not_its_arrival(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 10))
    api.publish_settled(topic, event(topic, "late", timestamp="2024-06-01T00:00:00Z"))
    assert ids(api.events(topic=topic, to="2024-12-31T00:00:00Z")["events"]) == ["late"]
    assert api.events(topic=topic, **{"from": "2024-12-31T00:00:00Z"})["count"] == 10


def test_a_repeat_with_an_older_timestamp_does_not_move_the_event(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, "one", timestamp="2025-05-05T00:00:00Z"))
    counters = api.publish_settled(topic, event(topic, "one", timestamp="2020-01-01T00:00:00Z"))
    assert (counters["processed"], counters["dropped"]) == (1, 1)
    assert api.events(topic=topic)["events"][0]["timestamp"] == "2025-05-05T00:00:00Z"


def test_microseconds_decide_the_order(api: Api) -> None:
    topic = fresh()
    parts = ["000002", "000010", "000001", "999999", "100000"]
    api.publish_settled(topic, *(event(topic, part, timestamp=f"2025-01-01T00:00:00.{part}Z") for part in parts))
    assert ids(api.events(topic=topic)["events"]) == sorted(parts, reverse=True)
