"""An ensemble of trials: greedy forward selection with replacement on what they said of rows they had not learned from.

After Caruana, Niculescu-Mizil, Crew and Ksikes, Ensemble selection from libraries of models, ICML 2004.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from evergreen.tasks.problems.base import Config, Metric
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import Cost, Tried

BLEND = "blend"
"""The model that is several."""
STEPS = 16
"""So many members are chosen at most, each as often as it helps."""
PER_MODEL = 3
"""So many trials of each model may become members."""
ROWS = 20_000
"""So many rows of each fold are looked at."""
AS_THEY_ARE = ("entity", "truth", "threshold")
"""Columns of predictions that are not averaged."""
FOLD = "_fold"


class Said:
    """What the best trials of each model predicted, one file per trial in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, number: int, frames: Sequence[pl.DataFrame]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        labelled = [frame.with_columns(pl.lit(place).alias(FOLD)) for place, frame in enumerate(frames)]
        pl.concat(labelled).write_parquet(self._path(number))

    def of(self, number: int) -> list[pl.DataFrame] | None:
        """Predictions per fold; None where they were not kept."""
        path = self._path(number)
        if not path.exists():
            return None
        return [frame.drop(FOLD) for frame in pl.read_parquet(path).partition_by(FOLD, maintain_order=True)]

    def keep_only(self, tried: Sequence[Tried]) -> None:
        """Forget the predictions of all other trials."""
        kept = {self._path(each.number) for each in tried}
        for path in set(self.folder.glob("*.parquet")) - kept:
            path.unlink()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.parquet"


def candidates(tried: Sequence[Tried], metric: Metric, baseline: str) -> list[Tried]:
    """The best trials of each model but the baseline, the best first."""
    done = [each for each in tried if each.state == "complete" and each.model not in (baseline, BLEND)]
    done.sort(key=lambda each: -metric.gain(each.score, 0.0))
    seen: Counter[str] = Counter()
    found = []
    for each in done:
        seen[each.model] += 1
        if seen[each.model] <= PER_MODEL:
            found.append(each)
    return found


def select(
    members: Sequence[Tried],
    said: Sequence[Sequence[pl.DataFrame]],
    score: Callable[[pl.DataFrame], float],
    metric: Metric,
    allowed: Callable[[Sequence[Tried]], bool],
    clock: Clock,
) -> list[int]:
    """How often each of `members` is taken. `said`: their predictions per fold; `allowed`: whether a set of them may be.

    Begins with the best, adds what helps most, and ends where nothing helps or the time of `clock` is over.
    """
    sampled = [[_sample(frame) for frame in frames] for frames in said]
    taken: list[int] = []
    best = -np.inf
    for _ in range(STEPS):
        if clock.left() <= 0:
            break
        gains = {}
        for place, member in enumerate(members):
            if not allowed([*(members[each] for each in taken), member]):
                continue
            counts = Counter([*taken, place])
            frames = [mixed([sampled[each][fold] for each in counts], list(counts.values())) for fold in range(len(said[0]))]
            gains[place] = float(np.mean([metric.gain(score(frame), 0.0) for frame in frames]))
        if not gains or max(gains.values()) <= best:
            break
        taken.append(max(gains, key=lambda place: gains[place]))
        best = gains[taken[-1]]
    counted = Counter(taken)
    return [counted[place] for place in range(len(members))]


def mixed(frames: Sequence[pl.DataFrame], weights: Sequence[float]) -> pl.DataFrame:
    """The weighted mean of predictions of the same rows."""
    names = [name for name, dtype in frames[0].schema.items() if dtype.is_float() and name not in AS_THEY_ARE]
    means = {name: np.average([frame[name].to_numpy() for frame in frames], axis=0, weights=weights) for name in names}
    return frames[0].with_columns(**{name: pl.Series(np.asarray(values)) for name, values in means.items()})


def _sample(frame: pl.DataFrame) -> pl.DataFrame:
    return frame if frame.height <= ROWS else frame.sample(ROWS, seed=0)


def config(members: Sequence[Tried], counts: Sequence[int]) -> Config:
    kept = [(member, count) for member, count in zip(members, counts, strict=True) if count]
    return {
        "model": BLEND,
        "members": [dict(member.config) for member, _ in kept],
        "weights": [round(count / sum(counts), 6) for _, count in kept],
    }


def cost(members: Sequence[Tried], wall_seconds: float, cpu_seconds: float) -> Cost:
    """What a blend of `members` costs: what they cost together. The time is that of choosing them."""
    total = {
        name: float(sum(getattr(each.cost, name) for each in members)) for name in ("fit_seconds", "latency_ms", "model_mb")
    }
    first = members[0].cost
    return Cost(
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        peak_mb=max(each.cost.peak_mb for each in members),
        fit_rows=first.fit_rows,
        score_seconds=first.score_seconds,
        score_rows=first.score_rows,
        **total,
    )
