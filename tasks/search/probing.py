"""With a time budget: fit the defaults of each model on a few rows, and plan the rows and time of the search by their cost."""

import bisect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from evergreen.tasks.config.params import Problem
from evergreen.tasks.problems.base import Config
from evergreen.tasks.search.specification import Search
from evergreen.tasks.search.staged import OPENING
from evergreen.tasks.search.time_budget import SLACK, Clock, Estimate
from evergreen.tasks.search.trials import Cost, Evaluator, FinishedTrial, Outcome

log = logging.getLogger(__name__)

PROBE_ROWS = 2_000
"""Rows of a probe."""
SECOND_PROBE_ROWS = 8_000
"""Rows of a second probe of boosting, on tables with twice as many: its time grows more slowly than the rows."""
LEAST_GROWTH = 0.3
"""Smallest exponent of that growth that is believed; the largest is 1."""
MAX_PROBING_SHARE = 0.12
"""Share of the budget after which no further model is probed."""
MIN_PROBES = 3
"""Models that are probed in any case."""
UNPLANNED_SEARCH_SHARE = 0.6
"""Share of the budget that the search gets where the time of the later steps cannot be estimated."""
TRIALS, TRIALS_SHARE = 10, 0.8
"""A linear model and boosting together should be fitted TRIALS times within TRIALS_SHARE of the search; large tables are
sampled for it. What a search tries first takes about as long."""

FEWEST_ROWS = 10_000
"""A search uses so many rows, or all, however short the time."""
FEW_FOLDS = 2
"""Folds of a search on a part of the rows: a model of more rows is chosen better than one of fewer rows by more folds."""
ONE_FOLD_ROWS = 25_000
"""From so many rows on a single fold is enough: its validation rows tell models apart."""
CHEAP = 0.02
"""Share of the search that the defaults of a model may take for its warm starts to come first."""
MANY_TRIALS = 40
"""With time for fewer trials than this, a cross-validation is not repeated: other models gain more than a steadier score."""


def fit_to_budget(search: Search, evaluator: Evaluator, section: Problem, workers: int, features: Path) -> Search:
    """`search` with as many rows of a plain table, and as much time, as the time budget allows."""
    clock = search.clock
    started = clock.spent()
    evaluator.folds()
    loaded, total = clock.spent(), clock.seconds or 0.0
    if section.features.by_cutoff:
        return replace(search, clock=Clock(total * UNPLANNED_SEARCH_SHARE, clock.began))
    estimate = replace(_estimate_later_steps(evaluator, section, features, total, started, loaded), workers=workers)
    probes = _probe_defaults(search, evaluator, loaded + MAX_PROBING_SHARE * total)
    linear, boosting = (_costs(search, probes, *names) for names in (("baseline", "linear"), ("boosting",)))
    search_seconds = estimate.search([Cost(0.0, fit_seconds=0.0, fit_rows=1.0), *linear, *boosting][-1])
    available = int(min(estimate.training_rows, search.tune.max_rows))
    probed = min(PROBE_ROWS, available)
    power = growth(search, evaluator, available) if boosting else 1.0
    seconds_left = max(search_seconds - clock.spent(), 0.1) * workers

    def fold_seconds(rows: int) -> float:
        """To fit and score one fold of so many rows by a linear model and by boosting."""
        return _wall(linear) * rows / probed + _wall(boosting) * (rows / probed) ** power

    folds = affordable_folds(len(evaluator.folds()), section.tune.folds, fold_seconds(available) / 2, seconds_left)
    rows = affordable_rows(seconds_left, lambda rows: folds * fold_seconds(rows), available)
    rows, folds = more_rows_of_fewer_folds(rows, folds, available)
    log.info(
        "%s: tune: %.0f s of %.0f s to search, on %s of %s rows",
        *(search.name, search_seconds, total, f"{rows:,}", f"{estimate.training_rows:,.0f}"),
    )
    opening = SLACK * fold_seconds(rows)
    folds = folds if folds * opening <= seconds_left else 1
    search_seconds = max(search_seconds, clock.spent() + opening / workers)
    powers = {model: power if search.stages.get(model) == "boosting" else 1.0 for model in probes}
    expected = {model: folds * each.cost.wall_seconds * (rows / probed) ** powers[model] for model, each in probes.items()}
    largest_first = pairs_and_largest_trees_first(search.warm_starts) if rows >= ONE_FOLD_ROWS else search.warm_starts
    return replace(
        search,
        evaluate=replace(evaluator, sample_rows=rows, most_folds=folds),
        clock=Clock(search_seconds, clock.began),
        expected_seconds=expected,
        warm_starts=cheap_first(largest_first, expected, CHEAP * search_seconds),
        estimate=estimate,
        probes=probes,
    )


def _probe_defaults(search: Search, evaluator: Evaluator, deadline: float) -> dict[str, Outcome]:
    """Model -> outcome of its defaults on one fold of PROBE_ROWS rows, simple models first.

    No probe starts after `deadline` (seconds on the clock of the search), except the baseline, a linear model and boosting:
    whatever the time, the choice is never between simple models alone.
    """
    small = replace(evaluator, sample_rows=PROBE_ROWS, most_folds=1, keep_predictions=False)
    order = [model for stage in OPENING for model in search.defaults if search.stages.get(model, "boosting") == stage]
    probes: dict[str, Outcome] = {}
    for place, model in enumerate(order or search.defaults):
        if search.clock.spent() <= deadline or place < MIN_PROBES:
            probes[model] = small(search.defaults[model])
    return {model: probes[model] for model in search.defaults if model in probes}


