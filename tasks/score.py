"""Batch scoring: the rows of a file in, an answer for each of them out. No row is dropped, and their order stays."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.exceptions import PolarsError

from tasks import problems
from tasks.errors import DataError, ModelError, ParamsError, SourceError
from tasks.layout import Layout, writing
from tasks.params import Params, Section, Source, Table
from tasks.problems.base import NOT_SCORED, Data, Model
from tasks.problems.tabular.kind import TabularKind

if TYPE_CHECKING:
    from tasks.compiled import Compiled

log = logging.getLogger(__name__)

CUTOFF = "cutoff"
"""Column of the last day that the features of a row knew."""


class Result(Section):
    problem: str
    version: int
    rows: int
    """Rows read."""
    not_scored: int
    """Rows without an answer; the column `not_scored` says why."""
    out: str
    cutoff: date | None = None
    """Last day that the features knew, where they are the newest."""
    logged: int | None = None
    """Predictions that are new in the ledger. None: it was left out."""


@dataclass(frozen=True, eq=False)
class Entry:
    """Answers as the ledger takes them: one row each, the features that were used and the answer in columns."""

    frame: pl.DataFrame
    key: str | None
    """Column that says whom a row is about."""
    cutoff: date | None
    """Last day that the features knew. None: the rows do not say."""
    features: tuple[str, ...]
    answer: tuple[str, ...]


Tell = Callable[[Entry, datetime], int]
"""Write predictions of that time (UTC) down; returns how many are new."""


def _as_built(known: Data) -> Data:
    return known


@dataclass(eq=False)
class Scorer:
    """What answers rows: everything that a process needs for it."""

    params: Params
    problem: str
    layout: Layout
    model: Model
    version: int
    compiled: "Compiled | None" = None
    """What the model was compiled to; it answers in its place, as registration has compared."""
    moved: Callable[[Data], Data] = _as_built
    """What happened to the features since they were built, such as purchases that came in."""

    @property
    def section(self) -> Any:
        return self.params.section(self.problem)

    @property
    def kind(self) -> Any:
        return problems.kind(self.params.kind(self.problem))

    @cached_property
    def data(self) -> Data:
        """The features that the project has. Raises ModelError where they are not built."""
        if not self.layout.features(self.problem).exists():
            raise ModelError(f"{self.problem}: has no features yet; run evergreen train {self.problem}")
        return self.moved(self.kind.load(self.layout.features(self.problem), self.section))

    def answer(self, asked: pl.DataFrame, name: str) -> tuple[pl.DataFrame, Entry]:
        """The answers to the rows of `asked`, which are called `name`, and what the ledger takes of them.

        Raises DataError for columns that are missing or taken, ModelError where the model wants other features than the
        project makes now.
        """
        try:
            with problems.naming(self.problem):
                return self._tabular(asked) if isinstance(self.kind, TabularKind) else self._lists(asked)
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{self.problem}: version {self.version} cannot score {name}: {error}. Train again, or name a --version."
            ) from error

    def _tabular(self, asked: pl.DataFrame) -> tuple[pl.DataFrame, Entry]:
        features, why = self.kind.asked(self.data, asked, self.section)
        said = partial(self.kind.said, self.model) if self.compiled is None else self._compiled
        answers = self.kind.answered(said, features, why, asked)
        answer = tuple(answers.columns[asked.width : -1])
        entity, dated = self.section.features.entity, self.data.cutoff is not None
        given = all(name in asked.columns for name in features)
        cutoff = self.data.cutoff.max() if dated and not given else None
        keyed = [entity] if entity in asked.columns and entity not in features else []
        known = pl.from_pandas(features.reset_index(drop=True), nan_to_null=True)
        whole = pl.concat([answers.select(*keyed, *answer, NOT_SCORED), known], how="horizontal")
        scored = whole.filter(pl.col(NOT_SCORED).is_null()).drop(NOT_SCORED)
        return answers, Entry(scored, entity if keyed else None, cutoff, tuple(features), answer)

    def _compiled(self, features: Any) -> dict[str, Any]:
        assert self.compiled is not None
        return self.compiled.predict_columns(features, len(features))

    def _lists(self, asked: pl.DataFrame) -> tuple[pl.DataFrame, Entry]:
        answers, columns = self.kind.answer(self.model, self.data, asked, self.section), self.section.features
        row = (pl.col("rank") == 1).cum_sum()
        lists = answers.group_by(row.alias("_row"), maintain_order=True).agg(
            pl.col(columns.user).first(), items=pl.col(columns.item), scores=pl.col("score")
        )
        entry = Entry(lists.drop("_row"), columns.user, self.data.as_of, (), ("items", "scores"))
        return answers, entry


def run(
    params: Params,
    problem: str,
    layout: Layout,
    model: Model,
    version: int,
    data: Path,
    out: Path,
    moved: Callable[[Data], Data] = _as_built,
    compiled: "Compiled | None" = None,
) -> Result:
    """Answer each row of `data` (csv or parquet) by `model`, registered as `version`, into `out` (either, whole or not at all).

    A row holds the features of the problem, or only the key of its entity, whose newest features are then looked up.
    Raises SourceError where the file cannot be read, and what Scorer.answer raises.
    """
    scorer = Scorer(params, problem, layout, model, version, compiled, moved)
    _check_name(out)
    section = scorer.section
    asked = _rows_of(section.features, params, data) if isinstance(section.features, Table) else read(data)
    answers, _ = scorer.answer(asked, data.name)
    with writing(out) as scratch:
        WRITE[out.suffix](answers, scratch)
    refused = answers[NOT_SCORED].drop_nulls() if NOT_SCORED in answers.columns else pl.Series(dtype=pl.String)
    if len(refused):
        log.warning(
            "%s: %s of %s rows are not scored; the first: %s", problem, f"{len(refused):,}", f"{asked.height:,}", refused[0]
        )
    return Result(problem=problem, version=version, rows=asked.height, not_scored=len(refused), out=str(out))


def newest(scorer: Scorer, out: Path, as_of: date | None, tell: Tell | None, at: datetime) -> Result:
    """Answer for everybody whom the newest features are about, into `out`: the key, the cutoff and the answer.

    `as_of`: the newest features up to that day, inclusive. None: of all. (A recommender reads histories as its `moved` has
    them.) `tell`: what else takes the answers, with the time `at`.
    Raises ParamsError for a plain table, which has no newest features, and DataError for a day before the first cutoff.
    """
    _check_name(out)
    problem, data = scorer.problem, scorer.data
    if isinstance(scorer.kind, TabularKind):
        if data.cutoff is None:
            raise ParamsError(f"{problem}: its rows are cases of a plain table, of which none is the newest; give --data FILE")
        days = data.cutoff.unique().sort()
        known = days.filter(days <= as_of) if as_of else days
        if known.is_empty():
            raise DataError(f"{problem}: --as-of {as_of}: lies before the first cutoff ({days[0]}); name a later day")
        cutoff = known[-1]
        scorer = dataclasses.replace(scorer, moved=lambda rows: rows.at([cutoff]))
        asked = pl.DataFrame({scorer.section.features.entity: scorer.data.entity})
    else:
        cutoff = data.as_of
        asked = pl.DataFrame({scorer.section.features.user: data.histories.users})
    answers, entry = scorer.answer(asked, f"the features of {cutoff}")
    with writing(out) as scratch:
        WRITE[out.suffix](answers.insert_column(1, pl.lit(cutoff).alias(CUTOFF)), scratch)
    logged = tell(entry, at) if tell else None
    refused = answers[NOT_SCORED].count() if NOT_SCORED in answers.columns else 0
    return Result(
        problem=problem,
        version=scorer.version,
        rows=asked.height,
        not_scored=refused,
        out=str(out),
        cutoff=cutoff,
        logged=logged,
    )


def _check_name(out: Path) -> None:
    if out.suffix not in WRITE:
        raise ParamsError(f"{out}: unknown kind of file; give a name that ends in {' or '.join(WRITE)}")


def read(path: Path, written: Source | None = None) -> pl.DataFrame:
    """A csv or parquet file. `written`: how the table is written that the problem learned from; this one may be too.

    Raises SourceError where it is neither csv nor parquet, is not there or has no column.
    """
    if path.suffix not in READ:
        raise SourceError(f"{path}: unknown kind of file; give a name that ends in {' or '.join(READ)}")
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    try:
        rows = READ[path.suffix](path, written)
    except (PolarsError, OSError, UnicodeError) as error:
        raise SourceError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    return rows


def _rows_of(table: Table, params: Params, path: Path) -> pl.DataFrame:
    """A file with rows of a plain table, its numbers and dates read as the table's own; one that is none stays as it is."""
    written = params.ingest[table.table]
    rows, made = read(path, written), []
    for name, role in table.columns.items():
        if rows.schema.get(name) != pl.String:
            continue
        text, form = pl.col(name).str.strip_chars(), written.formats.get(name)
        if role == "number" and written.decimal == ",":
            made.append(text.str.replace(",", ".", literal=True).alias(name))
        elif role == "date" and form:
            days = written.types[name] == "date"
            moment = text.str.to_date(form, strict=False) if days else text.str.to_datetime(form, strict=False)
            said = moment.cast(pl.Datetime("us")).dt.to_string("%Y-%m-%d %H:%M:%S")
            made.append(pl.coalesce(said, text).alias(name))
    return rows.with_columns(made)


def _read_csv(path: Path, written: Source | None) -> pl.DataFrame:
    """In the separator, encoding and decimal mark of `written`, where the first line has that separator."""
    with path.open("rb") as file:
        first = file.readline()
    if written is None or written.separator.encode() not in first:
        return pl.read_csv(path, infer_schema_length=None, null_values=list(written.missing) if written else None)
    text = path.read_bytes().decode(written.encoding).encode()
    return pl.read_csv(
        text,
        separator=written.separator,
        decimal_comma=written.decimal == ",",
        null_values=list(written.missing) or None,
        schema_overrides=dict.fromkeys(set(written.formats) & set(_names(text, written)), pl.String),
        infer_schema_length=None,
    )


def _names(text: bytes, written: Source) -> list[str]:
    return pl.read_csv(text, separator=written.separator, n_rows=0).columns


READ = {".parquet": lambda path, written: pl.read_parquet(path), ".csv": _read_csv}
WRITE = {".parquet": pl.DataFrame.write_parquet, ".csv": pl.DataFrame.write_csv}
