"""Drift of features, predictions and labels between a window of production and the reference data.

Statistics are Evidently's. Thresholds come from draws without drift from the reference itself (drift.null_distribution), for
all columns jointly (Benjamini and Hochberg, at the level at which a share false_alarm_rate of windows without drift raises an
alarm).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from evergreen.monitoring.drift import comparable_columns, histograms, null_distribution
from evergreen.monitoring.drift.comparable_columns import ITEMS
from evergreen.monitoring.drift.histograms import Bins, Categories, Form, Histogram
from evergreen.monitoring.drift.reference_data import Part, PartName, Reference, moments
from evergreen.monitoring.ledger.records import Aspect, Change, Drift
from evergreen.tasks import problems
from evergreen.tasks.config.operations import Monitor
from evergreen.tasks.config.params import KindName
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Predictions

CERTAIN = 1e-12
"""p of a change that only drift explains, such as a missing column."""
TRIES = 20
"""Coverage is the mean over so many draws of lists from the window."""


@dataclass(frozen=True)
class Test:
    """One statistic of one column, and its p in each draw without drift."""

    column: str
    what: Aspect
    statistic: str
    value: float
    p: float
    effect: float
    reason: str
    drawn: np.ndarray = field(repr=False)
    """Values of the statistic without drift."""
    null: np.ndarray = field(repr=False)
    """The p of each draw, by all statistics of this column."""
    share: float = 1.0
    """Of the p that this statistic alone must reach: half where another one is tried beside it."""


def compare(reference: Reference, predicted: "Predictions", policy: Monitor, seed: int) -> Drift:
    """Changes from `reference` to `predicted`, alarms first; none with fewer than policy.min_rows rows."""
    rows = predicted.rows.height
    if rows < policy.min_rows:
        why = f"{rows} predictions; min_rows = {policy.min_rows} are needed"
        return Drift(changes=(), reference_rows=reference.rows, alarm=False, skipped=why)
    entity = predicted.rows["entity"] if "entity" in predicted.rows.columns else None
    tests, columns = [], []
    for name, frame, there in sides(reference, predicted):
        who = entity.filter(there) if entity is not None else None
        if frame.height < policy.min_rows:
            continue
        tests += _tests(reference, name, frame, _size(frame, who), policy, seed)
        if name == "features":
            columns += _columns(reference, frame, policy)
    changes = [*columns, *_judge(reference, tests, policy)]
    changes.sort(key=lambda each: (not each.alarm, not each.significant, 1.0 if each.p is None else each.p, each.column))
    return Drift(changes=tuple(changes), reference_rows=reference.rows, alarm=any(each.alarm for each in changes))


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


def _size(frame: pl.DataFrame, entity: pl.Series | None) -> int:
    """Entities in the window; a row without entity counts as one."""
    if entity is None:
        return frame.height
    return entity.drop_nulls().n_unique() + entity.null_count()


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
            )
            for name in gone
        ),
        *(
            Change(
                column=name,
                aspect="feature",
                statistic="none",
                value=None,
                threshold=None,
                p=None,
                effect=None,
                importance=0.0 if importance else None,
                significant=False,
                alarm=False,
                reason="the column is new: this version does not know it",
            )
            for name in new
        ),
    ]


def _tests(reference: Reference, part: PartName, frame: pl.DataFrame, size: int, policy: Monitor, seed: int) -> list[Test]:
    side = reference.parts[part]
    drawn = reference.drawn(part, size, policy.resamples, seed)
    found = []
    for name, now in histograms.profile(frame, side.bins).items():
        bins, was = side.bins[name], side.profile[name]
        values = {key: rows for (column, key), rows in drawn.items() if column == name}
        found += _of_column(name, _what(part, reference.facts.kind), bins, was, now, values)
    if ITEMS in frame.columns and ("coverage", "items") in drawn:
        found.append(
            _coverage(side, frame[ITEMS].drop_nulls(), null_distribution.rounded(size), drawn["coverage", "items"], seed)
        )
    return found


def _coverage(side: Part, lists: pl.Series, size: int, drawn: np.ndarray, seed: int) -> Test:
    """How many items there are in as many lists as those of the draws; as a share of what is usual."""
    random, count = np.random.default_rng(seed), min(side.lists(size), len(lists))
    tries = [comparable_columns.coverage(lists, random.choice(len(lists), count, replace=False)) for _ in range(TRIES)]
    usual, now = float(drawn.mean()), float(np.mean(tries))
    far = np.abs(drawn - usual) / usual
    value = abs(now - usual) / usual
    p = null_distribution.p_values(far, np.array([value, *far]))
    reason = f"{usual:.0f} items in {count} lists to {now:.0f}"
    return Test("coverage", "ranking", "share", value, float(p[0]), value, reason, far, p[1:])


def _what(part: PartName, kind: KindName) -> Aspect:
    if part == "features":
        return "feature"
    if part == "labels":
        return "label"
    return problems.predictions(kind).aspect


def _of_column(name: str, what: Aspect, bins: Bins, was: Histogram, now: Histogram, drawn: dict[str, np.ndarray]) -> list[Test]:
    found = []
    if was.present and now.present:
        found.append(_values(name, what, bins, was, now, drawn))
    if "unseen" in drawn and isinstance(bins, Categories) and now.present:
        share = float(now.counts[-1] / now.rows)
        reason = f"{share:.1%} of rows are of categories that training did not know"
        found.append(_share(name, "unseen", share, reason, drawn["unseen"]))
    if "missing" in drawn:
        change = abs(now.missing - was.missing)
        odd = f" ({now.odd:,} of them not finite numbers)" if now.odd else ""
        reason = f"{now.missing:.1%} of rows are missing{odd}, {was.missing:.1%} in training"
        found.append(_share(name, "missing", change, reason, drawn["missing"]))
    return found


def _share(name: str, what: Aspect, value: float, reason: str, drawn: np.ndarray) -> Test:
    p = null_distribution.p_values(drawn, np.array([value, *drawn]))
    return Test(name, what, "share", value, float(p[0]), value, reason, drawn, p[1:])


def _values(name: str, what: Aspect, bins: Bins, was: Histogram, now: Histogram, drawn: dict[str, np.ndarray]) -> Test:
    mine, other = (each.counts / each.present for each in (now, was))
    if isinstance(bins, Categories):
        value, effect = float(histograms.jensenshannon(mine, other)), float(histograms.variation(mine, other))
        p = null_distribution.p_values(drawn["jensenshannon"], np.array([value, *drawn["jensenshannon"]]))
        most = int(np.abs(mine - other).argmax())
        reason = f"{bins.label(most)}: {other[most]:.1%} of rows to {mine[most]:.1%}"
        return Test(name, what, "jensenshannon", value, float(p[0]), effect, reason, drawn["jensenshannon"], p[1:])
    apart = float(histograms.kolmogorov(mine, other))
    tried = {"ks": apart}
    if "wasserstein" in drawn:
        far = histograms.wasserstein(bins, mine, now.beyond / now.present, other, was.beyond / was.present)
        tried["wasserstein"] = float(far)
    p = {key: null_distribution.p_values(drawn[key], np.array([value, *drawn[key]])) for key, value in tried.items()}
    best = min(tried, key=lambda key: p[key][0])
    combined = np.minimum(len(tried) * np.min(list(p.values()), axis=0), 1.0)
    reason = f"mean {bins.mean(was):.4g} to {bins.mean(now):.4g}"
    effect = max(tried.values())
    return Test(name, what, best, tried[best], float(combined[0]), effect, reason, drawn[best], combined[1:], 1 / len(tried))


def _judge(reference: Reference, tests: Sequence[Test], policy: Monitor) -> list[Change]:
    """All tests combined."""
    if not tests:
        return []
    at = null_distribution.level(np.stack([each.null for each in tests]), policy.false_alarm_rate)
    drifts, cut = null_distribution.discoveries([each.p for each in tests], at)
    return [_change(reference, each, found, cut, policy) for each, found in zip(tests, drifts, strict=True)]


def _change(reference: Reference, test: Test, drifts: bool, cut: float, policy: Monitor) -> Change:
    known = reference.facts.importance
    is_feature = test.what in ("feature", "missing", "unseen") and test.column in reference.facts.forms.get("features", {})
    importance = known.get(test.column, 0.0) if known and is_feature else None
    large = test.effect >= policy.min_effect
    matters = importance is None or importance >= policy.min_importance
    why = [] if large else [f"smaller than min_effect {policy.min_effect:g}"]
    why += [] if matters else [f"the model hardly uses it ({importance:.1%} of its importance)"]
    reason = test.reason if not drifts or not why else f"{test.reason}; no alarm: {', and '.join(why)}"
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
        alarm=drifts and large and matters,
        reason=reason,
    )
