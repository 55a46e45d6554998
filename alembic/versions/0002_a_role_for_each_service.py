"""A role for each service, with what its statements need; nobody but the owner may change or remove facts.

Roles belong to the whole cluster, so another database may have made them, or be making them right now. Where this
user may not make roles, the services go on with the rights of their own user, and `chronicle migrate` says so.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ROLES = """
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['chronicle_command', 'chronicle_projector', 'chronicle_query'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN
            NULL;
        END;
        BEGIN
            -- A superuser may take on any role; to others, even to who made the role, it has to be granted.
            IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                EXECUTE format('GRANT %I TO CURRENT_USER', wanted);
            END IF;
        EXCEPTION WHEN insufficient_privilege OR undefined_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$
"""

GRANTS = """
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT wanted.role, wanted.privileges FROM (VALUES
            ('chronicle_command', 'USAGE ON SCHEMA public'),
            ('chronicle_command', 'SELECT, INSERT ON facts'),
            ('chronicle_command', 'INSERT ON outbox, fact_topics'),
            ('chronicle_command', 'SELECT, INSERT, UPDATE ON stats'),
            ('chronicle_command', 'SELECT ON alembic_version'),
            ('chronicle_projector', 'USAGE ON SCHEMA public'),
            ('chronicle_projector', 'SELECT, INSERT ON facts, processed_events, dropped_events, failed_events'),
            ('chronicle_projector', 'SELECT, UPDATE, DELETE ON outbox'),
            ('chronicle_projector', 'INSERT ON fact_topics'),
            ('chronicle_projector', 'SELECT, INSERT, UPDATE ON stats'),
            ('chronicle_projector', 'SELECT ON received_events, alembic_version'),
            ('chronicle_query', 'USAGE ON SCHEMA public'),
            ('chronicle_query', 'SELECT ON facts, outbox, processed_events, dropped_events, failed_events'),
            ('chronicle_query', 'SELECT ON fact_topics, stats, received_events, audit_log, alembic_version')
        ) AS wanted(role, privileges)
        JOIN pg_roles ON rolname = wanted.role
    LOOP
        EXECUTE format('GRANT %s TO %I', given.privileges, given.role);
    END LOOP;
END
$$
"""

REVOKES = """
DO $$
DECLARE
    taken record;
BEGIN
    -- The roles stay: another database of the cluster may need them.
    FOR taken IN SELECT rolname FROM pg_roles
        WHERE rolname IN ('chronicle_command', 'chronicle_projector', 'chronicle_query')
    LOOP
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I', taken.rolname);
        EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', taken.rolname);
    END LOOP;
END
$$
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(ROLES.replace("%", "%%"))
    op.get_bind().exec_driver_sql(GRANTS.replace("%", "%%"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql(REVOKES.replace("%", "%%"))
