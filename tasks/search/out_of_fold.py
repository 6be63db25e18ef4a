"""Out-of-fold predictions: what trials predicted for rows that they were not fitted on."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from evergreen.tasks.problems.base import Config
from evergreen.tasks.search import ensemble
from evergreen.tasks.search.specification import Search
from evergreen.tasks.search.trials import Evaluator, FinishedTrial

FOLD = "_fold"


class OutOfFoldPredictions:
    """The predictions of the best trials of each model, one file per trial in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, number: int, frames: Sequence[pl.DataFrame]) -> None:
        """Keep the predictions of trial `number`, one frame per fold."""
        self.folder.mkdir(parents=True, exist_ok=True)
        labelled = [frame.with_columns(pl.lit(place).alias(FOLD)) for place, frame in enumerate(frames)]
        pl.concat(labelled).write_parquet(self._path(number))

    def load(self, number: int) -> list[pl.DataFrame] | None:
        """Predictions per fold; None where they were not kept."""
        path = self._path(number)
        if not path.exists():
            return None
        return [frame.drop(FOLD) for frame in pl.read_parquet(path).partition_by(FOLD, maintain_order=True)]

    def keep_only(self, trials: Sequence[FinishedTrial]) -> None:
        """Delete the predictions of all other trials."""
        kept = {self._path(each.number) for each in trials}
        for path in set(self.folder.glob("*.parquet")) - kept:
            path.unlink()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.parquet"


def predict_out_of_fold(
    search: Search, config: Config, trials: Sequence[FinishedTrial], predictions: OutOfFoldPredictions
) -> pl.DataFrame | None:
    """The out-of-fold predictions of `config`, those of all folds in one frame: the kept ones, or else computed again.

    None where they were not kept and cannot be computed.
    """
    members, weights = config.get("members", [config]), config.get("weights", [1.0])
    numbers = [next((each.number for each in trials if each.config == member), -1) for member in members]
    found = [predictions.load(number) for number in numbers]
    if any(frames is None for frames in found) and isinstance(search.evaluate, Evaluator):
        found = [replace(search.evaluate, keep_predictions=True)(member).predictions for member in members]
    kept = [frames for frames in found if frames is not None]
    if len(kept) < len(members):
        return None
    return pl.concat(ensemble.weighted_mean(list(fold), weights) for fold in zip(*kept, strict=True))
