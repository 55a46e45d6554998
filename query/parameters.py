"""Query parameters: what they may hold, so that every other text is a 422 and never reaches PostgreSQL."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Header, Path, Query, Request
from pydantic import AfterValidator, BeforeValidator, StringConstraints
from pydantic_core import PydanticCustomError

from chronicle.errors import InvalidRequest
from chronicle.events import EVENT_ID_CHARACTERS, NAME_CHARACTERS, instant
from query import cursor

NOT_UTF8 = "expected percent-encoded UTF-8"
NAMES = ("action", "after", "cursor", "event_id", "from", "limit", "source", "to", "topic")


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character is in no event")
    return text


def _only_digits(text: object) -> object:
    if isinstance(text, str) and not (text.isascii() and text.removeprefix("-").isdigit()):
        raise ValueError("expected a whole number")
    return text


async def readable(request: Request) -> None:
    """Refuses a query string that is not UTF-8: what it would be read as instead is not what the client meant."""
    try:
        given = parse_qsl(request.scope["query_string"].decode("ascii"), keep_blank_values=True, encoding="latin-1")
    except ValueError:
        raise InvalidRequest("string_not_utf8", ["query"], NOT_UTF8) from None
    for name, value in given:
        try:
            (name + value).encode("latin-1").decode()
        except UnicodeError:
            known = [name] if name in NAMES else []
            raise InvalidRequest("string_not_utf8", ["query", *known], NOT_UTF8) from None


def _decoded(text: str) -> str:
    try:
        text.encode()
    except UnicodeError:
        raise PydanticCustomError("string_not_utf8", NOT_UTF8) from None
    return text


Readable = Depends(readable)
Name = Annotated[str | None, Query(max_length=NAME_CHARACTERS), AfterValidator(lambda text: text and _storable(text))]
EventId = Annotated[
    str | None, Query(max_length=EVENT_ID_CHARACTERS), AfterValidator(lambda text: text and _storable(text))
]
_NAMED = (BeforeValidator(_decoded), AfterValidator(_storable))
NamedTopic = Annotated[str, Path(max_length=NAME_CHARACTERS, description="percent-encoded; may be empty"), *_NAMED]
NamedEvent = Annotated[
    str, Path(min_length=1, max_length=EVENT_ID_CHARACTERS, description="percent-encoded, slashes too"), *_NAMED
]
_MOMENT = AfterValidator(lambda text: None if text is None else instant(text))
_DATE_TIME = {"format": "date-time"}
From = Annotated[
    str | None,
    Query(alias="from", max_length=50, description="ISO 8601; at or after", json_schema_extra=_DATE_TIME),
    _MOMENT,
]
To = Annotated[
    str | None, Query(max_length=50, description="ISO 8601; at or before", json_schema_extra=_DATE_TIME), _MOMENT
]
Cursor = Annotated[
    str | None, Query(alias="cursor", max_length=cursor.MAX_LENGTH, description="next_cursor of the page before")
]
WHOLE = BeforeValidator(_only_digits)
Topics = Annotated[
    tuple[Annotated[str, StringConstraints(max_length=NAME_CHARACTERS), AfterValidator(_storable)], ...],
    Query(max_length=100, description="any of these; none: all topics"),
]
_POSITION = "[0-9]{1,16}"
After = Annotated[
    str, Query(pattern=f"^(now|{_POSITION})$", description="`now`, or the `id` of a message; 0: from the beginning")
]
LastEventId = Annotated[
    str | None,
    Header(
        alias="last-event-id",
        pattern=f"^[ \t]*({_POSITION})?[ \t]*$",
        description="what a browser sends when it resumes; empty: nothing",
    ),
]
