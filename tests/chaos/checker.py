"""Compares what the clients wrote down with what the database, the API and the log say. It trusts none of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from json import loads
from typing import Any

import psycopg

from chronicle import verify

from . import api
from .journal import Event, Journal, Key, Outcome, Request
from .system import System

Place = tuple[str, int]
"""A batch and a position in it: where the ledger keeps one event."""

LEDGER = """
SELECT batch_id::text, position, source, event_id, topic, payload::text, "timestamp" FROM received_events ORDER BY 1, 2
"""

STORED = """
SELECT batch_id::text, position, source, event_id, topic, payload::text, "timestamp" FROM processed_events ORDER BY 1, 2
"""

STEPS = """
SELECT batch_id::text, position, array_agg(action ORDER BY created_at, id), array_agg(reason ORDER BY created_at, id)
FROM audit_log GROUP BY 1, 2
"""


@dataclass
class Found:
    """What the database holds: the events of the ledger by place, the stored ones, and each event's steps."""

    ledger: dict[Place, Event]
    stored: dict[Place, Event]
    steps: dict[Place, tuple[list[str], list[str | None]]]


def violations(journal: Journal, system: System) -> Iterator[str]:
    """Everything that is not as it must be once all is worked off."""
    with system.session() as connection:
        found = _found(connection)
    yield from journal.oddities
    yield from _against_journal(journal, found)
    yield from _against_decisions(found)
    yield from _against_api(system.stack.port, found)
    yield from system.failures()
    for invariant, name, violated in verify.run(system.postgres.url):
        yield from (f"chronicle verify, invariant {invariant}, {name}: {text}" for text in violated)


def _found(connection: psycopg.Connection[Any]) -> Found:
    steps = {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(STEPS)}
    return Found(_events(connection, LEDGER), _events(connection, STORED), steps)


def _events(connection: psycopg.Connection[Any], statement: str) -> dict[Place, Event]:
    return {
        (batch_id, position): comparable(
            {"source": source, "event_id": event_id, "topic": topic, "payload": loads(payload), "timestamp": moment}
        )
        for batch_id, position, source, event_id, topic, payload, moment in connection.execute(statement)
    }


def comparable(event: Event) -> Event:
    """The event with its timestamp as a moment."""
    moment = event["timestamp"]
    return event | {"timestamp": datetime.fromisoformat(moment) if isinstance(moment, str) else moment}


def key(event: Event) -> Key:
    """What an event is recognised by."""
    return event["topic"], event["event_id"]


def _against_journal(journal: Journal, found: Found) -> Iterator[str]:
    """Every ok request is in the ledger, once and whole; no refused one is; an unknown one is whole or absent."""
    by_source: dict[str, list[Place]] = defaultdict(list)
    for place, event in found.ledger.items():
        by_source[event["source"]].append(place)
    for request in journal.requests.values():
        places = by_source.pop(request.id, [])
        wanted = [] if request.outcome is Outcome.REFUSED or _absent(request, places) else request.events
        if not _is_whole(places, found) or [found.ledger[place] for place in places] != list(map(comparable, wanted)):
            yield (
                f"request {request.id} was {request.outcome} ({request.answer}), "
                f"and {len(places)} of its {len(request.events)} events are recorded, in {places[:2]}"
            )
    yield from (f"nobody sent what is recorded under source {source!r}" for source in by_source)


def _absent(request: Request, places: list[Place]) -> bool:
    return request.outcome is Outcome.UNKNOWN and not places


def _is_whole(places: list[Place], found: Found) -> bool:
    """One batch, positions one after the other."""
    return not places or places == [(places[0][0], places[0][1] + n) for n in range(len(places))]


def stored_unknown(journal: Journal, system: System) -> int:
    """How many requests of unknown outcome turned out to be recorded."""
    with system.session() as connection:
        sources = {row[0] for row in connection.execute("SELECT DISTINCT source FROM received_events")}
    return sum(r.outcome is Outcome.UNKNOWN and r.id in sources for r in journal.requests.values())


def _against_decisions(found: Found) -> Iterator[str]:
    """Each key is stored once, as somebody sent it; each event took every step once; the reasons are true."""
    winners = {key(event): event for event in found.stored.values()}
    if len(winners) != len(found.stored):
        yield f"{len(found.stored)} events are stored under {len(winners)} keys"
    if missing := {key(event) for event in found.ledger.values()} ^ winners.keys():
        yield f"stored and recorded keys differ: {sorted(missing)[:3]}"
    for place, event in found.stored.items():
        if found.ledger.get(place) != event:
            yield f"stored from {place} is {event}, and recorded there {found.ledger.get(place)}"
    for place, event in found.ledger.items():
        steps = found.steps.pop(place, ([], []))
        wanted = _wanted_steps(place, event, found, winners)
        if steps != wanted:
            yield f"the steps of {place} are {steps}, and should be {wanted}"
    if found.steps:
        yield f"steps of events that nobody recorded: {list(found.steps)[:3]}"


def _wanted_steps(
    place: Place, event: Event, found: Found, winners: dict[Key, Event]
) -> tuple[list[str], list[str | None]]:
    before = ["RECEIVED", "QUEUED"]
    if place in found.stored:
        return [*before, "PROCESSED"], [None, None, None]
    same = winners.get(key(event), {}).get("payload") == event["payload"]
    return [*before, "DROPPED"], [None, None, "duplicate" if same else "conflict"]


def _against_api(port: int, found: Found) -> Iterator[str]:
    """What the API answers is what the database holds, event by event and record by record."""
    read = [comparable(event) for page in api.pages(port, "/events", limit=1000) for event in page["events"]]
    yield from _differences("/events", read, found.stored.values(), by=key)
    moments = [event["timestamp"] for event in read]
    if moments != sorted(moments, reverse=True):
        yield "/events is not in order"
    stats, summary = api.get(port, "/stats"), api.get(port, "/audit/summary")
    received, processed = len(found.ledger), len(found.stored)
    dropped = received - processed
    wanted = {
        "received": received,
        "unique_processed": processed,
        "duplicated_dropped": dropped,
        "failed": 0,
        "in_flight": 0,
    }
    if {name: stats[name] for name in wanted} != wanted:
        yield f"/stats says {stats}, and it should be {wanted}"
    totals = {"received": received, "queued": received, "processed": processed, "dropped": dropped, "failed": 0}
    if {name: summary[f"total_{name}"] for name in totals} != totals:
        yield f"/audit/summary says {summary}, and it should be {totals}"
    yield from _against_audit(port, found)


def _against_audit(port: int, found: Found) -> Iterator[str]:
    fields = ("event_id", "topic", "source", "action")
    records = [record for page in api.pages(port, "/audit", limit=1000) for record in page["audit_logs"]]
    if len({record["id"] for record in records}) != len(records):
        yield "/audit gives a record twice"
    read = Counter(tuple(record[name] for name in fields) for record in records)
    wanted = Counter(
        (event["event_id"], event["topic"], event["source"], action)
        for place, event in found.ledger.items()
        for action in ("RECEIVED", "QUEUED", "PROCESSED" if place in found.stored else "DROPPED")
    )
    if read != wanted:
        yield f"/audit: missing {list(wanted - read)[:3]}, too many {list(read - wanted)[:3]}"


def _differences(route: str, read: list[Event], stored: Any, by: Any) -> Iterator[str]:
    if sorted(read, key=by) != sorted(stored, key=by):
        absent = {by(event) for event in stored} ^ {by(event) for event in read}
        yield f"{route} gives {len(read)} events, and {len(stored)} are stored; {list(absent)[:3]}"
