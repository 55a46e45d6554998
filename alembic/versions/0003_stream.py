"""What people watch the system by: the stream of processed events, history by minute, heartbeats, request ids."""

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

RECEIVED_EVENTS_VIEW = """
CREATE OR REPLACE VIEW received_events AS
SELECT f.batch_id, generate_series(1, f.event_count) AS position,
       unnest(coalesce(f.event_ids, f.event_uuids::text[])) AS event_id, unnest(f.topics) AS topic,
       unnest(f.sources) AS source, unnest(f.payloads) AS payload,
       unnest(f.timestamps) AS "timestamp"
FROM facts f
WHERE f.action = 'RECEIVED'
"""

AUDIT_LOG_VIEW = """
CREATE OR REPLACE VIEW audit_log AS
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
    FROM unnest(coalesce(r.event_ids, r.event_uuids::text[]), r.topics, r.sources)
        WITH ORDINALITY AS all_of(event_id, topic, source, position)
    WHERE f.positions IS NULL
    UNION ALL
    SELECT these.event_id, these.topic, these.source, these.position::int
    FROM unnest(coalesce(r.event_ids, r.event_uuids::text[]), r.topics, r.sources)
        WITH ORDINALITY AS these(event_id, topic, source, position)
    JOIN unnest(f.positions) AS chosen(position) ON chosen.position = these.position
    WHERE f.positions IS NOT NULL
) AS e
"""

COUNT_CONFLICTS = """
UPDATE stats SET conflicts = counted.conflicts
FROM (
    SELECT a.topic, a.lane, count(*) AS conflicts FROM audit_log a
    WHERE a.action = 'DROPPED' AND a.reason = 'conflict' GROUP BY a.topic, a.lane
) AS counted
WHERE counted.topic = stats.topic AND counted.lane = stats.lane
"""

SEQUENCE_WHAT_IS_THERE = """
INSERT INTO stream (fact_id, batch_id, attempt)
SELECT id, batch_id, attempt FROM facts WHERE action = 'PROCESSED' ORDER BY id
"""

GRANTS = """
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT wanted.role, wanted.privileges FROM (VALUES
            ('chronicle_command', 'SELECT, INSERT, UPDATE, DELETE ON history'),
            ('chronicle_projector', 'SELECT, INSERT, UPDATE, DELETE ON history'),
            ('chronicle_projector', 'SELECT, INSERT, DELETE ON unsequenced'),
            ('chronicle_projector', 'SELECT, INSERT ON stream'),
            ('chronicle_projector', 'SELECT, INSERT, UPDATE, DELETE ON workers'),
            ('chronicle_query', 'SELECT ON unsequenced, stream, history, workers')
        ) AS wanted(role, privileges)
        JOIN pg_roles ON rolname = wanted.role
    LOOP
        EXECUTE format('GRANT %s TO %I', given.privileges, given.role);
    END LOOP;
END
$$
"""

COUNTERS = ("received", "queued", "processed", "dropped", "failed", "conflicts")


def upgrade() -> None:
    op.add_column(
        "facts",
        sa.Column(
            "event_uuids",
            sa.ARRAY(sa.Uuid()),
            nullable=True,
            comment="RECEIVED: instead of event_ids, where all are UUIDs as PostgreSQL writes",
        ),
    )
    op.execute("ALTER TABLE facts ALTER COLUMN event_uuids SET STORAGE EXTERNAL")
    op.drop_constraint("ck_facts_events", "facts", type_="check")
    op.create_check_constraint(
        "ck_facts_events", "facts", "(action = 'RECEIVED') = (num_nonnulls(event_ids, event_uuids) = 1)"
    )
    op.add_column(
        "facts",
        sa.Column(
            "request_ids",
            sa.ARRAY(sa.Text()),
            nullable=True,
            comment="RECEIVED: the HTTP requests that the batch is made of, in its order",
        ),
    )
    op.add_column(
        "facts",
        sa.Column(
            "request_sizes",
            sa.ARRAY(sa.Integer()),
            nullable=True,
            comment="RECEIVED: how many events each of them brought",
        ),
    )
    op.add_column(
        "stats",
        sa.Column(
            "conflicts",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="how many of `dropped` are conflicts",
        ),
    )
    op.create_table(
        "unsequenced",
        sa.Column("fact_id", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fact_id", name="pk_unsequenced"),
        comment="A PROCESSED fact that has no place in the stream yet",
    )
    op.create_table(
        "stream",
        sa.Column(
            "sequence",
            sa.BigInteger(),
            sa.Identity(always=True),
            nullable=False,
            comment="given after the fact's commit",
        ),
        sa.Column("fact_id", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_stream"),
        comment="The order in which subscribers get PROCESSED facts: what commits later never comes before",
    )
    op.create_table(
        "history",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        *(sa.Column(counter, sa.BigInteger(), nullable=False) for counter in COUNTERS),
        sa.PrimaryKeyConstraint("minute", name="pk_history"),
        comment="The counters of all topics at the end of a minute, or as last seen in it; kept for a day",
    )
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.SmallInteger(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False, comment="host and process id"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False, comment="its last heartbeat"),
        sa.Column("state", sa.Text(), nullable=False, comment="what it said it did then"),
        sa.Column(
            "projected_at", sa.DateTime(timezone=True), nullable=True, comment="when it last committed a projection"
        ),
        sa.PrimaryKeyConstraint("worker_id", name="pk_workers"),
        comment="Heartbeats of the projector workers",
    )
    op.execute(RECEIVED_EVENTS_VIEW)
    op.execute(AUDIT_LOG_VIEW)
    op.execute(COUNT_CONFLICTS)
    op.execute(SEQUENCE_WHAT_IS_THERE)
    op.get_bind().exec_driver_sql(GRANTS.replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("0002 cannot read ids that are kept as UUIDs, and facts are never changed")
