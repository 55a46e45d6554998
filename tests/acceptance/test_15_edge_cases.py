"""The odd, the extreme and the hostile: what is accepted reads back equal, the rest is a 422 and leaves nothing."""

from __future__ import annotations

import json
import random
import string
import uuid
from typing import Any

import pytest
from api import Api, event, fresh, ids, moment, problem, problems
from odd_values import HOSTILE_VALUES, NUMBERS, TEXTS
from servers import eventually


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_comes_back_equal_through_every_route(api: Api, text: str) -> None:
    topic, event_id, source = text + fresh(""), text + fresh(""), text + fresh("")
    sent = event(topic, event_id, source=source)
    sent["payload"] = {"message": text, text: [text, {text: text}]}
    api.publish_settled(topic, sent)
    for found in (
        api.events(topic=topic),
        api.events(event_id=event_id),
        api.events(source=source),
        api.events(topic=topic, event_id=event_id, source=source),
    ):
        assert found == {"count": 1, "events": [sent], "next_cursor": None}
    for records in (api.records(topic=topic), api.records(event_id=event_id)):
        assert len(records) == 3
        assert {(each["topic"], each["event_id"], each["source"]) for each in records} == {(topic, event_id, source)}
    assert topic in api.stats()["topics"]


def test_texts_that_look_alike_are_different(api: Api) -> None:
    topic = fresh()
    alike = ["\u00e9", "e\u0301", "e", "E", "\uff45", "\u0435", "e\u200b", "e ", " e", "\u00df", "ss", "\ufb01", "fi"]
    counters = api.publish_settled(topic, *(event(topic, text) for text in alike))
    assert (counters["processed"], counters["dropped"]) == (len(alike), 0)
    for text in alike:
        assert ids(api.events(topic=topic, event_id=text)["events"]) == [text]


def test_the_empty_topic_is_a_topic(api: Api) -> None:
    before = api.quiet()["unique_processed"]
    source = fresh("source")
    events = [event("", source=source), event("", source=source)]
    other = event(fresh(), source=source)
    api.publish_settled("", *events)
    api.publish_settled(other["topic"], other)
    assert api.quiet()["unique_processed"] == before + 3
    page = api.events(topic="", source=source)
    assert page["count"] == 2
    assert set(ids(page["events"])) == set(ids(events))
    assert api.events(source=source)["count"] == 3
    assert {each["topic"] for each in api.records(topic="", event_id=events[0]["event_id"])} == {""}
    assert "" in api.stats()["topics"]


LETTERS = string.ascii_letters + string.digits
TWO_BYTES = "".join(map(chr, range(0xC0, 0x180)))
THREE_BYTES = "".join(map(chr, range(0x4E00, 0x9000)))
FOUR_BYTES = "".join(map(chr, range(0x1F300, 0x1F600)))


@pytest.mark.parametrize(
    ("field", "alphabet", "characters", "size"),
    [
        ("event_id", LETTERS, 500, 500),
        ("event_id", LETTERS, 512, 512),
        ("event_id", TWO_BYTES, 512, 1016),
        ("event_id", FOUR_BYTES, 262, 1024),
        ("topic", LETTERS, 255, 255),
        ("topic", FOUR_BYTES, 134, 512),
        ("source", LETTERS, 255, 255),
        ("source", FOUR_BYTES, 134, 512),
    ],
    ids=lambda value: "" if value in (LETTERS, TWO_BYTES, FOUR_BYTES) else str(value),
)
def test_the_longest_texts_are_stored_and_found(
    api: Api, field: str, alphabet: str, characters: int, size: int
) -> None:
    text = "".join(random.choices(alphabet, k=characters - 8)) + uuid.uuid4().hex[:8]  # random text hardly compresses
    assert len(text.encode()) == size
    sent = event(fresh())
    sent[field] = text  # type: ignore[literal-required]
    api.publish_settled(sent["topic"], sent)
    assert api.events(**{field: text})["events"] == [sent]
    assert len(api.records(topic=sent["topic"], event_id=sent["event_id"])) == 3


