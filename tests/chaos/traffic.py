"""Publishers: 30 % duplicates, a third of them with another payload, some requests that must be refused."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from .journal import Event, Request

CLIENTS = 6
PATIENCE_SECONDS = 25.0
DUPLICATES, CONFLICTS, INVALID = 0.3, 1 / 3, 0.06
MOST_EVENTS = 40
LONGEST_PAUSE = 0.1
TOPICS = ("orders", "Orders", "größe 🚚", "")
STORM_CLIENTS, STORM_REQUESTS, STORM_KEYS = 8, 3, 150


def payload(key: str, version: int) -> dict[str, object]:
    """What the event of this key carries; another version is a conflicting payload."""
    chance = random.Random(f"{key}/{version}")
    odd: list[object] = [0.1 + 0.2, 1e300, -0.0, 2**53 + 1, None, True, '\\ " \u2028 🚚', {"": []}]
    return {
        "message": f"{key} {version}",
        "version": version,
        "timestamp": "2025-01-01T00:00:00+02:00",
        "odd": chance.sample(odd, 3),
        "padding": chance.randbytes(chance.choice((4, 40, 400))).hex(),
    }


def event(source: str, key: str, version: int) -> Event:
    """An event whose topic, timestamp and payload follow from its key."""
    chance = random.Random(key)
    moment = f"2025-01-{chance.randrange(1, 28):02}T{chance.randrange(24):02}:00:00.{chance.randrange(10**6):06}Z"
    return {
        "event_id": key,
        "topic": chance.choice(TOPICS),
        "source": source,
        "payload": payload(key, version),
        "timestamp": moment,
    }


SPOILERS: tuple[Callable[[Event], object], ...] = (
    lambda event: event.pop("topic"),
    lambda event: event.update(event_id=7),
    lambda event: event.update(event_id=""),
    lambda event: event.update(event_id="nul \0"),
    lambda event: event.update(source="x" * 256),
    lambda event: event.update(payload=[1]),
    lambda event: event.update(payload={"message": 1}),
    lambda event: event.update(payload={"text": "\ud800"}),
    lambda event: event.update(payload={"number": float("nan")}),
    lambda event: event.update(timestamp="yesterday"),
    lambda event: event.update(timestamp="0001-01-01T00:00:00+14:00"),
)
"""Each makes an event that must be refused, and with it the whole of its request."""


class Publisher:
    """One client and its keys. What it sends follows from the seed alone, not from any answer."""

    def __init__(self, name: int, seed: int, clients: int = CLIENTS) -> None:
        self.name = name
        self.chance = random.Random(f"{seed}/publisher/{name}")
        self._clients = clients
        self._requests = 0
        self._keys = 0

    def request(self) -> Request:
        """The next request: valid, or, once in a while, with one bad event among good ones that nobody else sends."""
        self._requests += 1
        source = f"{self.name}-{self._requests}"
        size = self.chance.randrange(1, MOST_EVENTS)
        if self.chance.random() >= INVALID:
            return self._made(source, [self._event(source) for _ in range(size)])
        events = [event(source, f"never-{source}-{n}", 0) for n in range(size)]
        self.chance.choice(SPOILERS)(self.chance.choice(events))
        return self._made(source, events, valid=False)

    def overlapping(self, storm: str) -> Request:
        """Keys that every client of a storm sends, in an order of its own."""
        self._requests += 1
        source = f"{self.name}-{self._requests}"
        numbers = self.chance.sample(range(STORM_KEYS), STORM_KEYS)
        return self._made(source, [event(source, f"storm-{storm}-{n}", self.chance.randrange(2)) for n in numbers])

    def _event(self, source: str) -> Event:
        if self._keys and self.chance.random() < DUPLICATES:
            key = f"e{self.chance.randrange(self._clients)}-{self.chance.randrange(self._keys)}"
            version = self.chance.randrange(1, 3) if self.chance.random() < CONFLICTS else 0
            return event(source, key, version)
        self._keys += 1
        return event(source, f"e{self.name}-{self._keys - 1}", 0)

    def _made(self, source: str, events: list[Event], *, valid: bool = True) -> Request:
        escaped = not valid or self.chance.random() < 0.5  # half a surrogate pair can only be sent escaped
        return Request(source, events, json.dumps({"events": events}, ensure_ascii=escaped).encode(), valid)


class Notes(Protocol):
    """What a client writes down: each request before it goes out, and what came of it."""

    def begin(self, request: Request) -> None:
        """A request is about to be sent."""

    def end(self, request: Request, status: int | None, answer: str) -> None:
        """A request was answered (its status and body), or broke (None, and why)."""


class Line:
    """A connection of one client, made again whenever it broke. It sends a request once and never repeats it."""

    def __init__(self, port: int, journal: Notes) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        self._journal = journal

    def send(self, request: Request) -> None:
        """Sends a request and writes down what came of it."""
        self._journal.begin(request)
        try:
            self._http.request("POST", "/publish", request.body, {"Content-Type": "application/json"})
            answer = self._http.getresponse()
            text = answer.read().decode()
            if "Content-Length" not in answer.headers:  # cut within the headers, which http.client takes for an end
                raise http.client.IncompleteRead(text.encode())
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            self._journal.end(request, None, repr(error))
        else:
            self._journal.end(request, answer.status, text)

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()


class Traffic:
    """All clients of a round, each in a thread of its own."""

    def __init__(self, port: int, journal: Notes, seed: int, *, first: int = 0, every: float | None = None) -> None:
        """`first` is the name of the first client; it sends `every` so many seconds, or after a pause by chance."""
        self._port = port
        self._journal = journal
        self._seed = seed
        self._every = every
        self._over = threading.Event()
        self._next = first + CLIENTS
        self._threads = [threading.Thread(target=self._publish, args=(name,)) for name in range(first, self._next)]
        self._storms = 0

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every client end the request that it has under way."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def storm(self) -> None:
        """Eight more clients send the same keys, each in an order of its own, at once."""
        self._storms += 1
        first, self._next = self._next, self._next + STORM_CLIENTS
        storm = [
            threading.Thread(target=self._overlap, args=(name, str(self._storms))) for name in range(first, self._next)
        ]
        self._threads += storm
        for thread in storm:
            thread.start()

    def _publish(self, name: int) -> None:
        publisher, line = Publisher(name, self._seed), Line(self._port, self._journal)
        while not self._over.is_set():
            began = time.monotonic()
            line.send(publisher.request())
            pause = publisher.chance.uniform(0, LONGEST_PAUSE)
            self._over.wait(pause if self._every is None else began + self._every - time.monotonic())
        line.close()

    def _overlap(self, name: int, storm: str) -> None:
        publisher, line = Publisher(name, self._seed), Line(self._port, self._journal)
        for _ in range(STORM_REQUESTS):
            line.send(publisher.overlapping(storm))
        line.close()
