"""Drift of features, predictions and labels between a window of production and the reference data.

Three families of tests share the false alarms that are allowed. Data faults need no weeks (drift.data_faults). Drift of one
window is judged by draws without drift (drift.null_distribution), slopes by all windows since training (drift.trends); both
need to know how much weeks differ, and are not judged before. Within a family all columns are judged jointly (Benjamini and
Hochberg).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from evergreen.monitoring.drift import (
    column_tests,
    comparable_columns,
    data_faults,
    histograms,
    null_distribution,
    repeats,
    trends,
    week_effects,
)
from evergreen.monitoring.drift.column_tests import Test
from evergreen.monitoring.drift.comparable_columns import ITEMS
from evergreen.monitoring.drift.data_faults import Fault
from evergreen.monitoring.drift.histograms import Form, Histogram, Numbers
from evergreen.monitoring.drift.past_windows import PastWindow
from evergreen.monitoring.drift.reference_data import Part, PartName, PastPart, Reference, moments, weeks
from evergreen.monitoring.ledger.records import Aspect, Change, Drift
from evergreen.tasks import problems
from evergreen.tasks.config.operations import Monitor
from evergreen.tasks.config.params import KindName
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Predictions

CERTAIN = 1e-12
"""p of a change that only drift explains, such as a missing column."""
OF_DRIFT, OF_SLOPES, OF_FAULTS = 0.5, 0.2, 0.3
"""Each family's share of the false alarms that are allowed."""
OF_UNITS = ("range",)
"""Faults of units: only what is measured has one; predictions and labels follow."""
OF_THE_RANGE = ("moved", *OF_UNITS)
"""Faults that are about where the values lie."""
EPOCH = date(1970, 1, 1).toordinal() / 7
"""1 January 1970, in weeks."""
RANKS_PER_SD = 0.282
"""Change of the mean rank of normal values that move by a standard deviation."""


@dataclass(frozen=True, eq=False)
class WindowPart:
    """A part of the window beside the reference's."""

    name: PartName
    known: Part
    frame: pl.DataFrame
    weight: np.ndarray
    """Of each row: rows of a cluster count once together (drift.repeats)."""
    size: int
    """Clusters."""
    columns: dict[str, Histogram]
    past: Sequence[PastPart]
    what: Aspect

    @property
    def weeks(self) -> int:
        """Weeks that are known."""
        return len(self.known.times) + len(self.past)

    @property
    def is_known(self) -> bool:
        """Whether enough weeks are known to tell drift from a change between weeks."""
        return self.weeks >= week_effects.FEWEST_WEEKS


def compare(
    reference: Reference, predicted: "Predictions", policy: Monitor, seed: int, past: Sequence[PastWindow] = ()
) -> Drift:
    """The drift of `examine`."""
    return examine(reference, predicted, policy, seed, past)[0]


def examine(
    reference: Reference, predicted: "Predictions", policy: Monitor, seed: int, past: Sequence[PastWindow] = ()
) -> tuple[Drift, PastWindow | None]:
    """Changes from `reference` to `predicted`, alarms first, and the window as one of the `past` for later ones.

    `past`: windows of the same version, oldest first, that overlap neither with each other nor with this one. Nothing is tested
    with fewer than policy.min_rows clusters of rows. A window without time is None.
    """
    parts = list(_parts(reference, predicted, policy, past))
    rows = predicted.rows.height
    if not parts:
        clusters = int(np.round(_weights(reference, predicted, None).sum())) if rows else 0
        counted = f"{rows} predictions" if clusters == rows else f"{rows} predictions of {clusters} callers or different rows"
        why = f"{counted}; min_rows = {policy.min_rows} are needed"
        return Drift(changes=(), reference_rows=reference.rows, alarm=False, skipped=why), None
    newest = weeks(predicted.rows).max()
    time = newest.toordinal() / 7 - EPOCH if isinstance(newest, date) else None
    changes: list[Change] = []
    for each in parts:
        if each.name == "features":
            changes += _columns(reference, each.frame, policy)
    moving: dict[PartName, dict[str, str]] = {
        each.name: trends.find_trends(each.known) if each.name == "features" else {} for each in parts
    }
    faults = list(_faults(reference, parts, moving, policy))
    changes += faults
    changes += [_trend(name, why) for each in parts for name, why in moving[each.name].items() if name in each.columns]
    if time is not None:
        changes += _slopes(reference, parts, moving, time, policy)
    changes += _drifts(reference, parts, moving, faults, time, policy, seed)
    changes.sort(key=lambda each: (not each.alarm, not each.significant, 1.0 if each.p is None else each.p, each.column))
    unknown = [each for each in parts if not each.is_known]
    drift = Drift(
        changes=tuple(changes),
        reference_rows=reference.rows,
        alarm=any(each.alarm for each in changes),
        unknown=_too_short(unknown) if unknown else None,
    )
    return drift, None if time is None else _as_past(parts, changes, time)


