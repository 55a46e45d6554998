"""How much was received, and what became of it, in each minute of the last day."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

COLUMNS = ("minutes", "received", "unique", "duplicates", "conflicts", "failed", "in_flight")

# Where less was received than in the minute before, there was a reset, and all counts from 0. Else only `failed` can be
# less: what had failed was tried again.
BROUGHT = """
       CASE WHEN received >= lag(received) OVER time THEN greatest({0} - lag({0}) OVER time, 0)
            WHEN received < lag(received) OVER time THEN {0} END"""

BY_MINUTE = f"""
WITH kept AS (
    SELECT minute, received, processed, dropped - conflicts AS duplicates, conflicts, failed,
           received - processed - dropped - failed AS in_flight
    FROM history
    WHERE minute >= date_trunc('minute', clock_timestamp()) - make_interval(mins => %(minutes)s + 1)
)
SELECT minute, {",".join(map(BROUGHT.format, ("received", "processed", "duplicates", "conflicts", "failed")))},
       in_flight
FROM kept
WINDOW time AS (ORDER BY minute)
ORDER BY minute
"""


async def by_minute(connection: psycopg.AsyncConnection[Any], minutes: int) -> bytes:
    """The last so many minutes as JSON, one list a column; the last one is under way.

    A minute in which nobody looked is left out, and what it brought counts for the next one.
    """
    rows = await (await connection.execute(BY_MINUTE, {"minutes": minutes})).fetchall()
    return msgspec.json.encode({name: [row[at] for row in rows] for at, name in enumerate(COLUMNS)})
