"""Twenty thousand events, three in ten of them duplicates, through large requests."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from api import Api, Event, fresh, ids, series
from servers import Stack, eventually, unwritten_pages

TOPICS = 5
UNIQUE = 14_000
REPEATED = 6_000


def load(seed: int) -> dict[str, list[Event]]:
    """20,000 shuffled events in five new topics, by topic; 6,000 of them are repeats spread at random."""
    chance = random.Random(seed)
    stream: dict[str, list[Event]] = {}
    for _ in range(TOPICS):
        topic = fresh()
        events = series(topic, UNIQUE // TOPICS)
        stream[topic] = events + chance.choices(events, k=REPEATED // TOPICS)
        chance.shuffle(stream[topic])
    return stream


def requests_of(events: list[Event], size: int) -> list[list[Event]]:
    """The events in requests of `size`."""
    return [events[start : start + size] for start in range(0, len(events), size)]


@pytest.mark.parametrize("size", [1_000, 10_000])
def test_20000_events_with_30_percent_duplicates_are_counted_exactly(api: Api, size: int) -> None:
    before = api.quiet()
    by_topic = load(seed=size)
    stream = [each for events in zip(*by_topic.values(), strict=True) for each in events]
    with ThreadPoolExecutor(4) as pool:
        for sent in [pool.submit(api.publish, *request) for request in requests_of(stream, size)]:
            sent.result()
    for topic, events in by_topic.items():
        counters = api.settled(topic, len(events))
        assert (counters["processed"], counters["dropped"], counters["failed"]) == (2_800, 1_200, 0)
        page = api.events(topic=topic, limit=10_000)
        assert page["count"] == 2_800
        assert ids(page["events"]) == [f"e{number}" for number in reversed(range(2_800))]
    after = api.quiet()
    assert after["received"] - before["received"] == UNIQUE + REPEATED
    assert after["unique_processed"] - before["unique_processed"] == UNIQUE
    assert after["duplicated_dropped"] - before["duplicated_dropped"] == REPEATED
    assert after["failed"] == before["failed"]


def test_a_topic_of_many_events_is_read_whole_in_pages(api: Api) -> None:
    topic = fresh()
    for number in range(3):
        api.publish(*series(topic, 4_000, prefix=f"{number}-"))
    api.settled(topic, 12_000)
    pages = [ids(page["events"]) for page in api.event_pages(topic=topic, limit=5_000)]
    assert [len(page) for page in pages] == [5_000, 5_000, 2_000]
    expected = {f"{number}-{n}" for number in range(3) for n in range(4_000)}
    assert {event_id for page in pages for event_id in page} == expected


def test_hundreds_of_small_requests_are_counted_exactly(api: Api) -> None:
    topic = fresh()
    events = series(topic, 500)
    with ThreadPoolExecutor(16) as pool:
        for sent in [pool.submit(api.publish, each) for each in events + events[:200]]:
            sent.result()
    counters = api.settled(topic, 700)
    assert counters == {"received": 700, "queued": 700, "processed": 500, "dropped": 200, "failed": 0}


def test_what_tables_have_grown_by_does_not_wait_for_the_kernel_to_write_it(stack: Stack, api: Api) -> None:
    tables = (stack.home / "postgres" / "base").glob("*/[0-9]*")
    before = {table: table.stat().st_size for table in tables}
    for events in load(seed=3).values():
        api.publish(*events)
    api.quiet()
    if unwritten_pages(next(iter(before))) is None:
        pytest.skip("this kernel does not say which pages it has written")

    def all_are_written() -> bool:
        unwritten = {table.name: pages for table, size in before.items() if (pages := unwritten_pages(table, size))}
        assert unwritten == {}
        return True

    eventually(all_are_written)  # of itself the kernel waits 30 s
