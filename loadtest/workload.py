"""What is sent: the publisher's own events, as HTTP requests that are made before the clock starts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from publisher.generator import generate, wall_clock

DUPLICATES = 0.3


def events(count: int) -> list[bytes]:
    """`count` events as JSON that nobody has sent before, 30 % of which repeat an earlier one of them."""
    return list(generate(count, DUPLICATES, random.Random(), wall_clock))


def requests(made: Sequence[bytes], size: int) -> list[bytes]:
    """The events as whole POST /publish requests of `size` events each."""
    return [publish(made[start : start + size]) for start in range(0, len(made), size)]


def publish(made: Sequence[bytes]) -> bytes:
    """One POST /publish request."""
    body = b'{"events":[' + b",".join(made) + b"]}"
    head = f"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def get(path: str) -> bytes:
    """One GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def first_sightings(made: Sequence[bytes], size: int) -> dict[int, list[str]]:
    """By number of the request of `size` events: the event_ids that no event before them has."""
    seen: set[bytes] = set()
    found: dict[int, list[str]] = {}
    for place, event in enumerate(made):
        if event not in seen:
            seen.add(event)
            found.setdefault(place // size, []).append(msgspec.json.decode(event)["event_id"])
    return found
