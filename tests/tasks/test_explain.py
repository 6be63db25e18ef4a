"""The stage: a planted effect is found, contributions add up, and the error slice is where noise was planted."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.tasks import evaluate, explain, problems, train
from evergreen.tasks.config.params import KindName, Params, Tabular
from evergreen.tasks.core import received_counts
from evergreen.tasks.core.paths import Layout, read_json, write_json
from evergreen.tasks.explanation.example_explanations import CONTRIBUTIONS, Contributions
from evergreen.tasks.explanation.partial_dependence import partial_dependence
from evergreen.tasks.problems.tabular.rows import Rows
from evergreen.tasks.search import time_budget

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
    """A project whose model is trained and evaluated."""
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
    received_counts.write(layout.features("pay"), {"t": 1200, "u": 0})
    explain.run(params, "pay", layout)
    return layout.report("pay") / "explanation"


def test_importance_finds_the_planted_order_with_intervals(explained: Path):
    found = pl.read_csv(explained / "permutation.csv")
    assert found["column"][0] == "big"
    rows = {row["column"]: row for row in found.iter_rows(named=True)}
    assert rows["big"]["low"] > rows["small"]["high"]
    assert all(row["low"] <= row["importance"] <= row["high"] for row in rows.values())
    assert rows["idle"]["low"] < 0.05


def test_contributions_and_the_mean_prediction_sum_to_the_prediction(explained: Path):
    found = read_json(explained / "explanation.json")
    assert [each["title"] for each in found["examples"]] == [
        "the largest prediction",
        "the median prediction",
        "the smallest prediction",
    ]
    for each in found["examples"]:
        added = sum(part["contribution"] for part in each["contributions"]) + each["rest"]
        assert each["mean_prediction"] + added == pytest.approx(each["prediction"])
    predictions = [each["prediction"] for each in found["examples"]]
    assert predictions == sorted(predictions, reverse=True)


def test_dependence_rises_with_a_planted_effect_and_stays_flat_without(explained: Path):
    assert set(pl.read_csv(explained / "contributions.csv", columns=["output"])["output"]) == {"prediction"}
    curves = {str(part["column"][0]): part for part in pl.read_csv(explained / "dependence.csv").partition_by("column")}
    big, idle = curves["big"].sort("x"), curves["idle"].sort("x")
    assert (big["mean"].diff().drop_nulls() > 0).all()
    assert np.ptp(idle["mean"].to_numpy()) < 0.1 * np.ptp(big["mean"].to_numpy())
    region = dict(curves["region"].select("value", "mean").iter_rows())
    assert region["north"] - region["south"] == pytest.approx(2, abs=0.8)


def test_the_error_slice_is_where_the_noise_was_planted(explained: Path):
    slices = read_json(explained / "explanation.json")["error_slices"]
    assert slices
    assert "region is north" in slices[0]["where"] or "region is not south" in slices[0]["where"]
    assert slices[0]["low"] > 0
    assert slices[0]["loss"] > 2 * slices[0]["elsewhere"]


def test_the_card_says_what_data_quality_limits_and_cost(explained: Path):
    text = (explained / "card.md").read_text()
    assert text.startswith("# Model card\n\n## Model\n\n- Question: How much?\n- Kind: regression; model: ridge.")
    for title in ("Training data", "Performance", "Feature importance", "Limitations", "Cost"):
        assert f"\n## {title}\n\n- " in text
    assert "\n- Rows that servers received, besides those of the exports: 1,200 of t.\n" in text
    assert re.search(r"3\d\d test rows, unseen in search and training", text)
    assert "Permutation importance in rmse: big (" in text
    assert "region north" in text
    serving = read_json(explained / "explanation.json")["serving"]
    assert serving["row_ms"] > 0
    assert serving["batch_ms"] > 0


def test_a_classifier_is_explained_in_probabilities(tmp_path: Path):
    params, layout = project(tmp_path, "classification", "logistic")
    result = explain.run(params, "pay", layout)
    found = read_json(Path(result.explanation))
    assert result.top_features[0] == "big"
    assert found["examples"][0]["output"] == "true"
    assert all(0 <= each["prediction"] <= 1 for each in found["examples"])
    assert found["error_slices"] == [] or found["error_slices"][0]["measure"] == "log loss"


def test_clusters_are_explained_by_the_share_of_rows_that_change_theirs(tmp_path: Path):
    params, layout = project(tmp_path, "clustering", "kmeans")
    found = read_json(Path(explain.run(params, "pay", layout).explanation))
    assert found["metric"] == "share of rows that change their group"
    assert all(0 <= each["importance"] <= 1 for each in found["importance"])
    assert "examples" not in found


def test_a_model_is_explained_whatever_types_its_strongest_columns_have():
    """The strongest column is a category here, the weaker ones are numbers, a date and a flag; and the other way round."""
    draw = np.random.default_rng(0)
    columns = {
        "place": [("a", "b", None)[each] for each in draw.integers(0, 3, 60)],
        "flag": draw.choice([0.0, 1.0], 60),
        "day": np.datetime64("2025-01-01", "us") + draw.integers(0, 300, 60).astype("timedelta64[D]"),
        "size": np.where(draw.random(60) < 0.3, np.nan, draw.normal(size=60)),
    }
    features = pl.DataFrame(columns).to_pandas()
    rows = Rows(pl.Series(range(60)), None, pl.Series(draw.normal(size=60)), features)
    for weights in ((4, 3, 2, 1), (1, 2, 3, 4), (1, 3, 4, 2)):

        def predict(part: Any, weights: Any = weights) -> np.ndarray:
            known = part["place"].eq("a").fillna(False).to_numpy(dtype=float), part["flag"].to_numpy(dtype=float)
            known += ((part["day"] - features["day"].min()).dt.days.to_numpy() / 300, part["size"].fillna(0).to_numpy())
            return np.column_stack(known) @ np.array(weights, dtype=float)[:, None]

        table = Contributions(predict, ["prediction"], rows, list(columns), seed=0).table()
        assert table.schema == CONTRIBUTIONS
        assert set(table["column"]) == set(columns)
        curves = partial_dependence(predict, ["prediction"], rows, list(columns))
        assert set(curves["column"]) == set(columns)
        assert curves["x"].dtype == pl.Float64


class Waiting:
    """A kind whose prediction takes 10 ms, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(explain, "time", SimpleNamespace(monotonic=lambda: self.now))

    def predict_rows(self, model: Any, features: Any) -> None:
        self.now += 0.01 * len(features)


