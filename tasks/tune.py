"""The one home of optuna: which model, with which hyper-parameters, on rows that no test window touches.

A search is a plan (the defaults of each model, simple before complex; then, for a grid, its points) followed by what the
sampler suggests. The sampler of every trial is seeded with the seed plus the number of trials that ended before it, so a trial
depends on what ended before and on nothing else: a search that was killed goes on from its journal as if nothing had happened.
The trial that was running when the kill came is marked as failed and its point is asked for once more; after three kills it is
given up. The journal is removed once the results are written: only a search that did not finish leaves one.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from tasks import problems
from tasks.errors import ParamsError, SpaceError, StepError
from tasks.layout import Layout, locking, writing
from tasks.params import Params, Problem, Range, Section, Tune, nearest
from tasks.problems.base import Config, Data, Kind, Metric

log = logging.getLogger(__name__)

Space = dict[str, dict[str, Range]]
"""Model -> hyper-parameter -> range."""
KILLS = 3
"""A trial that was running in so many kills is given up."""
STARTUP = 6
"""tpe: so many trials are random or planned before the model of the space takes over."""
SCALARS = (bool, int, float, str, type(None))
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
class Tried:
    """One trial that ended. state: complete, failed (`reason` says why) or killed (nobody knows when: `ended` is None).

    score and std are NaN unless complete.
    """

    number: int
    state: str
    config: Config
    score: float
    std: float
    reason: str
    started: datetime
    ended: datetime | None

    @property
    def seconds(self) -> float | None:
        return (self.ended - self.started).total_seconds() if self.ended else None


@dataclass(frozen=True)
class Search:
    """Everything a search depends on. `evaluate`: configuration -> score per fold."""

    name: str
    space: Space
    defaults: dict[str, Config]
    tune: Tune
    metric: Metric
    seed: int
    evaluate: Callable[[Config], Sequence[float]]


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
    space = narrow(kind, section, problem)
    with locking(layout.var / "tuning" / f"{problem}.lock", f"{problem}: tune"):
        data = kind.load(layout.features(problem), section)
        search = Search(
            name=problem,
            space=space,
            defaults={model: _within(kind.defaults(model, section), space[model]) for model in space},
            tune=section.tune,
            metric=metric,
            seed=params.project.seed,
            evaluate=_judge(kind, data, section, metric, params.project.seed),
        )
        journal = layout.var / "tuning" / f"{problem}-{fingerprint(params, problem, layout)}.log"
        tried = find(search, journal)
        result = _write(layout.tuning(problem), search, tried)
        journal.unlink()
    return result


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


def _judge(kind: Kind, data: Data, section: Problem, metric: Metric, seed: int) -> Callable[[Config], list[float]]:
    """Configuration -> its score on each fold; the folds end before the first test window."""
    folds = kind.splits(data, section).folds

    def judge(config: Config) -> list[float]:
        scores = []
        for fold in folds:
            model = kind.fit(data, fold.train, config, section, seed)
            found = kind.score(kind.predict(model, data, fold.test, section), section)
            if metric.name not in found:
                found = kind.score_model(model, data, fold, config, section, seed)
            scores.append(float(found[metric.name]))
        return scores

    return judge


def fingerprint(params: Params, problem: str, layout: Layout) -> str:
    """A hash of all that trials depend on: features, sections of params.yaml, seed, code and locked versions.

    Not in it: tune.n_trials and tune.timeout_seconds, so that a killed search may go on with more or fewer trials.
    """
    section = params.section(problem)
    settings = {
        "seed": params.project.seed,
        "tune": section.tune.model_dump(mode="json", exclude={"n_trials", "timeout_seconds"}),
        "rest": section.model_dump(mode="json", include={"features", "pipeline", "train"}),
        "windows": section.evaluate.windows,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    here = Path(__file__).parent
    code = [Path(__file__), here / "split.py", *sorted((here / "problems").rglob("*.py"))]
    data = sorted(path for path in layout.features(problem).rglob("*") if path.is_file())
    for path in [*code, *data, *([layout.lock] if layout.lock.exists() else [])]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def find(search: Search, journal: Path) -> list[Tried]:
    """Run the trials of `search` that `journal` does not hold yet; all that ended, in order, killed ones included.

    Journals of the same problem with another fingerprint are removed: what they were about has changed.
    Raises StepError where every trial failed.
    """
    for old in journal.parent.glob(f"{search.name}-*.log"):
        if old != journal and len(old.stem) == len(journal.stem):
            old.unlink()
    plan = _plan(search)
    with _quiet():
        study = _open(search, journal)
        while (done := _ended(study)) < search.tune.n_trials and not _out_of_time(study, search, done):
            if done >= len(plan) and not _sampled(search):
                break
            _next(study, search, plan, done)
    tried = [_tried(trial) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if not any(each.state == "complete" for each in tried):
        first = f"{tried[0].config.get('model')}: {tried[0].reason}"
        raise StepError(
            f"{search.name}: tune: none of {len(tried)} trials ended well; the first was {first}. "
            "Mend that, or restrict tune.models and tune.space to what works."
        )
    return tried


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
    if ended := _ended(study):
        log.info("%s: tune: goes on after %d trials that ended before", search.name, ended)
    return study


def _ended(study: optuna.Study) -> int:
    """How many trials ended, well or not. A killed one counts once its point was killed KILLS times."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    killed = [trial.user_attrs.get("config", "") for trial in trials if _was_killed(trial)]
    given_up = sum(killed.count(point) >= KILLS for point in set(killed) - {""})
    return len(trials) - len(killed) + given_up


