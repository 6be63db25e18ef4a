"""Monitoring, retrainings and rollouts as Prometheus text, var/metrics.prom, for node_exporter's textfile collector."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from evergreen.flows import settings
from evergreen.monitoring.ledger.decisions import DecisionLog, MonitoringRun, RetrainingRecord
from evergreen.serving.metrics import Metric, counter, gauge, text
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout, writing
from evergreen.tasks.release.rollout_state import RolloutState

COLUMNS = 20
"""Columns whose drift effect is written: alarms first."""
FAMILIES: dict[str, tuple[Literal["gauge", "counter"], tuple[str, ...], str]] = {
    "evergreen_champion_version": ("gauge", (), "Version that was monitored."),
    "evergreen_window_predictions": ("gauge", (), "Predictions in the newest window."),
    "evergreen_window_end_timestamp_seconds": ("gauge", (), "End of the newest window, seconds since 1970."),
    "evergreen_new_labels": ("gauge", (), "Rows with a label that the champion was not trained on."),
    "evergreen_labels_matured_ratio": ("gauge", (), "Share of the newest window's predictions that have a label."),
    "evergreen_drift_alarm": ("gauge", (), "1 if a drift alarm was raised."),
    "evergreen_drifting_columns": ("gauge", (), "Columns that differ significantly from the reference data."),
    "evergreen_drift_effect": (
        "gauge", ("column", "aspect"), f"Effect size of the change of a column; the first {COLUMNS} columns, alarms first.",
    ),
    "evergreen_score": (
        "gauge", ("metric", "of"), "Score: expected (evaluation), realised (labels), or estimated (before labels arrive).",
    ),
    "evergreen_score_drop": ("gauge", ("metric",), "How much worse the newest score is than expected, in the metric's unit."),
    "evergreen_score_drop_low": (
        "gauge", ("metric",), "Lower end of that drop's confidence interval; above 0, the score is surely worse than expected.",
    ),
    "evergreen_retrain": ("gauge", (), "1 if the newest monitoring run decided to retrain."),
    "evergreen_retrainings_total": ("counter", ("outcome",), "Retrainings: promoted, refused, none, failed or cancelled."),
    "evergreen_retrainings_unfinished": ("gauge", (), "Retrainings that were begun and have not ended."),
    "evergreen_retraining_failed": ("gauge", (), "1 if the newest retraining that ended has failed."),
    "evergreen_rollout_step_timestamp_seconds": (
        "gauge", ("strategy", "state"), "Start of the current step of a rollout, seconds since 1970.",
    ),
}  # fmt: skip
"""Name -> type, labels beside the problem, meaning."""

Sample = tuple[str, tuple[str, ...], float]
"""Family, values of its labels beside the problem, value."""


def write(layout: Layout, log: DecisionLog) -> Path:
    """Write the file, whole or not at all; returns its path."""
    samples: dict[str, list[tuple[tuple[str, ...], float]]] = {name: [] for name in FAMILIES}
    rollouts = settings.rollouts(layout)
    for problem in load(layout.params).problems:
        for name, labels, value in [
            *(sample for run in log.runs(problem, last=1) for sample in _monitored(run)),
            *_retrained(log.retrainings(problem)),
            *_rolled_out(rollouts.current(problem)),
        ]:
            samples[name].append(((problem, *labels), float(value)))
    path = layout.var / "metrics.prom"
    with writing(path) as scratch:
        scratch.write_bytes(text(_family(name, found) for name, found in samples.items() if found))
    return path


def _family(name: str, samples: list[tuple[tuple[str, ...], float]]) -> Metric:
    kind, labels, about = FAMILIES[name]
    return (counter if kind == "counter" else gauge)(name, about, ("problem", *labels), samples)


def _monitored(run: MonitoringRun) -> Iterator[Sample]:
    decision, window = run.decision, run.decision.window
    yield "evergreen_champion_version", (), window.version
    yield "evergreen_window_predictions", (), window.rows
    yield "evergreen_window_end_timestamp_seconds", (), window.until.timestamp()
    yield "evergreen_new_labels", (), window.new_labels
    yield "evergreen_drift_alarm", (), window.drift.alarm
    yield "evergreen_drifting_columns", (), sum(each.significant for each in window.drift.changes)
    for change in window.drift.changes[:COLUMNS]:
        if change.effect is not None:
            yield "evergreen_drift_effect", (change.column, change.aspect), change.effect
    yield "evergreen_retrain", (), decision.retrain
    if (performance := window.performance) is not None:
        yield "evergreen_labels_matured_ratio", (), performance.matured
        for name in ("expected", "realised", "estimated"):
            if (score := getattr(performance, name).score) is not None:
                yield "evergreen_score", (performance.metric, name), score
        if (drop := performance.degradation()) is not None:
            yield "evergreen_score_drop", (performance.metric,), drop[0]
            yield "evergreen_score_drop_low", (performance.metric,), drop[1]


def _retrained(records: list[RetrainingRecord]) -> Iterator[Sample]:
    ended = [_outcome(each) for each in records if each.ended]
    counts = Counter(ended)
    for outcome in OUTCOMES:  # from the first write on, so that a rate sees the first one
        yield "evergreen_retrainings_total", (outcome,), counts[outcome]
    yield "evergreen_retrainings_unfinished", (), len(records) - len(ended)
    yield "evergreen_retraining_failed", (), ended[-1:] == ["failed"]


OUTCOMES = ("promoted", "refused", "none", "failed", "cancelled")


def _outcome(record: RetrainingRecord) -> str:
    if record.cancelled:
        return "cancelled"
    if record.promoted is not None:
        return "promoted" if record.promoted else "refused"
    return "failed" if (record.outcome or "").startswith("failed") else "none"


def _rolled_out(rollout: RolloutState | None) -> Iterator[Sample]:
    if rollout:
        yield "evergreen_rollout_step_timestamp_seconds", (rollout.strategy, rollout.state), rollout.since.timestamp()
