"""decode: what is accepted is kept to the character, what is refused is named."""

from __future__ import annotations

import functools
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronicle.errors import InvalidRequest, TooLarge
from chronicle.events import decode, instant
from chronicle.payloads import MAX_DEPTH

GOOD = {
    "event_id": "a",
    "topic": "t",
    "source": "s",
    "payload": {"message": "m", "timestamp": "2025-01-01T00:00:00"},
    "timestamp": "2025-01-01T00:00:00",
}


def body(*events: Any) -> bytes:
    return json.dumps({"events": events}).encode()


def raw(payload: str) -> bytes:
    """A body whose one payload is exactly this text."""
    return body(GOOD | {"payload": "HERE"}).replace(b'"HERE"', payload.encode("utf-8", "surrogatepass"))


def refusal(content: bytes, max_events: int = 10) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        decode(content, max_events)
    problem = caught.value.problem
    return ".".join(map(str, problem["loc"])), problem["msg"]


def test_events_become_columns_in_order() -> None:
    found = decode(body(GOOD, GOOD | {"event_id": "b", "timestamp": "2025-01-01T02:00:00+02:00"}), 10)
    assert found.event_ids == ["a", "b"]
    assert found.topics == ["t", "t"]
    assert found.timestamps == [datetime(2025, 1, 1, tzinfo=UTC)] * 2
    assert json.loads(found.payloads[0]) == GOOD["payload"]


def test_no_events_are_no_events() -> None:
    assert len(decode(b'{"events": []}', 10)) == 0


def test_a_payload_stays_the_text_that_was_sent() -> None:
    text = '{"b" : 1.10, "a": [1e300, 12345678901234567890.123456789], "\\u00e9": "\\ud83d\\ude00 \\\\u0000"}'
    assert decode(raw(text), 10).payloads == [text.encode()]


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(field: str) -> None:
    event = {name: value for name, value in GOOD.items() if name != field}
    assert refusal(body(GOOD, event)) == (f"body.events.1.{field}", "Field required")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            (name, value)
            for name in ("event_id", "topic", "source")
            for value in (1, None, ["a"], True, {}, "\0", "a\0")
        ],
        ("event_id", ""),
        ("source", ""),
        ("event_id", "a" * 513),
        ("event_id", "é" * 512 + "é"),
        ("event_id", "语" * 342),
        ("topic", "t" * 256),
        ("topic", "语" * 171),
        ("source", "s" * 256),
        *[("payload", value) for value in (None, [], "x", 1, [{}])],
        *[("timestamp", value) for value in (None, 1735689600, "", "now", "1735689600", "2025-13-01T00:00:00Z")],
        ("timestamp", "2025-02-30T00:00:00Z"),
        ("timestamp", "2025-01-01T00:00:00Zx"),
        ("timestamp", "9999-12-31T23:59:59-14:00"),
        ("timestamp", "0001-01-01T00:00:00+14:00"),
        ("timestamp", "10000-01-01T00:00:00Z"),
        ("timestamp", "\uff12025-01-01T00:00:00Z"),
        ("timestamp", "2025-01-01T00:00:0\\u0030"),
        ("timestamp", '2025-01-01T00:00:00Z","2025-01-01T00:00:00Z'),
    ],
)
def test_a_bad_value_is_refused_by_its_place(field: str, value: Any) -> None:
    place, message = refusal(body(GOOD, GOOD | {field: value}))
    assert place == f"body.events.1.{field}"
    assert message


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        ('{"message": 1}', "message"),
        ('{"message": null}', "message"),
        ('{"timestamp": 5}', "timestamp"),
        ('{"timestamp": "yesterday"}', "timestamp"),
        ('{"timestamp": "0001-01-01T00:00:00+14:00"}', "timestamp"),
    ],
)
def test_message_and_timestamp_of_a_payload_are_checked(payload: str, place: str) -> None:
    assert refusal(raw(payload))[0] == f"body.events.0.payload.{place}"


