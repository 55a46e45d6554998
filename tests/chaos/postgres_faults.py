"""PostgreSQL that is up and does not do what is wanted of it: sessions lost and refused, locks, deadlocks."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg

from .faults import Scene, fault

SERVICES = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'chronicle-%' ORDER BY pid"
MOST_SESSIONS = 200


@fault("sessions terminated", "postgres", "a batch lost with its session; two writers in one lane")
def _terminated(scene: Scene) -> Iterator[str]:
    with scene.system.session() as connection:
        pids = _services(connection)
        some = scene.chance.sample(pids, min(len(pids), scene.chance.randrange(1, 4)))
        for pid in some:
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])
    yield f"pg_terminate_backend of {some}"


@fault(
    "sessions terminated again and again", "postgres", "a batch given up, or put off, for a fault that is not its own"
)
def _terminated_again(scene: Scene) -> Iterator[str]:
    times, pause = scene.chance.randrange(10, 30), scene.chance.uniform(0.02, 0.3)
    with scene.system.session() as connection:
        for _ in range(times):
            _terminate_all(connection)
            time.sleep(pause)
    yield f"all sessions terminated {times} times, every {pause:.2f} s"


@fault("one backend killed", "postgres", "the same, while all of PostgreSQL recovers from it")
def _backend_killed(scene: Scene) -> Iterator[str]:
    with scene.system.session() as connection:
        pid = scene.chance.choice(_services(connection))
    scene.system.signal([pid], signal.SIGKILL)
    yield f"SIGKILL to backend {pid}"


@fault("connections of postgres used up", "postgres", "a service that gives up where it gets no session")
def _used_up(scene: Scene) -> Iterator[str]:
    with ExitStack() as held:
        first = held.enter_context(scene.system.session())
        taken = _take_all(scene, held)
        _terminate_all(first)
        taken += _take_all(scene, held)
        yield f"{taken} sessions taken, those of the services terminated"


def _take_all(scene: Scene, held: ExitStack) -> int:
    """Takes sessions until PostgreSQL refuses one; how many."""
    for count in range(MOST_SESSIONS):
        try:
            held.enter_context(scene.system.session())
        except psycopg.OperationalError:
            return count
    return MOST_SESSIONS


@fault("postgres reads only", "postgres", "a failover that is taken for an error of ours")
def _reads_only(scene: Scene) -> Iterator[str]:
    with scene.system.session() as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER DATABASE chronicle SET default_transaction_read_only = on")
        _terminate_all(connection)
        try:
            yield "as a standby does"
        finally:
            connection.execute("ALTER DATABASE chronicle RESET default_transaction_read_only")
            _terminate_all(connection)


@fault("outbox locked", "postgres", "a lock without a deadline; an answer that does not wait for the outbox")
def _outbox_locked(scene: Scene) -> Iterator[str]:
    yield from _locked(scene, "LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")


@fault("counters locked", "postgres", "events that can be seen before they are counted")
def _counters_locked(scene: Scene) -> Iterator[str]:
    yield from _locked(scene, "LOCK TABLE stats IN SHARE ROW EXCLUSIVE MODE")


def _locked(scene: Scene, statement: str) -> Iterator[str]:
    with scene.system.session() as connection, connection.transaction():
        connection.execute(statement)
        yield statement


@fault("deadlock", "postgres", "a transaction that PostgreSQL breaks off and nobody tries again")
def _deadlock(scene: Scene) -> Iterator[str]:
    with scene.system.session() as connection, connection.transaction():
        connection.execute("SET LOCAL deadlock_timeout = '20s'")  # it is a service that has to give way
        connection.execute("LOCK TABLE processed_events, stats IN SHARE ROW EXCLUSIVE MODE")
        with suppress(psycopg.errors.LockNotAvailable):
            connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        yield "processed_events, stats and outbox locked, in the order in which no service does"


@fault("deadlock storm", "traffic", "inserts in the order of the request; a conflict judged too early")
def _storm(scene: Scene) -> Iterator[str]:
    scene.traffic.storm()
    yield "8 publishers, the same keys, each in an order of its own"


def _services(connection: psycopg.Connection[Any]) -> list[int]:
    """The backends that serve ChronicleWeaver."""
    return [row[0] for row in connection.execute(SERVICES)]


def _terminate_all(connection: psycopg.Connection[Any]) -> None:
    for pid in _services(connection):
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