@pytest.mark.parametrize(
    ("field", "text"),
    [
        pytest.param("event_id", "x" * 513, id="id of 513 characters"),
        pytest.param("event_id", "\u4e00" * 342, id="id of 1026 bytes"),
        pytest.param("event_id", "\U0001f680" * 257, id="id of 1028 bytes"),
        pytest.param("event_id", "x" * 1_000_000, id="id of a million characters"),
        pytest.param("topic", "x" * 256, id="topic of 256 characters"),
        pytest.param("topic", "\u4e00" * 171, id="topic of 513 bytes"),
        pytest.param("source", "x" * 256, id="source of 256 characters"),
        pytest.param("source", "\U0001f680" * 129, id="source of 516 bytes"),
    ],
)
def test_a_text_over_its_bound_is_refused(api: Api, field: str, text: str) -> None:
    refused(api, json.dumps({**event("never-stored"), field: text}), field)


def refused(api: Api, bad: str, *loc: str) -> None:
    """Sends a good event and a bad one, as JSON text; the request has to be refused, at `loc` of the bad one where it
    is given, and nothing of it stored."""
    topic = fresh()
    answer = api.post_body(f'{{"events": [{json.dumps(event(topic))}, {bad}]}}'.encode())
    found = problems(answer, 422)[0]["loc"]
    assert found[:1] == ["body"]
    assert not loc or found[1 : 3 + len(loc)] == ["events", 1, *loc], found
    assert topic not in api.summary()["by_topic"]


def raw(**fields: str) -> str:
    """The JSON text of an event that is valid but for these fields, which are JSON text too."""
    good = {name: json.dumps(value) for name, value in event("never-stored").items()}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in {**good, **fields}.items()) + "}"


@pytest.mark.parametrize("field", ["event_id", "topic", "source"])
@pytest.mark.parametrize(
    "text", [r'"a\u0000b"', r'"\ud800"', r'"\udc00x"', r'"\ud83d\ud83d"'], ids=["nul", "high", "low", "two high"]
)
def test_text_that_postgresql_cannot_store_is_refused_in_a_name(api: Api, field: str, text: str) -> None:
    refused(api, raw(**{field: text}), field)


@pytest.mark.parametrize("value", HOSTILE_VALUES.values(), ids=HOSTILE_VALUES.keys())
def test_a_payload_that_cannot_be_stored_is_refused(api: Api, value: str) -> None:
    refused(api, raw(payload=f'{{"value": {value}}}'))


@pytest.mark.parametrize("name", ["nul", "lone high surrogate", "huge exponent"])
def test_a_payload_that_is_json_but_cannot_be_stored_is_named(api: Api, name: str) -> None:
    refused(api, raw(payload=f'{{"a": [1, {{"b": {HOSTILE_VALUES[name]}}}]}}'), "payload")


def test_what_cannot_be_stored_never_holds_up_what_can(own_api: Api) -> None:
    topic = fresh()
    hidden = raw(topic=json.dumps(topic), event_id='"same"', payload=r'{"a": "\u0000", "a": 1}')
    good = raw(topic=json.dumps(topic), event_id='"same"', payload='{"a": 2}')
    for body in (hidden, good):
        own_api.post_body(f'{{"events": [{body}]}}'.encode())
    other = fresh()
    assert own_api.publish_settled(other, event(other))["processed"] == 1
    assert eventually(lambda: own_api.counters(topic), timeout=5)["processed"] == 1
    assert eventually(lambda: own_api.stats()["in_flight"] == 0, timeout=10)


@pytest.mark.parametrize("key", [r'"a\u0000b"', r'"\ud800"'], ids=["nul", "lone surrogate"])
def test_a_payload_key_that_cannot_be_stored_is_refused(api: Api, key: str) -> None:
    refused(api, raw(payload=f"{{{key}: 1}}"), "payload")
    refused(api, raw(payload=f'{{"deep": [{{{key}: 1}}]}}'), "payload")


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:24])
def test_a_number_of_a_payload_keeps_its_text(api: Api, number: str) -> None:
    topic = fresh()
    body = raw(topic=json.dumps(topic), payload=f'{{"value":{number},"list":[{number}]}}')
    answer = api.post_body(f'{{"events": [{body}]}}'.encode())
    assert answer.status_code == 200, answer.text
    assert api.settled(topic, 1)["processed"] == 1
    assert f'{{"value":{number},"list":[{number}]}}' in api.raw("/events", {"topic": topic}).text


