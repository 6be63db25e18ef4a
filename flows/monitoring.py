"""Monitoring: what production said and how it turned out -> drift, performance -> a decision, told and acted upon.

A look is of a day. Made twice, or by two monitors at once, it writes the same rows and starts one retraining.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import polars as pl
from prefect import flow
from prefect.states import Failed

from evergreen.flows import retraining, settings
from evergreen.flows.operations import batch_scoring, notifications, params_edit, rollouts, status
from evergreen.flows.prefect_runtime import deployments
from evergreen.flows.retraining import Asked, Train
from evergreen.monitoring.ledger.decisions import DecisionLog, MonitoringRun, RetrainingRecord, end_of_day, run_id, summarize
from evergreen.monitoring.ledger.records import Decision, Estimate, Performance, Window
from evergreen.monitoring.retraining.policy import decide
from evergreen.tasks import problems as kinds
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params, Problem
from evergreen.tasks.core.errors import EvergreenError, LockedError
from evergreen.tasks.core.paths import Layout, find, locking, writing
from evergreen.tasks.problems.prediction_type import Labelled

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Ledger, Predictions
    from evergreen.tasks.release.mlflow_store import Version

log = logging.getLogger(__name__)

EARLIER = 4
"""So many windows before those whose truths ripen are read too: the estimate learns from them."""
MOST_WINDOWS = 26
KEPT_REPORTS = 12
"""Reports of drift that are kept of each problem, 4 MB each."""

Refresh = Callable[[Layout, Sequence[str], date | None], None]
"""Make the features anew, as of a day or of all there is. Hold the project's lock."""
Emit = Callable[[Layout, Params, Decision], bool]
"""Send the events of a decision; whether somebody there answers them by retraining."""


@dataclass
class Seen:
    """One problem in one look."""

    problem: str
    decision: Decision | None = None
    fresh: bool = True
    """Whether the look is the first of its day, or says something else than the one before."""
    retraining: RetrainingRecord | None = None
    """That the decision started here."""
    answered: bool = False
    """An automation of a Prefect server starts the retraining."""
    notes: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""
    error: str | None = None


@dataclass(frozen=True)
class Means:
    """How a monitor acts on the world."""

    refresh: Refresh
    emit: Emit
    train: Train


def run(layout: Layout, problems: Sequence[str], as_of: date | None, means: Means) -> list[Seen]:
    """Look at `problems`, at the end of a day, and act on what is decided; one that fails stops no other.

    `as_of`: None: today; of a project that lives on a day of params.yaml that day, unless predictions are newer.
    Raises ProjectError where the database cannot be used.
    """
    looks = settings.decision_log(layout)
    drain(layout)
    trouble = _refreshed(layout, problems, as_of, means)
    seen = [_guarded(layout, looks, problem, as_of) for problem in problems]
    for each in seen:
        each.error = each.error or trouble
    for each in seen:
        if each.decision and each.fresh:
            _tell(layout, each)
    for each in seen:
        if each.decision:
            _act(layout, looks, each, means)
    _roll(layout, problems)
    for left in retraining.complete(layout, list(problems), means.train):
        log.info("%s: %s", left.problem, left.outcome)
    expose(layout, looks)
    status.page(layout)
    return seen


def _roll(layout: Layout, problems: Sequence[str]) -> None:
    """Let rollouts go on that no server leads, with the truths that came."""
    try:
        for problem, found in rollouts.advance(layout, problems).items():
            log.info("%s: rollout: %s", problem, found)
    except EvergreenError as error:
        log.error("rollouts: %s", error)


def drain(layout: Layout) -> int:
    """Move what servers wrote down into the ledger."""
    from evergreen.monitoring.ledger import spool

    return spool.drain(settings.spool_folder(layout), settings.ledger(layout))


def _refreshed(layout: Layout, problems: Sequence[str], as_of: date | None, means: Means) -> str | None:
    """Bring the features up to the day, where params.yaml does not name a later one. While a training is at work they stay.

    Returns why they could not be made; the look then goes by those that are there.
    """
    lived = load(layout.params).project.as_of
    if lived is not None and (as_of is None or as_of <= lived):
        return None
    try:
        with locking(layout.var / "train.lock", "monitor"):
            means.refresh(layout, problems, as_of if lived is not None else None)
    except LockedError as error:
        log.warning("the features stay as they are: %s", error)
    except EvergreenError as error:
        notifications.send(layout, "monitoring: no new features", str(error))
        return f"no new features: {error}"
    return None


