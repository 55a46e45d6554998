"""`python -m projector.health`: whether the projector of this host works; the health check of its container."""

from __future__ import annotations

import sys

from chronicle import database
from chronicle.errors import ChronicleError
from chronicle.settings import Settings

WORKERS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'chronicle-projector' AND datname = current_database()
  AND client_addr IS NOT DISTINCT FROM inet_client_addr()
"""


def workers(url: str) -> int:
    """How many workers hold a session of PostgreSQL from this host's address. Raises DatabaseAway."""
    with database.connect(url, "health") as connection:
        return int(database.value(connection, WORKERS))


if __name__ == "__main__":
    try:
        found = workers(Settings.load().database_url or "")
    except ChronicleError as error:
        sys.exit(str(error))
    sys.exit(None if found else "no worker holds a session of PostgreSQL")
