"""The one home of optuna: run the trials of a search in batches, with a journal from which an interrupted search resumes.

A strategy names the trials of the next batch, given all trials before it: a plan (defaults, warm starts, grid points) and then
the sampler's suggestions, or the stages of search.staged. Workers run the batch, and the study records the outcomes.

The sampler of each trial is seeded with the seed plus the position of the trial. So a trial depends on the trials before its
batch and on nothing else, such as the number of workers, and a resumed search ends as an uninterrupted one would. On resume,
the trials that were running are marked as failed and their configurations are tried again; after MAX_CRASHES such failures a
configuration is skipped. The journal is removed once the results are written, so only an unfinished search leaves one.
"""

import itertools
import json
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from evergreen.tasks.config.params import Range
from evergreen.tasks.core.errors import StepError
from evergreen.tasks.problems.base import Config
from evergreen.tasks.search import ensemble
from evergreen.tasks.search.ensemble import BLEND
from evergreen.tasks.search.out_of_fold import OutOfFoldPredictions
from evergreen.tasks.search.selection import ensemble_allowed
from evergreen.tasks.search.space import Space, bounds, grid, has_choice
from evergreen.tasks.search.specification import Search
from evergreen.tasks.search.staged import Request, StagedSearch, best_of
from evergreen.tasks.search.summary import cost_as_json
from evergreen.tasks.search.time_budget import BLEND_SHARE, Clock
from evergreen.tasks.search.trials import Cost, FinishedTrial, Outcome
from evergreen.tasks.search.workers import OUT_OF_TIME, Workers, available_workers

log = logging.getLogger(__name__)

MAX_CRASHES = 3
"""A configuration whose process was killed this often is skipped."""
STARTUP_TRIALS = 6
"""tpe: trials that are planned or random before the sampler models the space."""
NO_POSITION = -1
"""Position of a trial whose process was killed before it had one."""


class Strategy(Protocol):
    def next_batch(self, trials: Sequence[FinishedTrial]) -> list[Request]:
        """What to try after `trials`; empty at the end."""
        ...


@dataclass(frozen=True)
class PlanThenSample:
    """A plan, then the suggestions of the sampler."""

    search: Search
    plan: Sequence[Config]

    def next_batch(self, trials: Sequence[FinishedTrial]) -> list[Request]:
        search, done = self.search, len(trials)
        if _out_of_time(search, trials):
            return []
        limit = math.inf if search.clock.seconds is not None else search.tune.n_trials
        size = int(min(search.tune.batch_size or 1, limit - done))
        planned: list[Request] = [*self.plan[done : done + size]]
        return [*planned, *[None] * (size - len(planned))] if _samples(search) else planned


