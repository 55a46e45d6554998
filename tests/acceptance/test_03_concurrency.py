"""Many clients at once: nothing is lost, nothing is stored twice, nobody gets an error."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from api import Api, Event, event, fresh, ids, series


def publish_at_once(api: Api, requests: list[list[Event]], clients: int = 20) -> None:
    """Sends every request, `clients` of them at a time; each has to be accepted."""
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(api.publish, *request) for request in requests]:
            done.result()


def test_parallel_requests_are_all_stored(api: Api) -> None:
    topic = fresh()
    requests = [series(topic, 10, prefix=f"request-{number}-") for number in range(100)]
    publish_at_once(api, requests)
    counters = api.settled(topic, 1_000)
    assert counters == {"received": 1_000, "queued": 1_000, "processed": 1_000, "dropped": 0, "failed": 0}
    expected = {each["event_id"] for request in requests for each in request}
    assert set(ids(api.events(topic=topic)["events"])) == expected


def test_the_same_event_from_20_clients_is_stored_once(api: Api) -> None:
    topic = fresh()
    publish_at_once(api, [[event(topic, "one")]] * 20)
    counters = api.settled(topic, 20)
    assert counters == {"received": 20, "queued": 20, "processed": 1, "dropped": 19, "failed": 0}
    reasons = {record["reason"] for record in api.records(topic=topic, action="DROPPED")}
    assert reasons == {"duplicate"}


def test_overlapping_requests_store_each_event_once(api: Api) -> None:
    topic = fresh()
    events = series(topic, 200)
    publish_at_once(api, [events[start : start + 100] for start in range(0, 101, 5)])
    counters = api.settled(topic, 2_100)
    assert (counters["processed"], counters["dropped"], counters["failed"]) == (200, 1_900, 0)
    assert ids(api.events(topic=topic)["events"]) == ids(events[::-1])


def test_the_same_events_in_opposite_orders_do_not_block_each_other(api: Api) -> None:
    topic = fresh()
    events = series(topic, 300)
    publish_at_once(api, [events, events[::-1]] * 8)
    counters = api.settled(topic, 16 * 300)
    assert (counters["processed"], counters["dropped"], counters["failed"]) == (300, 15 * 300, 0)


def test_clients_of_different_topics_do_not_mix(api: Api) -> None:
    topics = [fresh() for _ in range(20)]
    publish_at_once(api, [series(topic, 15) for topic in topics for _ in range(2)])
    for topic in topics:
        counters = api.settled(topic, 30)
        assert (counters["processed"], counters["dropped"]) == (15, 15)
        assert {each["topic"] for each in api.events(topic=topic)["events"]} == {topic}


def test_readers_get_answers_while_publishers_publish(api: Api) -> None:
    topic = fresh()
    paths = ["/events", "/stats", "/audit", "/audit/summary", "/health", "/ready"] * 10
    with ThreadPoolExecutor(16) as pool:
        writes = [pool.submit(api.publish, *series(topic, 50, prefix=f"{number}-")) for number in range(40)]
        reads = [pool.submit(api.raw, path) for path in paths]
        assert [read.result().status_code for read in reads] == [200] * len(paths)
        for write in writes:
            write.result()
    assert api.settled(topic, 2_000)["processed"] == 2_000
