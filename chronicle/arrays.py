"""Arrays that go to PostgreSQL in binary.

psycopg sends a list as text, and looks at each element for what has to be escaped: for a small batch that took longer
than all else that is done in Python to project it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

type_oids = psycopg.postgres.types


class TextArray(list[str]):
    """A list that is a text[]."""


class JsonArray(list[bytes]):
    """JSON documents as UTF-8 that are a json[]."""


class BytesArray(list[bytes]):
    """A list that is a bytea[]."""


class UuidArray(list[UUID]):
    """A list that is a uuid[]."""


class PackedUuids(bytes):
    """UUIDs of 16 bytes, each after its length, as they are in a uuid[]."""


class IntArray(list[int]):
    """A list that is an int[]."""


class MomentArray(list[datetime]):
    """Moments with an offset that are a timestamptz[]."""


UUID_TEXT, HYPHENS = 36, (8, 13, 18, 23)
LENGTH_OF_UUID = "00000010"
"""What stands before each UUID of a uuid[], as hexadecimal digits."""

PACKED_BYTES = 20
"""A UUID and its length."""


def uuids(texts: Sequence[str]) -> PackedUuids | None:
    """The texts as UUIDs; None where one of them is not to the character what PostgreSQL writes for a uuid."""
    if set(map(len, texts)) != {UUID_TEXT}:
        return None
    joined = LENGTH_OF_UUID + LENGTH_OF_UUID.join(texts)
    size = len(LENGTH_OF_UUID)
    if any(joined[size + at :: size + UUID_TEXT].strip("-") for at in HYPHENS):
        return None
    digits = joined.replace("-", "")
    try:
        packed = PackedUuids.fromhex(digits)
    except ValueError:
        return None
    # Each text has four hyphens at least: where the length is right, none has more.
    return packed if len(packed) == PACKED_BYTES * len(texts) and packed.hex() == digits else None


def register(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Lets statements of this connection have these arrays as parameters."""
    for kind, dumper in _DUMPERS.items():
        connection.adapters.register_dumper(kind, dumper)


def _array(element: int, count: int, body: bytes) -> bytes:
    """An array in PostgreSQL's binary format (src/backend/utils/adt/arrayfuncs.c, array_recv)."""
    return struct.pack(">iiIii", 1, 0, element, count, 1) + body if count else struct.pack(">iiI", 0, 0, element)


_length = struct.Struct(">I").pack


def _prefixed(items: Sequence[bytes]) -> bytes:
    parts = [b""] * (2 * len(items))
    parts[0::2] = map(_length, map(len, items))
    parts[1::2] = items
    return b"".join(parts)


def _of_size(size: int, items: Sequence[bytes]) -> bytes:
    parts = [_length(size)] * (2 * len(items))
    parts[1::2] = items
    return b"".join(parts)


_dump_moment = cast(
    Callable[[datetime], bytes],
    psycopg.adapters.get_dumper_by_oid(type_oids["timestamptz"].oid, Format.BINARY)(datetime).dump,
)
"""psycopg's own, in C where it has been compiled."""


class _Dumper(Dumper):
    """The elements are bytes as they are; the others make bytes of them."""

    format = Format.BINARY
    element = type_oids["bytea"]

    def __init_subclass__(cls) -> None:
        cls.oid = cls.element.array_oid

    def dump(self, obj: Any) -> Buffer:
        return _array(self.element.oid, len(obj), self.body(obj))

    def body(self, obj: Any) -> bytes:
        return _prefixed(obj)


class _BytesDumper(_Dumper):
    pass


class _JsonDumper(_Dumper):
    element = type_oids["json"]


class _TextDumper(_Dumper):
    element = type_oids["text"]

    def body(self, obj: TextArray) -> bytes:
        # Each text once: of the topics and sources of a batch there are few.
        elements = {text: _length(len(item)) + item for text in set(obj) for item in (text.encode(),)}
        return b"".join(map(elements.__getitem__, obj))


class _UuidDumper(_Dumper):
    element = type_oids["uuid"]

    def body(self, obj: UuidArray) -> bytes:
        return _of_size(16, [uuid.bytes for uuid in obj])


class _PackedUuidsDumper(_Dumper):
    element = type_oids["uuid"]

    def dump(self, obj: PackedUuids) -> Buffer:
        return _array(self.element.oid, len(obj) // PACKED_BYTES, obj)


class _IntDumper(_Dumper):
    element = type_oids["int4"]

    def body(self, obj: IntArray) -> bytes:
        parts = [4] * (2 * len(obj))
        parts[1::2] = obj
        return struct.pack(f">{len(parts)}i", *parts)


class _MomentDumper(_Dumper):
    element = type_oids["timestamptz"]

    def body(self, obj: MomentArray) -> bytes:
        return _of_size(8, list(map(_dump_moment, obj)))


_DUMPERS = {
    TextArray: _TextDumper,
    JsonArray: _JsonDumper,
    BytesArray: _BytesDumper,
    UuidArray: _UuidDumper,
    PackedUuids: _PackedUuidsDumper,
    IntArray: _IntDumper,
    MomentArray: _MomentDumper,
}
