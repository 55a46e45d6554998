"""One event by its key over HTTP: any topic and id, escaped; what is not there says why; duplicates and conflicts."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from api import Api, event, fresh, moment, problem
from servers import eventually


def path(topic: str, event_id: str) -> str:
    return f"/events/{quote(topic, safe='')}/{quote(event_id, safe='')}"


def trail_of(api: Api, topic: str, event_id: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"{path(topic, event_id)}/trail")
    return found


@pytest.mark.parametrize("topic", ["plain", "a/b", "", "with space", "ünïcödé/🙂", "100%", "a?b#c", "trail", "%2F"])
@pytest.mark.parametrize("suffix", ["", "/", "/trail", "é/🙂", "%2F", "?limit=1", "..", " "])
def test_any_topic_and_id_can_be_asked_for(api: Api, topic: str, suffix: str) -> None:
    sent = event(topic, fresh("e") + suffix)
    api.publish(sent)
    stored = eventually(lambda: found(api, topic, sent["event_id"]))
    assert {**stored, "timestamp": moment(stored["timestamp"])} == {**sent, "timestamp": moment(sent["timestamp"])}
    told = trail_of(api, topic, sent["event_id"])
    assert (told["topic"], told["event_id"], told["count"]) == (topic, sent["event_id"], 1)


def found(api: Api, topic: str, event_id: str) -> dict[str, Any] | None:
    answer = api.raw(path(topic, event_id))
    return answer.json() if answer.status_code == 200 else None


def test_an_event_named_trail_is_no_trail(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, "trail"))
    assert api.get(f"/events/{topic}/trail")["event_id"] == "trail"
    assert api.get(f"/events/{topic}/trail/trail")["sightings"][0]["outcome"] == "PROCESSED"


def test_the_trail_tells_a_duplicate_from_a_conflict_and_shows_what_differs(api: Api) -> None:
    topic = fresh()
    for n in (1, 1, 2):
        api.publish_settled(topic, event(topic, "e", n=n))
    told = trail_of(api, topic, "e")
    stored, duplicate, conflict = told["sightings"]
    assert [each["facts"][-1]["action"] for each in told["sightings"]] == ["PROCESSED", "DROPPED", "DROPPED"]
    assert [each["facts"][-1]["reason"] for each in told["sightings"]] == [None, "duplicate", "conflict"]
    assert (stored["payload"]["n"], duplicate["payload"], conflict["payload"]["n"]) == (1, None, 2)
    for each in told["sightings"]:
        assert [fact["action"] for fact in each["facts"][:2]] == ["RECEIVED", "QUEUED"]
        moments = [moment(fact["recorded_at"]) for fact in each["facts"]]
        assert moments == sorted(moments)
        assert all(fact["waited_ms"] >= 0 for fact in each["facts"][1:])


def test_the_trail_names_the_request_that_brought_the_event(api: Api) -> None:
    topic = fresh()
    api.http.post("/publish", json={"events": [event(topic, "e")]}, headers={"X-Request-ID": topic}).raise_for_status()
    api.settled(topic, 1)
    assert trail_of(api, topic, "e")["sightings"][0]["request_id"] == topic


def test_the_trail_says_how_many_sightings_there_are_beyond_its_limit(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *[event(topic, "e") for _ in range(5)])
    told = api.get(f"/events/{topic}/e/trail", {"limit": 2})
    assert (told["count"], len(told["sightings"])) == (5, 2)


@pytest.mark.parametrize("more", ["", "/trail"])
def test_an_event_that_was_never_received_is_a_404_that_says_so(api: Api, more: str) -> None:
    answer = api.raw(f"/events/{fresh()}/e{more}")
    assert problem(answer, 404, ["path", "event_id"])["type"] == "not_received"


@pytest.mark.parametrize("more", ["", "/trail"])
@pytest.mark.parametrize(
    ("names", "field"),
    [
        ("t" * 256 + "/e", "topic"),
        ("t/" + "e" * 513, "event_id"),
        ("t/", "event_id"),
        ("%00/e", "topic"),
        ("t/a%00", "event_id"),
        ("%ff/e", "topic"),
        ("t/%ed%a0%80", "event_id"),
    ],
)
def test_a_name_that_no_event_has_is_refused(api: Api, names: str, field: str, more: str, gateway: bool) -> None:
    if gateway and "%00" in names:
        pytest.skip("the gateway refuses it first")
    problem(api.raw(f"/events/{names}{more}"), 422, ["path", field])


@pytest.mark.parametrize("limit", [0, 1001, "x"])
def test_a_limit_out_of_range_is_refused(api: Api, limit: int | str) -> None:
    problem(api.raw("/events/t/e/trail", {"limit": limit}), 422, ["query", "limit"])


def test_only_get_and_head_ask_for_an_event(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, "a/b"))
    assert api.http.head(path(topic, "a/b")).status_code == 200
    assert api.http.post(path(topic, "a/b")).status_code == 405
    assert api.http.get(f"{path(topic, 'a/b')}/other").status_code == 404