def _guarded(layout: Layout, looks: DecisionLog, problem: str, as_of: date | None) -> Seen:
    seen = Seen(problem)
    try:
        look(layout, looks, as_of, seen)
    except EvergreenError as error:
        seen.error = str(error)
    except Exception as error:  # a bug in one look must not stop the others
        log.debug("%s", problem, exc_info=error)
        seen.error = f"{problem}: {type(error).__name__}: {' '.join(str(error).split())}"
    if seen.error:
        log.error("%s", seen.error)
        notifications.send(layout, f"{problem}: monitoring failed", seen.error, {"problem": problem})
    return seen


def look(layout: Layout, looks: DecisionLog, as_of: date | None, seen: Seen) -> None:
    """One look at one problem; what it finds goes into `seen` and into the database."""
    problem, params = seen.problem, load(layout.params)
    section = params.section(problem)
    number = settings.deployments(layout).champion(problem)
    champion = settings.registry(layout).version(problem, number) if number else None
    if champion is None:
        seen.notes.append(f"nothing is deployed; run evergreen train {problem}")
        return
    ledger = settings.ledger(layout)
    day = as_of or _today(params, ledger, problem)
    until = end_of_day(day)
    _scored(layout, params, ledger, champion, day, seen)
    _collect(layout, params, problem, ledger, day, seen)
    window, predicted = observe(layout, params, champion, ledger, until)
    earlier = next((each for each in looks.runs(problem) if each.decision.at == until), None)
    past = [each.summary() for each in looks.retrainings(problem)]
    decision = decide(section.retrain, looks.windows_with(window), past, trained(champion), until)
    seen.decision = looks.record(decision)
    seen.fresh = earlier is None or _alarms(earlier.decision) != _alarms(seen.decision)
    _forget(params, problem, ledger, day)
    if section.monitor.evidently_report and not window.drift.skipped:
        _report(layout, champion, predicted, day, seen)


def _alarms(decision: Decision) -> tuple[bool, bool]:
    return decision.retrain, decision.window.drift.alarm


def _today(params: Params, ledger: "Ledger", problem: str) -> date:
    """Today, unless the project lives on a day of params.yaml and nobody was answered after it."""
    lived, today = params.project.as_of, datetime.now(UTC).date()
    if lived is None or lived >= today:
        return lived or today
    return today if ledger.read(problem, since=end_of_day(lived), features=False).rows.height else lived


def trained(champion: "Version") -> datetime:
    """The last moment that a version's training knew."""
    try:
        return end_of_day(date.fromisoformat(champion.tags.get("as_of", "")))
    except ValueError:
        return champion.created


def _scored(layout: Layout, params: Params, ledger: "Ledger", champion: "Version", day: date, seen: Seen) -> None:
    """Answer by the newest features, where nobody serves and nobody scored on the day."""
    section, until = params.section(seen.problem), end_of_day(day)
    if not section.features.by_cutoff:
        return
    since = until - timedelta(days=section.monitor.window_days)
    found = ledger.read(seen.problem, since=since, until=until, version=champion.version, features=False).rows
    served = found.filter(pl.col("variant") != "batch").height
    if served or found.filter(pl.col("at") > until - timedelta(days=1)).height:
        return
    lists = batch_scoring.Lists(as_of=day)
    batch_scoring.newest(layout, params, seen.problem, version=champion.version, lists=lists, at=min(until, datetime.now(UTC)))


def _collect(layout: Layout, params: Params, problem: str, ledger: "Ledger", day: date, seen: Seen) -> None:
    """Bring the truths that ripened into the ledger."""
    from evergreen.monitoring.ledger import labels as truths

    if truths.collect(params, problem, layout, ledger, day):
        log.info("%s: new truths", problem)


def _forget(params: Params, problem: str, ledger: "Ledger", day: date) -> None:
    """Leave of predictions older than monitor.retention_days what their cohorts say."""
    from evergreen.monitoring.performance.measurement import cohort_scorer

    section = params.section(problem)
    judge = cohort_scorer(kinds.predictions(params.kind(problem)), section, params.project.seed)
    if gone := ledger.compact(problem, day - timedelta(days=section.monitor.retention_days), judge):
        log.info(
            "%s: %s predictions are older than %d days; their cohorts stay",
            problem,
            f"{gone:,}",
            section.monitor.retention_days,
        )


