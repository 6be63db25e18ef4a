"""Batch scoring: the rows of a file in, an answer for each of them out. No row is dropped, and their order stays.

A file of many rows goes through in blocks, by several processes; finished blocks lie under var/scoring until all are there, so
that a run that was killed goes on with them.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Section, Table
from evergreen.tasks.core.errors import DataError, ModelError, ParamsError, SourceError, StepError
from evergreen.tasks.core.paths import Layout, locking, read_json, write_json, writing
from evergreen.tasks.problems.base import NOT_SCORED, Data, Model, RowKind
from evergreen.tasks.scoring import chunks
from evergreen.tasks.search.workers import exit_with_parent, worker_count

if TYPE_CHECKING:
    from evergreen.tasks.model_files.onnx_runtime import Compiled

log = logging.getLogger(__name__)

CUTOFF = "cutoff"
"""Column of the last day that the features of a row knew."""
KNOWN = "_cutoff"
"""The same in what the ledger takes."""
LISTS = 5_000
"""Most users of a block: each has a list."""
WORTH_SECONDS = 8.0
"""Processes beside this one are started where more work than this is left; they need some seconds to be there."""
TELL_SECONDS = 5.0


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
    resumed: int = 0
    """Blocks that an earlier run had finished."""


@dataclass(frozen=True, eq=False)
class Entry:
    """Answers as the ledger takes them: one row each, the features that were used and the answer in columns."""

    frame: pl.DataFrame
    """With a column KNOWN, null where the rows do not say what day their features knew."""
    key: str | None
    """Column that says whom a row is about."""
    features: tuple[str, ...]
    answer: tuple[str, ...]

    def by_cutoff(self) -> Iterator[tuple[date | None, pl.DataFrame]]:
        """The last day that the features knew, and the rows of that day."""
        for rows in self.frame.partition_by(KNOWN, maintain_order=True):
            yield rows[KNOWN][0], rows.drop(KNOWN)


Tell = Callable[[Entry, datetime], int]
"""Write predictions of that time (UTC) down; returns how many are new. The same ones told again are none."""


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

    @property
    def table(self) -> Table | None:
        """Of the problem of a plain table."""
        return None if self.section.features.by_cutoff else self.section.features

    @cached_property
    def data(self) -> Data:
        """The features that the project has. Raises ModelError where they are not built."""
        if not self.layout.features(self.problem).exists():
            raise ModelError(f"{self.problem}: has no features yet; run evergreen train {self.problem}")
        return self.moved(self.kind.load(self.layout.features(self.problem), self.section))

    def answer(self, asked: pl.DataFrame, name: str) -> tuple[pl.DataFrame, Callable[[], Entry]]:
        """The answers to the rows of `asked`, which are called `name`, and what makes of them what the ledger takes.

        Raises DataError for columns that are missing or taken, ModelError where the model wants other features than the
        project makes now.
        """
        data = self.data
        try:
            with problems.naming(self.problem):
                if isinstance(self.kind, RowKind):
                    return self._rows(self.kind, data, _as_table(asked, self.table, self.params) if self.table else asked)
                return self._lists(data, asked)
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{self.problem}: version {self.version} cannot score {name}: {error}. Train again, or name a --version."
            ) from error

    def _rows(self, kind: RowKind, data: Any, asked: pl.DataFrame) -> tuple[pl.DataFrame, Callable[[], Entry]]:
        features, why = kind.find_features(data, asked, self.section)
        predict = self._compiled if self.compiled else partial(kind.predict_rows, self.model)
        answers = kind.predict_found(predict, features, why, asked)
        return answers, partial(self._entry, data, asked, features, answers)

    def _entry(self, data: Any, asked: pl.DataFrame, features: Any, answers: pl.DataFrame) -> Entry:
        answer, entity = answers.columns[asked.width : -1], self.section.features.entity
        keyed = [entity] if entity in asked.columns and entity not in features else []
        said = answers.select(*keyed, *answer, NOT_SCORED, _cutoffs(data, asked, features).alias(KNOWN))
        known = pl.from_pandas(features.reset_index(drop=True), nan_to_null=True)
        scored = pl.concat([said, known], how="horizontal").filter(pl.col(NOT_SCORED).is_null()).drop(NOT_SCORED)
        return Entry(scored, entity if keyed else None, tuple(features), tuple(answer))

    def _compiled(self, features: Any) -> dict[str, Any]:
        assert self.compiled is not None
        return self.compiled.predict_columns(features, len(features))

    def _lists(self, data: Any, asked: pl.DataFrame) -> tuple[pl.DataFrame, Callable[[], Entry]]:
        answers, columns = self.kind.predict_new(self.model, data, asked, self.section), self.section.features

        def entry() -> Entry:
            each = answers.group_by((pl.col("rank") == 1).cum_sum().alias("_list"), maintain_order=True)
            lists = each.agg(pl.col(columns.user).first(), items=pl.col(columns.item), scores=pl.col("score")).drop("_list")
            return Entry(lists.with_columns(pl.lit(data.as_of).alias(KNOWN)), columns.user, (), ("items", "scores"))

        return answers, entry


def _cutoffs(data: Any, asked: pl.DataFrame, features: Any) -> pl.Expr:
    """The day that the features of each row knew: the newest where they were looked up, or what the rows say."""
    if data.cutoff is None:
        return pl.lit(None, pl.Date)
    if any(name not in asked.columns for name in features):
        return pl.lit(data.cutoff.max(), pl.Date)
    if CUTOFF not in asked.columns:
        return pl.lit(None, pl.Date)
    text = asked.schema[CUTOFF] == pl.String
    return pl.col(CUTOFF).str.to_date(strict=False) if text else pl.col(CUTOFF).cast(pl.Date, strict=False)


def _as_table(rows: pl.DataFrame, table: Table, params: Params) -> pl.DataFrame:
    """Rows of a plain table, their numbers and dates read as the table's own; one that is none stays as it is."""
    written, made = params.ingest[table.table], []
    for name, role in table.columns.items():
        if rows.schema.get(name) != pl.String:
            continue
        text, form = pl.col(name).str.strip_chars(), written.date_formats.get(name)
        if role == "number" and written.decimal == ",":
            made.append(text.str.replace(",", ".", literal=True).alias(name))
        elif role == "date" and form:
            days = written.types[name] == "date"
            moment = text.str.to_date(form, strict=False) if days else text.str.to_datetime(form, strict=False)
            said = moment.cast(pl.Datetime("us")).dt.to_string("%Y-%m-%d %H:%M:%S")
            made.append(pl.coalesce(said, text).alias(name))
    return rows.with_columns(made)


