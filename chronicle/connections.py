"""A client's connection: uvicorn's, with an end to everything that a client could draw out, and errors in our shape.

uvicorn has no deadline for a request that comes in pieces, no bound for headers, and answers what is not HTTP in plain
text. Here every connection is looked at now and then, and what takes too long is refused with a 408 or cut.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
import resource
from collections.abc import Callable, Iterable
from itertools import chain

import httptools
import msgspec
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from chronicle import metrics
from chronicle.errors import Problem

HEAD_SECONDS = 15.0
"""For the request line and the headers; also for the first byte of a new connection."""

SILENT_SECONDS = 15.0
"""How long a body may stop coming, and how long an answer may stop being read."""

BODY_SECONDS = 60.0
"""For a whole body."""

ANSWER_SECONDS = 60.0
"""For reading a whole answer: until then it takes memory."""

LINGER_SECONDS = 10.0
"""How long a client may go on sending after its answer: closing at once would take the answer back, unread."""

LOOK_SECONDS = 1.0
MAX_URL_BYTES = 16 * 2**10
MAX_HEAD_BYTES = 32 * 2**10
MAX_HEADERS = 100
MAX_PIPELINED = 100
MAX_UNREAD_BYTES = 64 * 2**20
"""What is thrown away of a body that was refused before it came, so that its sender gets to read why."""

LARGE_ANSWER = 64 * 2**10
MAX_UNSENT_BYTES = 256 * 2**20
"""What all answers that nobody has read yet may take together; beyond it, who is longest at it is cut."""

MOST_FILES, OTHER_FILES = 10_240, 200
"""Open files that a process asks for, and how many of them are not connections of clients."""

RETRY_AFTER_SECONDS = 1
PLAIN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

Refuses = Callable[[HTTPScope], Problem | None]
"""Tells why a request is refused with a 503 before the application sees it, where it is."""


class Connection(HttpToolsProtocol):
    """One connection, and how far its request has come. To its requests it is the transport as well."""

    refuses: Refuses | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._running: RequestResponseCycle | None = None
        self._unwritten: list[bytes | bytearray | memoryview] = []
        self._large: bytes | bytearray | memoryview | None = None
        self._in_body = self._ended = self._asked = False
        self._head_bytes = self._unread_bytes = self._unsent_bytes = 0
        self._began = self._moved = self._sent = self._wrote = self.loop.time()
        self._looking = self.loop.call_later(LOOK_SECONDS, self._look)
        if len(self.connections) > most_connections():
            self._refuse(503, "unavailable", "too many connections: try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was cut."""
        self._unwritten, self._large = [], None
        self._looking.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The service stops."""
        self._flush()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        if self._ended:
            return
        now = self.loop.time()
        if not (self._in_body or self._asked):
            self._asked, self._began = True, now
        self._moved = now
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._head_bytes > MAX_HEAD_BYTES and (self._asked or self._in_body):
            self._head_too_large()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed(self._without_upgrade() + data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, "http_invalid", "this is not HTTP/1.1")

    def _without_upgrade(self) -> bytes:
        """The head of the request as it would be had the client not asked for another protocol, and a new parser.

        A server may ignore that wish (RFC 9110, 7.8); httptools then passes no body on. Some clients ask each time.
        """
        wish = (b"connection", b"upgrade", b"http2-settings")
        kept = [(name, value) for name, value in self.headers if name not in wish]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            kept.append((b"connection", b"close"))
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        lines = [method + b" " + self.url + b" HTTP/" + version, *[name + b": " + value for name, value in kept]]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._asked, self._began, self._head_bytes = True, self.loop.time(), 0

    def on_headers_complete(self) -> None:
        """All headers are there."""
        size = len(self.url) + sum(map(len, chain.from_iterable(self.headers)))
        if size > MAX_HEAD_BYTES or len(self.url) > MAX_URL_BYTES or len(self.headers) > MAX_HEADERS:
            self._head_too_large()
        elif not self._is_plain():
            self._refuse(400, "http_invalid", "this is not HTTP/1.1")
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(400, "too_many_requests", f"at most {MAX_PIPELINED} requests ahead of their answers")
        if self._ended:
            raise httptools.HttpParserError
        if self._upgrades():
            return
        self._in_body, self._asked, self._began = True, False, self.loop.time()
        self._head_bytes = self._unread_bytes = 0
        super().on_headers_complete()
        self.headers = []  # not those of the request: what follows a chunked body (a trailer) is no header
        self.cycle.transport = self  # type: ignore[assignment]

    def _is_plain(self) -> bool:
        """Whether everybody on the way understands these headers alike (RFC 9112, 3.2 and 6.1), we included."""
        names = [name for name, _ in self.headers]
        if b"transfer-encoding" in names:
            codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
            if codings != [b"chunked"]:
                return False
        hosts = names.count(b"host")
        match self.parser.get_http_version():
            case "1.1":
                return hosts == 1
            case "1.0":
                return hosts <= 1 and b"transfer-encoding" not in names
        return False

    def _upgrades(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def on_body(self, body: bytes) -> None:
        """Some of a body, which may have been answered already."""
        self._head_bytes = 0
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
        super().on_body(body)

    def on_chunk_complete(self) -> None:
        """The end of a chunk."""
        self._head_bytes = 0

    def on_message_complete(self) -> None:
        """The end of a request."""
        if self._upgrades():
            return
        self._in_body = False
        self._head_bytes = 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        if self.refuses and (problem := self.refuses(cycle.scope)):
            self._turn_away(cycle, problem)
        else:
            super()._start_asgi_task(cycle, app)

    def _turn_away(self, cycle: RequestResponseCycle, problem: Problem) -> None:
        """Answers a request in place of the application, at half of its cost; what follows of it is thrown away."""
        cycle.response_started = cycle.response_complete = True
        self.write(_error(503, problem, cycle.scope["headers"], closes=not cycle.keep_alive))
        if not cycle.keep_alive:
            self.close()
        self.on_response_complete()

    def _head_too_large(self) -> None:
        if len(self.url) > MAX_URL_BYTES:
            self._refuse(414, "url_too_long", f"at most {MAX_URL_BYTES} bytes")
        else:
            self._refuse(431, "headers_too_large", f"at most {MAX_HEADERS} headers of {MAX_HEAD_BYTES} bytes in all")

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answers what cannot be understood, or took too long, and closes.

        The connection's other requests come first: while one is under way, the client must not take this for its
        answer, so that one is the last to be answered.
        """
        if self._ended:
            return
        self._ended = True
        running = self._running if self._running and not self._running.response_complete else None
        if running and not (running is self.cycle and self._in_body):
            running.keep_alive = False
            self.pipeline.clear()
            return
        if running:
            running.disconnected = True
            running.message_event.set()
        self._flush()
        if not (running and running.response_started):
            self.transport.write(_error(status, Problem(type=kind, loc=[], msg=message)))
            metrics.answered("other", "other", status, 0.0)
        self._linger()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Some of an answer, of which uvicorn sends no more before this is nearly read.

        uvicorn writes the head of an answer and its body apart; they leave together, and so wake the client once.
        """
        if not self._unwritten:
            self.loop.call_soon(self._flush)
        self._unwritten.append(data)
        if len(data) > LARGE_ANSWER:
            self._flush()
            self._large = data
            self._make_room()

    def _flush(self) -> None:
        if self._unwritten and not self.transport.is_closing():
            self._wrote = self.loop.time()
            self.transport.writelines(self._unwritten)
        self._unwritten = []

    def _make_room(self) -> None:
        connections = [each for each in self.connections if isinstance(each, Connection)]
        readers = [each for each in connections if each.transport.get_write_buffer_size()]
        readers.sort(key=lambda each: each._wrote, reverse=True)
        while _held(readers) > MAX_UNSENT_BYTES:
            readers.pop().transport.abort()

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self.transport.is_closing()

    def close(self) -> None:
        """After the last answer; softly while the client still sends."""
        self._flush()
        if self._in_body:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Takes no more requests, and throws away what still comes, for a while or until the client closes."""
        self._ended = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _look(self) -> None:
        """Refuses or cuts what takes too long."""
        now = self.loop.time()
        self._look_at_request(now)
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent_bytes:
            self._unsent_bytes, self._sent = unsent, now
        if unsent == 0:
            self._large = None
        if now - self._sent > SILENT_SECONDS or (unsent and now - self._wrote > ANSWER_SECONDS):
            self.transport.abort()
        self._looking = self.loop.call_later(LOOK_SECONDS, self._look)

    def _look_at_request(self, now: float) -> None:
        if self._running is None and not self._asked and now - self._began > HEAD_SECONDS:
            self.transport.close()
        elif self._asked and now - self._began > HEAD_SECONDS:
            self._refuse(408, "timeout", f"the headers did not come within {HEAD_SECONDS:.0f} s")
        elif self._in_body and self._running is self.cycle and not self._running.response_complete:
            if now - self._moved > SILENT_SECONDS or now - self._began > BODY_SECONDS:
                self._refuse(
                    408, "timeout", f"the body stopped for {SILENT_SECONDS:.0f} s or took {BODY_SECONDS:.0f} s"
                )
        elif self._in_body and (now - self._began > BODY_SECONDS or self._unread_bytes > MAX_UNREAD_BYTES):
            self.transport.close()


