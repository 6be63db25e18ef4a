"""Tables of the prediction ledger, and times as they are stored.

`at`, `known_at`: microseconds since 1970, UTC. `cutoff`, `day`, `date`: days since 1970. `second`: seconds since 1970.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import polars as pl
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

METADATA = sa.MetaData()
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
IDS = sa.Table(
    "prediction_ids",
    METADATA,
    sa.Column("problem", sa.String(64), primary_key=True),
    sa.Column("period", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("day", sa.Integer, nullable=False),  # the cutoff, else the day of `at`: labels refer to it
    sa.Column("entity", sa.String(255)),
    sa.Column("block", sa.BigInteger, nullable=False),  # in which it was written
    sa.Index("prediction_ids_by_entity", "problem", "period", "entity"),
    sqlite_with_rowid=False,
)
"""Each prediction once: what makes it unique, and what a label may refer to. An id is unique in a period of PERIOD_DAYS days:
then new and old predictions each lie close together, and are written and deleted without touching the whole index."""
PERIOD_DAYS = 32
BLOCKS = sa.Table(
    "prediction_columns",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("date", sa.Integer, nullable=False),  # the day on which all of its predictions were made
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("first", sa.BigInteger, nullable=False),  # `at` of the first and the last prediction
    sa.Column("last", sa.BigInteger, nullable=False),
    sa.Column("first_day", sa.Integer, nullable=False),  # the smallest and the largest `day`
    sa.Column("last_day", sa.Integer, nullable=False),
    sa.Column("head", sa.LargeBinary, nullable=False),
    sa.Column("outputs", sa.LargeBinary, nullable=False),
    sa.Column("features", sa.LargeBinary, nullable=False),
    sa.Index("prediction_columns_by_date", "problem", "date", "number"),
    sqlite_autoincrement=True,  # a number is never used twice
)
"""The predictions of one version and day, or a part of them, column by column (ledger.blocks)."""
BLOCK_LABELS = sa.Table(
    "prediction_labels",
    METADATA,
    sa.Column("block", NUMBER, primary_key=True, autoincrement=False),
    sa.Column("upto", sa.BigInteger, nullable=False),  # the number of the newest label among them
    sa.Column("complete", sa.Boolean, nullable=False),  # whether each prediction for an entity has a label for its day
    sa.Column("labels", sa.LargeBinary, nullable=False),
)
"""The labels of a block, as columns too. Newer ones are in LABELS alone."""
LABELS = sa.Table(
    "labels",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False),
    sa.Column("id", sa.String(255)),
    sa.Column("entity", sa.String(255)),
    sa.Column("day", sa.Integer),
    sa.Column("second", sa.BigInteger),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("known_at", sa.BigInteger, nullable=False),
    sa.Index("labels_by_id", "problem", "id"),
    sa.Index("labels_by_entity", "problem", "entity"),
    sa.Index("labels_by_day", "problem", "day", "number"),
    sqlite_autoincrement=True,  # a number is never used twice: numbers order the labels of a problem
)
"""`day` of a label by id: that of its prediction, once there is one; of a label by moment: the day of that moment."""
REJECTED_LABELS = sa.Table(
    "rejected_labels",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),  # when it was sent
    sa.Column("label", sa.Text, nullable=False),  # as JSON
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index("rejected_labels_by_problem", "problem", "number"),
    sqlite_autoincrement=True,
)
"""The newest labels that broke a rule (ledger.rejected_labels)."""


def _cohort_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("problem", sa.String(64), primary_key=True),
        sa.Column("week", sa.Date, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("predictions", sa.Integer, nullable=False),
        sa.Column("matured", sa.Integer, nullable=False),
        sa.Column("score", sa.Text),
        sa.Column("estimated", sa.Text),
    ]


COHORTS = sa.Table("prediction_cohorts", METADATA, *_cohort_columns())
"""Of deleted predictions."""
LIVE_COHORTS = sa.Table(
    "prediction_cohorts_live",
    METADATA,
    *_cohort_columns(),
    sa.Column("labelled", sa.Integer, nullable=False),  # matured, without predictions in shadow mode
    sa.Column("label_number", sa.BigInteger, nullable=False),  # of the newest label of its days, when it was counted
    sa.Column("label_at", sa.BigInteger),  # when the newest of its labels was known
)
"""Of predictions in the ledger, as they were counted and scored last."""
INSERT_ARRAYS = sa.text(
    f"INSERT INTO prediction_ids ({', '.join(IDS.c.keys())}) SELECT * FROM unnest("
    + ", ".join(f"CAST(:{each.name} AS {each.type.compile(postgresql.dialect())}[])" for each in IDS.c)
    + ") ON CONFLICT DO NOTHING"
)
"""PostgreSQL: all rows in one statement, one array per column."""
ROWS_PER_STATEMENT = 500
"""Databases limit the parameters of one statement."""
ROWS_PER_FETCH = 50_000
MAX_KEY_LENGTH = 255
"""Characters of an id or an entity."""
DAY_MICROS = 86_400 * 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
T = TypeVar("T")


def fetch(connection: sa.Connection, query: sa.Select[Any], schema: dict[str, Any]) -> pl.DataFrame:
    """The rows of a query, in parts: rows take more memory than columns."""
    frames = [pl.DataFrame(schema=schema)]
    for part in connection.execute(query.execution_options(yield_per=ROWS_PER_FETCH)).partitions():
        frames.append(pl.DataFrame(dict(zip(schema, zip(*part, strict=True), strict=True)), schema=schema))
    return pl.concat(frames)


def chunk(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))


def to_utc(moment: datetime) -> datetime:
    """A naive moment is UTC."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def to_micros(moment: datetime) -> int:
    passed = (moment if moment.tzinfo is UTC else to_utc(moment)) - EPOCH
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


def to_days(day: date | None) -> int | None:
    return None if day is None else day.toordinal() - EPOCH.toordinal()


def as_timestamp(name: str) -> pl.Expr:
    """A column of microseconds as UTC timestamps."""
    return pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
