"""The newest monitoring run of each problem as Prometheus text, var/metrics.prom, for node_exporter's textfile collector."""

from collections.abc import Iterator
from pathlib import Path

from evergreen.monitoring.ledger.decisions import DecisionLog, MonitoringRun
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout, writing

Sample = tuple[str, dict[str, str], float]
"""Metric, labels beside the problem, value."""

GAUGES = {
    "evergreen_champion_version": "Version that was monitored.",
    "evergreen_window_predictions": "Predictions in the newest window.",
    "evergreen_window_end_seconds": "End of the newest window, seconds since 1970.",
    "evergreen_new_labels": "Rows with a label that the champion was not trained on.",
    "evergreen_drift_alarm": "1 if a drift alarm was raised.",
    "evergreen_drifting_columns": "Columns that differ significantly from the reference data.",
    "evergreen_score": "Score: expected (evaluation), realised (labels), or estimated (before labels arrive).",
    "evergreen_labels_matured": "Share of the newest window's predictions that have a label.",
    "evergreen_retrain": "1 if the newest monitoring run decided to retrain.",
}


def write(layout: Layout, log: DecisionLog) -> Path:
    """Write the file, whole or not at all; returns its path."""
    lines: dict[str, list[str]] = {name: [] for name in GAUGES}
    for problem in load(layout.params).problems:
        for run in log.runs(problem, last=1):
            for name, labels, value in _samples(run):
                text = ",".join(f'{key}="{word}"' for key, word in {"problem": problem, **labels}.items())
                form = ".0f" if name == "evergreen_window_end_seconds" else "g"
                lines[name].append(f"{name}{{{text}}} {value:{form}}")
    path = layout.var / "metrics.prom"
    with writing(path) as scratch:
        text = [
            line
            for name, samples in lines.items()
            if samples
            for line in (f"# HELP {name} {GAUGES[name]}", f"# TYPE {name} gauge", *samples)
        ]
        scratch.write_text("\n".join(text) + "\n" if text else "", encoding="utf8")
    return path


def _samples(run: MonitoringRun) -> Iterator[Sample]:
    decision, window = run.decision, run.decision.window
    yield "evergreen_champion_version", {}, window.version
    yield "evergreen_window_predictions", {}, window.rows
    yield "evergreen_window_end_seconds", {}, window.until.timestamp()
    yield "evergreen_new_labels", {}, window.new_labels
    yield "evergreen_drift_alarm", {}, window.drift.alarm
    yield "evergreen_drifting_columns", {}, sum(each.significant for each in window.drift.changes)
    yield "evergreen_retrain", {}, decision.retrain
    if (performance := window.performance) is not None:
        yield "evergreen_labels_matured", {}, performance.matured
        for name in ("expected", "realised", "estimated"):
            if (score := getattr(performance, name).score) is not None:
                yield "evergreen_score", {"metric": performance.metric, "of": name}, score
