"""Transactions of the ledger's upkeep: small ones, with a rest after each in which predictions and labels are written.

SQLite has one writer at a time, and those that wait ask again after up to 100 ms. An upkeep that took the lock again at once
would keep them waiting for long. It therefore rests as long as it held the lock, and copies its pages from the log into the
file itself, which otherwise the next writer does at its commit.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import sqlalchemy as sa

from evergreen.monitoring.ledger import label_matching

TARGET = 0.05
"""Seconds that a piece should hold the lock."""
LEAST_ROWS, MOST_ROWS = 20, 500
"""Predictions or labels that are deleted in one transaction."""
LEAST_REST = 0.03
"""Seconds: a writer that waits asks often enough to find a rest of this length."""

Connect = Callable[[], AbstractContextManager[sa.Connection]]
"""Begins a transaction."""
T = TypeVar("T")


class Pieces:
    """`rows`: of the next piece, so that it holds the lock for about TARGET on this disk."""

    def __init__(self, connect: Connect) -> None:
        self._connect, self.rows = connect, 100

    def cut(self, rows: Sequence[T]) -> Iterator[Sequence[T]]:
        """The rows in pieces; each is as large as the one before it suggests."""
        first = 0
        while first < len(rows):
            size = self.rows
            yield rows[first : first + size]
            first += size

    @contextmanager
    def write(self, labels_of: str | None = None) -> Generator[sa.Connection]:
        """A transaction that takes the lock at once, so that no other writer comes between; on PostgreSQL only with
        `labels_of`, the problem whose labels stay as they are meanwhile. Other writers have their turn after it."""
        began = time.monotonic()
        with self._connect() as connection:
            is_sqlite = connection.dialect.name == "sqlite"
            if labels_of is not None:
                label_matching.lock_labels(connection, labels_of)
            elif is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            began = time.monotonic()
            yield connection
        spent = time.monotonic() - began
        self.rows = int(min(max(self.rows * min(TARGET / max(spent, 1e-4), 2.0), LEAST_ROWS), MOST_ROWS))
        if is_sqlite:
            with self._connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
            rest(spent)


@contextmanager
def resting() -> Generator[None]:
    """Rest as long as the block took."""
    began = time.monotonic()
    yield
    rest(time.monotonic() - began)


def rest(spent: float) -> None:
    time.sleep(max(spent, LEAST_REST))