def observe(
    layout: Layout, params: Params, champion: "Version", ledger: "Ledger", until: datetime
) -> tuple[Window, "Predictions"]:
    """What the window that ends at `until` shows of a version, and its rows."""
    from evergreen.monitoring.drift import detection

    problem = champion.problem
    section = params.section(problem)
    since = until - timedelta(days=section.monitor.window_days)
    predicted = ledger.read(problem, since=since, until=until, version=champion.version, known_at=until)
    reference = _reference(layout, params, champion)
    predicted = detection.completed(layout, reference, predicted)
    found = detection.compare(reference, predicted, section.monitor, params.project.seed)
    window = Window(
        problem=problem,
        version=champion.version,
        since=since,
        until=until,
        rows=predicted.rows.height,
        new_labels=new_labels(layout, params, champion, ledger, until),
        drift=found,
        performance=_performance(layout, params, champion, ledger, predicted, until),
    )
    return window, predicted


def _reference(layout: Layout, params: Params, champion: "Version") -> Any:
    """What the version learned from, made now where it was not after its training."""
    from evergreen.monitoring.drift import reference_data

    found = reference_data.load(layout, champion.problem, champion.version)
    if found is not None:
        return found
    model = settings.registry(layout).load(champion.problem, champion.version)
    return reference_data.build(params, champion.problem, layout, model, champion.version)


