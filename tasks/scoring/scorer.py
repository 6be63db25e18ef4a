"""Score rows of a frame with a registered model: each row gets a prediction or a reason, and their order stays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Table
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import NOT_SCORED, Data, Model, RowKind

if TYPE_CHECKING:
    from evergreen.tasks.model_files.onnx_runtime import Compiled

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


Scored = tuple[pl.DataFrame, Callable[[], LedgerFrame]]
"""The rows with their predictions, and what makes the ledger's rows from them."""


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
    update: Callable[[Data], Data] = _as_built
    """Brings the features up to date, for instance with purchases that came in since they were built."""

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
        """The project's features. Raises ModelError where they are not built."""
        if not self.layout.features(self.problem).exists():
            raise ModelError(f"{self.problem}: has no features yet; run evergreen train {self.problem}")
        return self.update(self.kind.load(self.layout.features(self.problem), self.section))

    def score(self, rows: pl.DataFrame, name: str) -> Scored:
        """Score `rows`, from a source called `name`.

        Raises DataError for columns that are missing or taken, ModelError where the model needs other features than the
        project builds now.
        """
        data = self.data
        try:
            with problems.naming(self.problem):
                if isinstance(self.kind, RowKind):
                    return self._score_rows(self.kind, data, _as_table(rows, self.table, self.params) if self.table else rows)
                return self._score_lists(data, rows)
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{self.problem}: version {self.version} cannot score {name}: {error}. Train again, or name a --version."
            ) from error

    def _score_rows(self, kind: RowKind, data: Any, rows: pl.DataFrame) -> Scored:
        features, why = kind.find_features(data, rows, self.section)
        predict = self._predict_compiled if self.compiled else partial(kind.predict_rows, self.model)
        scored = kind.predict_found(predict, features, why, rows)
        return scored, partial(self._ledger_rows, data, rows, features, scored)

    def _ledger_rows(self, data: Any, rows: pl.DataFrame, features: Any, scored: pl.DataFrame) -> LedgerFrame:
        outputs, entity = scored.columns[rows.width : -1], self.section.features.entity
        keyed = [entity] if entity in rows.columns and entity not in features else []
        cutoffs = _cutoffs(data, rows, features).alias(LEDGER_CUTOFF)
        predicted = scored.select(*keyed, *outputs, NOT_SCORED, cutoffs)
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
            lists = each.agg(pl.col(columns.user).first(), items=pl.col(columns.item), scores=pl.col("score")).drop("_list")
            dated = lists.with_columns(pl.lit(data.as_of).alias(LEDGER_CUTOFF))
            return LedgerFrame(dated, columns.user, (), ("items", "scores"))

        return scored, ledger_rows


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


def _as_table(rows: pl.DataFrame, table: Table, params: Params) -> pl.DataFrame:
    """Rows with numbers and dates parsed as those of the problem's table; a value that does not parse stays as it is."""
    source, parsed = params.ingest[table.table], []
    for name, role in table.columns.items():
        if rows.schema.get(name) != pl.String:
            continue
        text, form = pl.col(name).str.strip_chars(), source.date_formats.get(name)
        if role == "number" and source.decimal == ",":
            parsed.append(text.str.replace(",", ".", literal=True).alias(name))
        elif role == "date" and form:
            days = source.types[name] == "date"
            moment = text.str.to_date(form, strict=False) if days else text.str.to_datetime(form, strict=False)
            iso = moment.cast(pl.Datetime("us")).dt.to_string("%Y-%m-%d %H:%M:%S")
            parsed.append(pl.coalesce(iso, text).alias(name))
    return rows.with_columns(parsed)
