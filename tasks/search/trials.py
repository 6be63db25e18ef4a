"""One trial: fit and score a configuration fold by fold, in this process or another one, and measure its cost."""

import math
import os
import pickle
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import KindName, Problem
from evergreen.tasks.core import memory
from evergreen.tasks.core.errors import ParamsError, StorageError
from evergreen.tasks.core.library_warnings import WarningCounts
from evergreen.tasks.problems.base import Config, Data, Fold, Metric, RowKind

LATENCY_REPEATS = 3
"""Predictions of a single row; their median is the latency."""
MATRIX_CACHE_MB = 600.0
"""Most memory that one process uses for preprocessed matrices."""
MEMORY_POLL_SECONDS = 0.02
"""Interval between two readings of the memory."""


@dataclass(frozen=True)
class Cost:
    """The cost of a trial. NaN where it was not measured."""

    wall_seconds: float = math.nan
    cpu_seconds: float = math.nan
    peak_mb: float = math.nan
    """Peak memory of the process during the trial."""
    fit_seconds: float = math.nan
    """Wall time to fit one fold: the median over the folds."""
    fit_rows: float = math.nan
    """Training rows of a fold: the median."""
    score_seconds: float = math.nan
    """Wall time to compute the metrics of one fold: the median."""
    score_rows: float = math.nan
    """Validation rows of a fold: the median."""
    latency_ms: float = math.nan
    """Prediction of a single row, from a frame: the median."""
    model_mb: float = math.nan
    """Size of the model of one fold, serialised."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial. scores: one per evaluated fold, all of them unless `pruned`. reason: why it failed."""

    scores: Sequence[float]
    reason: str | None = None
    pruned: bool = False
    cost: Cost = field(default_factory=Cost)
    predictions: Sequence[pl.DataFrame] | None = None
    """Rows of `predict` per fold."""
    warnings: WarningCounts | None = None
    """Warnings of libraries in another process."""


@dataclass(frozen=True)
class Evaluator:
    """Configuration -> Outcome. It is sent to other processes, which each read the data once, from `folder`."""

    kind: KindName
    folder: Path
    section: Problem
    metric: Metric
    seed: int
    key: str
    """Identifies the data and the code within a process."""
    max_rows: int | None = None
    """Plain tables: most rows to use. None: all."""
    sample_rows: int | None = None
    """Most of these rows to use where time is short. None: all."""
    only_fold: int | None = None
    """The one fold to evaluate. None: all."""
    most_folds: int | None = None
    """Evaluate the last of the folds alone where time is short: in time, those nearest to the test. None: all."""
    outer_fold: int | None = None
    """Nested cross-validation: the fold whose validation rows are left out. None: none."""
    learning_limit: int | None = None
    """Bytes that rows may take in each process, where the table is larger: all of them read the same sample."""
    keep_predictions: bool = False
    """Whether the outcome holds the predictions."""

    def __call__(self, config: Config, best_scores: Sequence[float] | None = None) -> Outcome:
        """Fit and score each fold. `best_scores`: fold scores of the best trial so far; a trial clearly behind it is pruned."""
        began, cpu = time.monotonic(), time.process_time()
        scores, frames, costs = [], [], []
        reason, pruned = None, False
        with _peak_memory() as peak:
            try:
                for place, fold in enumerate(self.folds()):
                    score, frame, cost = self._fold(config, fold, first=place == 0)
                    scores.append(score)
                    frames.append(frame)
                    costs.append(cost)
                    unfinished = best_scores is not None and place + 1 < len(best_scores)
                    if best_scores is not None and unfinished and should_prune(scores, best_scores, self.metric):
                        pruned = True
                        break
            except (ParamsError, StorageError):
                raise
            except Exception as error:  # noqa: BLE001  # a library may raise anything for one configuration; the search continues
                reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        cost = replace(
            _median_cost(costs),
            wall_seconds=time.monotonic() - began,
            cpu_seconds=time.process_time() - cpu,
            peak_mb=peak[0],
        )
        complete = reason is None and not pruned
        return Outcome(scores, reason, pruned, cost, frames if self.keep_predictions and complete else None)

    def data(self) -> Data:
        return self._loaded()[0]

    def folds(self) -> Sequence[Fold]:
        """The folds of the search; none holds a row of a test window."""
        found = self._loaded()[1][-(self.most_folds or 0) :]
        return found if self.only_fold is None else found[self.only_fold : self.only_fold + 1]

    def _loaded(self) -> tuple[Data, Sequence[Fold]]:
        """The data and folds, cached per process: once with `max_rows`, and once as this evaluator uses it."""
        whole, mine = (self.key, self.max_rows, None, None), (self.key, self.max_rows, self.sample_rows, self.outer_fold)
        if mine not in _loaded:
            kind = problems.kind(self.kind)
            for other in [each for each in _loaded if each != whole]:
                del _loaded[other]
            if whole not in _loaded:
                with memory.learning_within(self.learning_limit):
                    data = _sampled(kind.load(self.folder, self.section), self.max_rows, self.seed)
                _loaded[whole] = data, kind.splits(data, self.section).folds
            data, folds = _loaded[whole]
            data = _sampled(data, self.sample_rows, self.seed)
            _loaded[mine] = (data, folds) if self.outer_fold is None else _inner_folds(data, folds, self.outer_fold)
        return _loaded[mine]

    def _fold(self, config: Config, fold: Fold, first: bool) -> tuple[float, pl.DataFrame, Cost]:
        kind, data = problems.kind(self.kind), self.data()
        began = time.monotonic()
        with _shared_matrices(self):
            model = kind.fit(data, fold.train, config, self.section, self.seed)
            fitted = time.monotonic()
            frame = kind.predict(model, data, fold.test, self.section)
        predicted = time.monotonic()
        found = kind.score(frame, self.section)
        scored = time.monotonic()
        if self.metric.name not in found:
            found = kind.score_model(model, data, fold, config, self.section, self.seed)
        score = float(found[self.metric.name])
        if not math.isfinite(score):
            raise ValueError(f"{self.metric.name} is undefined on a fold: {score:g}")
        rows = float(kind.rows(data, fold.train))
        cost = Cost(fit_seconds=fitted - began, fit_rows=rows, score_seconds=scored - predicted, score_rows=float(frame.height))
        if first:
            cost = replace(cost, latency_ms=_latency(kind, model, data, self.section), model_mb=len(pickle.dumps(model)) / 1e6)
        return score, frame, cost


