"""The answers as pydantic models, for the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field


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
    """One time that the event was received; `outcome` is null in flight. `payload` is null where it
    equals the stored one; of conflicts also where those before it have 32 MiB already, or stand in batches of 512."""

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


class Worker(BaseModel):
    """A projector worker, by its last heartbeat; ages in seconds."""

    worker_id: int
    process: str
    state: str
    heartbeat_age: float
    projected_age: float | None


class Backlog(BaseModel):
    """What is in flight; `batches` is counted up to a bound."""

    batches: int
    events: int
    oldest_seconds: float


class Broker(BaseModel):
    """The stream of tickets."""

    status: Literal["up", "away", "not known"]
    tickets: int | None = None
    pending: int | None = None


class Unsequenced(BaseModel):
    """What is projected and has no place in the stream yet."""

    oldest_seconds: float


class Checks(BaseModel):
    """What /ready?verbose looked at."""

    database: dict[str, str]
    schema_: dict[str, str] = Field(alias="schema")
    durability: dict[str, list[str]]
    broker: Broker
    backlog: Backlog
    unsequenced: Unsequenced
    workers: list[Worker]


class Ready(BaseModel):
    """An answer of /ready; all but the status with `verbose` alone."""

    status: Literal["ready", "degraded"]
    problems: list[str] | None = None
    checks: Checks | None = None
