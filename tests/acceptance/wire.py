"""HTTP as bytes on a socket, for requests that no client library would send."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 where the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


def exchange(port: int, parts: Iterable[bytes]) -> Answer:
    """Sends the parts while it reads, and gives the last answer before the server ends the connection.

    A client that only sends, and finds its connection broken, would lose an answer that is already there.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
        sender = threading.Thread(target=_send, args=(connection, parts))
        sender.start()
        answer = parse(_read(connection))
        sender.join()
    return answer


def _send(connection: socket.socket, parts: Iterable[bytes]) -> None:
    try:
        for part in parts:
            connection.sendall(part)
    except OSError:
        return


def _read(connection: socket.socket) -> bytes:
    received = b""
    try:
        while some := connection.recv(65_536):
            received += some
    except ConnectionResetError:
        pass
    return received


def parse(received: bytes) -> Answer:
    """The last answer of a connection; fails where the bytes are not whole answers."""
    answer = Answer(0, {}, b"")
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        line, *fields = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        size = int(headers.get("content-length", 0))
        assert len(received) >= size, "an answer that is not whole"
        answer = Answer(int(line.split()[1]), headers, received[:size])
        received = received[size:]
    return answer
