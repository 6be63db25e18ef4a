"""Keep the ledger small and fast: merge blocks, pack labels, delete what is old, give space back, each in small pieces.

Between two pieces every other writer has its turn, and a kill leaves whole pieces (ledger.pieces).
"""

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date
from itertools import groupby
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from evergreen.monitoring.ledger import blocks, cohorts, label_matching
from evergreen.monitoring.ledger.cohorts import Cohort, midnight
from evergreen.monitoring.ledger.pieces import Connect, Pieces, resting
from evergreen.monitoring.ledger.schema import BLOCK_LABELS, BLOCKS, IDS, LABELS, PERIOD_DAYS, to_days, to_micros
from evergreen.monitoring.ledger.writing import describe
from evergreen.tasks.core import database

MERGED_ROWS = 20_000
"""Most rows of a block that others are merged into."""
MERGED_BLOCKS = 500
"""Most blocks that are merged in one transaction."""
MOST_DAYS = 500
"""Labels that are given their day in one transaction."""
PAGES_PER_PIECE = 200
"""Pages of an SQLite file that are given back at once."""


def tidy(connect: Connect, problem: str, before: date) -> None:
    """See Ledger.tidy."""
    pieces = Pieces(connect)
    while runs := list(_mergeable(connect, problem, before)):
        for each in runs:
            _merge(connect, pieces, problem, each)
    find_days(connect, problem)
    _pack_labels(connect, pieces, problem, before)


def _mergeable(connect: Connect, problem: str, before: date) -> Iterator[list[int]]:
    """Numbers of blocks of one day and version that fit together."""
    columns = BLOCKS.c.date, BLOCKS.c.version, BLOCKS.c.number, BLOCKS.c.rows
    query = sa.select(*columns).where(BLOCKS.c.problem == problem, BLOCKS.c.date < to_days(before))
    with connect() as connection:
        found = connection.execute(query.order_by(*columns[:3])).all()
    for _, group in groupby(found, key=lambda row: (row.date, row.version)):
        run, rows = list[int](), 0
        for each in group:
            if rows + each.rows > MERGED_ROWS or len(run) == MERGED_BLOCKS:
                if len(run) > 1:
                    yield run
                run, rows = [], 0
            run.append(each.number)
            rows += each.rows
        if len(run) > 1:
            yield run


def _merge(connect: Connect, pieces: Pieces, problem: str, numbers: Sequence[int]) -> None:
    """Replace blocks by one; nothing where another process did meanwhile."""
    same = BLOCKS.c.number.in_(numbers)
    with connect() as connection:
        found = blocks.read(connection, [same]).where(pl.lit(value=True))
    if len(found.labels) != len(numbers):
        return
    head = found.head.select(list(blocks.HEAD))
    row: dict[str, Any] = {
        "problem": problem,
        "version": found.head["version"][0],
        **describe(head.to_dict(as_series=False)),
        "head": blocks.pack_frame(head, head.columns),
        "outputs": blocks.pack_whole(found.outputs, head.height),
        "features": blocks.pack_whole(found.features, head.height),
    }
    with pieces.write() as connection:
        if connection.execute(sa.delete(BLOCKS).where(same)).rowcount != len(numbers):
            connection.rollback()
            return
        connection.execute(sa.delete(BLOCK_LABELS).where(BLOCK_LABELS.c.block.in_(numbers)))
        connection.execute(sa.insert(BLOCKS).values(**row))


def _pack_labels(connect: Connect, pieces: Pieces, problem: str, before: date) -> None:
    """Pack the labels of those blocks that have newer ones."""
    columns = BLOCKS.c.number, BLOCKS.c.first_day, BLOCKS.c.last_day, BLOCK_LABELS.c.upto
    query = sa.select(*columns).outerjoin(BLOCK_LABELS, BLOCK_LABELS.c.block == BLOCKS.c.number)
    with connect() as connection:
        found = connection.execute(query.where(BLOCKS.c.problem == problem, BLOCKS.c.date < to_days(before))).all()
        days = (day for _, first, last, _ in found for day in range(first, last + 1))
        newest = label_matching.newest_numbers(connection, problem, days)
    for number, first, last, upto in found:
        newer = max(newest[day] for day in range(first, last + 1))
        if newer > (upto or 0):
            _pack_labels_of(connect, pieces, problem, number, newer)


def _pack_labels_of(connect: Connect, pieces: Pieces, problem: str, number: int, upto: int) -> None:
    with connect() as connection:
        found = blocks.read(connection, [BLOCKS.c.number == number], outputs=False, features=False)
        labels = label_matching.find_labels(connection, problem, found).filter(pl.col("number") <= upto)
    open_ = found.head.filter(pl.col("entity").is_not_null()).join(labels, on=["block", "position"], how="anti")
    row = {"block": number, "upto": upto, "complete": open_.is_empty(), "labels": label_matching.pack_labels(labels)}
    with pieces.write(problem) as connection:
        if connection.execute(sa.select(BLOCKS.c.number).where(BLOCKS.c.number == number)).first():
            connection.execute(sa.delete(BLOCK_LABELS).where(BLOCK_LABELS.c.block == number))
            connection.execute(sa.insert(BLOCK_LABELS).values(**row))


