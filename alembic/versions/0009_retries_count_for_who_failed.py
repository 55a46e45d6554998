"""A retry that succeeds is taken off the FAILED of the worker that had them, not off those of who retries.

Else that one, who had none, had fewer than none, and the other had them for ever.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

MOVE = """
WITH retried AS (
    SELECT about.topic, again.lane AS retrying, failed.lane AS failing, sum(about.event_count) AS events
    FROM facts again
    JOIN facts failed ON failed.batch_id = again.batch_id AND failed.action = 'FAILED'
    JOIN fact_topics about ON about.fact_id = again.id
    WHERE again.attempt > 0
    GROUP BY about.topic, again.lane, failed.lane
), due AS (
    SELECT topic, lane, sum(events) AS events
    FROM (
        SELECT topic, retrying AS lane, events FROM retried
        UNION ALL
        SELECT topic, failing, -events FROM retried
    ) AS moved
    GROUP BY topic, lane
)
UPDATE stats SET failed = stats.failed {sign} due.events
FROM due
WHERE stats.topic = due.topic AND stats.lane = due.lane
"""


def upgrade() -> None:
    op.execute(MOVE.format(sign="+"))


def downgrade() -> None:
    op.execute(MOVE.format(sign="-"))
