"""What people watch the system by: the stream of processed events, history by minute, heartbeats, request ids."""

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

RECEIVED_EVENTS_VIEW = """
CREATE OR REPLACE VIEW received_events AS
SELECT f.batch_id, generate_series(1, f.event_count) AS position, unnest(f.event_ids) AS event_id,
       unnest(f.topics) AS topic, unnest(f.sources) AS source, unnest(f.payloads) AS payload,
       unnest(f.timestamps) AS "timestamp"
FROM facts f
WHERE f.event_ids IS NOT NULL
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
    op.execute(COUNT_CONFLICTS)
    op.execute(SEQUENCE_WHAT_IS_THERE)
    op.get_bind().exec_driver_sql(GRANTS.replace("%", "%%"))


def downgrade() -> None:
    for table in ("workers", "history", "stream", "unsequenced"):
        op.drop_table(table)
    op.drop_column("stats", "conflicts")
    op.drop_column("facts", "request_sizes")
    op.drop_column("facts", "request_ids")
