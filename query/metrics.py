"""/metrics of the query service: its sessions, and what one look at database and broker tells of the whole system."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Gauge, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from query.system import Look, Queue

SESSIONS = Gauge(
    "chronicle_query_sessions_in_use", "Sessions of PostgreSQL that answer requests now.", multiprocess_mode="sum"
)
MOST_SESSIONS = Gauge("chronicle_query_sessions_max", "Sessions of PostgreSQL that may do so.", multiprocess_mode="sum")


def of_database(seen: Look | None) -> Iterator[Metric]:
    """The database's part; None: it is away."""
    yield _gauge("database_up", "Whether the query service gets answers from PostgreSQL.", seen is not None)
    if seen is None:
        return
    events = CounterMetricFamily("chronicle_events", "Events by what became of them.", labels=["outcome"])
    events.add_metric(["received"], seen.received)
    events.add_metric(["processed"], seen.processed)
    events.add_metric(["duplicate"], seen.duplicates)
    events.add_metric(["conflict"], seen.conflicts)
    yield events
    yield _gauge("failed_events", "Events that could not be projected, and were not since.", seen.failed)
    yield _gauge("events_in_flight", "Events received, and not yet processed, dropped or failed.", seen.in_flight)
    yield _gauge("outbox_batches", "Batches in flight.", seen.batches)
    yield _gauge("outbox_oldest_age_seconds", "How long the oldest batch in flight has waited.", seen.oldest)
    unsequenced = "How long the first projection without its place in the stream has waited."
    yield _gauge("unsequenced_oldest_age_seconds", unsequenced, seen.unsequenced)
    yield _gauge("workers_alive", "Projector workers with a fresh heartbeat.", len(seen.alive()))
    yield _gauge("workers_silent", "Projector workers that no longer beat, and said no goodbye.", len(seen.silent()))
    ages = GaugeMetricFamily(
        "chronicle_worker_heartbeat_age_seconds", "How long ago a projector worker last beat.", labels=["worker_id"]
    )
    for worker in seen.workers:
        ages.add_metric([str(worker["worker_id"])], worker["heartbeat_age"])
    yield ages


def of_broker(queue: Queue | None) -> Iterator[Metric]:
    """The broker's part; None: it is away."""
    yield _gauge("broker_up", "Whether the query service gets answers from Redis.", queue is not None)
    if queue:
        yield _gauge("stream_tickets", "Tickets in the stream.", queue.tickets)
        yield _gauge("stream_pending_tickets", "Tickets that workers took and have not acknowledged.", queue.pending)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"chronicle_{name}", documentation, value=value)
