"""Every table, view and trigger, as SQLAlchemy metadata and DDL. Alembic makes them; a test proves both equal.

A batch keeps its events as columns, one array for each field, and an event is named by its position in them,
from 1 (PostgreSQL's first subscript). Arrays unfold in a quarter of the time that JSON takes, compress better, and
leave the payloads untouched when only the names are read. A payload is `json`, not `jsonb`: it stays, to the
character, what the publisher sent (`jsonb` turns 1e300 into 301 digits, which a reader no longer takes for the
same number); it compares as `jsonb`.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from chronicle.ledger import ACTIONS, COUNTERS, DROPPED_INDEX, RECORD_POSITIONS

metadata = MetaData()
KEY = Text(collation="C")
MOMENT = DateTime(timezone=True)


def _now() -> Column[object]:
    return Column("recorded_at", MOMENT, nullable=False, server_default=text("clock_timestamp()"))


facts = Table(
    "facts",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False, comment="order in which facts were begun"),
    Column("batch_id", Uuid, nullable=False),
    Column("action", Text, nullable=False),
    Column(
        "attempt",
        SmallInteger,
        nullable=False,
        server_default=text("0"),
        comment="above 0: the outcome of events that had FAILED and were tried again",
    ),
    _now(),
    Column("lane", SmallInteger, nullable=False, comment="the writer, and so the row of stats that counts it"),
    Column("worker_id", SmallInteger, comment="the projector worker of an outcome; null for RECEIVED and QUEUED"),
    Column("event_count", Integer, nullable=False, comment="how many events the fact is about"),
    Column("positions", ARRAY(Integer), comment="which events of the batch; null = all"),
    Column("conflicts", ARRAY(Integer), comment="DROPPED: the positions whose payload differs from the stored one"),
    Column("errors", ARRAY(Text), comment="FAILED: one error for each position"),
    Column("event_ids", ARRAY(KEY), comment="RECEIVED: the events, one array a field"),
    Column(
        "event_uuids", ARRAY(Uuid), comment="RECEIVED: instead of event_ids, where all are UUIDs as PostgreSQL writes"
    ),
    Column("topics", ARRAY(KEY)),
    Column("sources", ARRAY(KEY)),
    Column("payloads", ARRAY(JSON)),
    Column("timestamps", ARRAY(MOMENT)),
    Column("request_ids", ARRAY(Text), comment="RECEIVED: the HTTP requests that the batch is made of, in its order"),
    Column("request_sizes", ARRAY(Integer), comment="RECEIVED: how many events each of them brought"),
    PrimaryKeyConstraint("batch_id", "action", "attempt", name="pk_facts"),
    CheckConstraint(f"action IN {ACTIONS}", name="ck_facts_action"),
    CheckConstraint("event_count > 0", name="ck_facts_event_count"),
    CheckConstraint("(action = 'RECEIVED') = (num_nonnulls(event_ids, event_uuids) = 1)", name="ck_facts_events"),
    CheckConstraint(
        "action <> 'RECEIVED' OR (event_count = ALL (ARRAY[coalesce(cardinality(event_ids), cardinality(event_uuids)),"
        " cardinality(topics), cardinality(sources), cardinality(payloads), cardinality(timestamps)])) IS TRUE",
        name="ck_facts_whole",
    ),
    Index("ix_facts_recorded_at", "recorded_at", "id"),
    Index("ix_facts_action_recorded_at", "action", "recorded_at", "id"),
    comment="The ledger: one immutable fact about one batch",
)

outbox = Table(
    "outbox",
    metadata,
    Column("batch_id", Uuid, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("event_count", Integer, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("batch_id", name="pk_outbox"),
    Index("ix_outbox_received_at", "received_at"),
    comment="A batch in flight; deleting the row is the claim",
)

processed_events = Table(
    "processed_events",
    metadata,
    Column("event_id", KEY, nullable=False),
    Column("topic", KEY, nullable=False),
    Column("source", KEY, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("timestamp", MOMENT, nullable=False),
    Column("batch_id", Uuid, nullable=False),
    Column("position", Integer, nullable=False),
    UniqueConstraint("event_id", "topic", name="uq_processed_events_event_id_topic"),
    Index("ix_processed_events_topic_timestamp", "topic", "timestamp", "batch_id", "position"),
    Index("ix_processed_events_timestamp", "timestamp", "batch_id", "position"),
    comment="The first sighting of a (topic, event_id)",
)

dropped_events = Table(
    "dropped_events",
    metadata,
    Column("event_id", KEY, nullable=False),
    Column("topic", KEY, nullable=False),
    Column("batch_id", Uuid, nullable=False),
    Column("position", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Index("ix_dropped_events_event_id", text(DROPPED_INDEX)),
    CheckConstraint("reason IN ('duplicate', 'conflict')", name="ck_dropped_events_reason"),
    comment="A later sighting of a (topic, event_id): where it is in the ledger, and why it was dropped",
)

failed_events = Table(
    "failed_events",
    metadata,
    Column("event_id", KEY, nullable=False),
    Column("topic", KEY, nullable=False),
    Column("batch_id", Uuid, nullable=False),
    Column("position", Integer, nullable=False),
    Column("error", Text, nullable=False),
    PrimaryKeyConstraint("event_id", "topic", "batch_id", "position", name="pk_failed_events"),
    comment="An event that could not be projected, and was not since: where it is in the ledger, and the error",
)

fact_topics = Table(
    "fact_topics",
    metadata,
    Column("topic", KEY, nullable=False),
    Column("action", Text, nullable=False),
    Column("recorded_at", MOMENT, nullable=False),
    Column("fact_id", BigInteger, nullable=False),
    Column("batch_id", Uuid, nullable=False),
    Column("event_count", Integer, nullable=False),
    PrimaryKeyConstraint("topic", "action", "recorded_at", "fact_id", name="pk_fact_topics"),
    comment="Which facts speak of a topic, and of how many of its events: the ledger's index by topic",
)

stats = Table(
    "stats",
    metadata,
    Column("topic", KEY, nullable=False),
    Column("lane", SmallInteger, nullable=False, comment="one writer: a worker's id, or below zero a command process"),
    *(Column(counter, BigInteger, nullable=False, server_default=text("0")) for counter in COUNTERS),
    Column(
        "conflicts", BigInteger, nullable=False, server_default=text("0"), comment="how many of `dropped` are conflicts"
    ),
    PrimaryKeyConstraint("topic", "lane", name="pk_stats"),
    comment="Counters of one topic in one lane; readers sum over lanes",
    postgresql_with={"fillfactor": 50},
)

unsequenced = Table(
    "unsequenced",
    metadata,
    Column("fact_id", BigInteger, nullable=False),
    Column("batch_id", Uuid, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    PrimaryKeyConstraint("fact_id", name="pk_unsequenced"),
    comment="A PROCESSED fact that has no place in the stream yet",
)

stream = Table(
    "stream",
    metadata,
    Column("sequence", BigInteger, Identity(always=True), nullable=False, comment="given after the fact's commit"),
    Column("fact_id", BigInteger, nullable=False),
    Column("batch_id", Uuid, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    PrimaryKeyConstraint("sequence", name="pk_stream"),
    comment="The order in which subscribers get PROCESSED facts: what commits later never comes before",
)

history = Table(
    "history",
    metadata,
    Column("minute", MOMENT, nullable=False),
    *(Column(counter, BigInteger, nullable=False) for counter in (*COUNTERS, "conflicts")),
    PrimaryKeyConstraint("minute", name="pk_history"),
    comment="The counters of all topics at the end of a minute, or as last seen in it; kept for a day",
)

workers = Table(
    "workers",
    metadata,
    Column("worker_id", SmallInteger, nullable=False),
    Column("process", Text, nullable=False, comment="host and process id"),
    Column("started_at", MOMENT, nullable=False),
    Column("seen_at", MOMENT, nullable=False, comment="its last heartbeat"),
    Column("state", Text, nullable=False, comment="what it said it did then"),
    Column("projected_at", MOMENT, comment="when it last committed a projection"),
    PrimaryKeyConstraint("worker_id", name="pk_workers"),
    comment="Heartbeats of the projector workers",
)

RECEIVED_EVENTS_VIEW = """
CREATE OR REPLACE VIEW received_events AS
SELECT f.batch_id, generate_series(1, f.event_count) AS position,
       unnest(coalesce(f.event_ids, f.event_uuids::text[])) AS event_id, unnest(f.topics) AS topic,
       unnest(f.sources) AS source, unnest(f.payloads) AS payload,
       unnest(f.timestamps) AS "timestamp"
