"""Predicted numbers, and how labels judge them."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import KindName, Tabular
from evergreen.tasks.core import bootstrap
from evergreen.tasks.problems.base import Metric
from evergreen.tasks.problems.prediction_type import ENOUGH, Context, SkillScale, as_scalar, floats
from evergreen.tasks.problems.tabular.predictions import LabelledRows

BINS = 20
"""Most bins of predictions that errors are drawn from."""


class Quantities(LabelledRows):
    """`prediction`: a number."""

    name: KindName = "regression"
    metrics = (
        Metric("rmse", greater_is_better=False, format=".4g", scale="positive"),
        Metric("mae", greater_is_better=False, format=".4g", scale="positive"),
        Metric("r2", scale="explained"),
    )
    caveat = "An answer is a mean for rows like this one; single rows lie on both sides of it."
    target = "number"
    skill = SkillScale("R²", at_zero=0.0, leak=0.98)

    def question(self, name: str, columns: Mapping[str, str | None]) -> str:
        return f"How much is {columns['target']}?"

    def _parse(self, given: Any, outputs: Collection[str]) -> Any:
        try:
            number = math.nan if isinstance(given, bool) else float(as_scalar(given))
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"value = {given!s:.40}: is no finite number")
        return number

    def readable(self, rows: pl.DataFrame) -> pl.Series:
        labels = rows["label"]
        if not labels.dtype.is_numeric():
            return super().readable(rows).cast(pl.Float64)
        number = labels.cast(pl.Float64)
        return number.set(number.is_infinite() | number.is_nan(), None)

    def score(self, predictions: pl.DataFrame, section: Tabular) -> dict[str, float]:
        """All metrics; NaN without rows, and R² also where the label does not vary."""
        label, answer = labelled(predictions)
        if not len(label):
            return {"rmse": np.nan, "mae": np.nan, "r2": np.nan}
        error = label - answer
        squares, spread = float(error @ error), float(np.sum((label - label.mean()) ** 2))
        return {
            "rmse": float(np.sqrt(squares / len(label))),
            "mae": float(np.abs(error).mean()),
            "r2": 1 - squares / spread if spread else np.nan,
        }

    def losses(self, rows: pl.DataFrame, labels: pl.Series, metric: str | None) -> np.ndarray:
        """The squared error, or the absolute one where the metric is mae."""
        gaps = np.abs(floats(labels) - floats(rows["prediction"]))
        return gaps if metric == "mae" else gaps**2

    def as_predicted(self, rows: pl.DataFrame, section: Tabular) -> pl.DataFrame:
        if "prediction" not in rows.columns:
            number = {"label": pl.Float64, "prediction": pl.Float64}
            return pl.DataFrame(schema={"entity": pl.String, "label_at": pl.Datetime("us", "UTC"), **number})
        numbers = (pl.col(name).cast(pl.Float64, strict=False).alias(name) for name in ("label", "prediction"))
        return rows.select("entity", "label_at", *numbers).filter(pl.col("prediction").is_not_null())

    def draw_labels(
        self, predictions: pl.DataFrame, known: Sequence[pl.DataFrame], draws: int, seed: int
    ) -> Iterator[pl.DataFrame] | str:
        """The prediction and an error of a row in the same bin of `known`, which is itself resampled for each draw."""
        past = [each.select("label", "prediction") for each in known if each.height]
        rows = pl.concat(past).sort("prediction") if past else pl.DataFrame()
        if rows.height < ENOUGH:
            return f"errors of {rows.height} earlier predictions are known; an estimate needs {ENOUGH}"
        errors = (rows["label"] - rows["prediction"]).to_numpy()
        return _with_errors(predictions, rows["prediction"].to_numpy(), errors, draws, seed)

    def comparable(self, rows: pl.DataFrame, features: pl.DataFrame | None, context: Context) -> pl.DataFrame:
        """`prediction`."""
        if "prediction" not in rows.columns:
            return pl.DataFrame()
        return rows.select(pl.col("prediction").cast(pl.Float64, strict=False))

    def comparable_labels(self, labels: pl.Series) -> pl.DataFrame:
        return pl.DataFrame({"label": labels.cast(pl.Float64, strict=False)})


PREDICTIONS = Quantities()


def labelled(predictions: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of labelled rows."""
    if predictions["label"].null_count():
        predictions = predictions.filter(pl.col("label").is_not_null())
    return predictions["label"].to_numpy(), predictions["prediction"].to_numpy()


def _with_errors(
    predictions: pl.DataFrame, earlier: np.ndarray, errors: np.ndarray, draws: int, seed: int
) -> Iterator[pl.DataFrame]:
    """`earlier`: ascending predictions, and the error of each."""
    bins = max(1, min(BINS, len(earlier) // ENOUGH))
    starts = np.linspace(0, len(earlier), bins + 1).astype(int)
    sizes = np.diff(starts)
    edges = earlier[starts[1:-1]]
    random, bin_of = np.random.default_rng(seed), np.repeat(np.arange(bins), sizes)
    for (part,) in bootstrap.draw([predictions], draws, seed):
        anew = errors[starts[bin_of] + (random.random(len(errors)) * sizes[bin_of]).astype(int)]
        place = np.searchsorted(edges, part["prediction"].to_numpy(), side="right")
        drawn = anew[starts[place] + (random.random(part.height) * sizes[place]).astype(int)]
        yield part.with_columns(label=pl.col("prediction") + drawn)
