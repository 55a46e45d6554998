"""The publisher as a process: signals, pipes and terminals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from publisher_service import HANG, Reply, Service, running

PROGRAM = """
import sys
from pathlib import Path
from publisher.run import Options, publish
url, file, batch_size = sys.argv[1:]
sys.exit(publish(Options(url, event_count=40, batch_size=int(batch_size), file=Path(file) if file else None)))
"""
LINES = [b'{"id": %d}' % number for number in range(1000)]
DEADLINE = 30


def command(service: Service, file: str = "", batch_size: int = 5) -> list[str]:
    return [sys.executable, "-c", PROGRAM, service.url, file, str(batch_size)]


def kept_in(directory: Path) -> list[bytes]:
    return [line for path in directory.glob("*.rejected.jsonl") for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_was_not_accepted(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(LINES))
    with running(lambda request: HANG if request >= 10 else Reply()) as service:
        publisher = subprocess.Popen(command(service, "events.jsonl"), cwd=tmp_path, stdout=subprocess.PIPE)
        for _ in range(11):
            service.bodies.get(timeout=DEADLINE)
        publisher.send_signal(number)
        output, _ = publisher.communicate(timeout=DEADLINE)
    assert publisher.returncode == code
    kept = set(kept_in(tmp_path))
    assert len(service.accepted) == 50
    assert kept | {text.encode() for text in service.accepted} == set(LINES)
    assert len(kept) <= 950 + 3 * 5, "an answer that was still on its way leaves its outcome unknown; no other does"
    assert b"interrupted" in output
    [file] = tmp_path.glob("*.rejected.jsonl")
    assert file.stat().st_mode & 0o077 == 0


def test_a_live_pipe_is_published_as_it_comes_and_an_interrupt_ends_the_wait_for_more(tmp_path: Path) -> None:
    with running() as service:
        publisher = subprocess.Popen(
            command(service, "-"), cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert publisher.stdin
        publisher.stdin.write(b'{"id": 1}\n{"id": 2}\n{"id')
        assert json.loads(service.bodies.get(timeout=DEADLINE))["events"] == [{"id": 1}, {"id": 2}]
        publisher.stdin.write(b'": 3}\n')
        assert json.loads(service.bodies.get(timeout=DEADLINE))["events"] == [{"id": 3}]
        publisher.send_signal(signal.SIGINT)
        assert publisher.wait(timeout=DEADLINE) == 130
        publisher.communicate()
    assert set(kept_in(tmp_path)) <= {b'{"id": 3}'}, "its answer may not have been there yet, nothing else may be kept"


def test_standard_input_is_read_to_its_end(tmp_path: Path) -> None:
    with running() as service:
        publisher = subprocess.Popen(
            command(service, "-"),
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = publisher.communicate(b"\n".join(LINES), timeout=DEADLINE)
    assert (publisher.returncode, errors) == (0, b"")
    assert sorted(text.encode() for text in service.accepted) == sorted(LINES)
    assert b"\x1b" not in output


@pytest.mark.parametrize("quiet", [{}, {"NO_COLOR": "1"}, {"CI": "true"}])
def test_the_progress_bar_is_for_terminals_of_people_only(tmp_path: Path, quiet: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")}
    with running() as service:
        ours, theirs = pty.openpty()
        publisher = subprocess.Popen(
            command(service), cwd=tmp_path, stdout=theirs, env={**environment, "TERM": "xterm", **quiet}
        )
        os.close(theirs)
        shown = b""
        while chunk := read_terminal(ours):
            shown += chunk
        os.close(ours)
        assert publisher.wait(timeout=DEADLINE) == 0
    assert (b"publishing" in shown) == (not quiet)
    assert b"accepted" in shown


def read_terminal(descriptor: int) -> bytes:
    """What is shown next; nothing once the other side is closed, which Linux tells by an error."""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""
