"""Validation curves: the score by the value of one hyper-parameter, all others as chosen."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from evergreen.tasks.config.params import Range
from evergreen.tasks.diagnosis.examination import Examination
from evergreen.tasks.diagnosis.learning_curve import score_points
from evergreen.tasks.problems.base import Config, Metric

CURVES, POINTS = 2, 4
"""Hyper-parameters with a curve; values of each besides the chosen one."""
MIN_TRIALS = 8
"""Fewest trials of a model that can rank its hyper-parameters."""


def validation_curves(
    examination: Examination, config: Config, trials: pl.DataFrame | None, metric: Metric
) -> dict[str, pl.DataFrame]:
    """Table name -> value, series, score, low, high, parameter, chosen, log, metric, rows: one row per point and series.

    For the CURVES hyper-parameters that matter most, by `trials`; for those of the first member of a blend.
    """
    config = config["members"][0] if config.get("members") else config
    space = examination.kind.space(examination.section).get(config["model"], {})
    ranges = {name: each for name, each in space.items() if name in config}
    names = _by_importance(config, ranges, trials)[:CURVES]
    shortened = examination.shortened(2 * POINTS + 1, "validation curves") if names else None
    chosen = shortened.evaluate(config) if shortened else None
    if shortened is None or chosen is None:
        return {}
    tables = {}
    for place, name in enumerate(names):
        points = [{"value": config[name], **point} for point in score_points(chosen, metric)]
        for value in _other_values(ranges[name], config[name]):
            fit = shortened.evaluate({**config, name: value}, "validation curves")
            points += [{"value": value, **point} for point in score_points(fit, metric)] if fit else []
        if len(points) > 2:
            table = pl.DataFrame([{**each, "value": str(each["value"])} for each in points])
            numeric = not isinstance(config[name], str | bool) and config[name] is not None
            if numeric:
                table = table.with_columns(pl.col("value").cast(pl.Float64, strict=False)).drop_nulls("value").sort("value")
            about = {"parameter": name, "chosen": str(config[name]), "log": ranges[name].log, "metric": metric.name}
            tables[f"validation_curve_{place + 1}"] = table.with_columns(
                **{key: pl.lit(each) for key, each in about.items()}, rows=pl.lit(shortened.rows)
            )
    return tables


def _by_importance(config: Config, ranges: Mapping[str, Range], trials: pl.DataFrame | None) -> list[str]:
    """The hyper-parameters of `ranges`, by how well each alone orders the model's trials; for few trials, numbers first."""
    varied = [name for name, each in ranges.items() if len(_other_values(each, config[name]))]
    varied.sort(key=lambda name: ranges[name].values is not None)
    if trials is None:
        return varied
    done = trials.filter((pl.col("model") == config["model"]) & pl.col("score").is_not_null())
    if done.height < MIN_TRIALS:
        return varied
    configs = [json.loads(text) for text in done["config"]]
    ranks = done["score"].rank().to_numpy()
    return sorted(varied, key=lambda name: -_explained_share([each.get(name) for each in configs], ranks))


def _explained_share(values: Sequence[Any], ranks: np.ndarray) -> float:
    """Share of the variance of `ranks` that `values` explain: by rank correlation for numbers, else by group means."""
    if len({str(each) for each in values}) < 2:
        return 0.0
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
        return float(np.corrcoef(pd.Series(values).rank().to_numpy(), ranks)[0, 1] ** 2)
    means = pd.Series(ranks).groupby(pd.Series([str(each) for each in values])).transform("mean")
    return float(means.var() / ranks.var()) if ranks.var() else 0.0


def _other_values(each: Range, chosen: Any) -> list[Any]:
    """POINTS values over a range, without the chosen one and those within 2 per cent of it."""
    if each.values is not None:
        return [value for value in each.values if value != chosen][:POINTS]
    assert each.low is not None
    assert each.high is not None
    steps = [step / (POINTS - 1) for step in range(POINTS)]
    points = [each.low * (each.high / each.low) ** s if each.log else each.low + (each.high - each.low) * s for s in steps]
    points = list(dict.fromkeys(round(point) if each.integer else point for point in points))
    return [point for point in points if isinstance(chosen, int | float) and not math.isclose(point, chosen, rel_tol=0.02)]
