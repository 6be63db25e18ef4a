"""The page: everything that was made is on it, what is missing is named, and it asks the network for nothing."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evergreen.monitoring.ledger.cohorts import Cohort
from evergreen.monitoring.ledger.decisions import RetrainingRecord
from evergreen.monitoring.ledger.records import Change, Decision, Drift, Estimate, Performance, Window
from evergreen.monitoring.report import formatting, page, plots, production_section
from evergreen.monitoring.report.production_section import ProductionRecords
from evergreen.tasks.config import loading
from evergreen.tasks.config import params as known
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


def _write(path: Path, value: Any) -> None:
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
    _write(layout.report(problem) / "evaluation" / "evaluation.json", judged)
    (layout.report(problem) / "plots").mkdir()
    for name, table in plot_tables(kind).items():
        table.write_csv(layout.report(problem) / "plots" / f"{name}.csv")
    model, baseline = MODELS[problem]
    importance = {f"spend_{days}d": 100 / days for days in range(7, 28)}
    card = {"problem": problem, "kind": kind, "config": {"model": model, "learning_rate": 0.05, "leaves": 15}}
    _write(
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
    _write(
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
        _write(layout.cost(step, problem), spent)


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
        | {"checked": 1469307, "failed": 4836, "share": 0.0033, "examples": [{"row": 17, "quantity": -4}], "passed": False},
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
        "duplicates": 0,
        "passed": True,
        "page": None,
        "rules": rules,
    }
    _write(layout.validation / "results.json", {"passed": True, "problems": [], "tables": {"transactions": table}})
    spent = {"started": "2026-01-01T09:58:00+00:00", "wall_seconds": 21.0, "cpu_seconds": 19.5, "peak_mb": 1480.0}
    _write(layout.cost("validate", None), spent)


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.build(*project(tmp_path_factory.mktemp("whole")))


def test_the_page_lies_where_the_layout_says_and_is_small(whole: Path):
    assert whole.name == "index.html"
    assert whole.stat().st_size < 1_500_000


def test_each_question_its_champion_score_baseline_and_verdict_are_on_the_page(whole: Path):
    said = read(whole).said
    for text in (
        "Which ten products come next?",
        "Will this household redeem a coupon?",
        "How much will this household spend?",
    ):
        assert text in said
    for score in ("0.413", "0.895", "107.6", "0.2934"):
        assert score in said
    assert "ROC AUC higher is better, interval [0.882, 0.908]" in said
    assert "ROC AUC 0.895, interval 0.882 to 0.908; baseline 0.500" in whole.read_text()
    assert "lightgbm answers, as version 3, since 1 January 2026, 10:30 UTC, deployed by training flow" in said
    assert "promoted: rmse beats baseline by much" in said
    assert "Cannot be told from its baseline" in said, "the interval of spend's gain holds zero"
    assert said.count("Better than its baseline") == 3


def test_health_names_the_worst_first(whole: Path):
    said = read(whole).said
    assert "spend does not beat its baseline; 3 of 4 questions answered" in said.replace("Spend", "spend")
    assert "4,836 rows set aside and 1 warning" in said


def test_costs_search_slices_importance_and_lineage_are_on_the_page(whole: Path):
    said = read(whole).said
    for text in ("1 min 04 s", "1.0 GB", "Tuning gained", "75K and more", "spend 7d", "0123abc", "24,210", "and 11 features"):
        assert text in said, text


def test_each_kind_has_its_own_charts(whole: Path):
    said = read(whole).said
    drawn = [name for kind in known.SECTIONS for name in plot_tables(kind)]
    for name in drawn:
        assert plots.PLOTS[name].title in said
    assert whole.read_text().count("<svg viewBox") == len(drawn) + 4, "one per plot and one per search"


def test_validation_names_each_rule_and_what_became_of_it(whole: Path):
    said = read(whole).said
    for text in ("1,469,307", "1,464,471", "quantity at least 0", "set aside", "warned", "holds", "row 17, quantity -4"):
        assert text in said, text


def test_the_glossary_explains_the_metrics_on_the_page_and_no_other(whole: Path):
    said = read(whole).said
    assert formatting.METRICS["roc_auc"][1] in said
    assert formatting.METRICS["ndcg"][1] in said
    assert formatting.METRICS["average_precision"][1] not in said


def test_the_page_asks_the_network_for_nothing(whole: Path):
    tree, html = read(whole), whole.read_text()
    assert all(value.startswith(("#", "data:")) for _, _, value in tree.links)
    assert {value[1:] for _, _, value in tree.links if value.startswith("#")} <= set(tree.ids)
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {f"#{name}" for name in tree.ids}
    assert not {"script", "iframe", "object", "embed", "img"} & tree.tags
    assert "@import" not in html


def test_charts_take_their_colours_from_the_style_sheet(whole: Path):
    html = whole.read_text()
    drawn = "".join(re.findall(r"<svg viewBox.*?</svg>", html, re.S))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)
    style = html[html.index("<style>") : html.index("</style>")]
    assert set(re.findall(r"var\((--\w+)\)", drawn)) <= set(re.findall(r"(--[\w-]+):", style))


def test_numbers_are_never_powers_of_ten(whole: Path):
    assert not re.search(r"\d[eE][-+−]\d", read(whole).said)


def test_the_same_input_gives_the_same_page_but_for_the_time(tmp_path: Path):
    given = project(tmp_path, ONE)
    pages = [re.sub(r"<time.*?</time>", "", page.build(*given).read_text()) for _ in range(2)]
    assert pages[0] == pages[1]


HOSTILE = "</style><script>alert('x')</script> $a_b$ & \"quoted\""


def test_hostile_names_stay_text(tmp_path: Path):
    text = PARAMS.replace("How much will this household spend?", json.dumps(HOSTILE))
    params, layout, champions = project(tmp_path, text)
    validation(layout, category=HOSTILE)
    judged = evaluation("spend", "regression")
    judged["slices"][0] |= {"feature": HOSTILE, "value": HOSTILE}
    judged["model"] = HOSTILE
    _write(layout.report("spend") / "evaluation" / "evaluation.json", judged)
    confusion = pl.DataFrame({"label": [HOSTILE, "b"], "predicted": ["b", HOSTILE], "rows": [3, 4]})
    confusion.write_csv(layout.report("redeem") / "plots" / "confusion.csv")
    pl.DataFrame({HOSTILE: [HOSTILE], "x": ["y"]}).write_csv(
        layout.report("redeem") / "plots" / f"odd{HOSTILE[:7].replace('/', '')}.csv"
    )
    champions["spend"]["lineage"] = {HOSTILE: HOSTILE}
    tree = read(page.build(params, layout, champions))
    assert "script" not in tree.tags
    assert tree.said.count("<script>alert('x')</script> $a b$") >= 1
    assert tree.said.count("<script>alert('x')</script> $a_b$") >= 5


def test_a_project_without_a_single_run_says_so(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    said = read(page.build(loading.load(tmp_path / "params.yaml"), Layout(tmp_path), {})).said
    assert "Recommend, redeem, spend and segments have no evaluated model." in said
    assert said.count("Not deployed yet: this problem has no evaluated model.") == 4
    assert "the step validate has not run" in said


def test_a_problem_that_failed_is_named_and_the_others_are_shown(tmp_path: Path):
    said = read(page.build(*project(tmp_path, missing=("spend",)))).said
    assert "Spend has no evaluated model; 3 of 4 questions answered by a deployed model" in said
    assert "0.895" in said


def test_a_trained_problem_without_champion_is_not_deployed_yet(tmp_path: Path):
    params, layout, champions = project(tmp_path, ONE)
    del champions["redeem"]
    said = read(page.build(params, layout, champions)).said
    assert "candidate: lightgbm , not deployed yet" in said
    assert "Redeem is not deployed yet" in said


def test_scores_of_a_candidate_that_was_refused_are_not_passed_off_as_the_champions(tmp_path: Path):
    params, layout, champions = project(tmp_path, ONE)
    champions["redeem"]["verdict"]["candidate"] -= 0.01
    tree = read(page.build(params, layout, champions))
    assert tree.said.count("of the newest candidate, which is not the champion") == 1


def test_validation_that_stopped_the_run_makes_the_health_bad(tmp_path: Path):
    given = project(tmp_path, ONE)
    results = {"passed": False, "problems": ["transactions: 9 of 10 rows break a rule."], "tables": {}}
    _write(given[1].validation / "results.json", results)
    path = page.build(*given)
    assert "Validation stopped the run: transactions: 9 of 10 rows break a rule;" in read(path).said
    assert '<div class="health bad">' in path.read_text()


@pytest.mark.parametrize(
    "broken", ["evaluation.json", "results.json", "model.json", "best.json", "trials.parquet", "roc.csv", "tune@redeem.json"]
)
def test_a_damaged_or_empty_file_is_left_out_and_logged(tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture):
    given = project(tmp_path, ONE)
    path = next(each for each in sorted(tmp_path.rglob(broken)) if "redeem" in str(each) or broken == "results.json")
    path.write_text("")
    said = read(page.build(*given)).said
    assert "Will this household redeem a coupon?" in said
    assert f"{broken} cannot be read, so the page leaves it out" in caplog.text


def test_metrics_without_interval_or_value_are_shown_as_such(tmp_path: Path):
    given = project(tmp_path, ONE)
    judged = evaluation("redeem", "classification")
    for name in ("low", "high", "gain_low", "gain_high"):
        judged["metrics"][2][name] = None
    judged["metrics"][1] |= {"score": float("nan"), "low": None, "high": None, "gain": float("nan")}
    _write(given[1].report("redeem") / "evaluation" / "evaluation.json", judged)
    path = page.build(*given)
    assert "Brier score 0.0361; baseline 0.0410" in path.read_text()
    assert "nan" not in read(path).said.lower().replace("unanswered", "")


def test_a_number_keeps_the_digits_that_its_interval_supports():
    assert formatting.number(0.41329, formatting.digits(0.41329, 0.42529)) == "0.413"
    assert formatting.number(107.618, formatting.digits(107.618, 112.818)) == "107.6"
    assert formatting.number(81083.4, formatting.digits(81083.4, 83083.4)) == "81,083"


def test_the_bars_of_one_metric_lie_on_one_axis_in_order():
    bar = page._bar(2.0, 3.0, 4.0, 1.0, page._span((1.0, 2.0, 3.0, 4.0)))
    assert bar.reference is not None
    assert bar.low is not None
    assert bar.score is not None
    assert bar.high is not None
    assert 0 < bar.reference < bar.low < bar.score < bar.high < 100


def advise(layout: Layout, problem: str) -> None:
    """What diagnose and explain leave behind."""
    report = layout.report(problem)
    step = {"step": "leak", "title": "A leak: check column paid", "recommendation": "Find out when paid becomes known."}
    _write(
        report / "diagnosis" / "diagnosis.json",
        step
        | {"evidence": ["paid alone reaches ROC AUC 0.998."], "left_out": ["bias and variance"], "rows": 500, "all_rows": 900},
    )
    both = [{"series": name, "score": 0.9, "low": 0.88, "high": 0.92} for name in ("training", "validation")]
    curve = pl.DataFrame([{"rows": rows, **each, "metric": "roc_auc"} for rows in (125, 250, 500) for each in both])
    curve.write_csv(report / "diagnosis" / "learning_curve.csv")
    part = {"column": "paid_late", "value": "17", "contribution": 0.21}
    one = {"title": "the largest prediction", "entity": "h7", "label": "1", "output": "1", "prediction": 0.83}
    spot = {"where": "age above 70", "rows": 41, "share": 0.06, "loss": 0.9, "elsewhere": 0.2, "measure": "log loss"}
    told = {
        "examples": [one | {"mean_prediction": 0.05, "contributions": [part], "rest": 0.02}],
        "error_slices": [spot | {"low": 0.3, "high": 0.9}],
        "serving": {"row_ms": 3.21, "batch_rows": 1000, "batch_ms": 41.0, "model_mb": 0.6, "load_ms": 74.0},
        "card": [{"title": "Limitations", "lines": ["Larger errors where age above 70."]}],
    }
    _write(report / "explanation" / "explanation.json", told)
    names = ["paid_late", "age", "town"]
    importance = {"column": names, "importance": [0.3, 0.1, 0.0], "low": [0.2, 0.05, None], "high": [0.4, 0.15, None]}
    pl.DataFrame(importance).write_csv(report / "explanation" / "permutation.csv")
    rows = [
        {"output": "1", "column": name, "row": row, "contribution": row / 10 - 0.2, "value": "x", "place": place}
        for name, place in zip(names, (0.1, 0.9, None), strict=True)
        for row in range(5)
    ]
    pl.DataFrame(rows, infer_schema_length=None).write_csv(report / "explanation" / "contributions.csv")
    grid = [("age", "20", 20.0), ("age", "60", 60.0), ("town", "Ada", None), ("town", "Bo <b>", None)]
    dependence = [
        {"column": name, "output": "1", "value": value, "x": x, "mean": 0.1 * place, "low": 0.05, "high": 0.4}
        for place, (name, value, x) in enumerate(grid)
    ]
    pl.DataFrame(dependence).write_csv(report / "explanation" / "dependence.csv")


def test_the_next_step_the_reasons_and_the_card_are_on_the_page(tmp_path: Path):
    params, layout, champions = project(tmp_path, ONE)
    advise(layout, "redeem")
    path = page.build(params, layout, champions)
    text = read(path).said
    for said in (
        "A leak: check column paid",
        "paid alone reaches ROC AUC 0.998.",
        "Left out for lack of time: bias and variance",
        "More rows",
        "Feature importance",
        "What moves a prediction",
        "The largest prediction: 0.83",
        "age above 70",
        "1,000 rows at once",
        "Model card",
        "Larger errors where age above 70.",
    ):
        assert said in text, said
    assert "Bo <b>" not in path.read_text()
    assert "How much each feature weighs in the model" not in text


def test_a_search_that_measured_its_cost_shows_the_front_and_what_tuning_gained(tmp_path: Path):
    params, layout, champions = project(tmp_path, ONE)
    trials = layout.tuning("redeem") / "trials.parquet"
    pl.read_parquet(trials).with_columns(
        latency_ms=pl.Series([0.4, 2.0, 3.0, 9.0, None, 4.0]),
        front=pl.Series([True, True, False, True, False, False]),
        chosen=pl.Series([False, False, False, True, False, False]),
    ).write_parquet(trials)
    best = layout.tuning("redeem") / "best.json"
    more = {"search_gain": {"over": "defaults of lightgbm", "default": 0.8, "gain": 0.0123, "cpu_seconds": 95.0}}
    more |= {"chosen": {"trial": 3, "why": "the best score"}, "nested": {"score": 0.88, "optimism": 0.015}}
    _write(best, json.loads(best.read_text()) | more)
    text = read(page.build(params, layout, champions)).said
    for said in (
        "Quality and cost",
        "ms for one row",
        "Tuning gained 0.012",
        "for 1 min 35 s of CPU",
        "Chosen: the best score",
        "flatters itself by",
    ):
        assert said in text, said


# In production


def monitored(day: str, alarm: bool, retrain: bool) -> Decision:
    """One monitoring run: three columns, of which `redemptions` may alarm."""
    until = datetime.fromisoformat(f"{day}T23:59:59+00:00")
    blank = {"value": 0.3, "threshold": 0.1, "p": 0.001, "importance": 0.12, "aspect": "feature", "statistic": "ks"}
    changes = (
        Change(column="redemptions", effect=0.511, significant=alarm, alarm=alarm, reason="mean 0.14 to 0.53", **blank),
        Change(column="tenure", effect=0.02, significant=True, alarm=False, reason="mean 1 to 2; no alarm: small", **blank),
    )
    performance = Performance(
        metric="roc_auc",
        greater_is_better=True,
        expected=Estimate(score=0.9, low=0.88, high=0.92, rows=2209),
        realised=Estimate(score=0.87, low=0.85, high=0.89, rows=2209),
        realised_until=until - timedelta(days=28),
        estimated=Estimate(score=0.88, low=0.85, high=0.91, rows=2209),
        matured=0.0,
    )
    window = Window(
        problem="redeem",
        version=1,
        since=until - timedelta(days=7),
        until=until,
        rows=2209,
        new_labels=4400,
        drift=Drift(changes=changes, reference_rows=20_000, alarm=alarm),
        performance=performance,
    )
    reason = f"{'' if retrain else 'no '}retrain{': ' if retrain else 'ing: '}drift <in> redemptions"
    return Decision(
        problem="redeem", at=until, retrain=retrain, trigger="drift" if alarm else None, reason=reason, window=window
    )


def begun(run: Decision, promoted: bool | None) -> RetrainingRecord:
    outcome = {"version": 2, "outcome": "roc_auc 0.867 cannot be told"} if promoted is not None else {}
    return RetrainingRecord(
        id="a", problem="redeem", at=run.at, as_of=run.at.date(), trigger="drift", reason=run.reason, by="policy",
        started=run.at, promoted=promoted, **outcome,
    )  # fmt: skip


RUNS = [
    monitored("2017-12-10", False, False),
    monitored("2017-12-17", True, True),
    monitored("2017-12-24", True, False),
]


@pytest.fixture
def one(tmp_path: Path) -> tuple[Params, Layout]:
    layout = Layout(tmp_path)
    layout.params.write_text(ONE)
    return loading.load(layout.params), layout


def drawn(one: tuple[Params, Layout], records: ProductionRecords) -> str:
    return page.build(one[0], one[1], {}, {"redeem": records}).read_text()


def test_a_problem_without_records_has_no_section_about_production(one):
    assert "In production" not in drawn(one, ProductionRecords())


def test_alarms_decisions_and_weeks_are_on_the_page_in_words(one):
    report = one[1].report("redeem") / "drift" / "2017-12-24.html"
    _write(report, "")
    weeks = [Cohort(date(2017, 12, 4), 1, 2209, 0, None, None), Cohort(date(2017, 11, 6), 1, 2200, 1100, None, None)]
    text = drawn(one, ProductionRecords(RUNS, [begun(RUNS[1], False)], weeks))
    assert "3 monitoring runs; 2 with an alarm of drift; retrained 1 time, 0 promoted" in text
    assert re.search(r"24 Dec 2017.*alarm, no retraining.*17 Dec 2017.*challenger rejected.*10 Dec 2017.*no alarm", text, re.S)
    assert "v2: roc_auc 0.867 cannot be told" in text
    assert "drift &lt;in&gt; redemptions" in text
    assert re.search(r"redemptions<br><span[^>]*>alarm</span>.*mean 0.14 to 0.53.*0\.511.*12 %", text, re.S)
    assert '<a href="redeem/drift/2017-12-24.html">' in text
    assert re.search(r"6 Nov 2017.*2,200.*50 %", text, re.S)
    report.unlink()
    assert "redeem/drift/" not in drawn(one, ProductionRecords(RUNS))


def test_scores_of_monitoring_runs_become_a_timeline_with_alarms_and_retrainings(one):
    chart = production_section.build("redeem", ProductionRecords(RUNS, [begun(RUNS[1], None)]), None).timeline
    assert all(name in chart.svg for name in ("expected", "estimated", "realised", "alarm", "ROC AUC"))
    bare = [each.model_copy(update={"window": each.window.model_copy(update={"performance": None})}) for each in RUNS]
    assert production_section.build("redeem", ProductionRecords(bare), None).timeline is None
    assert "it has not finished" in drawn(one, ProductionRecords(RUNS, [begun(RUNS[1], None)]))


def test_a_backtest_is_shown_with_its_recommendation_and_a_damaged_one_is_left_out(one):
    found = {"metric": "roc_auc", "greater_is_better": True, "first": "2017-04-02", "last": "2017-04-09", "step_days": 7}
    blank = {"score": 0.87, "low": 0.85, "high": 0.89, "rows": 2, "reason": None}
    points = [{"day": day, "score": 0.87, "low": 0.85, "high": 0.89} for day in ("2017-04-02", "2017-04-09")]
    outcome = {"quality": blank, "gain": blank, "promoted": 1, "alarms": 3, "false_alarms": 2, "points": points}
    outcome |= {"steps": [{"promoted": None}, {"promoted": True}], "gain_per_cpu_minute": 0.002}
    outcomes = [
        {**outcome, "policy": name, "retrainings": n, "cpu_minutes": 1.4 * n} for n, name in enumerate(("never", "drift"))
    ]
    whole = {
        **found,
        "outcomes": outcomes,
        "cost": "learning alone",
        "recommendation": {"policy": "drift", "reason": "the best"},
    }
    path = one[1].report("redeem") / "backtest" / "backtest.json"
    _write(path, whole)
    text = drawn(one, ProductionRecords())
    assert "Recommended: drift, the best." in text
    assert re.search(r"drift <span[^>]*>recommended</span>.*0\.870 <span[^>]*>\[0\.850, 0\.890\]", text, re.S)
    _write(path, {**whole, "outcomes": [{"policy": "never"}]})
    assert "Recommended: drift" not in drawn(one, ProductionRecords())
