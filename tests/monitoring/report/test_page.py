"""The page: everything that was made is on it, what is missing is named, and it asks the network for nothing."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evergreen.monitoring.report import formatting, page, plots, problem_section, vega
from evergreen.tasks.config import loading
from evergreen.tasks.config import params as known
from evergreen.tasks.core.paths import Layout
from tests.monitoring.report.finished_project import ONE, PARAMS, evaluation, project, read, validation, write
from tests.monitoring.report.plot_tables import plot_tables


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
    assert re.search(r"\d+ configurations, of which \d+ failed or were stopped, in [\d.]+ \w+.*? \(method: \w+\)", said)
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
    for text in (
        "1,469,307",
        "1,464,471",
        "1,234 received by servers",
        "quantity at least 0",
        "set aside",
        "warned",
        "holds",
        "row 17, quantity -4",
    ):
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
    write(layout.report("spend") / "evaluation" / "evaluation.json", judged)
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
    write(given[1].validation / "results.json", results)
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
    write(given[1].report("redeem") / "evaluation" / "evaluation.json", judged)
    path = page.build(*given)
    assert "Brier score 0.0361; baseline 0.0410" in path.read_text()
    assert "nan" not in read(path).said.lower().replace("unanswered", "")


def test_the_metric_of_the_gate_comes_first_and_one_that_is_undefined_for_the_data_is_left_out(tmp_path: Path):
    given = project(tmp_path, ONE)
    judged = evaluation("redeem", "classification")
    judged["primary"] = judged["metrics"][1]["name"]
    labels = [formatting.label(each["name"]) for each in judged["metrics"]]
    judged["metrics"][2] |= {"score": None, "baseline": None, "low": None, "high": None, "no_interval": "too few rows"}
    write(given[1].report("redeem") / "evaluation" / "evaluation.json", judged)
    performance = page.build(*given).read_text().partition("<h3>Performance</h3>")[2].partition("</table>")[0]
    places = [performance.find(f">{label} <") for label in labels]
    assert 0 < places[1] < places[0]
    assert places[2] == -1


def test_a_number_keeps_the_digits_that_its_interval_supports():
    assert formatting.number(0.41329, formatting.digits(0.41329, 0.42529)) == "0.413"
    assert formatting.number(107.618, formatting.digits(107.618, 112.818)) == "107.6"
    assert formatting.number(81083.4, formatting.digits(81083.4, 83083.4)) == "81,083"


def test_the_bars_of_one_metric_lie_on_one_axis_in_order():
    bar = problem_section._bar(2.0, 3.0, 4.0, 1.0, problem_section._span((1.0, 2.0, 3.0, 4.0)))
    assert bar.reference is not None
    assert bar.low is not None
    assert bar.score is not None
    assert bar.high is not None
    assert 0 < bar.reference < bar.low < bar.score < bar.high < 100


def advise(layout: Layout, problem: str) -> None:
    """What diagnose and explain leave behind."""
    report = layout.report(problem)
    step = {"step": "leak", "title": "A leak: check column paid", "recommendation": "Find out when paid becomes known."}
    write(
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
    write(report / "explanation" / "explanation.json", told)
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


def test_the_costs_of_lists_name_no_compiled_version(tmp_path: Path):
    params, layout, champions = project(tmp_path, ONE)
    advise(layout, "redeem")
    assert "a compiled version is faster" in read(page.build(params, layout, champions)).said
    path = layout.report("redeem") / "explanation" / "explanation.json"
    told = json.loads(path.read_text())
    write(path, told | {"serving": told["serving"] | {"batch_rows": None, "batch_ms": None}})
    said = read(page.build(params, layout, champions)).said
    assert "one list" in said
    assert "compiled version" not in said


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
    write(best, json.loads(best.read_text()) | more)
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


# What fails


def test_a_chart_that_fails_is_left_out_with_its_reason_and_the_others_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    real = vega.render

    def broken(title: str, *rest: Any, **more: Any) -> Any:
        if title == "ROC":
            raise ValueError("no such mark")
        return real(title, *rest, **more)

    monkeypatch.setattr(vega, "render", broken)
    said = read(page.build(*project(tmp_path, ONE))).said
    assert "ROC" in said
    assert "Left out: ValueError: no such mark" in said
    for text in ("Gain", "How it was found", "Performance"):
        assert text in said
    assert "chart 'ROC' is left out: ValueError: no such mark" in caplog.text


@pytest.mark.parametrize(
    ("path", "change", "title"),
    [
        ("evaluation/evaluation.json", {"metrics": [{"score": 1.0}]}, "Performance"),
        ("evaluation/evaluation.json", {"slices": [{"score": "high"}]}, problem_section.SLICES),
        ("evaluation/evaluation.json", {"windows": [3]}, "Window by window"),
        ("evaluation/evaluation.json", {"metrics": 7}, "Performance"),
        ("diagnosis/diagnosis.json", {"step": "x", "title": "t"}, "The next step"),
        ("explanation/explanation.json", {"examples": [{"title": "t"}]}, "Explanation"),
    ],
)
def test_a_section_that_fails_is_left_out_with_its_reason_and_the_page_stands(
    tmp_path: Path, path: str, change: dict[str, Any], title: str, caplog: pytest.LogCaptureFixture
):
    params, layout, champions = project(tmp_path, ONE)
    place = layout.report("redeem") / path
    write(place, (json.loads(place.read_text()) if place.exists() else {}) | change)
    said = read(page.build(params, layout, champions)).said
    assert f"{title} Left out: " in " ".join(said.split())
    for text in ("Will this household redeem a coupon?", "How it was found", "What the models learned from"):
        assert text in said
    assert "is left out: " in caplog.text
