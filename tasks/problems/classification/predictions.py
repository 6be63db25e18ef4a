"""Predicted probabilities of classes, and how labels judge them."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import KindName, Table, Tabular
from evergreen.tasks.core import bootstrap
from evergreen.tasks.core.columns import texts
from evergreen.tasks.problems.base import Metric
from evergreen.tasks.problems.classification import scores
from evergreen.tasks.problems.classification.known_calibration import KnownCalibration, Window
from evergreen.tasks.problems.classification.scores import PREFIX, arrays
from evergreen.tasks.problems.prediction_type import Context, SkillScale, as_scalar, category_labels, floats
from evergreen.tasks.problems.tabular.predictions import LabelledRows


class ClassProbabilities(LabelledRows):
    """`probability_<class>` of each class."""

    name: KindName = "classification"
    metrics = (
        Metric("roc_auc", scale="share"),
        Metric("average_precision", scale="share"),
        Metric("accuracy", scale="proportion"),
        Metric("precision", scale="proportion"),
        Metric("recall", scale="proportion"),
        Metric("f1", scale="proportion"),
        Metric("log_loss", greater_is_better=False, scale="positive"),
        Metric("brier", greater_is_better=False, format=".4f", scale="positive"),
    )
    caveat = "A probability is an estimate for rows like those it learned from; look at its calibration first."
    target = "class"
    skill = SkillScale("ROC AUC", at_zero=0.5, leak=0.95)
    largest_loss = 2.0

    def question(self, name: str, columns: Mapping[str, str | None]) -> str:
        if columns["positive_class"]:
            return f"Is {columns['target']} {columns['positive_class']}?"
        return f"Which {columns['target']} is it?"

    def _parse(self, given: Any, outputs: Collection[str]) -> Any:
        """As the predictions spell the class, a number where it is one: 1, 1.0, "1" and true are the class 1."""
        value = as_scalar(given)
        if not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
            raise ValueError(f"value = {given!s:.40}: is no class; a class is a text, a number, true or false")
        classes = [name.removeprefix(PREFIX) for name in outputs if name.startswith(PREFIX)]
        if not classes:
            return value
        name = _class_name(value)
        spelt = next((each for each in classes if each == name), None) or next(
            (each for each in classes if _same(each, value)), None
        )
        if spelt is None:
            raise ValueError(f"value = {given!s:.40}: is none of the classes {', '.join(sorted(classes)[:10])}")
        return as_scalar(spelt)

    def score(self, predictions: pl.DataFrame, section: Tabular) -> dict[str, float]:
        """All metrics; for more than two classes macro means, each class against the rest. NaN where one is not defined."""
        true_class, chances, threshold = arrays(predictions)
        if not len(true_class):
            return dict.fromkeys((metric.name for metric in self.metrics), np.nan)
        two = chances.shape[1] == 2
        found = scores.of_two(true_class, chances[:, 1], threshold) if two else scores.of_several(true_class, chances)
        return dict(zip((metric.name for metric in self.metrics), found, strict=True))

    def losses(self, rows: pl.DataFrame, labels: pl.Series, metric: str | None) -> np.ndarray:
        """The squared errors of the probabilities, added up (Brier 1950)."""
        happened = np.array([_class_name(value) for value in labels], dtype=object)
        found = np.ones(rows.height)  # of a class that the version does not know, all of it is missed
        for name in _probabilities(rows):
            chance, mine = np.nan_to_num(floats(rows[name])), happened == name.removeprefix(PREFIX)
            found += chance**2 - 2 * np.where(mine, chance, 0.0)
        return found

    def as_predicted(self, rows: pl.DataFrame, section: Tabular) -> pl.DataFrame:
        names = _probabilities(rows)
        positive = section.features.positive_class if isinstance(section.features, Table) else None
        if len(names) == 2 and f"{PREFIX}{positive}" in names:
            names.sort(key=lambda name: name == f"{PREFIX}{positive}")
        classes = [name.removeprefix(PREFIX) for name in names]
        chances = [pl.col(name).cast(pl.Float64, strict=False).fill_null(0.0) for name in names]
        label = rows["label"]
        if classes and all(_is_number(each) for each in classes):
            label = label.cast(pl.Float64, strict=False)
        else:
            label = label.cast(pl.String)
            if classes and all(_is_number(each) or each in ("true", "false") for each in classes):
                label = label.str.to_lowercase()
        known = label if classes else label.clear(len(label))
        frame = rows.select("entity", "label_at", *chances).with_columns(known.alias("label"))
        frame = frame.with_columns(threshold=pl.lit(_threshold(rows, names, classes), pl.Float64))
        return frame.filter(pl.sum_horizontal(names) > 0) if names else frame.clear()

    def draw_labels(
        self, predictions: pl.DataFrame, known: Sequence[pl.DataFrame], draws: int, seed: int
    ) -> Iterator[pl.DataFrame]:
        """A class by the predicted probabilities (confidence-based performance estimation), each draw with another calibration
        that `known` allows."""
        names = _probabilities(predictions)
        chances = predictions.select(names).to_numpy()
        calibration = KnownCalibration(_windows(names, known), len(names))
        text = predictions["label"].dtype == pl.String
        classes = pl.Series([name.removeprefix(PREFIX) for name in names])
        classes = classes if text else classes.cast(pl.Float64)
        random = np.random.default_rng(seed)
        rows = predictions.with_row_index("__row")
        for (part,) in bootstrap.draw([rows], draws, seed):
            bounds = np.cumsum(calibration.draw(chances[part["__row"].to_numpy()], random), axis=1)
            places = (random.random(part.height)[:, None] > bounds[:, :-1]).sum(axis=1)
            yield part.with_columns(classes[places].alias("label"))

    def comparable(self, rows: pl.DataFrame, features: pl.DataFrame | None, context: Context) -> pl.DataFrame:
        """`probability_<class>`, of two classes the later one's; else `prediction`."""
        names = sorted(_probabilities(rows))
        if names:
            return rows.select(pl.col(names[1:] if len(names) == 2 else names).cast(pl.Float64, strict=False))
        return pl.DataFrame({"prediction": texts(rows["prediction"])}) if "prediction" in rows.columns else pl.DataFrame()

    def comparable_labels(self, labels: pl.Series) -> pl.DataFrame:
        return pl.DataFrame({"label": category_labels(labels)})


