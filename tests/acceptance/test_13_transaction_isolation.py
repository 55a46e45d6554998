"""Readers never see half of anything: a request appears whole, in every answer, while writers write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from api import Api, event, fresh, ids, series

SIZE = 100
REQUESTS = 30


def test_a_request_becomes_readable_whole(api: Api) -> None:
    topic = fresh()
    counts: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        requests = [pool.submit(api.publish, *series(topic, SIZE, prefix=f"{n}-")) for n in range(REQUESTS)]
        while api.busy(requests):
            counts.append(api.events(topic=topic, limit=1)["count"])
    for request in requests:
        request.result()
    counts.append(api.events(topic=topic, limit=1)["count"])
    assert counts[-1] == SIZE * REQUESTS
    assert [count for count in counts if count % SIZE] == []
    assert counts == sorted(counts)


def test_a_page_shows_whole_requests(api: Api) -> None:
    topic = fresh()
    seen: list[list[str]] = []
    with ThreadPoolExecutor(4) as pool:
        requests = [pool.submit(api.publish, *series(topic, SIZE, prefix=f"{n}-")) for n in range(10)]
        while api.busy(requests):
            page = api.events(topic=topic, limit=10_000)
            seen.append(ids(page["events"]))
            assert page["count"] == len(page["events"])
    for request in requests:
        request.result()
    assert seen
    seen.append(ids(api.events(topic=topic, limit=10_000)["events"]))
    assert len(seen[-1]) == SIZE * 10
    for page_ids in seen:
        members = [event_id.split("-")[0] for event_id in page_ids]
        assert {members.count(number) for number in members} <= {SIZE}


def test_a_request_over_two_topics_is_counted_in_both_or_in_neither(api: Api) -> None:
    left, right = fresh("left"), fresh("right")
    answers = []
    with ThreadPoolExecutor(4) as pool:
        requests = [
            pool.submit(api.publish, *series(left, 50, prefix=f"{n}-"), *series(right, 50, prefix=f"{n}-"))
            for n in range(REQUESTS)
        ]
        while api.busy(requests):
            answers.append(api.summary()["by_topic"])
    for request in requests:
        request.result()
    assert answers
    answers.append({left: api.settled(left, 50 * REQUESTS), right: api.settled(right, 50 * REQUESTS)})
    for by_topic in answers:
        assert by_topic.get(left) == by_topic.get(right)
        assert by_topic.get(left, {"received": 0})["received"] % 50 == 0


def test_an_event_is_never_readable_without_its_audit_record(api: Api) -> None:
    topic = fresh()
    with ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(api.publish, *series(topic, 20, prefix=f"{n}-")) for n in range(20)]
        looks = 0
        while api.busy(requests):
            looks += 1
            found = ids(api.events(topic=topic)["events"])
            actions = {(each["event_id"], each["action"]) for each in api.records(topic=topic)}
            for action in ("RECEIVED", "QUEUED", "PROCESSED"):
                assert [event_id for event_id in found if (event_id, action) not in actions] == []
    for request in requests:
        request.result()
    assert looks
    assert len(api.records(topic=topic)) == 3 * 400


def test_losers_and_winners_of_a_request_appear_together(api: Api) -> None:
    topic = fresh()
    first = series(topic, SIZE)
    api.publish_settled(topic, *first)
    answers = []
    with ThreadPoolExecutor(2) as pool:
        requests = [
            pool.submit(api.publish, *first, *series(topic, SIZE, prefix=f"new-{n}-")) for n in range(REQUESTS // 2)
        ]
        while api.busy(requests):
            answers.append(api.counters(topic))
    for request in requests:
        request.result()
    assert answers
    answers.append(api.settled(topic, SIZE + SIZE * 2 * (REQUESTS // 2)))
    for counters in answers:
        assert counters["processed"] - SIZE == counters["dropped"], counters


def test_a_refused_request_is_never_visible_even_for_a_moment(api: Api) -> None:
    topic = fresh()
    bad = [*series(topic, 500), event(topic, "")]
    with ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(api.post, bad) for _ in range(10)]
        seen = []
        while not all(request.done() for request in requests):
            seen.append((topic in api.summary()["by_topic"], api.events(topic=topic)["count"]))
    assert {request.result().status_code for request in requests} == {422}
    assert set(seen) | {(topic in api.summary()["by_topic"], api.events(topic=topic)["count"])} == {(False, 0)}
