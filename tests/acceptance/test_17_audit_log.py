"""The audit log: every step of every event, once, in order of time, to be found by every filter."""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from api import Api, Params, Record, event, fresh, ids, moment, problem, series

STEPS = {"RECEIVED": 0, "QUEUED": 1, "PROCESSED": 2, "DROPPED": 2, "FAILED": 2}
KEYS = {"id", "event_id", "topic", "source", "action", "worker_id", "created_at", "reason"}


def by_event(records: list[Record]) -> dict[str, list[Record]]:
    """The records of each event id, oldest first."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in reversed(records):
        found[record["event_id"]].append(record)
    return found


def test_every_event_has_one_record_of_each_step_in_order_of_time(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 50))
    steps = by_event(api.records(topic=topic))
    assert steps.keys() == {f"e{number}" for number in range(50)}
    for records in steps.values():
        assert [record["action"] for record in records] == ["RECEIVED", "QUEUED", "PROCESSED"]
        received, queued, processed = (moment(record["created_at"]) for record in records)
        assert received <= queued <= processed


def test_order_of_time_holds_under_load(api: Api) -> None:
    topic = fresh()
    with ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(api.publish, *series(topic, 10, prefix=f"{number}-")) for number in range(60)]
    for request in requests:
        request.result()
    assert api.settled(topic, 600)["processed"] == 600
    steps = by_event(api.records(topic=topic))
    assert len(steps) == 600
    for records in steps.values():
        times = {record["action"]: moment(record["created_at"]) for record in records}
        assert len(records) == len(times) == 3
        assert times["RECEIVED"] <= times["QUEUED"] <= times["PROCESSED"]


def test_every_sighting_of_a_repeated_event_is_told(api: Api) -> None:
    topic = fresh()
    for _ in range(3):
        api.publish_settled(topic, event(topic, "one"))
    actions = Counter(record["action"] for record in api.records(topic=topic, event_id="one"))
    assert actions == {"RECEIVED": 3, "QUEUED": 3, "PROCESSED": 1, "DROPPED": 2}


def test_a_record_says_who_what_when_and_by_whom(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, "one", source="service"))
    for record in api.records(topic=topic):
        assert record.keys() >= KEYS
        assert (record["topic"], record["event_id"], record["source"]) == (topic, "one", "service")
        assert type(record["id"]) is int
        assert record["reason"] is None
        assert moment(record["created_at"]).year >= 2025
        if record["action"] in ("RECEIVED", "QUEUED"):
            assert record["worker_id"] is None
        else:
            assert type(record["worker_id"]) is int
            assert record["worker_id"] >= 0


def test_a_drop_says_why(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, "same", v=1), event(topic, "other", v=1))
    api.publish_settled(topic, event(topic, "same", v=1), event(topic, "other", v=2), event(topic, "new"))
    why = {record["event_id"]: record["reason"] for record in api.records(topic=topic, action="DROPPED")}
    assert why == {"same": "duplicate", "other": "conflict"}
    assert {record["reason"] for record in api.records(topic=topic) if record["action"] != "DROPPED"} == {None}


def test_the_newest_records_come_first_and_ids_are_unique(api: Api) -> None:
    topic = fresh()
    for number in range(5):
        api.publish_settled(topic, *series(topic, 10, prefix=f"{number}-"))
    records = api.audit(topic=topic, limit=1_000)["audit_logs"]
    assert len(records) == len({record["id"] for record in records}) == 150
    for newer, older in pairwise(records):
        assert moment(newer["created_at"]) >= moment(older["created_at"])
    assert records[0]["event_id"].startswith("4-")
    assert records[-1]["event_id"].startswith("0-")


def test_the_count_is_how_many_records_are_given(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 50))
    for limit in (1, 7, 100, 150, 1_000):
        page = api.audit(topic=topic, limit=limit)
        assert page["count"] == len(page["audit_logs"]) == min(limit, 150)
        assert (page["next_cursor"] is None) == (limit >= 150)


def test_a_page_has_100_records_unless_the_limit_says_otherwise(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 50))
    assert api.audit(topic=topic)["count"] == 100


@pytest.mark.parametrize("action", STEPS)
def test_the_action_filter_gives_only_that_action(api: Api, action: str) -> None:
    topic = fresh()
    expected = {"RECEIVED": 15, "QUEUED": 15, "PROCESSED": 10, "DROPPED": 5, "FAILED": 0}
    events = series(topic, 10)
    api.publish_settled(topic, *events, *events[:5])
    records = api.records(topic=topic, action=action)
    assert len(records) == expected[action]
    assert {record["action"] for record in records} <= {action}


def test_an_action_alone_filters_across_topics(api: Api) -> None:
    first, second = fresh(), fresh()
    api.publish(event(first, "one"), event(second, "two"), event(first, "one"))
    api.settled(first, 2)
    api.settled(second, 1)
    newest = api.audit(action="RECEIVED", limit=3)["audit_logs"]
    assert sorted(record["topic"] for record in newest) == sorted([first, first, second])
    [dropped] = api.audit(action="DROPPED", limit=1)["audit_logs"]
    assert (dropped["topic"], dropped["event_id"]) == (first, "one")


def test_topic_and_event_filters_combine(api: Api) -> None:
    first, second, event_id = fresh(), fresh(), fresh("event")
    api.publish(event(first, event_id), event(second, event_id), event(first, "another"))
    api.settled(first, 2)
    api.settled(second, 1)
    assert len(api.records(event_id=event_id)) == 6
    assert {record["topic"] for record in api.records(event_id=event_id)} == {first, second}
    [record] = api.records(event_id=event_id, topic=second, action="PROCESSED")
    assert (record["topic"], record["event_id"]) == (second, event_id)
    assert api.records(event_id=event_id, topic=fresh()) == []


def test_from_and_to_are_times_of_the_record(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 5, prefix="early-"))
    early = moment(api.records(topic=topic)[0]["created_at"])
    api.publish_settled(topic, *series(topic, 5, prefix="late-"))
    late = min(moment(record["created_at"]) for record in api.records(topic=topic) if record["event_id"] > "late")
    between = (early + (late - early) / 2).isoformat()
    assert early < late
    until = api.records(topic=topic, to=between)
    since = api.records(topic=topic, **{"from": between})
    assert (len(until), {record["event_id"].split("-")[0] for record in until}) == (15, {"early"})
    assert (len(since), {record["event_id"].split("-")[0] for record in since}) == (15, {"late"})
    assert api.records(topic=topic, to="2020-01-01T00:00:00Z") == []
    assert api.records(topic=topic, **{"from": "2020-01-01", "to": "2020-01-02T00:00:00"}) == []


@pytest.mark.parametrize("filters", [{}, {"action": "PROCESSED"}], ids=["topic", "topic and action"])
def test_pages_skip_and_repeat_nothing_while_events_arrive(api: Api, filters: Params) -> None:
    topic = fresh()
    events = series(topic, 30)
    api.publish_settled(topic, *events[:10])
    api.publish_settled(topic, *events[10:])
    expected = [record["id"] for record in api.records(topic=topic, **filters)]
    seen: list[int] = []
    for number, page in enumerate(api.audit_pages(topic=topic, limit=7, **filters)):
        seen += [record["id"] for record in page["audit_logs"]]
        if number < 4:
            api.publish_settled(topic, *series(topic, 3, prefix=f"new-{number}-"))
    assert seen == expected


def test_pages_over_all_topics_repeat_nothing_while_publishers_run(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 100))
    expected = [record["id"] for record in api.records(topic=topic)]
    seen: list[Record] = []
    with ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(api.publish, *series(fresh(), 5)) for _ in range(30)]
        for page in api.audit_pages(limit=50):
            seen += page["audit_logs"]
            if sum(record["topic"] == topic for record in seen) == 300:
                break
    for request in requests:
        request.result()
    assert len(seen) == len({record["id"] for record in seen})
    assert [record["id"] for record in seen if record["topic"] == topic] == expected


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"limit": -5}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"action": "DELETED"}, "action"),
        ({"action": "received"}, "action"),
        ({"action": ""}, "action"),
        ({"from": "noon"}, "from"),
        ({"to": "2025-02-30T00:00:00Z"}, "to"),
        ({"cursor": "not-a-cursor"}, "cursor"),
    ],
    ids=str,
)
def test_a_parameter_that_makes_no_sense_is_a_422_that_names_it(api: Api, params: Params, named: str) -> None:
    problem(api.raw("/audit", params), 422, ["query", named])


def test_the_summary_equals_the_counters_and_the_log(api: Api) -> None:
    topic = fresh()
    events = series(topic, 40)
    counters = api.publish_settled(topic, *events, *events[:10])
    logged = Counter(record["action"].lower() for record in api.records(topic=topic))
    assert {**counters} == {"failed": 0, **logged}
    stats, summary = api.quiet(), api.summary()
    assert summary["total_received"] == summary["total_queued"] == stats["received"]
    assert summary["total_processed"] == stats["unique_processed"]
    assert summary["total_dropped"] == stats["duplicated_dropped"]
    assert summary["total_failed"] == stats["failed"]


def test_the_summary_tells_what_each_worker_did(api: Api) -> None:
    before = api.quiet()["received"]
    worked = {worker: each["processed"] + each["dropped"] for worker, each in api.summary()["by_worker"].items()}
    topics = [fresh() for _ in range(8)]
    for topic in topics:
        api.publish_settled(topic, *series(topic, 5), *series(topic, 5))
    assert api.quiet()["received"] - before == 80
    summary = api.summary()
    done = Counter(
        str(record["worker_id"])
        for topic in topics
        for record in api.records(topic=topic)
        if record["worker_id"] is not None
    )
    for worker, counters in summary["by_worker"].items():
        assert counters.keys() == {"received", "queued", "processed", "dropped", "failed"}
        assert counters["processed"] + counters["dropped"] - worked.get(worker, 0) == done[worker]
    assert sum(each["processed"] for each in summary["by_worker"].values()) == summary["total_processed"]
    assert sum(each["dropped"] for each in summary["by_worker"].values()) == summary["total_dropped"]
    assert sum(each["failed"] for each in summary["by_worker"].values()) == summary["total_failed"]
    assert ids(api.events(topic=topics[0])["events"]) == ["e4", "e3", "e2", "e1", "e0"]
