"""How our HTTP clients (publisher, tail, status) reach the service, and read its answers."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from chronicle.errors import ChronicleError

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
LONGEST_RETRY_AFTER = 30.0
"""Seconds; a server that asks for more is asked again after this."""

Client = TypeVar("Client", httpx2.Client, httpx2.AsyncClient)


def address(base: str, path: str) -> httpx2.URL:
    """The URL of a path of the service at `base`. Raises ChronicleError where `base` is no HTTP URL."""
    try:
        given, url = httpx2.URL(base.strip()), httpx2.URL(base.strip().rstrip("/") + path)
        url.host.encode("idna")
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise ChronicleError(f"{base!r} is not a URL like http://localhost:8080: {error}") from None
    if given.query or given.fragment:
        raise ChronicleError(f"{base!r} is not a URL like http://localhost:8080: nothing may follow its path")
    if url.scheme not in ("http", "https") or not url.host:
        raise ChronicleError(f"{base!r} is not a URL like http://localhost:8080")
    if url.port is not None and not 0 < url.port < 65_536:
        raise ChronicleError(f"{base!r} has no valid port")
    return url


def opened(kind: type[Client], url: httpx2.URL, **options: Any) -> Client:
    """A client for this URL that heeds the proxy and the certificates of the environment.

    Raises ChronicleError where these cannot be used.
    """
    # A proxy of the environment cannot know this machine's own services.
    heeds = url.host not in THIS_MACHINE
    try:
        return kind(trust_env=heeds, **options)
    except (httpx2.InvalidURL, ImportError, OSError, ValueError) as error:
        raise ChronicleError(f"no client with this environment's proxy and SSL_CERT_FILE: {error}") from None


def retry_after(value: str | None, now: datetime) -> float:
    """Seconds that a Retry-After header (RFC 9110, 10.2.3: seconds, or a date) asks for; 0 where it says nothing."""
    if value is None:
        return 0.0
    if (seconds := value.strip()).isdecimal():
        return min(float(seconds), LONGEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max((aware - now).total_seconds(), 0.0), LONGEST_RETRY_AFTER)


def content(response: httpx2.Response) -> dict[str, Any]:
    """The object that an answer holds; an empty one where it is something else."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
