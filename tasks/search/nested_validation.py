"""Nested cross-validation: by how much the score of a search is too good, because the search chose by it."""

import logging
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evergreen.tasks.core.errors import ParamsError, StepError
from evergreen.tasks.search.optuna_study import run_search
from evergreen.tasks.search.out_of_fold import OutOfFoldPredictions
from evergreen.tasks.search.selection import select_trial
from evergreen.tasks.search.specification import Search
from evergreen.tasks.search.trials import Evaluator, FinishedTrial
from evergreen.tasks.search.workers import Workers

log = logging.getLogger(__name__)


def inner_searches(search: Search, evaluator: Evaluator, folds: int) -> dict[int, Search]:
    """Outer fold -> the same search without the rows of that fold, each with its share of the time.

    Raises ParamsError for fewer than two folds.
    """
    found: dict[int, Search] = {}
    for outer in range(min(folds, len(evaluator.folds()))):
        inner = replace(search.evaluate, outer_fold=outer) if isinstance(search.evaluate, Evaluator) else evaluator
        if inner.folds():
            found[outer] = replace(search, name=f"{search.name}.fold{outer + 1}", evaluate=inner)
    if not found:
        raise ParamsError(f"params.yaml: {search.name}.tune.nested: needs tune.folds of 2 or more")
    return {outer: share_time(each, len(found), place) for place, (outer, each) in enumerate(found.items(), 1)}


def share_time(search: Search, inner: int, place: int) -> Search:
    """`search` with its share of the time budget, among itself (place 0) and `inner` inner searches (from place 1)."""
    if not inner or search.clock.seconds is None:
        return search
    return replace(search, clock=search.clock.part(place, inner + 1), estimate=None)


def run_inner_search(search: Search, journal: Path, workers: Workers) -> FinishedTrial:
    """Run an inner search, which has its own journal beside `journal`; the winner."""
    own = journal.with_name(f"{search.name}-{journal.stem.rpartition('-')[2]}.log")
    log.info("%s: tune: inner search, without the rows of this fold", search.name)
    trials = run_search(search, own, Workers(workers.count, search.clock, workers.address))
    own.unlink()
    OutOfFoldPredictions(own.with_suffix("")).clear()
    return select_trial(search, trials)


def estimate_optimism(
    search: Search, evaluator: Evaluator, best: FinishedTrial, winners: Mapping[int, FinishedTrial]
) -> dict[str, Any]:
    """The score of each inner winner on its outer fold, beside the score of `best`. `winners`: outer fold -> inner winner.

    optimism: score of the search minus nested score, in the metric's unit; above 0 the score of the search is too good.
    Where time was too short to score `best` on all folds, those are compared that it has.
    Raises StepError where a winner cannot be fitted.
    """
    winners = {outer: each for outer, each in winners.items() if outer < len(best.folds)}
    outcomes = {
        outer: replace(evaluator, only_fold=outer, keep_predictions=False)(each.config) for outer, each in winners.items()
    }
    failed = [each.reason for each in outcomes.values() if each.reason]
    if failed:
        raise StepError(f"{search.name}: tune: nested: {failed[0]}")
    scores = [each.scores[0] for each in outcomes.values()]
    tuned = statistics.fmean(best.folds[outer] for outer in winners)
    return {
        "score": statistics.fmean(scores),
        "std": statistics.pstdev(scores),
        "tuned": tuned,
        "optimism": search.metric.gain(tuned, statistics.fmean(scores)),
        "folds": scores,
        "models": [each.model for each in winners.values()],
    }
