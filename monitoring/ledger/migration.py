"""Move a ledger with a row per prediction into blocks by day and column: a step of `evergreen upgrade`.

There a row per prediction named its place in a block.
"""

from collections.abc import Sequence

import polars as pl
import sqlalchemy as sa

from evergreen.monitoring.ledger import blocks
from evergreen.monitoring.ledger.schema import DAY_MICROS, LABELS, METADATA
from evergreen.monitoring.ledger.writing import write_block

COLUMNS = ("id", "variant", "at", "cutoff", "entity")


def move(link: sa.Connection) -> None:
    """Move every block, in the transaction of `link`, and drop the tables that held them."""
    METADATA.create_all(link)
    old = sa.MetaData()
    old.reflect(link, only=["predictions", "prediction_blocks"], resolve_fks=False)
    while _move_next(link, old.tables["predictions"], old.tables["prediction_blocks"]):
        pass
    old.drop_all(link)


def date_labels(link: sa.Connection) -> None:
    """Labels by moment get their day."""
    undated = sa.update(LABELS).where(LABELS.c.second.is_not(None), LABELS.c.day.is_(None))
    link.execute(undated.values(day=LABELS.c.second // 86_400))


def _move_next(link: sa.Connection, rows: sa.Table, packed: sa.Table) -> bool:
    """Move the oldest block; False: none is left."""
    block = link.execute(sa.select(packed).order_by(packed.c.number).limit(1)).first()
    if block is None:
        return False
    found = link.execute(sa.select(rows).where(rows.c.block == block.number).order_by(rows.c.at, rows.c.position))
    head = pl.DataFrame(found.mappings().all(), schema_overrides=blocks.HEAD, infer_schema_length=None)
    if head.height:
        outputs, features = (blocks.unpack([each])[0] for each in (block.outputs, block.features))
        for (problem, version, _), part in head.group_by("problem", "version", pl.col("at") // DAY_MICROS):
            _write(link, str(problem), int(version), part, outputs, features)
    link.execute(sa.delete(rows).where(rows.c.block == block.number))
    link.execute(sa.delete(packed).where(packed.c.number == block.number))
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