# -- a file


def run(
    scorer: Scorer,
    data: Path,
    out: Path,
    *,
    tell: Tell | None = None,
    about: str = "",
    rows: int | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = log.info,
) -> Result:
    """Answer each row of `data` (csv or parquet) into `out` (either, whole or not at all).

    A row holds the features of the problem, or only the key of its entity, whose newest features are then looked up. A file
    of more than `rows` rows goes through in blocks of so many, and memory does not grow with it; several processes are at it
    where that is worth their start (`workers`: so many from the beginning). A run that was killed goes on with the blocks
    that are finished, unless the file, the version, or `about`, what else decides the answers, is another one.
    `tell`: what else takes the answers. `say`: told how far it came, every few seconds.
    Raises SourceError where the file cannot be read, LockedError where another process writes the same `out`, StepError where
    a process was killed, and what Scorer.answer raises.
    """
    _check_name(out)
    tabular = isinstance(scorer.kind, RowKind)
    written = scorer.params.ingest[scorer.table.table] if scorer.table else None
    place = scorer.layout.var / "scoring" / _digest(str(out.resolve()))
    with locking(place.with_suffix(".lock"), f"{scorer.problem}: score into {out}"):
        place.mkdir(exist_ok=True)
        wide = len(scorer.data.features.columns) if tabular else 1
        source = chunks.opened(data, written, place, wide, rows or (chunks.ROWS if tabular else LISTS))
        job = _Job(scorer, source, data, out, place, tell, about, say)
        if len(source.spans) > 1:
            result = job.in_blocks(workers)
            shutil.rmtree(place)
            return result
        try:
            return job.at_once()
        finally:
            shutil.rmtree(place)


