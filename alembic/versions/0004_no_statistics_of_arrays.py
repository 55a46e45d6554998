"""ANALYZE leaves the ledger's arrays alone: it would unfold a sample of all events for estimates that nobody needs."""

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


def _set_statistics(target: int) -> None:
    op.execute("ALTER TABLE facts " + ", ".join(f"ALTER COLUMN {name} SET STATISTICS {target}" for name in ARRAYS))


def upgrade() -> None:
    _set_statistics(0)


def downgrade() -> None:
    _set_statistics(-1)
