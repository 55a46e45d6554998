"""Fifty clients that send one key in the same instant: one wins, whole, and the others are told why they lost."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from api import Api, Event, event, fresh

CLIENTS = 50


def race(api: Api, requests: list[list[Event]]) -> None:
    """Sends all the requests in one instant, each from its own client; each has to be accepted."""
    start = Barrier(len(requests))

    def client(request: list[Event]) -> None:
        start.wait(timeout=30)
        api.publish(*request)

    with ThreadPoolExecutor(len(requests)) as pool:
        for done in [pool.submit(client, request) for request in requests]:
            done.result()


def reasons(api: Api, topic: str) -> Counter[str | None]:
    """How often each reason to drop an event of `topic` is in the audit log."""
    return Counter(record["reason"] for record in api.records(topic=topic, action="DROPPED"))


def test_50_clients_with_one_event_store_it_once(api: Api) -> None:
    topic = fresh()
    race(api, [[event(topic, "one")]] * CLIENTS)
    counters = api.settled(topic, CLIENTS)
    assert counters == {"received": 50, "queued": 50, "processed": 1, "dropped": 49, "failed": 0}
    assert api.events(topic=topic)["count"] == 1
    assert reasons(api, topic) == {"duplicate": 49}


def test_50_clients_with_one_key_and_50_payloads_store_one_of_them(api: Api) -> None:
    topic = fresh()
    race(api, [[event(topic, "one", client=number)] for number in range(CLIENTS)])
    counters = api.settled(topic, CLIENTS)
    assert (counters["processed"], counters["dropped"]) == (1, 49)
    [stored] = api.events(topic=topic)["events"]
    assert stored["payload"]["client"] in range(CLIENTS)
    assert reasons(api, topic) == {"conflict": 49}


def test_two_payloads_that_race_are_told_apart(api: Api) -> None:
    topic = fresh()
    race(api, [[event(topic, "one", side=number % 2)] for number in range(CLIENTS)])
    api.settled(topic, CLIENTS)
    assert reasons(api, topic) == {"duplicate": 24, "conflict": 25}


def test_50_keys_in_50_orders_from_50_clients_block_nobody(api: Api) -> None:
    topic = fresh()
    events = [event(topic, f"e{number}") for number in range(50)]
    requests = [random.Random(client).sample(events, len(events)) for client in range(CLIENTS)]
    race(api, requests)
    counters = api.settled(topic, 2_500)
    assert counters == {"received": 2_500, "queued": 2_500, "processed": 50, "dropped": 2_450, "failed": 0}


def test_one_key_in_50_topics_is_50_events(api: Api) -> None:
    topics = [fresh() for _ in range(CLIENTS)]
    event_id = fresh("event")
    race(api, [[event(topic, event_id)] for topic in topics])
    for topic in topics:
        assert api.settled(topic, 1)["processed"] == 1
    assert {each["topic"] for each in api.events(event_id=event_id)["events"]} == set(topics)
