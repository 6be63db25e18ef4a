"""Score rows of a frame with a registered model: each row gets a prediction or a reason, and their order stays."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pandas.api.types import is_numeric_dtype

from evergreen.tasks import problems
from evergreen.tasks.config.data import NOUNS, ColumnType
from evergreen.tasks.config.params import Params, Source, Table
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data.conversion import convert_rows
from evergreen.tasks.data.snapshot import contract
from evergreen.tasks.problems.base import NOT_SCORED, Data, Model, RowKind

if TYPE_CHECKING:
    from evergreen.tasks.model_files.onnx_runtime import Compiled

TYPE_OF_ROLE: Mapping[str, ColumnType] = {"number": "number", "category": "text", "text": "text", "date": "datetime"}
CUTOFF = "cutoff"
"""Column of the last day that the features of a row cover."""
LEDGER_CUTOFF = "_cutoff"
"""The same in a LedgerFrame, beside the user's columns."""


@dataclass(frozen=True, eq=False)
class LedgerFrame:
    """Predictions as the ledger stores them: one row each, with the features that were used and the outputs in columns."""

    frame: pl.DataFrame
    """With a column LEDGER_CUTOFF, null where the rows have no cutoff."""
    key: str | None
    """The entity's column."""
    features: tuple[str, ...]
    outputs: tuple[str, ...]

    def by_cutoff(self) -> Iterator[tuple[date | None, pl.DataFrame]]:
        """Each last day that features cover, and the rows of that day."""
        for rows in self.frame.partition_by(LEDGER_CUTOFF, maintain_order=True):
            yield rows[LEDGER_CUTOFF][0], rows.drop(LEDGER_CUTOFF)


@dataclass(frozen=True, eq=False)
class Scored:
    rows: pl.DataFrame
    """As they came, with their predictions."""
    ledger_rows: Callable[[], LedgerFrame]
    unseen: Mapping[str, int]
    """Feature -> rows with a category that the training data lack."""
    replaced: Mapping[str, int]
    """Feature -> rows with a common string for a missing value that the contract does not list."""
    absent: tuple[str, ...] = ()
    """Optional features that the source has no column for: each is missing in every row."""


def _as_built(data: Data) -> Data:
    return data


