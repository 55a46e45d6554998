"""(3) project: the one transaction that turns batches into read models.

Claim, QUEUED where missing, insert the first sightings, judge the others, record the outcome, count: all of it or
nothing. Payloads never leave PostgreSQL. Locks are taken in one order everywhere (outbox rows by batch, QUEUED facts by
batch, then keys as projector/order.py says), so that workers never deadlock.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg

from chronicle import database
from chronicle.arrays import BytesArray, IntArray, TextArray, UuidArray
from chronicle.ledger import RECORD_POSITIONS, RECORD_QUEUED
from projector import metrics
from projector.order import AHEAD, HAVE_ENDED, announce

SESSION = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
"""What a session sets to project in. Each statement is about a few batches or keys, found by an index however large the
tables are, so it is planned once; PostgreSQL would plan many of them anew each time, for a third of what a small
projection takes."""

CLAIM = """
WITH held AS (
    SELECT batch_id FROM outbox WHERE batch_id = ANY (%(batch_ids)s::uuid[]) ORDER BY batch_id FOR UPDATE
)
DELETE FROM outbox WHERE batch_id = ANY (ARRAY(SELECT batch_id FROM held)) RETURNING batch_id, event_count
"""
"""No join with what is held, as in projector/outbox.py: it could read all that waits."""

FIRST_SIGHTINGS = f"""
WITH ahead AS MATERIALIZED ({AHEAD}), won AS (
    INSERT INTO processed_events (event_id, topic, source, payload, "timestamp", batch_id, position)
    SELECT event_id, topic, source, payload, "timestamp", batch_id, position
    FROM (
        SELECT own.event_id, own.topic, own.source, own.payload, own."timestamp", own.batch_id, own.position,
               own.event_id IN (
                   SELECT unnest(coalesce(event_ids, event_uuids::text[])) FROM facts
                   WHERE batch_id = ANY (ARRAY(SELECT batch_id FROM ahead)) AND topics IS NOT NULL
               ) AS is_ahead
        FROM {{events}} AS own
        WHERE own.batch_id = ANY (%(batch_ids)s::uuid[]) AND own.position BETWEEN %(first)s AND %(last)s
        ORDER BY is_ahead, own.event_id, own.topic, own.batch_id, own.position
        OFFSET 0
    ) AS sightings
    WHERE CASE WHEN is_ahead THEN {HAVE_ENDED} ELSE true END
    ON CONFLICT (topic, event_id) DO NOTHING
    RETURNING batch_id, topic, position
)
SELECT batch_id, topic, array_agg(position) FROM won GROUP BY batch_id, topic
"""
INSERT_FIRST_SIGHTINGS = FIRST_SIGHTINGS.format(events="received_events")
"""What nobody ahead may insert comes first (see projector/order.py): OFFSET keeps the sort below the wait. Of the same
key the first one, by batch and position, is stored, and the others conflict with it like with one of before. In the
order of the index, neighbours find its pages still in the processor's caches.

