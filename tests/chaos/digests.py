"""A journal that stays small however long the run: of each request it keeps how it ended and a digest of its events."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg

from .journal import Outcome, Request

LEDGER = """
SELECT s.source, s.digest, s.events = s.span AS one_piece
FROM facts
CROSS JOIN LATERAL (
    SELECT source, count(*) AS events, max(position) - min(position) + 1 AS span,
           md5(string_agg(concat_ws('|', event_id, topic, payload,
                   to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')), E'\\n'
                   ORDER BY position)) AS digest
    FROM unnest(coalesce(event_ids, event_uuids::text[]), topics, sources, payloads, timestamps) WITH ORDINALITY
         AS e(event_id, topic, source, payload, "timestamp", position)
    GROUP BY source
) AS s
WHERE action = 'RECEIVED'
"""


class _Event(msgspec.Struct):
    event_id: str
    topic: str
    payload: msgspec.Raw
    timestamp: str


class _Body(msgspec.Struct):
    events: list[_Event]


def digest(body: bytes) -> str:
    """What LEDGER says of a request with this body."""
    events = msgspec.json.decode(body, type=_Body).events
    lines = [b"|".join([e.event_id.encode(), e.topic.encode(), e.payload, e.timestamp.encode()]) for e in events]
    return hashlib.md5(b"\n".join(lines), usedforsecurity=False).hexdigest()


class Digests:
    """How each request ended, by its id, with the digest of what was sent."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.oddities: list[str] = []
        self._sent: dict[str, tuple[Outcome, bytes]] = {}
        self._lock = threading.Lock()

    def begin(self, request: Request) -> None:
        """A request is about to be sent."""
        content = bytes.fromhex(digest(request.body)) if request.valid else b""
        with self._lock:
            self._sent[request.id] = Outcome.UNKNOWN, content

    def end(self, request: Request, status: int | None, answer: str) -> None:
        """A request was answered (its status and body), or broke (None, and why)."""
        if status == 200:
            request.outcome = Outcome.OK
        elif status is not None and 400 <= status < 500:
            request.outcome = Outcome.REFUSED
        with self._lock:
            self.acknowledged += len(request.events) if status == 200 else 0
            self._sent[request.id] = request.outcome, self._sent[request.id][1]
            if status == 500 or request.outcome is (Outcome.REFUSED if request.valid else Outcome.OK):
                self.oddities.append(f"valid: {request.valid}, answered {status} {answer[:200]}: {request.id}")

    def counts(self) -> Counter[Outcome]:
        """How many requests ended how."""
        return Counter(outcome for outcome, _ in self._sent.values())

    def violations(self, connection: psycopg.Connection[Any]) -> Iterator[str]:
        """Every ok request is in the ledger once and whole, no refused one is, an unknown one is whole or absent."""
        yield from self.oddities
        left = self._sent.copy()
        with connection.transaction(), connection.cursor("ledger") as recorded:
            connection.execute("SET LOCAL statement_timeout = 0")
            recorded.execute(LEDGER)
            for source, content, one_piece in recorded:
                outcome, wanted = left.pop(source, (None, b""))
                if outcome in {None, Outcome.REFUSED} or bytes.fromhex(content) != wanted or not one_piece:
                    yield f"request {source} was {outcome}, and what is recorded is not that, or not once"
        yield from (f"request {name} was ok, and is not recorded" for name, (o, _) in left.items() if o is Outcome.OK)
