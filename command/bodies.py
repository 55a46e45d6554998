"""Request bodies: checked by their headers, read whole, and counted, so that all of them together stay bounded."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from chronicle.errors import InvalidRequest, NotJson, Overloaded, TooLarge

SMALL = 2**20
"""Larger bodies are refused once half of the room is taken, so that a few that come slowly shut out no others."""

JSON = [b"application/json"]
CHARSETS = (b"", b"utf-8", b"utf8", b"us-ascii")

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them, with names in lower case."""


class Bodies:
    """The bodies that a process holds, from their first byte until their request is answered."""

    def __init__(self, most_each: int, most_together: int) -> None:
        """Both in bytes."""
        self._most_each = most_each
        self._most_together = most_together
        self._held = 0

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, which counts until it is given to `forget`.

        Raises NotJson or TooLarge as soon as the body is known to be so, Overloaded, and ClientDisconnect.
        """
        self._check(headers)
        received = bytearray()
        unfinished = True
        try:
            while unfinished:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                self._held += len(chunk)
                received += chunk
                self._check_room(len(received))
                unfinished = message.get("more_body", False)
        except BaseException:
            self._held -= len(received)
            raise
        return bytes(received)

    def forget(self, body: bytes) -> None:
        """Its request is answered."""
        self._held -= len(body)

    def _check(self, headers: Headers) -> None:
        kinds, length = [], b"0"
        for name, value in headers:
            if name == b"content-type":
                kinds.append(value)
            elif name == b"content-length":
                length = value.strip()
            elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise NotJson("content_encoding", ["header", "content-encoding"], "the body must not be encoded")
        if kinds and kinds != JSON:
            _check_unusual_type(kinds)
        if not length.isdigit():
            raise InvalidRequest("header_invalid", ["header", "content-length"], "not a number")
        if int(length.lstrip(b"0") or b"0") > self._most_each:  # int() takes 4300 digits, and zeros count
            raise self._too_large()

    def _check_room(self, size: int) -> None:
        if size > self._most_each:
            raise self._too_large()
        room = self._most_together if size <= SMALL else self._most_together // 2
        if self._held > room and size < self._held:  # alone it may be larger
            raise Overloaded("too many bytes are being received: try again later")

    def _too_large(self) -> TooLarge:
        return TooLarge("body_too_large", ["body"], f"at most {self._most_each} bytes a request")


def _check_unusual_type(given: list[bytes]) -> None:
    kind, *parameters = [part.strip().lower() for part in given[0].split(b";")]
    if len(given) > 1 or (
        kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json"))
    ):
        raise NotJson("content_type", ["header", "content-type"], "the body must be application/json")
    if any(
        name == b"charset" and value.strip(b'"') not in CHARSETS
        for name, _, value in (p.partition(b"=") for p in parameters)
    ):
        raise NotJson("content_type", ["header", "content-type"], "the body must be UTF-8")