Ids are looked up in a hash table of theirs (IN), not joined: of one that comes often here and there, a join makes each
pair. The same id in another topic is taken for theirs as well, and waits: to compare topics too cost each event more.
"""

PROCESSED, DROPPED, FAILED = 1, 2, 3
FATES = {PROCESSED: "PROCESSED", DROPPED: "DROPPED", FAILED: "FAILED"}
"""A byte for each event of a batch says what it became, 0 that the outcome is not about it. Looked up by its place: no
join, so no plan to get wrong."""

RECORD_OUTCOME = """
WITH lost AS MATERIALIZED (
    SELECT l.batch_id, l.position, l.event_id, l.topic, l.error,
           CASE WHEN l.error IS NULL AND l.payload::text IS DISTINCT FROM p.payload::text THEN l.payload END AS differs
    FROM (
        SELECT b.batch_id, e.position, e.event_id, e.topic, e.payload,
               %(errors)s::jsonb ->> e.position::text AS error
        FROM unnest(%(batch_ids)s::uuid[], %(fates)s::bytea[]) AS b(batch_id, fates)
        CROSS JOIN LATERAL (
            SELECT generate_series(1, event_count) AS position,
                   unnest(coalesce(event_ids, event_uuids::text[])) AS event_id, unnest(topics) AS topic,
                   unnest(payloads) AS payload
            FROM facts WHERE facts.batch_id = b.batch_id AND topics IS NOT NULL
        ) AS e
        WHERE get_byte(b.fates, e.position - 1) > 1
        ORDER BY e.event_id, e.topic, b.batch_id, e.position
    ) AS l
    LEFT JOIN LATERAL (
        SELECT stored.payload FROM processed_events stored
        WHERE stored.event_id = l.event_id AND stored.topic = l.topic
        OFFSET 0
    ) AS p ON l.error IS NULL
), stored AS MATERIALIZED (
    SELECT k.event_id, k.topic, p.payload::jsonb AS payload
    FROM (SELECT DISTINCT event_id, topic FROM lost WHERE differs IS NOT NULL) AS k
    CROSS JOIN LATERAL (
        SELECT stored.payload FROM processed_events stored
        WHERE stored.event_id = k.event_id AND stored.topic = k.topic
        OFFSET 0
    ) AS p
), judged AS NOT MATERIALIZED (
    SELECT batch_id, position, event_id, topic, error,
           CASE WHEN error IS NULL THEN 'DROPPED' ELSE 'FAILED' END AS action,
           CASE WHEN error IS NOT NULL THEN NULL
                WHEN differs IS NULL THEN 'duplicate'
                WHEN (event_id, topic, differs::jsonb) IN (SELECT event_id, topic, payload FROM stored) THEN 'duplicate'
                ELSE 'conflict' END AS reason
    FROM lost
), dropped AS (
    INSERT INTO dropped_events (event_id, topic, batch_id, position, reason)
    SELECT event_id, topic, batch_id, position, reason FROM judged WHERE action = 'DROPPED'
), abandoned AS (
    INSERT INTO failed_events (event_id, topic, batch_id, position, error)
    SELECT event_id, topic, batch_id, position, error FROM judged WHERE action = 'FAILED'
), named AS (
    SELECT batch_id, action, positions::int[]
    FROM unnest(%(named_batch_ids)s::uuid[], %(named_actions)s::text[], %(named_positions)s::text[])
        AS n(batch_id, action, positions)
), explained AS (
    SELECT batch_id, action, array_agg(position ORDER BY position) FILTER (WHERE reason = 'conflict') AS conflicts,
           array_agg(error ORDER BY position) FILTER (WHERE action = 'FAILED') AS errors
    FROM judged
    WHERE action = 'FAILED' OR reason = 'conflict'
    GROUP BY batch_id, action
), counted AS MATERIALIZED (
    SELECT batch_id, action, topic, count(*)::int AS event_count FROM judged GROUP BY batch_id, action, topic
    UNION ALL
    SELECT batch_id, 'PROCESSED', topic, event_count
    FROM unnest(%(won_batch_ids)s::uuid[], %(won_topics)s::text[], %(won_counts)s::int[])
        AS w(batch_id, topic, event_count)
), conflicted AS (
    SELECT topic, count(*) AS conflicts FROM judged WHERE reason = 'conflict' GROUP BY topic
), earlier AS (
    SELECT batch_id, max(recorded_at) AS recorded_at, max(event_count) AS event_count
    FROM facts WHERE batch_id = ANY (%(batch_ids)s::uuid[]) GROUP BY batch_id
), outcome AS (
    INSERT INTO facts
        (batch_id, action, attempt, recorded_at, lane, worker_id, event_count, positions, conflicts, errors)
    SELECT c.batch_id, c.action, %(attempt)s::int, greatest(clock_timestamp(), e.recorded_at),
           %(worker_id)s, %(worker_id)s, c.event_count,
           CASE WHEN c.event_count < e.event_count OR c.action = 'FAILED' OR %(attempt)s::int > 0
                THEN n.positions END,
           x.conflicts, x.errors
    FROM (SELECT batch_id, action, sum(event_count) AS event_count FROM counted GROUP BY batch_id, action) c
    JOIN earlier e ON e.batch_id = c.batch_id
    JOIN named n ON n.batch_id = c.batch_id AND n.action = c.action
    LEFT JOIN explained x ON x.batch_id = c.batch_id AND x.action = c.action
    RETURNING id, batch_id, action, attempt, recorded_at
), unsequenced AS (
    INSERT INTO unsequenced (fact_id, batch_id, attempt)
    SELECT id, batch_id, attempt FROM outcome WHERE action = 'PROCESSED'
), tally AS (
    SELECT o.id, o.batch_id, o.action, o.recorded_at, c.topic, c.event_count
    FROM counted c
    JOIN outcome o ON o.batch_id = c.batch_id AND o.action = c.action
), indexed AS (
    INSERT INTO fact_topics (topic, action, recorded_at, fact_id, batch_id, event_count)
    SELECT topic, action, recorded_at, id, batch_id, event_count FROM tally
)
INSERT INTO stats (topic, lane, processed, dropped, failed, conflicts)
SELECT topic, %(worker_id)s, coalesce(sum(event_count) FILTER (WHERE action = 'PROCESSED'), 0),
       coalesce(sum(event_count) FILTER (WHERE action = 'DROPPED'), 0),
       coalesce(sum(event_count) FILTER (WHERE action = 'FAILED'), 0), coalesce(max(conflicts), 0)
