"""The event model: what a request body must be, and the columns that a batch becomes.

A body is decoded and checked in one pass. Payloads stay the bytes that were sent; a payload is looked into only as
far as needed to know that PostgreSQL can store it and that every reader can take it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from typing import Annotated, NoReturn

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from chronicle import payloads
from chronicle.errors import InvalidRequest, TooLarge

EVENT_ID_CHARACTERS, EVENT_ID_BYTES = 512, 1024
NAME_CHARACTERS, NAME_BYTES = 255, 512


class Event(Struct, gc=False):
    """One event as a publisher sends it. Other keys are ignored."""

    event_id: Annotated[str, Meta(min_length=1, max_length=EVENT_ID_CHARACTERS)]
    topic: Annotated[str, Meta(max_length=NAME_CHARACTERS)]
    source: Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS)]
    payload: Raw
    timestamp: str


class _Body(Struct):
    events: list[Event]


class _Payload(Struct, gc=False):
    message: str | UnsetType = UNSET
    timestamp: str | UnsetType = UNSET


class _UsualPayload(Struct, gc=False):
    message: str | UnsetType = UNSET
    timestamp: datetime = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Events:
    """Events as columns, in order; an event's position in a batch is its index here plus one.

    `timestamps` have an offset; `payloads` are JSON objects as UTF-8.
    """

    event_ids: list[str] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    timestamps: list[datetime] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.event_ids)

    @classmethod
    def joined(cls, parts: Iterable[Events]) -> Events:
        """All events of the parts, one after the other."""
        whole = cls()
        for part in parts:
            whole.event_ids += part.event_ids
            whole.topics += part.topics
            whole.sources += part.sources
            whole.payloads += part.payloads
            whole.timestamps += part.timestamps
        return whole


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_payload = msgspec.json.Decoder(_Payload).decode
_decode_usual_payloads = msgspec.json.Decoder(list[_UsualPayload]).decode
_decode_usual_times = msgspec.json.Decoder(list[datetime]).decode
_EDGES = frozenset((MINYEAR, MAXYEAR))
_DIGITS = bytes.maketrans(b"123456789", b"000000000")

_ISO_8601 = re.compile(
    r"\d{4}(?:-\d\d-\d\d|\d{4})(?:[Tt ]\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?(?:[Zz]|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)


def decode(body: bytes, max_events: int) -> Events:
    """The events of a request body `{"events": [...]}` as UTF-8 JSON.

    Raises TooLarge for more than max_events and InvalidRequest, naming event and field, for anything that the
    contract refuses: every event that is returned can be stored and read back.
    """
    if (usual := _usual(body)) and len(usual) <= max_events:
        return usual
    try:
        return _closely(body, max_events)
    except msgspec.DecodeError as error:
        if not payloads.storable(body):
            # msgspec calls half a surrogate pair malformed JSON and no more; a NUL is refused by its place.
            with suppress(msgspec.DecodeError):
                _closely(payloads.with_nul_for_half_pairs(body), max_events)
        raise InvalidRequest("json_invalid", ["body"], str(error)) from None


def _closely(body: bytes, max_events: int) -> Events:
    """Like `decode`, for any body; raises msgspec.DecodeError where it is not JSON."""
    try:
        body.decode()
        found = _decode_body(body).events
    except UnicodeDecodeError:
        raise InvalidRequest("json_invalid", ["body"], "the body is not valid UTF-8") from None
    except RecursionError:
        raise InvalidRequest("json_invalid", ["body"], payloads.TOO_DEEP) from None
    except msgspec.ValidationError as error:
        raise _explained(str(error), ["body"]) from None
    if len(found) > max_events:
        raise TooLarge("too_many_events", ["body", "events"], f"at most {max_events} events a request")
    return _columns(
        found,
        [_payload(event.payload, index) for index, event in enumerate(found)],
        [_timestamp(event.timestamp, index) for index, event in enumerate(found)],
        plain=_is_plain(body),
    )


def _usual(body: bytes) -> Events | None:
    """The events of a body with nothing unusual in it, in a third of the time; None where it has, or is wrong.

    All times are read in one call, so are all payloads, and what would need a closer look (escapes, years at the edge,
    more than six decimals, which msgspec would round) is looked for in all of them together.
    """
    try:
        if not body.isascii():
            body.decode()
        found = _decode_body(body).events
        moments = _usual_times([event.timestamp for event in found])
        contents = [bytes(event.payload) for event in found]
        together = b"[" + b",".join(contents) + b"]"
        inside = _decode_usual_payloads(together)
    except (ValueError, RecursionError, msgspec.DecodeError):
        return None
    if not _EDGES.isdisjoint([payload.timestamp.year for payload in inside]):
        return None
    # Each payload has a bracket of its own: what is left is how many one of them may have more.
    flat = together.count(b"{") + together.count(b"[") - len(found) < payloads.MAX_DEPTH
    if not (flat and not payloads.suspect(together)) and any(map(payloads.problem, contents)):
        return None
    return _columns(found, contents, moments, plain=_is_plain(body))


def _usual_times(texts: list[str]) -> list[datetime]:
    """The moments, with an offset. Raises ValueError or msgspec.DecodeError where one of the texts is no usual time."""
    together = ('["' + '","'.join(texts) + '"]').encode() if texts else b"[]"
    if b"\\" in together or b".0000000" in together.translate(_DIGITS):
        raise ValueError("a time to look at closely")
    moments = _decode_usual_times(together)
    if len(moments) != len(texts) or not _EDGES.isdisjoint([moment.year for moment in moments]):
        raise ValueError("a time to look at closely")
    return [moment if moment.tzinfo else moment.replace(tzinfo=UTC) for moment in moments]


def instant(text: str) -> datetime:
    """The moment that an ISO 8601 text names, in UTC, cut to the microsecond; without an offset it is UTC.

    Raises ValueError for other text, and for a moment that does not exist or is outside the years 1 to 9999 of UTC.
    """
    if not _ISO_8601.fullmatch(text):
        raise ValueError("expected an ISO 8601 time such as 2025-01-01T00:00:00Z")
    try:
        moment = datetime.fromisoformat(text.upper())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("not an ISO 8601 time that exists, of the years 1 to 9999 in UTC") from None


def _is_plain(body: bytes) -> bool:
    """Whether there is nothing in it for which characters and bytes would have to be counted apart."""
    return body.isascii() and (b"\\" not in body or b"\\u" not in body)


def _columns(found: Sequence[Event], contents: list[bytes], moments: list[datetime], *, plain: bool) -> Events:
    if not plain:
        for index, event in enumerate(found):
            _check_names(event, index)
    return Events(
        [event.event_id for event in found],
        [event.topic for event in found],
        [event.source for event in found],
        contents,
        moments,
    )


def _check_names(event: Event, index: int) -> None:
    for name, text, limit in (
        ("event_id", event.event_id, EVENT_ID_BYTES),
        ("topic", event.topic, NAME_BYTES),
        ("source", event.source, NAME_BYTES),
    ):
        if "\0" in text:
            _refuse("string_not_storable", index, name, payloads.NOT_STORABLE)
        if len(text.encode()) > limit:
            _refuse("string_too_long", index, name, f"at most {limit} bytes of UTF-8")


def _timestamp(text: str, index: int) -> datetime:
    try:
        return instant(text)
    except ValueError as error:
        _refuse("datetime_invalid", index, "timestamp", str(error))


def _payload(raw: Raw, index: int) -> bytes:
    try:
        payload = _decode_payload(raw)
    except msgspec.ValidationError as error:
        raise _explained(str(error), ["body", "events", index, "payload"]) from None
    content = bytes(raw)
    if payload.timestamp is not UNSET:
        try:
            instant(payload.timestamp)
        except ValueError as error:
            _refuse("datetime_invalid", index, "payload", "timestamp", str(error))
    if found := payloads.problem(content):
        _refuse(found[0], index, "payload", found[1])
    return content


_MISSING = re.compile(r"Object missing required field `(\w+)`")
_PATH = re.compile(r" - at `\$(.*)`$")


def _explained(message: str, prefix: list[str | int]) -> InvalidRequest:
    """A msgspec message ("Expected `str`, got `int` - at `$.events[0].topic`") in FastAPI's error shape."""
    loc = list(prefix)
    if path := _PATH.search(message):
        loc += [int(part) if part.isdigit() else part for part in re.findall(r"\w+", path[1])]
    message = _PATH.sub("", message)
    if missing := _MISSING.match(message):
        return InvalidRequest("missing", [*loc, missing[1]], "Field required")
    return InvalidRequest("type_error", loc, message.replace("`", ""))


def _refuse(kind: str, index: int, *rest: str) -> NoReturn:
    *path, message = rest
    raise InvalidRequest(kind, ["body", "events", index, *path], message)
