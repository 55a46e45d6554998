"""What a projector counts: once a transaction, and the lag once a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from uuid import UUID

from prometheus_client import Counter, Histogram

from chronicle.metrics import COUNTS, SECONDS

EVENTS = Counter("chronicle_projected_events", "Events that got an outcome.", ["outcome"])
PROCESSED, DROPPED, FAILED = (EVENTS.labels(outcome) for outcome in ("processed", "dropped", "failed"))
"""From the start, so that the first failed event is an increase. chronicle_events_total says why
others were dropped."""

BATCHES = Histogram("chronicle_project_batches", "Batches that one transaction projected.", buckets=COUNTS)
BATCH_EVENTS = Histogram("chronicle_project_events", "Events that one transaction projected.", buckets=COUNTS)
PROJECT_SECONDS = Histogram("chronicle_project_duration_seconds", "One transaction.", buckets=SECONDS)
PROJECT_FAILURES = Counter("chronicle_project_failures", "Transactions that PostgreSQL refused or broke off.")
LAG = Histogram("chronicle_lag_seconds", "From the commit of a batch to that of its projection.", buckets=SECONDS)


def projected(sizes: Mapping[UUID, int], winners: Iterable[Sized], failed: int, seconds: float) -> None:
    """One transaction. `sizes`: the events of each batch; `winners`: which of them are first sightings."""
    if not sizes:
        return
    events, processed = sum(sizes.values()), sum(map(len, winners))
    PROCESSED.inc(processed)
    FAILED.inc(failed)
    DROPPED.inc(events - processed - failed)
    BATCHES.observe(len(sizes))
    BATCH_EVENTS.observe(events)
    PROJECT_SECONDS.observe(seconds)
