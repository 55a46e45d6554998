"""What a projector that waits for PostgreSQL tells others: its health check, and its log."""

from __future__ import annotations

import socket
import threading
from typing import Any

import psycopg
from structlog.testing import capture_logs

from projector import health
from projector.worker import Worker


def test_the_health_check_counts_the_workers_of_this_host_that_beat(
    worker: Worker, database_url: str, db: psycopg.Connection[Any]
) -> None:
    assert health.workers(database_url) == 0
    worker.run_once()
    assert health.workers(database_url) == 1
    db.execute("UPDATE workers SET seen_at = seen_at - make_interval(secs => %s)", [health.LIVELY_SECONDS])
    assert health.workers(database_url) == 0
    db.execute("UPDATE workers SET seen_at = now(), process = 'x' || process")
    assert health.workers(database_url) == 0


def test_a_worker_that_waits_says_so_once_however_often_it_tries(queue: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, capture_logs() as entries:
        stop = threading.Event()
        worker = Worker(f"postgresql://nobody@127.0.0.1:{listener.getsockname()[1]}/none", queue, stop)
        thread = threading.Thread(target=worker.run)
        thread.start()
        for _ in range(8):
            listener.accept()[0].close()
        stop.set()
        thread.join()
    errors = [entry["error"] for entry in entries if entry["event"] == "worker waits"]
    assert errors
    assert len(errors) == len(set(errors))
