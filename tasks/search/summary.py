"""Reports of a search: best.json and trials.parquet."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from evergreen.tasks.search.ladder import Rung
from evergreen.tasks.search.selection import best_per_model, explain_choice, pareto_front, search_gain, within_limits
from evergreen.tasks.search.specification import Search
from evergreen.tasks.search.trials import Cost, FinishedTrial

COSTS = ("cpu_seconds", "peak_mb", "fit_seconds", "latency_ms", "model_mb")


def summarise(
    search: Search,
    trials: Sequence[FinishedTrial],
    best: FinishedTrial,
    nested: dict[str, Any] | None = None,
    ladder: Sequence[Rung] = (),
) -> dict[str, Any]:
    """The content of best.json. `nested`: the result of nested cross-validation."""
    summary = {
        "model": best.config["model"],
        "config": best.config,
        "metric": search.metric.name,
        "score": best.score,
        "std": best.std,
        "method": search.tune.method,
        "trials": len(trials),
        "seconds": round(sum(each.seconds or 0 for each in trials), 3),
        "models": best_per_model(trials, list(search.space), search.metric),
        "chosen": {"trial": best.number, "why": explain_choice(search, trials, best, ladder)},
        "search_gain": search_gain(search, trials, best),
        "cost": cost_as_json(best.cost),
    }
    if ladder:
        summary["ladder"] = [each.as_json() for each in ladder]
    if nested:
        summary["nested"] = nested
    if search.estimate:
        summary["budget"] = {"seconds": search.estimate.seconds, "evaluation": round(search.estimate.evaluation(best.cost), 3)}
    return summary


def cost_as_json(cost: Cost) -> dict[str, float | None]:
    """`cost`; null for values that were not measured."""
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in asdict(cost).items()}


def trials_table(search: Search, trials: Sequence[FinishedTrial], best: FinishedTrial) -> pl.DataFrame:
    """One row per trial; times in UTC, config as JSON text, score and std null unless the trial is complete.

    seconds: wall time. The costs are those of trials.Cost, null where not measured. stage: of a staged search. default: whether
    it is the default configuration of its model. front: on the Pareto front of score and latency. chosen: the winner. allowed:
    within the limits of cost.
    """
    efficient = pareto_front(trials, search.metric)
    rows = [
        {
            **{
                name: getattr(each, name)
                for name in ("number", "state", "score", "std", "started", "ended", "seconds", "reason")
            },
            "model": each.config.get("model"),
            "config": json.dumps(each.config),
            "folds": list(each.folds),
            "stage": search.stages.get(each.model),
            "default": each.config == search.defaults.get(each.model),
            "chosen": each.number == best.number,
            "front": each.number in efficient,
            "allowed": within_limits(each.cost, search.tune),
            **{name: getattr(each.cost, name) for name in COSTS},
        }
        for each in trials
    ]
    order = ["number", "state", "model", "score", "std", "config", "reason", "started", "ended", "seconds"]
    more = ["folds", "stage", "default", "chosen", "front", "allowed", *COSTS]
    types = {
        **dict.fromkeys(("model", "stage"), pl.String),
        **dict.fromkeys(("score", "std", "seconds", *COSTS), pl.Float64),
        "folds": pl.List(pl.Float64),
    }
    return pl.DataFrame(rows, schema_overrides=types).select(*order, *more).with_columns(pl.col(pl.Float64).fill_nan(None))