PREDICTIONS = ClassProbabilities()


def _probabilities(rows: pl.DataFrame) -> list[str]:
    return [name for name in rows.columns if name.startswith(PREFIX)]


def _class_name(value: Any) -> str:
    """A class as the names of the probabilities have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _same(known: str, value: Any) -> bool:
    """Whether a class that training spelt as `known` is `value`: true and false in any case, numbers by value."""
    if known in ("true", "false") or str(value).lower() in ("true", "false"):
        spelling = {"true": "1", "false": "0"}
        one, two = known.lower(), str(value).lower()
        return one == two or one == spelling.get(two)
    return _is_number(known) and _is_number(str(value)) and float(known) == float(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _threshold(rows: pl.DataFrame, names: Sequence[str], classes: Sequence[str]) -> float | None:
    """The probability of the second of two classes from which it was predicted, as far as the predictions show it."""
    if len(names) != 2 or "prediction" not in rows.columns:
        return None
    second = rows["prediction"].cast(pl.String).str.replace(r"\.0$", "") == classes[1]
    chance = rows[names[1]].cast(pl.Float64, strict=False)
    above, below = chance.filter(second).min(), chance.filter(~second).max()
    if isinstance(above, float):
        return above
    return min(1.0, float(np.nextafter(below, 2))) if isinstance(below, float) else None


def _windows(names: Sequence[str], known: Sequence[pl.DataFrame]) -> list[Window]:
    """Those of `known` that have these probabilities."""
    found: list[Window] = []
    for each in known:
        rows = each.filter(pl.col("label").is_not_null()) if set(names) <= set(each.columns) else each.clear()
        if rows.height:
            true_class, chances, _ = arrays(rows.select("label", *names, "threshold"))
            found.append(Window(true_class, chances, rows["entity"].to_numpy()))
    return found