def find_days(connect: Connect, problem: str) -> None:
    """Give labels by id the day of their prediction, where that arrived after them."""
    while True:
        with connect() as connection:
            found = label_matching.find_days(connection, problem, MOST_DAYS)
        if not found:
            return
        with connect() as connection:
            label_matching.set_days(connection, found)


def delete_week(connect: Connect, problem: str, cohort: Cohort) -> int:
    """Delete the predictions of a cohort and their labels by id; their counts and its scores move to the deleted ones.

    Returns how many.
    """
    pieces = Pieces(connect)
    dates = BLOCKS.c.date.between(*cohorts.dates(cohort.week))
    where = [BLOCKS.c.problem == problem, BLOCKS.c.version == cohort.version, dates]
    deleted = 0
    while True:
        with connect() as connection:
            number = connection.execute(sa.select(BLOCKS.c.number).where(*where).order_by(BLOCKS.c.number)).scalar()
        if number is None:
            return deleted
        deleted += _delete_block(connect, pieces, problem, number, cohort)


def _delete_block(connect: Connect, pieces: Pieces, problem: str, number: int, cohort: Cohort) -> int:
    same = BLOCKS.c.number == number
    with connect() as connection:
        found = blocks.read(connection, [same], outputs=False, features=False)
        matured = label_matching.find_labels(connection, problem, found)["position"].n_unique()
    for (period,), rows in found.head.sort("id").group_by(pl.col("day") // PERIOD_DAYS):
        for part in pieces.cut(rows["id"].to_list()):
            with pieces.write() as connection:
                connection.execute(sa.delete(IDS).where(IDS.c.problem == problem, IDS.c.period == period, IDS.c.id.in_(part)))
                connection.execute(sa.delete(LABELS).where(LABELS.c.problem == problem, LABELS.c.id.in_(part)))
    with pieces.write(problem) as connection:
        if not connection.execute(sa.delete(BLOCKS).where(same)).rowcount:
            return 0  # another process was faster
        connection.execute(sa.delete(BLOCK_LABELS).where(BLOCK_LABELS.c.block == number))
        gone = Cohort(cohort.week, cohort.version, found.head.height, matured, cohort.score, cohort.estimated)
        cohorts.add_deleted(connection, problem, gone)
    return found.head.height


def delete_labels(connect: Connect, problem: str, before: date) -> None:
    """Delete labels that were known before `before` and match no prediction any more; and the cohorts of those weeks."""
    with connect() as connection:
        cohorts.remove_stored(connection, problem, before)
        first_day = connection.execute(sa.select(sa.func.min(BLOCKS.c.first_day)).where(BLOCKS.c.problem == problem)).scalar()
    end, pieces = to_micros(midnight(before)), Pieces(connect)
    while True:
        with connect() as connection:
            old = label_matching.find_unmatched(connection, problem, end, first_day, pieces.rows)
        if not old:
            return
        with pieces.write() as connection:
            connection.execute(sa.delete(LABELS).where(LABELS.c.number.in_(old)))


def give_space_back(engine: sa.Engine) -> None:
    """SQLite: give free pages of the file back, a few at a time. PostgreSQL uses its own again."""
    if engine.dialect.name != "sqlite":
        return
    with _cursor(engine) as cursor:
        while free := cursor.execute("PRAGMA freelist_count").fetchone()[0]:
            with resting():
                cursor.execute(f"PRAGMA incremental_vacuum({PAGES_PER_PIECE})").fetchall()  # a page per row that is fetched
            if cursor.execute("PRAGMA freelist_count").fetchone()[0] == free:
                return  # a file of an earlier version: it keeps no list of such pages


def shrink(engine: sa.Engine) -> int:
    """See Ledger.shrink."""
    if engine.dialect.name != "sqlite":
        return 0
    with _cursor(engine) as cursor:

        def pages() -> int:
            return cursor.execute("PRAGMA page_count").fetchone()[0]

        before = pages()
        if cursor.execute("PRAGMA auto_vacuum").fetchone()[0] == 0:
            cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
            cursor.execute("VACUUM")  # from now on; a file of an earlier version
        else:
            give_space_back(engine)
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return (before - pages()) * cursor.execute("PRAGMA page_size").fetchone()[0]


@contextmanager
def _cursor(engine: sa.Engine) -> Generator[Any]:
    """A cursor of SQLite outside of transactions. Raises ProjectError, in one line, where it refuses."""
    try:
        with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
            yield cursor
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise database.unusable(engine, "predictions", error) from error