FROM facts f
WHERE f.topics IS NOT NULL
"""
"""One row per accepted event, whole, as the ledger keeps it. Functions that give rows stand in the SELECT list, where
PostgreSQL takes the arrays apart side by side; in FROM it would keep each array's elements in a store of its own first.
Why not `action = 'RECEIVED'`, see chronicle/ledger.py.
"""

AUDIT_LOG_VIEW = f"""
CREATE OR REPLACE VIEW audit_log AS
SELECT f.id * {RECORD_POSITIONS} + e.position AS id, e.event_id, e.topic, e.source, f.action, f.worker_id,
       CASE f.action WHEN 'DROPPED' THEN coalesce(e.conflict, 'duplicate') WHEN 'FAILED' THEN e.error END AS reason,
       f.recorded_at AS created_at, f.id AS fact_id, f.batch_id, e.position, f.lane, f.attempt
FROM facts f
JOIN facts r ON r.batch_id = f.batch_id AND r.action = 'RECEIVED'
CROSS JOIN LATERAL (
    SELECT all_of.event_id, all_of.topic, all_of.source, all_of.position::int AS position,
           NULL AS conflict, NULL AS error
    FROM unnest(coalesce(r.event_ids, r.event_uuids::text[]), r.topics, r.sources)
        WITH ORDINALITY AS all_of(event_id, topic, source, position)
    WHERE f.positions IS NULL AND f.conflicts IS NULL
    UNION ALL
    SELECT these.event_id, these.topic, these.source, these.position::int, conflicting.name, chosen.error
    FROM unnest(coalesce(r.event_ids, r.event_uuids::text[]), r.topics, r.sources)
        WITH ORDINALITY AS these(event_id, topic, source, position)
    JOIN unnest(coalesce(f.positions, ARRAY(SELECT generate_series(1, f.event_count))), f.errors)
        AS chosen(position, error) ON chosen.position = these.position
    LEFT JOIN (SELECT unnest(f.conflicts) AS position, 'conflict' AS name) AS conflicting
        ON conflicting.position = these.position
    WHERE f.positions IS NOT NULL OR f.conflicts IS NOT NULL
) AS e
"""
"""One row per event and action, for /audit and for people with psql. `id` orders a fact's records by position."""

UNCOMPRESSED = "ALTER TABLE facts " + ", ".join(
    f"ALTER COLUMN {column} SET STORAGE EXTERNAL" for column in ("event_ids", "event_uuids", "timestamps")
)
"""Ids are near to random: trying to compress them took a quarter of the time of receiving, and saved nothing. Times
took a third of what all compression did, for 5 bytes an event.
"""

NO_STATISTICS = "ALTER TABLE facts " + ", ".join(
    f"ALTER COLUMN {column.name} SET STATISTICS 0" for column in facts.columns if isinstance(column.type, ARRAY)
)
"""ANALYZE would unfold a sample of 30,000 batches: at ten million events 20 s of a core, each time that the ledger has
grown by a tenth, for estimates that no statement needs.
"""

REFUSE_CHANGE = """
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
"""

APPEND_ONLY = f"""
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $${REFUSE_CHANGE}$$;
CREATE TRIGGER facts_append_only BEFORE UPDATE OR DELETE ON facts FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER facts_no_truncate BEFORE TRUNCATE ON facts FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
"""