def run_search(search: Search, journal: Path, workers: Workers | None = None) -> list[FinishedTrial]:
    """Run the trials of `search` that `journal` does not hold yet; returns all finished trials in order, crashed ones included.

    Journals of the same problem with another fingerprint are removed.
    Raises StepError where every trial failed.
    """
    _remove_outdated(search, journal)
    workers = workers or available_workers(search.tune.batch_size or 1, search.tune.workers, search.clock)
    with _silence_optuna(), closing(workers):
        study = _open_study(search, journal)
        strategy, predictions = _strategy(search, workers.count), OutOfFoldPredictions(journal.with_suffix(""))
        while batch := _ask_batch(study, search, strategy):
            _run_batch(study, search, workers, predictions, batch)
    trials = [_finished(trial) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if not any(each.state == "complete" for each in trials):
        first = f"{trials[0].config.get('model')}: {trials[0].reason}"
        raise StepError(
            f"{search.name}: tune: all {len(trials)} trials failed; the first was {first}. "
            "Fix that, or restrict tune.models and tune.space."
        )
    return trials


def _remove_outdated(search: Search, journal: Path) -> None:
    """Remove the journals of the same search with another fingerprint, and their predictions."""
    for old in journal.parent.glob(f"{search.name}-*.log"):
        if old != journal and len(old.stem) == len(journal.stem):
            old.unlink()
            OutOfFoldPredictions(old.with_suffix("")).clear()


def _strategy(search: Search, workers: int) -> Strategy:
    if search.tune.method != "staged":
        return PlanThenSample(search, _plan(search))
    return StagedSearch(
        defaults=search.defaults,
        stages=search.stages,
        searchable=[model for model in search.space if has_choice(search.space, model)],
        metric=search.metric,
        n_trials=search.tune.n_trials,
        batch=search.tune.batch_size or 1,
        clock=search.clock,
        expected_seconds=search.expected_seconds,
        workers=workers,
        warm_starts=search.warm_starts,
    )


def _plan(search: Search) -> list[Config]:
    """The configurations before the sampler's: defaults, warm starts, then for a grid all its points, simple models first."""
    plan = [*search.defaults.values(), *search.warm_starts]
    limit = search.tune.n_trials
    if len(plan) > limit:
        left = ", ".join(list(search.space)[limit:])
        log.warning("%s: tune: n_trials %d leaves out the defaults of %s", search.name, limit, left)
    if search.tune.method != "grid":
        return plan
    given = search.space, search.defaults, search.tune.grid_points
    left = len(plan) + sum(1 for _ in grid(*given)) - limit
    if left > 0:
        log.warning("%s: tune: n_trials %d leaves out %d of the grid's points", search.name, limit, left)
    return [*plan, *itertools.islice(grid(*given), max(0, limit - len(plan)))]


def _samples(search: Search) -> bool:
    """Whether the sampler has anything to suggest once the plan is done."""
    return search.tune.method != "grid" and any(has_choice(search.space, model) for model in search.space)


def _out_of_time(search: Search, trials: Sequence[FinishedTrial]) -> bool:
    """Whether no further trial may start; the first two always may."""
    if search.clock.left() <= 0 and trials:
        return True
    limit = search.tune.timeout_seconds
    if limit is None or len(trials) < 2:
        return False
    spent = sum(each.seconds or 0 for each in trials)
    if spent >= limit:
        log.warning("%s: tune: timeout after %d trials (%.0f s of %.0f s)", search.name, len(trials), spent, limit)
    return spent >= limit


# --- the study and its journal ---------------------------------------------------------------------------------------------


@contextmanager
def _silence_optuna() -> Iterator[None]:
    """Keep optuna from logging each trial (we do) and from warning that grouped search is experimental (it is pinned)."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


class _NoLock(JournalFileOpenLock):
    """The stage already holds the lock of its problem; optuna's own would block for 30 seconds after a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _open_study(search: Search, journal: Path) -> optuna.Study:
    """The study in `journal`, new or resumed: half a last line is cut off, running trials are marked as failed."""
    if journal.exists():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal), lock_obj=_NoLock(str(journal)))),
        study_name=search.name,
        direction="maximize" if search.metric.greater_is_better else "minimize",
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    if finished := len(_by_position(study)):
        log.info("%s: tune: resumes after %d finished trials", search.name, finished)
    return study


def _by_position(study: optuna.Study) -> dict[int, FinishedTrial]:
    """Position -> the trial that finished there, well or not. A crashed trial counts after MAX_CRASHES at its position."""
    found: dict[int, FinishedTrial] = {}
    crashes: dict[int, int] = {}
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        each = _finished(trial)
        if _crashed(trial):
            crashes[each.position] = crashes.get(each.position, 0) + 1
        if not _crashed(trial) or (each.position != NO_POSITION and crashes[each.position] >= MAX_CRASHES):
            found[each.position] = each
    return found


