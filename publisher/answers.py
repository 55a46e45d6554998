"""What an answer of POST /publish, or its absence, means for the events that were sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import httpx2

from chronicle import clients, screen

LONGEST_REASON = 200


@dataclass(frozen=True)
class Answer:
    """The outcome of one attempt to send a request."""

    reason: str
    status: int | None = None
    """The HTTP status; None where no answer came, which leaves open what happened to the events."""
    accepted: bool = False
    refused: dict[int, str] = field(default_factory=dict)
    """422: the events that were named as bad, by their index in the request, and why."""
    retry_after: float = 0.0
    """Seconds that the server asks to wait."""

    @property
    def temporary(self) -> bool:
        """Whether the same request may be accepted later."""
        return not self.accepted and (self.status is None or self.status == 429 or self.status >= 500)


def read_answer(response: httpx2.Response, count: int, now: datetime) -> Answer:
    """What the response to a request of `count` events says; `now` is the wall clock, for a Retry-After with a date."""
    content = clients.content(response)
    if response.status_code == 200:
        # Some other server behind a wrong URL may well say 200 to anything.
        accepted = content.get("status") == "success" and content.get("events_count") == count
        return Answer("200, but not ChronicleWeaver's answer", 200, accepted)
    reason, refused = _detail(content.get("detail"), count)
    return Answer(
        f"{response.status_code} {reason or response.reason_phrase}".strip(),
        response.status_code,
        refused=refused if response.status_code == 422 else {},
        retry_after=clients.retry_after(response.headers.get("retry-after"), now),
    )


def no_answer(error: httpx2.RequestError | TimeoutError) -> Answer:
    """What a request without an answer says. It may have been accepted: deduplication makes another try safe."""
    match error:
        case httpx2.ConnectTimeout():
            reason = "no connection in time"
        case httpx2.ConnectError():
            reason = f"no connection: {error}"
        case httpx2.TimeoutException() | TimeoutError():
            reason = "no answer in time"
        case _:
            reason = "connection broken before an answer came"
    return Answer(_one_line(reason))


def _detail(detail: object, count: int) -> tuple[str, dict[int, str]]:
    """The first reason that an error answer gives, and the events that it names, each with its reason."""
    if not isinstance(detail, list):
        return (_one_line(detail) if isinstance(detail, str) else ""), {}
    first = ""
    refused: dict[int, str] = {}
    for problem in detail:
        if not isinstance(problem, dict):
            continue
        location = problem.get("loc")
        place = location if isinstance(location, list) else []
        reason = _one_line(f"{'.'.join(str(part) for part in place[3:])}: {problem.get('msg')}".removeprefix(": "))
        first = first or reason
        match place:
            case ["body", "events", int(index), *_] if 0 <= index < count:
                refused.setdefault(index, f"422 {reason}")
    return first, refused


def _one_line(text: str) -> str:
    """The server's words made safe for a terminal."""
    return screen.clean(text[:LONGEST_REASON], " ")
