"""What the model goes by: a planted effect is found, contributions add up, and weak spots are where they were planted."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.linear_model import LinearRegression

from evergreen.tasks import evaluate, explain, problems, train
from evergreen.tasks.config.params import KindName, Params, Tabular
from evergreen.tasks.core.paths import Layout, read_json, write_json
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.tabular_kind import Rows

SIZE = 1800


def table(seed: int = 1) -> pl.DataFrame:
    """y = 3 big + small + twice that in the north, where it is also noisy; idle says nothing."""
    draw = np.random.default_rng(seed)
    big, small, idle = (draw.normal(size=SIZE) for _ in range(3))
    north = draw.random(SIZE) < 0.3
    day = np.datetime64("2025-01-01") + draw.integers(0, 300, SIZE).astype("timedelta64[D]")
    y = 3 * big + small + 2 * north + draw.normal(size=SIZE) * np.where(north, 3.0, 0.3)
    return pl.DataFrame(
        {"big": big, "small": small, "idle": idle, "region": np.where(north, "north", "south"), "day": day, "y": y}
    )


def project(folder: Path, kind: KindName = "regression", model: str = "ridge") -> tuple[Params, Layout]:
    """A project that is trained and judged."""
    frame = table()
    if kind == "classification":
        frame = frame.with_columns(y=(pl.col("y") > 1).cast(pl.String))
    roles = {"big": "number", "small": "number", "idle": "number", "region": "category", "day": "date"}
    section = Tabular.model_validate(
        {"question": "How much?", "features": {"table": "t", "target": None if kind == "clustering" else "y", "columns": roles}}
        | {"evaluate": {"resamples": 50, "explain_rows": 100, "slices": ["region"]}}
    )
    base = Params.model_validate({"project": {"name": "t", "seed": 3}, "ingest": {}, "problems": {"pay": kind}})
    params, layout, known = base.model_copy(update={"sections": {"pay": section}}), Layout(folder), problems.kind(kind)
    layout.features("pay").mkdir(parents=True)
    made: Any = known.build({"t": frame.lazy()}, {}, section, None)  # pyright: ignore[reportArgumentType]
    made["rows"].write_parquet(layout.features("pay") / "rows.parquet")
    config = dict(known.defaults(model, section))
    write_json(layout.tuning("pay") / "best.json", {"config": config, "metric": known.metrics[0].name, "trials": 4})
    train.run(params, "pay", layout)
    evaluate.run(params, "pay", layout)
    return params, layout


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that explain writes for a ridge of numbers."""
    params, layout = project(tmp_path_factory.mktemp("explain"))
    explain.run(params, "pay", layout)
    return layout.report("pay") / "explanation"


def test_importance_finds_the_planted_order_with_intervals(explained: Path):
    found = pl.read_csv(explained / "permutation.csv")
    assert found["column"][0] == "big"
    rows = {row["column"]: row for row in found.iter_rows(named=True)}
    assert rows["big"]["low"] > rows["small"]["high"]
    assert all(row["low"] <= row["importance"] <= row["high"] for row in rows.values())
    assert rows["idle"]["low"] < 0.05


def test_contributions_add_up_to_the_answer(explained: Path):
    told = read_json(explained / "explanation.json")
    assert [each["title"] for each in told["predictions"]] == [
        "the largest answer",
        "an answer in the middle",
        "the smallest answer",
    ]
    for each in told["predictions"]:
        added = sum(part["adds"] for part in each["parts"]) + each["rest"]
        assert each["mean_answer"] + added == pytest.approx(each["answer"])
    answers = [each["answer"] for each in told["predictions"]]
    assert answers == sorted(answers, reverse=True)


