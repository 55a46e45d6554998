"""What a hostile client sends, as data: each row is a request on the wire and the answer that it has to get."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

MARK = "hostile-mark"
"""In every row's own text: no answer may repeat it, and nothing with this topic may be stored."""

MIB = 2**20
CLOSED = 0
"""In place of a status: the connection is closed without an answer."""


@dataclass(frozen=True)
class Row:
    """`parts` are sent one after the other; `loc` is what the refusal has to point to, where that is known."""

    name: str
    parts: tuple[bytes | Iterator[bytes], ...]
    status: int
    loc: list[str | int] | None = None

    def __str__(self) -> str:
        return self.name

    def chunks(self) -> Iterator[bytes]:
        """The bytes to send."""
        for part in self.parts:
            yield from ([part] if isinstance(part, bytes) else part)


class Repeated:
    """A piece that is sent so many times."""

    def __init__(self, piece: bytes, times: int) -> None:
        self.piece, self.times = piece, times

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self.times):
            yield self.piece


def head(target: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    """A request line and headers, with an end."""
    return b"\r\n".join([b" ".join([method, target, version]), b"Host: x", b"Connection: close", *headers, b"", b""])


JSON = b"Content-Type: application/json"


def post(body: bytes, *headers: bytes, kind: bytes = JSON) -> bytes:
    """POST /publish with this body and its true length."""
    return head(b"/publish", kind, b"Content-Length: %d" % len(body), *headers, method=b"POST") + body


def opened(*headers: bytes) -> bytes:
    """The head of a POST /publish whose body is still to come."""
    return head(b"/publish", JSON, *headers, method=b"POST")


def event(**fields: Any) -> dict[str, Any]:
    """A valid event but for these fields."""
    good = {"event_id": MARK, "topic": MARK, "source": MARK, "payload": {"message": MARK}, "timestamp": "2025-01-01"}
    return good | fields


def events(*of: Any) -> bytes:
    """A body."""
    return json.dumps({"events": of}).encode()


def raw(field: str, text: bytes) -> bytes:
    """A request of two events, the second with exactly this JSON text in the field."""
    return post(events(event(), event(**{field: "HERE"})).replace(b'"HERE"', text))


def keyed(key: bytes) -> bytes:
    """A request whose event has this text as a name beside the five."""
    return post(b'{"events": [{"' + key + b'": 1, ' + json.dumps(event(topic="odd names")).encode()[1:] + b"]}")


def cursor(*place: Any) -> bytes:
    """A cursor that names this place, as the service itself would write it."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).rstrip(b"=")


CHUNKED = opened(b"Transfer-Encoding: chunked")
RANDOM = random.Random(20)
UUID = "00000000-0000-0000-0000-000000000007"
GOOD = events(event())
LARGE = b"Content-Length: 16777217"
FIRST, AT = ["body", "events", 0], ["body", "events", 1]
TYPE, ENCODING = ["header", "content-type"], ["header", "content-encoding"]


def _query(path: bytes, name: str, *values: bytes, status: int = 422) -> list[Row]:
    return [
        Row(
            f"{path.decode()}?{name} number {number}",
            (head(path + b"?" + name.encode() + b"=" + value),),
            status,
            ["query", name],
        )
        for number, value in enumerate(values)
    ]


NOT_HTTP = [
    Row("a TLS hello", (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",), 400),
    Row("the preface of HTTP/2", (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), 400),
    Row("a version that is none", (head(b"/health", version=b"HTTP/9.9"),), 400),
    Row("a method that is none", (head(b"/health", method=b"HOSTILE-MARK"),), 400),
    Row("random bytes", (RANDOM.randbytes(4096),), 400),
    Row("a line feed alone", (b"GET /health HTTP/1.1\nHost: x\n\n",), 400),
    Row("a folded header", (head(b"/health", b"X: a\r\n b"),), 400),
    Row("a space before the colon", (head(b"/health", b"X : a"),), 400),
    Row("a NUL in a header", (head(b"/health", b"X: a\0b"),), 400),
    Row("a NUL in the path", (head(b"/hea\0lth"),), 400),
    Row("raw UTF-8 in the path", (head("/\u00e9".encode()),), 400),
    Row("raw UTF-8 in the query string", (head("/events?topic=\u00e9".encode()),), 400),
    Row("no version", (b"GET /health\r\n\r\n",), 400),
    Row("HTTP/2.0 in the words of HTTP/1", (head(b"/health", version=b"HTTP/2.0"),), 400),
    Row("no Host", (b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",), 400),
    Row("two Hosts", (head(b"/health", b"Host: y"),), 400),
    Row("HTTP/1.0, which needs no Host", (b"GET /health HTTP/1.0\r\n\r\n",), 200),
    Row(
        "HTTP/1.0 with chunks",
        (
            head(b"/publish", JSON, b"Transfer-Encoding: chunked", method=b"POST", version=b"HTTP/1.0")
            + b"d\r\n"
            + b'{"events":[]}'
            + b"\r\n0\r\n\r\n",
        ),
        400,
    ),
    Row("CONNECT", (head(b"example.org:443", method=b"CONNECT"),), 400),
    Row("a header without a colon", (head(b"/health", MARK.encode()),), 400),
]
HEADERS = [
    Row("a header of 1 MiB", (head(b"/health", b"X: " + b"a" * MIB),), 431),
    Row("a header that does not end", (b"GET /health HTTP/1.1\r\nX: ", Repeated(b"a" * 1000, 2000)), 431),
    Row("an Accept of 30,000 semicolons", (head(b"/", b'Accept: "' + b";" * 30_000),), 200),
    Row("200 headers", (head(b"/health", *[b"X%d: a" % n for n in range(200)]),), 431),
    Row("a hundred thousand headers", (b"GET /health HTTP/1.1\r\n", Repeated(b"X: a\r\n", 100_000)), 431),
    Row("a URL of 20 KB", (head(b"/events?topic=" + b"a" * 20_000),), 414),
    Row("a URL that does not end", (b"GET /", Repeated(b"a" * 1000, 2000)), 414),
    Row("a path of 20 KB", (head(b"/" + b"a" * 20_000),), 414),
    Row("two lengths", (post(GOOD, b"Content-Length: 5"),), 400),
    Row("two equal lengths", (post(GOOD, b"Content-Length: %d" % len(GOOD)),), 400),
    Row("a length and chunks", (post(GOOD, b"Transfer-Encoding: chunked"),), 400),
    Row("a length and a blank", (opened(b"Content-Length: %d " % len(events())) + events(),), 200),
    Row("a negative length", (opened(b"Content-Length: -1"),), 400),
    Row("a length with a plus", (opened(b"Content-Length: +5"),), 400),
    Row("a length that is no number", (opened(b"Content-Length: ten"),), 400),
    Row("a length beyond counting", (opened(b"Content-Length: 1" + b"0" * 30),), 400),
    Row("a length after 5000 zeros", (opened(b"Content-Length: %05000d" % len(events())) + events(),), 200),
    Row("two lengths in one", (opened(b"Content-Length: 13, 13"),), 400),
    Row("a length in hexadecimal", (opened(b"Content-Length: 0xd"),), 400),
    Row("an empty length", (opened(b"Content-Length: "),), 400),
    Row("chunked twice", (opened(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",), 400),
    Row("a header name in UTF-8", (head(b"/health", "X-\u00e9: a".encode()),), 400),
    Row("a header without a name", (head(b"/health", b": a"),), 400),
    Row("a carriage return in a header", (head(b"/health", b"X: a\rb"),), 400),
    Row("an encoding below the chunks", (opened(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",), 400),
    Row("an unknown transfer encoding", (opened(b"Transfer-Encoding: gzip"),), 400),
    Row("two content types", (post(GOOD, b"Content-Type: text/plain"),), 415, TYPE),
    Row("the same content type twice", (post(GOOD, JSON),), 415, TYPE),
    Row("text", (post(GOOD, kind=b"Content-Type: text/plain"),), 415, TYPE),
    Row("a form", (post(b"events=1", kind=b"Content-Type: application/x-www-form-urlencoded"),), 415, TYPE),
    Row("an empty content type", (post(GOOD, kind=b"Content-Type: "),), 415, TYPE),
    Row("image/svg+json", (post(GOOD, kind=b"Content-Type: image/svg+json"),), 415, TYPE),
    Row("JSON that says it is UTF-16", (post(GOOD, kind=JSON + b"; charset=utf-16"),), 415, TYPE),
    Row("a content type of 20 KB", (post(GOOD, kind=b"Content-Type: " + b"a" * 20_000),), 415, TYPE),
    Row("gzip", (post(GOOD, b"Content-Encoding: gzip"),), 415, ENCODING),
    Row("gzip after identity", (post(GOOD, b"Content-Encoding: identity", b"Content-Encoding: br"),), 415, ENCODING),
]  # fmt: skip
BODIES = [
    Row("a declared length over the limit", (opened(LARGE),), 413, ["body"]),
    Row("the same, asked first", (opened(LARGE, b"Expect: 100-continue"),), 413, ["body"]),
    Row("17 MiB", (post(b"[" + b" " * 17 * MIB),), 413, ["body"]),
    Row("an endless chunked body", (CHUNKED, Repeated(b"10000\r\n" + b" " * 65_536 + b"\r\n", 2_000)), 413, ["body"]),
    Row("endless chunks of 16 bytes", (CHUNKED, Repeated(b"10\r\n                \r\n" * 1000, 2_000)), 413, ["body"]),
    Row("a chunk size that is none", (CHUNKED + b"zz\r\n",), 400),
    Row("a chunk size beyond counting", (CHUNKED + b"f" * 40 + b"\r\n",), 400),
    Row("a chunk longer than it says", (CHUNKED + b"2\r\n{}{}\r\n",), 400),
    Row("chunks that end with a line feed", (CHUNKED + b'd\n{"events":[]}\n0\n\n',), 400),
    Row("a chunk size with 0x", (CHUNKED + b'0xd\r\n{"events":[]}\r\n0\r\n\r\n',), 400),
    Row("a line feed in a chunk extension", (CHUNKED + b'd;a\n{"events":[]}\r\n0\r\n\r\n',), 400),
    Row("200,000 chunks of a byte", (CHUNKED, Repeated(b"1\r\n \r\n" * 1000, 200), b"0\r\n\r\n"), 422, ["body"]),
    Row("an endless chunk extension", (CHUNKED + b"5;", Repeated(b"a" * 1000, 2000)), 431),
    Row("endless trailers", (CHUNKED + b"0\r\n", Repeated(b"X: a\r\n" * 100, 2000)), 431),
    Row("one endless trailer", (CHUNKED + b"0\r\nX: ", Repeated(b"a" * 1000, 2000)), 431),
    Row("no body", (post(b""),), 422, ["body"]),
    Row("a body cut by its length", (opened(b"Content-Length: 10") + GOOD,), 422, ["body"]),
    Row("null", (post(b"null"),), 422, ["body"]),
    Row("a list", (post(b"[]"),), 422, ["body"]),
    Row("events that are a text", (post(b'{"events": "%s"}' % MARK.encode()),), 422, ["body", "events"]),
    Row("no events", (post(b"{}"),), 422, ["body", "events"]),
    Row("100,000 empty objects", (post(b'{"events": [' + b"{}," * 99_999 + b"{}]}"),), 422, [*FIRST, "event_id"]),
    Row("10,001 events", (post(events(*[event()] * 10_001)),), 413, ["body", "events"]),
    Row("a million nulls", (post(b'{"events": [' + b"null," * 10**6 + b"null]}"),), 422, FIRST),
    Row("two bodies", (post(GOOD + GOOD),), 422, ["body"]),
    Row("UTF-16", (post(GOOD.decode().encode("utf-16")),), 422, ["body"]),
    Row("a byte order mark", (post(b"\xef\xbb\xbf" + GOOD),), 422, ["body"]),
    Row("bytes that are not UTF-8", (post(GOOD.replace(MARK.encode(), b"\xff\xfe")),), 422, ["body"]),
    Row("an overlong NUL", (post(GOOD.replace(MARK.encode(), b"\xc0\x80")),), 422, ["body"]),
    Row("a surrogate as UTF-8", (post(GOOD.replace(MARK.encode(), b"\xed\xa0\x80")),), 422, ["body"]),
    Row("a NUL byte", (post(GOOD.replace(MARK.encode(), b"a\0b")),), 422, ["body"]),
    Row("lists 7 million deep", (post(b'{"events":' + b"[" * 7 * MIB + b"]" * 7 * MIB),), 422, FIRST),
    Row("an ignored key too deep", (post(b'{"x":' + b"[" * 10**5 + b"]" * 10**5 + b"," + GOOD[1:]),), 422, ["body"]),
    Row("half a pair after lists", (post(b'{"x":[' + b"[]," * 5 * 10**6 + b'"\\ud800"],' + GOOD[1:]),), 422, ["body"]),
]  # fmt: skip
VALUES = [
    *[Row(f"{name} {text!r}", (raw(name, text),), 422, [*AT, name])
      for name in ("event_id", "topic", "source", "timestamp")
      for text in (b"1", b"null", b"true", b"{}", b'["a"]', b'"a\\u0000"', b'"\\ud800"', b'"x\\udfff"',
                   b'"\\ude00\\ud83d"')],
    *[Row(f"payload refused {number}: {text[:24]!r}", (raw("payload", text),), 422, [*AT, "payload"])
      for number, text in enumerate((
                   b"1", b'"{}"', b"[]", b"null", b'{"a": "\\u0000"}', b'{"\\u0000": 1}', b'{"a": {"\\ud800": 1}}',
                   b'{"a": [[{"b": "\\udc00"}]]}', b'{"a": "\\u0000", "a": 1}', b'{"a": 1e999}', b'{"a": -1E+400}',
                   b'{"a": 1e-5000}', b'{"a": 1e131071}', b'{"a": 1e99999999999999999999}',
                   b'{"a": ' + b"9" * 5_000 + b"}",
                   b'{"a": ' + b"9" * 15 * MIB + b"}", b'{"a": 0.' + b"3" * 20_000 + b"}",
                   b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", b'{"a": ' * 150 + b"1" + b"}" * 150,
                   b'{"a": [' + (b"[" * 98 + b"]" * 98 + b",") * 50_000 + b"[" * 100 + b"]" * 100 + b"]}"))],
    *[Row(f"payload {text[:24]!r}", (raw("payload", text),), 422, ["body"])
      for text in (b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": 01}', b'{"a": 0x1}', b"{'a': 1}",
                   b'{"a": 1,}', b'{"a": "\x01"}', b'{"a": "\\x"}', b'{"a": "\\ud8"}', b'{"a": tru}', b'{a: 1}')],
    Row("payload.message a number", (raw("payload", b'{"message": 1}'),), 422, [*AT, "payload", "message"]),
    Row("payload.timestamp no time", (raw("payload", b'{"timestamp": "now"}'),), 422, [*AT, "payload", "timestamp"]),
    Row("a NUL in a name that is ignored", (keyed(b"\\u0000"),), 200),
    Row("half a pair in a name that is ignored", (keyed(b"\\ud800"),), 422, ["body"]),
    *[Row(f"timestamp {text[:30]!r}", (raw("timestamp", json.dumps(text).encode()),), 422, [*AT, "timestamp"])
      for text in ("", "now", "infinity", "1735689600", "0000-01-01", "10000-01-01T00:00:00Z",
                   "0001-01-01T00:00:00+14:00",
                   "9999-12-31T23:59:59-14:00", "2025-02-29", "2016-12-31T23:59:60Z",
                   "2025-01-01T24:00:00Z", "2025-001", "2025-01-01T00:00:00+01:00:30",
                   "+2025-01-01", "2025-01-01T00:00:00.Z",
                   "2025-01-01T00:00:00\u221201:00", "2025-01-01T00:00:00+24:00", "2025-01-01T00:00:00+99:99",
                   "\u0662\u0660\u0662\u0665-01-01", "2025-01-01T00:00:00\u2028", "2025-W01-1",
                   "2025-01-01" + " " * 10**6)],
    Row("an id of 513 characters", (raw("event_id", b'"%s"' % (b"a" * 513)),), 422, [*AT, "event_id"]),
    Row("an id of 1026 bytes", (raw("event_id", json.dumps("\u8a9e" * 342).encode()),), 422, [*AT, "event_id"]),
    Row("an id of 15 MiB", (raw("event_id", b'"%s"' % (b"a" * 15 * MIB)),), 422, [*AT, "event_id"]),
    Row("a topic of 513 bytes", (raw("topic", json.dumps("\u8a9e" * 171).encode()),), 422, [*AT, "topic"]),
    Row("a source of 256 characters", (raw("source", b'"%s"' % (b"a" * 256)),), 422, [*AT, "source"]),
    Row("an empty id", (raw("event_id", b'""'),), 422, [*AT, "event_id"]),
]  # fmt: skip
BAD_TEXT = (b"%00", b"a%00b", b"%ff", b"%ED%A0%80", b"%C0%80", b"a" * 600)
BAD_CURSORS = (
    b"", b"x", b"!!!!", b"%C3%A9", b"AAAA", b"a" * 5000, b"%00",
    cursor("2025-01-01T00:00:00Z", 2**64 - 1, 1), cursor("2025-01-01T00:00:00Z", -1, 1),
    cursor("2025-01-01T00:00:00Z", UUID, 2**31), cursor("2025-01-01T00:00:00Z", UUID, -1),
    cursor("2025-01-01T00:00:00", UUID, 1), cursor("0000-01-01T00:00:00Z", UUID, 1),
    cursor("10000-01-01T00:00:00Z", UUID, 1),
    cursor("2025-01-01T00:00:00+99:00", UUID, 1), cursor(None, UUID, 1), cursor(1.5, UUID, 1), cursor("now", UUID, 1),
    cursor("2025-01-01T00:00:00Z", "x", 1), cursor("2025-01-01T00:00:00Z", None, 1),
    cursor("2025-01-01T00:00:00Z", UUID, None),
    cursor("2025-01-01T00:00:00Z", UUID), cursor(), cursor([[]], {"a": 1}, b"\xff"),
)  # fmt: skip
BAD_LIMITS = (
    b"0",
    b"-1",
    b"100001",
    b"9" * 30,
    b"1.5",
    b"1e2",
    b"0x10",
    b"",
    b"ten",
    b"%D9%A1",
    b"%201",
    b"1_0",
    b"NaN",
    b"true",
)
BAD_TIMES = (
    b"",
    b"now",
    b"0000-01-01",
    b"10000-01-01T00:00:00Z",
    b"0001-01-01T00:00:00%2B14:00",
    b"2025-13-01",
    b"%00",
    b"1" * 500,
)
QUERIES = [
    *_query(b"/events", "topic", *BAD_TEXT),
    *_query(b"/events", "event_id", *BAD_TEXT),
    *_query(b"/events", "source", *BAD_TEXT),
    *_query(b"/audit", "topic", *BAD_TEXT),
    *_query(b"/audit", "event_id", *BAD_TEXT),
    *_query(b"/audit", "action", b"", b"received", b"DELETED", b"RECEIVED%00", b"%ff", b"'"),
    *[row for path in (b"/events", b"/audit") for row in _query(path, "limit", *BAD_LIMITS)],
    *[row for path in (b"/events", b"/audit") for name in ("from", "to") for row in _query(path, name, *BAD_TIMES)],
    *[row for path in (b"/events", b"/audit") for row in _query(path, "cursor", *BAD_CURSORS)],
    Row("a name that is not UTF-8", (head(b"/events?%ff=1"),), 422, ["query"]),
    Row("not UTF-8 where there are no parameters", (head(b"/stats?x=%ff"),), 422, ["query"]),
]
ROUTES = [
    Row("an unknown path", (head(b"/" + MARK.encode()),), 404),
    Row("a path of NULs", (head(b"/%00%00"),), 404),
    Row("a path that is not UTF-8", (head(b"/%ff%fe"),), 404),
    Row("a path that climbs", (head(b"/../../etc/passwd"),), 404),
    Row("a slash too many", (head(b"/events/"),), 404),
    Row("two slashes", (head(b"//events"),), 404),
    Row("GET /publish", (head(b"/publish"),), 405),
    Row("DELETE /events", (head(b"/events", method=b"DELETE"),), 405),
    Row("PUT /publish", (head(b"/publish", b"Content-Length: 0", method=b"PUT"),), 405),
    Row("TRACE", (head(b"/health", method=b"TRACE"),), 405),
    Row("OPTIONS", (head(b"/publish", method=b"OPTIONS"),), 405),
]
STALLED = [
    Row("nothing at all", (), CLOSED),
    Row("half a request line", (b"GET /hea",), 408),
    Row("half the headers", (b"POST /publish HTTP/1.1\r\nHost: x\r\nContent-Le",), 408),
    Row("empty lines", (b"\r\n\r\n",), 408),
    Row("half a body", (opened(b"Content-Length: 1000") + GOOD,), 408),
    Row("half a chunk", (CHUNKED + b"1000\r\n{",), 408),
    Row("no last chunk", (CHUNKED + b"2\r\n{}\r\n",), 408),
]
"""These are answered once the service has waited long enough."""

LEFT_TO_A_GATEWAY = {
    "no version",
    "a line feed alone",
    "a header name in UTF-8",
    "chunks that end with a line feed",
    "a line feed in a chunk extension",
    "a header without a colon",
    "an endless chunk extension",
    "endless trailers",
    "one endless trailer",
    "a path of NULs",
    "a path that climbs",
}
"""What nginx allows, closes without an answer or refuses with another status, before the service has seen it.

What it allows it does not hand on: it leaves such a header out, and reads chunks whole, to send them on its own way. A
request without a version gets its refusal without a head, as HTTP/0.9 has it.
"""

QUICK = [*NOT_HTTP, *HEADERS, *BODIES, *VALUES, *QUERIES, *ROUTES]
