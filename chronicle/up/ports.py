"""TCP ports: free ones for servers that come and go, and the one that people know."""

from __future__ import annotations

import errno
import random
import re
import socket
from contextlib import suppress
from pathlib import Path

from chronicle.errors import StartError

LOWEST = 15_000
DEFAULT_EPHEMERAL = 49_152
BACKLOG = 2048


def free() -> int:
    """A port on 127.0.0.1 that nobody listens on, outside the range from which the system serves clients.

    A client that keeps trying a dead port of that range connects, sooner or later, to itself, and then holds the port.
    """
    limit = _first_ephemeral()
    for _ in range(1000):
        port = random.randrange(LOWEST, limit) if limit > LOWEST else random.randrange(1024, LOWEST)
        if is_free(port):
            return port
    raise StartError("no free TCP port on 127.0.0.1")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with suppress(OSError), _bound("127.0.0.1", port):
        return True
    return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens already: clients wait in its backlog until somebody accepts.

    Raises StartError, saying what to do, where the port is taken or the address is not ours.
    """
    try:
        listening = _bound(host, port)
        listening.listen(BACKLOG)
    except UnicodeError as error:
        raise StartError(f"cannot listen on {host}, port {port}: {error}") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise StartError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
        raise StartError(
            f"port {port} on {host} is taken; choose another with: make run ARGS='--port {port + 1}'  "
            f"(or chronicle up --port {port + 1})"
        ) from None
    return listening


def reachable(listening: socket.socket) -> tuple[str, int]:
    """Host and port by which this machine itself gets to a listening socket."""
    host, port = listening.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    fresh = socket.socket(family, kind, protocol)
    try:
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        fresh.bind(address)
    except BaseException:
        fresh.close()
        raise
    return fresh


def _first_ephemeral() -> int:
    with suppress(OSError):
        found = re.match(r"(\d+)", Path("/proc/sys/net/ipv4/ip_local_port_range").read_text())
        if found:
            return int(found[1])
    return DEFAULT_EPHEMERAL