def _held(readers: Iterable[Connection]) -> int:
    """How many bytes wait for these readers; those of an answer that several of them get, once."""
    unread: dict[int, int] = {}
    for each in readers:
        answer = id(each if each._large is None else each._large)
        unread[answer] = max(each.transport.get_write_buffer_size(), unread.get(answer, 0))
    return sum(unread.values())


@functools.cache
def most_connections() -> int:
    """How many connections this process can have, once it has asked for more open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max(soft, min(hard, MOST_FILES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(files - OTHER_FILES, 1)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's own X-Request-ID where it is a plain one, or a new one."""
    given = dict(headers).get(b"x-request-id")
    return given if given and PLAIN_ID.fullmatch(given) else b"%016x" % random.getrandbits(64)


def _error(status: int, problem: Problem, headers: Iterable[tuple[bytes, bytes]] = (), *, closes: bool = True) -> bytes:
    """An answer to a request with these `headers`, and whether it is the last one."""
    body = msgspec.json.encode({"detail": [problem]})
    lines = [
        STATUS_LINE[status],
        b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
        b"x-content-type-options: nosniff\r\nx-request-id: %b\r\n" % request_id_of(headers),
        b"retry-after: %d\r\n" % RETRY_AFTER_SECONDS if status == 503 else b"",
        b"connection: close\r\n" if closes else b"",
        b"\r\n",
        body,
    ]
    return b"".join(lines)
