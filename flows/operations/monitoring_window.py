"""What a monitoring run measures in one window: drift, performance and new labels of the champion."""

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from evergreen.flows import settings
from evergreen.flows.operations import batch_scoring, status
from evergreen.monitoring.ledger.decisions import end_of_day
from evergreen.monitoring.ledger.records import Estimate, Performance, Window
from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.prediction_type import Labelled

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Ledger, Predictions
    from evergreen.tasks.release.mlflow_store import Version

EXTRA_WINDOWS = 4
"""Windows before those whose labels mature that are read too: the estimate is fitted on them."""
MAX_WINDOWS = 26


def choose_day(params: Params, ledger: "Ledger", problem: str) -> date:
    """Today, unless params.yaml sets project.as_of and no prediction is later than that day."""
    as_of, today = params.project.as_of, datetime.now(UTC).date()
    if as_of is None or as_of >= today:
        return as_of or today
    latest = ledger.latest(problem)
    return today if latest is not None and latest > end_of_day(as_of) else as_of


def trained_until(champion: "Version") -> datetime:
    """The last moment covered by a version's training data."""
    try:
        return end_of_day(date.fromisoformat(champion.tags.get("as_of", "")))
    except ValueError:
        return champion.created


def score_if_unserved(layout: Layout, params: Params, ledger: "Ledger", champion: "Version", day: date) -> None:
    """Batch-score the newest features, if no server predicted in the window and no batch was scored on the day."""
    problem, until = champion.problem, end_of_day(day)
    section = params.section(problem)
    if not section.features.by_cutoff:
        return
    since = until - timedelta(days=section.monitor.window_days)
    found = ledger.read(problem, since=since, until=until, version=champion.version, features=False, labels=False).rows
    served = found.filter(pl.col("variant") != "batch").height
    if served or found.filter(pl.col("at") > until - timedelta(days=1)).height:
        return
    lists = batch_scoring.Lists(as_of=day)
    batch_scoring.newest(layout, params, problem, version=champion.version, lists=lists, at=min(until, datetime.now(UTC)))


def measure_window(
    layout: Layout, params: Params, champion: "Version", ledger: "Ledger", until: datetime
) -> tuple[Window, "Predictions"]:
    """The window of a version that ends at `until`, and its predictions."""
    from evergreen.monitoring.drift import detection, past_windows, reference_data, shop_changes

    problem = champion.problem
    section = params.section(problem)
    since = until - timedelta(days=section.monitor.window_days)
    predictions = ledger.read(problem, since=since, until=until, version=champion.version, known_at=until)
    reference = load_reference(layout, params, champion)
    predictions = detection.completed(layout, reference, predictions)
    folder = reference_data.place(layout, problem, champion.version)
    past = past_windows.load(folder, until, section.monitor.window_days)
    bought = problems.predictions(params.kind(problem)).purchases(layout.features(problem), section)
    policy = shop_changes.predictions_policy(section.monitor) if bought else section.monitor
    drift, seen = detection.examine(reference, predictions, policy, params.project.seed, past)
    if bought:
        lines, known = bought
        trained = trained_until(champion).date()
        drift = shop_changes.add(drift, shop_changes.examine(lines, known, until.date(), trained, section.monitor))
    if seen:
        past_windows.save(seen, folder, until)
    window = Window(
        problem=problem,
        version=champion.version,
        since=since,
        until=until,
        rows=predictions.rows.height,
        new_labels=count_new_labels(layout, params, champion, ledger, until),
        drift=drift,
        performance=_measure_performance(layout, params, champion, ledger, predictions, until),
    )
    return window, predictions


def load_reference(layout: Layout, params: Params, champion: "Version") -> Any:
    """The reference data of a version; built now if its training did not leave any."""
    from evergreen.monitoring.drift import reference_data

    found = reference_data.load(layout, champion.problem, champion.version)
    if found is not None:
        return found
    model = settings.registry(layout).load(champion.problem, champion.version)
    return reference_data.build(params, champion.problem, layout, model, champion.version)


def _measure_performance(
    layout: Layout, params: Params, champion: "Version", ledger: "Ledger", predictions: "Predictions", until: datetime
) -> Performance | None:
    from evergreen.monitoring.ledger.predictions import Predictions
    from evergreen.monitoring.performance.measurement import measure

    problem, section = champion.problem, params.section(champion.problem)
    kind = problems.predictions(params.kind(problem))
    if not isinstance(kind, Labelled):
        return None
    step = timedelta(days=section.monitor.window_days)
    count = min(_label_delay(section) // section.monitor.window_days + 1 + EXTRA_WINDOWS, MAX_WINDOWS)
    rows = ledger.read(
        problem, since=until - count * step, until=until - step, version=champion.version, features=False, known_at=until
    ).rows
    ends = [until - back * step for back in range(count - 1, 0, -1)]
    windows = [(end, Predictions(rows.filter(pl.col("at") > end - step, pl.col("at") <= end), pl.DataFrame())) for end in ends]
    earlier = [each for each in windows if each[1].rows.height]
    evaluated = _evaluation_rows(layout, problem, champion.version)
    expected = _expected_score(champion, kind.realised_metric(section).name)
    return measure(kind, section, expected, [*earlier, (until, predictions)], evaluated, params.project.seed)


def _label_delay(section: Problem) -> int:
    """Days until a label is known."""
    if section.monitor.label_delay_days is not None:
        return section.monitor.label_delay_days
    return getattr(section.features, "horizon_days", 0) or 0


def _evaluation_rows(layout: Layout, problem: str, version: int) -> pl.DataFrame | None:
    """The predictions of a version's evaluation; None where the newest evaluation is of another version."""
    path = layout.report(problem) / "evaluation" / "predictions.parquet"
    if not path.exists() or status.standing(layout, problem)[0] != version:
        return None
    return pl.read_parquet(path)


def _expected_score(champion: "Version", metric: str) -> Estimate:
    name = status.plain(metric)
    metrics = {status.plain(key): value for key, value in champion.metrics.items()}
    score, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    rows = champion.tags.get("verdict.rows", "0")
    return Estimate(score=score, low=low, high=high, rows=int(rows) if rows.isdigit() else 0)


def count_new_labels(layout: Layout, params: Params, champion: "Version", ledger: "Ledger", until: datetime) -> int:
    """Rows with a label that the version was not trained on: those of later cutoffs, else labelled predictions."""
    section, kind = params.section(champion.problem), problems.predictions(params.kind(champion.problem))
    if not isinstance(kind, Labelled):
        return 0
    last = champion.tags.get("cutoff", "none")
    if last != "none" and section.features.by_cutoff:
        counted = kind.count_labels(layout.features(champion.problem), section, date.fromisoformat(last), until.date())
        if counted is not None:
            return counted
    return ledger.count_labelled(champion.problem, trained_until(champion), until, known_at=until)