def _crashed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def _crashed_configs(study: optuna.Study) -> dict[int, Config]:
    """Position -> configuration of the trials that crashed."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and _crashed(trial)]
    return {
        trial.user_attrs["position"]: json.loads(trial.user_attrs["config"]) for trial in trials if "config" in trial.user_attrs
    }


def _newest_batch(study: optuna.Study) -> tuple[int, int]:
    """First position of the newest batch, and its number of trials."""
    batches = [trial.user_attrs["batch"] for trial in study.get_trials(deepcopy=False) if "batch" in trial.user_attrs]
    return tuple(max(batches)) if batches else (0, 0)


def _finished(trial: FrozenTrial) -> FinishedTrial:
    folds, cost = trial.user_attrs.get("folds", []), trial.user_attrs.get("cost", {})
    started, ended = trial.datetime_start, trial.datetime_complete
    assert started is not None
    assert ended is not None
    crashed = _crashed(trial)
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    complete = trial.state == TrialState.COMPLETE
    return FinishedTrial(
        number=trial.number,
        state="killed" if crashed else states.get(trial.state, "failed"),
        config=json.loads(trial.user_attrs.get("config", "{}")),
        score=statistics.fmean(folds) if complete else math.nan,
        std=statistics.pstdev(folds) if complete else math.nan,
        reason="the process was killed" if crashed else trial.user_attrs.get("reason", ""),
        started=started.astimezone(UTC),
        ended=None if crashed else ended.astimezone(UTC),
        folds=tuple(folds),
        cost=Cost(**{name: math.nan if value is None else value for name, value in cost.items()}),
        position=trial.user_attrs.get("position", NO_POSITION),
    )


# --- asking: the next batch ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskedTrial:
    """A trial that is to be run."""

    trial: Trial
    config: Config
    position: int


def _ask_batch(study: optuna.Study, search: Search, strategy: Strategy) -> list[AskedTrial]:
    """The trials of the next batch, or those that are missing in an interrupted one."""
    finished = _by_position(study)
    start, size = _newest_batch(study)
    unfinished = [position for position in range(start, start + size) if position not in finished]
    start = start if unfinished else start + size
    before = [finished[position] for position in range(start)]
    requests: dict[int, Request] = dict(enumerate(strategy.next_batch(before), start))
    requests |= {position: config for position, config in _crashed_configs(study).items() if position in unfinished}
    left = [position for position in requests if position not in finished and (not unfinished or position in unfinished)]
    size = size if unfinished else len(requests)
    return [_ask(study, search, requests[position], position, (start, size)) for position in sorted(left)]


def _ask(study: optuna.Study, search: Search, request: Request, position: int, batch: tuple[int, int]) -> AskedTrial:
    """A new trial. A planned model without hyper-parameters has no point in the study's space, and neither has a blend."""
    study.sampler = _sampler(search, position)
    fixed = isinstance(request, Mapping) and (request["model"] == BLEND or not has_choice(search.space, request["model"]))
    blend = request == BLEND
    if request is not None and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        point = {} if fixed or blend else {"model": request} if isinstance(request, str) else _point(request, search.space)
        study.enqueue_trial(point)
    trial = study.ask()
    config = {"model": BLEND} if blend else request if fixed and isinstance(request, Mapping) else _suggest(trial, search)
    trial.set_user_attr("position", position)
    trial.set_user_attr("batch", batch)
    trial.set_user_attr("config", json.dumps(config))
    return AskedTrial(trial, config, position)


def _sampler(search: Search, position: int) -> optuna.samplers.BaseSampler:
    seed = search.seed + position
    if search.tune.method in ("tpe", "staged"):
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=False, n_startup_trials=STARTUP_TRIALS
        )
    return optuna.samplers.RandomSampler(seed=seed)


def _suggest(trial: Trial, search: Search) -> Config:
    """A configuration within the space; the dimensions of each model are named model.hyper-parameter."""
    models = [each for each in search.space if has_choice(search.space, each)]
    chosen = trial.suggest_categorical("model", models)
    ranges = search.space[chosen]
    drawn = {name: _suggest_value(trial, f"{chosen}.{name}", each) for name, each in ranges.items()}
    return {**search.defaults[chosen], **drawn}


def _suggest_value(trial: Trial, name: str, each: Range) -> Any:
    if each.values is not None:
        return trial.suggest_categorical(name, each.values)
    low, high = bounds(each)
    if each.integer:
        return trial.suggest_int(name, int(low), int(high), log=each.log)
    return trial.suggest_float(name, low, high, log=each.log)


def _point(config: Config, space: Space) -> dict[str, Any]:
    """The point of `config` in the dimensions of the study."""
    model = config["model"]
    if not has_choice(space, model):
        return {}
    return {"model": model, **{f"{model}.{name}": config[name] for name in space[model]}}


# --- running: a batch and its outcomes -------------------------------------------------------------------------------------


def _run_batch(
    study: optuna.Study, search: Search, workers: Workers, predictions: OutOfFoldPredictions, batch: Sequence[AskedTrial]
) -> None:
    """Run the trials of one batch, and tell the study their outcomes."""
    before = [each for _, each in sorted(_by_position(study).items())]
    if batch[0].config["model"] == BLEND:
        config, outcome = _blend(search, before, predictions)
        batch[0].trial.set_user_attr("config", json.dumps(config))
        _tell(study, search, replace(batch[0], config=config), outcome)
        return
    top = best_of(before, search.metric)
    best_scores = list(top.folds) if search.tune.prune and top and len(top.folds) > 1 else None
    known = {each.position: _known_outcome(before, each.config) for each in batch}
    if not before:  # the first trial runs whatever the time, so that there is a model in the end
        known[0] = search.evaluate(batch[0].config, None)
    outcomes = workers.run(search.evaluate, [each.config for each in batch if known[each.position] is None], best_scores)
    for each in batch:
        outcome = known[each.position] or next(outcomes)
        if search.units is not None and outcome.predictions is not None:
            predictions.save(each.trial.number, [search.units(frame) for frame in outcome.predictions])
        elif search.stages and outcome.predictions is not None:
            predictions.save(each.trial.number, outcome.predictions)
        _tell(study, search, each, outcome)
    _reserve_refit_time(study, search)
    if search.stages:
        predictions.keep_only(ensemble.candidates(list(_by_position(study).values()), search.metric, search.baseline))


