"""Rows that belong together are found by what the data shows; codes, months and factors are no groups."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evergreen.flows.operations import init_project
from evergreen.tasks import features, ingest, problems, validate
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Role
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.onboarding import row_groups, schema_inference
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.schema_inference import InferredSchema
from tests.tasks.onboarding.grouped_tables import ROWS, grouped, groups, panel, stores, ungrouped

TODAY = date(2026, 1, 1)
TABLES = 20
"""Made tables per rate. At 5 % false groups, 4 or more among them have a probability of 2 %."""


def of(table: pl.DataFrame, **asked) -> InferredSchema:
    return schema_inference.infer_schema(table.lazy(), InitOptions(**{"target": table.columns[-1], **asked}), TODAY)


def test_a_label_that_is_drawn_per_customer_keeps_the_customers_rows_together():
    found = of(groups())
    assert found.entity == "customer_no"
    assert found.reasons["entity"] == "10.0 rows each, and all rows of one have the same y"
    assert "--entity none: rows are split one by one, and it is a feature" in found.costs["entity"]
    assert "customer_no" not in found.features


def test_words_with_many_rows_that_decide_the_target_are_a_category():
    draw = np.random.default_rng(0)
    breed = np.minimum(draw.zipf(1.4, 4_000), 60)
    names = [f"{'abcdefghij'[each // 10]}{'klmnopqrst'[each % 10]} hound" for each in range(61)]
    pets = pl.DataFrame(
        {
            "breed": [names[each] for each in breed],
            "year": draw.integers(2010, 2020, 4_000),
            "species": np.where(breed % 3 == 0, "Cat", "Dog"),
        }
    )
    found = of(pets)
    assert found.entity is None
    assert "breed" in found.features
    assert any("all rows of one have the same species" in each and "--entity breed" in each for each in found.warnings)
    coded = pets.with_columns(breed=pl.Series([f"C{each:04}" for each in breed]))
    assert of(coded).entity == "breed"


def test_a_panel_keeps_each_countrys_years_together_and_says_what_is_known_of_new_ones():
    found = of(panel())
    assert found.entity == "country"
    assert found.reasons["entity"].startswith("10 rows each; boosted trees reach RMSE ")
    assert "year" in found.features


def test_a_second_name_of_the_entity_is_no_feature_and_no_reason_to_warn():
    number = panel()["country"].rank("dense").cast(pl.Int64)
    names = pl.DataFrame({"iso": [f"C{each}" for each in number], "continent": [f"K{each % 4}" for each in number]})
    found = of(pl.concat([panel(), names], how="horizontal").select(pl.exclude("life"), "life"))
    other = ({"country", "iso"} - {found.entity}).pop()
    assert "continent" in found.features
    assert other not in found.features
    assert next(each.reason for each in found.columns if each.name == other) == f"another name of {found.entity}"
    assert not any(each.startswith(other) for each in found.warnings)


def test_a_name_like_that_of_an_identifier_makes_no_entity_and_costs_no_feature():
    for seed in range(5):
        found = of(stores(seed=seed))
        assert found.entity is None
        assert found.features == {"store_id": "category", "price": "number", "day": "number"}


@pytest.mark.parametrize("name", ["country", "k", "store_id", "x", "entity"])
def test_what_the_column_is_called_plays_no_part(name):
    assert of(panel().rename({"country": name})).entity == name
    assert of(groups().rename({"customer_no": name})).entity == name


def test_none_makes_no_entity_and_the_column_stays_a_feature():
    found = of(groups(), entity="none")
    assert found.entity is None
    assert found.features["customer_no"] == "number"
    assert any(each.startswith("customer_no: 10.0 rows each") and "--entity customer_no" in each for each in found.warnings)


def test_a_column_called_none_can_be_named():
    assert of(groups().rename({"m0": "none"}).with_columns(pl.col("none").rank("dense") % 50), entity="none").entity == "none"


def kept(table: pl.DataFrame) -> str | None:
    """The column that validation keeps together."""
    roles: dict[str, Role] = {name: "category" if kind == pl.String else "number" for name, kind in table.schema.items()}
    usable = [name for name in table.columns[:-1] if not table[name].dtype.is_float()]
    repeated = [name for name in usable if row_groups.FEWEST_GROUPS <= table[name].n_unique() <= table.height / 2]
    found = row_groups.find_groups(table.lazy(), table.height, repeated, roles, "y", table["y"].dtype == pl.String)
    return next((each.column for each in found if each.keeps), None)


def test_the_rate_of_false_groups_is_low():
    assert sum(kept(ungrouped(seed)) is not None for seed in range(TABLES)) <= 3


def test_groups_are_found_in_most_tables_that_have_them():
    assert [kept(grouped(seed)) for seed in range(TABLES)].count("subject") >= 0.9 * TABLES


def test_a_category_that_other_columns_recognise_is_warned_about_and_stays_a_feature():
    """The model of a car: how many of each are for sale is chance, and the next car is of a known model."""
    draw = np.random.default_rng(0)
    model = draw.integers(0, 40, 800)
    size, level = draw.normal(1600, 300, 40), draw.normal(0, 5, 40)
    price = 20 + level[model] + draw.normal(0, 1, 800)
    engine = (size[model] + draw.normal(0, 8, 800)).round()
    table = {"model": [f"m{each}" for each in model], "engine": engine, "age": draw.integers(0, 9, 800), "price": price}
    found = of(pl.DataFrame(table))
    assert found.entity is None
    assert found.features["model"] == "category"
    assert any(
        "scores hold for known model; if new ones are to be predicted, use --entity model" in each for each in found.warnings
    )


def test_groups_of_a_large_table_are_looked_at_whole(monkeypatch):
    monkeypatch.setattr(schema_inference, "SAMPLE_ROWS", 1_000)
    assert of(groups(8_000, each=5)).entity == "customer_no"
    sample = row_groups._whole_groups(groups(8_000, each=5).lazy(), 8_000, "customer_no")
    assert set(sample["customer_no"].value_counts()["count"]) == {5}
    assert sample.height == pytest.approx(row_groups.ROWS, rel=0.3)


# With dates


def dated(table: pl.DataFrame, in_order: bool) -> pl.DataFrame:
    days = np.random.default_rng(2).integers(0, 300, table.height)
    days = np.sort(days) if in_order else days
    seen = pl.Series("seen_date", [date(2024, 1, 1) + timedelta(int(day)) for day in days])
    return table.select(seen, *table.columns)


def test_a_label_of_the_customer_wins_over_an_order_in_time():
    found = of(dated(groups(), in_order=True))
    assert (found.entity, found.time, found.features["seen_date"]) == ("customer_no", None, "date")


def test_sorted_rows_are_judged_in_time_and_known_groups_are_told():
    found = of(dated(panel().sample(fraction=1, shuffle=True, seed=0), in_order=True))
    assert (found.entity, found.time) == (None, "seen_date")
    assert any("scores hold for known country" in each and "--entity country --time none" in each for each in found.warnings)
    assert of(dated(panel(), in_order=False)).entity == "country"


def test_the_order_in_time_says_its_cost_and_how_to_do_without():
    table = dated(stores(), in_order=True)
    found = of(table)
    assert (found.time, found.reasons["time"]) == ("seen_date", "the rows are sorted by it")
    assert found.costs["time"].startswith("The newest 20% of the rows, 80 from 2024-")
    assert "judge the model in 3 windows of about 26 rows, validation in 3 windows of about 80;" in found.costs["time"]
    assert "--time none: rows are drawn at random, and seen_date is a feature alone" in found.costs["time"]
    without = of(table, time="none")
    assert (without.time, without.features["seen_date"]) == (None, "date")
    assert not {"time", "entity"} & without.reasons.keys()


# The printed score


@pytest.mark.parametrize(("make", "new"), [(groups, 0.5), (panel, None)])
def test_the_score_on_test_rows_is_that_of_new_groups(tmp_path: Path, make, new):
    """A model of the drafted problem predicts other customers, or other countries, as its test rows say."""
    whole = make(8_000) if make is groups else make(800)
    key, target = whole.columns[0], whole.columns[-1]
    values = whole[key].unique(maintain_order=True)
    table, fresh = (whole.filter(pl.col(key).is_in(part.implode())) for part in (values.head(400), values.tail(400)))
    table.write_csv(tmp_path / "t.csv")
    started = init_project.run("p", "t.csv", None, InitOptions(target=target), tmp_path, tmp_path, TODAY)
    known, layout = loading.load(tmp_path / "params.yaml"), Layout(tmp_path)
    for step in (ingest, validate):
        step.run(known, None, layout)
    features.run(known, "p", layout)
    kind, section = problems.kind(started.found.kind), known.section("p")
    data = kind.load(layout.features("p"), section)
    fold = kind.splits(data, section).tests[0]
    model = kind.fit(data, fold.train, kind.defaults("lightgbm", section), section, 0)
    name = kind.metrics[0].name
    printed = kind.score(kind.predict(model, data, fold.test, section), section)[name]
    X = fresh.select(started.found.features.keys()).to_pandas()
    if new is None:
        there = float(np.sqrt(np.mean((np.asarray(model.predict(X)) - fresh[target].to_numpy()) ** 2)))
        assert printed == pytest.approx(there, rel=0.25)
    else:
        assert printed == pytest.approx(new, abs=0.12)
    assert fresh.height >= ROWS
