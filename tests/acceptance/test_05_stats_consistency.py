"""The books balance in every answer: received = unique_processed + duplicated_dropped + failed + in_flight."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

from api import Api, Stats, Summary, event, fresh, series
from servers import eventually


def assert_balanced(stats: Stats) -> None:
    """What came in is what went out plus what is under way."""
    out = stats["unique_processed"] + stats["duplicated_dropped"] + stats["failed"]
    assert stats["received"] == out + stats["in_flight"], stats
    assert min(stats["unique_processed"], stats["duplicated_dropped"], stats["failed"], stats["in_flight"]) >= 0, stats


def assert_ordered(summary: Summary) -> None:
    """No event is queued before it is received or done before it is queued, and the topics add up to the totals."""
    topics = summary["by_topic"].values()
    assert summary["total_received"] == sum(topic["received"] for topic in topics)
    assert summary["total_queued"] == sum(topic["queued"] for topic in topics)
    assert summary["total_processed"] == sum(topic["processed"] for topic in topics)
    assert summary["total_dropped"] == sum(topic["dropped"] for topic in topics)
    assert summary["total_failed"] == sum(topic["failed"] for topic in topics)
    for topic in topics:
        done = topic["processed"] + topic["dropped"] + topic["failed"]
        assert topic["received"] >= topic["queued"] >= done >= 0, topic


def flow(api: Api, topic: str, pool: ThreadPoolExecutor) -> list[Future[None]]:
    """Begins 60 requests of 50 events, of which every second repeats the one before it."""
    requests = [series(topic, 50, prefix=f"{number // 2}-") for number in range(60)]
    return [pool.submit(api.publish, *request) for request in requests]


def test_the_books_balance_in_every_answer_while_events_flow(api: Api) -> None:
    topic = fresh()
    before = api.quiet()
    answers = [before]
    with ThreadPoolExecutor(4) as pool:
        requests = flow(api, topic, pool)
        while api.busy(requests):
            answers.append(api.stats())
    for request in requests:
        request.result()
    answers.append(api.quiet())
    for answer in answers:
        assert_balanced(answer)
    for earlier, later in pairwise(answers):
        assert earlier["received"] <= later["received"]
        assert earlier["unique_processed"] <= later["unique_processed"]
        assert earlier["duplicated_dropped"] <= later["duplicated_dropped"]
    assert answers[-1]["received"] - before["received"] == 3_000
    assert answers[-1]["unique_processed"] - before["unique_processed"] == 1_500
    assert answers[-1]["duplicated_dropped"] - before["duplicated_dropped"] == 1_500


def test_the_summary_is_one_snapshot_while_events_flow(api: Api) -> None:
    topic = fresh()
    with ThreadPoolExecutor(4) as pool:
        requests = flow(api, topic, pool)
        answers = [api.summary()]
        while api.busy(requests):
            answers.append(api.summary())
    for request in requests:
        request.result()
    api.settled(topic, 3_000)
    for answer in [*answers, api.summary()]:
        assert_ordered(answer)


def test_stats_and_summary_tell_the_same(api: Api) -> None:
    topic = fresh()
    events = series(topic, 40)
    api.publish_settled(topic, *events, *events[:15])
    stats, summary = api.quiet(), api.summary()
    assert stats["received"] == summary["total_received"] == summary["total_queued"]
    assert stats["unique_processed"] == summary["total_processed"]
    assert stats["duplicated_dropped"] == summary["total_dropped"]
    assert stats["failed"] == summary["total_failed"]
    assert sorted(stats["topics"]) == sorted(summary["by_topic"])


def test_the_unique_count_is_the_count_of_events(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 30))
    assert api.quiet()["unique_processed"] == api.events(limit=1)["count"]


def test_what_was_received_is_counted_at_once(api: Api) -> None:
    before = api.quiet()
    api.publish(*(event(fresh()) for _ in range(7)))
    after = api.stats()
    assert after["received"] - before["received"] == 7
    assert_balanced(after)


def test_a_refused_request_changes_no_count(api: Api) -> None:
    before = api.quiet()
    assert api.post([event(fresh()), event(fresh(), "")]).status_code == 422
    after = api.stats()
    assert {**after, "uptime": 0} == {**before, "uptime": 0}


def test_topics_are_listed_once_each(api: Api) -> None:
    topic = fresh()
    for _ in range(3):
        api.publish(event(topic))
    api.settled(topic, 3)
    assert api.stats()["topics"].count(topic) == 1


def test_uptime_is_whole_seconds_that_pass(api: Api) -> None:
    first = api.stats()["uptime"]
    assert type(first) is int
    later = eventually(lambda: api.stats()["uptime"] > first and api.stats()["uptime"], timeout=5)
    assert first < later <= first + 5