@dataclass(frozen=True, eq=False)
class _Job:
    """A file on its way through a scorer."""

    scorer: Scorer
    source: chunks.Csv | chunks.Parquet
    data: Path
    out: Path
    place: Path
    """Folder of what is half done."""
    tell: Tell | None
    about: str
    say: Callable[[str], None]

    def at_once(self) -> Result:
        asked = self.source.read(self.source.spans[0])
        answers, entry = self.scorer.answer(asked, self.data.name)
        with writing(self.out) as scratch:
            WRITE[self.out.suffix](answers.lazy(), scratch)
            logged = self.tell(entry(), datetime.now(UTC)) if self.tell else None
        return self._result([_counts(asked, answers)], logged)

    def in_blocks(self, workers: int | None) -> Result:
        """The types of a csv file's columns are those of its first rows, until a row says otherwise."""
        source = self.source.settled()
        try:
            return self._in_blocks(source, workers)
        except SourceError:
            if (whole := self.source.settled(all_rows=True)) == source:
                raise
            return self._in_blocks(whole, workers)

    def _in_blocks(self, source: chunks.Csv | chunks.Parquet, workers: int | None) -> Result:
        parts = _Parts(self._folder(source))
        parts.folder.mkdir(exist_ok=True)
        begun = parts.folder / "begun.json"
        if not begun.exists():
            write_json(begun, {"at": datetime.now(UTC).isoformat()})
        todo = [number for number in range(len(source.spans)) if not parts.counts(number).exists()]
        work = _Work(self.scorer, source, parts, self.data.name, self.tell is not None)
        self._do(work, todo, workers)
        counts = [read_json(parts.counts(number)) for number in range(len(source.spans))]
        at = datetime.fromisoformat(read_json(begun)["at"])
        with writing(self.out) as scratch:
            WRITE[self.out.suffix](parts.joined(counts), scratch)
            logged = sum(self.tell(entry, at) for entry in parts.entries(counts)) if self.tell else None
        return self._result(counts, logged, len(counts) - len(todo))

    def _folder(self, source: chunks.Csv | chunks.Parquet) -> Path:
        """Of the parts of exactly this scoring; what others left behind goes."""
        features = sorted(self.scorer.layout.features(self.scorer.problem).iterdir())
        told = [self.scorer.problem, self.scorer.version, self.scorer.section.model_dump_json(), self.about, repr(source)]
        folder = self.place / _digest(json.dumps([*told, [_stamp(path) for path in (self.data, *features)]]))
        for other in self.place.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
        return folder

    def _do(self, work: "_Work", todo: Sequence[int], workers: int | None) -> None:
        total, began, told = len(work.source.spans), time.monotonic(), time.monotonic()
        for done, _ in enumerate(_each(work, todo, workers), total - len(todo) + 1):
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                self.say(f"{self.scorer.problem}: {done:,} of {total:,} blocks answered, {told - began:.0f} s")

    def _result(self, counts: Sequence[Mapping[str, Any]], logged: int | None, resumed: int = 0) -> Result:
        rows, refused = (sum(each[name] for each in counts) for name in ("rows", "not_scored"))
        if refused:
            first = next(each["first"] for each in counts if each["first"])
            log.warning(
                "%s: %s of %s rows are not scored; the first: %s", self.scorer.problem, f"{refused:,}", f"{rows:,}", first
            )
        return Result(
            problem=self.scorer.problem,
            version=self.scorer.version,
            rows=rows,
            not_scored=refused,
            out=str(self.out),
            logged=logged,
            resumed=resumed,
        )


