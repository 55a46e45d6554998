"""What was asked, and what came of it: written down by the client, who believes nothing else."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Key = tuple[str, str]
"""Topic and event_id."""


class Outcome(StrEnum):
    """How a request ended, as far as its client can know."""

    OK = "ok"  # answered 200
    REFUSED = "refused"  # answered 4xx
    UNKNOWN = "unknown"  # answered 5xx, or not at all


@dataclass
class Request:
    """One request. Its id is the `source` of each of its events, so that they are found again wherever they are."""

    id: str
    events: list[Event]
    body: bytes = field(repr=False)
    valid: bool = True
    outcome: Outcome = Outcome.UNKNOWN
    answer: str = "none"


class Journal:
    """Every request, in the order in which they were sent; each line goes to a file before the request goes out."""

    def __init__(self, path: Path) -> None:
        self.requests: dict[str, Request] = {}
        self.oddities: list[str] = []
        self.acknowledged = 0
        self._file = path.open("w")
        self._lock = threading.Lock()

    def begin(self, request: Request) -> None:
        """A request is about to be sent."""
        with self._lock:
            self.requests[request.id] = request
            self._write(sent=request.id, body=request.body.decode(errors="backslashreplace"))

    def end(self, request: Request, status: int | None, answer: str) -> None:
        """A request was answered (its status and body), or broke (None, and why)."""
        with self._lock:
            request.answer = f"{status} {answer[:300]}"
            if status == 200:
                request.outcome = Outcome.OK
                self.acknowledged += len(request.events)
            elif status is not None and 400 <= status < 500:
                request.outcome = Outcome.REFUSED
            self._note_oddity(request, status)
            self._write(ended=request.id, answer=request.answer)

    def _note_oddity(self, request: Request, status: int | None) -> None:
        """An answer that no fault excuses."""
        ok = request.outcome is Outcome.OK and f'"events_count":{len(request.events)}}}' in request.answer
        wanted = request.outcome is Outcome.UNKNOWN or request.valid == ok
        if not wanted or status == 500:
            kind = "valid" if request.valid else "invalid"
            self.oddities.append(f"a request that is {kind} was answered {request.answer}: {request.id}")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def counts(self) -> Counter[Outcome]:
        """How many requests ended how."""
        return Counter(request.outcome for request in self.requests.values())

    def _write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
