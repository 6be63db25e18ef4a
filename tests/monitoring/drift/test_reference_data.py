"""References: what is kept of a version, by entity, and what is made of a project's files."""

import json
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from evergreen.monitoring.drift import detection, reference_data
from evergreen.monitoring.drift.reference_data import ENTITY, WEEK
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.tasks.config.operations import Monitor
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ProjectError, StepError
from evergreen.tasks.core.paths import Layout

POLICY = Monitor(resamples=100)
CUTOFFS = [date(2024, 3, 3) + timedelta(days=14 * place) for place in range(6)]


def rows(people: int) -> pl.DataFrame:
    """A row per person and cutoff, with features, target and what was answered."""
    draw = np.random.default_rng(0)
    count = people * len(CUTOFFS)
    return pl.DataFrame(
        {
            "household_id": np.tile(np.arange(people), len(CUTOFFS)),
            "cutoff": [each for each in CUTOFFS for _ in range(people)],
            "target": (draw.random(count) < 0.2).astype(float),
            "spend": draw.gamma(2, 10, count),
            "town": draw.choice(["Elm", "Oak", "Ash"], count),
        }
    )


EVENTS = {
    "question": "Will they come again?",
    "features": {
        "entity": "household_id",
        "horizon_days": 14,
        "cutoffs": {"first": "2024-03-03"},
        "target": {"table": "visits", "function": "any"},
        "aggregates": [{"name": "spend", "table": "visits"}],
    },
    "monitor": {"resamples": 100},
}
PLAIN = {
    "question": "Will they pay?",
    "features": {
        "table": "cases",
        "target": "paid",
        "columns": {"income": "number", "purpose": "text", "opened": "date"},
        "time": "asked",
    },
    "monitor": {"resamples": 100},
}


def project(section: dict) -> Params:
    sources = {name: {"csv": f"{name}.csv"} for name in ("visits", "cases")}
    return Params.model_validate(
        {
            "project": {"name": "shop"},
            "problems": {"again": "classification"},
            "ingest": sources,
            "sections": {"again": section},
        }
    )


def written(layout: Layout, frame: pl.DataFrame, card: dict, said: pl.DataFrame | None, judged: str) -> None:
    """What the steps of training leave."""
    layout.features("again").mkdir(parents=True)
    frame.write_parquet(layout.features("again") / "rows.parquet")
    layout.model("again").mkdir(parents=True)
    (layout.model("again") / "model.json").write_text(json.dumps(card))
    if said is not None:
        folder = layout.report("again") / "evaluation"
        folder.mkdir(parents=True)
        said.write_parquet(folder / "predictions.parquet")
        (folder / "evaluation.json").write_text(json.dumps({"cutoff": judged}))


CARD = {
    "features": ["spend", "town"],
    "cutoff": str(CUTOFFS[-1]),
    "trained_on": [str(each) for each in CUTOFFS[:4]],
    "importance": {"spend": 0.9, "town": 0.1},
}


