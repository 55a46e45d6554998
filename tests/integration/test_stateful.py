"""A model of publish, project, crash, redeliver, lose Redis and rebuild in any order, against the real thing."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any
from uuid import UUID

import psycopg
import pytest
from given import columns, event, other_database
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from chronicle import broker, database, verify
from chronicle.ledger import RECORD_QUEUED, new_batch_id
from chronicle.rebuild import rebuild
from command.writer import Writer
from projector import worker as projector
from projector.projection import project

PAYLOADS = ['{"n": 1}', '{"n":1.0}', '{"n": 2}', '{"n": "\\u00e9"}', "{}"]
SIGHTINGS = st.tuples(st.sampled_from("abc"), st.sampled_from(["t", "u"]), st.sampled_from(PAYLOADS))
PROCESSED = "SELECT topic, event_id, payload::text, batch_id, position FROM processed_events"
DROPPED = """
SELECT d.topic, d.event_id, d.reason, e.payload::text
FROM dropped_events d JOIN received_events e ON e.batch_id = d.batch_id AND e.position = d.position
"""
BOOKS = "SELECT coalesce(sum(received), 0), coalesce(sum(received - processed - dropped - failed), 0) FROM stats"

Key = tuple[str, str]


class Log(RuleBasedStateMachine):
    """The whole of it over one database; what a user was told is kept in Python."""

    batches = Bundle("batches")

    def __init__(self, url: str, redis_url: str) -> None:
        super().__init__()
        self.url, self.redis_url = url, redis_url
        self.redis = broker.connect(redis_url)
        self.redis.flushall()
        self.look = database.connect(url, "test")
        self.loop = asyncio.Runner()
        self.writer = self.loop.run(Writer.open(url))
        self.workers = [projector.Worker(url, redis_url, threading.Event()) for _ in range(2)]
        self.received: dict[UUID, list[dict[str, Any]]] = {}
        self.winners: dict[Key, tuple[Any, ...]] = {}

    @rule(target=batches, sightings=st.lists(SIGHTINGS, min_size=1, max_size=6), times=st.integers(1, 2))
    def publish(self, sightings: list[tuple[str, str, str]], times: int) -> UUID:
        """A commit whose outcome was lost is run again under its id."""
        batch_id = new_batch_id()
        events = [event(event_id, topic, payload=json.loads(text)) for event_id, topic, text in sightings]
        for _ in range(times):
            self.loop.run(self.writer.record_received(batch_id, columns(*events)))
        self.received[batch_id] = events
        return batch_id

    @rule(batch_id=batches, tickets=st.integers(0, 3), recorded=st.booleans())
    def dispatch(self, batch_id: UUID, tickets: int, recorded: bool) -> None:
        """Also late, doubled, or for a batch that was projected long ago."""
        for _ in range(tickets):
            self.redis.xadd(broker.STREAM, {broker.FIELD: str(batch_id)})
        if recorded:
            self.look.execute(RECORD_QUEUED, {"batch_ids": [batch_id], "lane": self.writer.lane})

    @rule(number=st.integers(0, 1))
    def work(self, number: int) -> None:
        """A step of a worker."""
        self.workers[number].run_once()

    @rule(number=st.integers(0, 1))
    def restart_worker(self, number: int) -> None:
        """Its connection is lost; its worker_id may become another one."""
        self.workers[number].reconnect()

    @rule(batch_ids=st.lists(batches, min_size=1, max_size=3))
    def work_and_die_before_the_acknowledgement(self, batch_ids: list[UUID]) -> None:
        """What it projected stays."""
        with database.connect(self.url, "projector") as connection:
            project(connection, batch_ids, 7)

    @rule(batch_ids=st.lists(batches, min_size=1, max_size=3))
    def work_and_die_in_the_transaction(self, batch_ids: list[UUID]) -> None:
        """What it did is as if it had never been."""
        with database.connect(self.url, "projector") as connection:
            connection.execute("BEGIN")
            project(connection, batch_ids, 8)
            connection.execute("SELECT 1")
            connection.close()

    @rule(entries=st.integers(1, 5))
    def lose_a_reply(self, entries: int) -> None:
        """Tickets go to a consumer that never works on them."""
        broker.ensure_group(self.redis)
        self.redis.xreadgroup(broker.GROUP, "lost", {broker.STREAM: ">"}, count=entries)

    @rule(everything=st.booleans())
    def lose_redis(self, everything: bool) -> None:
        """FLUSHALL, or the stream alone."""
        if everything:
            self.redis.flushall()
        else:
            self.redis.delete(broker.STREAM)

    @rule()
    def rebuild(self) -> None:
        """Nobody is the wiser."""
        rebuild(self.url)

    @invariant()
    def the_books_balance(self) -> None:
        """Against what was published, and against the outbox."""
        received, in_flight = self.look.execute(BOOKS).fetchone() or (0, 0)
        assert received == sum(map(len, self.received.values()))
        assert in_flight == database.value(self.look, "SELECT coalesce(sum(event_count), 0) FROM outbox")

    @invariant()
    def a_first_sighting_stays_the_first(self) -> None:
        """Whatever crashes, is repeated or rebuilt: who won once has won, and is what was published."""
        stored = {(topic, event_id): rest for topic, event_id, *rest in self.look.execute(PROCESSED)}
        for key, (payload, batch_id, position) in stored.items():
            published = self.received[batch_id][position - 1]
            assert key == (published["topic"], published["event_id"])
            assert json.loads(payload) == published["payload"]
        assert {key: stored.get(key) for key in self.winners} == self.winners
        self.winners = stored

    def teardown(self) -> None:
        """Faults have stopped: everything is projected, and every invariant holds."""
        try:
            for _ in range(2 * len(self.received) + 2):
                self.workers[0].run_once()
            assert database.value(self.look, "SELECT count(*) FROM outbox") == 0
            self.the_books_balance()
            self.a_first_sighting_stays_the_first()
            self.every_event_has_its_outcome()
            assert [found for found in verify.run(self.url) if found[2]] == []
        finally:
            for worker in self.workers:
                worker.close()
            self.loop.run(self.writer.close())
            self.loop.close()
            self.look.close()
            self.redis.close()

    def every_event_has_its_outcome(self) -> None:
        """One is stored for each key, the others are dropped for the right reason."""
        published = [sighting for events in self.received.values() for sighting in events]
        assert set(self.winners) == {(each["topic"], each["event_id"]) for each in published}
        dropped = self.look.execute(DROPPED).fetchall()
        assert len(self.winners) + len(dropped) == len(published)
        for topic, event_id, reason, payload in dropped:
            same = json.loads(payload) == json.loads(self.winners[topic, event_id][0])
            assert reason == ("duplicate" if same else "conflict")


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_in_any_order_of_things(
    postgres_url: str, template: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "BLOCK_MILLISECONDS", 1)
    monkeypatch.setattr("projector.outbox.OVERDUE_SECONDS", 0.0)
    with psycopg.connect(postgres_url, autocommit=True) as admin:

        def fresh_log() -> Log:
            admin.execute("DROP DATABASE IF EXISTS stateful WITH (FORCE)")
            admin.execute(f"CREATE DATABASE stateful TEMPLATE {template}")
            return Log(other_database(postgres_url, "stateful"), redis_url)

        run_state_machine_as_test(fresh_log, settings=BOUNDS)
        admin.execute("DROP DATABASE IF EXISTS stateful WITH (FORCE)")


BOUNDS = settings(
    max_examples=5,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes: every step is a real one
)
