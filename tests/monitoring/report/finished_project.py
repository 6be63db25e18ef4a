"""A project after a whole run, as the report page reads it: params, metrics, files of each step."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout
from tests.monitoring.report.plot_tables import plot_tables
from tests.monitoring.report.tree import Tree

PARAMS = """
project: {name: little store, as_of: "2017-12-31"}
problems: {recommend: recommendation, redeem: classification, spend: regression, segments: clustering}
ingest: {transactions: {csv: transactions.csv, time: day}}
recommend:
  question: Which ten products come next?
  features: {table: transactions, user: household, item: product, basket: basket}
redeem: &rows
  question: Will this household redeem a coupon?
  features: {entity: household, horizon_days: 28, cutoffs: {first: "2017-02-26"}}
spend:
  question: How much will this household spend?
  features: {entity: household, horizon_days: 28, cutoffs: {first: "2017-02-26"}}
segments:
  question: What kinds of households shop here?
  features: {entity: household, horizon_days: 28, cutoffs: {first: "2017-02-26"}}
"""
ONE = (
    re.sub(r"(?ms)^problems:.*?$|^(recommend|spend|segments):.*?(?=^\S|\Z)", "", PARAMS) + "problems: {redeem: classification}"
)
"""The same project with a single problem: its page is made in a moment."""
CUTOFFS = ("2017-10-08", "2017-11-05", "2017-12-03")
Metrics = list[tuple[str, bool, float, float, float]]
"""Name, whether more is better, score, half of its interval, baseline."""
METRICS: dict[str, Metrics] = {
    "recommend": [
        ("ndcg", True, 0.4133, 0.012, 0.176),
        ("recall", True, 0.0985, 0.004, 0.036),
        ("ndcg_novel", True, 0.0520, 0.0041, 0.0406),
        ("coverage", True, 0.21, 0.01, 0.0005),
    ],
    "redeem": [
        ("roc_auc", True, 0.8951, 0.013, 0.5),
        ("log_loss", False, 0.1392, 0.011, 0.193),
        ("brier", False, 0.0361, 0.003, 0.041),
    ],
    "spend": [("rmse", False, 107.62, 5.2, 110.49), ("mae", False, 73.41, 2.4, 75.9), ("r2", True, 0.672, 0.02, 0.651)],
    "segments": [
        ("silhouette", True, 0.2934, 0.006, 0.18),
        ("davies_bouldin", False, 1.09, 0.02, 1.62),
        ("stability", True, 0.914, 0.03, 0.93),
    ],
}
MODELS = {
    "recommend": ("two_stage", "popularity"),
    "redeem": ("lightgbm", "prior"),
    "spend": ("lightgbm", "naive"),
    "segments": ("kmeans", "quantiles"),
}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def evaluation(problem: str, kind: str) -> dict[str, Any]:
    metrics = []
    for name, greater, score, half, baseline in METRICS[problem]:
        gain = score - baseline if greater else baseline - score
        metrics.append(
            {"name": name, "greater_is_better": greater, "score": score, "low": score - half, "high": score + half}
            | {"baseline": baseline, "gain": gain, "gain_low": gain - 0.7 * half, "gain_high": gain + 0.7 * half}
        )
    windows = [
        {"cutoff": cutoff, "trained_on": ["2017-02-26"] * (10 + place), "rows": 2209 - place}
        | {"scores": {m["name"]: m["score"] * (1 + 0.02 * (place - 1)) for m in metrics}}
        | {"baseline": {m["name"]: m["baseline"] * (1 + 0.03 * (place - 1)) for m in metrics}}
        for place, cutoff in enumerate(CUTOFFS)
    ]
    first = metrics[0]
    slices = [
        {"feature": "income_band", "value": value, "rows": 311 + 7 * place}
        | {
            "score": first["score"] * (0.95 + 0.05 * place),
            "low": first["low"] * (0.92 + 0.05 * place),
            "high": first["high"] * (0.97 + 0.05 * place),
        }
        for place, value in enumerate(("under 35K", "35-74K", "75K and more"))
    ]
    model, baseline = MODELS[problem]
    return {
        "problem": problem,
        "kind": kind,
        "question": "as in params",
        "model": model,
        "config": {"model": model, "leaves": 15},
    } | {
        "baseline": baseline,
        "primary": first["name"],
        "confidence": 0.95,
        "rows": 6624,
        "entities": 2390,
        "windows": windows,
        "metrics": metrics,
        "slices": slices,
        "cutoff": CUTOFFS[-1],
    }


def fill(layout: Layout, problem: str, kind: str) -> None:
    """Everything that the steps of one problem leave behind."""
    judged = evaluation(problem, kind)
    write(layout.report(problem) / "evaluation" / "evaluation.json", judged)
    (layout.report(problem) / "plots").mkdir()
    for name, table in plot_tables(kind).items():
        table.write_csv(layout.report(problem) / "plots" / f"{name}.csv")
    model, baseline = MODELS[problem]
    importance = {f"spend_{days}d": 100 / days for days in range(7, 28)}
    card = {"problem": problem, "kind": kind, "config": {"model": model, "learning_rate": 0.05, "leaves": 15}}
    write(
        layout.model(problem) / "model.json",
        card
        | {
            "cutoff": CUTOFFS[-1],
            "trained_on": list(CUTOFFS),
            "rows": 24210,
            "features": list(importance),
            "importance": importance,
        },
    )
    greater, score, worse = (
        judged["metrics"][0]["greater_is_better"],
        judged["metrics"][0]["score"],
        judged["metrics"][0]["baseline"],
    )
    scores = [worse, score + (worse - score) * 0.1, score + (worse - score) * 0.2, score, None, score + (worse - score) * 0.05]
    best = {"model": model, "config": card["config"], "metric": judged["primary"], "score": score, "std": 0.01, "method": "tpe"}
    write(
        layout.tuning(problem) / "best.json", best | {"trials": 6, "seconds": 41.3, "models": {baseline: worse, model: score}}
    )
    started = datetime(2026, 1, 1, tzinfo=UTC)
    pl.DataFrame(
        {
            "number": range(6),
            "state": ["complete"] * 4 + ["failed", "complete"],
            "model": [baseline] + [model] * 5,
            "score": scores,
            "started": [started + timedelta(seconds=7 * place) for place in range(6)],
        }
    ).write_parquet(layout.tuning(problem) / "trials.parquet")
    assert greater in (True, False)
    for step, cpu in (("features", 3.2), ("tune", 64.0), ("train", 4.1), ("evaluate", 9.7)):
        spent = {
            "started": "2026-01-01T10:00:00+00:00",
            "wall_seconds": cpu * 1.1,
            "cpu_seconds": cpu,
            "peak_mb": 412.0 + cpu * 10,
        }
        write(layout.cost(step, problem), spent)


def champion(problem: str) -> dict[str, Any]:
    first = evaluation(problem, "any")["windows"][-1]["scores"]
    metric = next(iter(first))
    verdict = {"decision": "better", "promote": True, "metric": metric, "candidate": first[metric]}
    return {
        "version": 3,
        "aliases": ["champion"],
        "since": datetime(2026, 1, 1, 10, 30, tzinfo=UTC),
        "by": "training flow",
        "reason": "first",
        "verdict": verdict | {"reason": f"promoted: {metric} beats baseline by much (2,209 rows)"},
        "lineage": {"git_commit": "0123abc", "dirty": "False", "cutoff": CUTOFFS[-1]},
    }


def validation(layout: Layout, category: str = "quantity at least 0") -> None:
    rules = [
        {
            "name": category,
            "type": "expect_column_values_to_be_between",
            "columns": ["quantity"],
            "severity": "error",
            "level": "row",
        }
        | {
            "checked": 1469307,
            "failed": 4836,
            "share": 0.0033,
            "examples": [{"row": 17, "values": {"quantity": -4}}],
            "passed": False,
        },
        {
            "name": "sales are positive",
            "type": "expect_column_values_to_be_between",
            "columns": ["sales_value"],
            "severity": "warning",
        }
        | {"level": "row", "checked": 1469307, "failed": 11226, "share": 0.0076, "examples": [], "passed": False},
        {"name": "household known", "type": "present", "columns": ["household_id"], "severity": "error", "level": "row"}
        | {"checked": 1469307, "failed": 0, "share": 0.0, "examples": [], "passed": True},
    ]
    table = {
        "read": 1469307,
        "kept": 1464471,
        "quarantined": 4836,
        "received": 1234,
        "duplicates": 0,
        "passed": True,
        "page": None,
        "rules": rules,
    }
    write(layout.validation / "results.json", {"passed": True, "problems": [], "tables": {"transactions": table}})
    spent = {"started": "2026-01-01T09:58:00+00:00", "wall_seconds": 21.0, "cpu_seconds": 19.5, "peak_mb": 1480.0}
    write(layout.cost("validate", None), spent)


def project(folder: Path, text: str = PARAMS, missing: tuple[str, ...] = ()) -> tuple[Params, Layout, dict[str, Any]]:
    """A project after a whole run, but for the problems in `missing`."""
    (folder / "params.yaml").write_text(text)
    params, layout = loading.load(folder / "params.yaml"), Layout(folder)
    there = [name for name in params.problems if name not in missing]
    for name in there:
        fill(layout, name, params.problems[name])
    validation(layout)
    return params, layout, {name: champion(name) for name in there}


def read(path: Path) -> Tree:
    tree = Tree(path.read_text(encoding="utf8"))
    assert tree.open == [], f"{tree.open} never close"
    return tree
