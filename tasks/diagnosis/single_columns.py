"""What each column predicts by itself, and columns that give the target by a formula: signs of a leak."""

import math

import numpy as np
import pandas as pd
import polars as pl
from sklearn.tree import DecisionTreeRegressor

from evergreen.tasks.core import bootstrap
from evergreen.tasks.core.columns import within_32_bits
from evergreen.tasks.diagnosis.examination import SCORED_ROWS, Examination
from evergreen.tasks.problems.tabular.leak_rule import Formula, find_formula


def single_column_skills(examination: Examination) -> tuple[list[tuple[str, float]], Formula | None]:
    """(column, skill of the best prediction from it alone), the best first; and a formula of columns that is the target."""
    train, validation = examination.folds[-1][0][:SCORED_ROWS], examination.folds[-1][1]
    target, classes = target_columns(examination, np.concatenate([train, validation]))
    seen_target, unseen_target = target[: len(train)], target[len(train) :]
    seen, unseen = (examination.data.features.iloc[rows] for rows in (train, validation))
    found = []
    for name in examination.data.features:
        predictions = _predict_from_column(seen[name], seen_target, unseen[name])
        found.append((str(name), _skill(predictions, unseen_target, classes)))
    found.sort(key=lambda item: -item[1] if math.isfinite(item[1]) else 1.0)
    return found, None if classes else _formula(seen, seen_target[:, 0])


def _formula(features: pd.DataFrame, target: np.ndarray) -> Formula | None:
    numeric = [name for name in features if pd.api.types.is_numeric_dtype(features[name])]
    return find_formula({str(name): features[name].to_numpy(dtype=float, na_value=np.nan) for name in numeric}, target)


def target_columns(examination: Examination, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """The target as columns of numbers: one per class (0 or 1), or itself; and the number of classes, 0 for a number."""
    target = examination.data.target[rows]
    if examination.prediction_type.target == "number":
        return target.cast(pl.Float64).to_numpy()[:, None], 0
    places = target.rank("dense").to_numpy().astype(int) - 1
    return np.eye(int(places.max()) + 1)[places], int(places.max()) + 1


def _predict_from_column(seen: pd.Series, target: np.ndarray, unseen: pd.Series) -> np.ndarray:
    """The mean target by value of one column: by category, or by the leaves of a small tree for numbers and dates."""
    if pd.api.types.is_string_dtype(seen):
        mean, counts = target.mean(axis=0), seen.fillna("").value_counts()
        codes = pd.Series(np.arange(len(counts)), index=counts.index)
        place = seen.fillna("").map(codes).to_numpy(dtype=int)
        sums = np.zeros((len(counts) + 1, target.shape[1]))
        np.add.at(sums, place, target)
        sizes = np.append(counts.to_numpy(), 0)[:, None]
        return ((sums + 5 * mean) / (sizes + 5))[unseen.fillna("").map(codes).fillna(len(counts)).astype(int).to_numpy()]
    x, z = (_numbers(each)[:, None] for each in (seen, unseen))
    if not np.isfinite(x).any():
        return np.tile(target.mean(axis=0), (len(z), 1))
    tree = DecisionTreeRegressor(max_leaf_nodes=32, min_samples_leaf=max(5, len(x) // 100), random_state=0)
    return tree.fit(x, target).predict(z).reshape(len(z), -1)


def _numbers(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column):
        days = column.to_numpy(dtype="datetime64[s]").astype(float) / 86_400
        return np.where(column.isna().to_numpy(), np.nan, days)
    return within_32_bits(column.to_numpy(dtype=float, na_value=np.nan))


def _skill(predictions: np.ndarray, target: np.ndarray, classes: int) -> float:
    """The skill of columns of numbers, as `examination.skill` of the kind's own scores."""
    if not classes:
        spread = float(((target - target.mean()) ** 2).sum())
        return 1 - float(((target - predictions) ** 2).sum()) / spread if spread else math.nan
    from evergreen.tasks.problems.classification.scores import ranking

    columns = range(1, 2) if classes == 2 else range(classes)
    return bootstrap.mean([2 * ranking(target[:, each] == 1, predictions[:, each])[0] - 1 for each in columns])
