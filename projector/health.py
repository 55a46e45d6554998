"""`python -m projector.health`: whether the projector of this host works; the health check of its container."""

from __future__ import annotations

import socket
import sys

from chronicle import database
from chronicle.errors import ChronicleError
from chronicle.settings import Settings

LIVELY_SECONDS = 30
"""A worker that beats so seldom may still wait for a statement, which takes 20 s at most."""

WORKERS = """
SELECT count(*) FROM workers
WHERE starts_with(process, %(host)s || ':') AND seen_at > clock_timestamp() - make_interval(secs => %(seconds)s)
"""


def workers(url: str) -> int:
    """How many workers of this host have a heartbeat. Raises DatabaseAway."""
    with database.connect(url, "health") as connection, database.ours():
        return int(database.value(connection, WORKERS, {"host": socket.gethostname(), "seconds": LIVELY_SECONDS}))


if __name__ == "__main__":
    try:
        found = workers(Settings.load().database_url or "")
    except ChronicleError as error:
        sys.exit(str(error))
    sys.exit(None if found else "no worker has a heartbeat")
