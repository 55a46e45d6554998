"""What is refused, how the refusal names the event and the field, and that nothing of it is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api import Api, event, fresh, problem, problems

FIELDS = ["event_id", "topic", "source", "payload", "timestamp"]


def one_event(**fields: Any) -> bytes:
    """A request of one event that is valid but for these fields."""
    return json.dumps({"events": [{**event("never-stored"), **fields}]}).encode()


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_required(api: Api, field: str) -> None:
    incomplete = {name: value for name, value in event(fresh()).items() if name != field}
    answer = api.post_body(json.dumps({"events": [incomplete]}).encode())
    problem(answer, 422, ["body", "events", 0, field])


@pytest.mark.parametrize("wrong", [1, 1.5, True, None, [], {}], ids=repr)
@pytest.mark.parametrize("field", ["event_id", "topic", "source", "timestamp"])
def test_a_text_field_takes_only_text(api: Api, field: str, wrong: object) -> None:
    problem(api.post_body(one_event(**{field: wrong})), 422, ["body", "events", 0, field])


@pytest.mark.parametrize("wrong", [1, "text", True, None, [], [{"message": "m"}]], ids=repr)
def test_a_payload_is_an_object(api: Api, wrong: object) -> None:
    problem(api.post_body(one_event(payload=wrong)), 422, ["body", "events", 0, "payload"])


@pytest.mark.parametrize("wrong", [1, True, [], {}], ids=repr)
def test_the_message_of_a_payload_is_text(api: Api, wrong: object) -> None:
    answer = api.post_body(one_event(payload={"message": wrong}))
    problem(answer, 422, ["body", "events", 0, "payload", "message"])


@pytest.mark.parametrize("wrong", [1, True, [], {}, "", "yesterday", "2025-13-01T00:00:00"], ids=repr)
def test_the_timestamp_of_a_payload_is_iso_8601(api: Api, wrong: object) -> None:
    answer = api.post_body(one_event(payload={"timestamp": wrong}))
    problem(answer, 422, ["body", "events", 0, "payload", "timestamp"])


@pytest.mark.parametrize(
    "wrong",
    ["", " ", "yesterday", "2025-13-01T00:00:00", "2025-02-29T00:00:00", "2025-01-01T25:00:00", "2025-01-01T00:61:00"],
)
def test_a_timestamp_is_iso_8601(api: Api, wrong: str) -> None:
    problem(api.post_body(one_event(timestamp=wrong)), 422, ["body", "events", 0, "timestamp"])


@pytest.mark.parametrize("field", ["event_id", "source"])
def test_an_id_and_a_source_are_not_empty(api: Api, field: str) -> None:
    problem(api.post_body(one_event(**{field: ""})), 422, ["body", "events", 0, field])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b"null",
        b"[]",
        b'"events"',
        b"{}",
        b'{"events": null}',
        b'{"events": {}}',
        b'{"events": "text"}',
        b'{"events": [1]}',
        b'{"events": [null]}',
        b'{"events": [[]]}',
        b'{"event": []}',
        b'{"events": []',
        b'{"events": []} trailing',
        b'{"events": [{"event_id": "\xff\xfe"}]}',
        b"\x00",
        b"\xff\xfe",
    ],
    ids=repr,
)
def test_a_body_of_another_shape_is_refused(api: Api, body: bytes) -> None:
    assert problems(api.post_body(body), 422)[0]["loc"][0] == "body"


def test_the_refusal_names_the_bad_event_among_good_ones(api: Api) -> None:
    topic = fresh()
    events: list[Any] = [event(topic) for _ in range(10)]
    events[7]["source"] = 7
    problem(api.post_body(json.dumps({"events": events}).encode()), 422, ["body", "events", 7, "source"])
    assert topic not in api.summary()["by_topic"]


def test_a_refusal_never_echoes_what_was_sent(api: Api) -> None:
    secret = fresh("secret")
    for body in (
        one_event(timestamp=secret),
        one_event(payload=secret),
        one_event(payload={"message": {secret: secret}}),
        one_event(event_id=[secret]),
        f'{{"events": "{secret}"}}'.encode(),
        secret.encode(),
    ):
        answer = api.post_body(body)
        problems(answer, 422)
        assert secret not in answer.text


def test_a_refusal_stays_small_and_quick_however_much_is_wrong(api: Api) -> None:
    body = json.dumps({"events": [{}] * 10_000}).encode()
    assert problems(api.post_body(body), 422)[0]["loc"][:3] == ["body", "events", 0]


def test_other_keys_beside_the_five_are_ignored(api: Api) -> None:
    topic = fresh()
    extra = {**event(topic, "one"), "level": "info", "tags": ["a"]}
    answer = api.post_body(json.dumps({"events": [extra], "sent_by": "someone"}).encode())
    assert answer.status_code == 200, answer.text
    assert api.settled(topic, 1)["processed"] == 1
    assert api.events(topic=topic)["events"] == [event(topic, "one")]


def test_extra_keys_of_a_payload_are_kept(api: Api) -> None:
    topic = fresh()
    sent = event(topic, "one", level="info", tags=["a", None, True], nested={"deep": {"deeper": [1, 2.5]}})
    api.publish_settled(topic, sent)
    assert api.events(topic=topic)["events"] == [sent]


def test_a_payload_may_be_empty(api: Api) -> None:
    topic = fresh()
    sent = event(topic)
    sent["payload"] = {}
    api.publish_settled(topic, sent)
    assert api.events(topic=topic)["events"][0]["payload"] == {}


def test_an_empty_list_is_accepted_and_counts_nothing(api: Api) -> None:
    before = api.quiet()
    api.publish()
    after = api.quiet()
    assert (after["received"], after["topics"]) == (before["received"], before["topics"])


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "x"])
def test_another_content_type_than_json_is_refused(api: Api, content_type: str) -> None:
    topic = fresh()
    body = json.dumps({"events": [event(topic)]}).encode()
    problems(api.post_body(body, content_type), 415)
    assert topic not in api.summary()["by_topic"]


@pytest.mark.parametrize("content_type", [None, "application/json", "application/json; charset=utf-8"])
def test_a_body_without_a_content_type_is_taken_as_json(api: Api, content_type: str | None) -> None:
    topic = fresh()
    answer = api.post_body(json.dumps({"events": [event(topic)]}).encode(), content_type)
    assert answer.status_code == 200, answer.text
    assert api.settled(topic, 1)["processed"] == 1