@dataclass(frozen=True)
class _Parts:
    """The finished blocks of a file."""

    folder: Path

    def answers(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"

    def entry(self, number: int) -> Path:
        return self.folder / f"{number:06}.ledger.parquet"

    def counts(self, number: int) -> Path:
        """Written last: a block that has it is finished."""
        return self.folder / f"{number:06}.json"

    def joined(self, counts: Sequence[Mapping[str, Any]]) -> pl.LazyFrame:
        """All answers in order. A block in which no row has one lacks columns, and has others without a type."""
        scored = (number for number, each in enumerate(counts) if each["not_scored"] < each["rows"])
        schema = pl.read_parquet_schema(self.answers(next(scored, 0)))
        return pl.concat([_as(pl.scan_parquet(self.answers(number)), schema) for number in range(len(counts))])

    def entries(self, counts: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
        for number, each in enumerate(counts):
            if each["not_scored"] < each["rows"]:
                told = each["entry"]
                yield Entry(pl.read_parquet(self.entry(number)), told["key"], tuple(told["features"]), tuple(told["answer"]))


def _as(rows: pl.LazyFrame, schema: Mapping[str, Any]) -> pl.LazyFrame:
    known = rows.collect_schema()
    return rows.select(
        pl.col(name).cast(kind) if name in known else pl.lit(None, kind).alias(name) for name, kind in schema.items()
    )


@dataclass(frozen=True, eq=False)
class _Work:
    """What a process needs to answer blocks."""

    scorer: Scorer
    source: chunks.Csv | chunks.Parquet
    parts: _Parts
    name: str
    told: bool
    """Whether the ledger takes the answers."""

    def do(self, number: int) -> None:
        asked = self.source.read(self.source.spans[number])
        answers, entry = self.scorer.answer(asked, self.name)
        counts = _counts(asked, answers)
        with writing(self.parts.answers(number)) as scratch:
            answers.write_parquet(scratch)
        if self.told:
            taken = entry()
            with writing(self.parts.entry(number)) as scratch:
                taken.frame.write_parquet(scratch)
            counts["entry"] = {"key": taken.key, "features": taken.features, "answer": taken.answer}
        write_json(self.parts.counts(number), counts)

    def elsewhere(self) -> "_Work":
        """The same without the features that were read: another process reads them itself."""
        return dataclasses.replace(self, scorer=dataclasses.replace(self.scorer))


def _each(work: _Work, todo: Sequence[int], workers: int | None) -> Iterator[None]:
    """Do the blocks `todo`, here or in processes beside this one, and say so after each."""
    done, count = 0, worker_count(workers, max(len(todo), 1))
    if workers is None or count == 1:
        while done < len(todo):
            began = time.monotonic()
            work.do(todo[done])
            done += 1
            yield
            if count > 1 and (time.monotonic() - began) * (len(todo) - done) > WORTH_SECONDS:
                break
    if done < len(todo):
        yield from _beside(work.elsewhere(), todo[done:], count)


def _beside(work: _Work, todo: Sequence[int], count: int) -> Iterator[None]:
    from joblib.externals.loky import ProcessPoolExecutor

    pool = ProcessPoolExecutor(count, initializer=_begin, initargs=(work, os.getpid()), env={"OMP_NUM_THREADS": "1"})
    try:
        for each in as_completed([pool.submit(_do, number) for number in todo]):
            each.result()
            yield
    except BrokenExecutor as error:
        raise StepError(
            f"{work.scorer.problem}: a process that scored {work.name} was killed, perhaps for lack of memory "
            f"({type(error).__name__}). Run the same command again: it goes on with what is finished."
        ) from error
    finally:
        pool.shutdown(kill_workers=True)


_HERE: list[_Work] = []
"""The work of this process, where it is one beside another."""


def _begin(work: _Work, master: int) -> None:
    exit_with_parent(master)
    _HERE[:] = [work]


def _do(number: int) -> None:
    _HERE[0].do(number)


def _counts(asked: pl.DataFrame, answers: pl.DataFrame) -> dict[str, Any]:
    why = answers[NOT_SCORED].drop_nulls() if NOT_SCORED in answers.columns else pl.Series(dtype=pl.String)
    return {"rows": asked.height, "not_scored": len(why), "first": why[0] if len(why) else None}


def _stamp(path: Path) -> list[Any]:
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- everybody


def newest(scorer: Scorer, out: Path, as_of: date | None, tell: Tell | None, at: datetime) -> Result:
    """Answer for everybody whom the newest features are about, into `out`: the key, the cutoff and the answer.

    `as_of`: the newest features up to that day, inclusive. None: of all. (A recommender reads histories as its `moved` has
    them.) `tell`: what else takes the answers, with the time `at`.
    Raises ParamsError for a plain table, which has no newest features, and DataError for a day before the first cutoff.
    """
    _check_name(out)
    problem, data = scorer.problem, scorer.data
    if isinstance(scorer.kind, RowKind):
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
        WRITE[out.suffix](answers.insert_column(1, pl.lit(cutoff).alias(CUTOFF)).lazy(), scratch)
        logged = tell(entry(), at) if tell else None
    counts = _counts(asked, answers)
    return Result(
        problem=problem,
        version=scorer.version,
        rows=asked.height,
        not_scored=counts["not_scored"],
        out=str(out),
        cutoff=cutoff,
        logged=logged,
    )


def _check_name(out: Path) -> None:
    if out.suffix not in WRITE:
        raise ParamsError(f"{out}: unknown kind of file; give a name that ends in {' or '.join(WRITE)}")


WRITE: dict[str, Callable[[pl.LazyFrame, Path], Any]] = {".parquet": pl.LazyFrame.sink_parquet, ".csv": pl.LazyFrame.sink_csv}