def _performance(
    layout: Layout, params: Params, champion: "Version", ledger: "Ledger", predicted: "Predictions", until: datetime
) -> Performance | None:
    from evergreen.monitoring.ledger.predictions import Predictions
    from evergreen.monitoring.performance.measurement import measure

    problem, section = champion.problem, params.section(champion.problem)
    kind = kinds.predictions(params.kind(problem))
    if not isinstance(kind, Labelled):
        return None
    step = timedelta(days=section.monitor.window_days)
    count = min(_ripening(section) // section.monitor.window_days + 1 + EARLIER, MOST_WINDOWS)
    rows = ledger.read(
        problem, since=until - count * step, until=until - step, version=champion.version, features=False, known_at=until
    ).rows
    ends = [until - back * step for back in range(count - 1, 0, -1)]
    windows = [(end, Predictions(rows.filter(pl.col("at") > end - step, pl.col("at") <= end), pl.DataFrame())) for end in ends]
    seen = [each for each in windows if each[1].rows.height]
    known = _known(layout, problem, champion.version)
    expected = _expected(champion, kind.metrics[0].name)
    return measure(kind, section, expected, [*seen, (until, predicted)], known, params.project.seed)


def _ripening(section: Problem) -> int:
    """Days until a truth is known."""
    if section.monitor.label_delay_days is not None:
        return section.monitor.label_delay_days
    return getattr(section.features, "horizon_days", 0) or 0


def _known(layout: Layout, problem: str, version: int) -> pl.DataFrame | None:
    """What a version said of the rows it was judged on; None where the newest evaluation is of another one."""
    path = layout.report(problem) / "evaluation" / "predictions.parquet"
    if not path.exists() or status.standing(layout, problem)[0] != version:
        return None
    return pl.read_parquet(path)


def _expected(champion: "Version", metric: str) -> Estimate:
    name = status.plain(metric)
    known = {status.plain(key): value for key, value in champion.metrics.items()}
    score, low, high = (known.get(f"{name}{end}") for end in ("", "_low", "_high"))
    rows = champion.tags.get("verdict.rows", "0")
    return Estimate(score=score, low=low, high=high, rows=int(rows) if rows.isdigit() else 0)


def new_labels(layout: Layout, params: Params, champion: "Version", ledger: "Ledger", until: datetime) -> int:
    """Rows with truth that a version did not learn from: of made features those of later cutoffs, else answers that got one."""
    section, kind = params.section(champion.problem), kinds.predictions(params.kind(champion.problem))
    if not isinstance(kind, Labelled):
        return 0
    last = champion.tags.get("cutoff", "none")
    if last != "none":
        counted = kind.count_labels(layout.features(champion.problem), section, date.fromisoformat(last), until.date())
        if counted is not None:
            return counted
    rows = ledger.read(champion.problem, since=trained(champion), until=until, features=False, known_at=until).rows
    return rows["label"].count() if "label" in rows.columns else 0


def _report(layout: Layout, champion: "Version", predicted: "Predictions", day: date, seen: Seen) -> None:
    """The Evidently report of a look, for people; without it the look stands."""
    from evergreen.monitoring.drift import detection

    folder = layout.report(seen.problem) / "drift"
    path = folder / f"{day}.html"
    try:
        if seen.fresh or not path.exists():
            reference = _reference(layout, load(layout.params), champion)
            assert seen.decision is not None
            detection.report(reference, predicted, seen.decision.window.drift, path, load(layout.params).project.seed)
        for old in sorted(folder.glob("*.html"))[:-KEPT_REPORTS]:
            old.unlink()
    except Exception as error:  # noqa: BLE001  # Evidently may fail in any way on odd columns, and people alone read this
        seen.notes.append(f"no report: {' '.join(str(error).split())[:200]}")


def _tell(layout: Layout, seen: Seen) -> None:
    """Notify on an alarm and on a decision to retrain."""
    decision = seen.decision
    assert decision is not None
    named = ", ".join(each.column for each in decision.window.drift.alarms[:3])
    if not decision.retrain and not named:
        return
    subject = f"{seen.problem}: {'retraining' if decision.retrain else f'drift in {named}'}"
    notifications.send(layout, subject, decision.reason, {"problem": seen.problem, "at": decision.at, "alarms": named})


def _act(layout: Layout, looks: DecisionLog, seen: Seen, means: Means) -> None:
    """Send the events, and retrain where the params say so and no automation does."""
    decision, params = seen.decision, load(layout.params)
    assert decision is not None
    wanted = decision.retrain and params.section(seen.problem).retrain.mode == "automatic"
    asked = asked_for(params, decision)
    begun = looks.retraining(asked.id or "")
    if begun and begun.ended:
        return
    seen.answered = means.emit(layout, params, decision) and wanted
    if not wanted or seen.answered:
        return
    try:
        seen.retraining = retraining.run(layout, asked, means.train)
    except EvergreenError as error:
        seen.error = str(error)
        notifications.send(layout, f"{seen.problem}: retraining failed", str(error), {"problem": seen.problem})


def asked_for(params: Params, decision: Decision) -> Asked:
    """The retraining that a decision asks for."""
    name = run_id(params.project.name, decision.problem, decision.at)
    day = decision.at.date() if params.project.as_of else None
    reason, trigger = decision.reason.removeprefix("retrain: "), decision.trigger or "age"
    return Asked(decision.problem, reason, f"policy ({trigger})", trigger, name, decision.at, day)


# What a person and Prometheus see


COLUMNS = ("problem", "version", "window", "predictions", "drift", "score", "expected", "decision")


def cells(seen: Seen) -> tuple[str, ...]:
    """One row of the table of a look."""
    if seen.decision is None:
        return (seen.problem, "", "", "", "", "", "", seen.error or "; ".join(seen.notes))
    decision, window = seen.decision, seen.decision.window
    found = window.performance
    alarms = [each.column for each in window.drift.alarms]
    drifting = sum(each.significant for each in window.drift.changes)
    drift = window.drift.skipped or (f"ALARM: {', '.join(alarms[:3])}" if alarms else f"{drifting} columns, no alarm")
    span = f"{window.since:%m-%d} to {window.until:%Y-%m-%d}"
    score, expected = (_said(found, each) for each in (found.newest, found.expected)) if found else ("", "")
    return (seen.problem, f"v{window.version}", span, f"{window.rows:,}", drift, score, expected, decision.reason)


def _said(found: Performance, estimate: Estimate) -> str:
    if estimate.score is None:
        return estimate.reason or ""
    how = "" if estimate is found.expected else "realised " if estimate is found.realised else "estimated "
    interval = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.4g}, {estimate.high:.4g}]"
    return f"{how}{found.metric} {estimate.score:.4g}{interval}"


GAUGES = {
    "evergreen_champion_version": "Version whose predictions were looked at.",
    "evergreen_window_predictions": "Predictions in the newest window.",
    "evergreen_window_end_seconds": "End of the newest window, seconds since 1970.",
    "evergreen_new_labels": "Rows with truth that the champion did not learn from.",
    "evergreen_drift_alarm": "1 where drift in what matters was found.",
    "evergreen_drifting_columns": "Columns that surely differ from training.",
    "evergreen_score": "Score: expected when it was judged, realised, or estimated before truths are known.",
    "evergreen_labels_matured": "Share of the newest window whose truth is known.",
    "evergreen_retrain": "1 where the newest look decided to retrain.",
}


