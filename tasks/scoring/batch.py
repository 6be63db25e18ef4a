"""Batch scoring: one prediction, or the reason for none, for each row of a file. Rows keep their order.

A file of many rows is scored in chunks, by several processes. Finished chunks stay under var/scoring until all are there, so an
interrupted run resumes when it is started again.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Section
from evergreen.tasks.core.errors import DataError, ParamsError, StepError
from evergreen.tasks.core.paths import locking, read_json, write_json, writing
from evergreen.tasks.problems.base import NOT_SCORED, RowKind
from evergreen.tasks.scoring import chunks
from evergreen.tasks.scoring.scorer import CUTOFF, LedgerFrame, Scored, Scorer
from evergreen.tasks.search.workers import exit_with_parent, worker_count

log = logging.getLogger(__name__)

MAX_LISTS = 5_000
"""Most users of a chunk: each has a list."""
MIN_PARALLEL_SECONDS = 8.0
"""Processes beside this one are started only for more work than this, since they need some seconds to start."""
PROGRESS_SECONDS = 5.0


UNSEEN = "a category that training never saw"
REPLACED = "a common string for a missing value, which counts as one; list it under ingest, in null_values"


class Result(Section):
    problem: str
    version: int
    rows: int
    """Rows read."""
    not_scored: int
    """Rows without a prediction; the column `not_scored` has the reasons."""
    unseen: dict[str, int]
    """Feature -> rows with a category that training never saw."""
    absent: tuple[str, ...] = ()
    """Optional features that the file has no column for: each counts as missing in every row."""
    out: str
    cutoff: date | None = None
    """Last day that the newest features cover; None for a file."""
    logged: int | None = None
    """New predictions in the ledger. None: nothing was written there."""
    resumed: int = 0
    """Chunks that an earlier run had finished."""


Record = Callable[[LedgerFrame, datetime], int]
"""Write predictions made at that time (UTC); returns how many are new. The same ones written again are not."""


# -- a file


def run(
    scorer: Scorer,
    data: Path,
    out: Path,
    *,
    record: Record | None = None,
    context: str = "",
    rows: int | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = log.info,
) -> Result:
    """Score each row of `data`, a file of any format that `evergreen init` reads, into `out` (csv or parquet), which is written
    whole or not at all. The columns of `data` come back as they are; those of a CSV file as they were written.

    A row holds the features of the problem, or only the key of its entity, whose newest features are then looked up. A file
    of more than `rows` rows is scored in chunks of so many, in constant memory, and by several processes where that saves
    time (`workers`: so many from the start). An interrupted run resumes with its finished chunks, unless the file, the
    version or `context`, what else decides the predictions, has changed.
    `record`: what else receives the predictions. `say`: receives the progress every few seconds.
    Raises SourceError where the file cannot be read, LockedError where another process writes the same `out`, StepError where
    a process was killed, and what Scorer.score raises.
    """
    _check_suffix(out)
    tabular = isinstance(scorer.kind, RowKind)
    written = scorer.params.ingest[scorer.table.table] if scorer.table else None
    folder = scorer.layout.var / "scoring" / _digest(scorer.layout.relative(out.resolve()))
    with locking(folder.with_suffix(".lock"), f"{scorer.problem}: score into {out}"):
        folder.mkdir(exist_ok=True)
        source = chunks.open_file(data, folder, written, scorer.columns, rows or (chunks.MAX_ROWS if tabular else MAX_LISTS))
        job = _Job(scorer, source, data, out, folder, record, context, say)
        result = job.run_chunks(workers) if len(source.spans) > 1 else job.run_at_once()
        shutil.rmtree(folder)
        return result


@dataclass(frozen=True, eq=False)
class _Job:
    """One file to score."""

    scorer: Scorer
    source: chunks.Csv | chunks.Parquet
    data: Path
    out: Path
    folder: Path
    """Of unfinished work."""
    record: Record | None
    context: str
    say: Callable[[str], None]

    def run_at_once(self) -> Result:
        try:
            rows = self.source.read(self.source.spans[0])
            scored = self.scorer.score(rows, self.data.name)
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        at = self._begin(self._parts_folder(self.source)) if self.record else None
        with writing(self.out) as scratch:
            WRITERS[self.out.suffix](scored.rows.lazy(), scratch)
            logged = self.record(scored.ledger_rows(), at) if self.record and at else None
        return self._result([_count(rows, scored)], logged)

    def run_chunks(self, workers: int | None) -> Result:
        source, parts = self.source, _Parts(self._parts_folder(self.source))
        at = self._begin(parts.folder)
        todo = [number for number in range(len(source.spans)) if not parts.counts(number).exists()]
        work = _Work(self.scorer, source, parts, self.data.name, self.record is not None)
        self._score(work, todo, workers)
        counts = [read_json(parts.counts(number)) for number in range(len(source.spans))]
        with writing(self.out) as scratch:
            WRITERS[self.out.suffix](parts.join(counts), scratch)
            logged = sum(self.record(rows, at) for rows in parts.ledger_rows(counts)) if self.record else None
        return self._result(counts, logged, len(counts) - len(todo))

    def _begin(self, folder: Path) -> datetime:
        """When this scoring began first: with the same time its predictions are in the ledger once, also if it is run again."""
        folder.mkdir(exist_ok=True)
        start = folder / "start.json"
        if not start.exists():
            write_json(start, {"at": datetime.now(UTC).isoformat()})
        return datetime.fromisoformat(read_json(start)["at"])

    def _parts_folder(self, source: chunks.Csv | chunks.Parquet) -> Path:
        """The folder of the parts of exactly this scoring. Parts of others are deleted."""
        layout, problem = self.scorer.layout, self.scorer.problem
        features = [path for folder in (layout.features(problem), layout.newest(problem)) for path in sorted(folder.glob("*"))]
        inputs = [self.scorer.problem, self.scorer.version, self.scorer.section.model_dump_json(), self.context, repr(source)]
        folder = self.folder / _digest(json.dumps([*inputs, [self._stamp(path) for path in (self.data, *features)]]))
        for other in self.folder.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
        return folder

    def _stamp(self, path: Path) -> list[Any]:
        found = path.stat()
        return [self.scorer.layout.relative(path.resolve()), found.st_size, found.st_mtime_ns]

    def _score(self, work: "_Work", todo: Sequence[int], workers: int | None) -> None:
        total, began, reported = len(work.source.spans), time.monotonic(), time.monotonic()
        for done, _ in enumerate(_score_each(work, todo, workers), total - len(todo) + 1):
            if time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                self.say(f"{self.scorer.problem}: {done:,} of {total:,} chunks scored, {reported - began:.0f} s")

    def _result(self, counts: Sequence[Mapping[str, Any]], logged: int | None, resumed: int = 0) -> Result:
        rows, refused = (sum(each[name] for each in counts) for name in ("rows", "not_scored"))
        if refused:
            first = next(each["first"] for each in counts if each["first"])
            log.warning(
                "%s: %s of %s rows are not scored; the first: %s", self.scorer.problem, f"{refused:,}", f"{rows:,}", first
            )
        unseen, replaced = (_sum(each[name] for each in counts) for name in ("unseen", "replaced"))
        for found, what in ((unseen, UNSEEN), (replaced, REPLACED)):
            for name, count in found.items():
                log.warning("%s: %s: %s of %s rows have %s", self.scorer.problem, name, f"{count:,}", f"{rows:,}", what)
        absent = dict.fromkeys(name for each in counts for name in each["absent"])
        for name in absent:
            log.warning("%s: %s: %s has no such column; its value counts as missing in all %s rows",
                        self.scorer.problem, name, self.data.name, f"{rows:,}")  # fmt: skip
        return Result(
            problem=self.scorer.problem,
            version=self.scorer.version,
            rows=rows,
            not_scored=refused,
            unseen=unseen,
            absent=tuple(absent),
            out=str(self.out),
            logged=logged,
            resumed=resumed,
        )


@dataclass(frozen=True)
class _Parts:
    """The finished chunks of a file."""

    folder: Path

    def scored(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"

    def ledger(self, number: int) -> Path:
        return self.folder / f"{number:06}.ledger.parquet"

    def counts(self, number: int) -> Path:
        """Written last: a chunk that has it is finished."""
        return self.folder / f"{number:06}.json"

    def join(self, counts: Sequence[Mapping[str, Any]]) -> pl.LazyFrame:
        """All rows in order. A chunk without a single prediction lacks columns, and others have no type there."""
        filled = (number for number, each in enumerate(counts) if each["not_scored"] < each["rows"])
        schema = pl.read_parquet_schema(self.scored(next(filled, 0)))
        return pl.concat([_as(pl.scan_parquet(self.scored(number)), schema) for number in range(len(counts))])

    def ledger_rows(self, counts: Sequence[Mapping[str, Any]]) -> Iterator[LedgerFrame]:
        for number, each in enumerate(counts):
            if each["not_scored"] < each["rows"]:
                columns = each["ledger"]
                frame = pl.read_parquet(self.ledger(number))
                yield LedgerFrame(frame, columns["key"], tuple(columns["features"]), tuple(columns["outputs"]))


def _as(rows: pl.LazyFrame, schema: Mapping[str, Any]) -> pl.LazyFrame:
    known = rows.collect_schema()
    named = pl.selectors.by_name  # any name: pl.col reads * as all columns
    return rows.select(
        named(name).cast(kind) if name in known else pl.lit(None, kind).alias(name) for name, kind in schema.items()
    )


@dataclass(frozen=True, eq=False)
class _Work:
    """Everything that a process needs to score chunks."""

    scorer: Scorer
    source: chunks.Csv | chunks.Parquet
    parts: _Parts
    name: str
    recorded: bool
    """Whether the predictions go to the ledger."""

    def score(self, number: int) -> None:
        rows = self.source.read(self.source.spans[number])
        scored = self.scorer.score(rows, self.name)
        counts = _count(rows, scored)
        with writing(self.parts.scored(number)) as scratch:
            scored.rows.write_parquet(scratch)
        if self.recorded:
            kept = scored.ledger_rows()
            with writing(self.parts.ledger(number)) as scratch:
                kept.frame.write_parquet(scratch)
            counts["ledger"] = {"key": kept.key, "features": kept.features, "outputs": kept.outputs}
        write_json(self.parts.counts(number), counts)

    def without_data(self) -> "_Work":
        """The same without the features that were read, so that another process reads them itself."""
        return dataclasses.replace(self, scorer=dataclasses.replace(self.scorer))


def _score_each(work: _Work, todo: Sequence[int], workers: int | None) -> Iterator[None]:
    """Score the chunks `todo`, in this process or in several; yields after each."""
    done, count = 0, worker_count(workers, max(len(todo), 1))
    if workers is None or count == 1:
        while done < len(todo):
            began = time.monotonic()
            work.score(todo[done])
            done += 1
            yield
            if count > 1 and (time.monotonic() - began) * (len(todo) - done) > MIN_PARALLEL_SECONDS:
                break
    if done < len(todo):
        yield from _score_in_processes(work.without_data(), todo[done:], count)


def _score_in_processes(work: _Work, todo: Sequence[int], count: int) -> Iterator[None]:
    from joblib.externals.loky import ProcessPoolExecutor

    pool = ProcessPoolExecutor(count, initializer=_begin, initargs=(work, os.getpid()), env={"OMP_NUM_THREADS": "1"})
    try:
        for each in as_completed([pool.submit(_score_here, number) for number in todo]):
            each.result()
            yield
    except BrokenExecutor as error:
        raise StepError(
            f"{work.scorer.problem}: a process that scored {work.name} was killed, perhaps for lack of memory "
            f"({type(error).__name__}). Run the same command again: it resumes with the finished chunks."
        ) from error
    finally:
        pool.shutdown(kill_workers=True)


_WORK: list[_Work] = []
"""The work of this process, if it is a worker."""


def _begin(work: _Work, parent: int) -> None:
    exit_with_parent(parent)
    _WORK[:] = [work]


def _score_here(number: int) -> None:
    _WORK[0].score(number)


def _count(rows: pl.DataFrame, scored: Scored) -> dict[str, Any]:
    found = scored.rows
    reasons = found[NOT_SCORED].drop_nulls() if NOT_SCORED in found.columns else pl.Series(dtype=pl.String)
    first = reasons[0] if len(reasons) else None
    more = {"unseen": dict(scored.unseen), "replaced": dict(scored.replaced), "absent": scored.absent}
    return {"rows": rows.height, "not_scored": len(reasons), "first": first, **more}


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter[str]()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- all entities


def score_newest(scorer: Scorer, out: Path, as_of: date | None, record: Record | None, at: datetime) -> Result:
    """Score every entity of the newest features into `out`: the key, the cutoff and the prediction.

    `as_of`: the newest features up to that day, inclusive. None: of all. (A recommender reads the histories that its `update`
    gives.) `record`: what else receives the predictions, with the time `at`.
    Raises ParamsError for a plain table, which has no newest features, and DataError for a day before the first cutoff.
    """
    _check_suffix(out)
    problem = scorer.problem
    if isinstance(scorer.kind, RowKind):
        days = list(scorer.cutoffs)
        if scorer.table is not None or not days:
            raise ParamsError(
                f"{problem}: its rows are cases of a plain table, of which none is the newest; "
                "give --data FILE, or schedule.input in params.yaml"
            )
        known = [day for day in days if as_of is None or day <= as_of]
        if not known:
            raise DataError(f"{problem}: --as-of {as_of}: lies before the first cutoff ({days[0]}); name a later day")
        cutoff = known[-1]
        scorer = dataclasses.replace(scorer, cutoff=cutoff)
        rows = pl.DataFrame({scorer.section.features.entity: scorer.data.entity})
    else:
        cutoff = scorer.data.as_of
        rows = pl.DataFrame({scorer.section.features.user: scorer.data.histories.users})
    scored = scorer.score(rows, f"the features of {cutoff}")
    with writing(out) as scratch:
        WRITERS[out.suffix](scored.rows.clone().insert_column(1, pl.lit(cutoff).alias(CUTOFF)).lazy(), scratch)
        logged = record(scored.ledger_rows(), at) if record else None
    return Result(
        problem=problem,
        version=scorer.version,
        rows=rows.height,
        not_scored=_count(rows, scored)["not_scored"],
        unseen=dict(scored.unseen),
        out=str(out),
        cutoff=cutoff,
        logged=logged,
    )


def _check_suffix(out: Path) -> None:
    if out.suffix not in WRITERS:
        raise ParamsError(f"{out}: unknown kind of file; give a name that ends in {' or '.join(WRITERS)}")


WRITERS: dict[str, Callable[[pl.LazyFrame, Path], Any]] = {".parquet": pl.LazyFrame.sink_parquet, ".csv": pl.LazyFrame.sink_csv}
