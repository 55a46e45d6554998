"""Cursors: where a page ended, as opaque text. It names a place in an order, so nothing is skipped or repeated."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from chronicle.errors import InvalidRequest

MAX_LENGTH = 200
Place = TypeVar("Place", bound=msgspec.Struct)
BigInt = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Int = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Moment = Annotated[datetime, Meta(tz=True)]
"""What PostgreSQL can take: a cursor is somebody else's text."""


def encode(place: msgspec.Struct) -> str:
    """The text for a place."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).rstrip(b"=").decode()


def decode(text: str | None, kind: type[Place]) -> Place | None:
    """The place that a text names. Raises InvalidRequest for text that `encode` did not make."""
    if text is None:
        return None
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return msgspec.msgpack.decode(base64.b64decode(padded, b"-_", validate=True), type=kind)
    except (ValueError, msgspec.MsgspecError):
        raise InvalidRequest("cursor_invalid", ["query", "cursor"], "not a cursor of this route") from None
