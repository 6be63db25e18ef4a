"""Classification: which of two or more classes. The answer is a probability; its threshold is the training rows' base rate."""

import logging
from collections.abc import Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl
from lightgbm import LGBMClassifier
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier

from evergreen.tasks.config.params import KindName, Range, Table, Tabular, nearest
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.problems.base import Config, Kind, Metric, Model, Part
from evergreen.tasks.problems.tabular import calibration
from evergreen.tasks.problems.tabular.tabular_kind import (
    BOOSTING,
    BOOSTING_SPACE,
    FOR_LINES,
    FOR_TREES,
    FOREST,
    FOREST_DEFAULTS,
    FOREST_SPACE,
    LIGHTGBM,
    PLAIN_BOOSTING,
    PLAIN_BOOSTING_SPACE,
    PLAIN_LIGHTGBM,
    Family,
    Rows,
    TabularKind,
)
from evergreen.tasks.problems.tabular.weighted_ensemble import BlendClassifier

log = logging.getLogger(__name__)

PREFIX = "probability_"
BINS = 10
POINTS = 200
SMALLEST = 1e-15
"""Probabilities stay this far from 0 and 1 in the logarithmic loss."""


class Classification(TabularKind):
    name: KindName = "classification"
    metrics = (
        Metric("roc_auc"),
        Metric("average_precision"),
        Metric("accuracy"),
        Metric("precision"),
        Metric("recall"),
        Metric("f1"),
        Metric("log_loss", greater_is_better=False),
        Metric("brier", greater_is_better=False, format=".4f"),
    )
    baseline = "prior"
    families: ClassVar = {
        "prior": Family(DummyClassifier, {"strategy": "prior"}, prepared=False, stage="baseline"),
        "logistic": Family(
            LogisticRegression,
            {"max_iter": 300, "tol": 1e-4},
            {"C": 0.003},
            {"C": Range(low=1e-4, high=10.0, log=True)},
            stage="linear",
        ),
        "lightgbm": Family(LGBMClassifier, LIGHTGBM, BOOSTING, BOOSTING_SPACE, native=True),
    }
    plain: ClassVar = {
        "prior": families["prior"],
        "logistic": Family(
            LogisticRegression,
            {"max_iter": 300, "tol": 1e-4},
            {"C": 1.0, "class_weight": None},
            {"C": Range(low=1e-3, high=100.0, log=True), "class_weight": Range(values=(None, "balanced"))},
            stage="linear",
            choices=FOR_LINES,
        ),
        "random_forest": Family(
            RandomForestClassifier, FOREST, FOREST_DEFAULTS, FOREST_SPACE, stage="trees", choices=FOR_TREES
        ),
        "lightgbm": Family(
            LGBMClassifier, PLAIN_LIGHTGBM, PLAIN_BOOSTING, PLAIN_BOOSTING_SPACE, native=True, choices=FOR_TREES
        ),
    }
    blend = BlendClassifier

    def fit(self, data: Rows, parts: Sequence[Part], config: Config, section: Tabular, seed: int) -> Model:
        """A classifier with `predict_proba` and, for two classes, a threshold. Raises DataError for a single class."""
        rows = self.training_rows(data, parts, section, seed)
        y = classes_of(rows.target)
        classes, counts = np.unique(y, return_counts=True)
        if len(classes) < 2:
            raise DataError(
                f"all {len(y):,} training rows have the target {classes[0]}; two classes are needed. "
                "Give more history, or look at features.target."
            )
        model = self.assemble(rows, config, section, "binary" if len(classes) == 2 else "multiclass", seed)
        if len(classes) > 2:
            return model.fit(rows.features, y)
        positive = _positive(classes, section)
        # a hair above the base rate: a model that knows nothing more says no
        share = counts[list(classes).index(positive)] / len(y)
        threshold: Any = section.evaluate.threshold or float(np.nextafter(share, 1))
        bound = FixedThresholdClassifier(model, threshold=threshold, pos_label=positive, response_method="predict_proba")
        return bound.fit(rows.features, y)

    def finishes(self, section: Tabular) -> bool:
        return _calibrates(section) != "none" or section.evaluate.threshold_for is not None

    def finish(self, model: Model, held_out: pl.DataFrame, section: Tabular, seed: int) -> Model:
        """The model with calibrated probabilities where that helps, and with the threshold of evaluate.threshold_for.

        Raises ParamsError where several classes are to have a threshold.
        """
        names = [f"{PREFIX}{name}" for name in model.classes_]
        truth, chances, _ = arrays(held_out.select("entity", "truth", *names, "threshold"))
        bound, aim, method = isinstance(model, FixedThresholdClassifier), section.evaluate.threshold_for, _calibrates(section)
        if aim and not bound:
            raise ParamsError(f"evaluate.threshold_for = {aim}: needs two classes; {section.question} has {len(names)}")
        inner = model.estimator_ if bound else model
        methods: Any = ("sigmoid", "isotonic") if method == "auto" else (method,)
        found = calibration.helping(truth, chances, methods, seed) if method != "none" else None
        if found is not None:
            log.info("%s: its probabilities are calibrated: %s", section.question, found.method)
            inner, chances = calibration.Calibrated(inner, found.method, found.maps).fit(), found.apply(chances)
        if not bound:
            return inner
        finished = copy(model)
        finished.estimator_ = inner
        if aim:
            place = list(model.classes_).index(model.pos_label)
            known = truth >= 0
            chosen = calibration.threshold_for(
                aim, truth[known] == place, chances[known, place], section.evaluate.recall, section.evaluate.costs
            )
            finished.set_params(threshold=chosen)
        return finished

    def predict(self, model: Model, data: Rows, part: Part, section: Tabular) -> pl.DataFrame:
        """`entity`, `truth` (may be missing), `probability_<class>` of each class, `threshold` (missing for several)."""
        rows = data.at([part])
        chances = model.predict_proba(rows.features) if len(rows) else np.empty((0, len(model.classes_)))
        threshold = section.evaluate.threshold or getattr(model, "threshold", None)
        return pl.DataFrame(
            {"entity": rows.entity, "truth": rows.target}
            | _named(model, chances)
            | {f"{PREFIX}{name}": np.zeros(len(rows)) for name in _never_seen(model, data, section)}
        ).with_columns(threshold=pl.lit(threshold, pl.Float64))

    def said(self, model: Model, features: pd.DataFrame) -> dict[str, np.ndarray]:
        """`prediction`: the class at the model's threshold; `probability_<class>` of each class."""
        return super().said(model, features) | _named(model, model.predict_proba(features))

    def score(self, predictions: pl.DataFrame, section: Tabular) -> dict[str, float]:
        """All metrics; for more than two classes macro means, each class against the rest. NaN where one is not defined."""
        truth, chances, threshold = arrays(predictions)
        if not len(truth):
            return dict.fromkeys((metric.name for metric in self.metrics), np.nan)
        found = _score_two(truth, chances[:, 1], threshold) if chances.shape[1] == 2 else _score_several(truth, chances)
        return dict(zip((metric.name for metric in self.metrics), found, strict=True))

    def plots(
        self, predictions: pl.DataFrame, baseline: pl.DataFrame, model: Model, data: Rows, section: Tabular
    ) -> dict[str, pl.DataFrame]:
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


