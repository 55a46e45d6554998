"""Subscribers on a real server: heartbeats, slow readers, how many there may be, PostgreSQL away, the end."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
import uvicorn
from given import event, receive
from servers import eventually

from chronicle import connections, database
from chronicle import http as ours
from chronicle.settings import Settings
from chronicle.up import ports
from projector.projection import project
from projector.sequencer import number
from query import feed
from query.app import create_app


@contextmanager
def serving(url: str) -> Iterator[int]:
    """The port of the query service over a database; it is told to stop in the end."""
    with running(url) as (_, port):
        yield port


@contextmanager
def running(url: str) -> Iterator[tuple[ours.Server, int]]:
    """The same, and the server."""
    app = create_app(Settings(), url)
    config = uvicorn.Config(
        app, http=connections.Connection, ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=3
    )
    listener = ports.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = ours.Server(config, listener)
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    try:
        yield server, port
    finally:
        server.should_exit = True
        thread.join()


class Subscriber:
    """One connection to the stream."""

    def __init__(self, port: int, query: str = "", method: str = "GET") -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._http.request(method, f"/events/stream{query}")
        self.answer = self._http.getresponse()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self._http.close()

    def asked_again(self, method: str, path: str) -> int:
        """The status of another request on the same connection."""
        self._http.request(method, path)
        return self._http.getresponse().status

    def block(self) -> list[str]:
        """The next message or comment, as lines; empty at the end of the stream."""
        lines: list[str] = []
        while (line := self.answer.readline().decode()) and line != "\n":
            lines.append(line.removesuffix("\n"))
        return lines

    def event_id(self) -> str:
        """The id of the next event."""
        while block := self.block():
            if block[0].startswith("data: "):
                return block[0].split('"event_id":"')[1].split('"')[0]
        raise AssertionError("the stream ended")


async def store(url: str, *events: dict[str, object]) -> None:
    """The events are received, projected and have their places."""
    batch_ids = await receive(url, list(events))
    with database.connect(url, "projector") as connection:
        project(connection, batch_ids, 0)
        number(connection)


async def test_events_come_to_all_who_listen(database_url: str) -> None:
    with serving(database_url) as port, ExitStack() as held:
        all_of_them = [held.enter_context(Subscriber(port)) for _ in range(20)]
        some = held.enter_context(Subscriber(port, "?topic=u&topic=v"))
        assert {tuple(each.block()) for each in [*all_of_them, some]} == {("id: 0", "retry: 1000")}
        await store(database_url, event("a"), event("b", topic="u"))
        assert [[each.event_id() for _ in range(2)] for each in all_of_them] == [["a", "b"]] * 20
        assert some.event_id() == "b"


async def test_who_is_idle_gets_a_heartbeat_that_carries_the_progress(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 0.3)
    with serving(database_url) as port, Subscriber(port, "?topic=other") as subscriber:
        assert subscriber.block() == ["id: 0", "retry: 1000"]
        assert subscriber.block() == [": waiting", "id: 0"]
        await store(database_url, event("a"))
        eventually(lambda: subscriber.block() == [": waiting", f"id: {2 * 65536}"])
        with Subscriber(port) as later:
            assert later.block()[0] == f"id: {2 * 65536}"


async def test_one_poll_serves_all_and_none_runs_without_subscribers(
    database_url: str, db: psycopg.Connection[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    look = feed.Feed._look

    async def counted(self: feed.Feed) -> int:
        asked.append(time.monotonic())
        return await look(self)

    monkeypatch.setattr(feed.Feed, "_look", counted)
    with serving(database_url) as port:
        with ExitStack() as held:
            for _ in range(30):
                held.enter_context(Subscriber(port)).block()
            before = len(asked)
            eventually(lambda: len(asked) >= before + 10)
            assert asked[before + 9] - asked[before] > 0.7 * 9 * feed.POLL_SECONDS
        eventually(lambda: time.monotonic() - asked[-1] > 5 * feed.POLL_SECONDS)


async def test_subscribers_get_what_comes_after_postgresql_refused_to_answer(
    database_url: str, db: psycopg.Connection[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []
    look = feed.Feed._look

    async def noted(self: feed.Feed) -> int:
        try:
            return await look(self)
        except psycopg.Error as error:
            refused.append(error)
            raise

    monkeypatch.setattr(feed.Feed, "_look", noted)
    with serving(database_url) as port, Subscriber(port) as subscriber:
        subscriber.block()
        db.execute("ALTER TABLE stream RENAME TO hidden")
        db.execute("CREATE VIEW stream AS SELECT 1 / 0 AS sequence")
        db.execute("GRANT SELECT ON stream TO chronicle_query")
        eventually(lambda: len(refused) >= 2)
        db.execute("DROP VIEW stream")
        db.execute("ALTER TABLE hidden RENAME TO stream")
        await store(database_url, event("a"))
        assert subscriber.event_id() == "a"


async def test_more_subscribers_than_there_may_be_are_told_to_come_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_SUBSCRIBERS", 3)
    with serving(database_url) as port:
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(Subscriber(port)).block()
            with Subscriber(port) as refused:
                assert refused.answer.status == 503
                assert refused.answer.headers["retry-after"]

        def taken() -> bool:
            with Subscriber(port) as next_one:
                return next_one.answer.status == 200

        eventually(taken)


async def test_head_is_answered_at_once_and_without_a_body(database_url: str) -> None:
    with serving(database_url) as port, Subscriber(port, method="HEAD") as subscriber:
        assert subscriber.answer.status == 200
        assert subscriber.answer.headers["content-type"].startswith("text/event-stream")
        assert "content-length" not in subscriber.answer.headers
        assert subscriber.answer.read() == b""
        assert subscriber.asked_again("GET", "/health") == 200  # so the first answer has ended


async def test_while_postgresql_cannot_be_used_subscribers_wait_and_new_ones_get_a_503(
    database_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 0.3)
    with serving(database_url) as port, Subscriber(port) as subscriber:
        subscriber.block()
        with out_of_reach(postgres_url, database_url):
            with Subscriber(port) as refused:
                assert refused.answer.status == 503
            assert subscriber.block() == [": waiting", "id: 0"]
        await store(database_url, event("a"))
        assert subscriber.event_id() == "a"


@contextmanager
def out_of_reach(postgres_url: str, url: str) -> Iterator[None]:
    """Nobody can connect to the database, and nobody is connected."""
    name = url.rsplit("/", 1)[1]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def silent(port: int) -> socket.socket:
    """A subscriber to everything that has read the first bytes, and goes on reading when it is told to."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 2**10)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"GET /events/stream?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


