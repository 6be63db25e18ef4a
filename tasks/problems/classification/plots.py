"""Curves of predicted probabilities, as tidy tables."""

from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.problems.classification.scores import PREFIX, SMALLEST, arrays, steps

BINS = 10
POINTS = 200


def draw(predictions: pl.DataFrame, baseline: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Curves over the rows of all test windows, one `series` each for model and baseline (and class, for several)."""
    series = _series(predictions, "model") | _series(baseline, "baseline")
    model_only = _series(predictions, "model")
    return {
        "roc": _stack(series, _roc),
        "precision_recall": _stack(series, _precision_recall),
        "calibration": _stack(model_only, _calibration),
        "gain": _stack(series, _gain),
        "scores": _stack(model_only, _distribution),
        "confusion": _confusion(predictions),
    }


Curve = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name of a series -> (whether positive, score), one element per row."""


def _series(predictions: pl.DataFrame, name: str) -> Curve:
    """For two classes one series; for several one per class against the rest."""
    true_class, chances, _ = arrays(predictions)
    if chances.shape[1] == 2:
        return {name: (true_class == 1, chances[:, 1])}
    labels = [each.removeprefix(PREFIX) for each in predictions.columns if each.startswith(PREFIX)]
    return {f"{name} {label}": (true_class == place, chances[:, place]) for place, label in enumerate(labels)}


def _stack(series: Curve, draw: Any) -> pl.DataFrame:
    """One table of all series; those without both classes have no curve."""
    drawn = [
        pl.DataFrame(draw(positive, chance)).select(pl.lit(name).alias("series"), pl.all())
        for name, (positive, chance) in series.items()
        if positive.any() and not positive.all()
    ]
    return pl.concat(drawn) if drawn else pl.DataFrame({"series": pl.Series([], dtype=pl.String)})


def _thin(length: int) -> np.ndarray:
    """Places of at most POINTS points of a curve, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, POINTS)).round().astype(int))


def _roc(positive: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    hits, calls = steps(positive, chance)
    found, wrong = np.append(0, hits / hits[-1]), np.append(0, (calls - hits) / (calls[-1] - hits[-1]))
    kept = _thin(len(found))
    return {"false_positive_rate": wrong[kept], "true_positive_rate": found[kept]}


def _precision_recall(positive: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    hits, calls = steps(positive, chance)
    kept = _thin(len(hits))
    return {"recall": (hits / hits[-1])[kept], "precision": (hits / calls)[kept]}


def _calibration(positive: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    """Rows in bins of equal size by score: predicted and observed share."""
    parts = [part for part in np.array_split(np.argsort(chance, kind="stable"), BINS) if len(part)]
    return {
        "predicted": np.array([chance[part].mean() for part in parts]),
        "observed": np.array([positive[part].mean() for part in parts]),
        "rows": np.array([len(part) for part in parts]),
    }


def _gain(positive: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    """Of all positives, which share is among the highest-scored share of the rows; lift is the one over the other."""
    hits, calls = steps(positive, chance)
    found, asked = hits / hits[-1], calls / calls[-1]
    lift = found / asked
    found, asked, lift = np.append(0, found), np.append(0, asked), np.append(lift[0], lift)
    kept = _thin(len(found))
    return {"share_of_rows": asked[kept], "share_found": found[kept], "lift": lift[kept]}


def _distribution(positive: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    """Share of the positives and of the others in each bin of the score."""
    edges = np.linspace(0, max(chance.max(), SMALLEST), 2 * BINS + 1)
    counts = [np.histogram(chance[mask], edges)[0] / mask.sum() for mask in (~positive, positive)]
    return {"low": edges[:-1], "high": edges[1:], "share_of_negatives": counts[0], "share_of_positives": counts[1]}


def _confusion(predictions: pl.DataFrame) -> pl.DataFrame:
    """Rows by true class and by the predicted class (the likeliest, for several classes)."""
    true_class, chances, threshold = arrays(predictions)
    labels = np.array([each.removeprefix(PREFIX) for each in predictions.columns if each.startswith(PREFIX)] + ["never seen"])
    if chances.shape[1] == 2:
        thresholds = predictions.filter(pl.col("label").is_not_null())["threshold"].fill_null(threshold).to_numpy()
        predicted = (chances[:, 1] >= thresholds).astype(int)
    else:
        predicted = chances.argmax(axis=1)
    return (
        pl.DataFrame({"label": labels[true_class], "predicted": labels[predicted]})
        .group_by("label", "predicted")
        .agg(rows=pl.len())
        .sort("label", "predicted")
    )