@pytest.mark.parametrize(
    "payload",
    [
        '{"a": "\\u0000"}',
        '{"\\u0000": 1}',
        '{"a": ["x", {"b": "y\\u0000"}]}',
        '{"a": "\\u0000", "a": 1}',
        '{"a": {"b": "\\u0000", "b": 1}}',
        '{"a": 1e999, "a": 1}',
        '{"a": ' + "9" * 299 + "e99}",
        '{"a": "\\ud800"}',
        '{"a": "\\udc00"}',
        '{"a": "\\ud800\\u0041"}',
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1e400}',
        '{"a": -1e400}',
        '{"a": 1E+4000}',
        '{"a": 1e-5000}',
        '{"a": [1.5e309]}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": 0.' + "3" * 20_000 + "}",
        '{"a": ' + "[" * 101 + "]" * 101 + "}",
        '{"a": ' * 5000 + "1" + "}" * 5000,
        '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"a": 1,}',
        '{"a": 01}',
        "{'a': 1}",
        '{"a": "\ud800"}',
        '{"a": tru}',
        '{"a": "\x01"}',
    ],
)
def test_what_cannot_be_stored_and_read_back_is_refused(payload: str) -> None:
    assert refusal(raw(payload))[0].startswith("body")


@pytest.mark.parametrize(
    "payload",
    [
        '{"a": 1e300, "b": -1e-300, "c": 5e-324}',
        '{"a": "1e999999", "b": "0e000", "c": "' + "0" * 5000 + '"}',
        '{"hash": "9e000123e456e789", "a": "\\\\u0000"}',
        '{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}",
        '{"a": "' + "[{" * 500 + '"}',
        '{"a": "\\\\", "b": "[[[' + "[" * 200 + '"}',
        '{"a": ' + "9" * 300 + "}",
        '{"a": "\\ud83d\\ude00"}',
        "{}",
    ],
)
def test_what_only_looks_odd_is_accepted_as_it_is(payload: str) -> None:
    assert decode(raw(payload), 10).payloads == [payload.encode()]


@pytest.mark.parametrize(
    "content",
    [b"", b"nul", b"[]", b"{}", b'{"events": null}', b'{"events": {}}', b'{"events": [1]}', b'{"events": []} x',
     b'{"events": [', b"\xff\xfe", b'\xef\xbb\xbf{"events": []}', b'{"events": ["\xff"]}'],
)  # fmt: skip
def test_a_body_that_is_no_list_of_events_is_refused(content: bytes) -> None:
    assert refusal(content)[0].startswith("body")


def test_a_refusal_never_repeats_what_was_sent() -> None:
    secret = "s3cret" * 100
    for event in (GOOD | {"event_id": [secret]}, GOOD | {"timestamp": secret}, GOOD | {"payload": secret}, {secret: 1}):
        place, message = refusal(body(event))
        assert "s3cret" not in place + message
        assert len(message) < 200


@pytest.mark.parametrize("field", ["event_id", "topic", "source", "payload", "timestamp"])
def test_half_a_surrogate_pair_is_refused_by_its_place(field: str) -> None:
    value = {"key": ["x\ud800"]} if field == "payload" else "x\udc00"
    assert refusal(body(GOOD, GOOD | {field: value}))[0] == f"body.events.1.{field}"


@pytest.mark.parametrize("text", [r"x\u0000", r"x\ud800", r"\ud80\\" * 2000])
@pytest.mark.parametrize("malformed", ["Infinity", "tru", '"\\q"'])
def test_malformed_json_is_refused_as_such_whatever_else_it_has(text: str, malformed: str) -> None:
    content = body(GOOD | {"source": "TEXT", "event_id": "MALFORMED"}).decode()
    place, message = refusal(content.replace("TEXT", text).replace('"MALFORMED"', malformed).encode())
    assert (place, message.split(":")[0]) == ("body", "JSON is malformed")