def _costs(search: Search, probes: Mapping[str, Outcome], *stages: str) -> list[Cost]:
    """The costs of the probes of these stages that could be fitted, simple models first; a search that knows no stages has
    boosting alone."""
    costs = [each.cost for model, each in probes.items() if search.stages.get(model, "boosting") in stages]
    return [each for each in costs if not math.isnan(each.fit_seconds)]


def _wall(costs: Sequence[Cost]) -> float:
    return sum(each.wall_seconds for each in costs)


def growth(search: Search, evaluator: Evaluator, available: int) -> float:
    """The exponent by which the time of boosting grows with the rows, from a second probe; 1 for tables of few rows.

    The first is repeated, since its time holds that of loading the library.
    """
    model = next((each for each in search.defaults if search.stages.get(each) == "boosting"), None)
    if model is None or available < 2 * SECOND_PROBE_ROWS:
        return 1.0
    few, many = (
        replace(evaluator, sample_rows=rows, most_folds=1, keep_predictions=False)(search.defaults[model]).cost
        for rows in (PROBE_ROWS, SECOND_PROBE_ROWS)
    )
    ratio = many.wall_seconds / few.wall_seconds if few.wall_seconds else math.nan
    found = math.log(ratio) / math.log(SECOND_PROBE_ROWS / PROBE_ROWS) if ratio > 0 else 1.0
    return min(max(found, LEAST_GROWTH), 1.0)


def pairs_and_largest_trees_first(warm_starts: Sequence[Config]) -> list[Config]:
    """Warm starts of a large table, for which there may not be time for all: those with pairs of columns, then those with the
    most leaves, which such a table gains from."""
    return sorted(warm_starts, key=lambda config: (not config.get("column_pairs"), -config.get("num_leaves", 0)))


def cheap_first(warm_starts: Sequence[Config], expected: Mapping[str, float], seconds: float) -> list[Config]:
    """`warm_starts`, those of models whose defaults are expected to take at most `seconds` before the others."""
    return sorted(warm_starts, key=lambda config: expected.get(config["model"], math.inf) > seconds)


def affordable_folds(count: int, folds: int, fold_seconds: float, seconds: float) -> int:
    """`count`, or `folds` of one cross-validation where its repetitions leave time for fewer than MANY_TRIALS trials.

    `fold_seconds`: to fit and score one fold of all rows, the mean of the models.
    """
    return count if MANY_TRIALS * count * fold_seconds <= seconds else min(count, folds)


def affordable_rows(seconds: float, fold_seconds: Callable[[int], float], available: int) -> int:
    """The most rows, between FEWEST_ROWS and `available`, for which TRIALS times `fold_seconds` of them are within TRIALS_SHARE
    of `seconds`."""
    rows = bisect.bisect_right(range(available + 1), TRIALS_SHARE * seconds, key=lambda rows: TRIALS * fold_seconds(rows)) - 1
    return min(max(rows, FEWEST_ROWS), available)


def more_rows_of_fewer_folds(rows: int, folds: int, available: int) -> tuple[int, int]:
    """Rows and folds that take about as long: as many rows as FEW_FOLDS folds allow, then as many folds; a single fold of
    ONE_FOLD_ROWS rows or more."""
    if rows >= available or folds <= FEW_FOLDS - (rows * folds >= ONE_FOLD_ROWS):
        return rows, folds
    if rows * folds >= ONE_FOLD_ROWS:
        return min(rows * folds, available), max(rows * folds // available, 1)
    fewer = min(max(rows * folds // available, FEW_FOLDS), folds)
    return min(rows * folds // fewer, available), fewer


def _estimate_later_steps(
    evaluator: Evaluator, section: Problem, features: Path, total: float, started: float, loaded: float
) -> Estimate:
    """The time of the steps after the search, for a plain table. They read all rows, the search perhaps a sample."""

    def count(folder: Path) -> tuple[int, int]:
        return pl.scan_parquet(folder / "rows.parquet").select(pl.len(), pl.col("_test").sum().alias("test")).collect().row(0)

    (rows, test), (read, _) = count(features), count(evaluator.folder)
    loading = started + (loaded - started) * rows / read
    return Estimate(total, loading, rows - test, rows if section.train.refit else 0.0, test)


def probes_as_trials(search: Search, trials: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """The probes as trials of one fold, where there was no time for a trial of any model but the baseline; else empty."""
    if any(each.state == "complete" and each.model != search.baseline for each in trials):
        return []
    last, number = trials[-1], max(each.number for each in trials)
    good = {model: each for model, each in search.probes.items() if each.scores and model != search.baseline}
    return [
        FinishedTrial(
            number=number + place,
            state="complete",
            config=search.defaults[model],
            score=each.scores[0],
            std=0.0,
            reason="no time for more than one fold",
            started=last.started,
            ended=last.ended,
            folds=tuple(each.scores),
            cost=each.cost,
            position=last.position + place,
        )
        for place, (model, each) in enumerate(good.items(), 1)
    ]
