"""A RECEIVED fact has as many of each field as it counts events, or is refused before anybody is told that it is kept.

What is there already is not read again, which could take minutes: `chronicle verify` does that.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

WHOLE = """
ALTER TABLE facts ADD CONSTRAINT ck_facts_whole CHECK (
    action <> 'RECEIVED'
    OR (event_count = ALL (ARRAY[coalesce(cardinality(event_ids), cardinality(event_uuids)), cardinality(topics),
                                 cardinality(sources), cardinality(payloads), cardinality(timestamps)])) IS TRUE
) NOT VALID
"""

VALIDATE_WHERE_EMPTY = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM facts) THEN
        ALTER TABLE facts VALIDATE CONSTRAINT ck_facts_whole;
    END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(WHOLE)
    op.execute(VALIDATE_WHERE_EMPTY)


def downgrade() -> None:
    op.execute("ALTER TABLE facts DROP CONSTRAINT ck_facts_whole")
