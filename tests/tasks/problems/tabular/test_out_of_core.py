"""Learning from more rows than memory may hold: the sample, the blocks, and models that are those of the usual path."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evergreen.flows.operations.reproduce import learning_limit
from evergreen.tasks import diagnose, evaluate, explain, problems, train, tune
from evergreen.tasks.config.params import Params, Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.paths import Layout, read_json, refusal
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.tabular import out_of_core, stored_table, tabular_kind
from evergreen.tasks.problems.tabular.stored_table import StoredTable
from evergreen.tasks.search.trials import Evaluator
from tests.tasks.problems.tabular import test_tabular_kind
from tests.tasks.problems.tabular.test_tabular_kind import houses

DAYS = [date(2024, 1, 1) + timedelta(days=28 * place) for place in range(6)]
HOUSES = 6_000
ROOM_MB = "4"
"""For houses: more than a thousand rows, fewer than all."""


def section(target, **more):
    return test_tabular_kind.section(target, **more)


def of_events(**more):
    features = {"entity": "id", "horizon_days": 28, "cutoffs": {"first": str(DAYS[0])}}
    return Tabular.model_validate({"question": "Will they?", "features": features, **more})


def visits(entities=2_000, seed=0):
    """One row per entity and cutoff; the chance of a visit depends on x and colour; the last cutoff has no label."""
    draw = np.random.default_rng(seed)
    count = entities * len(DAYS)
    x, colour = draw.normal(size=count), draw.choice(["red", "green", "blue"], count)
    chance = 1 / (1 + np.exp(-(1.5 * x + (colour == "red") - 1)))
    cutoff = np.repeat(np.array(DAYS), entities)
    target = pl.Series((draw.random(count) < chance).astype(float)).set(pl.Series(cutoff == DAYS[-1]), None)
    return pl.DataFrame(
        {
            "id": np.tile(np.arange(entities), len(DAYS)),
            "cutoff": pl.Series(cutoff.tolist(), dtype=pl.Date),
            "target": target,
            "x": np.where(draw.random(count) < 0.05, np.nan, x),
            "bought": draw.gamma(2, 10, count),
            "colour": colour,
        }
    ).with_columns(pl.col("x").fill_nan(None))


def write(folder, frame, kind, chosen):
    if "id" not in frame.columns:
        frame = kind.build({"houses": frame.lazy()}, {}, chosen, None)["rows"]
    frame.write_parquet(folder / "rows.parquet", row_group_size=1_700)


def whole_as_sample(monkeypatch):
    """Let every table count as too large, and its sample be all of it."""
    monkeypatch.setattr(StoredTable, "fits", lambda table: False)
    monkeypatch.setattr(StoredTable, "sample", lambda table: stored_table.Selection(table, np.ones(table.height, bool)))


def usual_and_stored(folder, kind, chosen, config, monkeypatch):
    """The same model by both paths, where the sample is the whole table, with its data."""
    data = kind.load_stored(folder, chosen)
    assert data.stored is None
    parts = kind.splits(data, chosen).tests[0].train
    usual = kind.fit(data, parts, config, chosen, 0)
    whole_as_sample(monkeypatch)
    data = kind.load_stored(folder, chosen)
    assert data.stored is not None
    return usual, kind.fit(data, parts, config, chosen, 0), data


ASKED = [
    ("classification", "dear", "lightgbm", {"encode": "target"}),
    ("classification", "class", "lightgbm", {"encode": "native", "encode_high": "native"}),
    ("regression", "price", "lightgbm", {"column_pairs": 4}),
    ("classification", "dear", "logistic", {"class_weight": "balanced"}),
    ("classification", "class", "logistic", {"C": 0.1}),
    ("regression", "price", "ridge", {"target_log": True, "encode_high": "target"}),
    ("regression", "price", "ridge", {"target_log": False, "scale": "none", "spline_knots": 0}),
    ("classification", "dear", "prior", {}),
    ("regression", "price", "naive", {}),
]


@pytest.mark.parametrize(("name", "target", "model", "more"), ASKED)
def test_from_blocks_a_model_learns_what_it_learns_in_memory(name, target, model, more, tmp_path, monkeypatch):
    kind, chosen = problems.kind(name), section(target)
    write(tmp_path, houses(1_500), kind, chosen)
    monkeypatch.setattr(stored_table, "BLOCK_VALUES", 10 * 300)
    config = {**kind.defaults(model, chosen), **more}
    usual, stored, data = usual_and_stored(tmp_path, kind, chosen, config, monkeypatch)
    one, two = (kind.predict_rows(each, data.features) for each in (usual, stored))
    assert list(one) == list(two)
    for column in one:
        if one[column].dtype.kind == "f":
            exact = model not in ("logistic", "ridge")
            np.testing.assert_allclose(one[column], two[column], rtol=0 if exact else 2e-3, atol=0 if exact else 2e-3)
    skops_models.save(stored, tmp_path / "model.skops")
    again = kind.predict_rows(skops_models.load(tmp_path / "model.skops"), data.features)
    assert all(np.array_equal(again[column], two[column]) for column in two)


@pytest.mark.parametrize("more", [{}, {"train": {"half_life_days": 30}}])
def test_features_from_events_learn_from_blocks_what_they_learn_in_memory(more, tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), of_events(tune={"folds": 1}, evaluate={"windows": 1}, **more)
    write(tmp_path, visits(), kind, chosen)
    usual, stored, data = usual_and_stored(tmp_path, kind, chosen, kind.defaults("lightgbm", chosen), monkeypatch)
    one, two = (each.predict_proba(data.features) for each in (usual, stored))
    assert usual.threshold == stored.threshold
    np.testing.assert_array_equal(one, two)


def test_an_offset_is_learned_from_all_rows(tmp_path, monkeypatch):
    kind = problems.kind("regression")
    chosen = of_events(tune={"folds": 1}, evaluate={"windows": 1}, pipeline={"offset": ["bought"]})
    frame = visits().with_columns(
        target=pl.when(pl.col("target").is_not_null()).then(0.5 * pl.col("bought") + pl.col("target"))
    )
    write(tmp_path, frame, kind, chosen)
    for model in ("ridge", "naive"):
        with monkeypatch.context() as patched:
            usual, stored, data = usual_and_stored(tmp_path, kind, chosen, kind.defaults(model, chosen), patched)
        assert stored.factor_ == pytest.approx(usual.factor_)
        np.testing.assert_allclose(usual.predict(data.features), stored.predict(data.features), rtol=1e-9)


@pytest.mark.parametrize(
    ("model", "name", "target"), [("lightgbm", "classification", "dear"), ("ridge", "regression", "price")]
)
def test_model_and_predictions_are_the_same_to_the_bit_however_much_is_read_at_a_time(
    model, name, target, tmp_path, monkeypatch
):
    kind, chosen = problems.kind(name), section(target)
    write(tmp_path, houses(HOUSES), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", ROOM_MB)
    found = []
    for megabytes in ("1", "0.2", "1000"):
        monkeypatch.setattr("evergreen.tasks.core.memory.limit", lambda most=float(megabytes): int(most * 2**20))
        data = kind.load_stored(tmp_path, chosen)
        fold = kind.splits(data, chosen).tests[0]
        fitted = kind.fit(data, fold.train, kind.defaults(model, chosen), chosen, 0)
        skops_models.save(fitted, tmp_path / "model.skops")
        found.append(((tmp_path / "model.skops").read_bytes(), kind.predict(fitted, data, fold.test, chosen)))
    assert len({model for model, _ in found}) == 1
    assert all(said.equals(found[0][1]) for _, said in found)


def test_all_test_rows_are_predicted_and_all_training_rows_counted(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), section("dear", evaluate={"slices": ["colour"]})
    write(tmp_path, houses(HOUSES), kind, chosen)
    usual = kind.load_stored(tmp_path, chosen)
    fold = kind.splits(usual, chosen).tests[0]
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", ROOM_MB)
    data = kind.load_stored(tmp_path, chosen)
    in_memory, stored = kind.sampled(data)
    assert (stored, in_memory) == (HOUSES, len(data))
    assert 1_000 <= in_memory < HOUSES / 2
    assert kind.rows(data, fold.train) == kind.rows(usual, fold.train)
    model = kind.fit(data, fold.train, kind.defaults("prior", chosen), chosen, 0)
    said = kind.predict(model, data, fold.test, chosen)
    assert said.select("entity", "label").equals(kind.predict(model, usual, fold.test, chosen).select("entity", "label"))
    assert kind.slices(data, fold.test, ["colour", "size"], chosen).equals(
        kind.slices(usual, fold.test, ["colour", "size"], chosen)
    )
    assert kind.levels(data) == kind.levels(usual)


def test_windows_of_a_table_with_time_are_the_same_rows_in_memory_and_stored(tmp_path, monkeypatch):
    kind, chosen = problems.kind("regression"), section("price", features={"time": "built"}, evaluate={"windows": 2})
    frame = houses(HOUSES).with_columns(pl.col("built") + pl.duration(minutes=pl.int_range(pl.len())))
    write(tmp_path, frame, kind, chosen)
    usual = kind.load_stored(tmp_path, chosen)
    whole_as_sample(monkeypatch)
    data = kind.load_stored(tmp_path, chosen)
    for fold in kind.splits(usual, chosen).tests:
        for parts in (fold.train, (fold.test,)):
            assert data.all_stored(parts).frame(["_entity"])["_entity"].equals(usual.at(parts).entity)


def test_the_sample_has_whole_entities_and_is_always_the_same(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), of_events(tune={"folds": 1}, evaluate={"windows": 1})
    write(tmp_path, visits(), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", "3")
    data = kind.load(tmp_path, chosen)
    assert data.stored is None
    assert 1_000 < len(data) < 6_000
    assert set(data.entity.value_counts()["count"]) == {len(DAYS)}
    assert kind.load(tmp_path, chosen).entity.equals(data.entity)


def test_more_memory_keeps_the_entities_that_less_had(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), of_events()
    write(tmp_path, visits(), kind, chosen)
    seen = []
    for megabytes in ("2", "3"):
        monkeypatch.setenv("EVERGREEN_LEARNING_MB", megabytes)
        seen.append(set(kind.load(tmp_path, chosen).entity))
    assert seen[0] < seen[1]


def test_every_process_of_a_search_reads_the_same_sample_whatever_its_environment_says(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), of_events(tune={"folds": 1}, evaluate={"windows": 1})
    write(tmp_path, visits(), kind, chosen)
    read = []
    for megabytes in ("2", "3"):
        monkeypatch.setenv("EVERGREEN_LEARNING_MB", megabytes)
        given = Evaluator("classification", tmp_path, chosen, kind.metrics[0], 0, megabytes, learning_limit=2 * 2**20)
        read.append(given.data().entity)
    assert read[0].equals(read[1])


def test_an_entity_with_half_of_all_rows_is_not_in_the_sample(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), of_events()
    frame = visits().with_columns(id=pl.when(pl.int_range(pl.len()) % 2 == 0).then(-1).otherwise("id"))
    write(tmp_path, frame, kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", "2")
    data = kind.load(tmp_path, chosen)
    assert len(data) > 1_000
    assert -1 not in set(data.entity)


def test_a_rare_class_is_in_the_sample(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), section("class")
    frame = houses(HOUSES).with_columns(
        pl.when(pl.int_range(pl.len()) % 150 == 0).then(pl.lit("rare")).otherwise("class").alias("class")
    )
    write(tmp_path, frame, kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", ROOM_MB)
    assert (kind.load(tmp_path, chosen).target == "rare").sum() == stored_table.FEWEST_PER_CLASS


@pytest.mark.parametrize("given", ["much", "0", "-4", "inf", "nan"])
def test_a_limit_that_is_no_number_is_refused(given, tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), of_events()
    write(tmp_path, visits(20), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", given)
    refusal = rf"^EVERGREEN_LEARNING_MB = {given}: is no number of megabytes from 1 on"
    with problems.naming("redeem") as _, pytest.raises(ParamsError, match=refusal):
        kind.load(tmp_path, chosen)


def test_a_limit_below_the_rows_of_a_few_entities_says_what_is_enough(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), of_events()
    write(tmp_path, visits().with_columns(id=pl.col("id") % 2), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", "1")
    with pytest.raises(ParamsError, match=r"EVERGREEN_LEARNING_MB = 1: is too small for .*Give it 5 or more, or unset it\."):
        kind.load(tmp_path, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", "5")
    assert len(kind.load(tmp_path, chosen)) >= 6_000


def test_models_that_need_their_rows_in_memory_learn_from_the_sample(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), section("dear")
    write(tmp_path, houses(HOUSES), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", ROOM_MB)
    data = kind.load_stored(tmp_path, chosen)
    blend = {"model": "blend", "members": [kind.defaults("logistic", chosen)], "weights": [1]}
    for config in (kind.defaults("random_forest", chosen), kind.defaults("network", chosen), blend):
        assert kind.rows(kind.scope(data, config, chosen), ["rest"]) < 0.5 * kind.rows(data, ["rest"])
    for model in ("prior", "logistic", "lightgbm"):
        assert kind.scope(data, kind.defaults(model, chosen), chosen) is data


def test_trees_learn_from_the_sample_where_not_even_their_bins_fit(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), section("dear")
    write(tmp_path, houses(HOUSES), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", ROOM_MB)
    monkeypatch.setattr(stored_table, "ROW_BYTES", 2_000)
    data = kind.load_stored(tmp_path, chosen)
    assert kind.scope(data, kind.defaults("lightgbm", chosen), chosen).stored is None
    assert kind.scope(data, kind.defaults("logistic", chosen), chosen) is data


def test_a_number_that_is_missing_outside_the_sample_is_refused_by_a_linear_model(tmp_path, monkeypatch):
    kind = problems.kind("regression")
    chosen = section("price", columns={"year": "number"}, pipeline={"impute": ["none"]})
    frame = houses(40_000).select("price", year=pl.col("built").dt.year().cast(float))
    write(tmp_path, frame, kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", "2")
    data = kind.load_stored(tmp_path, chosen)
    sampled = pl.Series(data.features.index)
    lost = pl.int_range(pl.len()).is_in(sampled.implode()).not_() & ~pl.col("_test")
    path = tmp_path / "rows.parquet"
    pl.read_parquet(path).with_columns(year=pl.when(lost).then(None).otherwise("year")).write_parquet(path)
    data = kind.load_stored(tmp_path, chosen)
    with pytest.raises(DataError, match=r"rows of a block have a missing number, and with pipeline\.impute none ridge cannot"):
        kind.fit(data, ["rest"], kind.defaults("ridge", chosen), chosen, 0)


def test_more_rows_than_memory_holds_teach_more_than_the_sample(tmp_path, monkeypatch):
    """Streets have effects of their own, which few rows each do not show."""
    kind, chosen = problems.kind("regression"), section("price")
    write(tmp_path, houses(40_000), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", "8")
    data = kind.load_stored(tmp_path, chosen)
    fold, config = kind.splits(data, chosen).tests[0], kind.defaults("lightgbm", chosen)
    reached = []
    for given in (data.in_memory(), data):
        model = kind.fit(given, fold.train, config, chosen, 0)
        reached.append(kind.score(kind.predict(model, data, fold.test, chosen), chosen)["r2"])
    assert reached[1] > reached[0] + 0.01


def test_training_rows_of_the_sample_keep_the_values_that_do_not_know_their_own_target(tmp_path, monkeypatch):
    """A column with a category per row tells nothing; encoded by its own target, it would seem to tell all."""
    kind = problems.kind("regression")
    chosen = section("price", columns={"noise": "category"})
    frame = houses(4_000).select("price", noise=pl.int_range(pl.len()).mod(1_900).cast(pl.String))
    write(tmp_path, frame, kind, chosen)
    config = {**kind.defaults("lightgbm", chosen), "encode_high": "target"}
    usual, stored, data = usual_and_stored(tmp_path, kind, chosen, config, monkeypatch)
    np.testing.assert_array_equal(usual.predict(data.features), stored.predict(data.features))


def test_a_full_disk_ends_logistic_regression_with_the_error_that_steps_tell_in_one_line(tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), section("dear")
    write(tmp_path, houses(HOUSES), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", ROOM_MB)
    data = kind.load_stored(tmp_path, chosen)
    with Path("/dev/full").open("wb", buffering=0) as file:
        monkeypatch.setattr(out_of_core.tempfile, "SpooledTemporaryFile", lambda **_: file)
        with pytest.raises(OSError, match="No space left") as full:
            kind.fit(data, ["rest"], kind.defaults("logistic", chosen), chosen, 0)
    assert "Free space" in str(refusal(full.value))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "learned"), [("lightgbm", "all rows before it"), ("random_forest", "the sample too")])
def test_all_steps_work_above_memory_and_say_how_many_rows_of_how_many(model, learned, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    kind = problems.kind("classification")
    tuned = {"models": ["prior", model], "n_trials": 2, "method": "random", "folds": 2, "max_rows": HOUSES}
    chosen = section("dear", tune=tuned, evaluate={"resamples": 50, "explain_rows": 60, "diagnose_seconds": 1})
    base = Params.model_validate({"project": {"name": "t"}, "ingest": {}, "problems": {"dear": "classification"}})
    params, layout = base.model_copy(update={"sections": {"dear": chosen}}), Layout(tmp_path)
    layout.features("dear").mkdir(parents=True)
    write(layout.features("dear"), houses(HOUSES), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", ROOM_MB)
    monkeypatch.setenv("EVERGREEN_WORKERS", "1")
    for step in (tune, train, evaluate, diagnose, explain):
        step.run(params, "dear", layout)
    sample = read_json(layout.tuning("dear") / "best.json")["sample"]
    assert 1_000 <= sample["in_memory"] < sample["stored"] == HOUSES
    assert learning_limit(layout.tuning("dear") / "best.json") == {"EVERGREEN_LEARNING_MB": f"{float(ROOM_MB)}"}
    card, report = read_json(layout.model("dear") / "model.json"), layout.report("dear")
    assert card["sample"] == {**sample, "learned_from": learned}
    assert (card["rows"] > HOUSES / 2) == (model == "lightgbm")
    assert read_json(report / "explanation" / "explanation.json")["sample"] == sample
    table = pl.read_parquet(layout.features("dear") / "rows.parquet")
    assert read_json(report / "evaluation" / "evaluation.json")["rows"] == table["_test"].sum()
    told = f"use {sample['in_memory']:,} of its {HOUSES:,} rows, a sample of entities; the model learned from {learned}."
    assert told in (report / "explanation" / "card.md").read_text()
    assert f"a sample of {sample['in_memory']:,} of {HOUSES:,} rows is in memory" in caplog.text
    assert ("learns from the sample" in caplog.text) == (model == "random_forest")


def test_clusters_are_made_of_the_sample(tmp_path, monkeypatch):
    kind, chosen = problems.kind("clustering"), section(None, columns={"size": "number", "colour": "category"})
    write(tmp_path, houses(HOUSES), kind, chosen)
    monkeypatch.setenv("EVERGREEN_LEARNING_MB", "2")
    data = kind.load_stored(tmp_path, chosen)
    config = next(kind.defaults(model, chosen) for model in kind.space(chosen) if model != kind.baseline)
    learned = kind.scope(data, config, chosen)
    assert 1_000 < len(learned) == kind.rows(learned, ["all"]) < HOUSES
    model = kind.fit(data, ["rest"], config, chosen, 0)
    assert kind.predict(model, data, "test", chosen).height == len(data.at(["test"]))


@pytest.mark.parametrize("most", [10_000, 2])
def test_for_scoring_one_row_tells_the_names_types_and_levels_of_all(most, tmp_path, monkeypatch):
    kind, chosen = problems.kind("classification"), section("dear")
    write(tmp_path, houses(1_500), kind, chosen)
    monkeypatch.setattr(tabular_kind, "MAX_LEVELS", most)
    monkeypatch.setenv("EVERGREEN_MEMORY_MB", "1")
    whole, known = kind.load(tmp_path, chosen), kind.load_types(tmp_path, chosen)
    assert len(known) == 1
    assert known.features.dtypes.equals(whole.features.dtypes)
    assert kind.levels(known) == kind.levels(whole)
    assert bool(kind.levels(known)) == (most > 2)