@pytest.fixture
async def long_history(database_url: str) -> str:
    """A database with 38 MB of events, more than the kernel takes for a reader; the first is a large one."""
    large, payload = {"text": "x" * 14 * 2**20}, {"text": "x" * 20_000}
    await store(database_url, event("large", payload=large), *(event(f"{n}", payload=payload) for n in range(1200)))
    return database_url


async def test_who_reads_nothing_is_cut_and_little_is_held_for_it(
    long_history: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SILENT_SECONDS", 2.0)
    read_pages = counted_pages(monkeypatch)
    with running(long_history) as (server, port), silent(port):
        eventually(lambda: not server.server_state.connections, timeout=20)
        assert 0 < read_pages() * feed.stream.PAGE_BYTES < 12 * 2**20


def counted_pages(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pages have been read."""
    pages = []
    read = feed.stream.read

    async def counted(*arguments: object) -> feed.Page:
        pages.append(arguments)
        return await read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(feed.stream, "read", counted)
    return lambda: len(pages)


async def test_who_reads_slowly_but_steadily_is_not_cut(long_history: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_SECONDS", 2.0)
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 2.0)
    with serving(long_history) as port, silent(port) as connection:
        began, received = time.monotonic(), 0
        while received < 12 * 2**20:
            received += len(connection.recv(65_536))
            await asyncio.sleep(0.05)
        assert time.monotonic() - began > 2 * connections.ANSWER_SECONDS


async def test_streams_end_when_the_server_stops(database_url: str) -> None:
    with ExitStack() as held:
        with serving(database_url) as port:
            subscribers = [held.enter_context(Subscriber(port)) for _ in range(10)]
            for each in subscribers:
                each.block()
            began = time.monotonic()
        assert time.monotonic() - began < 1.5
        assert [each.block() for each in subscribers] == [[]] * 10  # and not IncompleteRead


async def test_the_stop_does_not_wait_for_who_does_not_read(long_history: str) -> None:
    with ExitStack() as held:
        with serving(long_history) as port:
            held.enter_context(silent(port))
            began = time.monotonic()
        assert time.monotonic() - began < 5
