"""Accepted means stored, readable and equal through every route; refused means a 4xx and nothing stored."""

from __future__ import annotations

import json
import random
from typing import Any

import psycopg
import pytest
from api import Api, Event, event, fresh, moment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Stack

from chronicle.events import EVENT_ID_BYTES, EVENT_ID_CHARACTERS, NAME_BYTES, NAME_CHARACTERS, instant

BOUNDED = settings(max_examples=30, suppress_health_check=list(HealthCheck), database=None)
STORABLE = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


def names(characters: int, size: int, least: int = 1) -> st.SearchStrategy[str]:
    """Any text of the contract's bounds, with some at their edge."""
    edge = st.sampled_from(["a", "\u00e9", "\u8a9e", "\U0001f680"]).map(
        lambda letter: letter * min(characters, size // len(letter.encode()))
    )
    short = st.text(STORABLE, min_size=least, max_size=characters // 4)
    return (short | edge).filter(lambda text: len(text.encode()) <= size)


NUMBERS = st.integers(-(10**200), 10**200) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(STORABLE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(STORABLE), inner, max_size=4),
    max_leaves=20,
)
TIMES = st.datetimes(timezones=st.timezones() | st.none()).map(lambda time: time.isoformat())


def in_range(text: str) -> bool:
    try:
        instant(text)
    except ValueError:
        return False
    return True


GOOD = st.fixed_dictionaries(
    {
        "event_id": names(EVENT_ID_CHARACTERS, EVENT_ID_BYTES),
        "source": names(NAME_CHARACTERS, NAME_BYTES),
        "payload": st.dictionaries(
            st.text(STORABLE).filter(lambda key: key not in ("message", "timestamp")), VALUES, max_size=5
        ),
        "timestamp": TIMES.filter(in_range),
    }
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters() | st.sampled_from("\0\ud800\udfff")),
    st.text(min_size=200, max_size=1200),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(
        st.sampled_from(["message", "timestamp", "a", "\0"]), st.floats() | st.text(max_size=5), max_size=3
    ),
)
ANY = st.dictionaries(st.sampled_from(["event_id", "source", "payload", "timestamp", "topic"]), ODD, max_size=2)


@pytest.fixture(scope="module")
def ledger(stack: Stack) -> Any:
    """A connection to the system's own database."""
    with psycopg.connect(stack.run()["postgres"]["url"], autocommit=True) as connection:
        yield connection


def check_everywhere(api: Api, ledger: Any, topic: str, sent: Event) -> None:
    """The event is in the ledger, in /events and in /audit, equal."""
    [stored] = api.events(topic=topic)["events"]
    for name in ("event_id", "topic", "source", "payload"):
        assert stored[name] == sent[name]  # type: ignore[literal-required]
    assert moment(stored["timestamp"]) == instant(sent["timestamp"])
    assert api.events(event_id=sent["event_id"], topic=topic)["events"] == [stored]
    records = api.records(topic=topic)
    assert [each["action"] for each in records] == ["PROCESSED", "QUEUED", "RECEIVED"]
    assert {(each["event_id"], each["source"]) for each in records} == {(sent["event_id"], sent["source"])}
    rows = ledger.execute("SELECT event_id, source, payload FROM received_events WHERE topic = %s", [topic]).fetchall()
    assert rows == [(sent["event_id"], sent["source"], sent["payload"])]


@BOUNDED
@given(fields=GOOD)
def test_whatever_the_contract_allows_is_accepted_and_comes_back_equal(
    api: Api, ledger: Any, fields: dict[str, Any]
) -> None:
    topic = fresh()
    sent = event(topic) | fields
    api.publish_settled(topic, sent)
    check_everywhere(api, ledger, topic, sent)


@BOUNDED
@given(changes=ANY)
def test_anything_else_is_stored_whole_or_refused_and_not_stored_at_all(
    api: Api, ledger: Any, changes: dict[str, Any]
) -> None:
    topic = fresh()
    sent: dict[str, Any] = {**event(topic), **changes, "topic": changes.get("topic", topic)}
    mark = event(topic, "companion")
    answer = api.post_body(json.dumps({"events": [mark, sent]}).encode())
    if answer.status_code == 200:
        assert api.settled(topic, 2 if sent["topic"] == topic else 1)["failed"] == 0
        [stored] = api.events(topic=sent["topic"], event_id=sent["event_id"])["events"]
        assert (stored["source"], stored["payload"]) == (sent["source"], sent["payload"])
    else:
        assert answer.status_code == 422
        assert topic not in api.summary()["by_topic"]
        assert ledger.execute("SELECT count(*) FROM received_events WHERE topic = %s", [topic]).fetchone() == (0,)


def test_the_longest_names_of_random_text_pass_every_index_also_as_duplicate_and_conflict(api: Api) -> None:
    choose = random.Random(8).choices
    letters = [chr(code) for code in range(0x10000, 0x1FFFF)]
    topic, event_id = "".join(choose(letters, k=128)), "".join(choose(letters, k=256))
    assert (len(topic.encode()), len(event_id.encode())) == (NAME_BYTES, EVENT_ID_BYTES)
    sent = event(topic, event_id, source=topic)
    counters = api.publish_settled(topic, sent, sent, event(topic, event_id, source=topic, other=True))
    assert (counters["processed"], counters["dropped"]) == (1, 2)
    assert api.events(topic=topic, event_id=event_id, source=topic)["count"] == 1
    assert len(api.records(topic=topic, event_id=event_id)) == 9
