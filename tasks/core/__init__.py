"""Errors, paths, atomic writing, database, bootstrap."""