def test_an_explanation_has_as_many_rows_as_its_time_is_enough_for(monkeypatch: pytest.MonkeyPatch):
    frame = table().head(100)
    rows = Rows(frame["region"], None, frame["y"], frame.to_pandas())
    kind: Any = Waiting(monkeypatch)
    whole = explain.OTHER_WORK * 0.01 * (100 * 6 * explain.SHUFFLES + explain.MAX_PREDICTIONS)
    assert explain.affordable_share(kind, None, rows, math.inf) == 1.0
    assert explain.affordable_share(kind, None, rows, whole / 4) == pytest.approx(0.25)
    assert explain.affordable_share(kind, None, rows, -3.0) == 0.0


def test_a_command_without_time_left_has_a_note_instead_of_an_explanation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    params, layout = project(tmp_path)
    tune = {"tune": params.section("pay").tune.model_copy(update={"budget_seconds": 5.0})}
    short = params.model_copy(update={"sections": {"pay": params.section("pay").model_copy(update=tune)}})
    monkeypatch.setenv(time_budget.BEGAN, "1000")
    explain.run(short, "pay", layout)
    found = read_json(layout.report("pay") / "explanation" / "explanation.json")
    assert found["note"].endswith("a longer tune.budget_seconds leaves some.")
    assert "importance" not in found
    assert any("time budget" in line for part in found["card"] for line in part["lines"])
