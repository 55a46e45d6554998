"""What /events gives: exact counts, filters, newest first, and pages that skip and repeat nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from api import Api, Params, event, fresh, ids, moment, problem, series


def test_an_event_reads_as_it_was_sent(api: Api) -> None:
    topic = fresh()
    sent = event(topic, source="service", timestamp="2025-03-04T05:06:07Z", amount=12.5, tags=["a", None])
    api.publish_settled(topic, sent)
    assert api.events(topic=topic) == {"count": 1, "events": [sent], "next_cursor": None}


def test_an_unknown_topic_has_no_events(api: Api) -> None:
    assert api.events(topic=fresh()) == {"count": 0, "events": [], "next_cursor": None}


def test_without_a_topic_all_topics_are_read(api: Api) -> None:
    first, second, source = fresh(), fresh(), fresh("source")
    api.publish(event(first, source=source), event(second, source=source))
    api.settled(first, 1)
    api.settled(second, 1)
    assert {each["topic"] for each in api.events(source=source)["events"]} == {first, second}
    assert api.events(limit=1)["count"] == api.quiet()["unique_processed"]


def test_newest_timestamps_come_first(api: Api) -> None:
    topic = fresh()
    events = series(topic, 50)
    api.publish_settled(topic, *events[::3], *events[1::3], *events[2::3])
    assert ids(api.events(topic=topic)["events"]) == ids(events[::-1])


def test_ties_keep_one_order_on_every_reading_and_across_pages(api: Api) -> None:
    topic = fresh()
    for number in range(4):
        api.publish_settled(topic, *(event(topic, f"{number}-{n}") for n in range(5)))
    whole = ids(api.events(topic=topic)["events"])
    assert len(set(whole)) == 20
    assert ids(api.events(topic=topic)["events"]) == whole
    for limit in (1, 3, 7, 20):
        pages = api.event_pages(topic=topic, limit=limit)
        assert [event_id for page in pages for event_id in ids(page["events"])] == whole


def test_every_page_tells_the_count_of_all_that_match(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 10))
    pages = list(api.event_pages(topic=topic, limit=4))
    assert [(page["count"], len(page["events"])) for page in pages] == [(10, 4), (10, 4), (10, 2)]


def test_the_last_page_has_no_cursor_even_when_it_is_full(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 10))
    assert api.events(topic=topic, limit=10)["next_cursor"] is None
    assert api.events(topic=topic, limit=9)["next_cursor"] is not None


def test_a_page_has_1000_events_unless_the_limit_says_otherwise(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 1_200))
    page = api.events(topic=topic)
    assert (page["count"], len(page["events"])) == (1_200, 1_000)
    assert page["next_cursor"] is not None
    assert len(api.events(topic=topic, limit=10_000)["events"]) == 1_200


def test_pages_skip_and_repeat_nothing_while_new_events_arrive(api: Api) -> None:
    topic = fresh()
    old = series(topic, 60)
    api.publish_settled(topic, *old)
    seen: list[str] = []
    arrived = 0
    for number, page in enumerate(api.event_pages(topic=topic, limit=7)):
        seen += ids(page["events"])
        if number < 5:
            newest = event(topic, f"newest-{number}", timestamp=f"2026-01-01T00:00:0{number}Z")
            between = event(topic, f"between-{number}", timestamp=old[50 - 6 * number]["timestamp"])
            arrived += 2
            assert api.publish_settled(topic, newest, between)["processed"] == 60 + arrived
    assert len(seen) == len(set(seen))
    assert set(ids(old)) <= set(seen)
    assert not any(event_id.startswith("newest") for event_id in seen)
    assert [event_id for event_id in seen if event_id.startswith("e")] == ids(old[::-1])


def test_pages_repeat_nothing_while_publishers_run(api: Api) -> None:
    topic = fresh()
    old = series(topic, 300)
    api.publish_settled(topic, *old)
    with ThreadPoolExecutor(4) as pool:
        requests = [pool.submit(api.publish, *series(topic, 20, prefix=f"late-{number}-")) for number in range(30)]
        seen = [event_id for page in api.event_pages(topic=topic, limit=10) for event_id in ids(page["events"])]
    for request in requests:
        request.result()
    assert api.settled(topic, 900)["processed"] == 900
    assert len(seen) == len(set(seen))
    assert [event_id for event_id in seen if event_id.startswith("e")] == ids(old[::-1])


def test_filters_combine(api: Api) -> None:
    topic = fresh()
    events = [event(topic, f"{source}-{day}", source=source, timestamp=f"2025-01-0{day}T12:00:00Z")
              for source in ("north", "south") for day in range(1, 6)]  # fmt: skip
    api.publish_settled(topic, *events)

    def found(**more: str) -> list[str]:
        page = api.events(topic=topic, **{name.rstrip("_"): value for name, value in more.items()})
        assert page["count"] == len(page["events"])
        return ids(page["events"])

    assert found(source="north") == [f"north-{day}" for day in (5, 4, 3, 2, 1)]
    assert found(event_id="south-2") == ["south-2"]
    assert found(event_id="south-2", source="north") == []
    assert found(source="south", from_="2025-01-03T00:00:00Z") == ["south-5", "south-4", "south-3"]
    assert found(source="south", to="2025-01-03T00:00:00Z") == ["south-2", "south-1"]
    assert found(source="north", from_="2025-01-02T00:00:00", to="2025-01-04T00:00:00") == ["north-3", "north-2"]
    assert found(source="north", from_="2025-01-02T20:00:00+08:00", to="2025-01-02T20:00:00+08:00") == ["north-2"]
    assert found(source="east") == []


def test_a_count_is_exact_with_filters_and_a_small_limit(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 100))
    page = api.events(topic=topic, limit=3, to="2025-01-01T00:00:49.5Z")
    assert (page["count"], len(page["events"])) == (50, 3)


def test_a_cursor_goes_on_under_the_same_filters(api: Api) -> None:
    topic = fresh()
    events = [
        event(topic, f"{n}", source=("even", "odd")[n % 2], timestamp=f"2025-01-01T00:00:{n:02}Z") for n in range(30)
    ]
    api.publish_settled(topic, *events)
    pages = api.event_pages(topic=topic, source="odd", limit=4)
    assert [event_id for page in pages for event_id in ids(page["events"])] == [str(n) for n in range(29, 0, -2)]


def test_timestamps_come_back_in_utc_with_z(api: Api) -> None:
    topic = fresh()
    given = {
        "plain": ("2025-01-01T00:00:00", "2025-01-01T00:00:00Z"),
        "zulu": ("2025-01-01T00:00:01Z", "2025-01-01T00:00:01Z"),
        "east": ("2025-01-01T08:00:02+08:00", "2025-01-01T00:00:02Z"),
        "west": ("2024-12-31T18:30:03-05:30", "2025-01-01T00:00:03Z"),
    }
    api.publish_settled(topic, *(event(topic, name, timestamp=sent) for name, (sent, _) in given.items()))
    got = {each["event_id"]: each["timestamp"] for each in api.events(topic=topic)["events"]}
    assert got == {name: read for name, (_, read) in given.items()}


def test_timestamps_keep_microseconds(api: Api) -> None:
    topic = fresh()
    given = {"three": ".123", "six": ".123456", "nine": ".123456789", "one": ".000001"}
    api.publish_settled(
        topic, *(event(topic, name, timestamp=f"2025-01-01T00:00:00{digits}Z") for name, digits in given.items())
    )
    got = {each["event_id"]: moment(each["timestamp"]).microsecond for each in api.events(topic=topic)["events"]}
    assert got == {"three": 123_000, "six": 123_456, "nine": 123_456, "one": 1}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": -1}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"limit": 10**30}, "limit"),
        ({"cursor": "not-a-cursor"}, "cursor"),
        ({"cursor": "\u00e9"}, "cursor"),
        ({"cursor": "A" * 2_000}, "cursor"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2025-13-01T00:00:00Z"}, "to"),
        ({"from": "0001-01-01T00:00:00+14:00"}, "from"),
        ({"to": "9999-12-31T23:59:59-14:00"}, "to"),
    ],
    ids=str,
)
def test_a_parameter_that_makes_no_sense_is_a_422_that_names_it(api: Api, params: Params, named: str) -> None:
    problem(api.raw("/events", params), 422, ["query", named])


def test_a_cursor_that_was_tampered_with_is_never_an_internal_error(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 5))
    for path in ("/events", "/audit"):
        good = api.get(path, {"topic": topic, "limit": 2})["next_cursor"]
        for position in range(len(good)):
            for letter in "A9f_":
                bad = good[:position] + letter + good[position + 1 :]
                answer = api.raw(path, {"topic": topic, "cursor": bad})
                assert answer.status_code in (200, 422), bad
        problem(api.raw(path, {"cursor": good[:-3]}), 422, ["query", "cursor"])


def test_a_cursor_of_another_route_is_refused(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 5))
    of_events = api.events(topic=topic, limit=2)["next_cursor"]
    of_audit = api.audit(topic=topic, limit=2)["next_cursor"]
    problem(api.raw("/audit", {"topic": topic, "cursor": of_events}), 422, ["query", "cursor"])
    problem(api.raw("/events", {"topic": topic, "cursor": of_audit}), 422, ["query", "cursor"])


@pytest.mark.parametrize("limit", [1, 10_000])
def test_the_limits_of_the_limit_are_allowed(api: Api, limit: int) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 2))
    assert len(api.events(topic=topic, limit=limit)["events"]) == min(limit, 2)


@pytest.mark.parametrize("name", ["topic", "source", "event_id"])
def test_a_filter_that_cannot_match_is_never_an_internal_error(api: Api, name: str) -> None:
    for value in ("a\x00b", "x" * 5_000, "' OR 1=1 --", "%", "_"):
        answer = api.raw("/events", {name: value})
        assert answer.status_code in (200, 422)
        assert answer.status_code == 422 or answer.json() == {"count": 0, "events": [], "next_cursor": None}
