"""`python -m tests.chaos.soak`: a long run at half of capacity, with a fault every few seconds, that must leave nothing
behind: memory, sessions, dead rows and tickets end where they began. On Linux."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from chronicle import verify
from tests.servers import eventually

from .books import Books
from .digests import Digests
from .nemesis import PROBLEMS, Nemesis, plan
from .round import settle
from .samples import DEAD, MEMORY, SESSIONS, Sample, Sampler, returned, take
from .system import System
from .traffic import CLIENTS, MOST_EVENTS, Traffic

CAPACITY_SECONDS = 20.0
LONGEST_PAUSE = 6.0
QUIET_SHARE = 0.1
"""Of the time of the faults; so long the same load goes on without any, to see the memory of processes that live."""

UNFIT = frozenset({"rebuild under load"})
"""It lasts the longer the more there is."""

VACUUM_SECONDS = 120.0
AFTER_FAULTS, WITHOUT_FAULTS = 0.30, 0.10
MIB_ALLOWED, DEAD_ALLOWED = 10, 5_000


class Soak:
    """One run: its system, its journal, and what it finds."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.system = System(folder)
        self.journal = Digests()
        self.violations: list[str] = []
        self._seed = seed
        self._phases = 0

    def run(self, seconds: float) -> None:
        """Capacity, then faults at half of it for so many seconds, then no faults, then the comparison."""
        self.system.start()
        books = Books(self.system.stack.port, self.journal)
        books.start()
        try:
            every = CLIENTS * MOST_EVENTS / 2 / (self._capacity() / 2)
            begin = take(self.system)
            self._faults(begin, seconds, every)
            self._quiet(seconds * QUIET_SHARE, every)
        finally:
            books.stop()
        with self.system.session() as connection:
            self.violations += [*books.violations, *self.journal.violations(connection), *self.system.failures()]
        for invariant, name, violated in verify.run(self.system.postgres.url):
            self.violations += [f"chronicle verify, invariant {invariant}, {name}: {text}" for text in violated]

    def _capacity(self) -> float:
        """Events a second that are accepted and worked off, when every client sends as soon as it is answered."""
        began = time.monotonic()
        traffic = self._traffic(every=0.0)
        time.sleep(CAPACITY_SECONDS)
        traffic.stop()
        self._settle()
        capacity = self.journal.acknowledged / (time.monotonic() - began)
        print(f"capacity: {capacity:,.0f} events/s; half of it from now on", flush=True)
        return capacity

    def _faults(self, begin: Sample, seconds: float, every: float) -> None:
        sampler = Sampler(partial(take, self.system))
        traffic = self._traffic(every)
        sampler.start()
        try:
            steps = plan(self._seed, seconds, longest_pause=LONGEST_PAUSE, without=UNFIT)
            Nemesis(self.system, traffic, partial(print, flush=True)).run(steps)
            self.system.heal()
        finally:
            traffic.stop()
            sampler.stop()
        print(f"settled after {self._settle():.1f} s; {sampler.taken} samples", flush=True)
        with suppress(AssertionError):  # what is not back is said below
            eventually(lambda: _is_back(begin, take(self.system)), timeout=VACUUM_SECONDS, every=5)
        end = take(self.system)
        self.violations += returned("after the faults", begin, sampler.most, end, partial(_allowed, AFTER_FAULTS))

    def _quiet(self, seconds: float, every: float) -> None:
        traffic = self._traffic(every)
        sampler = Sampler(partial(take, self.system))
        try:
            time.sleep(seconds / 3)
            begin = take(self.system)
            sampler.start()
            time.sleep(seconds * 2 / 3)
        finally:
            traffic.stop()
            sampler.stop()
        self._settle()
        end = {name: value for name, value in take(self.system).items() if not name.startswith(DEAD)}
        self.violations += returned("without faults", begin, sampler.most, end, partial(_allowed, WITHOUT_FAULTS))

    def _traffic(self, every: float) -> Traffic:
        """Begins a phase, whose clients have names of their own."""
        self._phases += 1
        port = self.system.proxies["api"].port
        traffic = Traffic(port, self.journal, self._seed, first=self._phases * 100_000, every=every)
        traffic.start()
        return traffic

    def _settle(self) -> float:
        return settle(self.system, self.journal, self._seed, name=self._phases)


def _allowed(share: float, name: str, begin: float) -> float:
    """What a measure may end at."""
    if name.startswith(MEMORY):
        return begin * (1 + share) + MIB_ALLOWED
    if name.startswith(DEAD):
        return DEAD_ALLOWED
    return begin if name == SESSIONS else 0


def _is_back(begin: Sample, now: Sample) -> bool:
    """Dead rows and the memory of autovacuum go a little later than the load."""
    return all(value <= _allowed(AFTER_FAULTS, name, begin.get(name, 0.0)) for name, value in now.items())


def main() -> int:
    """Runs as long as the command line says; the exit code is 1 where something has not come back or was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=1200.0, help="how long faults strike")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chronicle-soak-"))
    folder.chmod(0o711)  # as root, the servers run as somebody else, who has to pass
    soak = Soak(folder, options.seed)
    try:
        soak.run(options.seconds)
    except PROBLEMS as error:
        soak.violations.append(f"the run could not be played to its end: {error!r}")
    finally:
        soak.system.close()
    print(f"{dict(soak.journal.counts())} requests; {soak.journal.acknowledged:,} events ok")
    for violation in soak.violations[:20]:
        print("VIOLATED:", violation)
    if soak.violations:
        print("logs and data:", folder)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    print("holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
