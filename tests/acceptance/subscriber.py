"""A subscriber as a browser is one: it reads messages, and connects again with the last id that it knows."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from servers import eventually

RECONNECT_SECONDS = 0.2


@dataclass(frozen=True)
class Message:
    """An event that came, its position, and its JSON as it was sent."""

    position: int
    text: str

    @property
    def event(self) -> Any:
        """The event."""
        return json.loads(self.text)


def blocks(answer: http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    """The fields of each block, whole ones only: one that was cut off is none."""
    fields: dict[str, str] = {}
    while line := answer.readline().decode():
        if line != "\n":
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value
        elif fields:
            yield fields
            fields = {}


@dataclass
class Subscriber:
    """Listens in a thread of its own, through every fault, until it is told to stop."""

    url: str
    topics: Sequence[str] = ()
    after: int | str | None = None
    last_event_id: str = ""
    messages: list[Message] = field(default_factory=list)
    connections: int = 0
    _answer: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        eventually(lambda: self.last_event_id, timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._answer:
            with suppress(OSError, AttributeError):
                self._socket.shutdown(2)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def ids(self) -> list[str]:
        """The event ids, in the order in which they came."""
        return [message.event["event_id"] for message in list(self.messages)]

    def positions(self) -> list[int]:
        """The positions, in the order in which they came."""
        return [message.position for message in list(self.messages)]

    def until(self, done: Callable[[], object], timeout: float = 30) -> None:
        """Waits for what must come."""
        eventually(lambda: bool(done()), timeout)

    def _listen(self) -> None:
        while not self._over.is_set():
            with suppress(OSError, http.client.HTTPException):
                self._connect()
            self._over.wait(RECONNECT_SECONDS)

    def _connect(self) -> None:
        host = urlsplit(self.url)
        connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=25)
        try:
            query = [("topic", topic) for topic in self.topics]
            query += [("after", str(self.after))] if self.after is not None else []
            headers = {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}
            connection.request("GET", f"/events/stream?{urlencode(query)}", headers=headers)
            self._socket = connection.sock
            self._answer = connection.getresponse()
            if self._over.is_set():  # since before there was an answer to break off
                return
            if self._answer.status != 200:
                assert self._answer.status == 503, self._answer.read()
                return
            self.connections += 1
            for block in blocks(self._answer):
                if "data" in block:
                    self.messages.append(Message(int(block["id"]), block["data"]))
                self.last_event_id = block.get("id", self.last_event_id)
        finally:
            connection.close()


def first(url: str, count: int, *, last: str = "", seconds: float = 30, **query: str) -> list[Message]:
    """The first messages that a request for the stream brings."""
    host = urlsplit(url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=seconds)
    headers = {"Last-Event-ID": last} if last else {}
    connection.request("GET", f"/events/stream?{urlencode(query)}", headers=headers)
    messages: list[Message] = []
    deadline = time.monotonic() + seconds
    for block in blocks(connection.getresponse()) if count else ():
        if "data" in block:
            messages.append(Message(int(block["id"]), block["data"]))
        if len(messages) == count or time.monotonic() > deadline:
            break
    connection.close()
    return messages
