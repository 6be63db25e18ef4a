"""A search over a function of the configuration, for the tests of this room."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from evergreen.tasks.config.params import Range, Tune
from evergreen.tasks.problems.base import Config, Metric
from evergreen.tasks.search.space import Space, clamp_config
from evergreen.tasks.search.specification import Search
from evergreen.tasks.search.trials import Cost, FinishedTrial, Outcome

SPACE = {"none": {}, "line": {"slope": Range(low=0.0, high=4.0)}, "curve": {"n": Range(low=1, high=9, integer=True)}}


DEFAULTS: dict[str, Config] = {
    "none": {"model": "none"},
    "line": {"model": "line", "slope": 2.0, "fixed": "kept"},
    "curve": {"model": "curve", "n": 5},
}


AUC = Metric("auc")


STAGED = {"none": "baseline", "line": "linear", "curve": "boosting"}


def error(config: Config) -> list[float]:
    """Two folds; best at slope 3.1."""
    if config["model"] == "line":
        distance = abs(config["slope"] - 3.1)
        return [distance, distance + 0.2]
    return [9.0, 9.0] if config["model"] == "none" else [5.0 + config["n"], 6.0]


def judging(evaluate: Callable[[Config], list[float]]) -> Callable[[Config, Any], Outcome]:
    def judge(config: Config, best_scores: Any = None) -> Outcome:
        try:
            return Outcome(evaluate(config))
        except Exception as error:  # noqa: BLE001
            return Outcome((), f"{type(error).__name__}: {error}")

    return judge


def searching(evaluate: Callable[[Config], list[float]] = error, space: Space | None = None, **settings: Any) -> Search:
    settings = {"method": "tpe", "n_trials": 12, "batch_size": 1, "choose": "best", **settings}
    metric = Metric("error", greater_is_better=False)
    space = space or SPACE
    defaults = {model: clamp_config(DEFAULTS[model], space[model]) for model in space}
    return Search("pay", space, defaults, Tune.model_validate(settings), metric, 7, judging(evaluate))


def configs(trials: list[FinishedTrial], state: str = "complete") -> list[Config]:
    return [each.config for each in trials if each.state == state]


def finished(number: int, model: str, score: float, state: str = "complete") -> FinishedTrial:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    return FinishedTrial(number, state, {"model": model}, score, 0.0, "", now, now + timedelta(seconds=1))


def folded(number: int, model: str, *folds: float, latency_ms: float = 1.0) -> FinishedTrial:
    cost = Cost(latency_ms=latency_ms, model_mb=1.0, fit_seconds=1.0, cpu_seconds=2.0)
    return replace(finished(number, model, sum(folds) / len(folds)), folds=folds, cost=cost)
