"""Redis (or Valkey): the stream of tickets. It only ever holds hints; the outbox in PostgreSQL is what counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from chronicle.errors import BrokerAway, ChronicleError

STREAM = "chronicle:tickets"
GROUP = "projectors"
FIELD = "batch_id"

BLOCK_MILLISECONDS = 500
"""How long a worker waits for a ticket before it looks into the outbox itself."""

_CONNECTION: dict[str, Any] = {
    "socket_connect_timeout": 2,
    "socket_timeout": 3,  # beyond BLOCK_MILLISECONDS: silence for so long is a fault, not an empty stream
    "decode_responses": True,
    "encoding_errors": "replace",  # what somebody else has put into the stream need not be UTF-8
}


def connect(url: str) -> redis.Redis:
    """A client whose calls fail at once, without retries of its own. Raises ChronicleError for a URL that is none."""
    with _readable():
        client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **_options(url))
        _check_options(client.connection_pool)
    return client


def connect_async(url: str) -> redis.asyncio.Redis:
    """The same for a service that runs in an event loop."""
    with _readable():
        client = redis.asyncio.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 0), **_options(url))
        _check_options(client.connection_pool)
    return client


def _options(url: str) -> dict[str, Any]:
    """Those of a connection; redis-py takes none of TCP's for a socket of this machine (`unix:///path`)."""
    return _CONNECTION if url.startswith("unix:") else {**_CONNECTION, "socket_keepalive": True}


def _check_options(pool: Any) -> None:
    """Makes a connection and does not open it: before that redis-py does not look at the options of a URL.

    Nor does it catch what Python says of a host that no name can be (two dots, 64 characters between them).
    """
    pool.connection_class(**pool.connection_kwargs)
    str(pool.connection_kwargs.get("host", "")).encode("idna")


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError, redis.RedisError) as error:
        raise ChronicleError(f"REDIS_URL cannot be read: {error}") from None


@contextmanager
def ours() -> Iterator[None]:
    """Turns redis-py's errors into BrokerAway."""
    try:
        yield
    # uvloop has a RuntimeError for what is written to a connection that was just reset, and redis-py lets it through.
    except (redis.RedisError, OSError, RuntimeError) as error:
        raise BrokerAway(f"Redis cannot be used: {error}") from error


def ensure_group(client: redis.Redis) -> None:
    """Makes stream and consumer group where they are missing; from 0, so that no ticket sent before is skipped."""
    try:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


def group_is_gone(error: Exception) -> bool:
    """Whether FLUSHALL, DEL or a restart took stream or group away (NOGROUP), also under a blocked reader (UNBLOCKED).

    redis-py has no error class of its own for either.
    """
    return isinstance(error, redis.ResponseError) and str(error).startswith(("NOGROUP", "UNBLOCKED"))


def forget_dead(client: redis.Redis) -> None:
    """Removes tickets that the group has passed and that nobody holds: nobody would ever be given them.

    None of ours comes to that by itself: somebody moved the group, or removed a consumer that held some.
    """
    with suppress(redis.ResponseError):  # the user of REDIS_URL may not, or the stream is gone
        groups: Any = client.xinfo_groups(STREAM)
        for last in (group["last-delivered-id"] for group in groups if group["name"] == GROUP and not group["pending"]):
            client.xtrim(STREAM, minid=last, approximate=False)
            client.xdel(STREAM, last)


def older_tickets(url: str, seconds: int, most: int = 10_000) -> dict[str, str]:
    """Tickets that have been in the stream for so many seconds, by id, with the batch that each names."""
    client = connect(url)
    try:
        now, _ = client.time()
        entries: Any = client.xrange(STREAM, max=f"{(int(now) - seconds) * 1000}-0", count=most)
        return {ticket: (fields or {}).get(FIELD, "") for ticket, fields in entries}
    finally:
        client.close()
