"""What PostgreSQL plans by: no statistics of the ledger's arrays, and RECEIVED facts that are found by batch.

ANALYZE unfolded a sample of all events, for estimates that nobody needs. And planned for a table that is still empty,
`action = 'RECEIVED'` made PostgreSQL take the index by action, and so go through the whole ledger for each batch.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ARRAYS = (
    "positions",
    "conflicts",
    "errors",
    "event_ids",
    "event_uuids",
    "topics",
    "sources",
    "payloads",
    "timestamps",
    "request_ids",
    "request_sizes",
)

RECEIVED_EVENTS_VIEW = """
CREATE OR REPLACE VIEW received_events AS
SELECT f.batch_id, generate_series(1, f.event_count) AS position,
       unnest(coalesce(f.event_ids, f.event_uuids::text[])) AS event_id, unnest(f.topics) AS topic,
       unnest(f.sources) AS source, unnest(f.payloads) AS payload,
       unnest(f.timestamps) AS "timestamp"
FROM facts f
WHERE {received}
"""


def _set_statistics(target: int) -> None:
    op.execute("ALTER TABLE facts " + ", ".join(f"ALTER COLUMN {name} SET STATISTICS {target}" for name in ARRAYS))


def upgrade() -> None:
    _set_statistics(0)
    op.execute(RECEIVED_EVENTS_VIEW.format(received="f.topics IS NOT NULL"))


def downgrade() -> None:
    _set_statistics(-1)
    op.execute(RECEIVED_EVENTS_VIEW.format(received="f.action = 'RECEIVED'"))
