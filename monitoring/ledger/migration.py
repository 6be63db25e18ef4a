"""Move the ledger of an earlier Evergreen into the present tables, block by block, when it is opened.

There a row per prediction named its place in a block. A kill leaves whole blocks in one place or the other, and the next
opening goes on.
"""

import logging
from collections.abc import Sequence

import polars as pl
import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError

from evergreen.monitoring.ledger import blocks
from evergreen.monitoring.ledger.schema import DAY_MICROS, LABELS
from evergreen.monitoring.ledger.writing import write_block
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ProjectError

log = logging.getLogger(__name__)

COLUMNS = ("id", "variant", "at", "cutoff", "entity")


def move(engine: sa.Engine) -> None:
    """Raises ProjectError where the database cannot be used."""
    try:
        if not sa.inspect(engine).has_table("prediction_blocks"):
            return
    except SQLAlchemyError as error:
        raise database.unusable(engine, "predictions", error) from error
    log.warning("the ledger of an earlier version is moved into its present tables; this is done once")
    try:
        _move_all(engine)
    except (ProjectError, InvalidRequestError):
        if sa.inspect(engine).has_table("prediction_blocks"):
            raise  # else another process has just finished the move


def _move_all(engine: sa.Engine) -> None:
    old = sa.MetaData()
    with database.transaction(engine, "predictions") as connection:
        old.reflect(connection, only=["predictions", "prediction_blocks"], resolve_fks=False)
    rows, packed = old.tables["predictions"], old.tables["prediction_blocks"]
    _prepare_labels(engine)
    while _move_next(engine, rows, packed):
        pass
    with database.transaction(engine, "predictions") as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # both tables or none
        old.drop_all(connection, checkfirst=True)


def _prepare_labels(engine: sa.Engine) -> None:
    """Labels by moment get their day, and all the index by day."""
    with database.transaction(engine, "predictions") as connection:
        connection.execute(
            sa.update(LABELS).where(LABELS.c.second.is_not(None), LABELS.c.day.is_(None)).values(day=LABELS.c.second // 86_400)
        )
        for index in LABELS.indexes:
            index.create(connection, checkfirst=True)


def _move_next(engine: sa.Engine, rows: sa.Table, packed: sa.Table) -> bool:
    """Move the oldest block; False: none is left."""
    with database.transaction(engine, "predictions") as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        query = sa.select(packed).order_by(packed.c.number).limit(1)
        block = connection.execute(query if connection.dialect.name == "sqlite" else query.with_for_update()).first()
        if block is None:
            return False
        found = connection.execute(sa.select(rows).where(rows.c.block == block.number).order_by(rows.c.at, rows.c.position))
        head = pl.DataFrame(found.mappings().all(), schema_overrides=blocks.HEAD, infer_schema_length=None)
        if head.height:
            outputs, features = (blocks.unpack([each])[0] for each in (block.outputs, block.features))
            for (problem, version, _), part in head.group_by("problem", "version", pl.col("at") // DAY_MICROS):
                _write(connection, str(problem), int(version), part, outputs, features)
        connection.execute(sa.delete(rows).where(rows.c.block == block.number))
        connection.execute(sa.delete(packed).where(packed.c.number == block.number))
    return True


def _write(
    connection: sa.Connection, problem: str, version: int, part: pl.DataFrame, outputs: pl.DataFrame, features: pl.DataFrame
) -> None:
    place = part["position"].to_list()

    def pack(places: Sequence[int]) -> tuple[bytes, bytes]:
        kept = [place[each] for each in places]
        one, two = (blocks.pack_whole(each[kept] if each.width else each, len(kept)) for each in (outputs, features))
        return one, two

    write_block(connection, problem, version, part.select(COLUMNS).to_dict(as_series=False), pack)
