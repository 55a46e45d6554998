"""What a system holds while it runs: memory, sessions, dead rows, tickets. Begin, most and end, as a table."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chronicle import broker

from .nemesis import PROBLEMS
from .system import System

EVERY_SECONDS = 5.0
PARTS = ("api", "projector", "second", "broker", "postgres")
Sample = dict[str, float]
MEMORY, DEAD, SESSIONS = "MiB of ", "dead rows of ", "sessions of the services"

COUNT_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'chronicle-%'"
DEAD_ROWS = "SELECT relname, n_dead_tup FROM pg_stat_user_tables WHERE schemaname = 'public' AND relname <> 'facts'"


def memory(pids: list[int]) -> float:
    """MiB that these processes have for themselves alone (RssAnon): a leak shows here, a page of a file does not."""
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError):
            total += int(Path(f"/proc/{pid}/status").read_text().split("RssAnon:")[1].split()[0])
    return total / 1024


def take(system: System) -> Sample:
    """One sample. Raises what psycopg and redis raise where a server is away."""
    sample = {f"{MEMORY}{part}": memory(system.pids(part)) for part in PARTS}
    with system.session() as connection, system.queue() as client:
        row = connection.execute(COUNT_SESSIONS).fetchone()
        sample[SESSIONS] = row[0] if row else 0
        sample |= {f"{DEAD}{table}": dead for table, dead in connection.execute(DEAD_ROWS)}
        there = client.exists(broker.STREAM)
        sample["tickets in the stream"] = int(client.xlen(broker.STREAM))
        sample["tickets pending"] = client.xpending(broker.STREAM, broker.GROUP)["pending"] if there else 0
    return sample


class Sampler:
    """Takes samples in a thread of its own, and keeps the most of each."""

    def __init__(self, source: Callable[[], Sample]) -> None:
        self.most: Sample = {}
        self.taken = 0
        self._source = source
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            with suppress(*PROBLEMS):
                sample = self._source()
                self.taken += 1
                self.most |= {name: max(value, self.most.get(name, value)) for name, value in sample.items()}


def returned(title: str, begin: Sample, most: Sample, end: Sample, allowed: Callable[[str, float], float]) -> list[str]:
    """Prints begin, most and end of each measure; which are not back, by what is `allowed` for a name and its begin."""
    table = Table("measure", "begin", "most", "end", "allowed", title=title)
    over = []
    for name, value in end.items():
        limit = allowed(name, begin.get(name, 0.0))
        figures = (begin.get(name, 0.0), most.get(name, value), value, limit)
        table.add_row(name, *[f"{figure:,.0f}" for figure in figures])
        if value > limit:
            over.append(f"{title}: {name} ends at {value:,.0f}, and {limit:,.0f} are allowed")
    Console().print(table, markup=False)
    return over
