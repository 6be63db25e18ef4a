"""What the page says of a problem in production: looks, drift, cohorts, the rollout, and what a replay found.

Pure: from what the databases hold to text, places on lines and charts.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from evergreen.monitoring.ledger.records import Change, Decision, Estimate
from evergreen.monitoring.report import formatting, time_series
from evergreen.monitoring.report.charts import Chart

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.cohorts import Cohort
    from evergreen.monitoring.ledger.decisions import RetrainingRecord
    from evergreen.tasks.release.rollout_state import RolloutState

log = logging.getLogger(__name__)

SHOWN_LOOKS = 16
"""So many of the newest looks are told."""
SHOWN_CHANGES = 12
"""So many columns of the newest look."""
SHOWN_COHORTS = 12


@dataclass(frozen=True)
class Watched:
    """What the databases hold about one problem."""

    looks: Sequence[Decision] = ()
    """Oldest first."""
    retrainings: "Sequence[RetrainingRecord]" = ()
    """Oldest first."""
    cohorts: "Sequence[Cohort]" = ()
    """Oldest first."""
    standing: "RolloutState | None" = None
    """The rollout under way."""


@dataclass(frozen=True)
class Told:
    """One look, or one retraining, in words."""

    day: date
    headline: str
    level: str
    """good, watch, bad or idle."""
    reason: str


@dataclass(frozen=True)
class Differs:
    """One column of the newest look."""

    column: str
    what: str
    """Empty for the values of a feature."""
    reason: str
    effect: str
    importance: str
    level: str
    verdict: str


@dataclass(frozen=True)
class Drifting:
    """The newest look at drift."""

    day: date
    sentence: str
    rows: list[Differs]
    more: int
    report: str | None
    """Address of the Evidently report, from the page."""


@dataclass(frozen=True)
class Weekly:
    """The predictions of one week and version."""

    week: date
    version: int
    predictions: int
    matured: str
    share: float
    """Of 100."""
    score: str


@dataclass(frozen=True)
class Policy:
    """One policy of a replay."""

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


@dataclass(frozen=True)
class Backtest:
    sentence: str
    about: str
    rows: list[Policy]
    metric: str
    chart: Chart


@dataclass(frozen=True)
class Production:
    """All the page says of it."""

    summary: str
    level: str
    timeline: Chart | None = None
    looks: list[Told] = field(default_factory=list)
    """Newest first."""
    drift: Drifting | None = None
    cohorts: list[Weekly] = field(default_factory=list)
    """Newest first."""
    rollout: str | None = None
    backtest: Backtest | None = None


def tell(name: str, found: Watched, replayed: Mapping[str, Any] | None) -> Production | None:
    """The section about problem `name`; None where nothing was watched, rolled out or replayed."""
    backtest = _backtest(name, replayed) if replayed else None
    rollout = _rollout(found.standing) if found.standing else None
    if not found.looks and not found.cohorts and not rollout and not backtest:
        return None
    retrained = [each.at.date() for each in found.retrainings]
    return Production(
        summary=_summary(found),
        level=_level(found.looks[-1]) if found.looks else "idle",
        timeline=time_series.timeline(found.looks, retrained),
        looks=_told(found),
        drift=_drifting(found.looks[-1]) if found.looks else None,
        cohorts=[_weekly(each) for each in reversed(found.cohorts[-SHOWN_COHORTS:])],
        rollout=rollout,
        backtest=backtest,
    )


def _summary(found: Watched) -> str:
    if not found.looks:
        return "Nobody has looked at it in production yet; evergreen monitor does."
    last = found.looks[-1]
    alarms = sum(each.window.drift.alarm for each in found.looks)
    times = formatting.counted(len(found.looks), "look")
    promoted = sum(bool(each.promoted) for each in found.retrainings)
    retrained = (
        f"retrained {formatting.counted(len(found.retrainings), 'time')}, {promoted} promoted" if found.retrainings else ""
    )
    told = "; ".join(each for each in (times, f"{alarms} with an alarm of drift", retrained) if each)
    return f"{told}. Last, on {formatting.day(last.at)}: {last.reason}."


def _level(look: Decision) -> str:
    return "watch" if look.retrain or look.window.drift.alarm else "good"


def _told(found: Watched) -> list[Told]:
    """DecisionLog and what followed them, the newest first; of looks that say the same in a row the newest alone."""
    after = {each.at: each for each in found.retrainings}
    rows = []
    for look in reversed(found.looks[-SHOWN_LOOKS:]):
        if (begun := after.pop(look.at, None)) is not None:
            rows.append(_retrained(begun))
        alarm = look.window.drift.alarm
        headline = "retrain" if look.retrain else "alarm, no retraining" if alarm else "all quiet"
        rows.append(Told(look.at.date(), headline, _level(look), _plain(look.reason)))
    rows += [_retrained(each) for each in after.values() if each.trigger == "person"]
    return sorted(rows, key=lambda each: each.day, reverse=True)


def _plain(reason: str) -> str:
    return reason.removeprefix("retrain: ").removeprefix("no retraining: ").removeprefix("no retraining, though ")


def _retrained(begun: "RetrainingRecord") -> Told:
    headline = {True: "promoted", False: "challenger refused", None: "retraining"}[begun.promoted]
    version = f"v{begun.version}: " if begun.version else ""
    return Told(
        begun.at.date(), headline, "good" if begun.promoted else "idle", f"{version}{begun.outcome or 'it has not finished'}"
    )


WHAT = {
    "missing": "missing values",
    "unseen": "unseen categories",
    "prediction": "the answers",
    "label": "the labels",
    "ranking": "the lists",
    "segments": "the groups",
}


def _drifting(look: Decision) -> Drifting:
    drift = look.window.drift
    drifting = [each for each in drift.changes if each.significant]
    features = formatting.counted(len(drift.changes), "test")
    sentence = drift.skipped or (
        f"{len(drift.alarms)} of {features} raise an alarm and {len(drifting) - len(drift.alarms)} more differ in what matters "
        f"little, beside {formatting.counted(drift.reference_rows, 'row')} that version {look.window.version} learned from."
    )
    shown = [_differs(each) for each in drift.changes[:SHOWN_CHANGES]]
    report = f"{look.problem}/drift/{look.at.date()}.html"
    return Drifting(look.at.date(), sentence, shown, max(len(drift.changes) - SHOWN_CHANGES, 0), report)


def _differs(change: Change) -> Differs:
    differs = ("watch", "differs") if change.significant else ("idle", "may be chance")
    level, verdict = ("bad", "alarm") if change.alarm else differs
    return Differs(
        column=change.column,
        what=WHAT.get(change.aspect, ""),
        reason=change.reason,
        effect=formatting.number(change.effect),
        importance=formatting.share(change.importance) if change.importance is not None else formatting.MISSING,
        level=level,
        verdict=verdict,
    )


def _weekly(cohort: "Cohort") -> Weekly:
    share = cohort.matured / cohort.predictions if cohort.predictions else 0.0
    score = cohort.score
    return Weekly(
        cohort.week,
        cohort.version,
        cohort.predictions,
        formatting.share(share),
        round(100 * share, 2),
        _interval(score) if score is not None and score.score is not None else "",
    )


def _interval(found: Estimate) -> str:
    places = formatting.digits(found.low, found.high)
    text = formatting.number(found.score, places)
    return (
        text
        if found.low is None
        else f"{text} [{formatting.number(found.low, places)}, {formatting.number(found.high, places)}]"
    )


def _rollout(standing: "RolloutState") -> str:
    way = {
        "canary": f"answers {formatting.share(standing.share)} of the traffic",
        "shadow": "answers beside the champion without being heard",
        "blue_green": "takes all traffic, the champion kept loaded",
    }.get(standing.strategy, "is rolled out")
    state = "Paused: version" if standing.state == "paused" else "Version"
    return (
        f"{state} {standing.candidate} {way}, since {formatting.moment(standing.since)} (step {standing.step + 1} of "
        f"{len(standing.shares)}), beside champion {standing.champion}. {standing.reason}"
    )


def _backtest(name: str, found: Mapping[str, Any]) -> Backtest | None:
    """What replay.json says; None where it is not what it should be."""
    try:
        metric = formatting.label(found["metric"])
        advice = found["recommendation"]
        chosen = advice["policy"] if advice else None
        sentence = (
            f"Recommended: {chosen}, {advice['reason']}." if advice else "No labels are known yet, so no policy is recommended."
        )
        about = (
            f"Windows of {found['step_days']} days from {formatting.day(found['first'])} to {formatting.day(found['last'])}, "
            f"each with only what was known then. CPU minutes: {found['cost']}. "
            "A false alarm is one after which a model trained at once would not surely have been better in the next windows."
        )
        rows = [_policy(each, chosen) for each in found["outcomes"]]
        return Backtest(sentence, about, rows, metric, time_series.backtest(found))
    except (KeyError, TypeError, ValueError) as error:
        log.warning("page: the replay of %s cannot be read, so the page leaves it out: %r", name, error)
        return None


def _policy(outcome: Mapping[str, Any], chosen: str | None) -> Policy:
    quality, gain = (Estimate.model_validate(outcome[part]) for part in ("quality", "gain"))
    places = formatting.digits(quality.low, quality.high)
    within = (
        f"[{formatting.number(quality.low, places)}, {formatting.number(quality.high, places)}]"
        if quality.low is not None
        else ""
    )
    return Policy(
        name=outcome["policy"],
        quality=formatting.number(quality.score, places),
        interval=within,
        gain=formatting.signed(gain.score, places) if outcome["retrainings"] else formatting.MISSING,
        retrainings=outcome["retrainings"],
        promoted=outcome["promoted"],
        cpu=formatting.number(outcome["cpu_minutes"], 1),
        per_minute=formatting.number(outcome["gain_per_cpu_minute"]),
        alarms=outcome["alarms"],
        false_alarms=outcome["false_alarms"],
        chosen=outcome["policy"] == chosen,
    )
