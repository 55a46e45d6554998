"""Heartbeats: a worker's own loop says that it works. Not a thread beside it, which would go on when the loop hangs."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import Any

import psycopg

from chronicle import database, history, logs

SECONDS = 2.0

log = logs.get(__name__)

BEAT = """
WITH forgotten AS (
    DELETE FROM workers
    WHERE worker_id <> %(worker_id)s
      AND (worker_id = %(former)s::int AND process = %(process)s OR seen_at < clock_timestamp() - interval '1 hour')
)
INSERT INTO workers (worker_id, process, started_at, seen_at, state, projected_at)
VALUES (%(worker_id)s, %(process)s, clock_timestamp(), clock_timestamp(), %(state)s,
        clock_timestamp() - make_interval(secs => %(since_projection)s))
ON CONFLICT (worker_id) DO UPDATE SET
    process = excluded.process, seen_at = excluded.seen_at, state = excluded.state,
    projected_at = excluded.projected_at,
    started_at = CASE workers.process WHEN excluded.process THEN workers.started_at ELSE excluded.started_at END
"""

STOP = "DELETE FROM workers WHERE worker_id = %(worker_id)s AND process = %(process)s"


class Heartbeat:
    """The row of `workers` that tells of one worker."""

    def __init__(self, *, keeps_history: bool) -> None:
        """`keeps_history`: whether this worker writes the history as well, for its process."""
        self._process = f"{socket.gethostname()}:{os.getpid()}"
        self._keeps_history = keeps_history
        self._worker_id: int | None = None
        self._beat = self._sampled = float("-inf")
        self._projected: float | None = None

    def projected(self) -> None:
        """The worker has just committed a projection."""
        self._projected = time.monotonic()

    def beat(self, connection: psycopg.Connection[Any], worker_id: int, state: str) -> None:
        """Says what the worker does, where that is due; in autocommit mode, never in a projection.

        Raises DatabaseAway, SchemaBehind or NotAllowed.
        """
        now = time.monotonic()
        if worker_id == self._worker_id and now - self._beat < SECONDS:
            return
        beat = {
            "worker_id": worker_id,
            "former": self._worker_id,
            "process": self._process,
            "state": state,
            "since_projection": None if self._projected is None else now - self._projected,
        }
        with database.ours():
            connection.execute(BEAT, beat, prepare=True)
            self._worker_id, self._beat = worker_id, now
            if self._keeps_history and now - self._sampled >= history.SECONDS:
                self._sampled = now
                self._keep_history(connection)

    def _keep_history(self, connection: psycopg.Connection[Any]) -> None:
        """Nothing else depends on it."""
        try:
            connection.execute(history.SAMPLE)
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.warning(history.NOT_KEPT, error=database.first_line(error))

    def stop(self, connection: psycopg.Connection[Any]) -> None:
        """The worker ends; whoever finds its row after all removes it an hour later."""
        with suppress(psycopg.Error):
            connection.execute(STOP, {"worker_id": self._worker_id, "process": self._process})
