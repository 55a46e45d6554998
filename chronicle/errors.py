"""Every error of ChronicleWeaver, under one root; a class's docstring is its default message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class ChronicleError(Exception):
    """Something went wrong in ChronicleWeaver."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class SettingsError(ChronicleError):
    """A setting is not valid."""


class StartError(ChronicleError):
    """A part of the system could not be started."""


class DatabaseAway(ChronicleError):
    """PostgreSQL cannot be reached."""


class BrokerAway(ChronicleError):
    """Redis cannot be reached."""


class SchemaBehind(ChronicleError):
    """The database schema is not the one this version needs: run `chronicle migrate`."""


class NotAllowed(ChronicleError):
    """The database user may not do what this needs: run `chronicle migrate` as the owner of the tables."""


class NotDurable(ChronicleError):
    """PostgreSQL is set up to lose what it has committed."""


class Overloaded(ChronicleError):
    """The service has too much in flight: try again later."""


class Problem(TypedDict):
    """One entry of an error answer's `detail`, in FastAPI's shape."""

    type: str
    loc: list[str | int]
    msg: str


class InvalidRequest(ChronicleError):
    """The request is not valid."""

    status = 422

    def __init__(self, kind: str, loc: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.problem = Problem(type=kind, loc=list(loc), msg=message)


class NotThere(InvalidRequest):
    """There is nothing of that name."""

    status = 404


class TooLarge(InvalidRequest):
    """The request is larger than a limit allows."""

    status = 413


class NotJson(InvalidRequest):
    """The body is, by its headers, something else than JSON as it is."""

    status = 415