FROM tally LEFT JOIN conflicted USING (topic)
GROUP BY topic
ORDER BY topic
ON CONFLICT (topic, lane) DO UPDATE SET
    processed = stats.processed + excluded.processed,
    dropped = stats.dropped + excluded.dropped,
    failed = stats.failed + excluded.failed,
    conflicts = stats.conflicts + excluded.conflicts
"""
"""A stored payload is read as `jsonb` once for each key, and looked up in a hash table (IN): to read it anew for each
event that repeats its key could take longer than any statement may."""

UNFOLD = """
CREATE TEMPORARY TABLE apart ON COMMIT DROP AS
SELECT event_id, topic, source, payload, "timestamp", batch_id, position FROM received_events
WHERE batch_id = %(batch_id)s
"""
"""A batch is unfolded once for all tries of its parts: ten thousand events that are all refused took minutes."""

INDEX_UNFOLDED = "CREATE UNIQUE INDEX ON apart (position)"

READ_PAYLOADS = "SELECT count(payload::jsonb) FROM apart WHERE position BETWEEN %(first)s AND %(last)s"

INSERT_APART = FIRST_SIGHTINGS.format(events="apart")

Won = tuple[UUID, str, list[int]]
"""Of a batch and a topic, the positions that INSERT_FIRST_SIGHTINGS inserted."""


def project(
    connection: psycopg.Connection[Any],
    batch_ids: Sequence[UUID],
    worker_id: int,
    announced: Callable[[], object] = lambda: None,
) -> list[UUID]:
    """Projects those of the batches that are in flight, in one READ COMMITTED transaction.

    Calls `announced` once it has its place in the order of projections. Waits for another worker that holds one of the
    batches. Gives those that this call projected; the others were projected before, or are no longer there. Raises
    psycopg.Error, and then nothing has changed.
    """
    began = time.monotonic()
    won: list[Won] = []
    with connection.transaction():
        claimed = _claim(connection, batch_ids, worker_id)
        if claimed:
            everything = _sightings(claimed, range(1, RECORD_POSITIONS), announce(connection, claimed))
            announced()
            won = connection.execute(INSERT_FIRST_SIGHTINGS, everything, prepare=True).fetchall()
            record_outcome(connection, claimed, worker_id, won, {})
    metrics.projected(claimed, (these for *_, these in won), 0, time.monotonic() - began)
    return list(claimed)


def project_apart(
    connection: psycopg.Connection[Any],
    batch_id: UUID,
    worker_id: int,
    announced: Callable[[], object] = lambda: None,
) -> dict[int, str]:
    """Projects a batch that PostgreSQL refused as a whole: what it refuses alone becomes FAILED, the rest is stored.

    Calls `announced` as `project` does. Gives the errors by position. Raises psycopg.Error, and then nothing has
    changed.
    """
    began = time.monotonic()
    won: list[Won] = []
    errors: dict[int, str] = {}
    with connection.transaction():
        if claimed := _claim(connection, [batch_id], worker_id):
            ahead = announce(connection, claimed)
            announced()
            unfold(connection, batch_id)
            won = insert_apart(connection, batch_id, range(1, claimed[batch_id] + 1), ahead, errors)
            record_outcome(connection, claimed, worker_id, won, errors)
    metrics.projected(claimed, (these for *_, these in won), len(errors), time.monotonic() - began)
    return errors


def abandon(connection: psycopg.Connection[Any], batch_id: UUID, worker_id: int, error: str) -> bool:
    """Gives a batch up without trying it: all of its events become FAILED with this error.

    False where another worker had done with it. Raises psycopg.Error.
    """
    began = time.monotonic()
    with connection.transaction():
        if claimed := _claim(connection, [batch_id], worker_id):
            errors = dict.fromkeys(range(1, claimed[batch_id] + 1), error)
            record_outcome(connection, claimed, worker_id, [], errors)
    metrics.projected(claimed, [], sum(claimed.values()), time.monotonic() - began)
    return bool(claimed)


def unfold(connection: psycopg.Connection[Any], batch_id: UUID) -> None:
    """Lays out a batch for `insert_apart`, until the transaction ends. Raises psycopg.Error."""
    connection.execute(UNFOLD, {"batch_id": batch_id})
    connection.execute(INDEX_UNFOLDED)


def insert_apart(
    connection: psycopg.Connection[Any], batch_id: UUID, positions: range, ahead: list[int], errors: dict[int, str]
) -> list[Won]:
    """Inserts the first sightings among these positions of a batch, which this transaction has announced and unfolded.

    Where PostgreSQL refuses them, it tries each quarter, down to the positions to blame, and adds their errors to
    `errors`. Gives what INSERT_FIRST_SIGHTINGS does. Raises psycopg.Error where it is not the fault of an event.
    """
    sightings = _sightings([batch_id], positions, ahead)
    try:
        with connection.transaction():  # a savepoint
            connection.execute(READ_PAYLOADS, sightings)
            return connection.execute(INSERT_APART, sightings).fetchall()
    except psycopg.Error as error:
        if not database.refuses_data(error):
            raise
        if len(positions) == 1:
            errors[positions[0]] = str(error).strip()
            return []
    # One to blame is found in as many tries as by halves, and where all are it takes a third less of them.
    quarter = -(-len(positions) // 4)
    return [
        winner
        for start in range(0, len(positions), quarter)
        for winner in insert_apart(connection, batch_id, positions[start : start + quarter], ahead, errors)
    ]


def _sightings(batch_ids: Iterable[UUID], positions: range, ahead: list[int]) -> dict[str, Any]:
    """The parameters of INSERT_FIRST_SIGHTINGS."""
    return {"batch_ids": UuidArray(batch_ids), "first": positions[0], "last": positions[-1], "ahead": ahead}


def _claim(connection: psycopg.Connection[Any], batch_ids: Sequence[UUID], worker_id: int) -> dict[UUID, int]:
    """Takes the batches out of the outbox, and sees to it that they have their QUEUED fact. Gives their sizes."""
    rows = connection.execute(CLAIM, {"batch_ids": UuidArray(batch_ids)}, prepare=True).fetchall()
    claimed = dict(sorted(rows))
    if claimed:
        connection.execute(RECORD_QUEUED, {"batch_ids": UuidArray(claimed), "lane": worker_id}, prepare=True)
    return claimed


def record_outcome(
    connection: psycopg.Connection[Any],
    batches: Mapping[UUID, int],
    worker_id: int,
    won: list[Won],
    errors: dict[int, str],
    *,
    positions: list[int] | None = None,
    attempt: int = 0,
) -> None:
    """Judges the events of these batches that were not inserted, and records and counts what became of all of them.

    `batches`: ids and sizes; `won`: what INSERT_FIRST_SIGHTINGS gave; `errors`: by position, of one batch. `positions`
    and `attempt` are for events that had FAILED before. A statement of its own: only a new snapshot shows what others
    stored meanwhile.
    """
    winners: dict[UUID, list[int]] = {batch_id: [] for batch_id in batches}
    counts: Counter[tuple[UUID, str]] = Counter()
    for batch_id, topic, these in won:
        winners[batch_id] += these
        counts[batch_id, topic] += len(these)
    fates = {batch_id: _fates(size, winners[batch_id], errors, positions) for batch_id, size in batches.items()}
    named = [
        (batch_id, action, [position for position, each in enumerate(these, start=1) if each == fate])
        for batch_id, these in fates.items()
        for fate, action in FATES.items()
        if fate in these
    ]
    parameters = {
        "batch_ids": UuidArray(batches),
        "worker_id": worker_id,
        "fates": BytesArray(fates.values()),
        "named_batch_ids": UuidArray(batch_id for batch_id, _, _ in named),
        "named_actions": TextArray(action for _, action, _ in named),
        "named_positions": TextArray(f"{{{','.join(map(str, these))}}}" for *_, these in named),
        "won_batch_ids": UuidArray(batch_id for batch_id, _ in counts),
        "won_topics": TextArray(topic for _, topic in counts),
        "won_counts": IntArray(counts.values()),
        "errors": json.dumps(errors),
        "attempt": attempt,
    }
    connection.execute(RECORD_OUTCOME, parameters, prepare=True)


def _fates(size: int, won: list[int], errors: Iterable[int], positions: Iterable[int] | None) -> bytes:
    """The FATES of a batch of this size: who neither won nor has an error was dropped. `positions`: None means all."""
    fates = bytearray([DROPPED]) * size if positions is None else bytearray(size)
    for group, fate in ((positions or (), DROPPED), (won, PROCESSED), (errors, FAILED)):
        for position in group:
            fates[position - 1] = fate
    return bytes(fates)
