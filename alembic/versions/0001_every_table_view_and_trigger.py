"""Every table, view and trigger of the first version."""

import sqlalchemy as sa

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

RECEIVED_EVENTS_VIEW = """
CREATE VIEW received_events AS
SELECT f.batch_id, e.position::int AS position, e.event_id, e.topic, e.source, e.payload, e."timestamp"
FROM facts f
CROSS JOIN LATERAL unnest(f.event_ids, f.topics, f.sources, f.payloads, f.timestamps)
    WITH ORDINALITY AS e(event_id, topic, source, payload, "timestamp", position)
WHERE f.event_ids IS NOT NULL
"""

AUDIT_LOG_VIEW = """
CREATE VIEW audit_log AS
SELECT f.id * 65536 + e.position AS id, e.event_id, e.topic, e.source, f.action, f.worker_id,
       CASE f.action
           WHEN 'DROPPED' THEN CASE WHEN e.position = ANY (f.conflicts) THEN 'conflict' ELSE 'duplicate' END
           WHEN 'FAILED' THEN f.errors[array_position(f.positions, e.position)]
       END AS reason,
       f.recorded_at AS created_at, f.id AS fact_id, f.batch_id, e.position, f.lane, f.attempt
FROM facts f
JOIN facts r ON r.batch_id = f.batch_id AND r.action = 'RECEIVED'
CROSS JOIN LATERAL (
    SELECT all_of.event_id, all_of.topic, all_of.source, all_of.position::int AS position
    FROM unnest(r.event_ids, r.topics, r.sources) WITH ORDINALITY AS all_of(event_id, topic, source, position)
    WHERE f.positions IS NULL
    UNION ALL
    SELECT these.event_id, these.topic, these.source, these.position::int
    FROM unnest(r.event_ids, r.topics, r.sources) WITH ORDINALITY AS these(event_id, topic, source, position)
    JOIN unnest(f.positions) AS chosen(position) ON chosen.position = these.position
    WHERE f.positions IS NOT NULL
) AS e
"""

UNCOMPRESSED_IDS = "ALTER TABLE facts ALTER COLUMN event_ids SET STORAGE EXTERNAL"

APPEND_ONLY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER facts_append_only BEFORE UPDATE OR DELETE ON facts FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER facts_no_truncate BEFORE TRUNCATE ON facts FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
"""


def upgrade() -> None:
    op.create_table(
        "dropped_events",
        sa.Column("event_id", sa.Text(collation="C"), nullable=False),
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint("reason IN ('duplicate', 'conflict')", name="ck_dropped_events_reason"),
        sa.PrimaryKeyConstraint("event_id", "topic", "batch_id", "position", name="pk_dropped_events"),
        comment="A later sighting of a (topic, event_id): where it is in the ledger, and why it was dropped",
    )
    op.create_table(
        "fact_topics",
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fact_id", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("event_count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "action", "recorded_at", "fact_id", name="pk_fact_topics"),
        comment="Which facts speak of a topic, and of how many of its events: the ledger's index by topic",
    )
    op.create_table(
        "facts",
        sa.Column(
            "id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="order in which facts were begun"
        ),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column(
            "attempt",
            sa.SmallInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="above 0: the outcome of events that had FAILED and were tried again",
        ),
        sa.Column(
            "recorded_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "lane", sa.SmallInteger(), nullable=False, comment="the writer, and so the row of stats that counts it"
        ),
        sa.Column(
            "worker_id",
            sa.SmallInteger(),
            nullable=True,
            comment="the projector worker of an outcome; null for RECEIVED and QUEUED",
        ),
        sa.Column("event_count", sa.Integer(), nullable=False, comment="how many events the fact is about"),
        sa.Column("positions", sa.ARRAY(sa.Integer()), nullable=True, comment="which events of the batch; null = all"),
        sa.Column(
            "conflicts",
            sa.ARRAY(sa.Integer()),
            nullable=True,
            comment="DROPPED: the positions whose payload differs from the stored one",
        ),
        sa.Column("errors", sa.ARRAY(sa.Text()), nullable=True, comment="FAILED: one error for each position"),
        sa.Column(
            "event_ids",
            sa.ARRAY(sa.Text(collation="C")),
            nullable=True,
            comment="RECEIVED: the events, one array a field",
        ),
        sa.Column("topics", sa.ARRAY(sa.Text(collation="C")), nullable=True),
        sa.Column("sources", sa.ARRAY(sa.Text(collation="C")), nullable=True),
        sa.Column("payloads", sa.ARRAY(sa.JSON()), nullable=True),
        sa.Column("timestamps", sa.ARRAY(sa.DateTime(timezone=True)), nullable=True),
        sa.CheckConstraint("(action = 'RECEIVED') = (event_ids IS NOT NULL)", name="ck_facts_events"),
        sa.CheckConstraint(
            "action IN ('RECEIVED', 'QUEUED', 'PROCESSED', 'DROPPED', 'FAILED')", name="ck_facts_action"
        ),
        sa.CheckConstraint("event_count > 0", name="ck_facts_event_count"),
        sa.PrimaryKeyConstraint("batch_id", "action", "attempt", name="pk_facts"),
        comment="The ledger: one immutable fact about one batch",
    )
    op.create_index("ix_facts_action_recorded_at", "facts", ["action", "recorded_at", "id"], unique=False)
    op.create_index("ix_facts_recorded_at", "facts", ["recorded_at", "id"], unique=False)
    op.create_table(
        "failed_events",
        sa.Column("event_id", sa.Text(collation="C"), nullable=False),
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", "topic", "batch_id", "position", name="pk_failed_events"),
        comment="An event that could not be projected, and was not since: where it is in the ledger, and the error",
    )
    op.create_table(
        "outbox",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("event_count", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name="pk_outbox"),
        comment="A batch in flight; deleting the row is the claim",
    )
    op.create_index("ix_outbox_received_at", "outbox", ["received_at"], unique=False)
    op.create_table(
        "processed_events",
        sa.Column("event_id", sa.Text(collation="C"), nullable=False),
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("source", sa.Text(collation="C"), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.UniqueConstraint("event_id", "topic", name="uq_processed_events_event_id_topic"),
        comment="The first sighting of a (topic, event_id)",
    )
    op.create_index(
        "ix_processed_events_timestamp", "processed_events", ["timestamp", "batch_id", "position"], unique=False
    )
    op.create_index(
        "ix_processed_events_topic_timestamp",
        "processed_events",
        ["topic", "timestamp", "batch_id", "position"],
        unique=False,
    )
    op.create_table(
        "stats",
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "lane",
            sa.SmallInteger(),
            nullable=False,
            comment="one writer: a worker's id, or below zero a command process",
        ),
        sa.Column("received", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("queued", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("processed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("dropped", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("topic", "lane", name="pk_stats"),
        comment="Counters of one topic in one lane; readers sum over lanes",
        postgresql_with={"fillfactor": 50},
    )
    op.execute(RECEIVED_EVENTS_VIEW)
    op.execute(AUDIT_LOG_VIEW)
    op.execute(UNCOMPRESSED_IDS)
    op.execute(APPEND_ONLY)


def downgrade() -> None:
    op.execute("DROP VIEW audit_log, received_events")
    for table in ("facts", "outbox", "processed_events", "dropped_events", "failed_events", "fact_topics", "stats"):
        op.drop_table(table)
    op.execute("DROP FUNCTION refuse_change()")