def _too_short(unknown: Sequence[WindowPart]) -> str:
    named = ", ".join(f"{each.name} ({each.weeks} known)" for each in unknown)
    return f"too short to know: drift is told from a change between weeks once {week_effects.FEWEST_WEEKS} are known: {named}"


def _parts(reference: Reference, predicted: "Predictions", policy: Monitor, past: Sequence[PastWindow]) -> Iterator[WindowPart]:
    """The parts of the window with enough clusters of rows."""
    for name, frame, there in sides(reference, predicted):
        weight = _weights(reference, predicted, there)
        if weight.sum() < policy.min_rows - 1e-6:
            continue
        known = reference.parts[name]
        columns = histograms.profile(frame, known.bins, weight)
        before = [each[name] for each in past if name in each]
        what = _what(name, reference.facts.kind)
        yield WindowPart(name, known, frame, weight, round(weight.sum()), columns, before, what)


def _weights(reference: Reference, predicted: "Predictions", there: pl.Series | None) -> np.ndarray:
    """Of the rows of the window that are `there`."""
    rows = predicted.rows if there is None else predicted.rows.filter(there)
    if not rows.height:
        return np.zeros(0)
    entity = rows["entity"] if "entity" in rows.columns else None
    features, chance = pl.DataFrame(), 1.0
    if "features" in reference.parts:
        part, roles = reference.parts["features"], reference.facts.roles
        comparable = [each for each in part.forms if roles.get(each) != "date" and each in predicted.features.columns]
        chance = part.chance_of_copy(comparable)
        features = predicted.features.select(comparable)
        features = features if there is None else features.filter(there)
    return repeats.weights(repeats.clusters(features, entity, chance, rows.height))


def _as_past(parts: Sequence[WindowPart], changes: Sequence[Change], time: float) -> PastWindow:
    changed = {each.column for each in changes if each.significant}
    faulty = frozenset(each.column for each in changes if each.significant and each.fault)
    return {each.name: PastPart(time, each.columns, frozenset(each.columns) - changed, faulty) for each in parts}


def completed(layout: Layout, reference: Reference, predicted: "Predictions") -> "Predictions":
    """`predicted` with columns from the project's features, such as the share of repeats in a list."""
    kind, folder = problems.predictions(reference.facts.kind), layout.features(reference.facts.problem)
    return replace(predicted, rows=kind.with_history(predicted.rows, folder))


def report(reference: Reference, predicted: "Predictions", drift: Drift, path: Path, seed: int) -> Path:
    """Write the Evidently report of `predicted` and `reference`, the largest drift first.

    Returns `path`.
    """
    from evergreen.monitoring.drift import evidently_report  # takes seconds to import

    was: list[pl.DataFrame] = []
    now: list[pl.DataFrame] = []
    forms: dict[str, Form] = {}
    for name, frame, _ in sides(reference, predicted):
        part = reference.parts[name]
        fresh: dict[str, Form] = {
            each: form for each, form in part.forms.items() if each in frame.columns and each not in forms
        }
        was.append(part.rows.select(list(fresh)))
        now.append(frame.select(list(fresh)))
        forms |= fresh
    values = {each.column: each for each in drift.changes if each.statistic in ("wasserstein", "ks", "jensenshannon")}
    return evidently_report.write(_side_by_side(was), _side_by_side(now), forms, values, path, seed)


