"""The smallest whole kind: one number predicts another. For tests of the steps that must work for any kind."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge

from evergreen.tasks.config.params import Params, Range, Tabular
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems import splits as split
from evergreen.tasks.problems.base import Config, Fold, Metric, Splits

FIRST = date(2024, 1, 7)
HORIZON = 7


class Plain:
    """`mean` learns nothing; `ridge` can be spoiled by a large alpha; `steep` is ridge under another name."""

    name = "regression"
    metrics = (Metric("rmse", greater_is_better=False), Metric("r2"), Metric("size", greater_is_better=False))
    baseline = "mean"

    def __init__(self) -> None:
        self.fitted: list[tuple[tuple[date, ...], dict[str, Any]]] = []
        self.predicted: list[date] = []

    def headline(self, section: Any) -> Metric:
        return self.metrics[0]

    def build(self, tables: Any, times: Any, section: Any, as_of: date) -> dict[str, pl.DataFrame]:
        raise AssertionError("features are written by `project` below")

    def load(self, folder: Path, section: Any) -> pl.DataFrame:
        return pl.read_parquet(folder / "rows.parquet")

    def cutoffs(self, data: pl.DataFrame) -> list[date]:
        return data["cutoff"].unique().sort().to_list()

    def splits(self, data: pl.DataFrame, section: Any) -> Splits:
        return split.by_cutoff(self.cutoffs(data), section.features.horizon_days, section)

    def begins(self, data: pl.DataFrame, part: date) -> date:
        return part

    def space(self, section: Any) -> dict[str, dict[str, Range]]:
        alpha = Range(low=1e-3, high=1e5, log=True)
        return {"mean": {}, "ridge": {"alpha": alpha, "intercept": Range(values=(True, False))}, "steep": {"alpha": alpha}}

    def defaults(self, model: str, section: Any) -> Config:
        return {"model": model} if model == "mean" else {"model": model, "alpha": 1000.0, "intercept": True}

    def fit(self, data: pl.DataFrame, cutoffs: Sequence[date], config: Config, section: Any, seed: int) -> Any:
        self.fitted.append((tuple(cutoffs), dict(config)))
        rows = data.filter(pl.col("cutoff").is_in(list(cutoffs)))
        model = (
            DummyRegressor() if config["model"] == "mean" else Ridge(alpha=config["alpha"], fit_intercept=config["intercept"])
        )
        return model.fit(rows.select("x").to_numpy(), rows["y"].to_numpy())

    def predict(self, model: Any, data: pl.DataFrame, cutoff: date, section: Any) -> pl.DataFrame:
        self.predicted.append(cutoff)
        rows = data.filter(pl.col("cutoff") == cutoff)
        said = model.predict(rows.select("x").to_numpy())
        return pl.DataFrame({"entity": rows["entity"], "prediction": said, "label": rows["y"]})

    def score(self, predictions: pl.DataFrame, section: Any) -> dict[str, float]:
        label, said = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
        spread = label.var()
        error = float(np.mean((label - said) ** 2)) if len(label) else np.nan
        return {"rmse": error**0.5, "r2": 1 - error / float(spread) if spread else np.nan}

    def score_model(self, model: Any, data: Any, fold: Fold, config: Config, section: Any, seed: int) -> dict[str, float]:
        return {"size": float(np.abs(getattr(model, "coef_", np.zeros(1))).sum())}

    def plots(self, predictions: pl.DataFrame, baseline: pl.DataFrame, model: Any, data: Any, section: Any) -> Any:
        return {"predicted": predictions.select("label", "prediction")}

    def rows(self, data: pl.DataFrame, cutoffs: Sequence[date]) -> int:
        return data.filter(pl.col("cutoff").is_in(list(cutoffs))).height

    def importance(self, model: Any) -> dict[str, float]:
        return {"x": abs(float(model.coef_[0]))} if hasattr(model, "coef_") else {}

    def slices(self, data: pl.DataFrame, cutoff: date, names: Sequence[str], section: Any) -> pl.DataFrame:
        for name in names:
            if name not in ("x", "town"):
                raise ParamsError(f"evaluate.slices: {name}: unknown feature{nearest(name, ('x', 'town'))}")
        return data.filter(pl.col("cutoff") == cutoff).select(pl.col("entity").alias("_entity"), *names)

    def example(self, data: pl.DataFrame, section: Any) -> Any:
        return data.select("x").head(3).to_pandas()


def rows(entities: int = 60, cutoffs: int = 8, slope: float = 3.0, seed: int = 0) -> pl.DataFrame:
    """One row per entity and weekly cutoff: y = slope * x + noise of standard deviation 1; town a or b."""
    draw = np.random.default_rng(seed)
    size = entities * cutoffs
    x = draw.normal(size=size)
    return pl.DataFrame(
        {
            "entity": np.tile(np.arange(entities), cutoffs),
            "cutoff": [FIRST + timedelta(days=HORIZON * place) for place in range(cutoffs) for _ in range(entities)],
            "x": x,
            "town": np.tile(np.where(np.arange(entities) % 3 == 0, "a", "b"), cutoffs),
            "y": slope * x + draw.normal(size=size),
        }
    )


def project(folder: Path, frame: pl.DataFrame | None = None, **section: dict[str, Any]) -> tuple[Params, Layout]:
    """A project in `folder` with one problem, `pay`, whose features are `frame`. `section`: parts that are not the defaults."""
    layout = Layout(folder)
    layout.features("pay").mkdir(parents=True, exist_ok=True)
    (rows() if frame is None else frame).write_parquet(layout.features("pay") / "rows.parquet")
    return params(**section), layout


def params(**section: dict[str, Any]) -> Params:
    """Small numbers: two test windows, two folds, eight trials."""
    base = Params.model_validate({"project": {"name": "t", "seed": 3}, "ingest": {}, "problems": {"pay": "regression"}})
    parts: dict[str, Any] = {
        "question": "How much?",
        "features": {"entity": "entity", "horizon_days": HORIZON, "cutoffs": {"first": str(FIRST), "every_days": HORIZON}},
        "tune": {"method": "tpe", "n_trials": 8, "folds": 2},
        "evaluate": {"windows": 2, "resamples": 60},
        "gate": {"resamples": 200},
    }
    for name, values in section.items():
        parts[name] = {**parts.get(name, {}), **values}
    return base.model_copy(update={"sections": {"pay": Tabular.model_validate(parts)}})
