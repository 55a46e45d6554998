"""QUERY_DATABASE_URL: the query service reads a streaming replica, which may lag behind, stand still or be away."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psycopg
import pytest
from api import Api, event, fresh, ids, series
from servers import Stack, eventually, start_with, stop_server
from subscriber import Subscriber

from chronicle import database
from chronicle.up import binaries, children, cluster
from chronicle.up.privileges import account_for
from chronicle.up.servers import Postgres, start

pytestmark = pytest.mark.skipif("CHRONICLE_TEST_URL" in os.environ, reason="this test makes a replica of its own")


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Postgres]:
    """The PostgreSQL that is written to."""
    tmp_path.chmod(0o711)
    home = tmp_path / "primary"
    home.mkdir(mode=0o711)
    server = Postgres(home)
    start(server)
    yield server
    stop_server(server)


@pytest.fixture
def replica(primary: Postgres, tmp_path: Path) -> Iterator[Postgres]:
    """A hot standby that follows it."""
    home = tmp_path / "replica"
    shutil.copytree(primary.home, home, ignore=shutil.ignore_patterns("postgres", "logs"))
    home.chmod(0o711)
    server = Postgres(home)
    server.data.mkdir(mode=0o700)
    folder, _ = binaries.postgres()
    account = account_for(server.data, [folder / "pg_basebackup"])
    if account:
        os.chown(server.data, account.uid, account.gid)
    copying = children.spawn(
        [folder / "pg_basebackup", "--pgdata", server.data, "--dbname", primary.url, "--write-recovery-conf"],
        environment=cluster.ENVIRONMENT,
        folder=cluster.FOLDER,
        death_signal=signal.SIGTERM,
        log=server.log.begin(),
        account=account,
    )
    assert copying.wait(60) == 0, server.log.tail()
    follow(server)
    yield server
    stop_server(server)


def follow(server: Postgres) -> None:
    """Starts the standby and waits until it can be read."""
    start_with(server, **cluster.settings(server.data))
    with psycopg.connect(server.url) as connection:
        assert database.value(connection, "SELECT pg_is_in_recovery()")


@pytest.fixture
def stack(primary: Postgres, replica: Postgres, tmp_path: Path) -> Iterator[Stack]:
    """A system that writes to the one and reads from the other."""
    stack = Stack(tmp_path / "stack", env={"DATABASE_URL": primary.url, "QUERY_DATABASE_URL": replica.url})
    stack.start()
    yield stack
    stack.close()


def test_what_is_read_comes_from_the_replica_and_is_whole(stack: Stack, replica: Postgres) -> None:
    topic = fresh()
    with Api(stack.url) as api, psycopg.connect(replica.url, autocommit=True) as connection:
        api.publish_settled(topic, *series(topic, 500), *series(topic, 100))
        assert api.events(topic=topic, limit=1)["count"] == 500
        assert len(api.records(topic=topic, action="DROPPED")) == 100
        connection.execute("SELECT pg_wal_replay_pause()")
        later = event(topic, "later")
        api.publish(later)  # the replica does not see it yet
        assert api.stats()["received"] == 600
        assert api.audit(event_id="later")["count"] == 0
        connection.execute("SELECT pg_wal_replay_resume()")
        eventually(lambda: "later" in ids(api.events(topic=topic, event_id="later")["events"]))


def test_subscribers_of_the_replica_get_everything_in_order_also_after_it_was_away(
    stack: Stack, replica: Postgres
) -> None:
    topic = fresh()
    with Api(stack.url) as api, Subscriber(stack.url, [topic], "now") as subscriber:
        for part in range(3):
            api.publish(*series(topic, 200, f"{part}-"))
            subscriber.until(lambda part=part: len(subscriber.messages) >= 200 * (part + 1))
            stop_server(replica)
            follow(replica)
    assert subscriber.ids() == [f"{part}-{n}" for part in range(3) for n in range(200)]
    assert subscriber.connections == 1


def test_without_the_replica_publishing_goes_on_and_reads_say_503(stack: Stack, replica: Postgres) -> None:
    topic = fresh()
    with Api(stack.url) as api:
        stop_server(replica)
        api.publish(event(topic, "meanwhile"))
        answer = api.raw("/stats")
        assert answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE
        assert answer.headers["retry-after"]
        follow(replica)
        eventually(lambda: api.raw("/stats").status_code == httpx2.codes.OK, timeout=30)
        eventually(lambda: ids(api.events(topic=topic)["events"]) == ["meanwhile"], timeout=30)


def test_a_read_that_the_replica_breaks_off_is_asked_again(stack: Stack, primary: Postgres, replica: Postgres) -> None:
    topic = fresh()
    with (
        Api(stack.url) as api,
        psycopg.connect(primary.url, autocommit=True) as writing,
        psycopg.connect(replica.url, autocommit=True) as standby,
    ):
        api.publish_settled(topic, *series(topic, 50))
        standby.execute("ALTER SYSTEM SET max_standby_streaming_delay = 0")
        standby.execute("SELECT pg_reload_conf()")

        counts = []

        def broken_off() -> int:
            """How many reads of processed_events were, by the standby's own count: only /events reads it."""
            with writing.transaction():
                writing.execute("LOCK TABLE processed_events IN ACCESS EXCLUSIVE MODE")
            counts.append(api.raw("/events", {"topic": topic}).json().get("count"))
            return int(database.value(standby, "SELECT sum(confl_lock) FROM pg_stat_database_conflicts"))

        eventually(broken_off, timeout=60, every=0)
        assert set(counts) == {50}
