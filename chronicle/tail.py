"""`chronicle tail`: follows the stream of processed events. A connection that is lost is made again where it ended."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx2
from rich.console import Console
from rich.text import Text
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from chronicle import clients, screen
from chronicle.errors import ChronicleError

SILENT_SECONDS = 30.0
"""The service says something every ten seconds; a connection that is silent for so long is lost."""

BACKOFF = wait_exponential_jitter(multiplier=0.2, max=5, jitter=0.5)
TOO_MANY = "the topics are too many, or too long, for one URL"
LONGEST_PAYLOAD = 2000
"""Characters of a payload on a terminal."""

TOPIC_STYLES = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")

Show = Callable[[str], None]


class Lost(ChronicleError):
    """The connection is lost, and brought nothing."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def tail(url: str, topics: Sequence[str], after: str, headers: Mapping[str, str]) -> None:
    """Prints what comes, readable on a terminal and as JSON Lines elsewhere, until it is interrupted.

    Returns where nobody reads standard output any more. Raises ChronicleError where the service refuses.
    """
    if sys.stdout is None:
        raise ChronicleError("standard output is closed")
    console, stream = screen.console(), clients.address(url, "/events/stream")
    show = (lambda data: _readable(console, data)) if console.is_terminal else _json_line
    timeout = httpx2.Timeout(SILENT_SECONDS, connect=5)
    with clients.opened(httpx2.Client, stream, timeout=timeout, headers=dict(headers)) as client:
        try:
            Tail(client, str(stream), {"topic": list(topics), "after": after}, show).run()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end


class Tail:
    """Where it is in the stream, and the connection that goes on from there."""

    def __init__(self, client: httpx2.Client, url: str, parameters: dict[str, Any], show: Show) -> None:
        """`show` gets the JSON of each event, once."""
        self._client, self._url, self._parameters, self._show = client, url, parameters, show
        self._place = ""
        self._says = screen.console(stderr=True)

    def run(self) -> None:
        """Goes on for ever. Raises ChronicleError where the service refuses, and what `show` raises."""
        listen = Retrying(retry=retry_if_exception_type(Lost), wait=_seconds, before_sleep=self._say)
        while True:
            listen(self._listen)

    def _listen(self) -> None:
        """One connection, to its end. Raises Lost where it brought no event, for which waiting longer may help."""
        shown, reason = 0, "the service ended it"
        headers = {"Last-Event-ID": self._place} if self._place else {}
        stream = self._client.sse(self._url, params=self._parameters, headers=headers, max_event_size=None)
        try:
            with stream as messages:
                _check(messages.response)
                for message in messages:
                    if message.data:
                        self._show(message.data)
                        shown += 1
                    self._place = message.id
        except httpx2.InvalidURL:
            raise ChronicleError(TOO_MANY) from None
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
        if not shown:
            raise Lost(reason)

    def _say(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            self._says.print(f"no connection to {self._url} ({_lost(state)}): trying again", soft_wrap=True)


def _seconds(state: RetryCallState) -> float:
    """The back-off of this try, or what the service asked for where that is longer."""
    return max(BACKOFF(state), _lost(state).retry_after)


def _lost(state: RetryCallState) -> Lost:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, Lost) else Lost("")


def _check(response: httpx2.Response) -> None:
    """Raises Lost for an answer that may be another one later, ChronicleError for one that says no."""
    kind = response.headers.get("content-type", "")
    if response.status_code == 200 and kind.startswith("text/event-stream"):
        return
    if response.status_code == 414:
        raise ChronicleError(TOO_MANY)
    response.read()
    reason = f"{response.status_code} {_problem(response)}".strip()
    if response.status_code == 429 or response.status_code >= 500:
        raise Lost(reason, clients.retry_after(response.headers.get("retry-after"), datetime.now(UTC)))
    raise ChronicleError(f"{response.url} is refused: {reason}")


def _problem(response: httpx2.Response) -> str:
    try:
        first = response.json()["detail"][0]
        return screen.clean(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "))
    except (ValueError, LookupError, TypeError):
        return response.reason_phrase


def _json_line(data: str) -> None:
    sys.stdout.buffer.write(data.encode() + b"\n")
    sys.stdout.buffer.flush()


def _readable(console: Console, data: str) -> None:
    event = json.loads(data)
    topic = event["topic"]
    style = TOPIC_STYLES[zlib.crc32(topic.encode()) % len(TOPIC_STYLES)]
    payload = json.dumps(event["payload"], ensure_ascii=False)
    shown = payload if len(payload) <= LONGEST_PAYLOAD else payload[:LONGEST_PAYLOAD] + "…"
    keys = [(event["timestamp"], "dim"), (topic, style), (event["event_id"], "bold"), (event["source"], "dim")]
    parts = [Text(screen.clean(text), style=style) for text, style in [*keys, (shown, "")]]
    console.print(Text(" ").join(parts), soft_wrap=True)
