"""Scores on the test windows, with their intervals, beside the baseline."""

import json
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from evergreen.tasks import evaluate, train
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import bootstrap
from evergreen.tasks.core.errors import ParamsError, StepError
from evergreen.tasks.core.paths import Layout, read_json, write_json
from evergreen.tasks.model_files import skops_models
from tests import plain_kind
from tests.plain_kind import FIRST, HORIZON, Plain

CONFIG = {"model": "ridge", "alpha": 0.1, "intercept": True}


def trained(
    folder: Path, config: dict[str, object] | None = None, frame: pl.DataFrame | None = None, **section: dict
) -> tuple[Params, Layout]:
    params, layout = plain_kind.project(folder, frame, **section)
    write_json(layout.tuning("pay") / "best.json", {"config": config or CONFIG})
    train.run(params, "pay", layout)
    return params, layout


def report(layout: Layout) -> dict:
    return read_json(layout.report("pay") / "evaluation" / "evaluation.json")


def test_a_real_effect_beats_the_baseline_with_its_whole_interval(plain: Plain, tmp_path: Path) -> None:
    params, layout = trained(tmp_path)
    result = evaluate.run(params, "pay", layout)
    rmse = read_json(layout.report("pay") / "metrics.json")["rmse"]
    assert list(rmse) == ["score", "low", "high", "baseline", "gain", "gain_low", "gain_high"]
    assert rmse["low"] < rmse["score"] < rmse["high"]
    assert rmse["score"] == pytest.approx(1.0, abs=0.15)
    assert rmse["baseline"] == pytest.approx(10**0.5, abs=0.4)
    assert 1.5 < rmse["gain_low"] < rmse["gain"] < rmse["gain_high"]
    assert rmse["gain"] == pytest.approx(rmse["baseline"] - rmse["score"])
    assert (result.metric, result.score, result.rows) == ("rmse", rmse["score"], 120)


def test_without_an_effect_nothing_is_gained(plain: Plain, tmp_path: Path) -> None:
    params, layout = trained(tmp_path, frame=plain_kind.rows(slope=0.0))
    evaluate.run(params, "pay", layout)
    rmse = read_json(layout.report("pay") / "metrics.json")["rmse"]
    assert rmse["gain_low"] < 0
    assert abs(rmse["gain"]) < 0.05


def test_the_baseline_against_itself_gains_exactly_nothing(plain: Plain, tmp_path: Path) -> None:
    params, layout = trained(tmp_path, {"model": "mean"})
    evaluate.run(params, "pay", layout)
    rmse = read_json(layout.report("pay") / "metrics.json")["rmse"]
    assert (rmse["gain"], rmse["gain_low"], rmse["gain_high"]) == (0.0, 0.0, 0.0)


def test_scores_are_means_over_windows_each_fitted_on_its_own_past(plain: Plain, tmp_path: Path) -> None:
    params, layout = trained(tmp_path)
    plain.fitted.clear()
    evaluate.run(params, "pay", layout)
    windows = report(layout)["windows"]
    tests = [FIRST + timedelta(days=place * HORIZON) for place in (6, 7)]
    assert [window["cutoff"] for window in windows] == [day.isoformat() for day in tests]
    assert [max(window["trained_on"]) for window in windows] == [(day - timedelta(days=HORIZON)).isoformat() for day in tests]
    scores = [window["scores"]["rmse"] for window in windows]
    assert report(layout)["metrics"][0]["score"] == pytest.approx(sum(scores) / 2)
    assert [config["model"] for _, config in plain.fitted] == ["ridge", "mean", "mean"]