def test_contributions_to_a_line_are_its_weights_times_the_distance_from_the_mean():
    draw = np.random.default_rng(0)
    features = pd.DataFrame(draw.normal(size=(150, 3)), columns=["a", "b", "c"])
    y = features.to_numpy() @ [2.0, -1.0, 0.0]
    model = LinearRegression().fit(features, y)
    rows = Rows(pl.Series(np.arange(150)), None, pl.Series(y), features)
    found = explain.Contributions(lambda X: model.predict(X)[:, None], ["y"], rows, ["a", "b", "c"], 0)
    exact = (features - features.mean()).to_numpy()[found.places] * [2.0, -1.0, 0.0]
    close = np.corrcoef(found.values[:, 0, 0], exact[:, 0])[0, 1]
    assert close > 0.85
    assert np.abs(found.values[:, 2, 0]).max() < 1e-6
    assert found.values[:, :, 0].sum(axis=1) == pytest.approx(y[found.places] - y.mean())


def test_dependence_rises_with_a_planted_effect_and_stays_flat_without(explained: Path):
    curves = {str(part["column"][0]): part for part in pl.read_csv(explained / "dependence.csv").partition_by("column")}
    big, idle = curves["big"].sort("x"), curves["idle"].sort("x")
    assert (big["mean"].diff().drop_nulls() > 0).all()
    assert np.ptp(idle["mean"].to_numpy()) < 0.1 * np.ptp(big["mean"].to_numpy())
    region = dict(curves["region"].select("value", "mean").iter_rows())
    assert region["north"] - region["south"] == pytest.approx(2, abs=0.8)


def test_the_weak_spot_is_where_the_noise_was_planted(explained: Path):
    spots = read_json(explained / "explanation.json")["weak_spots"]
    assert spots
    assert "region is north" in spots[0]["where"] or "region is not south" in spots[0]["where"]
    assert spots[0]["low"] > 0
    assert spots[0]["loss"] > 2 * spots[0]["elsewhere"]


def test_no_weak_spot_is_told_where_errors_are_alike_everywhere(tmp_path: Path):
    draw = np.random.default_rng(5)
    features = pd.DataFrame(draw.normal(size=(1200, 4)), columns=list("abcd"))
    truth = pl.Series(draw.normal(size=1200))
    rows = row_subset.subset(Rows(pl.Series(np.arange(1200)), None, truth, features), np.arange(1200))

    class Flat:
        name, supervised = "regression", True

        def predict(self, model: Any, data: Rows, part: str, section: Any) -> pl.DataFrame:
            return pl.DataFrame({"entity": data.entity, "truth": data.target, "prediction": 0.0})

    found: Any = explain._weak_spots(Flat(), None, rows, None, list("abcd"), 0)  # pyright: ignore[reportArgumentType]
    assert found == []


def test_the_card_says_what_data_quality_limits_and_cost(explained: Path):
    text = (explained / "card.md").read_text()
    assert text.startswith("# Model card\n\n## What it is\n\n- The question: How much?\n- A model of regression (ridge).")
    for title in ("What it learned from", "How good it is", "What it goes by", "Where its limits are", "What it costs"):
        assert f"\n## {title}\n\n- " in text
    assert "360 rows that neither search nor training saw" in text
    assert "these columns cost it the most rmse: big (" in text
    assert "region north" in text
    serving = read_json(explained / "explanation.json")["serving"]
    assert serving["row_ms"] > 0
    assert serving["batch_ms"] > 0


def test_a_classifier_is_explained_in_probabilities(tmp_path: Path):
    params, layout = project(tmp_path, "classification", "logistic")
    result = explain.run(params, "pay", layout)
    told = read_json(Path(result.explanation))
    assert result.leans_on[0] == "big"
    assert told["predictions"][0]["of"] == "true"
    assert all(0 <= each["answer"] <= 1 for each in told["predictions"])
    assert told["weak_spots"] == [] or told["weak_spots"][0]["measure"] == "log loss"


def test_groups_are_explained_by_how_many_rows_change_them(tmp_path: Path):
    params, layout = project(tmp_path, "clustering", "kmeans")
    told = read_json(Path(explain.run(params, "pay", layout).explanation))
    assert told["metric"] == "share of rows that change their group"
    assert all(0 <= each["importance"] <= 1 for each in told["importance"])
    assert "predictions" not in told