def said(frame: pl.DataFrame) -> pl.DataFrame:
    risk = np.random.default_rng(1).beta(2, 8, frame.height)
    return (
        frame.filter(pl.col("cutoff") == CUTOFFS[-1])
        .select(
            entity="household_id",
            label="target",
            cutoff="cutoff",
            probability_1=pl.Series(risk[: frame.height // len(CUTOFFS)]),
        )
        .with_columns(probability_0=1 - pl.col("probability_1"))
    )


def test_a_reference_is_of_the_rows_learned_from_and_the_answers_judged_by_and_stands_without_the_model(tmp_path):
    layout, frame = Layout(tmp_path), rows(200)
    written(layout, frame, CARD, said(frame), str(CUTOFFS[-1]))
    made = reference_data.build(project(EVENTS), "again", layout, None, 3)
    assert sorted(made.parts["features"].rows[WEEK].unique()) == CUTOFFS[:4]
    assert made.parts["predictions"].rows[WEEK].unique().to_list() == [CUTOFFS[-1]]
    assert list(made.parts["predictions"].forms) == ["probability_1"]
    assert made.parts["labels"].rows.height == 800
    assert made.facts.importance == {"spend": 0.9, "town": 0.1}
    kept = reference_data.load(layout, "again", 3)
    assert kept is not None
    assert kept.facts == made.facts
    assert all(kept.parts[name].rows.equals(part.rows) for name, part in made.parts.items())
    assert reference_data.load(layout, "again", 4) is None


def test_the_answers_of_another_version_are_no_reference(tmp_path):
    layout, frame = Layout(tmp_path), rows(100)
    written(layout, frame, CARD, said(frame), "2024-01-01")
    assert set(reference_data.build(project(EVENTS), "again", layout, None, 1).parts) == {"features", "labels"}


def test_a_version_whose_cutoffs_are_not_in_the_newest_features_refers_to_those_before_its_own(tmp_path):
    layout, frame = Layout(tmp_path), rows(100)
    written(layout, frame, CARD, None, "")
    older = {**CARD, "trained_on": ["2024-02-27"], "cutoff": str(CUTOFFS[2])}
    made = reference_data.build(project(EVENTS), "again", layout, None, 1, card=older)
    assert sorted(made.parts["features"].rows[WEEK].unique()) == CUTOFFS[:3]


def test_an_importance_is_the_larger_of_what_the_model_says_and_what_shuffling_costs(tmp_path):
    told = tmp_path / "explanation.json"
    told.write_text(
        json.dumps({"importance": [{"column": "town", "importance": 0.3}, {"column": "spend", "importance": -0.1}]})
    )
    assert reference_data.weighed(CARD, told) == {"spend": 0.9, "town": 1.0}
    assert reference_data.weighed({"importance": {}}, tmp_path / "none.json") == {}


def test_words_count_by_their_number_and_dates_by_their_age(tmp_path):
    layout, draw = Layout(tmp_path), np.random.default_rng(2)
    asked = [datetime(2024, 1, 1) + timedelta(days=int(each)) for each in np.sort(draw.integers(0, 200, 600))]
    ages = draw.integers(10, 30, 600)
    frame = pl.DataFrame(
        {
            "_entity": np.arange(600),
            "_target": draw.choice(["no", "yes"], 600),
            "_time": asked,
            "_test": np.arange(600) >= 500,
            "income": draw.normal(size=600),
            "purpose": [" ".join(["word"] * int(each)) for each in draw.integers(3, 6, 600)],
            "opened": [each - timedelta(days=int(age)) for each, age in zip(asked, ages, strict=True)],
        }
    )
    card = {"features": ["income", "purpose", "opened"], "cutoff": "test", "trained_on": ["rest"], "importance": {}}
    written(layout, frame, card, None, "")
    made = reference_data.build(project(PLAIN), "again", layout, None, 1)
    assert made.parts["features"].rows["opened"].is_between(10, 30).all()
    assert made.parts["features"].week is not None
    later = [datetime(2025, 1, 1)] * 200

    def asking(words: int, age: int) -> Predictions:
        opened = [str(each - timedelta(days=age + place % 20)) for place, each in enumerate(later)]
        features = pl.DataFrame(
            {
                "income": draw.normal(size=200),
                "purpose": [" ".join(["a"] * (words + place % 3)) for place in range(200)],
                "opened": opened,
            }
        )
        return Predictions(pl.DataFrame({"at": later, "entity": [str(9000 + place) for place in range(200)]}), features)

    assert not detection.compare(made, asking(3, 10), POLICY, 0).alarm
    assert {each.column for each in detection.compare(made, asking(40, 400), POLICY, 0).alarms} == {"purpose", "opened"}


def test_dates_of_rows_without_a_time_are_not_compared():
    draw = np.random.default_rng(2)
    opened = [datetime(2024, 1, 1) + timedelta(days=int(each)) for each in draw.integers(0, 200, 600)]
    entity = [str(place) for place in range(600)]
    learned = Predictions(
        pl.DataFrame({"entity": entity, "prediction": draw.normal(size=600)}),
        pl.DataFrame({"income": draw.normal(size=600), "opened": opened}),
    )
    made = reference_data.of_predicted("again", 1, "regression", learned, roles={"income": "number", "opened": "date"})
    assert set(made.parts["features"].forms) == {"income"}
    rows = pl.DataFrame({"at": [datetime(2025, 1, 1)] * 200, "entity": entity[:200], "prediction": draw.normal(size=200)})
    later = pl.DataFrame(
        {"income": draw.normal(size=200), "opened": [str(each + timedelta(days=365)) for each in opened[:200]]}
    )
    assert not detection.compare(made, Predictions(rows, later), POLICY, 0).alarm


def test_an_entity_is_kept_with_all_its_rows_or_not_at_all():
    frame = pl.DataFrame(
        {ENTITY: np.repeat(np.arange(300), 5), WEEK: pl.Series([None] * 1500, dtype=pl.Date), "x": np.arange(1500.0)}
    )
    kept = reference_data.capped(frame, 400, 0)
    assert 390 <= kept.height <= 400
    assert kept[ENTITY].value_counts()["count"].unique().to_list() == [5]
    assert reference_data.capped(frame, 400, 1)[ENTITY].to_list() != kept[ENTITY].to_list()
    assert reference_data.capped(frame.with_columns(pl.lit(1).alias(ENTITY)), 400, 0).height == 400


def test_draws_without_drift_are_made_once_and_kept_beside_the_reference(tmp_path, monkeypatch):
    layout, frame = Layout(tmp_path), rows(100)
    written(layout, frame, CARD, said(frame), str(CUTOFFS[-1]))
    made = reference_data.build(project(EVENTS), "again", layout, None, 1)
    now = frame.filter(pl.col("cutoff") == CUTOFFS[4])
    predicted = Predictions(
        now.select(pl.col("household_id").cast(pl.String).alias("entity"), "cutoff"), now.select("spend", "town")
    )
    first = detection.compare(made, predicted, POLICY, 0)
    monkeypatch.setattr(reference_data.Part, "draw", lambda *_: pytest.fail("drawn again"))
    again = reference_data.load(layout, "again", 1)
    assert again is not None
    second = detection.compare(again, predicted, POLICY, 0)
    assert [(each.column, each.alarm) for each in second.changes] == [(each.column, each.alarm) for each in first.changes]
    monkeypatch.undo()
    (kept,) = (reference_data.place(layout, "again", 1) / "null").glob("features-*.npz")
    kept.write_bytes(b"torn")
    whole = reference_data.load(layout, "again", 1)
    assert whole is not None
    assert detection.compare(whole, predicted, POLICY, 0).changes == first.changes


def test_a_damaged_reference_and_one_without_features_are_told_in_one_line(tmp_path):
    layout = Layout(tmp_path)
    with pytest.raises(StepError, match="again: has no features to be a reference; run evergreen train again"):
        reference_data.build(project(EVENTS), "again", layout, None, 1, card=CARD)
    frame = rows(50)
    written(layout, frame, CARD, None, "")
    folder = reference_data.build(project(EVENTS), "again", layout, None, 1).folder
    assert folder is not None
    (folder / "features.parquet").write_bytes(b"PAR1")
    with pytest.raises(ProjectError, match="the reference of again v1 is damaged"):
        reference_data.load(layout, "again", 1)