def test_the_last_window_is_scored_with_the_saved_model(plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, layout = trained(tmp_path)
    evaluate.run(params, "pay", layout)
    last = pl.read_parquet(layout.report("pay") / "evaluation" / "predictions.parquet").filter(
        pl.col("cutoff") == FIRST + timedelta(days=7 * HORIZON)
    )
    data = plain.load(layout.features("pay"), None)
    model = skops_models.load(layout.model("pay") / "model.skops")
    assert last.drop("cutoff").equals(plain.predict(model, data, last["cutoff"][0], None).sort("entity"))


def test_metrics_of_the_model_as_a_whole_have_no_interval(plain: Plain, tmp_path: Path) -> None:
    params, layout = trained(tmp_path)
    evaluate.run(params, "pay", layout)
    size = read_json(layout.report("pay") / "metrics.json")["size"]
    assert size["score"] == pytest.approx(3.0, abs=0.2)
    assert size["baseline"] == 0.0
    assert (size["low"], size["high"], size["gain_low"]) == (None, None, None)


def test_predictions_of_model_and_baseline_are_about_the_same_rows(plain: Plain, tmp_path: Path) -> None:
    params, layout = trained(tmp_path)
    result = evaluate.run(params, "pay", layout)
    folder = Path(result.evaluation).parent
    model, baseline = pl.read_parquet(folder / "predictions.parquet"), pl.read_parquet(folder / "baseline.parquet")
    assert model.select("entity", "cutoff", "label").equals(baseline.select("entity", "cutoff", "label"))
    assert (report(layout)["rows"], report(layout)["entities"]) == (120, 60)
    assert pl.read_csv(layout.report("pay") / "plots" / "predicted.csv").height == 120


def test_the_same_seed_gives_the_same_numbers(plain: Plain, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        params, layout = trained(tmp_path / name)
        evaluate.run(params, "pay", layout)
        found.append((layout.report("pay") / "metrics.json").read_bytes())
    assert found[0] == found[1]


def test_slices_show_where_the_model_fails(plain: Plain, tmp_path: Path) -> None:
    frame = plain_kind.rows(entities=120).with_columns(
        y=pl.when(pl.col("town") == "a").then(pl.col("y") + 6 * pl.col("x").sign()).otherwise(pl.col("y"))
    )
    params, layout = trained(tmp_path, frame=frame, evaluate={"slices": ["town", "x"]})
    evaluate.run(params, "pay", layout)
    slices = report(layout)["slices"]
    town = {each["value"]: each for each in slices if each["feature"] == "town"}
    assert list(town) == ["b", "a"]
    assert (town["a"]["rows"], town["b"]["rows"]) == (80, 160)
    assert town["b"]["high"] < town["a"]["low"]
    numbers = [each for each in slices if each["feature"] == "x"]
    assert [each["rows"] for each in numbers] == [60, 60, 60, 60]
    assert numbers[0]["value"].startswith("up to -")
    assert numbers[3]["value"].startswith("above ")


def test_an_unknown_slice_is_refused_with_the_nearest(plain: Plain, tmp_path: Path) -> None:
    params, layout = trained(tmp_path, evaluate={"slices": ["twon"]})
    with pytest.raises(ParamsError, match=r"params.yaml: pay\.evaluate\.slices: twon: unknown feature; did you mean town"):
        evaluate.run(params, "pay", layout)
    assert not (layout.report("pay") / "metrics.json").exists()


def test_a_metric_undefined_in_one_window_is_the_mean_of_the_others(plain: Plain, tmp_path: Path) -> None:
    flat = pl.col("cutoff") == FIRST + timedelta(days=6 * HORIZON)
    frame = plain_kind.rows().with_columns(y=pl.when(flat).then(0.0).otherwise(pl.col("y")))
    params, layout = trained(tmp_path, frame=frame)
    evaluate.run(params, "pay", layout)
    text = (layout.report("pay") / "evaluation" / "evaluation.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [window["scores"]["r2"] is None for window in found["windows"]] == [True, False]
    r2 = next(each for each in found["metrics"] if each["name"] == "r2")
    assert r2["score"] == found["windows"][1]["scores"]["r2"]


def test_a_model_of_another_window_is_refused(plain: Plain, tmp_path: Path) -> None:
    params, layout = trained(tmp_path)
    plain_kind.project(tmp_path, plain_kind.rows(cutoffs=9))
    with pytest.raises(
        StepError, match=r"trained for the test window after 2024-02-25, and the last one now is after 2024-03-03"
    ):
        evaluate.run(params, "pay", layout)


def test_without_a_model_evaluate_says_which_step_to_run(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    with pytest.raises(StepError, match=r"model.json: is missing\. Run train first: python -P -m evergreen train pay"):
        evaluate.run(params, "pay", layout)


def test_windows_are_resampled_together(plain: Plain, tmp_path: Path) -> None:
    """An entity that is hard in both windows widens the interval by more than two windows drawn apart would say."""
    hard = pl.col("entity") < 6
    frame = plain_kind.rows().with_columns(y=pl.when(hard).then(pl.col("y") + 15).otherwise(pl.col("y")))
    params, layout = trained(tmp_path, frame=frame, evaluate={"resamples": 300})
    evaluate.run(params, "pay", layout)
    rmse = report(layout)["metrics"][0]
    rows = pl.read_parquet(layout.report("pay") / "evaluation" / "predictions.parquet")
    apart = [frame.with_columns(pl.col("entity") + 100 * place) for place, (_, frame) in enumerate(rows.group_by("cutoff"))]
    drawn = [
        bootstrap.mean_scores(part, lambda each: plain.score(each, None))["rmse"] for part in bootstrap.draw(apart, 300, 0)
    ]
    low, high = bootstrap.interval(drawn, 0.95)
    assert rmse["high"] - rmse["low"] > 1.2 * (high - low)
