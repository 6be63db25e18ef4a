"""The step is right where it is planted, the diagnosis keeps to its time, and test rows stay unseen."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.tasks import diagnose, problems
from evergreen.tasks.config.params import Params, Tabular
from evergreen.tasks.core.paths import Layout, read_json, write_json
from evergreen.tasks.diagnosis import experiments
from evergreen.tasks.diagnosis.examination import Examination, Fit
from evergreen.tasks.diagnosis.learning_curve import extrapolate
from evergreen.tasks.diagnosis.recommendation import Facts, Rival, decide
from evergreen.tasks.diagnosis.validation_curves import POINTS
from evergreen.tasks.problems.base import Kind
from evergreen.tasks.problems.prediction_type import SkillScale
from evergreen.tasks.problems.tabular.rows import Rows
from evergreen.tasks.search import time_budget
from tests import plain_kind

OVERFIT = {"model": "lightgbm", "num_leaves": 40, "min_child_samples": 1, "n_estimators": 60, "learning_rate": 0.3}
"""A model that overfits."""
SIZE = 700


def noise(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {f"x{place}": draw.normal(size=SIZE) for place in range(5)}


def planted(name: str) -> tuple[str, pl.DataFrame]:
    """Kind and table of a case, its target y."""
    draw, columns = np.random.default_rng(7), noise()
    line = columns["x0"] + 0.7 * columns["x1"]
    positive = draw.random(SIZE) < 1 / (1 + np.exp(-line))
    amount = line + draw.normal(size=SIZE)
    group, other = draw.integers(0, 4, SIZE), draw.integers(0, 3, SIZE)
    kind, table = {
        "line": ("regression", {**columns, "y": amount}),
        "classes": ("classification", {**columns, "y": positive.astype(int)}),
        "bend": ("regression", {**columns, "y": columns["x0"] ** 2 + 0.3 * draw.normal(size=SIZE)}),
        "cross": ("classification", {**columns, "y": (columns["x0"] * columns["x1"] > 0).astype(int)}),
        "noise": ("classification", {**columns, "y": (draw.random(SIZE) < 0.4).astype(int)}),
        "nothing": ("regression", {**columns, "y": draw.normal(size=SIZE)}),
        "paid": (
            "classification",
            {**columns, "paid": np.where(positive, draw.gamma(2, 9, SIZE), 0.0), "y": positive.astype(int)},
        ),
        "state": ("classification", {**columns, "state": np.where(positive, "closed", "open"), "y": positive.astype(int)}),
        "parts": ("regression", {**columns, "net": np.abs(amount), "tax": group * 1.0, "y": np.abs(amount) + group}),
        "repeats": (
            "regression",
            {"a": group * 1.0, "b": other * 1.0, "y": group + other * (group > 1) + draw.normal(size=SIZE)},
        ),
    }[name]
    return kind, pl.DataFrame(table)


def read(kind_name: str, table: pl.DataFrame, folder: Path) -> tuple[Kind, Rows, Tabular]:
    columns = {name: "number" if table[name].dtype.is_numeric() else "category" for name in table.columns if name != "y"}
    section = Tabular.model_validate({"question": "?", "features": {"table": "t", "target": "y", "columns": columns}})
    kind: Any = problems.kind(kind_name)  # pyright: ignore[reportArgumentType]
    folder.mkdir(parents=True, exist_ok=True)
    kind.build({"t": table.lazy()}, {}, section, None)["rows"].write_parquet(folder / "rows.parquet")
    return kind, kind.load(folder, section), section


def diagnosed(
    name: str, folder: Path, config: dict[str, Any], seconds: float = 20.0
) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    kind, data, section = read(*planted(name), folder)
    return experiments.diagnose(kind, data, section, {**kind.defaults(config["model"], section), **config}, 0, seconds)


@pytest.mark.parametrize(
    ("case", "config", "step"),
    [
        ("line", OVERFIT, "simpler model"),
        ("classes", OVERFIT, "simpler model"),
        ("bend", {"model": "ridge", "spline_knots": 0}, "richer model"),
        ("cross", {"model": "logistic", "spline_knots": 0}, "richer model"),
        ("noise", OVERFIT, "stop"),
        ("nothing", {"model": "ridge"}, "stop"),
        ("paid", {"model": "lightgbm"}, "leak"),
        ("state", {"model": "logistic"}, "leak"),
        ("parts", {"model": "ridge"}, "leak"),
        ("repeats", {"model": "lightgbm", "num_leaves": 4}, "stop"),
    ],
)
def test_the_step_is_right_on_planted_cases(
    case: str, config: dict[str, Any], step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(experiments, "validation_curves", lambda *given: {})  # they decide nothing
    monkeypatch.setattr(experiments, "decompose_error", lambda *given: None)
    found, _ = diagnosed(case, tmp_path, config)
    assert found["step"] == step, found["evidence"]
    assert found["evidence"]
    named = {"paid": "column paid", "state": "column state", "parts": "columns net and tax", "repeats": "as good as the data"}
    assert named.get(case, "") in found["title"]


def test_a_diagnosis_has_its_curves_and_names_its_rows(tmp_path: Path):
    found, tables = diagnosed("classes", tmp_path, {"model": "lightgbm", "n_estimators": 60})
    assert set(tables) == {"single_columns", "bias_variance", "learning_curve", "validation_curve_1", "validation_curve_2"}
    rows = tables["learning_curve"]["rows"].unique().sort().to_list()
    assert rows == [round(found["rows"] * share) for share in (0.125, 0.25, 0.5, 1.0)]
    assert (found["rows"], found["left_out"]) == (found["all_rows"], [])
    assert set(tables["learning_curve"]["series"]) == {"training", "validation"}
    curve = tables["validation_curve_1"]
    assert curve["parameter"].n_unique() == 1
    assert float(curve["chosen"][0]) in curve["value"].to_list()
    assert curve.height == 2 * (1 + POINTS)
    assert tables["bias_variance"]["share"].sum() > 0.5
    assert tables["single_columns"]["column"][0] == "x0"


def test_what_time_does_not_allow_is_left_out_and_named(tmp_path: Path):
    found, tables = diagnosed("classes", tmp_path, {"model": "lightgbm"}, seconds=0.05)
    assert found["step"]
    assert found["left_out"] == ["bias and variance", "learning curve", "validation curves"]
    assert set(tables) == {"single_columns", "learning_curve"}
    assert tables["learning_curve"]["rows"].n_unique() == 1


def test_the_largest_member_stands_for_a_blend_that_takes_too_long(tmp_path: Path):
    kind, _ = planted("line")
    draw = np.random.default_rng(1)
    wide = {f"x{place}": draw.normal(size=9_000) for place in range(5)}
    kind, data, section = read(kind, pl.DataFrame({**wide, "y": wide["x0"] + draw.normal(size=9_000)}), tmp_path)
    ridge, trees = (
        {**kind.defaults(model, section), **more} for model, more in (("ridge", {}), ("extra_trees", {"n_estimators": 300}))
    )
    blend = {"model": "blend", "members": [trees, ridge], "weights": [0.3, 0.7]}
    assert Examination(kind, data, section, 0, 60.0).plan(blend) == blend
    found, _ = experiments.diagnose(kind, data, section, blend, 0, 1.0)
    assert found["facts"]["member"] == "ridge"
    assert found["rows"] > 2_000
    assert "ridge, the largest member of the blend, reaches" in " ".join(found["evidence"])


def test_no_test_row_is_used(tmp_path: Path):
    kind, data, section = read(*planted("classes"), tmp_path)
    examination = Examination(kind, data, section, 0, 1.0)
    test = set(np.flatnonzero(data.parts.masks["test"])) if data.parts else set()
    assert test
    for train, validation in examination.folds:
        assert not test & {*train.tolist(), *validation.tolist()}
        assert not {*train.tolist()} & {*validation.tolist()}


def test_the_same_seed_finds_the_same(tmp_path: Path):
    first, second = (diagnosed("line", tmp_path / name, {"model": "ridge"})[0] for name in ("one", "two"))
    assert {**first, "cpu_seconds": 0} == {**second, "cpu_seconds": 0}


# --- the step alone --------------------------------------------------------------------------------------------------------

SOUND = Facts(
    SkillScale("ROC AUC", at_zero=0.5, leak=0.95),
    skill=0.6,
    error=0.01,
    train_skill=0.7,
    rows=1000,
    all_rows=1000,
    best_low=0.57,
)


def changed(**changes: Any) -> Facts:
    return Facts(**{**SOUND.__dict__, **changes})


def rival(gain: float, low: float, train_skill: float) -> Rival:
    return Rival("other", SOUND.skill + gain, train_skill, gain, low, 2 * gain - low)


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        (changed(), "better features"),
        (changed(last_gain=(0.05, 0.02, 0.08), doubling=0.03), "more data"),
        (changed(last_gain=(0.05, -0.01, 0.11), doubling=0.03), "better features"),
        (changed(last_gain=(0.05, 0.02, 0.08), doubling=0.001), "better features"),
        (changed(rivals=[rival(0.1, 0.05, 0.65)]), "simpler model"),
        (changed(rivals=[rival(0.1, 0.05, 0.9)]), "richer model"),
        (changed(rivals=[rival(0.1, -0.05, 0.9)]), "better features"),
        (changed(rivals=[rival(0.01, 0.005, 0.9)]), "better features"),
        (changed(train_skill=0.99, rivals=[rival(0.05, -0.01, 0.7)]), "simpler model"),
        (changed(train_skill=0.99, rivals=[rival(0.05, -0.01, 0.98)]), "better features"),
        (changed(rivals=[rival(0.1, 0.05, 0.65)], cut=True), "longer search"),
        (changed(rivals=[rival(0.1, 0.05, 0.9)], cut=True), "longer search"),
        (changed(rivals=[rival(0.1, -0.05, 0.9)], cut=True), "better features"),
        (changed(best_low=-0.01, cut=True), "stop"),
        (changed(best_low=-0.01), "stop"),
        (changed(explained=0.4, ceiling=0.41), "stop"),
        (changed(explained=0.4, ceiling=0.6), "better features"),
        (changed(skill=0.98), "stop"),
        (changed(rows=500, all_rows=40_000, rivals=[rival(0.1, 0.05, 0.65)]), "longer diagnosis"),
        (changed(rows=500, all_rows=40_000, best_low=-0.01), "longer diagnosis"),
        (changed(rows=500, all_rows=40_000, skill=0.99, single_columns=[("paid", 0.99), ("age", 0.2)]), "leak"),
        (changed(rows=2000, all_rows=40_000, rivals=[rival(0.1, 0.05, 0.65)]), "simpler model"),
        (changed(rows=500, all_rows=1500, rivals=[rival(0.1, 0.05, 0.65)]), "simpler model"),
        (changed(skill=0.99, single_columns=[("paid", 0.99), ("age", 0.2)]), "leak"),
        (changed(skill=0.6, single_columns=[("paid", 0.99), ("age", 0.2)]), "better features"),
        (changed(skill=0.9, single_columns=[("paid", 0.88), ("age", 0.2)], skill_without_suspects=0.3), "leak"),
        (changed(skill=0.9, single_columns=[("rule", 0.88), ("age", 0.2)], skill_without_suspects=0.05), "better features"),
        (changed(skill=0.9, single_columns=[("size", 0.88), ("age", 0.2)], skill_without_suspects=0.85), "better features"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_facts_decide_the_step(facts: Facts, step: str):
    assert decide(facts).step == step


@pytest.mark.parametrize(
    ("budget", "folds", "cut"),
    [(20.0, [5] * 10, False), (20.0, [5] * 9, True), (20.0, [5] * 9 + [1], True), (None, [5] * 3, False)],
)
def test_a_search_is_cut_that_a_time_budget_ended_early(budget: float | None, folds: list[int], cut: bool):
    section = Tabular.model_validate(
        {
            "question": "?",
            "features": {"table": "t", "target": "y", "columns": {"x": "number"}},
            "tune": {"budget_seconds": budget, "folds": 5},
        }
    )
    states = ["complete"] * len(folds) + ["failed"]
    trials = pl.DataFrame({"state": states, "folds": [[0.5] * count for count in folds] + [[]]})
    assert experiments.search_was_cut(section, trials) is cut
    assert not experiments.search_was_cut(section, None)


def test_a_curve_that_rises_in_one_odd_fold_alone_asks_for_no_rows():
    def fit(*scores: float) -> Fit:
        validation = [{"roc_auc": score} for score in scores]
        return Fit(validation, validation, [])

    sure: Any = SimpleNamespace(skill_gain=lambda *fits: (0.1, 0.05, 0.15))
    half = fit(0.60, 0.70, 0.70)
    odd = extrapolate(sure, SOUND, {0.5: half}, fit(0.90, 0.69, 0.70))
    steady = extrapolate(sure, SOUND, {0.5: half}, fit(0.66, 0.75, 0.74))
    assert (decide(odd).step, decide(steady).step) == ("better features", "more data")
    alone = extrapolate(sure, SOUND, {0.5: fit(0.6)}, fit(0.7))
    assert decide(alone).step == "more data"


def test_the_evidence_names_roc_auc_and_not_skill():
    step = decide(changed(rivals=[rival(0.1, 0.05, 0.9)]))
    assert step.evidence[0] == "The model reaches ROC AUC 0.850 on training rows and ROC AUC 0.800 on validation rows."
    assert "other reaches ROC AUC 0.850 on the same validation rows, +0.050 [+0.025, +0.075]" in step.evidence[1]


# --- the step on files -----------------------------------------------------------------------------------------------------


def project(folder: Path, **evaluate: float) -> tuple[Params, Layout]:
    kind, table = planted("line")
    _, _, section = read(kind, table, Layout(folder).features("pay"))
    parts = {**section.model_dump(), "evaluate": evaluate}
    base = Params.model_validate({"project": {"name": "t", "seed": 3}, "ingest": {}, "problems": {"pay": "regression"}})
    params = base.model_copy(update={"sections": {"pay": Tabular.model_validate(parts)}})
    write_json(Layout(folder).tuning("pay") / "best.json", {"config": {"model": "ridge", "alpha": 1.0}})
    return params, Layout(folder)


def test_the_diagnosis_is_written_with_its_tables(tmp_path: Path):
    params, layout = project(tmp_path)
    result = diagnose.run(params, "pay", layout)
    found = read_json(Path(result.diagnosis))
    assert (found["problem"], found["step"], found["metric"]) == ("pay", result.step, "rmse")
    assert (Path(result.diagnosis).parent / "learning_curve.csv").exists()
    assert found["scores"]["training"] < found["scores"]["validation"]


def test_no_diagnosis_is_made_where_none_is_asked_for(tmp_path: Path):
    params, layout = project(tmp_path, diagnose_seconds=0.0)
    result = diagnose.run(params, "pay", layout)
    assert (result.step, result.recommendation) == (None, "evaluate.diagnose_seconds is 0.")


@pytest.mark.parametrize(("budget", "seconds"), [(None, 10.0), (20.0, 5.0), (600.0, 10.0)])
def test_a_search_with_a_time_budget_is_followed_by_a_shorter_diagnosis(budget: float | None, seconds: float, tmp_path: Path):
    params, layout = plain_kind.project(tmp_path, tune={"budget_seconds": budget})
    assert diagnose.allowed_seconds(params, "pay", layout) == seconds


def test_a_diagnosis_without_time_is_left_out_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    params, layout = plain_kind.project(tmp_path, tune={"budget_seconds": 60})
    monkeypatch.setenv(time_budget.BEGAN, str(time.time() - 100))
    result = diagnose.run(params, "pay", layout)
    assert result.step is None
    assert "time budget" in result.recommendation
