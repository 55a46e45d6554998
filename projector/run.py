"""The projector process: its workers and its sequencer, until it is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

from chronicle import logs, metrics
from projector.sequencer import Sequencer
from projector.turn import Turn
from projector.worker import Worker

STOP_SECONDS = 8
"""A worker that has not ended its batch by then waits for a server that does not answer; its transaction rolls back."""

log = logs.get(__name__)


def run(database_url: str, redis_url: str, workers: int, scraped: socket.socket | None = None) -> None:
    """Runs the workers until SIGTERM or SIGINT; each then ends the batch it has in hand, the sequencer after them.

    Metrics are answered on the socket `scraped`.
    """
    if scraped:
        metrics.serve(scraped, "projector")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    turn, projected, ended = Turn(), threading.Event(), threading.Event()
    threads = [
        threading.Thread(target=_work, args=(worker,), name=f"worker-{n}")
        for n, worker in enumerate(
            Worker(database_url, redis_url, stop, turn, projected, keeps_history=n == 0) for n in range(workers)
        )
    ]
    sequencer = threading.Thread(target=_work, args=(Sequencer(database_url, ended, projected),), name="sequencer")
    for thread in (*threads, sequencer):
        thread.start()
    log.info("projector started", workers=workers)
    stop.wait()
    deadline = time.monotonic() + STOP_SECONDS
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    ended.set()
    projected.set()
    sequencer.join(max(deadline - time.monotonic(), 0))
    if any(thread.is_alive() for thread in (*threads, sequencer)):
        log.error("workers do not come back from PostgreSQL or Redis: stopped without them")
        logs.flush()
        os._exit(1)
    log.info("projector stopped")


def _work(part: Worker | Sequencer) -> None:
    """A part that fails in a way nobody foresaw ends the process, for its supervisor to start it again."""
    try:
        part.run()
    except BaseException:
        log.critical("worker failed", worker=threading.current_thread().name, exc_info=True)
        logs.flush()
        os._exit(1)