KIND: Kind = Classification()


def _positive(classes: np.ndarray, section: Tabular) -> Any:
    """The class of two that probability and threshold are about. Raises ParamsError where features.positive is none of them."""
    wanted = section.features.positive if isinstance(section.features, Table) else None
    if wanted is None:
        return classes[1]
    if wanted not in (named := {str(each): each for each in classes}):
        raise ParamsError(f"features.positive = {wanted}: no such class{nearest(wanted, named)}")
    return named[wanted]


def _calibrates(section: Tabular) -> str:
    return section.train.calibrate or ("auto" if isinstance(section.features, Table) else "none")


def _named(model: Model, chances: np.ndarray) -> dict[str, np.ndarray]:
    """`probability_<class>` of each class, of two the positive one last."""
    named = {f"{PREFIX}{name}": chances[:, place] for place, name in enumerate(model.classes_)}
    positive = f"{PREFIX}{getattr(model, 'pos_label', None)}"
    return named | {positive: named.pop(positive)} if positive in named else named


def _never_seen(model: Model, data: Rows, section: Tabular) -> list[Any]:
    """Classes of a plain table that the model did not learn from: of a tiny class all rows may be among those that judge."""
    if not isinstance(section.features, Table):
        return []
    known = set(model.classes_)
    return [each for each in np.unique(classes_of(data.target.drop_nulls())) if each not in known]


def classes_of(target: pl.Series) -> np.ndarray:
    """Class labels: whole numbers as integers (0 and 1, not 0.0 and 1.0), everything else as text."""
    if target.dtype.is_numeric() and (target % 1 == 0).all():
        return target.cast(pl.Int64).to_numpy()
    return target.cast(pl.String).to_numpy().astype(str)


