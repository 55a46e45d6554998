"""The answers as pydantic models, for the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel


class Event(BaseModel):
    """A processed event."""

    event_id: str
    topic: str
    source: str
    payload: dict[str, Any]
    timestamp: datetime


class EventPage(BaseModel):
    """An answer of /events."""

    count: int
    events: list[Event]
    next_cursor: str | None


class AuditRecord(BaseModel):
    """One thing that happened to one event."""

    id: int
    event_id: str
    topic: str
    source: str
    action: str
    worker_id: int | None
    reason: str | None
    created_at: datetime


class AuditPage(BaseModel):
    """An answer of /audit."""

    count: int
    audit_logs: list[AuditRecord]
    next_cursor: str | None


class Stats(BaseModel):
    """The books."""

    received: int
    unique_processed: int
    duplicated_dropped: int
    failed: int
    in_flight: int
    topics: list[str]
    uptime: int


class Counters(BaseModel):
    """How many events had which fact."""

    received: int
    queued: int
    processed: int
    dropped: int
    failed: int


class Summary(BaseModel):
    """An answer of /audit/summary."""

    total_received: int
    total_queued: int
    total_processed: int
    total_dropped: int
    total_failed: int
    by_topic: dict[str, Counters]
    by_worker: dict[str, Counters]


class Step(BaseModel):
    """One fact about one sighting; `waited_ms`: since the one before."""

    action: str
    recorded_at: datetime
    waited_ms: float | None
    worker_id: int | None
    attempt: int
    reason: str | None


class Sighting(BaseModel):
    """One time that the event was received; `payload` is null where it equals the stored one, `outcome` in flight."""

    batch_id: UUID
    position: int
    source: str
    timestamp: datetime
    payload: dict[str, Any] | None
    request_id: str | None
    outcome: str | None
    facts: list[Step]


class Trail(BaseModel):
    """An answer of /events/{topic}/{event_id}/trail; `count` is how many sightings there are."""

    event_id: str
    topic: str
    count: int
    sightings: list[Sighting]
