"""The services apart, as on several machines: each its own process, over a database and a broker that are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from servers import ROOT, eventually, free_port, own_environment

from chronicle import broker

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def environment(postgres_url: str, redis_url: str) -> Iterator[dict[str, str]]:
    """An empty database and an empty queue."""
    name = f"services_{uuid.uuid4().hex[:8]}"
    parts = conninfo_to_dict(postgres_url)
    url = f"postgresql://{parts['user']}:{parts['password']}@{parts['host']}:{parts['port']}/{name}"
    client = broker.connect(redis_url)
    client.flushall()
    client.close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield own_environment(DATABASE_URL=url, REDIS_URL=redis_url)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Starts a service; all are stopped in the end."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(*words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "chronicle", *words]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(10)


def run(environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "chronicle", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def ready(url: str) -> tuple[int, str]:
    try:
        answer = httpx2.get(f"{url}/ready")
    except httpx2.HTTPError as error:
        raise AssertionError(error) from None
    return answer.status_code, answer.text


def batch(name: str, size: int = 50) -> dict[str, Any]:
    return {
        "events": [
            {"event_id": f"{name}-{n}", "topic": "t", "source": "s", "payload": {}, "timestamp": "2025-01-01T00:00:00Z"}
            for n in range(size)
        ]
    }


def workers_at_work(redis_url: str) -> bool:
    """Whether somebody waits for tickets now."""
    client = broker.connect(redis_url)
    try:
        return any(connection["cmd"] == "xreadgroup" for connection in client.client_list())
    finally:
        client.close()


def urls(start: Start) -> tuple[str, str]:
    """A command and a query service that answer."""
    found = []
    for service in ("command", "query"):
        port = free_port()
        start(service, "--port", str(port))
        found.append(f"http://127.0.0.1:{port}")
        eventually(lambda: ready(found[-1])[0], timeout=30)
    return found[0], found[1]


def test_both_are_not_ready_while_the_schema_is_behind_and_become_so_by_themselves(
    start: Start, environment: dict[str, str]
) -> None:
    command, query = urls(start)
    for url in (command, query):
        status, text = eventually(lambda url=url: "chronicle migrate" in ready(url)[1] and ready(url))
        assert status == 503, text
    assert httpx2.post(f"{command}/publish", json=batch("early", 1)).status_code == 503
    run(environment, "migrate")
    for url in (command, query):
        eventually(lambda url=url: ready(url)[0] == 200)
    assert httpx2.post(f"{command}/publish", json=batch("late", 1)).status_code == 200


def test_what_one_service_accepts_the_others_project_and_show(start: Start, environment: dict[str, str]) -> None:
    run(environment, "migrate")
    command, query = urls(start)
    for _ in range(2):
        start("projector")
    for n in range(40):
        assert httpx2.post(f"{command}/publish", json=batch(f"b{n}")).status_code == 200
    assert httpx2.get(f"{command}/stats").status_code == 404
    assert httpx2.post(f"{query}/publish", json=batch("x")).status_code == 404
    eventually(lambda: httpx2.get(f"{query}/stats").json()["unique_processed"] == 2000, timeout=20)
    assert "/publish" in httpx2.get(f"{query}/openapi.json").json()["paths"]


def test_workers_of_several_projectors_have_worker_ids_of_their_own(start: Start, environment: dict[str, str]) -> None:
    run(environment, "migrate")
    for _ in range(3):
        start("projector")
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        held = "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
        held += " WHERE datname = current_database()) ORDER BY objid"
        eventually(lambda: [row[0] for row in connection.execute(held)] == list(range(12)), timeout=30)


@pytest.mark.timeout(240)
def test_a_projector_that_is_told_to_stop_hands_over_cleanly(start: Start, environment: dict[str, str]) -> None:
    run(environment, "migrate")
    command, query = urls(start)
    projectors = [start("projector")]
    for n in range(60):
        assert httpx2.post(f"{command}/publish", json=batch(f"b{n}", 100)).status_code == 200
        if n % 20 == 10:
            eventually(lambda: workers_at_work(environment["REDIS_URL"]))
            projectors[-1].send_signal(signal.SIGTERM)
            assert projectors[-1].wait(10) == 0
            projectors.append(start("projector"))
    eventually(lambda: httpx2.get(f"{query}/stats").json()["unique_processed"] == 6000, timeout=30)
    client = broker.connect(environment["REDIS_URL"])
    eventually(lambda: client.xlen(broker.STREAM) == 0 and client.xpending(broker.STREAM, broker.GROUP)["pending"] == 0)
    client.close()
    assert "hold" in run(environment, "verify")


NOT_UTF8 = os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    ("words", "variable", "value", "expected"),
    [
        (["migrate"], "DATABASE_URL", "nonsense", "DATABASE_URL cannot be read"),
        (["command"], "DATABASE_URL", "nonsense", "DATABASE_URL cannot be read"),
        (["verify"], "DATABASE_URL", "postgresql://a..b/x", "DATABASE_URL cannot be read"),
        (["projector"], "REDIS_URL", f"redis://{'a' * 70}", "REDIS_URL cannot be read"),
        (["query", "--host", "127.0.0..1"], "CHRONICLE_API_KEYS", "none", "cannot listen on 127.0.0..1"),
        (["status"], "AGGREGATOR_URL", "http://a..b", "is not a URL like http://localhost:8080"),
        (["tail"], "AGGREGATOR_URL", "http://a..b", "is not a URL like http://localhost:8080"),
        (["projector"], "REDIS_URL", "nonsense", "REDIS_URL cannot be read"),
        (["verify"], "DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "Connection refused"),
        (["rebuild"], "DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "Connection refused"),
        (["reset", "--yes"], "DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "Connection refused"),
        (["reset"], "WORKER_COUNT", "4", "chronicle reset --yes"),
        (["status"], "AGGREGATOR_URL", "http://127.0.0.1:1", "nothing answers"),
        (["publish"], "AGGREGATOR_URL", "nonsense", "is not a URL"),
        (["verify"], "CHRONICLE_MAX_EVENT", "5", "CHRONICLE_MAX_EVENT is not a setting"),
        (["migrate"], "DATABASE_URL", NOT_UTF8, "DATABASE_URL cannot be read"),
        (["failed", "list", "--topic", NOT_UTF8], "WORKER_COUNT", "4", "is not UTF-8"),
        (["tail", "t", NOT_UTF8], "WORKER_COUNT", "4", "is not UTF-8"),
        (["tail", "--url", "http://[::1"], "WORKER_COUNT", "4", "is not a URL like http://localhost:8080"),
        (["tail"], "AGGREGATOR_URL", "http://127.0.0.1:abc", "is not a URL like http://localhost:8080"),
        (["tail", *["t" * 1000] * 70], "AGGREGATOR_URL", "http://127.0.0.1:1", "too many"),
        (["tail", "--url", "http://127.0.0.2:1"], "ALL_PROXY", "socks5://127.0.0.1:1", "proxy"),
        (["publish", "--url", "http://127.0.0.2:1"], "ALL_PROXY", "socks5://127.0.0.1:1", "proxy"),
        (["publish", "--url", "https://127.0.0.2:1"], "SSL_CERT_FILE", "/nowhere", "SSL_CERT_FILE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str], variable: str, value: str, expected: str, redis_url: str
) -> None:
    environment = own_environment(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none", REDIS_URL=redis_url)
    command = [sys.executable, "-m", "chronicle", *words]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment | {variable: value}, capture_output=True, text=True, check=False, timeout=30
    )
    assert ended.returncode == 1
    assert expected in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("words", "where"), [("--help", "/dev/full"), ("tail", "&-")])
def test_an_output_that_cannot_be_written_is_said_in_one_line(words: str, where: str, unbuffered: str) -> None:
    environment = own_environment(AGGREGATOR_URL="http://127.0.0.1:1", PYTHONUNBUFFERED=unbuffered)
    command = ["sh", "-c", f'exec "$0" -m chronicle {words} >{where}', sys.executable]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 1
    assert ended.stderr.startswith("chronicle: standard output ")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