def _known_outcome(trials: Sequence[FinishedTrial], config: Config) -> Outcome | None:
    """The outcome of the same configuration, where it was tried before."""
    found = next((each for each in trials if each.state == "complete" and each.config == config), None)
    return Outcome(found.folds, cost=found.cost) if found else None


def _reserve_refit_time(study: optuna.Study, search: Search) -> None:
    """With a time budget: end the search in time to refit and evaluate the best model so far."""
    top = best_of(list(_by_position(study).values()), search.metric)
    if search.estimate and top and top.model != search.baseline:
        search.clock.seconds = search.estimate.search(top.cost)


def _blend(search: Search, trials: Sequence[FinishedTrial], predictions: OutOfFoldPredictions) -> tuple[Config, Outcome]:
    """The ensemble of the best trials, scored on their out-of-fold predictions."""
    began, cpu, score = time.monotonic(), time.process_time(), search.score
    members, frames = [], []
    for each in ensemble.candidates(trials, search.metric, search.baseline):
        if (found := predictions.load(each.number)) is not None and len(found) == len(each.folds):
            members.append(each)
            frames.append(found)
    if len(members) < 2 or score is None:
        return {"model": BLEND}, Outcome((), "fewer than two models to blend")
    clock = search.clock
    if clock.seconds is not None and search.estimate:
        clock = Clock(max(clock.seconds, clock.spent() + BLEND_SHARE * search.estimate.seconds), clock.began)
    given = members, frames, score, search.metric, lambda few: ensemble_allowed(few, search), clock
    counts = ensemble.select(*given)
    if sum(count > 0 for count in counts) < 2:
        return {"model": BLEND}, Outcome((), "no blend is better than the best model alone")
    chosen = [(member, frame, count) for member, frame, count in zip(members, frames, counts, strict=True) if count]
    weights = [count for _, _, count in chosen]
    folds = zip(*(frame for _, frame, _ in chosen), strict=True)
    own = [score(ensemble.weighted_mean(list(fold), weights)) for fold in folds]
    scores = [fair if math.isfinite(fair) else known for fair, known in zip(ensemble.held_out_scores(*given), own, strict=True)]
    cost = ensemble.cost([member for member, _, _ in chosen], time.monotonic() - began, time.process_time() - cpu)
    return ensemble.config(members, counts), Outcome(scores, cost=cost)


def _tell(study: optuna.Study, search: Search, asked: AskedTrial, outcome: Outcome) -> None:
    """Tell the study the outcome of a trial, and log it."""
    trial, metric, model = asked.trial, search.metric, asked.config["model"]
    total = "" if search.clock.seconds is not None else f" of {search.tune.n_trials}"
    head = f"{search.name}: trial {asked.position + 1}{total}: {model}"
    trial.set_user_attr("cost", cost_as_json(outcome.cost))
    reason = outcome.reason
    if reason is None and not all(math.isfinite(score) for score in outcome.scores):
        reason = f"ValueError: {metric.name} is undefined on a fold: {', '.join(f'{score:g}' for score in outcome.scores)}"
    if reason is not None:
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        level = logging.INFO if model == BLEND or reason == OUT_OF_TIME else logging.WARNING
        log.log(level, "%s failed: %s", head, reason)
        return
    scores = [float(score) for score in outcome.scores]
    trial.set_user_attr("folds", scores)
    mean = statistics.fmean(scores)
    if outcome.pruned:
        trial.report(mean, len(scores))
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, mean)
    best, pruned = study.best_value, ", pruned" if outcome.pruned else ""
    time_left = "" if search.clock.seconds is None else f", {max(search.clock.left(), 0):.0f} s left"
    line = f"{metric.name} {format(mean, metric.format)}{pruned} (best {format(best, metric.format)}{time_left})"
    log.info("%s %s", head, line)
