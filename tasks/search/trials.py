"""One trial: a configuration learns and is judged fold by fold, here or in another process, and its cost is measured."""

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
from evergreen.tasks.core.errors import ParamsError, SpaceError
from evergreen.tasks.problems.base import Config, Data, Fold, Metric

SINGLE_ROWS = 5
"""So often a single row is asked for; its latency is the median."""
MATRICES_MB = 600.0
"""What one process keeps of prepared matrices."""
GLANCE_SECONDS = 0.02
"""How often the memory is looked at."""


@dataclass(frozen=True)
class Cost:
    """What a trial took. NaN where it was not measured."""

    wall_seconds: float = math.nan
    cpu_seconds: float = math.nan
    peak_mb: float = math.nan
    """Memory of the process at its highest during the trial."""
    fit_seconds: float = math.nan
    """Wall time to learn from one fold: the median."""
    fit_rows: float = math.nan
    """Rows of such a fold."""
    score_seconds: float = math.nan
    """Wall time to score the rows of one fold."""
    score_rows: float = math.nan
    latency_ms: float = math.nan
    """A single row, from a frame to the answer: the median."""
    model_mb: float = math.nan
    """Size of the model of one fold, serialised."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. scores: one per fold that was judged, all of them unless `pruned`. reason: why it failed."""

    scores: Sequence[float]
    reason: str | None = None
    pruned: bool = False
    cost: Cost = field(default_factory=Cost)
    predictions: Sequence[pl.DataFrame] | None = None
    """Rows of `predict` per fold."""


@dataclass(frozen=True)
class Judge:
    """Configuration -> Outcome. Travels to other processes: each reads the data once, from `folder`."""

    kind: KindName
    folder: Path
    section: Problem
    metric: Metric
    seed: int
    key: str
    """Names the data (and the code) within a process."""
    rows: int | None = None
    """Of a plain table so many rows at most are looked at. None: all."""
    fewer: int | None = None
    """Of these so many at most, where time is short. None: all."""
    only: int | None = None
    """The one fold that judges. None: all."""
    outer: int | None = None
    """Nested: the fold that is held back; only what was not judged by it is used."""
    keep: bool = False
    """Whether predictions are wanted."""

    def __call__(self, config: Config, bar: Sequence[float] | None = None) -> Outcome:
        """Learn and judge on each fold. `bar`: the scores of the best so far; a trial clearly behind it is pruned."""
        began, cpu = time.monotonic(), time.process_time()
        scores, frames, costs = [], [], []
        reason, pruned = None, False
        with _peak() as highest:
            try:
                for place, fold in enumerate(self.folds()):
                    score, frame, cost = self._fold(config, fold, first=place == 0)
                    scores.append(score)
                    frames.append(frame)
                    costs.append(cost)
                    if bar is not None and place + 1 < len(bar) and hopeless(scores, bar, self.metric):
                        pruned = True
                        break
            except (ParamsError, SpaceError):
                raise
            except Exception as error:  # noqa: BLE001  # whatever a library throws at one point of the space, the search goes on
                reason = f"{type(error).__name__}: {error}"
        cost = replace(
            _typical(costs),
            wall_seconds=time.monotonic() - began,
            cpu_seconds=time.process_time() - cpu,
            peak_mb=highest[0],
        )
        return Outcome(scores, reason, pruned, cost, frames if self.keep and reason is None and not pruned else None)

    def data(self) -> Data:
        return self._loaded()[0]

    def folds(self) -> Sequence[Fold]:
        """What the search learns from and is judged by; no row of a test is in it."""
        found = self._loaded()[1]
        return found if self.only is None else found[self.only : self.only + 1]

    def _loaded(self) -> tuple[Data, Sequence[Fold]]:
        """The data of this process: kept once as the search may see it at most, and once as this judge looks at it."""
        whole, mine = (self.key, self.rows, None, None), (self.key, self.rows, self.fewer, self.outer)
        if mine not in _loaded:
            kind = problems.kind(self.kind)
            for other in [each for each in _loaded if each != whole]:
                del _loaded[other]
            if whole not in _loaded:
                data = _fewer(kind.load(self.folder, self.section), self.rows, self.seed)
                _loaded[whole] = data, kind.splits(data, self.section).folds
            data, folds = _loaded[whole]
            data = _fewer(data, self.fewer, self.seed)
            _loaded[mine] = (data, folds) if self.outer is None else _within(data, folds, self.outer)
        return _loaded[mine]

    def _fold(self, config: Config, fold: Fold, first: bool) -> tuple[float, pl.DataFrame, Cost]:
        kind, data = problems.kind(self.kind), self.data()
        began = time.monotonic()
        with _sharing(self):
            model = kind.fit(data, fold.train, config, self.section, self.seed)
            fitted = time.monotonic()
            frame = kind.predict(model, data, fold.test, self.section)
        said = time.monotonic()
        found = kind.score(frame, self.section)
        scored = time.monotonic()
        if self.metric.name not in found:
            found = kind.score_model(model, data, fold, config, self.section, self.seed)
        score = float(found[self.metric.name])
        if not math.isfinite(score):
            raise ValueError(f"{self.metric.name} is undefined on a fold: {score:g}")
        rows = float(kind.rows(data, fold.train))
        cost = Cost(fit_seconds=fitted - began, fit_rows=rows, score_seconds=scored - said, score_rows=float(frame.height))
        if first:
            cost = replace(cost, latency_ms=_latency(kind, model, data, self.section), model_mb=len(pickle.dumps(model)) / 1e6)
        return score, frame, cost