@dataclass(eq=False)
class Scorer:
    """A model with everything that a process needs to score rows with it."""

    params: Params
    problem: str
    layout: Layout
    model: Model
    version: int
    compiled: "Compiled | None" = None
    """The compiled model, which predicts in place of `model`; registration has compared the two."""
    optional: tuple[str, ...] = ()
    """Features that a source may lack: training had rows without them."""
    update: Callable[[Data], Data] = _as_built
    """Brings the features up to date, for instance with purchases that came in since they were built."""
    cutoff: date | None = None
    """Of a problem with cutoffs: the one whose rows are read. None: all."""

    @property
    def section(self) -> Any:
        return self.params.section(self.problem)

    @property
    def kind(self) -> Any:
        return problems.kind(self.params.kind(self.problem))

    @property
    def table(self) -> Table | None:
        """Of a problem on a plain table."""
        return None if self.section.features.by_cutoff else self.section.features

    @cached_property
    def data(self) -> Data:
        """The project's features, at `cutoff` if there is one, else the newest. Raises ModelError where they are not built."""
        if self.cutoff is not None:
            return self.update(self.kind.load_at(self.cutoffs[self.cutoff], self.section, self.cutoff))
        if self.table is not None:  # its rows are given with every feature
            return self.update(self.kind.load_types(self.folders[-1], self.section))
        return self.update(self.kind.load(self.folders[-1], self.section))

    @property
    def folders(self) -> list[Path]:
        """The folders of the project's features, that of the newest rows last. Raises ModelError where they are not built."""
        folder = self.layout.features(self.problem)
        if not folder.exists():
            raise ModelError(f"{self.problem}: has no features yet; run evergreen train {self.problem}")
        return list(dict.fromkeys([folder, self.layout.newest_rows(self.problem).parent]))

    @property
    def cutoffs(self) -> dict[date, Path]:
        """The cutoffs that there are rows of, ascending, and the folder of each; none for a plain table."""
        return {day: folder for folder in self.folders for day in self.kind.days(folder)}

    @cached_property
    def contract(self) -> Source:
        """The contract of the problem's table, with what ingest inferred for columns that params.yaml leaves open."""
        return Source(store="features") if self.table is None else contract(self.params, self.table.table, self.layout)

    @cached_property
    def types(self) -> Mapping[str, ColumnType]:
        """Feature or key -> its type."""
        if not isinstance(self.kind, RowKind):
            return {}
        found: dict[str, ColumnType] = {}
        if self.table is None:
            for name, values in self.data.features.items():
                found[name] = "number" if is_numeric_dtype(values) else "text"
            return found
        declared, entity = self.contract.types, self.table.entity
        for name, role in self.table.columns.items():
            found[name] = declared.get(name, TYPE_OF_ROLE[role])
        if entity in declared:
            found[entity] = declared[entity]
        return found

    @property
    def columns(self) -> set[str]:
        """The columns of a complete row."""
        section = self.section.features
        return {*self.types, section.entity} if isinstance(self.kind, RowKind) else {section.user}

    @cached_property
    def levels(self) -> dict[str, pl.Series]:
        """Category -> its values in training."""
        return {name: pl.Series(name, values, pl.String) for name, values in self.kind.levels(self.data).items()}

    def score(self, rows: pl.DataFrame, name: str) -> Scored:
        """Score `rows`, from a source called `name`.

        Raises DataError for columns that are missing or taken, ModelError where the model needs other features than the
        project builds now.
        """
        data = self.data
        try:
            with problems.naming(self.problem):
                if isinstance(self.kind, RowKind):
                    return self._score_rows(self.kind, data, rows)
                return self._score_lists(data, rows)
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{self.problem}: version {self.version} cannot score {name}: {error}. Train again, or name a --version."
            ) from error

    def _score_rows(self, kind: RowKind, data: Any, rows: pl.DataFrame) -> Scored:
        read = convert_rows(self.contract, rows, self.types)
        absent = self._absent(data, rows)
        table = read.frame.with_columns(self._flags(rows)).with_columns(pl.lit(None).alias(name) for name in absent)
        features, why = kind.find_features(data, table, self.section)
        for name, lost in read.lost.items():
            for row in lost.arg_true() if name in features else ():
                why[row] = why[row] or f"{name} = {rows[name][row]}: not {NOUNS[self.types[name]]}"
        predict = self._predict_compiled if self.compiled else partial(kind.predict_rows, self.model)
        scored = kind.predict_found(predict, features, why, rows)
        unseen = {name: int(_unseen(features[name], levels).sum()) for name, levels in self.levels.items()}
        ledger_rows = partial(self._ledger_rows, data, table, features, scored)
        return Scored(scored, ledger_rows, {name: count for name, count in unseen.items() if count}, read.replaced, absent)

    def _absent(self, data: Any, rows: pl.DataFrame) -> tuple[str, ...]:
        """The optional features without a column in `rows`; none where features are looked up by the entity, or all lack."""
        by_key = data.cutoff is not None and self.section.features.entity in rows.columns
        if by_key or not any(name in rows.columns for name in data.features):
            return ()
        return tuple(name for name in data.features if name in self.optional and name not in rows.columns)

    def _flags(self, rows: pl.DataFrame) -> list[pl.Series]:
        """Columns of true and false in `rows` that are categories in training, as training spells them."""
        found = []
        for name, levels in self.levels.items():
            if rows.schema.get(name) == pl.Boolean:
                known = {level.lower(): level for level in levels}
                words = [known.get(word, word) for word in ("true", "false")]
                found.append(rows[name].replace_strict([True, False], words, return_dtype=pl.String))
        return found

    def _ledger_rows(self, data: Any, rows: pl.DataFrame, features: Any, scored: pl.DataFrame) -> LedgerFrame:
        outputs, entity = scored.columns[rows.width : -1], self.section.features.entity
        keyed = [entity] if entity in rows.columns and entity not in features else []
        cutoffs = _cutoffs(data, rows, features).alias(LEDGER_CUTOFF)
        predicted = pl.concat([rows.select(keyed), scored.select(*outputs, NOT_SCORED, cutoffs)], how="horizontal")
        known = pl.from_pandas(features.reset_index(drop=True), nan_to_null=True)
        kept = pl.concat([predicted, known], how="horizontal").filter(pl.col(NOT_SCORED).is_null()).drop(NOT_SCORED)
        return LedgerFrame(kept, entity if keyed else None, tuple(features), tuple(outputs))

    def _predict_compiled(self, features: Any) -> dict[str, Any]:
        assert self.compiled is not None
        return self.compiled.predict_columns(features, len(features))

    def _score_lists(self, data: Any, rows: pl.DataFrame) -> Scored:
        scored, columns = self.kind.predict_new(self.model, data, rows, self.section), self.section.features

        def ledger_rows() -> LedgerFrame:
            each = scored.group_by((pl.col("rank") == 1).cum_sum().alias("_list"), maintain_order=True)
            outputs = {"items": columns.item, "scores": "score", "sources": "source"}
            outputs |= {"propensities": "propensity"} if "propensity" in scored.columns else {}
            lists = each.agg(pl.col(columns.user).first(), *(pl.col(old).alias(new) for new, old in outputs.items()))
            dated = lists.drop("_list").with_columns(pl.lit(data.as_of).alias(LEDGER_CUTOFF))
            return LedgerFrame(dated, columns.user, (), tuple(outputs))

        return Scored(scored, ledger_rows, {}, {})


def _cutoffs(data: Any, rows: pl.DataFrame, features: Any) -> pl.Expr:
    """The cutoff of each row's features: the newest where they were looked up, else that of the column CUTOFF."""
    if data.cutoff is None:
        return pl.lit(None, pl.Date)
    if any(name not in rows.columns for name in features):
        return pl.lit(data.cutoff.max(), pl.Date)
    if CUTOFF not in rows.columns:
        return pl.lit(None, pl.Date)
    text = rows.schema[CUTOFF] == pl.String
    return pl.col(CUTOFF).str.to_date(strict=False) if text else pl.col(CUTOFF).cast(pl.Date, strict=False)


def _unseen(values: Any, levels: pl.Series) -> pl.Series:
    given = _texts(values)
    return given.is_not_null() & ~given.is_in(levels.implode())


def _texts(values: Any) -> pl.Series:
    return pl.from_pandas(values, nan_to_null=True).cast(pl.String)