def _was_killed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def _out_of_time(study: optuna.Study, search: Search, done: int) -> bool:
    """Whether no further trial may start; the first two always may."""
    limit = search.tune.timeout_seconds
    if limit is None or done < 2:
        return False
    spent = sum(_tried(trial).seconds or 0 for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    if spent >= limit:
        log.warning("%s: tune: %.0f s of %.0f s are over after %d trials", search.name, spent, limit, done)
    return spent >= limit


def _next(study: optuna.Study, search: Search, plan: Sequence[Config], done: int) -> None:
    """Run one trial: the next of the plan or one that the sampler suggests, and tell the study how it ended."""
    trial, config = _ask(study, search, plan[done] if done < len(plan) else None, done)
    try:
        scores = _known(study, config) or _finite(search.evaluate(config), search.metric)
    except (ParamsError, SpaceError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever a library throws at one point of the space, the search goes on
        trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
        study.tell(trial, state=TrialState.FAIL)
        log.warning("%s: trial %d of %d: %s failed: %s", search.name, done + 1, search.tune.n_trials, config["model"], error)
        return
    trial.set_user_attr("folds", scores)
    study.tell(trial, statistics.fmean(scores))
    _tell(study, search, done, config, statistics.fmean(scores))


def _ask(study: optuna.Study, search: Search, planned: Config | None, done: int) -> tuple[Trial, Config]:
    """A new trial and its configuration: `planned`, or for None what the sampler suggests.

    A planned model without anything to choose has no point in the study's space; its trial has no parameters there.
    """
    study.sampler = _sampler(search, done)
    if planned is not None and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(_named(planned, search.space))
    trial = study.ask()
    fixed = planned is not None and not _has_choice(search.space, planned["model"])
    config = planned if planned is not None and fixed else _suggest(trial, search)
    trial.set_user_attr("config", json.dumps(config))
    return trial, config


def _finite(scores: Sequence[float], metric: Metric) -> list[float]:
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"{metric.name} is undefined on a fold: {', '.join(f'{score:g}' for score in scores)}")
    return [float(score) for score in scores]


def _tell(study: optuna.Study, search: Search, done: int, config: Config, score: float) -> None:
    metric = search.metric
    log.info(
        "%s: trial %d of %d: %s %s %s (best %s)",
        *(search.name, done + 1, search.tune.n_trials, config["model"], metric.name),
        *(format(score, metric.format), format(study.best_value, metric.format)),
    )


def _known(study: optuna.Study, config: Config) -> list[float] | None:
    """The fold scores of the same configuration, if it was tried before."""
    text = json.dumps(config)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.user_attrs["config"] == text:
            return trial.user_attrs["folds"]
    return None


def _sampler(search: Search, done: int) -> optuna.samplers.BaseSampler:
    seed = search.seed + done
    if search.tune.method == "tpe":
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
    plan = list(search.defaults.values())
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
    folds = trial.user_attrs.get("folds", [])
    started, ended = trial.datetime_start, trial.datetime_complete
    assert started is not None
    assert ended is not None
    killed = _was_killed(trial)
    return Tried(
        number=trial.number,
        state="complete" if trial.state == TrialState.COMPLETE else "killed" if killed else "failed",
        config=json.loads(trial.user_attrs.get("config", "{}")),
        score=statistics.fmean(folds) if folds else math.nan,
        std=statistics.pstdev(folds) if folds else math.nan,
        reason="the process was killed" if killed else trial.user_attrs.get("reason", ""),
        started=started.astimezone(UTC),
        ended=None if killed else ended.astimezone(UTC),
    )


def choose(tried: Sequence[Tried], models: Sequence[str], metric: Metric) -> Tried:
    """The best of the trials that ended well; within TIE the one whose model comes first in `models`, then the earlier one."""
    complete = [each for each in tried if each.state == "complete"]
    top = complete[0]
    for each in complete:
        top = each if metric.gain(each.score, top.score) > 0 else top
    equal = [each for each in complete if abs(each.score - top.score) <= TIE]
    return min(equal, key=lambda each: (list(models).index(each.config["model"]), each.number))


def _write(folder: Path, search: Search, tried: Sequence[Tried]) -> Result:
    best = choose(tried, list(search.space), search.metric)
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
    }
    with writing(folder) as scratch:
        scratch.mkdir()
        (scratch / "best.json").write_text(json.dumps(summary, indent=2) + "\n")
        _table(tried).write_parquet(scratch / "trials.parquet")
    return Result(
        best=str(folder / "best.json"),
        trials=str(folder / "trials.parquet"),
        model=best.config["model"],
        metric=search.metric.name,
        score=best.score,
        std=best.std,
        n_trials=len(tried),
        failed=sum(each.state != "complete" for each in tried),
        seconds=seconds,
    )


def _per_model(tried: Sequence[Tried], models: Sequence[str], metric: Metric) -> dict[str, float]:
    """Model -> the best score it reached; models without a trial that ended well are left out."""
    complete = [each for each in tried if each.state == "complete"]
    groups = {model: [each for each in complete if each.config["model"] == model] for model in models}
    return {model: choose(group, models, metric).score for model, group in groups.items() if group}


def _table(tried: Sequence[Tried]) -> pl.DataFrame:
    """One row per trial; times in UTC, config as JSON text, score and std null unless the trial is complete."""
    rows = [
        {
            **{
                name: getattr(each, name)
                for name in ("number", "state", "score", "std", "started", "ended", "seconds", "reason")
            },
            "model": each.config.get("model"),
            "config": json.dumps(each.config),
        }
        for each in tried
    ]
    order = ["number", "state", "model", "score", "std", "config", "reason", "started", "ended", "seconds"]
    types = {"model": pl.String, "score": pl.Float64, "std": pl.Float64}
    return pl.DataFrame(rows, schema_overrides=types).select(order).with_columns(pl.col("score", "std").fill_nan(None))
