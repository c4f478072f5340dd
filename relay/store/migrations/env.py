"""Alembic's environment: runs raw SQL migrations on the connection that relay.store.migrate hands over, or
writes them out (``alembic upgrade --sql``) for the tests that judge their SQL.
"""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, dialect_name="postgresql", transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