def arrays(predictions: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
    """Rows of `predict` with a known truth: the place of the true class, probabilities (row x class), the threshold.

    A true class that the model never saw has the place -1.
    """
    names = [name for name in predictions.columns if name.startswith(PREFIX)]
    truth, known = predictions["truth"], None
    if truth.null_count():
        known = truth.is_not_null()
        predictions = predictions.filter(known)
        truth = predictions["truth"]
    chances = np.column_stack([predictions[name].to_numpy() for name in names])
    labels = [name.removeprefix(PREFIX) for name in names]
    values: Any = np.asarray(labels, dtype=float) if truth.dtype.is_numeric() else np.asarray(labels)
    place = np.full(len(truth), -1)
    answers = truth.to_numpy()
    for position, value in enumerate(values):
        place[answers == value] = position
    threshold = predictions["threshold"][0] if len(predictions) and predictions["threshold"][0] is not None else 0.5
    return place, chances, threshold


def _score_two(truth: np.ndarray, chance: np.ndarray, threshold: float) -> tuple[float, ...]:
    positive = truth == 1
    said = chance >= threshold
    hits, calls, positives = np.count_nonzero(positive & said), np.count_nonzero(said), np.count_nonzero(positive)
    auc, precision_curve = ranking(positive, chance)
    return (
        auc,
        precision_curve,
        float(np.mean(positive == said)),
        _ratio(hits, calls),
        _ratio(hits, positives),
        _ratio(2 * hits, calls + positives),
        _log_loss(np.where(positive, chance, 1 - chance)),
        float(np.mean((chance - positive) ** 2)),
    )


def _score_several(truth: np.ndarray, chances: np.ndarray) -> tuple[float, ...]:
    classes = np.arange(chances.shape[1])
    curves = np.array([ranking(truth == each, chances[:, each]) for each in classes])
    said = chances.argmax(axis=1)
    hits = np.bincount(said[said == truth], minlength=len(classes))
    calls, positives = np.bincount(said, minlength=len(classes)), np.bincount(truth[truth >= 0], minlength=len(classes))
    certain = np.where(truth >= 0, chances[np.arange(len(truth)), truth], 0.0)
    return (
        _mean(curves[:, 0]),
        _mean(curves[:, 1]),
        float(np.mean(said == truth)),
        _mean(_share(hits, calls)),
        _mean(_share(hits, positives)),
        _mean(_share(2 * hits, calls + positives)),
        _log_loss(certain),
        float(np.mean(((chances - (truth[:, None] == classes)) ** 2).sum(axis=1))),
    )


def ranking(positive: np.ndarray, chance: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and average precision; equal scores count as one step. NaN without both classes.

    Average precision is the step-wise sum of precision over the gains in recall.
    """
    hits, calls = _steps(positive, chance)
    positives, negatives = hits[-1], calls[-1] - hits[-1]
    if not positives:
        return np.nan, np.nan
    precision = float(np.sum(np.diff(hits, prepend=0) * hits / calls) / positives)
    if not negatives:
        return np.nan, precision
    misses = calls - hits
    area = np.sum(np.diff(misses, prepend=0) * (hits + np.concatenate(([0], hits[:-1]))) / 2)
    return float(area / (positives * negatives)), precision


def _steps(positive: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Going down the scores, one step per distinct score: positives found so far, rows called so far."""
    order = np.argsort(-chance)
    ends = np.append(np.flatnonzero(np.diff(chance[order])), len(order) - 1)
    return np.cumsum(positive[order])[ends], ends + 1


def _log_loss(certainty: np.ndarray) -> float:
    """Mean loss, given the probability of what happened."""
    return float(-np.mean(np.log(np.clip(certainty, SMALLEST, 1 - SMALLEST))))


def _ratio(part: int | np.integer, whole: int | np.integer) -> float:
    return float(part / whole) if whole else np.nan


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined; NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


Curve = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name of a series -> (whether positive, score), one element per row."""


def _series(predictions: pl.DataFrame, name: str) -> Curve:
    """For two classes one series; for several one per class against the rest."""
    truth, chances, _ = arrays(predictions)
    if chances.shape[1] == 2:
        return {name: (truth == 1, chances[:, 1])}
    labels = [each.removeprefix(PREFIX) for each in predictions.columns if each.startswith(PREFIX)]
    return {f"{name} {label}": (truth == place, chances[:, place]) for place, label in enumerate(labels)}


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
    hits, calls = _steps(positive, chance)
    found, wrong = np.append(0, hits / hits[-1]), np.append(0, (calls - hits) / (calls[-1] - hits[-1]))
    kept = _thin(len(found))
    return {"false_positive_rate": wrong[kept], "true_positive_rate": found[kept]}


def _precision_recall(positive: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    hits, calls = _steps(positive, chance)
    kept = _thin(len(hits))
    return {"recall": (hits / hits[-1])[kept], "precision": (hits / calls)[kept]}


def _calibration(positive: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    """Rows in bins of equal size by score: what was said and what happened."""
    parts = [part for part in np.array_split(np.argsort(chance, kind="stable"), BINS) if len(part)]
    return {
        "predicted": np.array([chance[part].mean() for part in parts]),
        "observed": np.array([positive[part].mean() for part in parts]),
        "rows": np.array([len(part) for part in parts]),
    }


def _gain(positive: np.ndarray, chance: np.ndarray) -> dict[str, np.ndarray]:
    """Of all positives, which share is among the highest-scored share of the rows; lift is the one over the other."""
    hits, calls = _steps(positive, chance)
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
    """Rows by true class and by the class said at the threshold (the likeliest, for several classes)."""
    truth, chances, threshold = arrays(predictions)
    labels = np.array([each.removeprefix(PREFIX) for each in predictions.columns if each.startswith(PREFIX)] + ["never seen"])
    if chances.shape[1] == 2:
        thresholds = predictions.filter(pl.col("truth").is_not_null())["threshold"].fill_null(threshold).to_numpy()
        said = (chances[:, 1] >= thresholds).astype(int)
    else:
        said = chances.argmax(axis=1)
    return (
        pl.DataFrame({"truth": labels[truth], "predicted": labels[said]})
        .group_by("truth", "predicted")
        .agg(rows=pl.len())
        .sort("truth", "predicted")
    )