@pytest.mark.parametrize("number", ["1e400", "1e131071", "1e-16383", "9" * 5_000, "1e-400", "0." + "0" * 400 + "1"])
def test_a_number_beyond_what_programs_calculate_with_is_kept_or_refused(api: Api, number: str) -> None:
    topic = fresh()
    body = raw(topic=json.dumps(topic), payload=f'{{"value":{number}}}')
    answer = api.post_body(f'{{"events": [{body}]}}'.encode())
    if answer.status_code == 200:
        assert api.settled(topic, 1)["processed"] == 1
        assert f'{{"value":{number}}}' in api.raw("/events", {"topic": topic}).text
    else:
        problem(answer, 422, ["body", "events", 0, "payload"])
        assert topic not in api.summary()["by_topic"]


def test_a_payload_of_some_depth_is_kept(api: Api) -> None:
    topic = fresh()
    deep: Any = "bottom"
    for level in range(30):
        deep = {"level": level, "next": [deep]}
    sent = event(topic, deep=deep)
    api.publish_settled(topic, sent)
    assert api.events(topic=topic)["events"] == [sent]


def test_a_payload_of_a_megabyte_of_random_text_is_kept(api: Api) -> None:
    topic = fresh()
    sent = event(topic, text="".join(random.Random(15).choices(THREE_BYTES, k=350_000)))
    api.publish_settled(topic, sent)
    assert api.events(topic=topic)["events"] == [sent]


def test_a_payload_of_ten_thousand_keys_is_kept_in_its_order(api: Api) -> None:
    topic = fresh()
    keys = random.Random(16).sample([f"key-{number}" for number in range(10_000)], 10_000)
    sent = event(topic)
    sent["payload"] = {key: number for number, key in enumerate(keys)}
    api.publish_settled(topic, sent)
    [stored] = api.events(topic=topic)["events"]
    assert list(stored["payload"].items()) == list(sent["payload"].items())


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.999999Z"),
        ("2024-02-29T23:59:59+00:00", "2024-02-29T23:59:59Z"),
        ("0001-01-01T14:00:00+14:00", "0001-01-01T00:00:00Z"),
        ("9999-12-31T09:59:59-14:00", "9999-12-31T23:59:59Z"),
        ("1970-01-01T00:00:00", "1970-01-01T00:00:00Z"),
        ("1582-10-10T00:00:00Z", "1582-10-10T00:00:00Z"),
        ("2000-01-01T00:00:00-00:00", "2000-01-01T00:00:00Z"),
    ],
)
def test_a_date_at_the_edge_comes_back_as_the_same_instant(api: Api, given: str, read: str) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, timestamp=given))
    [stored] = api.events(topic=topic)["events"]
    assert stored["timestamp"] == read
    assert api.events(topic=topic, **{"from": read})["count"] == 1


@pytest.mark.parametrize(
    "given",
    [
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "-0001-01-01T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "2025-01-32T00:00:00Z",
        "2025-01-01T00:00:00+99:00",
        "infinity",
        "now",
        "1735689600",
        "2025-01-01T00:00:00Z; DROP TABLE facts",
        "\u0662\u0660\u0662\u0665-01-01T00:00:00Z",
    ],
)
def test_a_date_that_does_not_exist_or_cannot_be_read_back_is_refused(api: Api, given: str) -> None:
    refused(api, raw(timestamp=json.dumps(given)), "timestamp")
    refused(api, raw(payload=json.dumps({"timestamp": given})), "payload", "timestamp")


@pytest.mark.parametrize("given", ["2016-12-31T23:59:60Z", "2025-01-01T24:00:00Z", "2025-01-01", "20250101T000000Z"])
def test_a_date_that_readers_disagree_about_is_stored_as_an_instant_or_refused(api: Api, given: str) -> None:
    topic = fresh()
    answer = api.post([event(topic, timestamp=given)])
    if answer.status_code == 200:
        assert api.settled(topic, 1)["processed"] == 1
        assert moment(api.events(topic=topic)["events"][0]["timestamp"]).year in (2016, 2017, 2025)
    else:
        problem(answer, 422, ["body", "events", 0, "timestamp"])
