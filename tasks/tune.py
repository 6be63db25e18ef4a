"""The one home of optuna: which model, with which hyper-parameters, on rows that no test window touches.

A search goes in batches: a strategy says what to try next, given all that ended before the batch (a plan of defaults and grid
points, then what the sampler suggests; or the stages of search.staged); the crew runs the batch, and the study is told. The
sampler of every trial is seeded with the seed plus the trial's position, so a trial depends on what ended before its batch and
on nothing else, such as how many processes there are: a search that was killed goes on from its journal as if nothing had
happened. The trials that were running when the kill came are marked as failed and their points are asked for once more; after
three kills a point is given up. The journal is removed once the results are written: only a search that did not finish leaves
one.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC
from pathlib import Path
from typing import Any, Protocol

import optuna
import polars as pl
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem, Range, Section, Table, Tune, nearest
from evergreen.tasks.core.errors import ParamsError, StepError
from evergreen.tasks.core.paths import HELD_OUT, Layout, locking, writing
from evergreen.tasks.problems.base import Config, Finishing, Kind, Metric
from evergreen.tasks.search import ensemble, time_budget
from evergreen.tasks.search import workers as crew
from evergreen.tasks.search.ensemble import BLEND, Said
from evergreen.tasks.search.staged import ORDER, Request, Stages, best_of
from evergreen.tasks.search.time_budget import REFIT, Clock, Estimate
from evergreen.tasks.search.trials import Cost, Judge, Outcome, Tried, standard_error
from evergreen.tasks.search.workers import Crew

log = logging.getLogger(__name__)

Space = dict[str, dict[str, Range]]
"""Model -> hyper-parameter -> range."""
LIMITS = {"n_trials", "timeout_seconds", "budget_seconds", "workers", "choose", "max_latency_ms", "max_model_mb", "nested"}
"""Settings of tune that change no trial."""
CODE = ("tune.py", "search", "problems")
"""Module and rooms of tasks that trials depend on."""
PROBE_ROWS = 2_000
"""With a budget, each model first learns from so many rows."""
PROBING = 0.12
"""Share of the budget after which no further model is probed."""
PROCESSES_PAY = 12.0
"""With a smaller budget (seconds) the trials run in this process: to start others takes too long."""
OTHERS = 0.6
"""Share of the budget that the search has where the steps after it cannot be foreseen."""
AT_ONCE, TRIALS = 0.8, 5
"""All models together should learn TRIALS times within that share of the search; large tables are looked at in part for it."""
KILLS = 3
"""A trial that was running in so many kills is given up."""
STARTUP = 6
"""tpe: so many trials are random or planned before the model of the space takes over."""
STARTS = 3
"""So many configurations of a search begin the next one."""
SCALARS = (bool, int, float, str, type(None))
NOWHERE = -1
"""Position of a trial that was killed before it had one."""
TIE = 1e-9
"""Scores this close are equal, and the simpler model wins."""


class Result(Section):
    best: str
    """Path of best.json."""
    trials: str
    """Path of trials.parquet."""
    model: str
    metric: str
    score: float
    std: float
    """Standard deviation of the score over the folds."""
    n_trials: int
    failed: int
    seconds: float
    """Time that the trials took, those before a kill included."""


@dataclass(frozen=True)
class Search:
    """Everything a search depends on. `evaluate`: configuration, and the scores to beat -> how the trial ended."""

    name: str
    space: Space
    defaults: dict[str, Config]
    tune: Tune
    """With nothing left null that has to do with the way of the search; see `settled`."""
    metric: Metric
    seed: int
    evaluate: Callable[[Config, Sequence[float] | None], Outcome]
    stages: Mapping[str, str] = field(default_factory=dict)
    """Model -> its stage, for staged; with BLEND where the kind can blend."""
    score: Callable[[pl.DataFrame], float] | None = None
    """Score of blended predictions."""
    clock: Clock = field(default_factory=lambda: Clock(None))
    """The time of the search alone."""
    expected: Mapping[str, float] = field(default_factory=dict)
    """Model -> seconds that a trial of its defaults will take."""
    estimate: Estimate | None = None
    """With a budget: what the steps after the search will need."""
    starts: Sequence[Config] = ()
    """Configurations that follow the defaults."""
    probes: Mapping[str, Outcome] = field(default_factory=dict)
    """Model -> how its defaults did on one fold of a few rows."""

    @property
    def baseline(self) -> str:
        return next(iter(self.space))


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Search for the best configuration of `problem`; writes best.json and trials.parquet.

    Raises ParamsError for an unknown model, hyper-parameter or metric; DataError for too few cutoffs; BusyError where another
    process tunes the same problem; StepError where every trial failed.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section, kind = params.section(problem), problems.kind(params.kind(problem))
    metric = problems.metric(kind, section.tune.metric, f"{problem}.tune.metric")
    space, tune = narrow(kind, section, problem), settled(section)
    clock = time_budget.clock(params, problem, layout, "tune")
    with locking(layout.var / "tuning" / f"{problem}.lock", f"{problem}: tune"):
        key = fingerprint(params, problem, layout)
        journal = layout.var / "tuning" / f"{problem}-{key}.log"
        plain = isinstance(section.features, Table)
        staged = tune.method == "staged"
        judge = Judge(
            kind=params.kind(problem),
            folder=_looked_at(layout.features(problem), section, tune, params.project.seed, journal),
            section=section,
            metric=metric,
            seed=params.project.seed,
            key=key,
            rows=tune.max_rows if plain else None,
            keep=staged,
        )
        search = Search(
            name=problem,
            space=space,
            defaults={model: _within(kind.defaults(model, section), space[model]) for model in space},
            tune=tune,
            metric=metric,
            seed=params.project.seed,
            evaluate=judge,
            stages=_stages(kind, section) if staged else {},
            score=lambda frame: float(kind.score(frame, section)[metric.name]),
            clock=clock,
        )
        search = replace(search, starts=_starts(search))
        workers = crew.here(tune.batch or 1, tune.workers, clock)
        if clock.seconds is not None:
            if clock.seconds >= PROCESSES_PAY:
                workers.start(judge)
            else:
                workers.workers = 1
            search = _afford(search, judge, section, workers.workers, layout.features(problem))
            workers.clock = search.clock
        searches = _inner(search, judge, section) if tune.nested else {}
        tried = find(_in_turn(search, len(searches), 0), journal, workers)
        tried += _probed(search, tried)
        found = {outer: _alone(each, journal, workers) for outer, each in searches.items()}
        nested = _optimism(search, judge, pick(search, tried), found) if found else None
        said = Said(journal.with_suffix(""))
        finishes = isinstance(kind, Finishing) and kind.finishes(section)
        held_out = _held_out(search, tried, said) if finishes else None
        result = _write(layout.tuning(problem), search, tried, nested, held_out)
        journal.unlink()
        said.clear()
    return result


def _afford(search: Search, judge: Judge, section: Problem, workers: int, features: Path) -> Search:
    """`search` as the budget allows it: how many rows of a plain table it looks at, and how long.

    The defaults of each model learn once from a few rows, simple models first, and what that takes says what more will take.
    """
    clock, tune = search.clock, search.tune
    started = clock.spent()
    judge.folds()
    loading, total = clock.spent(), clock.seconds or 0.0
    if not isinstance(section.features, Table):
        return replace(search, clock=Clock(total * OTHERS, clock.began))
    estimate = _estimate(judge, section, features, total, started, loading)
    costs: dict[str, Cost] = {}
    probes: dict[str, Outcome] = {}
    small = replace(judge, fewer=PROBE_ROWS, only=0, keep=False)
    for model, config in search.defaults.items():
        if clock.spent() - loading <= PROBING * total or not costs:
            probes[model] = small(config)
            costs[model] = probes[model].cost
    known = [each for each in costs.values() if not math.isnan(each.fit_seconds)] or [Cost(0.0, fit_seconds=0.0, fit_rows=1.0)]
    search_seconds = estimate.search(known[-1])
    folds, looked = len(judge.folds()), min(estimate.learning_rows, tune.max_rows)
    per_row = sum(each.wall_seconds for each in known) * folds / min(PROBE_ROWS, looked)
    most = AT_ONCE * max(search_seconds - clock.spent(), 0.1) * workers / (TRIALS * per_row) if per_row else looked
    rows = int(min(max(most, PROBE_ROWS), looked))
    log.info(
        "%s: tune: %.0f s of %.0f s to search, on %s of %s rows",
        *(search.name, search_seconds, total, f"{rows:,}", f"{estimate.learning_rows:,.0f}"),
    )
    times = folds * rows / min(PROBE_ROWS, looked)
    return replace(
        search,
        evaluate=replace(judge, fewer=rows),
        clock=Clock(search_seconds, clock.began),
        expected={model: each.wall_seconds * times for model, each in costs.items()},
        estimate=estimate,
        probes=probes,
    )


def _probed(search: Search, tried: Sequence[Tried]) -> list[Tried]:
    """Where there was no time for any model but the baseline: what was seen of the others, as trials of one fold."""
    if any(each.state == "complete" and each.model != search.baseline for each in tried):
        return []
    last, number = tried[-1], max(each.number for each in tried)
    good = {model: each for model, each in search.probes.items() if each.scores and model != search.baseline}
    return [
        Tried(
            number=number + place,
            state="complete",
            config=search.defaults[model],
            score=each.scores[0],
            std=0.0,
            reason="there was no time for more than one fold",
            started=last.started,
            ended=last.ended,
            folds=tuple(each.scores),
            cost=each.cost,
            position=last.position + place,
        )
        for place, (model, each) in enumerate(good.items(), 1)
    ]


def _looked_at(features: Path, section: Problem, tune: Tune, seed: int, journal: Path) -> Path:
    """The folder that the search reads: of a large plain table a part, beside the journal."""
    if not isinstance(section.features, Table):
        return features
    from evergreen.tasks.problems.tabular.subsample import sample

    return sample(features, tune.max_rows, section.features.test_share, seed, journal.with_suffix("") / "rows")


def _estimate(judge: Judge, section: Problem, features: Path, total: float, started: float, loaded: float) -> Estimate:
    """What comes after the search, for a plain table. It reads all rows, the search perhaps a part of them."""

    def counted(folder: Path) -> tuple[int, int]:
        return pl.scan_parquet(folder / "rows.parquet").select(pl.len(), pl.col("_test").sum().alias("test")).collect().row(0)

    (rows, test), (read, _) = counted(features), counted(judge.folder)
    loading = started + (loaded - started) * rows / read
    return Estimate(total, loading, rows - test, rows if section.train.refit else 0.0, test)


def _inner(search: Search, judge: Judge, section: Problem) -> dict[int, Search]:
    """For nested cross-validation: fold -> a search that knows nothing of the rows which judge it."""
    found = {}
    for outer in range(section.tune.folds):
        inner = replace(search.evaluate, outer=outer) if isinstance(search.evaluate, Judge) else judge
        if inner.folds():
            found[outer] = replace(search, name=f"{search.name}.fold{outer + 1}", evaluate=inner)
    if not found:
        raise ParamsError(f"params.yaml: {search.name}.tune.nested: needs tune.folds of 2 or more")
    return {outer: _in_turn(each, len(found), place) for place, (outer, each) in enumerate(found.items(), 1)}


def _in_turn(search: Search, nested: int, place: int) -> Search:
    """`search` with its part of the time, where there are `nested` more; `place`: 0 is the first of all."""
    if not nested or search.clock.seconds is None:
        return search
    return replace(search, clock=search.clock.part(place, nested + 1), estimate=None)


def _alone(search: Search, journal: Path, workers: Crew) -> Tried:
    """The winner of an inner search, which has a journal of its own."""
    own = journal.with_name(f"{search.name}-{journal.stem.rpartition('-')[2]}.log")
    log.info("%s: the same search, without the rows that judge this fold", search.name)
    tried = find(search, own, Crew(workers.workers, search.clock, workers.address))
    own.unlink()
    Said(own.with_suffix("")).clear()
    return pick(search, tried)


def _starts(search: Search) -> list[Config]:
    """tune.start as configurations of the space: each once, none of them a default; unknown models and names are left out."""
    found: list[Config] = []
    for each in search.tune.start:
        model = each.get("model")
        if model not in search.space:
            log.info("%s: tune: start: %s is no model of this search", search.name, model)
            continue
        known = {name: each[name] for name in search.defaults[model] if name in each}
        config = _within({**search.defaults[model], **known}, search.space[model])
        if config not in (*search.defaults.values(), *found):
            found.append(config)
    return found


def starts(params: Params, problem: str, layout: Layout) -> list[dict[str, Any]]:
    """For tune.start: the STARTS best configurations of the last search of `problem`, in JSON's own types; no defaults, which
    every search tries, and no blends."""
    path = layout.tuning(problem) / "trials.parquet"
    if not path.exists():
        return []
    kind, section = problems.kind(params.kind(problem)), params.section(problem)
    metric = problems.metric(kind, section.tune.metric, f"{problem}.tune.metric")
    trials = pl.read_parquet(path).filter(pl.col("state") == "complete", ~pl.col("default"))
    best = trials.sort("score", descending=metric.greater_is_better, maintain_order=True)
    found: list[dict[str, Any]] = []
    for text in best["config"]:
        config = json.loads(text)
        if config["model"] != BLEND and config not in found:
            found.append(config)
    return found[:STARTS]


def _optimism(search: Search, judge: Judge, best: Tried, found: Mapping[int, Tried]) -> dict[str, Any]:
    """Nested cross-validation: what the winner of each inner search scores on the rows it was not chosen by.

    optimism: by how much the score of the search flatters, in the metric's unit; above 0 it promises too much.
    """
    alone = {outer: replace(judge, only=outer, keep=False)(each.config) for outer, each in found.items()}
    failed = [each.reason for each in alone.values() if each.reason]
    if failed:
        raise StepError(f"{search.name}: tune: nested: {failed[0]}")
    scores = [each.scores[0] for each in alone.values()]
    tuned = statistics.fmean(best.folds[outer] for outer in found)
    return {
        "score": statistics.fmean(scores),
        "std": statistics.pstdev(scores),
        "tuned": tuned,
        "optimism": search.metric.gain(tuned, statistics.fmean(scores)),
        "folds": scores,
        "models": [each.model for each in found.values()],
    }


def settled(section: Problem) -> Tune:
    """tune, with a value for each null that stands for one."""
    tune, plain = section.tune, isinstance(section.features, Table)
    method = tune.method or ("staged" if plain else "tpe")
    null = {
        "method": method,
        "choose": "simplest" if method == "staged" else "best",
        "batch": 4 if plain else 1,
        "prune": plain,
    }
    return tune.model_copy(update={name: value for name, value in null.items() if getattr(tune, name) is None})


def _stages(kind: Kind, section: Problem) -> dict[str, str]:
    """Model -> stage; without a kind's own word the baseline comes first and the others count as boosting."""
    if hasattr(kind, "stages"):
        return dict(kind.stages(section))  # pyright: ignore[reportAttributeAccessIssue]
    return {model: "baseline" if model == kind.baseline else "boosting" for model in kind.space(section)}