def test_too_many_events_name_the_limit() -> None:
    with pytest.raises(TooLarge, match="at most 2 events"):
        decode(body(GOOD, GOOD, GOOD), 2)
    assert len(decode(body(GOOD, GOOD), 2)) == 2


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-01-01", "2025-01-01T00:00:00+00:00"),
        ("2025-01-01T10:20", "2025-01-01T10:20:00+00:00"),
        ("2025-01-01 10:20:30", "2025-01-01T10:20:30+00:00"),
        ("2025-01-01t10:20:30z", "2025-01-01T10:20:30+00:00"),
        ("20250101T102030Z", "2025-01-01T10:20:30+00:00"),
        ("2025-01-01T10:20:30.123456789Z", "2025-01-01T10:20:30.123456+00:00"),
        ("2025-01-01T10:20:30,5+05:30", "2025-01-01T04:50:30.500000+00:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+00:00"),
    ],
)
def test_iso_8601_in_its_usual_forms_is_understood(text: str, moment: str) -> None:
    assert instant(text).isoformat() == moment


@pytest.mark.parametrize("text", ["2025-02-29T00:00:00", "2025-01-01T23:59:60Z", "0001-01-01T00:00:00+14:00"])
def test_what_is_said_of_a_time_is_true_of_each_that_has_the_form_and_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="not an ISO 8601 time that exists, of the years 1 to 9999 in UTC"):
        instant(text)


NAMES = (
    st.text(max_size=8)
    | st.sampled_from(["", "é" * 256, "x" * 512, "x" * 513, "\0", "\ud800", "😀" * 300])
    | st.integers()
)
ODD_TIMES = """2025-01-01 2025-01-01T10:20 20250101T102030Z 2025-01-01T10:20:30,5+05:30 2025-W01-1 2025-01-01T24:00:00
2025-01-01T10:20:30.1234567Z 2025-01-01T10:20:30.9999999Z 2025-01-01T23:59:60Z 2025-02-29T00:00:00 2025-01-01T00:00:00\0
0001-01-01T00:00:00+14:00 9999-12-31T23:59:59.999999-00:01"""
TIMES = st.datetimes(timezones=st.timezones() | st.none()).map(datetime.isoformat) | st.sampled_from(ODD_TIMES.split())
PAYLOADS = st.fixed_dictionaries(
    {}, optional={"message": NAMES, "timestamp": TIMES | st.integers(), "n": st.floats(), "deep": st.integers(0, 101)}
)
EVENTS = st.fixed_dictionaries(
    {"event_id": NAMES, "topic": NAMES, "source": NAMES, "payload": PAYLOADS | NAMES, "timestamp": TIMES | NAMES}
)


def decided(content: bytes) -> object:
    """What decode makes of it: events, or where and why not."""
    try:
        return decode(content, 10)
    except InvalidRequest as error:
        return error.problem


@settings(max_examples=500)
@given(st.lists(EVENTS, max_size=3), st.booleans())
def test_a_body_with_something_unusual_beside_its_events_is_decoded_alike(
    events: list[dict[str, Any]], ensure_ascii: bool
) -> None:
    for sent in events:
        if isinstance(sent["payload"], dict) and (levels := sent["payload"].pop("deep", 0)):
            sent["payload"]["deep"] = functools.reduce(lambda inner, _: [inner], range(levels), 1)
    content = json.dumps({"events": events}, ensure_ascii=ensure_ascii).encode("utf-8", "surrogatepass")
    unusual = content[:-1] + b', "year": "9999-"}'  # behind them: an error names the byte
    assert decided(content) == decided(unusual)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text().filter(lambda key: key not in {"message", "timestamp"}), JSON_VALUES, max_size=5))
def test_any_payload_is_kept_whole_or_refused_for_a_reason(payload: dict[str, Any]) -> None:
    text = json.dumps(payload, ensure_ascii=False)
    storable = "\\u0000" not in json.dumps(payload) and not any(0xD800 <= ord(c) <= 0xDFFF for c in text)
    content = raw(text)
    if storable:
        assert json.loads(decode(content, 10).payloads[0]) == payload
    else:
        refusal(content)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_comes_back_equal(number: float) -> None:
    found = json.loads(decode(raw(json.dumps({"n": number})), 10).payloads[0])["n"]
    assert found == number
    assert math.copysign(1, found) == math.copysign(1, number)
