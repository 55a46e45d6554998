"""Pages of the stream: processed events as server-sent events, in the order in which they got their places.

A position is one integer: the place of the fact in the stream, times RECORD_POSITIONS, plus the event's position in
its batch. It only grows, and stays exact in JavaScript up to 2^37 facts. Position 0 of a fact, which no event has,
says that all before the fact is done with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import psycopg
from fastapi.sse import format_sse_event
from msgspec import Raw

from chronicle.ledger import RECORD_POSITIONS
from query.events import Event

MOST_FACTS, MOST_EVENTS = 1000, 1000
PAGE_BYTES = 512 * 2**10
"""A page ends after so many facts that were looked at, or events, or bytes of payload."""

READ_BYTES = 4 * 2**20
"""Nor does it unfold further facts after so many bytes of payloads: each is unfolded whole, whatever is wanted of it.

Facts are measured one by one until then, as payloads are in query/events.py; `[:]` has the size that is read.
"""

PIECE_BYTES = 64 * 2**10
"""What is written at once: a reader has ANSWER_SECONDS (chronicle/connections.py) for it, not for the whole answer."""

Topics = tuple[str, ...]


def _page(*, events: str, about: str) -> str:
    """The statement for a page: `events` counts those of fact f that are wanted, `about` says whether event e is.

    Facts first, by place, few enough, and small enough; of one that has no wanted event nothing else is read.
    """
    return f"""
WITH ahead AS MATERIALIZED (
    SELECT s.sequence, f.batch_id, f.positions, {events} AS events
    FROM (
        SELECT sequence, batch_id, attempt FROM stream
        WHERE sequence >= %(sequence)s::bigint ORDER BY sequence LIMIT {MOST_FACTS}
    ) AS s
    CROSS JOIN LATERAL (
        SELECT id, batch_id, recorded_at, event_count, positions FROM facts
        WHERE facts.batch_id = s.batch_id AND facts.action = 'PROCESSED' AND facts.attempt = s.attempt
        OFFSET 0
    ) AS f
), few AS MATERIALIZED (
    SELECT counted.sequence, counted.positions, counted.events, r.*
    FROM (
        SELECT ahead.*, sum(events) OVER (ORDER BY sequence ROWS UNBOUNDED PRECEDING) - events AS before FROM ahead
    ) AS counted
    LEFT JOIN LATERAL (
        SELECT coalesce(event_ids, event_uuids::text[]) AS event_ids, topics, sources, payloads, timestamps
        FROM facts
        WHERE counted.events > 0 AND facts.batch_id = counted.batch_id AND facts.action = 'RECEIVED'
        OFFSET 0
    ) AS r ON true
    WHERE before < {MOST_EVENTS}
), beyond AS MATERIALIZED (
    SELECT sequence
    FROM (
        SELECT sequence, sum(pg_column_size(payloads[:])) OVER (
            ORDER BY sequence ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS bytes_before
        FROM few
    ) AS measured
    WHERE bytes_before > {READ_BYTES}
    ORDER BY sequence
    LIMIT 1
), taken AS MATERIALIZED (
    SELECT * FROM few WHERE coalesce(sequence < (SELECT sequence FROM beyond), true)
), page AS (
    SELECT t.sequence, e.position, e.event_id, e.topic, e.source, e.payload::text AS payload, e."timestamp"
    FROM taken t
    CROSS JOIN LATERAL (
        SELECT e.*
        FROM unnest(t.event_ids, t.topics, t.sources, t.payloads, t.timestamps)
            WITH ORDINALITY AS e(event_id, topic, source, payload, "timestamp", position)
        LEFT JOIN unnest(t.positions) AS chosen(position) ON chosen.position = e.position
        WHERE t.positions IS NULL OR chosen.position IS NOT NULL
    ) AS e
    WHERE t.events > 0 AND {about}
      AND (t.sequence > %(sequence)s OR e.position > %(position)s::int)
    ORDER BY t.sequence, e.position
    LIMIT {MOST_EVENTS} + 1
), sized AS (
    SELECT page.*, sum(octet_length(payload)) OVER (
        ORDER BY sequence, position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM page
)
SELECT scanned.last, sized.sequence, sized.position, sized.event_id, sized.topic, sized.source,
       CASE WHEN sized.bytes_before > {PAGE_BYTES} THEN NULL ELSE sized.payload END, sized."timestamp"
FROM (SELECT max(sequence) FROM taken) AS scanned(last)
LEFT JOIN sized ON true
ORDER BY sized.sequence, sized.position
"""


PAGE_OF_ALL = _page(events="f.event_count", about="true")

PAGE_BY_TOPIC = _page(
    events="""(
        SELECT coalesce(sum(t.event_count), 0) FROM fact_topics t
        WHERE t.topic = ANY (%(topics)s::text[]) AND t.action = 'PROCESSED' AND t.recorded_at = f.recorded_at
          AND t.fact_id = f.id
    )""",
    about="e.topic = ANY (%(topics)s::text[])",
)


class Page(NamedTuple):
    """Some of the stream, as it is written: pieces, and the position that they lead to."""

    position: int
    pieces: list[bytes]


async def read(connection: psycopg.AsyncConnection[Any], topics: Topics, after: int) -> Page:
    """What follows a position, of these topics (of all, where there are none). No progress: nothing follows yet."""
    sequence, position = divmod(after, RECORD_POSITIONS)
    where = {"sequence": sequence, "position": position, "topics": list(topics)}
    rows = await (await connection.execute(PAGE_BY_TOPIC if topics else PAGE_OF_ALL, where)).fetchall()
    last = rows[0][0]
    if last is None:
        return Page(after, [])
    found = [row for row in rows if row[1] is not None]
    shown = [row for row in found[:MOST_EVENTS] if row[6] is not None]
    messages = b"".join([_message(row) for row in shown])
    pieces = [messages[start : start + PIECE_BYTES] for start in range(0, len(messages), PIECE_BYTES)]
    whole = len(shown) == len(found)
    return Page(_at(last + 1, 0) if whole else _at(*shown[-1][1:3]), pieces)


def _at(sequence: int, position: int) -> int:
    return sequence * RECORD_POSITIONS + position


def _message(row: Sequence[Any]) -> bytes:
    """An event as a message; a line break, which in JSON can only stand between tokens, would end its line."""
    _, sequence, position, event_id, topic, source, payload, timestamp = row
    event = Event(event_id, topic, source, Raw(payload.encode()), timestamp)
    line = msgspec.json.encode(event).decode().replace("\r", " ").replace("\n", " ")
    return format_sse_event(data_str=line, id=str(_at(sequence, position)))


LAST = "SELECT max(sequence) FROM stream"


async def end(connection: psycopg.AsyncConnection[Any]) -> int:
    """The position after all that is there."""
    [sequence] = await (await connection.execute(LAST)).fetchone() or [None]
    return _at(sequence + 1, 0) if sequence else 0
