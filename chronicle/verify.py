"""`chronicle verify`: every invariant, checked in one snapshot of the database, and the queue beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from chronicle import broker, database, schema, screen
from chronicle.errors import BrokerAway
from chronicle.ledger import READ_MODELS
from chronicle.replay import COLUMNS, LEDGER_SAYS
from chronicle.tables import REFUSE_CHANGE

OVERDUE_SECONDS = 30
EXAMPLES = 3


@dataclass(frozen=True)
class Check:
    """One check: the number of its invariant, what it holds, and a statement that gives one text per violation."""

    invariant: int
    name: str
    violations: str


def _same_rows(table: str) -> str:
    """Violations: rows that the table has more often than the ledger says them, and the other way round."""
    columns = COLUMNS[table].replace("payload", "payload::text AS payload")
    ledger = LEDGER_SAYS[table].format(audit_log="audit_log")
    return f"""
        SELECT CASE WHEN sum(side) > 0 THEN 'not in the ledger: ' ELSE 'only in the ledger: ' END
               || left(row({COLUMNS[table]})::text, 200)
        FROM (
            SELECT {columns}, 1 AS side FROM {table} UNION ALL SELECT {columns}, -1 FROM ({ledger}) AS l
        ) AS both_sides
        GROUP BY {COLUMNS[table]}
        HAVING sum(side) <> 0
    """


CHECKS = (
    Check(
        1,
        "every batch has one RECEIVED fact, whole",
        """
        SELECT 'no RECEIVED fact: batch ' || batch_id FROM (
            SELECT batch_id FROM facts UNION SELECT batch_id FROM outbox UNION SELECT batch_id FROM processed_events
            UNION SELECT batch_id FROM dropped_events UNION SELECT batch_id FROM failed_events
        ) AS named
        WHERE NOT EXISTS (SELECT FROM facts r WHERE r.batch_id = named.batch_id AND r.action = 'RECEIVED')
        UNION ALL
        SELECT 'not whole: batch ' || batch_id FROM facts
        WHERE action = 'RECEIVED'
          AND ((event_count = ALL (ARRAY[cardinality(coalesce(event_ids, event_uuids::text[])), cardinality(topics),
                                         cardinality(sources), cardinality(payloads), cardinality(timestamps)]))
               IS NOT TRUE
               OR array_position(coalesce(event_ids, event_uuids::text[]), NULL) IS NOT NULL
               OR array_position(topics, NULL) IS NOT NULL
               OR array_position(sources, NULL) IS NOT NULL OR array_position(timestamps, NULL) IS NOT NULL
               OR EXISTS (SELECT FROM unnest(payloads) AS p WHERE p IS NULL))
        """,
    ),
    Check(
        2,
        "one PROCESSED fact, and one stored row, for each (topic, event_id)",
        """
        SELECT count(*) || ' PROCESSED: ' || topic || ' / ' || event_id FROM audit_log
        WHERE action = 'PROCESSED' GROUP BY topic, event_id HAVING count(*) > 1
        UNION ALL
        SELECT count(*) || ' rows: ' || topic || ' / ' || event_id FROM processed_events
        GROUP BY topic, event_id HAVING count(*) > 1
        UNION ALL
        SELECT 'dropped, and none stored: ' || topic || ' / ' || event_id FROM dropped_events d
        WHERE NOT EXISTS (SELECT FROM processed_events p WHERE p.event_id = d.event_id AND p.topic = d.topic)
        UNION ALL
        SELECT 'the unique constraint is gone' WHERE NOT EXISTS (
            SELECT FROM pg_constraint
            WHERE conrelid = 'processed_events'::regclass AND contype = 'u'
              AND conname = 'uq_processed_events_event_id_topic'
        )
        """,
    ),
    Check(
        2,
        "a duplicate has the payload that is stored, a conflict another",
        """
        WITH compared AS MATERIALIZED (
            SELECT d.reason, d.topic, d.event_id, d.batch_id,
                   CASE WHEN e.payload::text <> p.payload::text THEN e.payload END AS differs
            FROM dropped_events d
            JOIN received_events e ON e.batch_id = d.batch_id AND e.position = d.position
            JOIN processed_events p ON p.event_id = d.event_id AND p.topic = d.topic
            WHERE e.payload::text <> p.payload::text OR d.reason <> 'duplicate'
        ), stored AS MATERIALIZED (
            SELECT event_id, topic, payload::jsonb AS payload FROM processed_events
            WHERE (topic, event_id) IN (SELECT topic, event_id FROM compared WHERE differs IS NOT NULL)
        )
        SELECT reason || ': ' || topic || ' / ' || event_id || ' in batch ' || batch_id
        FROM compared
        WHERE (differs IS NULL OR (topic, event_id, differs::jsonb) IN (SELECT topic, event_id, payload FROM stored))
              <> (reason = 'duplicate')
        """,
    ),
    Check(3, "the counters say what the ledger says", _same_rows("stats")),
    Check(
        3,
        "in flight by the counters is what the outbox holds",
        """
        SELECT 'counters: ' || counted || ', outbox: ' || held FROM (
            SELECT (SELECT coalesce(sum(received - processed - dropped - failed), 0) FROM stats) AS counted,
                   (SELECT coalesce(sum(event_count), 0) FROM outbox) AS held
        ) AS both_sides WHERE counted <> held
        """,
    ),
    Check(
        4,
        "a batch is in flight, or each of its events has exactly one outcome",
        """
        WITH outcome AS (
            SELECT batch_id, sum(event_count) AS events FROM facts
            WHERE action IN ('PROCESSED', 'DROPPED', 'FAILED') AND attempt = 0 GROUP BY batch_id
        )
        SELECT 'batch ' || r.batch_id || ': ' || r.event_count || ' events, outcomes for ' || coalesce(o.events, 0)
               || CASE WHEN x.batch_id IS NULL THEN ', not in the outbox' ELSE ', in the outbox' END
        FROM facts r
        LEFT JOIN outcome o ON o.batch_id = r.batch_id
        LEFT JOIN outbox x ON x.batch_id = r.batch_id
        WHERE r.action = 'RECEIVED'
          AND coalesce(o.events, 0) <> CASE WHEN x.batch_id IS NULL THEN r.event_count ELSE 0 END
        UNION ALL
        SELECT count(*) || ' outcomes: batch ' || batch_id || ' position ' || position FROM audit_log
        WHERE action IN ('PROCESSED', 'DROPPED', 'FAILED') GROUP BY batch_id, position
        HAVING count(*) > 1 + count(*) FILTER (WHERE action = 'FAILED') OR count(*) FILTER (WHERE action = 'FAILED') > 1
        UNION ALL
        SELECT f.action || ' counts ' || f.event_count || ' events and names others: batch ' || f.batch_id
        FROM facts f JOIN facts r ON r.batch_id = f.batch_id AND r.action = 'RECEIVED'
        WHERE f.event_count <> coalesce(cardinality(f.positions), r.event_count)
           OR EXISTS (SELECT FROM unnest(f.positions) AS p WHERE p NOT BETWEEN 1 AND r.event_count)
           OR f.action IN ('RECEIVED', 'QUEUED') AND f.event_count <> r.event_count
        UNION ALL
        SELECT action || ' by worker ' || coalesce(worker_id::text, 'nobody') || ': batch ' || batch_id FROM facts
        WHERE worker_id IS DISTINCT FROM CASE WHEN action NOT IN ('RECEIVED', 'QUEUED') THEN lane END
        """,
    ),
    Check(
        5,
        "RECEIVED, QUEUED and outcome follow each other in time",
        """
        SELECT 'batch ' || f.batch_id || ': ' || f.action || ' without, or before, ' || before.action
        FROM facts f
        JOIN (VALUES ('RECEIVED', 'QUEUED'), ('QUEUED', 'PROCESSED'), ('QUEUED', 'DROPPED'), ('QUEUED', 'FAILED'))
            AS before(action, next) ON before.next = f.action
        LEFT JOIN facts b ON b.batch_id = f.batch_id AND b.action = before.action AND b.attempt = 0
        WHERE (b.recorded_at <= f.recorded_at) IS NOT TRUE
        UNION ALL
        SELECT 'batch ' || again.batch_id || ': ' || again.action || ' of another try without, or before, FAILED'
        FROM facts again
        LEFT JOIN facts failed ON failed.batch_id = again.batch_id AND failed.action = 'FAILED' AND failed.attempt = 0
        WHERE again.attempt > 0 AND (again.action <> 'FAILED' AND failed.recorded_at <= again.recorded_at) IS NOT TRUE
        """,
    ),
    Check(
        5,
        "facts cannot be changed or removed",
        f"""
        SELECT 'trigger ' || wanted || ' is missing or off' FROM unnest(ARRAY['facts_append_only', 'facts_no_truncate'])
            AS wanted
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger
            WHERE tgname = wanted AND tgrelid = 'facts'::regclass AND tgenabled IN ('O', 'A') AND tgqual IS NULL
              AND tgtype = CASE wanted WHEN 'facts_append_only' THEN 27 ELSE 34 END
        )
        UNION ALL
        SELECT 'the triggers refuse nothing' WHERE NOT EXISTS (
            SELECT FROM pg_proc WHERE oid = to_regproc('refuse_change') AND prosrc = $refuse${REFUSE_CHANGE}$refuse$
        )
        UNION ALL
        SELECT CASE held.grantee WHEN 0 THEN 'everybody' ELSE pg_get_userbyid(held.grantee)::text END
               || ' may ' || held.privilege_type || ' facts'
        FROM pg_class CROSS JOIN LATERAL aclexplode(relacl) AS held
        WHERE pg_class.oid = 'facts'::regclass AND held.grantee <> relowner
          AND held.privilege_type IN ('UPDATE', 'DELETE', 'TRUNCATE')
        UNION ALL
        SELECT CASE held.grantee WHEN 0 THEN 'everybody' ELSE pg_get_userbyid(held.grantee)::text END
               || ' may ' || held.privilege_type || ' facts.' || attname
        FROM pg_attribute CROSS JOIN LATERAL aclexplode(attacl) AS held
        WHERE attrelid = 'facts'::regclass AND held.privilege_type = 'UPDATE'
        """,
    ),
    Check(
        6,
        f"nothing waits in the outbox for more than {OVERDUE_SECONDS} s",
        f"""
        SELECT 'batch ' || batch_id || ' since ' || received_at FROM outbox
        WHERE received_at < clock_timestamp() - interval '{OVERDUE_SECONDS} s'
        """,
    ),
    *(
        Check(7, f"{table} is what a rebuild would make", _same_rows(table))
        for table in READ_MODELS
        if table != "stats"
    ),
    Check(
        8,
        "every stored event can be read back",
        """
        SELECT topic || ' / ' || event_id FROM processed_events
        WHERE json_typeof(payload) <> 'object'
           OR "timestamp" NOT BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'
        """,
    ),
    Check(
        9,
        "every PROCESSED fact is in the stream once, or waits for its place, and nothing else is there",
        """
        WITH placed AS (
            SELECT fact_id, batch_id, attempt FROM stream UNION ALL SELECT fact_id, batch_id, attempt FROM unsequenced
        )
        SELECT 'in ' || counted.places || ' places: fact ' || f.id || ' of batch ' || f.batch_id
        FROM facts f
        LEFT JOIN (SELECT fact_id, count(*) AS places FROM placed GROUP BY fact_id) AS p ON p.fact_id = f.id
        CROSS JOIN LATERAL (SELECT coalesce(p.places, 0) AS places) AS counted
        WHERE f.action = 'PROCESSED' AND counted.places <> 1
        UNION ALL
        SELECT 'no PROCESSED fact: ' || fact_id || ' of batch ' || batch_id FROM placed p
        WHERE NOT EXISTS (
            SELECT FROM facts f
            WHERE f.batch_id = p.batch_id AND f.action = 'PROCESSED' AND f.attempt = p.attempt AND f.id = p.fact_id
        )
        """,
    ),
    Check(
        9,
        f"no PROCESSED fact waits for its place for more than {OVERDUE_SECONDS} s",
        f"""
        SELECT 'batch ' || batch_id || ' since ' || f.recorded_at FROM unsequenced
        JOIN facts f USING (batch_id, attempt)
        WHERE f.action = 'PROCESSED' AND f.recorded_at < clock_timestamp() - interval '{OVERDUE_SECONDS} s'
        """,
    ),
)


def report(database_url: str, redis_url: str) -> bool:
    """Prints a table of all checks, with examples of what is broken. True where everything holds.

    Raises DatabaseAway, SchemaBehind.
    """
    found = [*run(database_url), (6, "the queue names only batches in flight", _queue(database_url, redis_url))]
    table = screen.table("invariant", "holds", "what was checked", title="chronicle verify")
    for invariant, name, violations in found:
        examples = [f"\n  {screen.clean(text)}" for text in violations]
        table.add_row(str(invariant), "no" if violations else "yes", "".join([name, *examples]))
    console = screen.console()
    console.print(table)
    broken = sum(bool(violations) for _, _, violations in found)
    console.print(f"{broken} of {len(found)} checks failed" if broken else f"all {len(found)} checks hold")
    return not broken


def run(database_url: str) -> Iterator[tuple[int, str, list[str]]]:
    """Each check of the database: its invariant's number, its name, and what violates it, all in one snapshot.

    Of many violations some, and how many more there are: of a table that was lost they would take all memory.
    """
    with database.connect(database_url, "verify", statement_timeout="0") as connection, database.ours():
        schema.require(connection)
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            for check in CHECKS:
                yield check.invariant, check.name, _violations(connection, check)


def _violations(connection: psycopg.Connection[Any], check: Check) -> list[str]:
    """Those of one check. That it cannot be made, of a payload that is none say, is one too, and stops no other."""
    try:
        with connection.transaction():  # a savepoint
            found = connection.execute(SOME.format(check.violations)).fetchall()
    except (psycopg.DataError, psycopg.InternalError) as error:
        return [f"cannot be checked: {database.first_line(error)}"]
    return _some([text for text, _ in found], found[0][1] if found else 0)


SOME = f"SELECT violation, count(*) OVER () FROM ({{}}) AS found(violation) LIMIT {EXAMPLES}"


def _some(texts: list[str], count: int) -> list[str]:
    examples = texts[:EXAMPLES]
    return [*examples, f"and {count - EXAMPLES} more"] if count > EXAMPLES else examples


def _queue(database_url: str, redis_url: str) -> list[str]:
    """Tickets that have waited long and name a batch that is not in flight: nobody would ever take them away."""
    try:
        with broker.ours():
            tickets = broker.older_tickets(redis_url, OVERDUE_SECONDS)
    except BrokerAway as error:
        return [str(error)]
    with database.connect(database_url, "verify") as connection:
        flying = {str(row[0]) for row in connection.execute("SELECT batch_id FROM outbox")}
    left = [f"ticket {ticket}" for ticket, batch_id in tickets.items() if batch_id not in flying]
    return _some(left, len(left))
