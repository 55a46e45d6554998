"""What the command service counts: once a commit, once a dispatch."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from chronicle.metrics import COUNTS, SECONDS

RECEIVED = Counter("chronicle_received_events", "Events that are committed to the ledger.")
BATCH_EVENTS = Histogram("chronicle_receive_batch_events", "Events that one commit accepted.", buckets=COUNTS)
COMMIT_REQUESTS = Histogram("chronicle_receive_commit_requests", "Requests committed together.", buckets=COUNTS)
RECEIVE_SECONDS = Histogram(
    "chronicle_receive_duration_seconds", "A commit, until it is durable, tries included.", buckets=SECONDS
)
RECEIVE_RETRIES = Counter("chronicle_receive_retries", "Commits tried again, since their outcome was unknown.")

DISPATCH_BATCHES = Histogram("chronicle_dispatch_batches", "Tickets sent together.", buckets=COUNTS)
DISPATCH_SECONDS = Histogram("chronicle_dispatch_duration_seconds", "Sending tickets.", buckets=SECONDS)
DISPATCH_FAILURES = Counter(
    "chronicle_dispatch_failures",
    "Tickets or QUEUED facts left to the workers, since Redis or PostgreSQL did not take them.",
)


def received(events: int, requests: int, seconds: float) -> None:
    """One commit."""
    RECEIVED.inc(events)
    BATCH_EVENTS.observe(events)
    COMMIT_REQUESTS.observe(requests)
    RECEIVE_SECONDS.observe(seconds)


def dispatched(batches: int, seconds: float) -> None:
    """Tickets that were sent."""
    DISPATCH_BATCHES.observe(batches)
    DISPATCH_SECONDS.observe(seconds)
