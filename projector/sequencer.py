"""The sequencer: gives PROCESSED facts their places in the stream, after they have been committed.

Transactions commit in another order than they begin, so a number taken within one says nothing: whoever has read up
to it may find a lower one later. Here numbers are given afterwards, by one transaction at a time, and the next begins
when the last is visible to all: what has a lower number is always seen first. A fact that is committed late gets a
late number, and holds up nobody; nor does a transaction of anybody else, however long.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg

from chronicle import database, logs
from chronicle.errors import ChronicleError

SEQUENCE_LOCK = 0x43570003_00000000

MOST_FACTS = 10_000
ROUND_SECONDS = 0.05
"""A round begins so long after the last one at the earliest: under load, one commit numbers many facts."""

REST, MOST_REST_SECONDS = 4, 1.0
"""And a round that takes long is followed by a pause of so many times that, or this."""

SWEEP_SECONDS = 1.0
"""How often it looks for facts of processes that have ended, and of `chronicle failed retry`."""

log = logs.get(__name__)


class Sequencer:
    """One for each projector process. Whoever has the lock numbers the facts of all; there is no leader."""

    def __init__(self, database_url: str, stop: threading.Event, projected: threading.Event) -> None:
        """`projected` is set by the workers after their commits; once `stop` is set, what is there is the last."""
        self._database_url = database_url
        self._stop = stop
        self._projected = projected
        self._connection: psycopg.Connection[Any] | None = None
        self._waits = False

    def run(self) -> None:
        """Numbers until stopped; faults of PostgreSQL are logged and waited out."""
        ended = False
        while not ended:
            self._projected.wait(SWEEP_SECONDS)
            self._projected.clear()
            ended = self._stop.is_set()
            began = time.monotonic()
            if self._try() == MOST_FACTS:
                self._projected.set()
                ended = False
            self._stop.wait(min(max(ROUND_SECONDS, REST * (time.monotonic() - began)), MOST_REST_SECONDS))
        self.close()

    def _try(self) -> int:
        try:
            numbered = self.run_once()
        except (ChronicleError, psycopg.Error) as error:
            if not self._waits:
                log.warning("sequencer waits", error=str(error).strip())
            self._waits = True
            self.close()
            return 0
        if self._waits:
            log.info("sequencer goes on")
        self._waits = False
        return numbered

    def run_once(self) -> int:
        """One round: how many facts got their places. Raises DatabaseAway and psycopg.Error."""
        if self._connection is None:
            self._connection = database.connect(self._database_url, "sequencer")
        with database.ours():
            return number(self._connection)

    def close(self) -> None:
        """Lets go of PostgreSQL; the next round connects again."""
        if self._connection:
            self._connection.close()
        self._connection = None


TAKE_TURN = f"SELECT pg_advisory_xact_lock({SEQUENCE_LOCK})"

SEQUENCE = f"""
WITH taken AS (
    DELETE FROM unsequenced
    WHERE fact_id <= (
        SELECT max(fact_id) FROM (SELECT fact_id FROM unsequenced ORDER BY fact_id LIMIT {MOST_FACTS}) AS oldest
    )
    RETURNING fact_id, batch_id, attempt
)
INSERT INTO stream (fact_id, batch_id, attempt) SELECT fact_id, batch_id, attempt FROM taken ORDER BY fact_id
"""

# READ COMMITTED: the second statement sees what was committed before the lock was had. And one message: PostgreSQL
# waits for nobody while it holds the lock, so a process that stands still cannot keep it.
ROUND = f"BEGIN ISOLATION LEVEL READ COMMITTED; {TAKE_TURN}; {SEQUENCE}; COMMIT"


def number(connection: psycopg.Connection[Any]) -> int:
    """Gives the oldest facts that have none their places, MOST_FACTS at most, and says to how many.

    Raises psycopg.Error; the session may then be within a transaction that has failed.
    """
    _, _, numbered, _ = [result.rowcount for result in connection.execute(ROUND).results()]
    return numbered
