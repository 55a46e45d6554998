"""How much was received, and what became of it, in each minute of the last day."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

COLUMNS = ("minutes", "received", "unique", "duplicates", "conflicts", "failed", "in_flight")

# What is less than in the minute before was reset meanwhile, or (failed) tried again: it counts from 0.
BY_MINUTE = """
WITH kept AS (
    SELECT minute, received, processed, dropped - conflicts AS duplicates, conflicts, failed,
           received - processed - dropped - failed AS in_flight
    FROM history
    WHERE minute >= date_trunc('minute', clock_timestamp()) - make_interval(mins => %(minutes)s + 1)
)
SELECT minute,
       CASE WHEN received < lag(received) OVER time THEN received ELSE received - lag(received) OVER time END,
       CASE WHEN processed < lag(processed) OVER time THEN processed ELSE processed - lag(processed) OVER time END,
       CASE WHEN duplicates < lag(duplicates) OVER time THEN duplicates
            ELSE duplicates - lag(duplicates) OVER time END,
       CASE WHEN conflicts < lag(conflicts) OVER time THEN conflicts ELSE conflicts - lag(conflicts) OVER time END,
       CASE WHEN failed < lag(failed) OVER time THEN failed ELSE failed - lag(failed) OVER time END,
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