def narrow(kind: Kind, section: Problem, problem: str) -> Space:
    """The space of `kind`, with the models of tune.models only and the ranges of tune.space in place of its own.

    Raises ParamsError for a model or a hyper-parameter that the kind does not have, and for a range that cannot be searched.
    """
    own, tune, key = kind.space(section), section.tune, f"params.yaml: {problem}.tune"
    for where, model in [*(("models", model) for model in tune.models or ()), *(("space", model) for model in tune.space)]:
        if model not in own:
            raise ParamsError(f"{key}.{where}: {model}: unknown model{nearest(model, own)}")
    chosen = {model: dict(own[model]) for model in own if tune.models is None or model in tune.models}
    for model, ranges in tune.space.items():
        if model in chosen:
            chosen[model] |= _override(ranges, {**kind.defaults(model, section), **own[model]}, f"{key}.space.{model}")
    return chosen


def _override(ranges: Mapping[str, Range], known: Mapping[str, Any], key: str) -> dict[str, Range]:
    """`ranges`, checked. `known`: hyper-parameter -> its own range, or its default; where that is whole, so is the range."""
    found = {}
    for name, each in ranges.items():
        if name not in known or name == "model":
            raise ParamsError(
                f"{key}.{name}: unknown hyper-parameter{nearest(name, [each for each in known if each != 'model'])}"
            )
        if each.values is not None and not (each.values and all(isinstance(value, SCALARS) for value in each.values)):
            raise ParamsError(f"{key}.{name}: values must be one or more numbers, texts, booleans or nulls")
        if each.low is not None and each.log and each.low <= 0:
            raise ParamsError(f"{key}.{name}: low {each.low:g} must be above 0 on a logarithmic scale")
        own = known[name]
        whole = own.integer if isinstance(own, Range) else type(own) is int
        found[name] = each.model_copy(update={"integer": each.integer or (whole and each.values is None)})
    return found


