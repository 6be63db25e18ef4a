"""A connection to PostgreSQL that ends with an error where the server says nothing for too long within a statement."""

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

from evergreen.tasks.core import database

T = TypeVar("T")


class ImpatientConnection(psycopg.Connection[Any]):
    """psycopg waits for a statement without end; this one for database.SILENT_SECONDS since the server's last byte."""

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        return super().wait(self._watch(gen), *arguments, **options)

    def _watch(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """`gen`, as long as it goes on. psycopg asks it now and then with 0 where nothing has come."""
        try:
            wanted, heard = next(gen), time.monotonic()
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > database.SILENT_SECONDS:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has not answered for {database.SILENT_SECONDS:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
