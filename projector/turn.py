"""The turn of a process's workers: who has it takes tickets, so that these are projected in their order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from projector import heartbeat

LONGEST_SECONDS = 6.0
"""Who has the turn for longer waits for a server that does not answer. The others then go on without it: to keep the
order of a few batches is not worth to project none."""


class Turn:
    """Is had by one worker at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()

    @contextmanager
    def own(self, meanwhile: Callable[[], object]) -> Iterator[Callable[[], None]]:
        """Waits for the turn, and calls `meanwhile` as often as a heart beats. Gives a function that ends it early."""
        with ExitStack() as held:
            if self._taken(meanwhile):
                held.callback(self._lock.release)
            yield held.close

    def _taken(self, meanwhile: Callable[[], object]) -> bool:
        """False where whoever has it does not come back."""
        while not self._lock.acquire(timeout=0 if self._is_stuck() else heartbeat.SECONDS):
            meanwhile()
            if self._is_stuck():
                return False
        self._began = time.monotonic()
        return True

    def _is_stuck(self) -> bool:
        return time.monotonic() - self._began > LONGEST_SECONDS
