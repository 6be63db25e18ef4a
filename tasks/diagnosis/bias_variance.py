"""Bias-variance decomposition of the expected error, by refits on resamples of the training entities."""

import numpy as np
import polars as pl

from evergreen.tasks.diagnosis.examination import Examination
from evergreen.tasks.diagnosis.single_columns import target_columns
from evergreen.tasks.problems.base import Config
from evergreen.tasks.problems.tabular import row_subset

REFITS = 8


def decompose_error(examination: Examination, config: Config) -> pl.DataFrame | None:
    """part, share, rows: the parts of the expected squared error on validation rows, as shares of the target's variance.

    variance: how far refits lie from their mean. bias and noise: the rest, which holds the noise of the labels too. For
    classification of probabilities, summed over the classes. None where the time is over or too few refits succeed.
    """
    shortened = examination.shortened(REFITS, "bias and variance")
    if shortened is None:
        return None
    train, validation = shortened.folds[-1]
    random = np.random.default_rng(shortened.seed)
    frames = []
    for _ in range(REFITS):
        rows = row_subset.drawn(shortened.data, train[: shortened.rows], random)
        fit = shortened.fit(config, rows, validation)
        if fit is not None:
            frames.append(fit[2])
    columns = [set(frame.columns) for frame in frames]
    if len(frames) < REFITS / 2 or any(each != columns[0] for each in columns):
        return None
    names = [name for name in frames[0].columns if name == "prediction" or name.startswith("probability_")]
    predictions = np.stack([frame.select(names).to_numpy() for frame in frames])
    target, _ = target_columns(shortened, validation)
    if target.shape[1] != predictions.shape[2]:
        return None
    total = float(target.var(axis=0).sum()) or 1.0
    error = float(((predictions - target) ** 2).sum(axis=2).mean()) / total
    variance = float(predictions.var(axis=0, ddof=1).sum(axis=1).mean()) / total
    parts = {"part": ["bias and noise", "variance"], "share": [max(error - variance, 0.0), variance]}
    return pl.DataFrame(parts).with_columns(rows=pl.lit(shortened.rows))