_loaded: dict[tuple[Any, ...], tuple[Data, Sequence[Fold]]] = {}
"""Cache of this process: the data of the last search, and the part of it that was used last."""
_matrices: dict[str, Any] = {}
"""Cache of this process: the preprocessed matrices of that data."""


@dataclass(frozen=True)
class FinishedTrial:
    """One finished trial. state: complete, pruned (clearly behind after some folds), failed (see `reason`) or killed with its
    process (`ended` is None, because its time is unknown).

    score and std are NaN unless complete.
    """

    number: int
    state: str
    config: Config
    score: float
    std: float
    reason: str
    started: datetime
    ended: datetime | None
    folds: Sequence[float] = ()
    """The score on each evaluated fold."""
    cost: Cost = field(default_factory=Cost)
    position: int = 0
    """Its place in the search; a killed trial and the trial that repeats its configuration share one."""

    @property
    def model(self) -> str:
        return str(self.config.get("model"))

    @property
    def seconds(self) -> float | None:
        """Wall time, as measured by its process, else from start to end; None where unknown."""
        if not math.isnan(self.cost.wall_seconds):
            return self.cost.wall_seconds
        return (self.ended - self.started).total_seconds() if self.ended else None


def paired_gain(best: Sequence[float], other: Sequence[float], metric: Metric) -> tuple[float, float]:
    """The mean gain of `best` over `other` on the folds that both have, the first, and its standard error (one fold: 0)."""
    gains = [metric.gain(one, two) for one, two in zip(best, other, strict=False)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return statistics.fmean(gains), error


def _sampled(data: Data, most: int | None, seed: int) -> Data:
    """At most `most` rows of a plain table; `data` itself for None."""
    from evergreen.tasks.problems.tabular.subsample import thin

    return data if most is None else thin(data, most, seed)


def _inner_folds(data: Data, folds: Sequence[Fold], outer: int) -> tuple[Data, Sequence[Fold]]:
    """For nested cross-validation: folds that use no validation row of fold `outer`."""
    from evergreen.tasks.problems.tabular.subsample import without

    return without(data, folds, outer)


def should_prune(scores: Sequence[float], best_scores: Sequence[float], metric: Metric) -> bool:
    """Whether a trial with `scores` on the first folds is clearly behind the best trial.

    It is worse on each of these folds, and in the mean by more than twice the standard deviation of `best_scores`.
    """
    behind = [metric.gain(best, score) for score, best in zip(scores, best_scores, strict=False)]
    return min(behind) > 0 and statistics.fmean(behind) > 2 * statistics.pstdev(best_scores)


@contextmanager
def _shared_matrices(evaluator: Evaluator) -> Iterator[None]:
    """Let the trials of plain tables share preprocessed matrices."""
    from evergreen.tasks.problems.tabular.transform_cache import Matrices, reusing

    if evaluator.max_rows is None:
        yield
        return
    key = f"{evaluator.key} {evaluator.max_rows} {evaluator.sample_rows}"
    if key not in _matrices:
        _matrices.clear()
        _matrices[key] = Matrices(MATRIX_CACHE_MB)
    with reusing(_matrices[key]):
        yield


def _latency(kind: Any, model: Any, data: Data, section: Problem) -> float:
    """Milliseconds to predict a single row; NaN for kinds that do not predict row by row."""
    if not isinstance(kind, RowKind):
        return math.nan
    row = kind.example(data, section).head(1)
    took = []
    for _ in range(LATENCY_REPEATS):
        began = time.perf_counter()
        kind.predict_rows(model, row)
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def _median_cost(costs: Sequence[Cost]) -> Cost:
    """The medians over the folds; latency and size are measured on the first fold only."""
    if not costs:
        return Cost()
    first = costs[0]
    middle = {
        name: statistics.median(getattr(each, name) for each in costs)
        for name in ("fit_seconds", "fit_rows", "score_seconds", "score_rows")
    }
    return replace(first, **middle)


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """The peak memory of this process during the block, in MB, as a list of one; NaN on systems without /proc."""
    peak = [_resident_mb()]
    done = threading.Event()

    def poll() -> None:
        while not done.wait(MEMORY_POLL_SECONDS):
            peak[0] = max(peak[0], _resident_mb())

    thread = threading.Thread(target=poll, daemon=True) if not math.isnan(peak[0]) else None
    if thread:
        thread.start()
    try:
        yield peak
    finally:
        done.set()
        if thread:
            thread.join()


def _resident_mb() -> float:
    """Memory of this process now, in MB; NaN on systems without /proc."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return math.nan
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