def _side_by_side(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """As columns of one frame; the shorter ones end in missing values."""
    return pl.concat(frames, how="horizontal_extend") if frames else pl.DataFrame()


def sides(reference: Reference, predicted: "Predictions") -> list[tuple[PartName, pl.DataFrame, pl.Series]]:
    """Part, its columns in the window, and which rows of the window they cover."""
    facts, rows = reference.facts, predicted.rows
    kind = problems.predictions(facts.kind)
    every = pl.Series([True] * rows.height, dtype=pl.Boolean)
    points = comparable_columns.features(predicted.features, facts.roles, moments(rows) if facts.roles else None)
    found: list[tuple[PartName, pl.DataFrame, pl.Series]] = []
    if "features" in reference.parts:
        found.append(("features", points, every))
    if "predictions" in reference.parts:
        found.append(("predictions", kind.comparable(rows, points, facts.context), every))
    if "labels" in reference.parts and "label" in rows.columns:
        known = rows["label"].is_not_null()
        found.append(("labels", kind.comparable_labels(rows["label"].filter(known)), known))
    return found


def _what(part: PartName, kind: KindName) -> Aspect:
    if part == "features":
        return "feature"
    if part == "labels":
        return "label"
    return problems.predictions(kind).aspect


def _columns(reference: Reference, frame: pl.DataFrame, policy: Monitor) -> list[Change]:
    """Features that are gone, and those that are new."""
    known, importance = reference.parts["features"].forms, reference.facts.importance
    gone = [name for name in known if name not in frame.columns]
    new = [name for name in frame.columns if name not in known]
    return [
        *(
            Change(
                column=name,
                aspect="missing",
                statistic="share",
                value=1.0,
                threshold=None,
                p=0.0,
                effect=1.0,
                importance=importance.get(name, 0.0) if importance else None,
                significant=True,
                alarm=not importance or importance.get(name, 0.0) >= policy.min_importance,
                reason="the column is gone",
                fault=True,
            )
            for name in gone
        ),
        *(
            _not_compared(name, "feature", "the column is new: this version does not know it", 0.0 if importance else None)
            for name in new
        ),
    ]


def _trend(name: str, why: str) -> Change:
    reason = f"{why} in training, so its values are not compared; a difference or an age that stays the same can be"
    return _not_compared(name, "trend", reason)


def _not_compared(name: str, aspect: Aspect, reason: str, importance: float | None = None) -> Change:
    """A column that is reported without a statistic."""
    return Change(
        column=name,
        aspect=aspect,
        statistic="none",
        value=None,
        threshold=None,
        p=None,
        effect=None,
        importance=importance,
        significant=False,
        alarm=False,
        reason=reason,
    )


def _faults(
    reference: Reference, parts: Sequence[WindowPart], moving: dict[PartName, dict[str, str]], policy: Monitor
) -> Iterator[Change]:
    """Data faults that are beyond chance.

    A column that moves by nature leaves the values of training without a fault.
    """
    found: list[Fault] = []
    for each in parts:
        for name, now in each.columns.items():
            faults = data_faults.find(each.known, name, each.frame[name], each.weight, now)
            meaningless = OF_THE_RANGE if name in moving[each.name] else () if each.name == "features" else OF_UNITS
            found += [fault for fault in faults if fault.aspect not in meaningless]
    sure, _ = null_distribution.discoveries([each.p for each in found], OF_FAULTS * policy.false_alarm_rate)
    for fault, significant in zip(found, sure, strict=True):
        if not significant:
            continue
        importance = _importance(reference, fault.column, fault.aspect)
        why = [] if fault.share >= policy.min_fault else [f"fewer rows than min_fault {policy.min_fault:g}"]
        why += _unimportant(importance, policy)
        yield Change(
            column=fault.column,
            aspect=fault.aspect,
            statistic="share",
            value=fault.share,
            threshold=None,
            p=fault.p,
            effect=fault.share,
            importance=importance,
            significant=True,
            alarm=not why,
            reason=_no_alarm(fault.reason, why),
            fault=True,
        )


def _slopes(
    reference: Reference, parts: Sequence[WindowPart], moving: dict[PartName, dict[str, str]], time: float, policy: Monitor
) -> Iterator[Change]:
    """Columns of numbers that have changed little by little since training."""
    found: list[tuple[WindowPart, str, trends.Slope]] = []
    for each in parts:
        names = [name for name in each.columns if isinstance(each.known.bins[name], Numbers) and name not in moving[each.name]]
        slopes = trends.find_slopes(each.known, names, each.past, each.columns, time)
        found += [(each, name, slope) for name, slope in slopes.items()]
    sure, _ = null_distribution.discoveries([each.p for _, _, each in found], OF_SLOPES * policy.false_alarm_rate)
    for (part, name, slope), significant in zip(found, sure, strict=True):
        if not significant:
            continue
        effect = abs(slope.change) / RANKS_PER_SD
        importance = _importance(reference, name, part.what)
        why = [] if effect >= policy.min_effect else [f"smaller than min_effect {policy.min_effect:g}"]
        why += _unimportant(importance, policy)
        rises = "rises" if slope.per_week > 0 else "falls"
        reason = f"{rises} by about {abs(slope.per_week) / RANKS_PER_SD:.2g} standard deviations a week"
        yield Change(
            column=name,
            aspect=part.what,
            statistic="slope",
            value=slope.per_week,
            threshold=None,
            p=slope.p,
            effect=effect,
            importance=importance,
            significant=True,
            alarm=not why,
            reason=_no_alarm(reason, why),
        )


def _drifts(
    reference: Reference,
    parts: Sequence[WindowPart],
    moving: dict[PartName, dict[str, str]],
    faults: Sequence[Change],
    time: float | None,
    policy: Monitor,
    seed: int,
) -> Iterator[Change]:
    """Drift of this window, of each part that knows enough weeks; the others' changes are told without a judgement."""
    found = [(each, test) for each in parts for test in _tests(reference, each, moving[each.name], time, policy, seed)]
    shown = {(each.column, each.aspect) for each in faults}
    found = [(each, test) for each, test in found if (test.column, test.what) not in shown]
    judged = [test for each, test in found if each.is_known]
    rate = OF_DRIFT * policy.false_alarm_rate
    at = null_distribution.level(np.stack([each.null for each in judged]), rate) if judged else rate
    sure, cut = null_distribution.discoveries([each.p for each in judged], at)
    significant = {id(test) for test, each in zip(judged, sure, strict=True) if each}
    faulty = {each.column for each in faults if each.alarm and each.needs_repair}
    for each, test in found:
        open_question = None if each.is_known else f"{each.weeks} of {week_effects.FEWEST_WEEKS} weeks are known"
        if test.column in faulty:
            open_question = "see its data fault"
        yield _change(reference, test, id(test) in significant, cut, policy, open_question)


def _tests(
    reference: Reference, part: WindowPart, moving: dict[str, str], time: float | None, policy: Monitor, seed: int
) -> Iterator[Test]:
    drawn = reference.drawn(part.name, part.size, policy.resamples, seed, time, part.past)
    for name, now in part.columns.items():
        values = {key: rows for (column, key), rows in drawn.items() if column == name}
        tests = column_tests.of_column(name, part.what, part.known.bins[name], part.known.profile[name], now, values)
        yield from (each for each in tests if name not in moving or each.what == "missing")
    if ITEMS in part.frame.columns and ("coverage", "items") in drawn:
        lists, size = part.frame[ITEMS].drop_nulls(), null_distribution.rounded(part.size)
        yield column_tests.of_coverage(part.known, lists, size, drawn["coverage", "items"], seed)


def _change(reference: Reference, test: Test, drifts: bool, cut: float, policy: Monitor, open_question: str | None) -> Change:
    importance = _importance(reference, test.column, test.what)
    large = test.effect >= policy.min_effect
    why = [] if large else [f"smaller than min_effect {policy.min_effect:g}"]
    why += _unimportant(importance, policy)
    why += [open_question] if open_question else []
    told = drifts or (open_question is not None and test.p <= cut)
    return Change(
        column=test.column,
        aspect=test.what,
        statistic=test.statistic,
        value=test.value,
        threshold=null_distribution.threshold(test.drawn, cut * test.share),
        p=test.p,
        effect=test.effect,
        importance=importance,
        significant=drifts,
        alarm=drifts and not why,
        reason=_no_alarm(test.reason, why) if told else test.reason,
    )


def _importance(reference: Reference, column: str, aspect: Aspect) -> float | None:
    known = reference.facts.importance
    features = aspect not in ("prediction", "label", "ranking", "segments", "purchases")
    return known.get(column, 0.0) if known and features and column in reference.facts.forms.get("features", {}) else None


def _unimportant(importance: float | None, policy: Monitor) -> list[str]:
    if importance is None or importance >= policy.min_importance:
        return []
    return [f"the model hardly uses it ({importance:.1%} of its importance)"]


def _no_alarm(reason: str, why: Sequence[str]) -> str:
    return f"{reason}; no alarm: {', and '.join(why)}" if why else reason
