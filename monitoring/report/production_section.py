"""The page's section about a problem in production: monitoring runs, drift, cohorts, the rollout and the backtest.

Pure: stored records in, text and charts out.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from evergreen.monitoring.ledger.records import Change, Decision, Estimate, Figure
from evergreen.monitoring.report import charts, formatting, time_series
from evergreen.monitoring.report.charts import Chart

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.cohorts import Cohort
    from evergreen.monitoring.ledger.decisions import RetrainingRecord
    from evergreen.tasks.release.rollout_state import RolloutState

log = logging.getLogger(__name__)

SHOWN_RUNS = 16
"""Most monitoring runs on the page, the newest."""
SHOWN_CHANGES = 12
"""Most columns of the newest monitoring run."""
SHOWN_COHORTS = 12


@dataclass(frozen=True)
class ProductionRecords:
    """Stored records of one problem."""

    runs: Sequence[Decision] = ()
    """Oldest first."""
    retrainings: "Sequence[RetrainingRecord]" = ()
    """Oldest first."""
    cohorts: "Sequence[Cohort]" = ()
    """Oldest first."""
    rollout: "RolloutState | None" = None
    """The rollout in progress."""


@dataclass(frozen=True)
class Event:
    """One monitoring run or one retraining."""

    day: date
    headline: str
    level: str
    """good, watch, bad or idle."""
    reason: str


@dataclass(frozen=True)
class ChangedColumn:
    """One column of the newest monitoring run."""

    column: str
    what: str
    """Empty for the values of a feature."""
    reason: str
    effect: str
    importance: str
    level: str
    verdict: str


@dataclass(frozen=True)
class DriftSummary:
    """Drift in the newest monitoring run."""

    day: date
    sentence: str
    rows: list[ChangedColumn]
    more: int
    report: str | None
    """Address of the Evidently report, from the page."""


@dataclass(frozen=True)
class CohortRow:
    """The predictions of one week and version."""

    week: date
    version: int
    predictions: int
    matured: str
    share: float
    """Of 100."""
    score: str
    more: list[tuple[str, str]] = field(default_factory=list)
    """Further realised figures: name, and value with interval."""
    changed: bool = False
    """Whether predictions or labels arrived since it was counted."""


@dataclass(frozen=True)
class PolicyRow:
    """One policy of a backtest."""

    name: str
    quality: str
    interval: str
    gain: str
    retrainings: int
    promoted: int
    cpu: str
    per_minute: str
    alarms: int
    false_alarms: int
    chosen: bool
    more: list[tuple[str, str, str]] = field(default_factory=list)
    """Further metrics: name, value and interval."""


@dataclass(frozen=True)
class Backtest:
    sentence: str
    about: str
    rows: list[PolicyRow]
    metric: str
    chart: Chart


@dataclass(frozen=True)
class Production:
    """Content of the section."""

    summary: str
    level: str
    timeline: Chart | None = None
    events: list[Event] = field(default_factory=list)
    """Newest first."""
    drift: DriftSummary | None = None
    cohorts: list[CohortRow] = field(default_factory=list)
    """Newest first."""
    rollout: str | None = None
    backtest: Backtest | None = None


def build(name: str, found: ProductionRecords, backtested: Mapping[str, Any] | None) -> Production | None:
    """The section about problem `name`; None without monitoring run, cohort, rollout and backtest.

    `backtested`: the content of backtest.json.
    """
    backtest = _backtest(name, backtested) if backtested else None
    rollout = _rollout(found.rollout) if found.rollout else None
    if not found.runs and not found.cohorts and not rollout and not backtest:
        return None
    retrained = [each.at.date() for each in found.retrainings]
    return Production(
        summary=_summary(found),
        level=_level(found.runs[-1]) if found.runs else "idle",
        timeline=charts.attempt("timeline", "Scores over time", time_series.timeline, found.runs, retrained),
        events=_events(found),
        drift=_drift(found.runs[-1]) if found.runs else None,
        cohorts=[weekly(each) for each in reversed(found.cohorts[-SHOWN_COHORTS:])],
        rollout=rollout,
        backtest=backtest,
    )


def _summary(found: ProductionRecords) -> str:
    if not found.runs:
        return "Not monitored yet. Run: evergreen monitor"
    last = found.runs[-1]
    alarms = sum(each.window.drift.alarm for each in found.runs)
    times = formatting.counted(len(found.runs), "monitoring run")
    promoted = sum(bool(each.promoted) for each in found.retrainings)
    retrained = (
        f"retrained {formatting.counted(len(found.retrainings), 'time')}, {promoted} promoted" if found.retrainings else ""
    )
    counts = "; ".join(each for each in (times, f"{alarms} with an alarm of drift", retrained) if each)
    return f"{counts}. Last, on {formatting.day(last.at)}: {last.reason}."


def _level(run: Decision) -> str:
    return "watch" if run.retrain or run.window.drift.alarm else "good"


def _events(found: ProductionRecords) -> list[Event]:
    """Monitoring runs and the retrainings that followed them, the newest first."""
    after = {each.at: each for each in found.retrainings}
    rows = []
    for run in reversed(found.runs[-SHOWN_RUNS:]):
        if (begun := after.pop(run.at, None)) is not None:
            rows.append(_retrained(begun))
        alarm = run.window.drift.alarm
        headline = "retrain" if run.retrain else "alarm, no retraining" if alarm else "no alarm"
        rows.append(Event(run.at.date(), headline, _level(run), _plain(run.reason)))
    rows += [_retrained(each) for each in after.values() if each.trigger == "person"]
    return sorted(rows, key=lambda each: each.day, reverse=True)


def _plain(reason: str) -> str:
    return reason.removeprefix("retrain: ").removeprefix("no retraining: ").removeprefix("no retraining, though ")


def _retrained(begun: "RetrainingRecord") -> Event:
    headline = {True: "promoted", False: "challenger rejected", None: "retraining"}[begun.promoted]
    version = f"v{begun.version}: " if begun.version else ""
    return Event(
        begun.at.date(), headline, "good" if begun.promoted else "idle", f"{version}{begun.outcome or 'it has not finished'}"
    )


WHAT = {
    "missing": "missing values",
    "unseen": "unseen categories",
    "filled": "one value in many rows",
    "range": "other units in some rows",
    "moved": "most values far outside",
    "trend": "a trend with time",
    "prediction": "the predictions",
    "label": "the labels",
    "ranking": "the lists",
    "purchases": "the shop",
    "segments": "the groups",
}


def _drift(run: Decision) -> DriftSummary:
    drift = run.window.drift
    drifting = [each for each in drift.changes if each.significant]
    features = formatting.counted(len(drift.changes), "test")
    faults = f" Data faults to repair: {formatting.counted(len(drift.faults), 'alarm')}." if drift.faults else ""
    unknown = f" {drift.unknown[0].upper()}{drift.unknown[1:]}." if drift.unknown else ""
    sentence = drift.skipped or (
        f"{len(drift.alarms)} of {features} raise an alarm and {len(drifting) - len(drift.alarms)} more differ without "
        f"effect, against {formatting.counted(drift.reference_rows, 'row')} that version {run.window.version} learned from."
        f"{faults}{unknown}"
    )
    shown = [_changed(each) for each in drift.changes[:SHOWN_CHANGES]]
    report = f"{run.problem}/drift/{run.at.date()}.html"
    return DriftSummary(run.at.date(), sentence, shown, max(len(drift.changes) - SHOWN_CHANGES, 0), report)


def _changed(change: Change) -> ChangedColumn:
    differs = ("watch", "differs") if change.significant else ("idle", "may be chance")
    level, verdict = ("bad", "alarm") if change.alarm else differs
    return ChangedColumn(
        column=change.column,
        what=WHAT.get(change.aspect, ""),
        reason=change.reason,
        effect=formatting.number(change.effect),
        importance=formatting.share(change.importance) if change.importance is not None else formatting.MISSING,
        level=level,
        verdict=verdict,
    )


def weekly(cohort: "Cohort") -> CohortRow:
    """A cohort as a row of the table."""
    share = cohort.matured / cohort.predictions if cohort.predictions else 0.0
    score = cohort.score
    return CohortRow(
        cohort.week,
        cohort.version,
        cohort.predictions,
        "not counted yet" if cohort.changed and not cohort.matured else formatting.share(share),
        round(100 * share, 2),
        _interval(score) if score is not None and score.score is not None else "",
        [(formatting.label(name), _interval(each)) for name, each in _figures(score) if each.score is not None],
        cohort.changed,
    )


def _figures(score: Estimate | None) -> list[tuple[str, Figure]]:
    return list(score.more.items()) if score is not None else []


def _interval(found: Estimate | Figure) -> str:
    places = formatting.digits(found.low, found.high)
    text = formatting.number(found.score, places)
    return (
        text
        if found.low is None
        else f"{text} [{formatting.number(found.low, places)}, {formatting.number(found.high, places)}]"
    )


def _rollout(state: "RolloutState") -> str:
    way = {
        "canary": f"answers {formatting.share(state.share)} of the traffic",
        "shadow": "answers along with the champion, for the ledger alone",
        "blue_green": "takes all traffic, the champion kept loaded",
    }.get(state.strategy, "is rolled out")
    prefix = "Paused: version" if state.state == "paused" else "Version"
    return (
        f"{prefix} {state.candidate} {way}, since {formatting.moment(state.since)} (step {state.step + 1} of "
        f"{len(state.shares)}), against champion {state.champion}. {state.reason}"
    )


def _backtest(name: str, found: Mapping[str, Any]) -> Backtest | None:
    """The content of backtest.json; None where it is malformed."""
    try:
        metric = formatting.label(found["metric"])
        advice = found["recommendation"]
        chosen = advice["policy"] if advice else None
        sentence = (
            f"Recommended: {chosen}, {advice['reason']}." if advice else "No labels are known yet, so no policy is recommended."
        )
        about = (
            f"Windows of {found['step_days']} days from {formatting.day(found['first'])} to {formatting.day(found['last'])}, "
            f"each with the data known at the time. CPU minutes: {found['cost']}. "
            "An alarm is false if a model trained at once is not significantly better in the next windows."
        )
        rows = [_policy(each, chosen) for each in found["outcomes"]]
        drawn = charts.attempt("backtest", "Quality under each policy", time_series.backtest, found)
        return Backtest(sentence, about, rows, metric, drawn)
    except (KeyError, TypeError, ValueError) as error:
        log.warning("page: the backtest of %s is malformed and left out: %r", name, error)
        return None


def _policy(outcome: Mapping[str, Any], chosen: str | None) -> PolicyRow:
    quality, gain = (Estimate.model_validate(outcome[part]) for part in ("quality", "gain"))
    further = {name: Estimate.model_validate(each) for name, each in outcome.get("more", {}).items()}
    places = formatting.digits(quality.low, quality.high)
    score, within = _with_interval(quality)
    return PolicyRow(
        name=outcome["policy"],
        quality=score,
        interval=within,
        gain=formatting.signed(gain.score, places) if outcome["retrainings"] else formatting.MISSING,
        retrainings=outcome["retrainings"],
        promoted=outcome["promoted"],
        cpu=formatting.number(outcome["cpu_minutes"], 1),
        per_minute=formatting.number(outcome["gain_per_cpu_minute"]),
        alarms=outcome["alarms"],
        false_alarms=outcome["false_alarms"],
        chosen=outcome["policy"] == chosen,
        more=[(formatting.label(name), *_with_interval(each)) for name, each in further.items()],
    )


def _with_interval(found: Estimate) -> tuple[str, str]:
    """A score and its interval, as text."""
    places = formatting.digits(found.low, found.high)
    ends = [formatting.number(end, places) for end in (found.low, found.high)]
    return formatting.number(found.score, places), f"[{', '.join(ends)}]" if found.low is not None else ""
