"""Which trial wins: the best score within the limits of cost, or the simplest model within one standard error of it."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evergreen.tasks.config.params import Tune
from evergreen.tasks.problems.base import Metric
from evergreen.tasks.search import ensemble
from evergreen.tasks.search.ensemble import BLEND
from evergreen.tasks.search.ladder import Rung, choose_rung, explain_rung
from evergreen.tasks.search.specification import Search
from evergreen.tasks.search.staged import STAGES, best_of
from evergreen.tasks.search.time_budget import MAX_REFIT_SHARE
from evergreen.tasks.search.trials import Cost, FinishedTrial, paired_gain

log = logging.getLogger(__name__)

TIE_TOLERANCE = 1e-9
"""Scores this close are equal, and the simpler model wins."""
LARGEST_GROWTH = 4
"""A model of all rows is worth more than a costlier one of a part, up to a table so much larger than the searched sample."""
MOST_GIVEN_UP = 0.01
"""Largest part of the best score that simplicity may cost: with few folds one standard error can be much more."""
MOST_GIVEN_UP_OF_BLEND = 0.001
"""The same where a blend is best: it varies less than its members, so its gain is more often real."""


def select_trial(search: Search, trials: Sequence[FinishedTrial], ladder: Sequence[Rung] = ()) -> FinishedTrial:
    """The winner under the rules of tune: `choose` among the trials within the limits of cost.

    With a `ladder` and tune.choose = simplest: its simplest rung within one standard error of the best.
    Where no trial keeps to the limits: the baseline, or else `choose` among all complete trials.
    """
    complete = [each for each in trials if each.state == "complete"]
    kept = [each for each in complete if within_limits(each.cost, search.tune)]
    kept = [each for each in kept if _refit_fits_budget(each.cost, search)] or kept
    allowed = {each.number: True for each in kept}
    if search.tune.choose == "simplest" and (rung := choose_rung(ladder, allowed)):
        return next(each for each in kept if each.number == rung.trial)
    if not kept:
        log.warning("%s: tune: no model keeps to tune.max_latency_ms, max_model_mb and max_train_seconds", search.name)
        kept = [each for each in complete if each.model == search.baseline] or complete
    return choose(kept, list(search.space), search.metric, search.stages if search.tune.choose == "simplest" else None)


def choose(
    trials: Sequence[FinishedTrial], models: Sequence[str], metric: Metric, stages: Mapping[str, str] | None = None
) -> FinishedTrial:
    """The best complete trial; within TIE_TOLERANCE the one whose model comes first in `models`, then the earlier one.

    With `stages` (model -> stage): the best of the simplest stage within one standard error of it and, but for the baseline,
    within MOST_GIVEN_UP, or MOST_GIVEN_UP_OF_BLEND. The standard error is that of the mean of the paired differences over the
    folds.
    """
    complete = [each for each in trials if each.state == "complete"]
    top = complete[0]
    for each in complete:
        top = each if metric.gain(each.score, top.score) > 0 else top
    equal = [each for each in complete if abs(each.score - top.score) <= TIE_TOLERANCE]
    best = min(equal, key=lambda each: (_rank(each, models), each.number))
    for stage in STAGES if stages else ():
        rival = best_of([each for each in complete if (stages or {}).get(each.model) == stage], metric)
        if rival and len(rival.folds) == len(best.folds) > 1:
            gain, error = paired_gain(best.folds, rival.folds, metric)
            share = MOST_GIVEN_UP_OF_BLEND if best.model == BLEND else MOST_GIVEN_UP
            most = math.inf if stage == "baseline" else share * abs(best.score)
            if gain <= min(error, most):
                return rival
    return best


def _rank(each: FinishedTrial, models: Sequence[str]) -> int:
    return list(models).index(each.model) if each.model in models else len(models)


def within_limits(cost: Cost, tune: Tune) -> bool:
    """Whether a model keeps to max_latency_ms, max_model_mb and max_train_seconds. A cost that was not measured does."""
    limits = (
        (cost.latency_ms, tune.max_latency_ms),
        (cost.model_mb, tune.max_model_mb),
        (cost.fit_seconds, tune.max_train_seconds),
    )
    return not any(limit is not None and value > limit for value, limit in limits)


def ensemble_allowed(members: Sequence[FinishedTrial], search: Search) -> bool:
    """Whether these trials together keep to the limits of cost and to the time budget."""
    distinct = {each.number: each for each in members}.values()
    cost = ensemble.cost(list(distinct), 0, 0)
    return within_limits(cost, search.tune) and _refit_fits_budget(cost, search)


def _refit_fits_budget(cost: Cost, search: Search) -> bool:
    """With a time budget: whether there is time to refit on LARGEST_GROWTH times the rows of a fold, or on all rows."""
    if (estimate := search.estimate) is None:
        return True
    rows = min(estimate.training_rows, LARGEST_GROWTH * cost.fit_rows)
    return estimate.refit(cost, rows) <= MAX_REFIT_SHARE * estimate.seconds


def explain_choice(search: Search, trials: Sequence[FinishedTrial], best: FinishedTrial, ladder: Sequence[Rung] = ()) -> str:
    """Why `best` was selected, in one line."""
    rung = next((each for each in ladder if each.trial == best.number), None)
    if rung and search.tune.choose == "simplest" and rung.behind <= rung.error:
        return explain_rung(ladder, rung, search.metric, search.baseline)
    top = best_of(trials, search.metric)
    if top is None or top.number == best.number or abs(top.score - best.score) <= TIE_TOLERANCE:
        return "the best score"
    if not within_limits(top.cost, search.tune):
        return f"the best within the limits of cost; {top.model} reached {format(top.score, search.metric.format)}"
    if not _refit_fits_budget(top.cost, search):
        return f"the best that there is time to refit; {top.model} reached {format(top.score, search.metric.format)}"
    gain, error = paired_gain(top.folds, best.folds, search.metric)
    return f"the simplest within one standard error of the best: {top.model} is ahead by {gain:.3g}, standard error {error:.3g}"


def search_gain(search: Search, trials: Sequence[FinishedTrial], best: FinishedTrial) -> dict[str, Any] | None:
    """What the search gained over the best of the defaults, and what it cost. None where no default is complete.

    gain: in the unit of the metric, positive is better. cpu_seconds: of all trials but the defaults.
    """
    defaults = [each for each in trials if each.config == search.defaults.get(each.model)]
    first = best_of(defaults, search.metric)
    if first is None:
        return None
    spent = sum(each.cost.cpu_seconds for each in trials if each not in defaults and not math.isnan(each.cost.cpu_seconds))
    return {
        "over": f"defaults of {first.model}",
        "default": first.score,
        "gain": search.metric.gain(best.score, first.score),
        "cpu_seconds": round(spent, 3),
    }


def best_per_model(trials: Sequence[FinishedTrial], models: Sequence[str], metric: Metric) -> dict[str, float]:
    """Model -> its best score; models without a complete trial are left out."""
    complete = [each for each in trials if each.state == "complete"]
    groups = {model: [each for each in complete if each.model == model] for model in (*models, BLEND)}
    return {model: choose(group, models, metric).score for model, group in groups.items() if group}


def pareto_front(trials: Sequence[FinishedTrial], metric: Metric) -> set[int]:
    """Numbers of the trials that no other trial beats in both score and latency."""
    known = [each for each in trials if each.state == "complete" and not math.isnan(each.cost.latency_ms)]
    known.sort(key=lambda each: (each.cost.latency_ms, -metric.gain(each.score, 0.0)))
    kept, top = set(), -math.inf
    for each in known:
        if metric.gain(each.score, 0.0) > top:
            kept.add(each.number)
            top = metric.gain(each.score, 0.0)
    return kept
