"""An event is what its topic and id say it is: the first sighting is stored, later ones are dropped with a reason."""

from __future__ import annotations

import json

import pytest
from api import Api, event, fresh, series


def test_the_same_event_twice_is_stored_once(api: Api) -> None:
    topic = fresh()
    same = event(topic)
    api.publish_settled(topic, same)
    counters = api.publish_settled(topic, same)
    assert counters == {"received": 2, "queued": 2, "processed": 1, "dropped": 1, "failed": 0}
    assert api.events(topic=topic)["count"] == 1
    assert [record["reason"] for record in api.records(topic=topic, action="DROPPED")] == ["duplicate"]


def test_repeats_inside_one_request_are_stored_once(api: Api) -> None:
    topic = fresh()
    events = series(topic, 20)
    counters = api.publish_settled(topic, *events, *events, *events)
    assert (counters["processed"], counters["dropped"]) == (20, 40)
    page = api.events(topic=topic)
    assert page["count"] == 20
    assert sorted(each["event_id"] for each in page["events"]) == sorted(each["event_id"] for each in events)


def test_the_same_id_in_two_topics_is_two_events(api: Api) -> None:
    first, second, event_id = fresh(), fresh(), fresh("event")
    api.publish(event(first, event_id, place="first"), event(second, event_id, place="second"))
    api.settled(first, 1)
    api.settled(second, 1)
    assert {each["topic"] for each in api.events(event_id=event_id)["events"]} == {first, second}
    assert api.records(event_id=event_id, action="DROPPED") == []


def test_the_same_key_with_another_payload_is_a_conflict_and_the_stored_one_stays(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, "one", version=1))
    counters = api.publish_settled(topic, event(topic, "one", version=2))
    assert (counters["processed"], counters["dropped"]) == (1, 1)
    assert [each["payload"]["version"] for each in api.events(topic=topic)["events"]] == [1]
    assert [record["reason"] for record in api.records(topic=topic, action="DROPPED")] == ["conflict"]


def test_inside_one_request_the_first_sighting_wins(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *(event(topic, "one", version=version) for version in (3, 1, 2, 3)))
    assert [each["payload"]["version"] for each in api.events(topic=topic)["events"]] == [3]
    reasons = [record["reason"] for record in api.records(topic=topic, action="DROPPED")]
    assert sorted(reason or "" for reason in reasons) == ["conflict", "conflict", "duplicate"]


def test_another_source_or_timestamp_is_a_duplicate_because_only_payloads_conflict(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, "one", source="first", timestamp="2025-01-01T00:00:00Z"))
    api.publish_settled(topic, event(topic, "one", source="second", timestamp="2025-02-02T00:00:00Z"))
    [stored] = api.events(topic=topic)["events"]
    assert (stored["source"], stored["timestamp"]) == ("first", "2025-01-01T00:00:00Z")
    [dropped] = api.records(topic=topic, action="DROPPED")
    assert (dropped["reason"], dropped["source"]) == ("duplicate", "second")


def test_a_payload_with_its_keys_in_another_order_is_equal(api: Api) -> None:
    topic = fresh()
    there, back = event(topic, "one"), event(topic, "one")
    there["payload"], back["payload"] = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    api.publish_settled(topic, there)
    api.publish_settled(topic, back)
    assert [record["reason"] for record in api.records(topic=topic, action="DROPPED")] == ["duplicate"]
    assert json.dumps(api.events(topic=topic)["events"][0]["payload"]) == json.dumps(there["payload"])


@pytest.mark.parametrize(
    "variants",
    [
        pytest.param(["Order", "order", "ORDER"], id="case"),
        pytest.param(["order", " order", "order ", "or der", "order\t", "order\n"], id="whitespace"),
        pytest.param(["caf\u00e9", "cafe\u0301"], id="composed and combining"),
        pytest.param(["1", "01", "1.0"], id="digits"),
    ],
)
def test_ids_and_topics_compare_as_exact_code_points(api: Api, variants: list[str]) -> None:
    topic = fresh()
    counters = api.publish_settled(topic, *(event(topic, variant) for variant in variants))
    assert (counters["processed"], counters["dropped"]) == (len(variants), 0)
    topics = [topic + variant for variant in variants]
    api.publish(*(event(each, "one") for each in topics))
    for each in topics:
        assert api.settled(each, 1)["processed"] == 1
    assert {each["event_id"] for each in api.events(topic=topic)["events"]} == set(variants)


def test_a_key_is_not_its_parts_run_together(api: Api) -> None:
    topic = fresh()
    api.publish(event(topic + "a", "b"), event(topic, "ab"), event(topic + "ab", "b"))
    assert api.settled(topic, 1)["processed"] == 1
    assert api.settled(topic + "a", 1)["processed"] == 1
    assert api.settled(topic + "ab", 1)["processed"] == 1


def test_stats_count_what_was_stored_and_what_was_dropped(api: Api) -> None:
    before = api.quiet()
    topic = fresh()
    events = series(topic, 10)
    api.publish_settled(topic, *events, *events[:4])
    after = api.quiet()
    assert after["received"] - before["received"] == 14
    assert after["unique_processed"] - before["unique_processed"] == 10
    assert after["duplicated_dropped"] - before["duplicated_dropped"] == 4
    assert after["failed"] == before["failed"]
    assert topic in after["topics"]
    assert topic not in before["topics"]
