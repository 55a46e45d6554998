"""A TCP proxy that a test puts before a server, to cut or delay what goes through at a point of its choosing."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from chronicle.up import ports

CHUNK = 65_536
JOIN_SECONDS = 5
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Verdict:
    """What becomes of a chunk: wait some seconds, pass its first bytes (None: all), then perhaps cut the connection."""

    wait: float = 0.0
    passed: int | None = None
    cut: bool = False


Rule = Callable[[bool, bytes], Verdict]
"""Judges a chunk; the first argument says whether it comes from the server."""

PASS = Verdict()


def pass_all(_from_server: bool, _chunk: bytes) -> Verdict:
    """A network without faults."""
    return PASS


def stall(seconds: float) -> Rule:
    """Every chunk comes late."""
    return lambda _from_server, _chunk: Verdict(wait=seconds)


def cut_every(size: int) -> Rule:
    """Each time that so many bytes have gone through, in all, the connection that sent the last one is cut there."""
    total = 0

    def rule(_from_server: bool, chunk: bytes) -> Verdict:
        nonlocal total
        before, total = total % size, total + len(chunk)
        return Verdict(passed=size - before, cut=True) if before + len(chunk) >= size else PASS

    return rule


def stall_every(size: int, seconds: float) -> Rule:
    """The same, but the rest of the bytes comes late."""
    total = 0

    def rule(_from_server: bool, chunk: bytes) -> Verdict:
        nonlocal total
        before, total = total % size, total + len(chunk)
        return Verdict(wait=seconds) if before + len(chunk) >= size else PASS

    return rule


def cut_answers(matches: Callable[[bytes], bool], times: int) -> Rule:
    """The first `times` matching answers of the server are thrown away with their connection: it did what it was
    asked to, and nobody hears of it."""
    left = threading.Semaphore(times)

    def rule(from_server: bool, chunk: bytes) -> Verdict:
        hit = from_server and matches(chunk) and left.acquire(blocking=False)
        return Verdict(passed=0, cut=True) if hit else PASS

    return rule


def cut_after_answers(times: int) -> Rule:
    """The first `times` answers of the server go through, and the connection is gone in the same moment."""
    left = threading.Semaphore(times)
    return lambda from_server, _chunk: Verdict(cut=from_server and left.acquire(blocking=False))


def committed(chunk: bytes) -> bool:
    """Whether PostgreSQL says in this chunk that something is committed: COMMIT, or an INSERT in autocommit mode.

    The tag of the command, then ReadyForQuery outside of a transaction, which is sent after the commit
    (https://www.postgresql.org/docs/current/protocol-message-formats.html).
    """
    return chunk.endswith(b"Z\0\0\0\x05I") and (b"COMMIT\0" in chunk or b"INSERT 0 " in chunk)


def anything(_chunk: bytes) -> bool:
    """Every answer."""
    return True


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to another, which is asked for anew for each connection."""

    def __init__(self, target: Callable[[], int]) -> None:
        self.rule: Rule = pass_all
        self.resets = 0
        self._target = target
        self._listening = ports.listen("127.0.0.1", 0)
        self._pairs: set[Pair] = set()
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listening.getsockname()[1]
        return port

    def cut(self) -> None:
        """Resets every connection there is; returns when that is done."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.end(reset=True)
        for pair in pairs:
            pair.join()

    def close(self) -> None:
        """Ends it."""
        self._closed.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with suppress(OSError):
                client, _ = self._listening.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target()), timeout=5)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.close()
            return
        server.settimeout(None)
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = Pair(self, client, server)
        self._pairs.add(pair)
        pair.start()

    def ended(self, pair: Pair, *, reset: bool) -> None:
        """A connection is over."""
        self._pairs.discard(pair)
        self.resets += reset


class Pair:
    """One connection through the proxy: two sockets, and a thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._once, self._first = threading.Lock(), threading.Lock()
        self._over = threading.Event()
        ways = ((False, client, server), (True, server, client))
        self._threads = [threading.Thread(target=self._forward, args=way, daemon=True) for way in ways]

    def start(self) -> None:
        """Begins to forward."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Waits until both sides are closed; not for ever, as a client that stands still holds what is sent to it."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_SECONDS)

    def end(self, *, reset: bool = False) -> None:
        """Ends both sides, in order or with a reset of which the client sees nothing else: no end of the stream before.

        The second of the threads closes them: while one may still read, another socket could get the same number.
        """
        if not self._once.acquire(blocking=False):
            return
        self._proxy.ended(self, reset=reset)
        self._over.set()
        to_client = socket.SHUT_RD if reset else socket.SHUT_RDWR
        for side, how in ((self._client, to_client), (self._server, socket.SHUT_RDWR)):
            with suppress(OSError):
                if reset:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                side.shutdown(how)

    def _forward(self, from_server: bool, source: socket.socket, sink: socket.socket) -> None:
        cut = False
        with suppress(OSError):
            while not cut and (chunk := source.recv(CHUNK)):
                verdict = self._proxy.rule(from_server, chunk)
                if verdict.wait:
                    self._over.wait(verdict.wait)
                sink.sendall(chunk[: verdict.passed])
                cut = verdict.cut
        self.end(reset=cut)
        if not self._first.acquire(blocking=False):
            source.close()
            sink.close()
