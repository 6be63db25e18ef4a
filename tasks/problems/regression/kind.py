"""Regression. A model may learn the residual of an offset."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl
from lightgbm import LGBMRegressor
from scipy.stats import skew
from sklearn.base import BaseEstimator, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import Ridge
from sklearn.utils.validation import check_is_fitted

from evergreen.model_types import stored_type
from evergreen.tasks.config.params import Range, Tabular
from evergreen.tasks.core.suggestions import require
from evergreen.tasks.problems.base import Config, Kind, Model, Part
from evergreen.tasks.problems.regression.predictions import Quantities, labelled
from evergreen.tasks.problems.tabular import preprocessing
from evergreen.tasks.problems.tabular.model_families import (
    BLEND,
    BOOSTING,
    BOOSTING_OF_NUMBERS,
    BOOSTING_SPACE,
    FOR_AMOUNTS,
    FOR_BOOSTING,
    FOR_LINES,
    FOR_NETWORKS,
    FOR_TREES,
    FOREST,
    FOREST_DEFAULTS,
    FOREST_SPACE,
    LIGHTGBM,
    NETWORK_DEFAULTS,
    NETWORK_SPACE,
    PLAIN_BOOSTING_SPACE,
    PLAIN_LIGHTGBM,
    Family,
)
from evergreen.tasks.problems.tabular.neural_network import NeuralNetworkRegressor
from evergreen.tasks.problems.tabular.out_of_core import Lesson
from evergreen.tasks.problems.tabular.rows import Rows
from evergreen.tasks.problems.tabular.tabular_kind import TabularKind
from evergreen.tasks.problems.tabular.weighted_ensemble import BlendRegressor

BINS = 10
POINTS = 600
TAIL = 1.0
"""Skewness of an exponential distribution is 2, of a normal one 0."""


@stored_type
class OffsetRegressor(MetaEstimatorMixin, RegressorMixin, BaseEstimator):
    """An offset from one feature, and a model of the residual.

    The offset is the feature times one factor, so that the sums of offsets and targets are equal on the training rows (a sum
    over eight weeks can be the offset of one over four). A missing feature gives the offset zero.
    """

    def __init__(self, regressor: Any = None, offset: str = "") -> None:
        self.regressor = regressor
        self.offset = offset

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> "OffsetRegressor":
        base = X[self.offset].fillna(0.0).to_numpy()
        self.factor_ = _factor(y, base)
        rest: Any = clone(self.regressor)
        self.regressor_ = rest.fit(X, y - self.factor_ * base)
        return self

    def fit_stored(self, lesson: Lesson) -> "OffsetRegressor":
        base, whole = (np.nan_to_num(each) for each in (lesson.X[self.offset].to_numpy(float), lesson.column(self.offset)))
        self.factor_ = _factor(lesson.targets, whole)
        rest = lesson.about(lesson.y - self.factor_ * base, lesson.targets - self.factor_ * whole)
        self.regressor_ = rest.fit(clone(self.regressor))
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        return self.factor_ * X[self.offset].astype(float).fillna(0.0).to_numpy() + self.regressor_.predict(X)


@stored_type
class LogRegressor(MetaEstimatorMixin, RegressorMixin, BaseEstimator):
    """Learns sign(y) log(1 + |y|), and predicts in the unit of y.

    Predictions are multiplied by one factor, so that the sums of predictions and targets are equal on the training rows: the
    mean of a logarithm is less than the logarithm of the mean. Predictions stay within twice the range of the training target.
    """

    def __init__(self, regressor: Any = None) -> None:
        self.regressor = regressor

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> "LogRegressor":
        inner: Any = clone(self.regressor)
        self.regressor_ = inner.fit(X, _logs(y))
        return self._scaled(y, lambda: self.predict(X).sum())

    def fit_stored(self, lesson: Lesson) -> "LogRegressor":
        self.regressor_ = lesson.about(_logs(lesson.y), _logs(lesson.targets)).fit(clone(self.regressor))
        return self._scaled(lesson.targets, lambda: sum(self.predict(each.features).sum() for each in lesson.stored.blocks()))

    def _scaled(self, y: np.ndarray, total: Callable[[], Any]) -> "LogRegressor":
        """With the range of `y`, and the factor that follows from the sum of predictions, `total`."""
        self.low_, self.high_ = (float(each) for each in (min(2 * y.min(), 0.0), max(2 * y.max(), 0.0)))
        self.factor_ = 1.0
        predicted = float(total())
        self.factor_ = float(np.clip(y.sum() / predicted, 0.5, 2.0)) if predicted else 1.0
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        logs = self.regressor_.predict(X)
        plain = np.sign(logs) * np.expm1(np.minimum(np.abs(logs), 700.0))
        return np.clip(self.factor_ * plain, self.low_, self.high_)


class Regression(Quantities, TabularKind):
    baseline = "naive"
    loss_name = "mean absolute error"
    families: ClassVar = {
        "naive": Family(DummyRegressor, prepared=False, stage="baseline"),
        "ridge": Family(Ridge, {}, {"alpha": 300.0}, {"alpha": Range(low=0.1, high=1e5, log=True)}, stage="linear"),
        "lightgbm": Family(LGBMRegressor, LIGHTGBM, BOOSTING, BOOSTING_SPACE, native=True),
    }
    plain: ClassVar = {
        "naive": families["naive"],
        "ridge": Family(
            Ridge,
            {},
            {"alpha": 10.0},
            {"alpha": Range(low=1e-6, high=1e4, log=True)},
            stage="linear",
            choices=FOR_LINES | FOR_AMOUNTS,
        ),
        "extra_trees": Family(
            ExtraTreesRegressor, FOREST, FOREST_DEFAULTS, FOREST_SPACE, stage="trees", choices=FOR_TREES | FOR_AMOUNTS
        ),
        "lightgbm": Family(
            *(LGBMRegressor, PLAIN_LIGHTGBM, BOOSTING_OF_NUMBERS, PLAIN_BOOSTING_SPACE),
            native=True,
            choices=FOR_BOOSTING | FOR_AMOUNTS,
        ),
        "network": Family(
            NeuralNetworkRegressor, {}, NETWORK_DEFAULTS, NETWORK_SPACE, stage="network", choices=FOR_NETWORKS | FOR_AMOUNTS
        ),
    }
    blend = BlendRegressor

    def choices(self, model: str, section: Tabular) -> dict[str, Range]:
        given = {"offset": section.pipeline.offset, "target_log": section.pipeline.target_log}
        more = {name: Range(values=values) for name, values in given.items() if len(values) > 1 and model != self.baseline}
        return more | super().choices(model, section)

    def fit(self, data: Rows, parts: Sequence[Part], config: Config, section: Tabular, seed: int) -> Model:
        """A regressor. The baseline is the offset alone, or the mean without pipeline.offset."""
        training = self.training(data, parts, config, section, seed)
        return training.fit(self.assemble(training.rows, config, section, "continuous", seed), pl.Series.to_numpy)

    def assemble(self, rows: Rows, config: Config, section: Tabular, task: preprocessing.Task, seed: int) -> Any:
        """The unfitted model; with an offset, of its residual."""
        model = super().assemble(rows, config, section, task, seed)
        naive = config["model"] == self.baseline
        offset = _first(section.pipeline.offset) if naive else config.get("offset", section.pipeline.offset[0])
        if config["model"] == BLEND:
            return model
        log = config.get("target_log", section.pipeline.target_log[0])
        if not naive and (has_long_tail(rows.target.to_numpy()) if log == "auto" else log):
            model = LogRegressor(model)
        if offset is None:
            return model
        require(offset, rows.features, "pipeline.offset")
        return OffsetRegressor(DummyRegressor(strategy="constant", constant=0) if naive else model, offset)

    def predict(self, model: Model, data: Rows, part: Part, section: Tabular) -> pl.DataFrame:
        """`entity`, `label` (missing where unknown), `prediction`."""
        return pl.concat(self._predict(model, rows) for rows in data.blocks([part], f"predicts {part}"))

    def _predict(self, model: Model, rows: Rows) -> pl.DataFrame:
        answers = model.predict(rows.features) if len(rows) else np.empty(0)
        return pl.DataFrame({"entity": rows.entity, "label": rows.target, "prediction": answers})

    def outputs(self, model: Model, most: int) -> tuple[Callable[[pd.DataFrame], np.ndarray], list[str]]:
        return lambda features: np.asarray(model.predict(features), dtype=float)[:, None], ["prediction"]

    def row_losses(self, predictions: pl.DataFrame) -> np.ndarray:
        """The absolute error."""
        return np.abs((predictions["label"] - predictions["prediction"]).to_numpy())

    def plots(
        self, predictions: pl.DataFrame, baseline: pl.DataFrame, model: Model, data: Rows, section: Tabular
    ) -> dict[str, pl.DataFrame]:
        """Points, residuals and errors over the rows of all test windows; `series` is model or baseline."""
        series = {"model": labelled(predictions), "baseline": labelled(baseline)}
        return {
            "predicted_actual": _sample(*series["model"]),
            "residuals": _stack(series, _residuals),
            "error_by_prediction": _stack(series, _deciles),
        }


KIND: Kind = Regression()


def _factor(y: np.ndarray, base: np.ndarray) -> float:
    return float(y.sum() / base.sum()) if base.sum() else 0.0


def _logs(y: np.ndarray) -> np.ndarray:
    return np.sign(y) * np.log1p(np.abs(y))


def has_long_tail(amounts: np.ndarray) -> bool:
    """Whether none is below 0, some are far above the others (a skewness over TAIL), and a logarithm halves that, at least."""
    if amounts.min() < 0 or amounts.min() == amounts.max():
        return False
    long = float(skew(amounts))
    return long > TAIL and abs(float(skew(np.log1p(amounts)))) < long / 2


def _first(offsets: tuple[str | None, ...]) -> str | None:
    return next((offset for offset in offsets if offset is not None), None)


def _stack(series: dict[str, tuple[np.ndarray, np.ndarray]], draw: Any) -> pl.DataFrame:
    edges = _edges(*series["model"])
    return pl.concat(
        pl.DataFrame(draw(label, prediction, edges)).select(pl.lit(name).alias("series"), pl.all())
        for name, (label, prediction) in series.items()
    )


def _sample(label: np.ndarray, prediction: np.ndarray) -> pl.DataFrame:
    """At most POINTS rows, evenly over the order of their predictions."""
    order = np.argsort(prediction, kind="stable")
    kept = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), POINTS)).astype(int))]
    return pl.DataFrame({"predicted": prediction[kept], "actual": label[kept]})


def _edges(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Bins of residuals that leave out the widest hundredth, so that the middle can be seen."""
    reach = float(np.quantile(np.abs(label - prediction), 0.99)) or 1.0
    return np.linspace(-reach, reach, 4 * BINS + 1)


def _residuals(label: np.ndarray, prediction: np.ndarray, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Share of rows in each bin of actual minus predicted."""
    return {"low": edges[:-1], "high": edges[1:], "share": np.histogram(label - prediction, edges)[0] / len(label)}


def _deciles(label: np.ndarray, prediction: np.ndarray, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Tenths of the rows by prediction: means of predicted and actual, and the mean absolute error."""
    parts = [part for part in np.array_split(np.argsort(prediction, kind="stable"), BINS) if len(part)]
    return {
        "decile": np.arange(1, len(parts) + 1),
        "predicted": np.array([prediction[part].mean() for part in parts]),
        "actual": np.array([label[part].mean() for part in parts]),
        "mae": np.array([np.abs(label[part] - prediction[part]).mean() for part in parts]),
        "rows": np.array([len(part) for part in parts]),
    }
