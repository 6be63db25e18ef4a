"""Rules about single rows, block by block; blocks that an earlier run judged are not judged again.

A block is known by the bytes of its row groups, the rules, and the rows of other tables that its own rows refer to. Which
blocks there are does not change what is found.
"""

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypedDict, cast

import polars as pl

from evergreen.tasks.config.data import Rules
from evergreen.tasks.core.memory import peak_mb
from evergreen.tasks.data import earlier_results
from evergreen.tasks.data.great_expectations import Expectations, Expected
from evergreen.tasks.data.repeated_rows import EarlierRows
from evergreen.tasks.data.row_blocks import RowBlocks, packed_table, unpacked_table
from evergreen.tasks.data.rules import Found, RowRule

log = logging.getLogger(__name__)


class Part(TypedDict):
    """What the rules found in one block, as JSON holds it, and what it follows from besides rows and rules."""

    rules: list[Found]
    """Of the built-in rules, in their order."""
    expected: dict[str, Expected]
    missing: dict[str, int]
    """Column of Expectations.nullable_columns -> number of its missing values."""
    nullable: list[str]
    """Those of these columns that miss a value anywhere in the table."""
    groups: list[str]
    """Digests of its row groups."""
    dropped: str
    """Digest of which of its rows, and how many before it, were dropped as duplicates."""
    keys: dict[str, str]
    """Column of a reference -> its values, each once, as a packed table."""
    known: str
    """Digest of what other tables hold of these keys."""


