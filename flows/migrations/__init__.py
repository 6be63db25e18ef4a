"""Alembic's environment: the steps from the tables of each earlier version to the present ones, in versions/."""