def fingerprint(params: Params, problem: str, layout: Layout) -> str:
    """A hash of all that trials depend on: features, sections of params.yaml, seed, code and locked versions.

    Not in it: what says how far or by whom, so that a killed search may go on with more or fewer trials or processes.
    """
    section = params.section(problem)
    settings = {
        "seed": params.project.seed,
        "tune": section.tune.model_dump(mode="json", exclude=LIMITS),
        "rest": section.model_dump(mode="json", include={"features", "pipeline", "train"}),
        "windows": section.evaluate.windows,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    here = Path(__file__).parent
    code = [path for name in CODE for path in ([here / name] if name.endswith(".py") else sorted((here / name).rglob("*.py")))]
    data = sorted(path for path in layout.features(problem).rglob("*") if path.is_file())
    for path in [*code, *data, *([layout.lock] if layout.lock.exists() else [])]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


class Strategy(Protocol):
    def next(self, tried: Sequence[Tried]) -> list[Request]:
        """What to try after `tried`, in a batch; empty at the end."""
        ...


@dataclass(frozen=True)
class Planned:
    """A plan, then what the sampler suggests."""

    search: Search
    plan: Sequence[Config]

    def next(self, tried: Sequence[Tried]) -> list[Request]:
        search, done = self.search, len(tried)
        if _out_of_time(search, tried):
            return []
        limit = math.inf if search.clock.seconds is not None else search.tune.n_trials
        count = int(min(search.tune.batch or 1, limit - done))
        whole: list[Request] = [*self.plan[done : done + count]]
        return [*whole, *[None] * (count - len(whole))] if _sampled(search) else whole


def find(search: Search, journal: Path, workers: Crew | None = None) -> list[Tried]:
    """Run the trials of `search` that `journal` does not hold yet; all that ended, in order, killed ones included.

    Journals of the same problem with another fingerprint are removed: what they were about has changed.
    Raises StepError where every trial failed.
    """
    for old in journal.parent.glob(f"{search.name}-*.log"):
        if old != journal and len(old.stem) == len(journal.stem):
            old.unlink()
            Said(old.with_suffix("")).clear()
    workers = workers or crew.here(search.tune.batch or 1, search.tune.workers, search.clock)
    with _quiet(), closing(workers):
        study = _open(search, journal)
        strategy, said = _strategy(search, workers.workers), Said(journal.with_suffix(""))
        while asked := _batch(study, search, strategy):
            _try(study, search, workers, said, asked)
    tried = [_tried(trial) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if not any(each.state == "complete" for each in tried):
        first = f"{tried[0].config.get('model')}: {tried[0].reason}"
        raise StepError(
            f"{search.name}: tune: none of {len(tried)} trials ended well; the first was {first}. "
            "Mend that, or restrict tune.models and tune.space to what works."
        )
    return tried


def _strategy(search: Search, workers: int) -> Strategy:
    if search.tune.method != "staged":
        return Planned(search, _plan(search))
    return Stages(
        defaults=search.defaults,
        stages=search.stages,
        searched=[model for model in search.space if _has_choice(search.space, model)],
        metric=search.metric,
        n_trials=search.tune.n_trials,
        batch=search.tune.batch or 1,
        clock=search.clock,
        expected=search.expected,
        workers=workers,
        starts=search.starts,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep optuna from logging each trial (we do) and from warning that grouped search is experimental (it is pinned)."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


class _Held(JournalFileOpenLock):
    """The whole search already holds the lock of its problem; optuna's own would outlive a kill by 30 seconds."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _open(search: Search, journal: Path) -> optuna.Study:
    """The study in `journal`, new or as a kill left it: half a last line is cut off, running trials are marked as failed."""
    if journal.exists():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal), lock_obj=_Held(str(journal)))),
        study_name=search.name,
        direction="maximize" if search.metric.greater_is_better else "minimize",
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    if ended := len(_by_position(study)):
        log.info("%s: tune: goes on after %d trials that ended before", search.name, ended)
    return study


def _by_position(study: optuna.Study) -> dict[int, Tried]:
    """Position -> the trial that ended there, well or not. A killed one counts once its point was killed KILLS times."""
    found: dict[int, Tried] = {}
    killed: dict[int, list[Tried]] = {}
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        each = _tried(trial)
        if not _was_killed(trial):
            found[each.position] = each
            continue
        killed.setdefault(each.position, []).append(each)
        if each.position != NOWHERE and len(killed[each.position]) >= KILLS:
            found[each.position] = each
    return found


def _was_killed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def _out_of_time(search: Search, tried: Sequence[Tried]) -> bool:
    """Whether no further trial may start; the first two always may."""
    if search.clock.left() <= 0 and tried:
        return True
    limit = search.tune.timeout_seconds
    if limit is None or len(tried) < 2:
        return False
    spent = sum(each.seconds or 0 for each in tried)
    if spent >= limit:
        log.warning("%s: tune: %.0f s of %.0f s are over after %d trials", search.name, spent, limit, len(tried))
    return spent >= limit


@dataclass(frozen=True)
class Asked:
    """A trial that is to be run."""

    trial: Trial
    config: Config
    position: int


def _batch(study: optuna.Study, search: Search, strategy: Strategy) -> list[Asked]:
    """The trials of the next batch, or those of the one that a kill left unfinished."""
    ended = _by_position(study)
    start, size = _newest(study)
    unfinished = [position for position in range(start, start + size) if position not in ended]
    start = start if unfinished else start + size
    requests: dict[int, Request] = dict(enumerate(strategy.next([ended[position] for position in range(start)]), start))
    requests |= {position: config for position, config in _killed(study).items() if position in unfinished}
    left = [position for position in requests if position not in ended and (not unfinished or position in unfinished)]
    size = size if unfinished else len(requests)
    return [_ask(study, search, requests[position], position, (start, size)) for position in sorted(left)]


def _newest(study: optuna.Study) -> tuple[int, int]:
    """Position at which the newest batch began, and how many trials it has."""
    batches = [trial.user_attrs["batch"] for trial in study.get_trials(deepcopy=False) if "batch" in trial.user_attrs]
    return tuple(max(batches)) if batches else (0, 0)


def _killed(study: optuna.Study) -> dict[int, Config]:
    """Position -> configuration of the trials that were killed."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and _was_killed(trial)]
    return {
        trial.user_attrs["position"]: json.loads(trial.user_attrs["config"]) for trial in trials if "config" in trial.user_attrs
    }


def _ask(study: optuna.Study, search: Search, request: Request, position: int, batch: tuple[int, int]) -> Asked:
    """A new trial. A planned model without anything to choose has no point in the study's space, and neither has a blend."""
    study.sampler = _sampler(search, position)
    fixed = isinstance(request, Mapping) and (request["model"] == BLEND or not _has_choice(search.space, request["model"]))
    blend = request == BLEND
    if request is not None and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        point = {} if fixed or blend else {"model": request} if isinstance(request, str) else _named(request, search.space)
        study.enqueue_trial(point)
    trial = study.ask()
    config = {"model": BLEND} if blend else request if fixed and isinstance(request, Mapping) else _suggest(trial, search)
    trial.set_user_attr("position", position)
    trial.set_user_attr("batch", batch)
    trial.set_user_attr("config", json.dumps(config))
    return Asked(trial, config, position)


def _try(study: optuna.Study, search: Search, workers: Crew, said: Said, asked: Sequence[Asked]) -> None:
    """Run the trials of one batch, and tell the study how each ended."""
    before = [each for _, each in sorted(_by_position(study).items())]
    if asked[0].config["model"] == BLEND:
        config, outcome = _blend(search, before, said)
        asked[0].trial.set_user_attr("config", json.dumps(config))
        _tell(study, search, replace(asked[0], config=config), outcome)
        return
    top = best_of(before, search.metric)
    bar = list(top.folds) if search.tune.prune and top and len(top.folds) > 1 else None
    known = {each.position: _known(before, each.config) for each in asked}
    if not before:  # whatever the time, one model is there in the end
        known[0] = search.evaluate(asked[0].config, None)
    coming = workers.run(search.evaluate, [each.config for each in asked if known[each.position] is None], bar)
    for each in asked:
        outcome = known[each.position] or next(coming)
        if search.stages and outcome.predictions is not None:
            said.keep(each.trial.number, outcome.predictions)
        _tell(study, search, each, outcome)
    _make_room(study, search)
    if search.stages:
        said.keep_only(ensemble.candidates(list(_by_position(study).values()), search.metric, search.baseline))


def _make_room(study: optuna.Study, search: Search) -> None:
    """With a budget: keep what the best model so far needs to learn once more and to be judged; the rest is for the search."""
    top = best_of(list(_by_position(study).values()), search.metric)
    if search.estimate and top and top.model != search.baseline:
        search.clock.seconds = search.estimate.search(top.cost)


def _known(tried: Sequence[Tried], config: Config) -> Outcome | None:
    """What came of the same configuration, if it was tried before."""
    found = next((each for each in tried if each.state == "complete" and each.config == config), None)
    return Outcome(found.folds, cost=found.cost) if found else None


def _blend(search: Search, tried: Sequence[Tried], said: Said) -> tuple[Config, Outcome]:
    """The ensemble of what was tried, judged on what its members said of rows they had not learned from."""
    began, cpu, score = time.monotonic(), time.process_time(), search.score
    members, frames = [], []
    for each in ensemble.candidates(tried, search.metric, search.baseline):
        if (found := said.of(each.number)) is not None and len(found) == len(each.folds):
            members.append(each)
            frames.append(found)
    if len(members) < 2 or score is None:
        return {"model": BLEND}, Outcome((), "fewer than two models to blend")
    counts = ensemble.select(members, frames, score, search.metric, lambda chosen: _allowed(chosen, search), search.clock)
    if sum(count > 0 for count in counts) < 2:
        return {"model": BLEND}, Outcome((), "no blend is better than the best model alone")
    chosen = [(member, frame, count) for member, frame, count in zip(members, frames, counts, strict=True) if count]
    weights = [count for _, _, count in chosen]
    scores = [score(ensemble.mixed(list(fold), weights)) for fold in zip(*(frame for _, frame, _ in chosen), strict=True)]
    cost = ensemble.cost([member for member, _, _ in chosen], time.monotonic() - began, time.process_time() - cpu)
    return ensemble.config(members, counts), Outcome(scores, cost=cost)


def _allowed(chosen: Sequence[Tried], search: Search) -> bool:
    """Whether these trials together keep to what a model may cost."""
    each = {one.number: one for one in chosen}.values()
    cost = ensemble.cost(list(each), 0, 0)
    return within_limits(cost, search.tune) and _affordable(cost, search)


def _affordable(cost: Cost, search: Search) -> bool:
    """With a budget: whether there is time to learn from twice the rows of a fold, or from all."""
    if (estimate := search.estimate) is None:
        return True
    return estimate.refit(cost, min(estimate.learning_rows, 2 * cost.fit_rows)) <= REFIT * estimate.seconds


def within_limits(cost: Cost, tune: Tune) -> bool:
    """Whether a model keeps to max_latency_ms, max_model_mb and max_train_seconds. What was not measured does."""
    limits = (
        (cost.latency_ms, tune.max_latency_ms),
        (cost.model_mb, tune.max_model_mb),
        (cost.fit_seconds, tune.max_train_seconds),
    )
    return not any(limit is not None and value > limit for value, limit in limits)


def _tell(study: optuna.Study, search: Search, asked: Asked, outcome: Outcome) -> None:
    """Tell the study how a trial ended, and the reader."""
    trial, metric, model = asked.trial, search.metric, asked.config["model"]
    total = "" if search.clock.seconds is not None else f" of {search.tune.n_trials}"
    head = f"{search.name}: trial {asked.position + 1}{total}: {model}"
    trial.set_user_attr("cost", {name: _known_number(value) for name, value in asdict(outcome.cost).items()})
    reason = outcome.reason
    if reason is None and not all(math.isfinite(score) for score in outcome.scores):
        reason = f"ValueError: {metric.name} is undefined on a fold: {', '.join(f'{score:g}' for score in outcome.scores)}"
    if reason is not None:
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        level = logging.INFO if model == BLEND or reason == crew.OUT_OF_TIME else logging.WARNING
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
    best, after = study.best_value, ", given up before all folds were judged" if outcome.pruned else ""
    time_left = "" if search.clock.seconds is None else f", {max(search.clock.left(), 0):.0f} s left"
    told = f"{metric.name} {format(mean, metric.format)}{after} (best {format(best, metric.format)}{time_left})"
    log.info("%s %s", head, told)


def _sampler(search: Search, done: int) -> optuna.samplers.BaseSampler:
    seed = search.seed + done
    if search.tune.method in ("tpe", "staged"):
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=False, n_startup_trials=STARTUP
        )
    return optuna.samplers.RandomSampler(seed=seed)


def _sampled(search: Search) -> bool:
    """Whether there is anything to suggest once the plan is done."""
    return search.tune.method != "grid" and any(_has_choice(search.space, model) for model in search.space)


def _has_choice(space: Space, model: str) -> bool:
    return any(len(_points(each, 2)) > 1 for each in space[model].values())


def _suggest(trial: Trial, search: Search) -> Config:
    """A configuration within the space; each model has dimensions of its own, named model.hyper-parameter."""
    models = [each for each in search.space if _has_choice(search.space, each)]
    chosen = trial.suggest_categorical("model", models)
    ranges = search.space[chosen]
    drawn = {name: _draw(trial, f"{chosen}.{name}", each) for name, each in ranges.items()}
    return {**search.defaults[chosen], **drawn}


def _draw(trial: Trial, name: str, each: Range) -> Any:
    if each.values is not None:
        return trial.suggest_categorical(name, each.values)
    low, high = _bounds(each)
    if each.integer:
        return trial.suggest_int(name, int(low), int(high), log=each.log)
    return trial.suggest_float(name, low, high, log=each.log)


def _bounds(each: Range) -> tuple[float, float]:
    assert each.low is not None
    assert each.high is not None
    return each.low, each.high


def _named(config: Config, space: Space) -> dict[str, Any]:
    """The point of `config` in the names of the study."""
    model = config["model"]
    if not _has_choice(space, model):
        return {}
    return {"model": model, **{f"{model}.{name}": config[name] for name in space[model]}}


def _within(config: Config, ranges: Mapping[str, Range]) -> Config:
    """`config` with every value moved into its range: a default may lie outside of what tune.space allows."""
    return {**config, **{name: _clamp(config.get(name), each) for name, each in ranges.items()}}


def _clamp(value: Any, each: Range) -> Any:
    if each.values is not None:
        return value if value in each.values else each.values[0]
    low, high = _bounds(each)
    value = min(max(low if value is None else value, low), high)
    return int(value) if each.integer else float(value)


def _plan(search: Search) -> list[Config]:
    """The points that are tried whatever the sampler thinks: the defaults, then for a grid all others, simple models first."""
    plan = [*search.defaults.values(), *search.starts]
    limit = search.tune.n_trials
    if len(plan) > limit:
        left = ", ".join(list(search.space)[limit:])
        log.warning("%s: tune: n_trials %d leaves out the defaults of %s", search.name, limit, left)
    if search.tune.method != "grid":
        return plan
    found = list(itertools.islice(_grid(search), max(0, limit - len(plan))))
    left = sum(1 for _ in _grid(search)) + len(plan) - limit
    if left > 0:
        log.warning("%s: tune: n_trials %d leaves out %d of the grid's points", search.name, limit, left)
    return plan + found


def _grid(search: Search) -> Iterator[Config]:
    """Every point of the full product of each model, the defaults left out."""
    for model, ranges in search.space.items():
        for values in itertools.product(*(_points(each, search.tune.grid_points) for each in ranges.values())):
            config = {**search.defaults[model], **dict(zip(ranges, values, strict=True))}
            if config != search.defaults[model]:
                yield config


def _points(each: Range, count: int) -> list[Any]:
    """The values of a range, or `count` points of an interval, both ends included, evenly spaced (on its own scale)."""
    if each.values is not None:
        return list(each.values)
    low, high = _bounds(each)
    steps = [step / (count - 1) for step in range(count)]
    points = [low * (high / low) ** step if each.log else low + (high - low) * step for step in steps]
    return list(dict.fromkeys(_clamp(round(point) if each.integer else point, each) for point in points))


def _tried(trial: FrozenTrial) -> Tried:
    folds, cost = trial.user_attrs.get("folds", []), trial.user_attrs.get("cost", {})
    started, ended = trial.datetime_start, trial.datetime_complete
    assert started is not None
    assert ended is not None
    killed = _was_killed(trial)
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    complete = trial.state == TrialState.COMPLETE
    return Tried(
        number=trial.number,
        state="killed" if killed else states.get(trial.state, "failed"),
        config=json.loads(trial.user_attrs.get("config", "{}")),
        score=statistics.fmean(folds) if complete else math.nan,
        std=statistics.pstdev(folds) if complete else math.nan,
        reason="the process was killed" if killed else trial.user_attrs.get("reason", ""),
        started=started.astimezone(UTC),
        ended=None if killed else ended.astimezone(UTC),
        folds=tuple(folds),
        cost=Cost(**{name: math.nan if value is None else value for name, value in cost.items()}),
        position=trial.user_attrs.get("position", NOWHERE),
    )


def choose(tried: Sequence[Tried], models: Sequence[str], metric: Metric, stages: Mapping[str, str] | None = None) -> Tried:
    """The best of the trials that ended well; within TIE the one whose model comes first in `models`, then the earlier one.

    With `stages` (model -> stage) the best of the simplest stage that is within one standard error of it: of the mean of the
    paired differences over the folds.
    """
    complete = [each for each in tried if each.state == "complete"]
    top = complete[0]
    for each in complete:
        top = each if metric.gain(each.score, top.score) > 0 else top
    equal = [each for each in complete if abs(each.score - top.score) <= TIE]
    best = min(equal, key=lambda each: (_place(each, models), each.number))
    for stage in ORDER if stages else ():
        rival = best_of([each for each in complete if (stages or {}).get(each.model) == stage], metric)
        if rival and len(rival.folds) == len(best.folds) > 1:
            ahead, error = standard_error(best.folds, rival.folds, metric)
            if ahead <= error:
                return rival
    return best


def _place(each: Tried, models: Sequence[str]) -> int:
    return list(models).index(each.model) if each.model in models else len(models)


def pick(search: Search, tried: Sequence[Tried]) -> Tried:
    """The trial that wins under the rules of tune: its limits of cost, then `choose`. Where nothing keeps to the limits, the
    baseline, and else whatever ended well.
    """
    complete = [each for each in tried if each.state == "complete"]
    kept = [each for each in complete if within_limits(each.cost, search.tune)]
    kept = [each for each in kept if _affordable(each.cost, search)] or kept
    if not kept:
        log.warning("%s: tune: no model keeps to tune.max_latency_ms, max_model_mb and max_train_seconds", search.name)
        kept = [each for each in complete if each.model == search.baseline] or complete
    return choose(kept, list(search.space), search.metric, search.stages if search.tune.choose == "simplest" else None)


def _held_out(search: Search, tried: Sequence[Tried], said: Said) -> pl.DataFrame | None:
    """What the chosen configuration said of rows that it had not learned from: as it was kept, or asked for once more."""
    config = pick(search, tried).config
    members, weights = config.get("members", [config]), config.get("weights", [1.0])
    numbers = [next((each.number for each in tried if each.config == member), -1) for member in members]
    found = [said.of(number) for number in numbers]
    if any(frames is None for frames in found) and isinstance(search.evaluate, Judge):
        found = [replace(search.evaluate, keep=True)(member).predictions for member in members]
    kept = [frames for frames in found if frames is not None]
    if len(kept) < len(members):
        return None
    return pl.concat(ensemble.mixed(list(fold), weights) for fold in zip(*kept, strict=True))


def _write(
    folder: Path,
    search: Search,
    tried: Sequence[Tried],
    nested: dict[str, Any] | None = None,
    held_out: pl.DataFrame | None = None,
) -> Result:
    best = pick(search, tried)
    seconds = round(sum(each.seconds or 0 for each in tried), 3)
    summary = {
        "model": best.config["model"],
        "config": best.config,
        "metric": search.metric.name,
        "score": best.score,
        "std": best.std,
        "method": search.tune.method,
        "trials": len(tried),
        "seconds": seconds,
        "models": _per_model(tried, list(search.space), search.metric),
        "chosen": {"trial": best.number, "why": _why(search, tried, best)},
        "bought": bought(search, tried, best),
        "cost": {name: _known_number(value) for name, value in asdict(best.cost).items()},
    }
    if nested:
        summary["nested"] = nested
    if search.estimate:
        summary["budget"] = {"seconds": search.estimate.seconds, "evaluation": round(search.estimate.evaluation(best.cost), 3)}
    with writing(folder) as scratch:
        scratch.mkdir()
        (scratch / "best.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        _table(search, tried, best).write_parquet(scratch / "trials.parquet")
        if held_out is not None:
            held_out.write_parquet(scratch / HELD_OUT)
    return Result(
        best=str(folder / "best.json"),
        trials=str(folder / "trials.parquet"),
        model=best.config["model"],
        metric=search.metric.name,
        score=best.score,
        std=best.std,
        n_trials=len(tried),
        failed=sum(each.state in ("failed", "killed") for each in tried),
        seconds=seconds,
    )


def _why(search: Search, tried: Sequence[Tried], best: Tried) -> str:
    """Why this trial and no other, in words."""
    top = best_of(tried, search.metric)
    if top is None or top.number == best.number or abs(top.score - best.score) <= TIE:
        return "the best score"
    if not within_limits(top.cost, search.tune):
        return f"the best that keeps to the limits of cost; {top.model} reached {format(top.score, search.metric.format)}"
    ahead, error = standard_error(top.folds, best.folds, search.metric)
    return (
        f"the simplest within one standard error of the best: {top.model} is ahead by {ahead:.3g}, standard error {error:.3g}"
    )


def bought(search: Search, tried: Sequence[Tried], best: Tried) -> dict[str, Any] | None:
    """What the search brought over the best of the defaults: the gain in the metric's unit (positive is better), and the CPU
    seconds of all trials but the defaults. None where no default ended well."""
    defaults = [each for each in tried if each.config == search.defaults.get(each.model)]
    first = best_of(defaults, search.metric)
    if first is None:
        return None
    spent = sum(each.cost.cpu_seconds for each in tried if each not in defaults and not math.isnan(each.cost.cpu_seconds))
    return {
        "over": f"defaults of {first.model}",
        "default": first.score,
        "gain": search.metric.gain(best.score, first.score),
        "cpu_seconds": round(spent, 3),
    }


def _known_number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _per_model(tried: Sequence[Tried], models: Sequence[str], metric: Metric) -> dict[str, float]:
    """Model -> the best score it reached; models without a trial that ended well are left out."""
    complete = [each for each in tried if each.state == "complete"]
    groups = {model: [each for each in complete if each.model == model] for model in (*models, BLEND)}
    return {model: choose(group, models, metric).score for model, group in groups.items() if group}


def front(tried: Sequence[Tried], metric: Metric) -> set[int]:
    """Numbers of the trials that no other beats in both score and latency: the Pareto front of quality and cost."""
    known = [each for each in tried if each.state == "complete" and not math.isnan(each.cost.latency_ms)]
    known.sort(key=lambda each: (each.cost.latency_ms, -metric.gain(each.score, 0.0)))
    kept, top = set(), -math.inf
    for each in known:
        if metric.gain(each.score, 0.0) > top:
            kept.add(each.number)
            top = metric.gain(each.score, 0.0)
    return kept


COSTS = ("cpu_seconds", "peak_mb", "fit_seconds", "latency_ms", "model_mb")


def _table(search: Search, tried: Sequence[Tried], best: Tried) -> pl.DataFrame:
    """One row per trial; times in UTC, config as JSON text, score and std null unless the trial is complete.

    seconds: wall time. For costs see trial.Cost; null where not measured. stage: of a staged search. default: whether it is the
    first configuration of its model. front: on the Pareto front of score and latency. chosen: the one that won. allowed: it
    keeps to the limits of cost.
    """
    efficient = front(tried, search.metric)
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
        for each in tried
    ]
    order = ["number", "state", "model", "score", "std", "config", "reason", "started", "ended", "seconds"]
    more = ["folds", "stage", "default", "chosen", "front", "allowed", *COSTS]
    types = {
        **dict.fromkeys(("model", "stage"), pl.String),
        **dict.fromkeys(("score", "std", "seconds", *COSTS), pl.Float64),
        "folds": pl.List(pl.Float64),
    }
    return pl.DataFrame(rows, schema_overrides=types).select(*order, *more).with_columns(pl.col(pl.Float64).fill_nan(None))
