"""Tables of the prediction ledger, and times as they are stored.

`at`, `known_at`: microseconds since 1970, UTC. `cutoff`, `day`: days since 1970. `second`: seconds since 1970.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import polars as pl
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

METADATA = sa.MetaData()
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
PREDICTIONS = sa.Table(
    "predictions",
    METADATA,
    sa.Column("problem", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("variant", sa.String(9), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("cutoff", sa.Integer),
    sa.Column("day", sa.Integer, nullable=False),  # the cutoff, else the day of `at`: labels refer to it
    sa.Column("entity", sa.String(255)),
    sa.Column("block", sa.BigInteger, nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Index("predictions_by_time", "problem", "at"),
    sa.Index("predictions_by_entity", "problem", "entity"),
)
BLOCKS = sa.Table(
    "prediction_blocks",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("outputs", sa.LargeBinary, nullable=False),
    sa.Column("features", sa.LargeBinary, nullable=False),
)
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
)
COHORTS = sa.Table(
    "prediction_cohorts",
    METADATA,
    sa.Column("problem", sa.String(64), primary_key=True),
    sa.Column("week", sa.Date, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("predictions", sa.Integer, nullable=False),
    sa.Column("matured", sa.Integer, nullable=False),
    sa.Column("score", sa.Text),
    sa.Column("estimated", sa.Text),
)
INSERT_ARRAYS = sa.text(
    f"INSERT INTO predictions ({', '.join(PREDICTIONS.c.keys())}) SELECT * FROM unnest("
    + ", ".join(f"CAST(:{each.name} AS {each.type.compile(postgresql.dialect())}[])" for each in PREDICTIONS.c)
    + ") ON CONFLICT DO NOTHING"
)
"""PostgreSQL: all rows in one statement, one array per column."""
ROWS_PER_STATEMENT = 500
"""Databases limit the parameters of one statement."""
MAX_KEY_LENGTH = 255
"""Characters of an id or an entity."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
T = TypeVar("T")


def fetch(connection: sa.Connection, query: sa.Select[Any], schema: dict[str, Any], rows_per_part: int) -> pl.DataFrame:
    """The rows of a query, in parts: rows take more memory than columns."""
    frames = [pl.DataFrame(schema=schema)]
    for part in connection.execute(query.execution_options(yield_per=rows_per_part)).partitions():
        frames.append(pl.DataFrame(dict(zip(schema, zip(*part, strict=True), strict=True)), schema=schema))
    return pl.concat(frames)


def chunk(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))


def to_utc(moment: datetime) -> datetime:
    """A naive moment is UTC."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def to_micros(moment: datetime) -> int:
    return (to_utc(moment) - EPOCH) // timedelta(microseconds=1)


def to_days(day: date | None) -> int | None:
    return None if day is None else day.toordinal() - EPOCH.toordinal()


def as_timestamp(name: str) -> pl.Expr:
    """A column of microseconds as UTC timestamps."""
    return pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
