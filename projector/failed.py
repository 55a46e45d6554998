"""`chronicle failed`: events that became FAILED, and trying them again once the cause is gone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any
from uuid import UUID

import psycopg

from chronicle import database, schema, screen
from chronicle.errors import DatabaseAway
from projector.order import announce
from projector.projection import insert_apart, record_outcome, unfold

MOST_SHOWN = 1000

MATCHES = "(%(topic)s::text IS NULL OR topic = %(topic)s) AND (%(event_id)s::text IS NULL OR event_id = %(event_id)s)"

LIST = f"""
SELECT topic, event_id, batch_id, position, error FROM failed_events
WHERE {MATCHES}
ORDER BY topic, event_id, batch_id, position
LIMIT {MOST_SHOWN}
"""

BATCHES = f"SELECT DISTINCT batch_id FROM failed_events WHERE {MATCHES} ORDER BY batch_id"

HOLD = f"""
SELECT position FROM (
    SELECT * FROM failed_events WHERE batch_id = %(batch_id)s ORDER BY position OFFSET 0 FOR UPDATE
) AS held
WHERE {MATCHES}
"""
"""All of the batch, whatever is tried: of two retries of a batch the second waits here, not where it announces it, with
all projections behind it. OFFSET keeps the filter out of the inner SELECT."""

NEXT_ATTEMPT = "SELECT max(attempt) + 1, max(event_count) FROM facts WHERE batch_id = %s"

FORGET = """
WITH forgotten AS (
    DELETE FROM failed_events WHERE batch_id = %(batch_id)s AND position = ANY (%(positions)s::int[]) RETURNING topic
)
INSERT INTO stats (topic, lane, failed)
SELECT topic, (SELECT lane FROM facts WHERE batch_id = %(batch_id)s AND action = 'FAILED'), -count(*)
FROM forgotten
GROUP BY topic
ORDER BY topic
ON CONFLICT (topic, lane) DO UPDATE SET failed = stats.failed + excluded.failed
"""
"""They are taken off the worker that had them FAILED. A batch has one such fact: what fails again is none."""


def show(url: str, topic: str | None, event_id: str | None) -> None:
    """Prints the failed events with this topic and event_id, each None where it does not count."""
    with database.connect(url, "failed") as connection, database.ours():
        schema.require(connection)
        rows = connection.execute(LIST, {"topic": topic, "event_id": event_id}).fetchall()
    table = screen.table("topic", "event_id", "batch_id", "position", "error")
    for row in rows:
        table.add_row(*(screen.clean(str(value)) for value in row))
    console = screen.console()
    if rows:
        console.print(table)
    console.print(f"{len(rows)} failed events" + (" or more" if len(rows) == MOST_SHOWN else ""))


def retry(url: str, topic: str | None, event_id: str | None) -> bool:
    """Tries the failed events with this topic and event_id again, batch by batch, and prints what became of them.

    True where none failed again. Raises DatabaseAway, SchemaBehind.
    """
    tried = again = 0
    filters = {"topic": topic, "event_id": event_id}
    with database.connect(url, "failed") as connection, database.ours():
        schema.require(connection)
        worker_id = database.value(connection, *database.lane_query(0))
        if worker_id is None:
            raise DatabaseAway("no free worker_id: too many workers")
        for (batch_id,) in connection.execute(BATCHES, filters).fetchall():
            held, errors = retry_batch(connection, batch_id, worker_id, filters)
            tried, again = tried + held, again + len(errors)
            for position, error in errors.items():
                screen.console(stderr=True).print(f"batch {batch_id} position {position}: {screen.clean(error)}")
    screen.console().print(f"{tried} tried again, {tried - again} succeeded, {again} failed again")
    return not again


def retry_batch(
    connection: psycopg.Connection[Any], batch_id: UUID, worker_id: int, filters: dict[str, str | None]
) -> tuple[int, dict[int, str]]:
    """Tries a batch's failed events again in one transaction: how many there were, and the errors by position."""
    errors: dict[int, str] = {}
    with connection.transaction():
        rows = connection.execute(HOLD, filters | {"batch_id": batch_id}).fetchall()
        held = [row[0] for row in rows]
        ahead = announce(connection, [batch_id])
        unfold(connection, batch_id)
        won = [
            winner
            for positions in _without_gaps(held)
            for winner in insert_apart(connection, batch_id, positions, ahead, errors)
        ]
        if succeeded := [position for position in held if position not in errors]:
            [(attempt, size)] = connection.execute(NEXT_ATTEMPT, [batch_id])
            record_outcome(connection, {batch_id: size}, worker_id, won, {}, positions=succeeded, attempt=attempt)
            connection.execute(FORGET, {"batch_id": batch_id, "positions": succeeded})
    return len(held), errors


def _without_gaps(positions: list[int]) -> Iterator[range]:
    """Positions in order, as ranges: each is tried at once, for a try unfolds the whole batch."""
    for _, numbered in groupby(enumerate(positions), lambda each: each[1] - each[0]):
        neighbours = [position for _, position in numbered]
        yield range(neighbours[0], neighbours[-1] + 1)
