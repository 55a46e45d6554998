"""Asks /stats all through a round: the books must balance in every answer, whatever happens."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any, Protocol

EVERY_SECONDS = 0.05


class Acknowledged(Protocol):
    """A journal, which counts the events that were answered 200."""

    acknowledged: int


class Books:
    """One reader of /stats in a thread of its own."""

    def __init__(self, port: int, journal: Acknowledged) -> None:
        self.answers = 0
        self.violations: list[str] = []
        self._port = port
        self._journal = journal
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._before = {"received": 0, "unique_processed": 0, "duplicated_dropped": 0}

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._over.wait(EVERY_SECONDS):
            acknowledged = self._journal.acknowledged
            try:
                connection.request("GET", "/stats")
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                continue
            if answer.status == 200:
                self.answers += 1
                self._compare(json.loads(text), acknowledged)
            elif answer.status != 503:
                self.violations.append(f"/stats answered {answer.status} {text[:200]!r}")
        connection.close()

    def _compare(self, stats: dict[str, Any], acknowledged: int) -> None:
        """`acknowledged`: how many events had been answered 200 before this answer was asked for."""
        outcomes = stats["unique_processed"] + stats["duplicated_dropped"] + stats["failed"]
        if stats["received"] != outcomes + stats["in_flight"] or stats["in_flight"] < 0:
            self.violations.append(f"the books do not balance: {stats}")
        if stats["received"] < acknowledged:
            self.violations.append(f"{acknowledged} events were answered 200, and /stats knows of {stats['received']}")
        for name, before in self._before.items():
            if stats[name] < before:
                self.violations.append(f"/stats: {name} went from {before} back to {stats[name]}")
            self._before[name] = stats[name]
