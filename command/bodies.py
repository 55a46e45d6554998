"""Request bodies: checked by their headers, read whole, and counted, so that all of them together stay bounded."""

from __future__ import annotations

from fastapi import Request

from chronicle.errors import InvalidRequest, NotJson, Overloaded, TooLarge

SMALL = 2**20
"""Larger bodies together get half of the room, so that a few clients that send slowly do not shut out the others."""

JSON = ["application/json"]
CHARSETS = ("", "utf-8", "utf8", "us-ascii")


class Bodies:
    """The bodies that a process holds, from their first byte until their request is answered."""

    def __init__(self, most_each: int, most_together: int) -> None:
        """Both in bytes."""
        self._most_each = most_each
        self._most_together = most_together
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The whole body, which counts until it is given to `forget`.

        Raises NotJson or TooLarge as soon as the body is known to be so, and Overloaded.
        """
        _check_type(request)
        self._check_length(request)
        received = bytearray()
        try:
            async for chunk in request.stream():
                self._held += len(chunk)
                received += chunk
                self._check_room(len(received))
        except BaseException:
            self._held -= len(received)
            raise
        return bytes(received)

    def forget(self, body: bytes) -> None:
        """Its request is answered."""
        self._held -= len(body)

    def _check_length(self, request: Request) -> None:
        declared = request.headers.get("content-length", "0")
        if not declared.isascii() or not declared.isdigit():
            raise InvalidRequest("header_invalid", ["header", "content-length"], "not a number")
        if int(declared) > self._most_each:
            raise self._too_large()

    def _check_room(self, size: int) -> None:
        if size > self._most_each:
            raise self._too_large()
        room = self._most_together if size <= SMALL else self._most_together // 2
        if size < self._held > room:
            raise Overloaded("too many bytes are being received: try again later")

    def _too_large(self) -> TooLarge:
        return TooLarge("body_too_large", ["body"], f"at most {self._most_each} bytes a request")


def _check_type(request: Request) -> None:
    given = request.headers.getlist("content-type") or JSON
    if given != JSON:
        _check_unusual_type(given)
    if any(value.strip().lower() not in ("", "identity") for value in request.headers.getlist("content-encoding")):
        raise NotJson("content_encoding", ["header", "content-encoding"], "the body must not be encoded")


def _check_unusual_type(given: list[str]) -> None:
    kind, *parameters = [part.strip().lower() for part in given[0].split(";")]
    if len(given) > 1 or (
        kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json"))
    ):
        raise NotJson("content_type", ["header", "content-type"], "the body must be application/json")
    if any(
        name == "charset" and value.strip('"') not in CHARSETS
        for name, _, value in (p.partition("=") for p in parameters)
    ):
        raise NotJson("content_type", ["header", "content-type"], "the body must be UTF-8")
