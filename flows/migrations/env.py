"""Run by Alembic before the steps: they use the connection, and the transaction, of flows.operations.upgrade."""

from alembic import context

from evergreen.tasks.core.schema_revision import TABLE

context.configure(connection=context.config.attributes["connection"], version_table=TABLE.name)
context.run_migrations()
