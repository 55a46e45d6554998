"""The publisher against a server that misbehaves: nothing is lost, whatever the server does."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from publisher_service import Reply, nobody_listening, running
from rich.console import Console

from chronicle.errors import ChronicleError
from publisher.run import Options, publish


class Run(NamedTuple):
    """What one run of the publisher gave."""

    code: int
    text: str
    waits: list[float]
    spilled: list[bytes]

    def number(self, name: str) -> float:
        """A row of the final table."""
        row = next(line for line in self.text.splitlines() if line.strip().startswith(f"{name} "))
        return float(row.split()[-1])


def publishing(url: str, directory: Path, lines: list[bytes] | None = None, **options: object) -> Run:
    """Runs the publisher, with waits that pass at once, on generated events or on a file of lines."""
    waits: list[float] = []
    screen = StringIO()

    async def pass_at_once(seconds: float) -> None:
        waits.append(seconds)

    file = spill = None
    if lines is not None:
        file = directory / "events.jsonl"
        file.write_bytes(b"\n".join(lines))
    spill = directory / "kept.rejected.jsonl"
    chosen = Options(url, file=file, rejected=spill, **options)  # type: ignore[arg-type]
    code = publish(chosen, sleep=pass_at_once, console=Console(file=screen, width=200))
    spilled = spill.read_bytes().splitlines() if spill.exists() else []
    return Run(code, screen.getvalue(), waits, spilled)


def numbered_lines(count: int) -> list[bytes]:
    return [b'{"id": %d}' % number for number in range(count)]


def test_a_generated_run_is_accepted_whole(tmp_path: Path) -> None:
    with running() as service:
        run = publishing(service.url, tmp_path, event_count=200, batch_size=6)
    assert run.code == 0
    assert (run.number("sent"), run.number("accepted"), run.number("failed")) == (200, 200, 0)
    assert len(service.accepted) == 200
    assert len(set(service.accepted)) == 140
    assert service.requests == 34
    assert not list(tmp_path.iterdir())
    assert 0 < run.number("latency p50, ms") <= run.number("latency p99, ms")


def test_a_line_reaches_the_service_as_the_very_bytes_of_the_file(tmp_path: Path) -> None:
    lines = [b'{"n": 1e300,  "m":1.10, "s":"\\u00e9"}', '{"é":1}'.encode(), b'{"a":1,"a":2}\r']
    with running() as service:
        assert publishing(service.url, tmp_path, lines).code == 0
        assert service.bodies.get_nowait() == b'{"events":[' + b",".join(lines) + b"]}"


def test_nothing_to_send_is_a_success(tmp_path: Path) -> None:
    with nobody_listening() as url:
        assert publishing(url, tmp_path, event_count=0).code == 0
        assert publishing(url, tmp_path, [b"", b" "]).code == 0


FAULTS = (
    Reply(500),
    Reply(502, body={"detail": "no upstream"}),
    Reply(503, headers="retry-after: 3\r\n"),
    Reply(429, headers="retry-after: nonsense\r\n"),
    Reply(404),
    Reply(422, body={"detail": [{"loc": ["body"], "msg": "what?"}]}),
    Reply(before_body=True),
    Reply(500, silent=True),
    Reply(200, silent=True),
)
"""One of every kind; the last accepts the events and then breaks the connection in place of the answer."""

LINE = st.sampled_from([b'{"id": %d}', b'{"id": %d}', b'{"id": %d, "bad": 1}', b"[%d]", b"\xff%d", b"", b" "])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=60), batch=st.integers(1, 12), trouble=st.floats(0, 1), seed=st.integers())
def test_every_line_ends_accepted_or_in_the_spill_file(
    tmp_path: Path, lines: list[bytes], batch: int, trouble: float, seed: int
) -> None:
    numbered = [line % number if b"%d" in line else line for number, line in enumerate(lines)]
    rng = random.Random(seed)
    for old in tmp_path.iterdir():
        old.unlink()
    with running(lambda _: rng.choice(FAULTS) if rng.random() < trouble else Reply()) as service:
        run = publishing(service.url, tmp_path, numbered, batch_size=batch)
    wanted = {line for line in numbered if line.strip()}
    accepted = {text.encode() for text in service.accepted}
    assert accepted | set(run.spilled) == wanted
    assert max(Counter(run.spilled).values(), default=0) <= 1
    assert {line for line in wanted if b"id" not in line or b"bad" in line} <= set(run.spilled)
    assert run.number("accepted") + run.number("failed") == len(wanted)
    assert run.number("failed") == len(run.spilled)
    assert run.code == (1 if run.spilled else 0)


def test_only_the_bad_events_of_a_refused_request_are_kept_back(tmp_path: Path) -> None:
    lines = numbered_lines(7)
    lines[2:2] = [b'{"id": 90, "bad": 1}', b"not json", b""]
    lines[5] = b'{"id": 91, "bad": 1}'
    with running() as service:
        run = publishing(service.url, tmp_path, lines, batch_size=100, concurrency=1)
    assert run.code == 1
    assert set(run.spilled) == {lines[2], lines[3], lines[5]}
    assert len(service.accepted) == 6
    assert run.number("retries") == 0
    assert "2 events: 422 bad: is bad (lines 3, 6)" in run.text
    assert "1 event: not a valid JSON object (line 4)" in run.text
    assert f"chronicle publish --file {tmp_path}/kept.rejected.jsonl" in run.text


def test_a_file_of_bad_events_costs_no_request_for_each_pair_of_them(tmp_path: Path) -> None:
    lines = [b'{"id": %d, "bad": 1}' % number for number in range(7)]
    with running() as service:
        assert len(publishing(service.url, tmp_path, lines).spilled) == 7
        bodies = [service.bodies.get_nowait() for _ in range(service.requests)]
    assert sum(body.count(b"bad") for body in bodies) <= 25


def test_a_request_that_is_too_large_is_split(tmp_path: Path) -> None:
    with running() as service:
        run = publishing(service.url, tmp_path, numbered_lines(100), batch_size=100)
    assert run.code == 0
    assert len(service.accepted) == 100


def test_a_single_event_that_is_too_large_is_kept(tmp_path: Path) -> None:
    with running(lambda _: Reply(413, body={"detail": "too large"})) as service:
        run = publishing(service.url, tmp_path, numbered_lines(3))
    assert sorted(run.spilled) == numbered_lines(3)
    assert service.requests == 5
    assert run.number("retries") == 0


def test_a_request_stays_below_8_mib_and_a_larger_line_goes_alone(tmp_path: Path) -> None:
    sizes = (3, 3, 3, 10, 1, 1)
    lines = [b'{"id": %d, "x": "%s"}' % (number, b"x" * (size * 2**20)) for number, size in enumerate(sizes)]
    with running() as service:
        assert publishing(service.url, tmp_path, lines, concurrency=1).code == 0
        bodies = [service.bodies.get_nowait() for _ in range(service.requests)]
    assert [body.count(b"id") for body in bodies] == [2, 1, 1, 2]
    assert [len(body) > 8 * 2**20 for body in bodies] == [False, False, True, False]


def test_a_failing_request_is_tried_5_times_with_growing_waits_and_then_kept(tmp_path: Path) -> None:
    with running(lambda _: Reply(500)) as service:
        run = publishing(service.url, tmp_path, numbered_lines(3))
    assert service.requests == 5
    assert run.number("retries") == 4
    assert run.spilled == numbered_lines(3)
    for wait, least in zip(run.waits, (0.5, 1, 2, 4), strict=True):
        assert least <= wait <= least + 0.5


@pytest.mark.parametrize("in_seconds", [True, False])
def test_retry_after_is_honoured(tmp_path: Path, in_seconds: bool) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    header = f"retry-after: {'20' if in_seconds else date}\r\n"
    with running(lambda number: Reply(503, headers=header) if number == 0 else Reply()) as service:
        run = publishing(service.url, tmp_path, numbered_lines(1))
    assert run.code == 0
    assert len(run.waits) == 1
    assert 15 < run.waits[0] <= 20.5


def test_another_4xx_is_never_tried_again(tmp_path: Path) -> None:
    with running(lambda _: Reply(400, body={"detail": "no"})) as service:
        run = publishing(service.url, tmp_path, numbered_lines(3))
    assert service.requests == 1
    assert run.spilled == numbered_lines(3)
    assert "3 events: 400 no (lines 1, 2, 3)" in run.text


def test_a_server_that_says_200_to_anything_accepted_nothing(tmp_path: Path) -> None:
    with running(lambda _: Reply(201, body="hello")) as service:
        assert publishing(service.url, tmp_path, numbered_lines(3)).code == 1


def test_a_service_that_is_gone_is_given_up_and_what_was_kept_can_be_sent_later(tmp_path: Path) -> None:
    with nobody_listening() as url:
        run = publishing(url, tmp_path, event_count=3000, batch_size=10)
    assert run.code == 1
    assert len(run.waits) <= 4 * (2 * 4 + 3)
    assert "stopped early: 8 requests in a row failed 5 times each" in run.text
    assert run.number("failed") == len(run.spilled) == 3000
    again = tmp_path / "again"
    again.mkdir()
    with running() as service:
        assert publishing(service.url, again, run.spilled, batch_size=7).code == 0
    assert Counter(service.accepted) == Counter(json.dumps(json.loads(line)) for line in run.spilled)


def test_a_spill_file_is_never_written_over(tmp_path: Path) -> None:
    with nobody_listening() as url:
        for _ in range(3):
            publishing(url, tmp_path, numbered_lines(2))
    kept = [tmp_path / name for name in ("kept.rejected.jsonl", "kept-2.rejected.jsonl", "kept-3.rejected.jsonl")]
    assert [path.read_bytes() for path in kept] == [b'{"id": 0}\n{"id": 1}\n'] * 3


def test_what_cannot_begin_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with running() as service:
        for wrong in (
            Options(service.url, file=tmp_path / "missing.jsonl"),
            Options(service.url, file=tmp_path),
            Options(service.url, rejected=tmp_path / "missing" / "x.rejected.jsonl"),
            Options("http://nothing.invalid"),
        ):
            with pytest.raises(ChronicleError):
                publish(wrong)
    assert service.requests == 0