_loaded: dict[tuple[Any, ...], tuple[Data, Sequence[Fold]]] = {}
"""The data that this process searched last, and the part of it that it looked at last."""
_matrices: dict[str, Any] = {}
"""What it keeps of prepared matrices of that data."""


@dataclass(frozen=True)
class Tried:
    """One trial that ended. state: complete, pruned (clearly behind after some folds), failed (`reason` says why) or killed
    (nobody knows when: `ended` is None).

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
    """The score on each fold that was judged."""
    cost: Cost = field(default_factory=Cost)
    position: int = 0
    """Its place in the search; a killed trial and the one that took up its point share theirs."""

    @property
    def model(self) -> str:
        return str(self.config.get("model"))

    @property
    def seconds(self) -> float | None:
        """Wall time: that of its process where it was measured."""
        if not math.isnan(self.cost.wall_seconds):
            return self.cost.wall_seconds
        return (self.ended - self.started).total_seconds() if self.ended else None


def standard_error(best: Sequence[float], other: Sequence[float], metric: Metric) -> tuple[float, float]:
    """How far `best` is ahead of `other` in the mean over the same folds, and the standard error of that; 0 for one fold."""
    ahead = [metric.gain(one, two) for one, two in zip(best, other, strict=True)]
    error = statistics.stdev(ahead) / math.sqrt(len(ahead)) if len(ahead) > 1 else 0.0
    return statistics.fmean(ahead), error


def _fewer(data: Data, most: int | None, seed: int) -> Data:
    """`data` with fewer rows, where it is a plain table with more than `most`."""
    from evergreen.tasks.problems.tabular.subsample import thin

    return data if most is None else thin(data, most, seed)


def _within(data: Data, folds: Sequence[Fold], outer: int) -> tuple[Data, Sequence[Fold]]:
    """For nested cross-validation: folds that use no row of the test of fold `outer`."""
    from evergreen.tasks.problems.tabular.subsample import without

    return without(data, folds, outer)


def hopeless(scores: Sequence[float], bar: Sequence[float], metric: Metric) -> bool:
    """Whether a trial with these scores on the first folds is clearly behind: on each of them, and in the mean by more than the
    best one's scores differ among the folds."""
    behind = [metric.gain(best, score) for score, best in zip(scores, bar, strict=False)]
    return min(behind) > 0 and statistics.fmean(behind) > 2 * statistics.pstdev(bar)


@contextmanager
def _sharing(judge: Judge) -> Iterator[None]:
    """Trials on plain tables share prepared matrices."""
    from evergreen.tasks.problems.tabular.transform_cache import Matrices, reusing

    if judge.rows is None:
        yield
        return
    key = f"{judge.key} {judge.rows} {judge.fewer}"
    if key not in _matrices:
        _matrices.clear()
        _matrices[key] = Matrices(MATRICES_MB)
    with reusing(_matrices[key]):
        yield


def _latency(kind: Any, model: Any, data: Data, section: Problem) -> float:
    """Milliseconds for a single row; NaN for kinds that do not answer row by row."""
    if not hasattr(kind, "said"):
        return math.nan
    row = kind.example(data, section).head(1)
    took = []
    for _ in range(SINGLE_ROWS):
        began = time.perf_counter()
        kind.said(model, row)
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def _typical(costs: Sequence[Cost]) -> Cost:
    """The medians over the folds; what the first fold alone measures is taken from it."""
    if not costs:
        return Cost()
    first = costs[0]
    middle = {
        name: statistics.median(getattr(each, name) for each in costs)
        for name in ("fit_seconds", "fit_rows", "score_seconds", "score_rows")
    }
    return replace(first, **middle)


@contextmanager
def _peak() -> Iterator[list[float]]:
    """The highest memory of this process in MB during the block, in a list of one, looked at every GLANCE_SECONDS; NaN where
    the system does not tell."""
    highest = [_resident()]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(GLANCE_SECONDS):
            highest[0] = max(highest[0], _resident())

    watching = threading.Thread(target=watch, daemon=True) if not math.isnan(highest[0]) else None
    if watching:
        watching.start()
    try:
        yield highest
    finally:
        over.set()
        if watching:
            watching.join()


def _resident() -> float:
    """Memory of this process now, in MB; NaN where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return math.nan
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
