"""The tables of a recommender's report, each held to a slow counterpart on the small store."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.problems.recommender import evaluation_tables, source_ablation
from tests.contracts import World, build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build("recommend", tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def model(world: World) -> Any:
    return world.fit(world.defaults("frequency"))


@pytest.fixture(scope="module")
def rows(world: World, model: Any) -> dict[str, pl.DataFrame]:
    models = {"model": model, "baseline": world.fit(world.defaults("popularity"))}
    return {name: world.predict(each).with_columns(cutoff=pl.lit(world.fold.test)) for name, each in models.items()}


@pytest.fixture(scope="module")
def tables(world: World, model: Any, rows: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    return evaluation_tables.plots(rows["model"], rows["baseline"], model, world.data, world.section.pipeline.k)


def lines(world: World) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was bought up to the cutoff, and in the window after it."""
    day = pl.col("day")
    after = (day > world.fold.test) & (day <= pl.lit(world.fold.test).dt.offset_by("28d"))
    return world.frames["lines"].filter(day <= world.fold.test), world.frames["lines"].filter(after)


def test_the_mean_of_a_table_has_the_interval_of_a_bootstrap_by_entity():
    draw = np.random.default_rng(0)
    entity = np.repeat(np.arange(200), draw.integers(1, 6, 200))
    score = draw.random(200)[entity] + 0.1 * draw.random(len(entity))
    frame = pl.DataFrame({"entity": entity, "score": score})
    by_entity = [score[entity == each] for each in range(200)]
    means = [np.concatenate([by_entity[each] for each in draw.integers(0, 200, 200)]).mean() for _ in range(2000)]
    found = evaluation_tables.mean(frame, "score")
    assert found["value"] == pytest.approx(score.mean())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * np.std(means), rel=0.1)


def test_repeats_of_lists_and_of_purchases_are_those_bought_before(world, rows):
    before, after = lines(world)
    known = set(before.select("user", "item").iter_rows())
    listed = [(user, item) for user, items in rows["model"].select("entity", "items").iter_rows() for item in items]
    share = np.mean([pair in known for pair in listed])
    assert rows["model"]["repeats"].mean() == pytest.approx(share)
    bought = (
        after.select("user", "item")
        .unique()
        .with_columns(
            again=pl.struct("user", "item").map_elements(lambda each: (each["user"], each["item"]) in known, pl.Boolean)
        )
    )
    expected = bought.group_by("user").agg(pl.col("again").mean())["again"].mean()
    assert rows["model"]["bought_repeats"].mean() == pytest.approx(expected)


def test_popularity_bias_is_the_novelty_of_purchases_beyond_that_of_the_lists(tables, rows):
    value = {(series, measure): value for series, measure, value, _, _ in tables["lists"].iter_rows()}
    for name in ("model", "baseline"):
        bias = value["purchases", "novelty"] - value[name, "novelty"]
        assert rows[name]["popularity_bias"].mean() == pytest.approx(bias)
        assert bias > 0


def test_every_user_and_every_purchase_is_in_one_group(world, tables, rows):
    _, after = lines(world)
    for name in ("model", "baseline"):
        users = tables["by_visits"].filter(pl.col("series") == name)
        assert users["users"].sum() == rows[name].height
        groups = tables["by_buyers"].filter(pl.col("series") == name)
        assert groups["share"].sum() == pytest.approx(1)
        found = (rows[name]["recall"] * rows[name]["bought"]).sum() / after.select("user", "item").n_unique()
        assert (groups["share"] * groups["found"]).sum() == pytest.approx(found)


def test_items_that_nobody_bought_before_are_counted_and_never_found(world, model, rows):
    _, after = lines(world)
    fresh = after.with_columns(item=pl.when(pl.col("basket") % 4 == 0).then(pl.lit(5555)).otherwise("item"))
    before = world.frames["lines"].filter(pl.col("day") <= world.fold.test)
    data = world.reload({**world.frames, "lines": pl.concat([before, fresh])}, "fresh")
    again = {name: world.kind.predict(model, data, world.fold.test, world.section) for name in rows}
    stamped = {name: frame.with_columns(cutoff=pl.lit(world.fold.test)) for name, frame in again.items()}
    table = evaluation_tables.plots(stamped["model"], stamped["baseline"], model, data, 10)["by_buyers"]
    cold = table.filter((pl.col("series") == "model") & (pl.col("buyers") == "none"))
    pairs = fresh.select("user", "item").unique()
    assert cold["share"].item() == pytest.approx((pairs["item"] == 5555).mean())
    assert cold["found"].item() == 0


def test_what_a_source_is_worth_is_what_a_model_made_without_it_says(world):
    config = world.defaults("two_stage")
    windows = world.section.pipeline.model_copy(update={"ranker_windows": source_ablation.WINDOWS})
    section = world.section.model_copy(update={"pipeline": windows})
    whole = world.kind.fit(world.data, world.fold.train, config, section, 3)
    table = source_ablation.ablate(whole, world.data, world.fold.test, 10, 10_000)
    found = {row["variant"]: row for row in table.iter_rows(named=True)}
    assert list(found) == ["all sources", "without ease", "without tifu_knn"]
    less = world.kind.fit(world.data, world.fold.train, {**config, "with_tifu_knn": False}, section, 3)
    for variant, model in (("all sources", whole), ("without tifu_knn", less)):
        rows = world.predict(model).filter(pl.col("visits") > 0)
        for metric in ("ndcg", "recall_novel"):
            assert found[variant][metric] == pytest.approx(rows[metric].mean()), (variant, metric)
    gap = found["without tifu_knn"]["ndcg"] - found["all sources"]["ndcg"]
    assert found["without tifu_knn"]["gain"] == pytest.approx(gap)
    assert found["without tifu_knn"]["low"] < gap < found["without tifu_knn"]["high"]


def test_the_dial_at_zero_is_the_list_itself_and_more_of_it_makes_lists_more_diverse(world):
    model = world.fit({**world.defaults("two_stage"), "learning_rate": 0.2})
    rows = world.predict(model).with_columns(cutoff=pl.lit(world.fold.test))
    table = evaluation_tables.plots(rows, rows, model, world.data, 10)["diversity"]
    for (series,), part in table.group_by("series"):
        suffix = "" if series == "all items" else "_novel"
        known = rows.filter(pl.col("visits") > 0)
        assert part["dial"].to_list() == list(evaluation_tables.DIALS)
        assert part["ndcg"][0] == pytest.approx(known[f"ndcg{suffix}"].mean(), abs=1e-3)
        assert part["diversity"].is_sorted()
        assert part["diversity"][-1] > part["diversity"][0] + 0.05


def test_without_windows_to_learn_from_nothing_is_said_of_sources(world, model):
    first = world.data.first
    assert source_ablation.ablate(model, world.data, first, 10, 100).is_empty()


def test_a_history_cut_short_is_worth_more_with_every_visit_and_the_whole_one_as_much_as_before(world, tables, rows):
    short = dict(tables["short_histories"].select("visits_known", "ndcg").iter_rows())
    assert list(short) == ["0", "1", "2", "5", "10", "all"]
    assert short["0"] < short["2"] < short["10"]
    long_known = rows["model"].filter(pl.col("visits") > 10)
    assert long_known.height <= evaluation_tables.SAMPLED_USERS
    assert short["all"] == pytest.approx(long_known["ndcg"].mean())
