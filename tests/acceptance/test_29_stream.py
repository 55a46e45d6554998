"""/events/stream and `chronicle tail`: every processed event, once, in one order of positions, whatever is killed."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from api import Api, event, fresh, problem, series
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Stack, eventually, is_alive, own_environment
from subscriber import Subscriber, first

POSITION_STEP = 65_536


def test_a_subscriber_gets_what_is_published_while_it_listens(api: Api) -> None:
    topic = fresh()
    api.publish(*series(topic, 10, "before"))
    first(api.url, 10, topic=topic, after="0")
    with Subscriber(api.url, [topic]) as subscriber:
        api.publish(*series(topic, 50), *series(topic, 20))
        subscriber.until(lambda: len(subscriber.messages) >= 50)
        api.settled(topic, 80)
    assert subscriber.ids() == [f"e{n}" for n in range(50)]
    assert subscriber.positions() == sorted(set(subscriber.positions()))


def test_all_history_comes_from_position_zero_and_any_position_resumes_exactly_there(api: Api) -> None:
    topic = fresh()
    for start in range(0, 30, 10):
        api.publish_settled(topic, *series(topic, start + 10))
    messages = first(api.url, 30, topic=topic, after="0")
    assert [message.event["event_id"] for message in messages] == [f"e{n}" for n in range(30)]
    for index in range(29):
        position = str(messages[index].position)
        assert first(api.url, 1, topic=topic, after=position) == [messages[index + 1]]
        assert first(api.url, 1, last=position, topic=topic, after="0") == [messages[index + 1]]


def test_now_means_only_what_comes_and_is_the_default(api: Api) -> None:
    topic = fresh()
    api.publish(event(topic, "before"))
    first(api.url, 1, topic=topic, after="0")
    with Subscriber(api.url, [topic], "now") as now, Subscriber(api.url, [topic]) as default:
        api.publish(event(topic, "after"))
        for each in (now, default):
            each.until(lambda each=each: each.messages)
            assert each.ids() == ["after"]


def test_many_topics_may_be_wanted_also_the_empty_one_and_odd_ones(api: Api) -> None:
    mark, topics = fresh(), [fresh(), "größe 🚚 &/", ""]
    with Subscriber(api.url, topics, "now") as some, Subscriber(api.url, [], "now") as everything:
        api.publish(*[event(topic, f"{mark}-{n}") for n, topic in enumerate([*topics, fresh("other")])])
        everything.until(lambda: sum(mark in each for each in everything.ids()) == 4)
        some.until(lambda: sum(mark in each for each in some.ids()) == 3)
    assert [each for each in some.ids() if mark in each] == [f"{mark}-{n}" for n in range(3)]


def test_an_event_comes_as_events_gives_it_and_on_one_line(api: Api) -> None:
    topic = fresh()
    body = (
        f'{{"events": [{{"event_id": "a", "topic": "{topic}", "source": "ö\\u2028", "timestamp": "2025-01-01T00:00:00Z"'
        ',"payload": {\r\n\t"n": 1e300, "x": 0.10, "message": "a\\nb",\r "big": 12345678901234567890}}]}'
    ).encode()
    assert api.post_body(body).status_code == 200
    api.settled(topic, 1)
    [message] = first(api.url, 1, topic=topic, after="0")
    page = api.raw("/events", {"topic": topic}).text
    text = page.split('"events":[')[1].rsplit("]", 1)[0]
    assert message.text == text.replace("\r", " ").replace("\n", " ")
    assert message.event == json.loads(page)["events"][0]


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        *(({"after": after}, ["query", "after"]) for after in ("", "x", "-1", "1e3", "٣", "NOW", "9" * 17)),
        ({"topic": "x" * 256}, ["query", "topic", 0]),
        ({"topic": "nul \0"}, ["query", "topic", 0]),
    ],
)
def test_a_parameter_that_means_nothing_is_named(api: Api, query: dict[str, str], loc: list[str | int]) -> None:
    problem(api.raw("/events/stream", dict(query)), 422, loc)


def test_an_empty_last_event_id_says_nothing(api: Api) -> None:
    with api.http.stream("GET", "/events/stream", headers={"Last-Event-ID": ""}) as answer:
        assert answer.status_code == 200


def test_headers_and_numbers_of_topics_that_mean_nothing_are_named_too(api: Api) -> None:
    for value in ("x", "-1", "now", "9" * 17):
        answer = api.http.get("/events/stream", headers={"Last-Event-ID": value})
        problem(answer, 422, ["header", "last-event-id"])
    problem(api.http.get("/events/stream", params={"topic": ["t"] * 101}), 422, ["query", "topic"])
    problem(api.http.get("/events/stream?topic=%ff"), 422, ["query", "topic"])


@settings(max_examples=40)
@given(st.sampled_from(["topic", "after"]), st.text())
def test_no_text_in_its_query_string_is_an_internal_error(api: Api, name: str, text: str) -> None:
    """Asked by HEAD, which is answered like GET, and ends."""
    encodable = text.encode("utf-8", "replace").decode()
    assert api.http.head("/events/stream", params={name: encodable}).status_code in (200, 422)


def test_a_position_that_was_not_given_yet_is_waited_for(api: Api) -> None:
    topic = fresh()
    with Subscriber(api.url, [topic], "now") as now:
        far = int(now.last_event_id) + 10**6 * POSITION_STEP
        with Subscriber(api.url, [topic], far) as later:
            for name in "abc":  # each after the service has looked whether there is something new for `later`
                api.publish_settled(topic, event(topic, name))
                now.until(lambda name=name: name in now.ids())
            assert later.messages == []


@pytest.mark.timeout(60)
def test_streams_end_at_once_when_the_system_stops(own_stack: Stack) -> None:
    with ExitStack() as held:
        connections = [http.client.HTTPConnection("127.0.0.1", own_stack.port, timeout=20) for _ in range(20)]
        answers = []
        for connection in connections:
            held.callback(connection.close)
            connection.request("GET", "/events/stream")
            answers.append(connection.getresponse())
            assert answers[-1].readline().startswith(b"id: ")
        own_stack.stop()
        for answer in answers:
            assert b"data" not in answer.read()  # to a proper end: IncompleteRead otherwise


def tail(url: str, *words: str, **more: Any) -> subprocess.Popen[bytes]:
    """`chronicle tail`, whose output goes to a pipe."""
    command = [sys.executable, "-m", "chronicle", "tail", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(command, env=own_environment(AGGREGATOR_URL=url), **options)


def ended(process: subprocess.Popen[bytes], number: int = signal.SIGINT) -> tuple[int, str]:
    """Its exit code after the signal, and what it wrote to standard error."""
    with suppress(ProcessLookupError):
        process.send_signal(number)
    _, said = process.communicate(timeout=20)
    return process.returncode, said.decode()


def lines(path: Path) -> list[str]:
    """The event ids of the JSON Lines that are there, whole ones only."""
    return [json.loads(line)["event_id"] for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]


@pytest.mark.timeout(150)
def test_tail_in_a_pipe_goes_on_after_the_api_was_killed_and_skips_and_repeats_nothing(
    own_stack: Stack, own_api: Api, tmp_path: Path
) -> None:
    topic, out = fresh(), tmp_path / "out.jsonl"
    with out.open("wb") as file:
        process = tail(own_stack.url, topic, fresh(), "--after", "0", stdout=file)
    published = 0
    for _ in range(3):
        for _ in range(5):
            batch = series(topic, published + 40)[published:]
            published += 40
            eventually(lambda batch=batch: accepted(own_api, batch), timeout=30)
        pid = own_stack.pids()["api"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: not is_alive(pid))
        eventually(own_stack.is_ready, timeout=40)
    eventually(lambda: len(lines(out)) >= published, timeout=40)
    code, said = ended(process)
    with Subscriber(own_stack.url, [topic], 0) as subscriber:
        subscriber.until(lambda: len(subscriber.messages) >= published)
    assert lines(out) == subscriber.ids()
    assert sorted(lines(out)) == sorted(f"e{n}" for n in range(published))
    assert code == 130
    assert all(line.startswith("no connection to ") for line in said.splitlines())


def accepted(api: Api, events: list[Any]) -> bool:
    try:
        return api.post(events).status_code == 200
    except httpx2.TransportError:
        return False


def test_tail_ends_quietly_when_nobody_reads_it_any_more(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, *series(topic, 5000))
    process = tail(api.url, topic, "--after", "0")
    assert process.stdout
    assert json.loads(process.stdout.readline())["event_id"] == "e0"
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr
    assert process.stderr.read() == b""


@pytest.mark.parametrize("words", [("--after", "x"), ("--url", "nowhere"), ("t" * 256,), ("t" * 250,) * 80])
def test_tail_says_in_one_line_what_is_refused(api: Api, words: tuple[str, ...]) -> None:
    process = tail(api.url, *words)
    out, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out == b""
    assert said.decode().startswith("chronicle: ")
    assert said.count(b"\n") == 1
    assert len(said) < 1000


def test_tail_on_a_terminal_is_readable_and_harmless(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic, "a\x1b[2Jb", text="größe"))
    leader, follower = os.openpty()
    process = tail(api.url, topic, "--after", "0", stdout=follower)
    os.close(follower)
    shown = b""
    while b"\n" not in shown:
        shown += os.read(leader, 4096)
    ended(process)
    os.close(leader)
    assert topic.encode() in shown
    assert "größe".encode() in shown
    assert b"\x1b[2J" not in shown


@pytest.mark.timeout(240)
def test_under_load_and_kills_each_processed_event_comes_once_in_one_order(own_stack: Stack, own_api: Api) -> None:
    topics = [fresh() for _ in range(3)]
    with (
        Subscriber(own_stack.url, after=0) as everything,
        Subscriber(own_stack.url, topics[:1], 0) as one,
        load(own_stack, topics),
    ):
        for part in ("projector", "api", "postgres", "projector", "api", "postgres", ""):
            seen = len(everything.messages)
            everything.until(lambda seen=seen: len(everything.messages) > seen + 500, timeout=60)
            connections = [(subscriber, subscriber.connections) for subscriber in (everything, one)]
            if part:
                os.kill(eventually(lambda part=part: own_stack.pids().get(part, 0), timeout=30), signal.SIGKILL)
            for subscriber, before in connections if part == "api" else ():
                subscriber.until(lambda to=subscriber, before=before: to.connections > before, timeout=60)
    eventually(own_stack.is_ready, timeout=60)
    own_api.quiet()
    ledger = processed(own_stack)
    with Subscriber(own_stack.url, last_event_id=everything.last_event_id, messages=everything.messages) as rest:
        rest.until(lambda: len(rest.messages) >= len(ledger))
    with Subscriber(own_stack.url, topics[:1], last_event_id=one.last_event_id, messages=one.messages) as rest_of_one:
        wanted = {event_id for topic, event_id in ledger if topic == topics[0]}
        rest_of_one.until(lambda: len(rest_of_one.messages) >= len(wanted))
    for subscriber in (everything, one):
        assert subscriber.positions() == sorted(set(subscriber.positions()))
        assert subscriber.connections > 2
    assert sorted((m.event["topic"], m.event["event_id"]) for m in everything.messages) == sorted(ledger)
    assert sorted(one.ids()) == sorted(wanted)
    verified = subprocess.run(
        [sys.executable, "-m", "chronicle", "verify"], env=own_stack.environment, capture_output=True, check=False
    )
    assert verified.returncode == 0, verified.stdout.decode()


def processed(stack: Stack) -> list[tuple[str, str]]:
    """Topic and event_id of every PROCESSED record of the ledger."""
    with psycopg.connect(stack.run()["postgres"]["url"]) as connection:
        rows = connection.execute("SELECT topic, event_id FROM audit_log WHERE action = 'PROCESSED'").fetchall()
        return [(topic, event_id) for topic, event_id in rows]


@contextmanager
def load(stack: Stack, topics: list[str]) -> Iterator[None]:
    """Several publishers meanwhile, with duplicates, who do not mind what is answered."""
    over = threading.Event()

    def publish(name: int) -> None:
        chance = random.Random(name)
        with Api(stack.url) as api:
            while not over.is_set():
                size = chance.choice((1, 20, 200))
                batch = [event(chance.choice(topics), f"{name}-{chance.randrange(20_000)}") for _ in range(size)]
                if not accepted(api, batch):
                    over.wait(0.1)

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
