"""Alembic's entry: runs the migrations on the connection it is given, or on DATABASE_URL for `alembic` by hand."""

import os

import sqlalchemy

from alembic import context
from chronicle.tables import metadata


def run(connection: sqlalchemy.Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with sqlalchemy.create_engine(os.environ["DATABASE_URL"]).connect() as connection:
        run(connection)
