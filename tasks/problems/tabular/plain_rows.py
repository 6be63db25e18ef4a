"""The rows of a plain table: one row per case, with the features, the target and whether it is a test row.

The table is read block by block, several times, and never held as a whole. Blocks have the same rows whatever the settings, so
that the file is the same to the byte.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

from evergreen.tasks.config.params import Role, Table
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.tabular import row_draws
from evergreen.tasks.problems.tabular.holdout_split import ENTITY, FEWEST, TARGET, TEST, TIME
from evergreen.tasks.problems.tabular.row_draws import Numbers, Scratch
from evergreen.tasks.problems.tabular.row_hashes import hash_rows

log = logging.getLogger(__name__)

ROWS, VALUES = 2**17, 2**22
"""Of a block: at most so many rows, a power of two, and so many values."""
SIGN = np.uint64(2**63)
"""Makes moments ascend as numbers without a sign."""


def plain(table: pl.LazyFrame, section: Table, stratified: bool) -> pl.DataFrame:
    """The rows of `table` that have a target, in its order: _entity, _target, _time, _test and the features.

    Features are Float64 (number), String (category, text) or Datetime (date). `stratified`: each class gives its share of
    the test rows. Raises ParamsError for a column that is not there or is not what the section says, and DataError where
    fewer than FEWEST rows are left.
    """
    return pl.concat(_Cases(table, section, stratified).tested())


def write(table: pl.LazyFrame, section: Table, stratified: bool, path: Path) -> None:
    """As `plain`, into a parquet file, in memory that does not grow with the rows; a row group of each block."""
    blocks = _Cases(table, section, stratified, path.parent).tested()
    first: Any = next(blocks)
    with pq.ParquetWriter(path, first.to_arrow().schema, compression="zstd") as file:
        writer: Any = file
        writer.write_table(first.to_arrow())
        for block in blocks:
            each: Any = block
            writer.write_table(each.to_arrow())


@dataclass(frozen=True)
class _Cases:
    table: pl.LazyFrame
    section: Table
    stratified: bool
    folder: Path | None = None
    """For draws; None: the one that TMPDIR names."""

    def tested(self) -> Iterator[pl.DataFrame]:
        """The rows with TEST, block by block; at least one block."""
        self._check()
        with Scratch(self.folder) as scratch:
            yield from self._in_time(scratch) if self.section.time else self._drawn(scratch)

    @cached_property
    def schema(self) -> pl.Schema:
        return self.table.collect_schema()

    @cached_property
    def height(self) -> int:
        """Rows of the table, also those without a target."""
        return self.table.select(pl.len()).collect().item()

    @cached_property
    def columns(self) -> dict[str, pl.Expr]:
        """What the rows are made of, but for ENTITY where each row is one."""
        section, missing = self.section, pl.lit(None)
        target = pl.col(section.target) if section.target else missing.cast(pl.Float64)
        if section.target and self.schema[section.target] == pl.Boolean:
            target = target.cast(pl.String)
        entity = {ENTITY: pl.col(section.entity)} if section.entity else {}
        return entity | {
            TARGET: target,
            TIME: self._moment(section.time) if section.time else missing.cast(pl.Datetime("us")),
            **{name: self._typed(name, role) for name, role in section.columns.items()},
        }

    def _check(self) -> None:
        section, schema = self.section, self.schema
        named = {"target": section.target, "entity": section.entity, "time": section.time}
        listed = [
            *((f"columns.{each}", each) for each in section.columns),
            *(("test_key", each) for each in section.test_key or ()),
        ]
        for key, name in [*named.items(), *listed]:
            if name is not None and name not in schema:
                raise ParamsError(f"features.{key}: {section.table} has no column {name}{nearest(name, schema.names())}")
        entity = pl.col(section.entity).null_count() if section.entity else pl.lit(0)
        rows, nobody = self._kept(self.table).select(pl.len(), entity.alias(ENTITY)).collect(engine="streaming").row(0)
        if section.target is not None and (left := self.height - rows):
            log.info("%s: %d of %d rows have no %s and are left out", section.table, left, self.height, section.target)
        if rows < FEWEST:
            raise DataError(f"{section.table}: {rows} rows with a target; at least {FEWEST} are needed to learn and to judge.")
        assert self.columns
        if nobody:
            raise DataError(f"{section.table}: {section.entity}: {nobody:,} rows do not say whom they are about.")

    def _typed(self, name: str, role: Role) -> pl.Expr:
        if role in ("category", "text"):
            return pl.col(name).cast(pl.String)
        if role == "date":
            return self._moment(name)
        if not (self.schema[name].is_numeric() or self.schema[name] == pl.Boolean):
            example = self._kept(self.table).select(pl.col(name).drop_nulls().head(1)).collect().to_series().to_list()
            raise ParamsError(
                f"features.columns.{name} = number: {self.section.table}.{name} holds {self.schema[name]}, such as "
                f"{example}; call it category, or give ingest.{self.section.table}.types"
            )
        return pl.col(name).cast(pl.Float64)

    def _moment(self, name: str) -> pl.Expr:
        if not self.schema[name].is_temporal() or isinstance(self.schema[name], pl.Time | pl.Duration):
            raise ParamsError(
                f"features.columns.{name}: {self.section.table}.{name} holds {self.schema[name]} and no dates; "
                f"say so in ingest.{self.section.table}.types: {{{name}: date}}"
            )
        return pl.col(name).cast(pl.Datetime("us"))

    def _kept(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        return rows if self.section.target is None else rows.filter(pl.col(self.section.target).is_not_null())

    def _blocks(self, *columns: pl.Expr) -> Iterator[pl.DataFrame]:
        """These columns of the rows with a target, some rows at a time."""
        step = ROWS
        while step > 1 and step * len(self.columns) > VALUES:
            step //= 2
        for start in range(0, self.height, step):
            yield self._kept(self.table.slice(start, step)).select(columns).collect()

    def _rows(self) -> Iterator[pl.DataFrame]:
        """All columns but TEST."""
        count = 0
        for block in self._blocks(*(each.alias(name) for name, each in self.columns.items())):
            if self.section.entity:
                yield block
            else:
                yield block.select(pl.int_range(count, count + block.height).alias(ENTITY), pl.all())
            count += block.height

    def _in_time(self, scratch: Scratch) -> Iterator[pl.DataFrame]:
        """The newest rows are test rows: those from the moment on that leaves `test_share` of them."""
        times = (block[TIME].drop_nulls() for block in self._blocks(self.columns[TIME].alias(TIME)))
        moments = scratch.numbers(each.to_physical().to_numpy().view(np.uint64) ^ SIGN for each in times)
        newest = pl.lit(False)
        if moments.count:
            place = int(np.ceil((moments.count - 1) * (1 - self.section.test_share)))  # as Polars' quantile, "higher"
            first = np.uint64(moments.nth(place)) ^ SIGN
            newest = (pl.col(TIME).to_physical() >= int(first.view(np.int64))).fill_null(False)
        for rows in self._rows():
            yield self._ordered(rows.with_columns(newest.alias(TEST)))

    def _drawn(self, scratch: Scratch) -> Iterator[pl.DataFrame]:
        draws = scratch.numbers(hash_rows(block) for block in self._blocks(*self._key()))
        if not self.section.entity:
            draws = row_draws.in_lots(draws, scratch.numbers(self._targets(draws)), scratch)
        classes, by_entity = scratch.numbers(self._classes(draws)), self.section.entity is not None
        tested, count = row_draws.choose(draws, classes, self.section.test_share, by_entity, scratch), 0
        for rows in self._rows():
            yield self._ordered(rows.with_columns(pl.Series(TEST, tested(draws.read(count, rows.height)))))
            count += rows.height

    def _key(self) -> list[pl.Expr]:
        section = self.section
        if section.entity:
            return [pl.col(section.entity)]
        if section.test_key:
            return [pl.col(name) for name in section.test_key]
        return [self.columns[name].alias(name) for name in row_draws.complete_key(list(section.columns), self._distinct)]

    def _distinct(self, names: Sequence[str]) -> int:
        """How many distinct rows there are, by a hash of them."""
        content = pl.struct(
            self.columns[name] + 0.0 if role == "number" else self.columns[name]
            for name, role in self.section.columns.items()
            if name in names
        )
        with Scratch(self.folder) as scratch:
            hashed = (block[TEST].to_numpy() for block in self._blocks(content.hash(0).alias(TEST)))
            return row_draws.count_distinct(scratch.numbers(hashed), scratch)

    def _targets(self, draws: Numbers) -> Iterator[np.ndarray]:
        """A number for each target, the same for the same."""
        if self.section.target is None:
            yield from map(np.zeros_like, draws.chunks())
            return
        target = self.columns[TARGET]
        same = target + 0.0 if self.schema[self.section.target].is_float() else target
        for block in self._blocks(same.hash(0).alias(TARGET)):
            yield block[TARGET].to_numpy()

    def _classes(self, draws: Numbers) -> Iterator[np.ndarray]:
        """The class of each row, from 0, in the order of their values; 0 where they are not told apart."""
        if not self.stratified or self.section.target is None:
            yield from map(np.zeros_like, draws.chunks())
            return
        target = self.columns[TARGET].alias(TARGET)
        known = self._kept(self.table).select(target.unique().sort()).collect(engine="streaming").to_series()
        codes = pl.col(TARGET).replace_strict(known, pl.int_range(len(known), eager=True), return_dtype=pl.UInt64)
        for block in self._blocks(target):
            yield block.select(codes).to_series().to_numpy()

    def _ordered(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select(ENTITY, TARGET, TIME, TEST, *self.section.columns)
