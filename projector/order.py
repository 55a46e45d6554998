"""The order of projections that run at the same time: each announces its batches, and learns which are ahead of it.

Of two transactions that insert the same key, the second waits at that key until the first has ended. Publishers repeat
themselves, so nearly every two large projections share a key, and all workers together would do little more than the
work of one. So a projection first inserts what nobody ahead of it may insert, then waits for those ahead, where they
share a key at all, and inserts the rest. Nobody waits for whom is behind: there is no deadlock, in whatever order the
keys come, on however many machines the workers are.

An announcement is an advisory lock for each batch, for as long as the transaction lasts, which others see in pg_locks.
A lock has 64 bits: the first half of a batch id, by which the batch is then looked up. (Should two share it, the wrong
one may be found; what the right one shares is then waited for where it comes.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import psycopg

ORDER_LOCK = 0x43570004_00000000

# In this order: CASE decides before it goes on, and OFFSET keeps the inner SELECT whole. One message, so that a process
# that stands still cannot keep the others from announcing theirs. Of our locks, only a batch's has a 7 there: the
# version of its UUID.
ANNOUNCE = f"""
SELECT unnest(ahead)
FROM (
    SELECT CASE WHEN pg_advisory_lock({ORDER_LOCK}) IS NOT NULL THEN ARRAY(
        SELECT classid::bigint << 32 | objid::bigint FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock' AND granted
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND objid::bigint >> 12 & 15 = 7
    ) END AS ahead
    OFFSET 0
) AS announced
WHERE CASE
    WHEN (SELECT count(pg_advisory_xact_lock(key)) FROM unnest(%(own)s::bigint[]) AS key) >= 0
    THEN pg_advisory_unlock({ORDER_LOCK})
END
"""

AHEAD = """
SELECT key, next.batch_id
FROM unnest(%(ahead)s::bigint[]) AS key
CROSS JOIN LATERAL (
    SELECT batch_id FROM facts WHERE batch_id >= rpad(lpad(to_hex(key), 16, '0'), 32, '0')::uuid
    ORDER BY batch_id LIMIT 1
) AS next
WHERE starts_with(replace(next.batch_id::text, '-', ''), lpad(to_hex(key), 16, '0'))
"""
"""The batches of those ahead, by what `announce` gave."""

HAVE_ENDED = """(
    SELECT bool_and(pg_advisory_unlock_shared(key))
    FROM (SELECT key, pg_advisory_lock_shared(key) FROM ahead OFFSET 0) AS ended
)"""
"""Waits until those of AHEAD have ended, and is then true."""


LET_GO = """
SELECT CASE mode WHEN 'ShareLock' THEN pg_advisory_unlock_shared(key) ELSE pg_advisory_unlock(key) END
FROM (
    SELECT mode, classid::bigint << 32 | objid::bigint AS key FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid = pg_backend_pid()
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    OFFSET 0
) AS held
"""


def let_go(connection: psycopg.Connection[Any]) -> None:
    """Gives back what a statement held that was cancelled while it announced or waited; a rollback keeps such locks.

    After the transaction, and not in one: it gives back its own by itself. Raises psycopg.Error.
    """
    connection.execute(LET_GO)


def announce(connection: psycopg.Connection[Any], batch_ids: Iterable[UUID]) -> list[int]:
    """Within a transaction that holds these batches: the locks of those ahead. Raises psycopg.Error.

    Whoever announces later has this transaction ahead of it.
    """
    own = [batch_id.int >> 64 for batch_id in batch_ids]
    return [key for (key,) in connection.execute(ANNOUNCE, {"own": own}, prepare=True)]