def expose(layout: Layout, looks: DecisionLog) -> Path:
    """Write the newest look at each problem as Prometheus text, var/metrics.prom (for node_exporter's textfile collector)."""
    samples: dict[str, list[str]] = {name: [] for name in GAUGES}
    for problem in load(layout.params).problems:
        for found in looks.runs(problem, last=1):
            for name, labels, value in _samples(found):
                text = ",".join(f'{key}="{word}"' for key, word in {"problem": problem, **labels}.items())
                samples[name].append(f"{name}{{{text}}} {value:g}" if name != "evergreen_window_end_seconds" else
                                     f"{name}{{{text}}} {value:.0f}")  # fmt: skip
    path = layout.var / "metrics.prom"
    with writing(path) as scratch:
        lines = [
            line
            for name, each in samples.items()
            if each
            for line in (f"# HELP {name} {GAUGES[name]}", f"# TYPE {name} gauge", *each)
        ]
        scratch.write_text("\n".join(lines) + "\n" if lines else "", encoding="utf8")
    return path


def _samples(found: MonitoringRun) -> list[tuple[str, dict[str, str], float]]:
    decision, window = found.decision, found.decision.window
    told: list[tuple[str, dict[str, str], float]] = [
        ("evergreen_champion_version", {}, window.version),
        ("evergreen_window_predictions", {}, window.rows),
        ("evergreen_window_end_seconds", {}, window.until.timestamp()),
        ("evergreen_new_labels", {}, window.new_labels),
        ("evergreen_drift_alarm", {}, window.drift.alarm),
        ("evergreen_drifting_columns", {}, sum(each.significant for each in window.drift.changes)),
        ("evergreen_retrain", {}, decision.retrain),
    ]
    if (score := window.performance) is not None:
        told.append(("evergreen_labels_matured", {}, score.matured))
        for how in ("expected", "realised", "estimated"):
            if (value := getattr(score, how).score) is not None:
                told.append(("evergreen_score", {"metric": score.metric, "of": how}, value))
    return told


# On Prefect


def refreshing(layout: Layout, problems: Sequence[str], as_of: date | None) -> None:
    """Read the sources again and make the features, as steps of the flow, recorded with DVC."""
    from evergreen.flows import training

    if as_of:
        params_edit.set_as_of(layout.params, as_of)
    branches = training.Branches(layout, refresh=True, deploy=False, by="monitoring")
    branches.run_shared_steps()
    for problem in problems:
        branches.build_features(problem)


def emitting(layout: Layout, params: Params, decision: Decision) -> bool:
    """evergreen.decision, and evergreen.drift on an alarm, each with an id of its own that is the same whenever it is sent."""
    from prefect.events import emit_event

    problem, id = decision.problem, run_id(params.project.name, decision.problem, decision.at)
    mode = params.section(problem).retrain.mode if decision.retrain else "no"
    resource = {
        "prefect.resource.id": deployments.resource(params, problem),
        "prefect.resource.name": problem,
        "evergreen.retrain": mode,
    }
    asked = asked_for(params, decision)
    told = {"id": id, "at": decision.at.isoformat(), "as_of": asked.as_of and str(asked.as_of), "trigger": asked.trigger}
    payload = {**summarize(decision), "reason": asked.reason, "monitoring_run": told}
    emit_event("evergreen.decision", resource, payload=payload, id=UUID(id))
    if decision.window.drift.alarm:
        emit_event(
            "evergreen.drift", resource, payload=payload, id=UUID(run_id(params.project.name, f"{problem}.drift", decision.at))
        )
    return deployments.answers(params, problem)


@flow(name="monitoring", on_failure=[retraining.crashed], on_crashed=[retraining.crashed])
def monitoring(root: str, problems: list[str] | None = None, as_of: str | None = None) -> Any:
    """The flow. It fails, after all looks, with one line per problem that failed."""
    layout = find(Path(root))
    named = list(problems or load(layout.params).problems)
    day = date.fromisoformat(as_of) if as_of else None
    seen = run(layout, named, day, Means(refreshing, emitting, retraining.flowing))
    failed = [each.error for each in seen if each.error]
    return Failed(message="\n".join(failed), data=seen) if failed else seen