@dataclass(frozen=True)
class Judge:
    """The rules of one table, and the blocks that were judged before."""

    name: str
    view: RowBlocks
    rules: Sequence[RowRule]
    expectations: Expectations
    context: str
    """Digest of rules and schemas."""
    earlier: EarlierRows | None

    def parts(self) -> tuple[list[tuple[range, Part]], int]:
        """Rows of the file (from 0) of each block in their order, and what the rules found there; of how many rows that was
        known before.
        """
        plan = self._plan()
        missing = [known["missing"] if known else self._missing(rows) for rows, known in plan]
        nullable = [each for each in self.expectations.nullable_columns if any(counts[each] for counts in missing)]
        plan = [(rows, known if known and known["nullable"] == nullable else None) for rows, known in plan]
        if old := sum(len(rows) for rows, known in plan if known):
            log.info("validate: %s: %s of %s rows are as before", self.name, f"{old:,}", f"{self.view.read:,}")
        found: list[tuple[range, Part]] = []
        for (rows, known), counts in zip(plan, missing, strict=True):
            found.append((rows, known or self._judged(rows, counts, nullable)))
        return found, old

    def _judged(self, rows: range, missing: dict[str, int], nullable: list[str]) -> Part:
        block = self.view.part(rows).collect()
        flags = {column: column in nullable for column in missing}
        part: Part = {
            "rules": [each.find(block, rows) for each in self.rules],
            "expected": self.expectations.find(block, rows, flags),
            "missing": missing,
            "nullable": nullable,
            "groups": self._groups(rows),
            "dropped": self._dropped(rows),
            "keys": (keys := {column: packed_table(block.select(pl.col(column).unique())) for column in self._references}),
            "known": self._known(keys) if self.earlier else "",
        }
        part = cast(Part, earlier_results.as_json(part))
        if self.view.read > len(rows):
            numbers = f"{rows.stop:,}", f"{self.view.read:,}", peak_mb()
            log.info("validate: %s: %s of %s rows, peak memory %.0f MB", self.name, *numbers)
        if self.earlier and not self.expectations.failed:
            self.earlier.results.put(self._key(rows.start), part)
        return part

    def _missing(self, rows: range) -> dict[str, int]:
        columns = self.expectations.nullable_columns
        counts = self.view.part(rows, columns).select(pl.col(columns).null_count()).collect() if columns else pl.DataFrame()
        return {column: counts[column].item() for column in columns}

    # Blocks that were judged before

    def _plan(self) -> list[tuple[range, Part | None]]:
        """The blocks: of those that follow one another the ones that are known, and new ones between them."""
        if self.earlier is None:
            return [(rows, None) for rows in self.view.spans()]
        plan: list[tuple[range, Part | None]] = []
        at = new = 0
        while at < self.view.read:
            rows, known = self._found(at)
            if known:
                plan += self._new(range(new, at))
                plan.append((rows, known))
                new = rows.stop
            at = rows.stop
        return [*plan, *self._new(range(new, self.view.read))]

    def _new(self, rows: range) -> list[tuple[range, Part | None]]:
        return [(each, None) for each in self.view.spans(rows)] if rows or not self.view.read else []

    def _found(self, start: int) -> tuple[range, Part | None]:
        """The known block from `start` on; without one, the rows of one row group."""
        one = range(start, min(start + self.view.grain, self.view.read))
        part: Part | None = self.earlier.results.get(self._key(start)) if self.earlier else None
        if part is None:
            return one, None
        rows = range(start, min(start + len(part["groups"]) * self.view.grain, self.view.read))
        same = part["groups"] == self._groups(rows) and part["dropped"] == self._dropped(rows)
        return (rows, part) if same and part["known"] == self._known(part["keys"]) else (one, None)

    def _key(self, start: int) -> str:
        return earlier_results.digest("block", self.context, start, self._groups(range(start, start + 1)))

    def _groups(self, rows: range) -> list[str]:
        """Digests of the row groups of which `rows` holds the first row."""
        return (
            list(self.earlier.groups[rows.start // self.view.grain : -(-rows.stop // self.view.grain)]) if self.earlier else []
        )

    def _dropped(self, rows: range) -> str:
        dropped = self.view.dropped
        if dropped is None or not self.earlier:
            return ""
        mask = dropped.slice(rows.start, len(rows)).to_numpy().tobytes()
        return earlier_results.digest(int(dropped.slice(0, rows.start).sum()), hashlib.sha256(mask).hexdigest())

    @cached_property
    def _references(self) -> dict[str, pl.Series]:
        """Column of a reference -> the keys of the other table."""
        return {each.tally.columns[0]: each.known for each in self.rules if each.known is not None} if self.earlier else {}

    def _known(self, keys: Mapping[str, str]) -> str:
        """Of packed keys by column: which of them the other tables have, and the columns that are joined."""
        joined, content = dict(self.view.facts), hashlib.sha256()
        for column, packed in keys.items():
            rows = unpacked_table(packed).sort(column)
            rows = rows.with_columns(pl.col(column).is_in(self._references[column].implode()).alias("__known"))
            if column in joined:
                rows = rows.join(joined[column], on=column, how="left", maintain_order="left")
            file = io.BytesIO()
            rows.write_parquet(file)
            content.update(file.getvalue())
        return content.hexdigest()


def context_of(name: str, view: RowBlocks, given: Sequence[Any]) -> str:
    """Of what every block of a table follows from: `given`, of types of JSON, the code, columns and their types."""
    kinds = [[column, str(kind)] for column, kind in view.schema.schema.items()]
    return earlier_results.digest("rules", earlier_results.code(), name, given, kinds)


def read_now(rules: Rules) -> list[str]:
    """The expressions of the rules with the time that those such as NOW() read; another one in each run for arguments of
    expectations that the library computes.
    """
    texts = [*rules.derived.values(), *(each.where for each in rules.references.values() if each.where)]
    computed = any("$PARAMETER" in str(each.kwargs) for each in rules.expectations)
    return [*map(_parsed, texts), *([datetime.now().isoformat()] if computed else [])]


def _parsed(text: str) -> str:
    try:
        return pl.sql_expr(text).meta.serialize(format="json")
    except (pl.exceptions.PolarsError, ValueError):
        return text
