"""What the publisher makes, reads and understands, without a network."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronicle import clients
from chronicle.errors import ChronicleError
from publisher import generator
from publisher.answers import read_answer
from publisher.generator import Generator, generate, wall_clock
from publisher.jsonlines import events_of
from publisher.run import Options, check, endpoint
from publisher.sources import Event, batches
from publisher.tally import SHOWN_REASONS, Tally

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


def made(count: int, ratio: float, seed: int | None = None) -> list[bytes]:
    return list(generate(count, ratio, random.Random(seed), wall_clock))


def key(event: bytes) -> tuple[str, str]:
    fields = json.loads(event)
    return fields["topic"], fields["event_id"]


async def collected(source: Generator) -> list[Event]:
    return [event async for event in source.events() if event]


def test_the_default_run_has_exactly_14000_distinct_events_and_6000_exact_repeats() -> None:
    events = made(20_000, 0.3)
    assert len(events) == 20_000
    assert len(set(events)) == len({key(event) for event in events}) == 14_000


@given(st.integers(0, 200), st.floats(0, 1, exclude_max=True), st.integers())
def test_the_share_of_repeats_is_exact_for_any_count_and_ratio(count: int, ratio: float, seed: int) -> None:
    events = made(count, ratio, seed)
    assert len(events) == count
    assert len(set(events)) == max(count - round(count * ratio), min(count, 1))


def test_repeats_are_spread_over_the_whole_run_and_reach_far_back() -> None:
    events = made(20_000, 0.3, seed=1)
    first: dict[bytes, int] = {}
    back = [place - first[event] for place, event in enumerate(events) if first.setdefault(event, place) != place]
    tenths = Counter(place // 2000 for place, event in enumerate(events) if first[event] != place)
    assert min(tenths.values()) > 400
    assert sum(distance > 1000 for distance in back) > len(back) / 2


def test_memory_stays_bounded_and_counts_exact_beyond_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "POOL_SIZE", 10)
    events = made(2000, 0.5, seed=2)
    assert len(set(events)) == 1000
    assert len(events) == 2000


async def test_a_seed_gives_the_same_events_again_and_no_seed_gives_fresh_ones() -> None:
    assert await collected(Generator(50, 0.3, 7)) == await collected(Generator(50, 0.3, 7))
    first, second = await collected(Generator(50, 0, None)), await collected(Generator(50, 0, None))
    assert not {event.text for event in first} & {event.text for event in second}


def test_generated_events_have_the_shape_of_the_contract() -> None:
    for text in made(100, 0):
        event = json.loads(text)
        assert set(event) == {"event_id", "topic", "source", "payload", "timestamp"}
        assert event["topic"] in {f"topic-{number}" for number in range(1, 6)}
        assert set(event["payload"]) == {"message", "timestamp"}
        assert datetime.now(UTC) - datetime.fromisoformat(event["timestamp"]) < timedelta(minutes=1)


def test_lines_are_numbered_and_blank_ones_counted_but_left_out() -> None:
    lines = [b'{"a": 1}\r', b"", b" \t\r", b'\xef\xbb\xbf{"a": 2}', b"{}"]
    events = list(events_of(lines, 1))
    assert [(event.number, event.text) for event in events] == [(1, lines[0]), (4, lines[3]), (5, lines[4])]
    assert [event.problem is None for event in events] == [True, False, True]


def test_a_byte_order_mark_at_the_start_of_a_file_is_left_out() -> None:
    assert list(events_of([b"\xef\xbb\xbf{}"], 1)) == [Event(1, b"{}")]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"1",
        b"null",
        b"{",
        b"{}{}",
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\x01"}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_line_that_could_spoil_a_request_is_no_event(line: bytes) -> None:
    (event,) = events_of([line], 3)
    assert event.problem
    assert event.text == line


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.floats(allow_nan=False) | st.text(), st.lists)))
def test_any_json_object_is_an_event(fields: dict[str, object]) -> None:
    (event,) = events_of([msgspec.json.encode(fields)], 1)
    assert event.problem is None


async def stream(events: list[Event | None]) -> AsyncIterator[Event | None]:
    for event in events:
        yield event


@given(
    st.lists(st.none() | st.binary(max_size=40).map(lambda text: Event(1, text))), st.integers(1, 5), st.integers(1, 60)
)
async def test_batches_keep_every_event_in_order_within_both_bounds(
    events: list[Event | None], count: int, size: int
) -> None:
    found = [batch async for batch in batches(stream(events), count, size)]
    assert [event for batch in found for event in batch] == [event for event in events if event]
    for batch in found:
        assert 1 <= len(batch) <= count
        assert len(batch) == 1 or sum(len(event.text) + 1 for event in batch) <= size


async def test_a_pause_of_the_input_sends_what_is_there() -> None:
    one, two, three = (Event(number, b"{}") for number in (1, 2, 3))
    assert [b async for b in batches(stream([one, two, None, None, three]), 10, 100)] == [[one, two], [three]]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("7", 7),
        ("0", 0),
        ("7\x1f", 7),
        ("100000", 30),
        ("Sun, 01 Jun 2025 12:00:09 GMT", 9),
        ("Sun, 01 Jun 2025 11:00:00 GMT", 0),
        ("Sun, 01 Jun 2025 14:00:00 GMT", 30),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", 0),
        ("-1", 0),
        ("soon", 0),
        ("", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(value: str | None, seconds: float) -> None:
    assert clients.retry_after(value, NOW) == seconds


@given(st.text())
def test_no_retry_after_header_breaks_the_publisher(value: str) -> None:
    assert 0 <= clients.retry_after(value, NOW) <= 30


def refusal(*places: list[object]) -> httpx2.Response:
    return httpx2.Response(422, json={"detail": [{"loc": place, "msg": "is bad", "type": "x"} for place in places]})


def test_a_422_names_the_bad_events_and_their_fields() -> None:
    answer = read_answer(refusal(["body", "events", 2, "topic"], ["body", "events", 0]), 3, NOW)
    assert answer.refused == {2: "422 topic: is bad", 0: "422 is bad"}
    assert not answer.temporary


@pytest.mark.parametrize(
    "place", [["body"], ["body", "events"], ["body", "events", 3], ["body", "events", -1], ["query"]]
)
def test_a_422_that_names_no_event_of_the_request_refuses_all_of_it(place: list[object]) -> None:
    answer = read_answer(refusal(place), 3, NOW)
    assert not answer.refused
    assert answer.reason == "422 is bad"


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"detail": 1}', b'{"detail": [1]}', b"\xff", b"[" * 100_000])
def test_an_error_in_any_shape_is_understood(content: bytes) -> None:
    assert read_answer(httpx2.Response(404, content=content), 1, NOW).reason == "404 Not Found"


def test_a_200_counts_only_where_it_confirms_the_events() -> None:
    good = {"status": "success", "message": "Published 2 events", "events_count": 2}
    assert read_answer(httpx2.Response(200, json=good), 2, NOW).accepted
    others: list[object] = [{**good, "events_count": 1}, {"hello": "world"}, [], "ok"]
    for other in others:
        answer = read_answer(httpx2.Response(200, json=other), 2, NOW)
        assert not answer.accepted
        assert not answer.temporary


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_only_429_and_5xx_are_worth_another_try(status: int) -> None:
    assert read_answer(httpx2.Response(status), 1, NOW).temporary


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 408, 413, 422])
def test_no_other_answer_is_tried_again(status: int) -> None:
    assert not read_answer(httpx2.Response(status), 1, NOW).temporary


def test_what_a_server_says_cannot_move_the_cursor() -> None:
    answer = read_answer(httpx2.Response(400, json={"detail": "bad\x1b[2J\nthing"}), 1, NOW)
    assert answer.reason == "400 bad [2J thing"


def test_latencies_are_nearest_rank_percentiles() -> None:
    tally = Tally()
    assert tally.latency(50) is None
    tally.latencies.extend(number / 1000 for number in range(100, 0, -1))
    assert [tally.latency(percent) for percent in (50, 95, 99)] == [0.05, 0.095, 0.099]


def test_reasons_stay_few_however_many_there_are() -> None:
    tally = Tally()
    for number in range(1000):
        tally.fail([Event(number, b"")], f"reason {number}")
        tally.fail([Event(number, b"")], "reason 0")
    assert tally.failed == 2000
    assert len(tally.reasons) == SHOWN_REASONS
    assert (tally.reasons["reason 0"].count, tally.reasons["reason 0"].numbers) == (1001, [0, 0, 1, 2, 3])


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080",
        "ftp://localhost",
        "http://",
        "",
        "http://[::1",
        "http://localhost:99999",
        "http://localhost:x",
        "http://a..b",
        "http://localhost:8080#here",
        "http://localhost:8080/?a=b",
    ],
)
async def test_a_wrong_url_is_one_line(url: str) -> None:
    with pytest.raises(ChronicleError) as caught:
        await endpoint(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["http://localhost:8080", "http://localhost:8080/", " http://localhost:8080// "])
async def test_publish_is_added_to_the_url(base: str) -> None:
    assert str(await endpoint(base)) == "http://localhost:8080/publish"


@pytest.mark.parametrize(
    "options",
    [
        Options("http://x", event_count=-1),
        Options("http://x", batch_size=0),
        Options("http://x", concurrency=0),
        Options("http://x", duplicate_ratio=1),
        Options("http://x", duplicate_ratio=float("nan")),
    ],
)
def test_numbers_that_mean_nothing_are_refused(options: Options) -> None:
    with pytest.raises(ChronicleError):
        check(options)
