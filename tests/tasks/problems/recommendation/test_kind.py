"""The recommender on the small store: half of the goods are never for this household, and popularity cannot see which."""

from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import polars as pl
import pytest

from evergreen.tasks.config.params import Recommend
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.recommendation.kind import KIND
from evergreen.tasks.problems.recommender.ranker_features import FEATURES
from evergreen.tasks.problems.recommender.user_histories import Histories
from tests.contracts import Contract, World, build

COLUMNS = ["household_id", "rank", "product_id", "score", "source"]


class TestRecommendation(Contract):
    problem = "recommend"
    model = "two_stage"
    floor = 0.6
    ceiling = 0.02

    def shuffle(self, frames, draw):
        """Every item changes places with another line's: what is bought has nothing to do with who buys it."""
        lines = frames["lines"]
        return {**frames, "lines": lines.with_columns(item=pl.Series(draw.permutation(lines["item"].to_numpy())))}

    def unheard(self, example):
        yield example.assign(household_id=[-5, 10**12, None, 1.5, 7][: len(example)])
        yield example.assign(household_id=["nobody"] * len(example))

    def test_what_was_never_heard_of_is_answered(self, world, fitted):
        for model in fitted.values():
            for strange in self.unheard(world.kind.example(world.data, world.section)):
                answer = model.predict(strange)
                assert len(answer) == len(strange) * world.section.pipeline.k
                assert set(answer["source"][: world.section.pipeline.k]) == {"popular"}

    def test_importance_is_a_share_of_known_features_largest_first(self, world, fitted):
        found = world.kind.importance(fitted["two_stage"])
        assert set(found) == set(FEATURES)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1)
        assert world.kind.importance(fitted["popularity"]) == {}

    def test_own_frequency_beats_popularity_and_the_ranker_finds_new_items_besides(self, world, fitted):
        """What households buy again is a count, planted: no ranker can do better there, but for the luck of 240 households."""
        scores = {name: world.kind.score(world.predict(model), world.section) for name, model in fitted.items()}
        assert scores["frequency"]["ndcg"] > scores["popularity"]["ndcg"] + 0.2
        assert scores["two_stage"]["ndcg"] > scores["frequency"]["ndcg"] - 0.01
        assert scores["two_stage"]["ndcg_novel"] > scores["frequency"]["ndcg_novel"] + 0.1

    def test_new_items_are_of_the_households_colour(self, world, fitted):
        rows = world.predict(fitted["two_stage"]).select("entity", pl.col("items_novel").list.head(5)).explode("items_novel")
        same = ((rows["items_novel"] - 1000) // 12 % 2 == rows["entity"] % 2).mean()
        assert same > 0.85

    def test_events_after_the_cutoff_change_no_list(self, world, fitted):
        lines, test = world.frames["lines"], world.fold.test
        later = lines.with_columns(
            item=pl.when(pl.col("day") > test).then(pl.lit(1000, pl.Int64)).otherwise("item"),
            user=pl.when(pl.col("day") > test).then(pl.col("user") % 7 + 1).otherwise("user"),
        )
        data = world.reload({**world.frames, "lines": later}, "later")
        lists = ["entity", "items", "items_novel"]
        for name, model in fitted.items():
            again = world.predict(world.fit(world.defaults(name), data), data).select(lists)
            before = world.predict(model).select(lists)
            assert again.height > 0
            assert again.equals(before.join(again.select("entity"), on="entity", how="semi"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build("recommend", tmp_path_factory.mktemp("recommend"))


@pytest.fixture(scope="module")
def model(world: World) -> Any:
    return world.fit({**world.defaults("two_stage"), "learning_rate": 0.2})


def ask(*households: Any) -> pd.DataFrame:
    return pd.DataFrame({"household_id": list(households)})


def test_the_model_answers_in_the_order_asked_a_household_asked_twice_twice(model):
    answer = model.predict(ask(9, 4, 9, -1))
    assert answer.columns.tolist() == COLUMNS
    assert answer["household_id"].tolist() == [9] * 10 + [4] * 10 + [9] * 10 + [-1] * 10
    assert answer["rank"].tolist() == list(range(1, 11)) * 4
    first, again = (answer.iloc[at : at + 10].reset_index(drop=True) for at in (0, 20))
    pd.testing.assert_frame_equal(first, again)
    assert all(part["score"].is_monotonic_decreasing for _, part in answer.groupby("household_id") if len(part) == 10)


def test_an_answer_does_not_depend_on_who_else_is_asked(model):
    together = model.predict(ask(*range(1, 41)))
    for household in (3, 30):
        alone = model.predict(ask(household))
        same = together[together["household_id"] == household].reset_index(drop=True)
        assert alone["product_id"].tolist() == same["product_id"].tolist()
        np.testing.assert_allclose(alone["score"], same["score"], atol=1e-6)


def test_nobody_asked_is_an_empty_answer_with_the_same_columns(model):
    assert model.predict(ask()).columns.tolist() == COLUMNS
    assert model.predict(ask()).empty


def test_numbers_that_came_as_text_or_as_floats_are_the_same_households(model):
    expected = model.predict(ask(5))["product_id"].tolist()
    for same in ("5", 5.0):
        assert model.predict(ask(same))["product_id"].tolist() == expected


def test_novel_lists_hold_nothing_bought_before_and_a_long_k_ends_with_the_catalogue(world, model):
    bought = set(world.data.histories.until(model.day_).frame().filter(pl.col("user") == 6)["item"])
    catalogue = set(model.catalogue_.tolist())
    twin = model.reading(model.histories_, model.day_)
    twin.k = 10_000
    assert set(twin.predict(ask(6))["product_id"]) == catalogue
    twin.novel = True
    new = twin.predict(ask(6))["product_id"]
    assert set(new) == catalogue - bought
    assert new.is_unique


def test_a_new_basket_changes_the_next_answer_and_nothing_that_was_learned(world, model):
    day = date(1970, 1, 1) + timedelta(days=model.day_ + 1)
    known = model.histories_.frame()
    before = set(model.predict(ask(6))["product_id"])
    never = sorted(set(model.catalogue_.tolist()) - set(known.filter(pl.col("user") == 6)["item"]) - before)[:3]
    twin = model.reading(model.histories_, model.day_)
    basket = pd.DataFrame({"household_id": 6, "basket": np.repeat(np.arange(20), 3), "product_id": never * 20, "day": day})
    twin.observe(basket)
    assert twin.day_ == model.day_ + 1
    assert twin.learned_ is model.learned_
    assert set(model.predict(ask(6))["product_id"]) == before
    assert set(never) & set(twin.predict(ask(6))["product_id"])
    size = len(twin.histories_)
    assert len(twin.observe(basket).histories_) == size


def test_a_household_first_seen_after_training_is_answered_from_its_own_basket(model):
    day = date(1970, 1, 1) + timedelta(days=model.day_)
    twin = model.reading(model.histories_, model.day_)
    even = [1000, 1001, 1024, 1025, 1048]
    twin.observe(pd.DataFrame({"household_id": 5000, "basket": [1] * 5 + [2] * 5, "product_id": even * 2, "day": day}))
    twin.novel, twin.k = True, 6
    assert (((twin.predict(ask(5000))["product_id"] - 1000) // 12) % 2 == 0).mean() > 0.8


def test_a_saved_model_answers_on_its_own(model, tmp_path):
    skops_models.save(model, tmp_path / "model.skops")
    loaded = skops_models.load(tmp_path / "model.skops")
    pd.testing.assert_frame_equal(loaded.predict(ask(1, 2, 77777)), model.predict(ask(1, 2, 77777)))
    loaded.observe(pd.DataFrame({"household_id": [1], "basket": [-1], "product_id": [1000], "day": [date(2030, 1, 1)]}))
    assert len(loaded.histories_) == len(model.histories_) + 1


def everything(model: Any) -> Any:
    """A twin that reads all lines from one table, made anew."""
    frame = model.histories_.frame()
    return model.reading(Histories.of(frame), model.day_)


@pytest.mark.parametrize("novel", [False, True])
def test_one_by_one_or_together_the_lists_are_the_same(model, novel):
    twin = model.reading(model.histories_, model.day_)
    twin.novel = novel
    households = range(1, 61)
    together = twin.predict(ask(*households))[["household_id", "rank", "product_id"]]
    alone = pd.concat([twin.predict(ask(each)) for each in households], ignore_index=True)[together.columns]
    pd.testing.assert_frame_equal(alone, together)


def test_after_new_baskets_the_answer_is_that_of_a_model_that_read_all_lines_at_once(model, tmp_path):
    twin = model.reading(model.histories_, model.day_)
    for basket, (household, item) in enumerate([(6, 1003), (5000, 1001), (6, 999_999), (7, 1005)]):
        day = date(1970, 1, 1) + timedelta(days=model.day_ + 1 + basket)
        twin.observe(pd.DataFrame({"household_id": [household], "basket": [-basket], "product_id": [item], "day": [day]}))
    skops_models.save(twin, tmp_path / "model.skops")
    for other in (everything(twin), skops_models.load(tmp_path / "model.skops")):
        for asked in (ask(6), ask(5000), ask(7, 5000, 8, 6, -1)):
            pd.testing.assert_frame_equal(twin.predict(asked), other.predict(asked))


def test_what_is_kept_for_speed_is_not_saved_and_comes_back(model, tmp_path):
    expected = model.predict(ask(3))
    skops_models.save(model, tmp_path / "model.skops")
    loaded = skops_models.load(tmp_path / "model.skops")
    parts = (loaded, loaded.histories_, loaded.learned_.ease, loaded.learned_.tifu_knn)
    assert not any(name.startswith("_") and not name.startswith("_sklearn") for part in parts for name in vars(part))
    pd.testing.assert_frame_equal(loaded.predict(ask(3)), expected)
    assert loaded.histories_._order is not None


def section(**features: Any) -> Recommend:
    named = {"table": "events", "user": "who", "item": "what", "basket": "till", "min_users": 1, "horizon_days": 7}
    return Recommend.model_validate({"question": "What next?", "features": named | features})


EVENTS = pl.DataFrame(
    {
        "who": ["ann", "ann", "bob", "eve", None],
        "what": ["tea", "gas", "tea", "new", "tea"],
        "till": [1, 1, 2, 3, 4],
        "amount": [1, 1, 0, 1, 1],
        "at": pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 5), "1d", eager=True),
    }
).lazy()
GOODS = pl.DataFrame({"what": ["tea", "gas"], "kind": ["drinks", None], "part": ["food", "fuel"]}).lazy()


def made(events: pl.LazyFrame = EVENTS, **features: Any) -> dict[str, pl.DataFrame]:
    tables = {"events": events, "goods": GOODS}
    return KIND.build(tables, {"events": "at", "goods": None}, section(**features), date(2024, 1, 4))


def test_lines_are_goods_of_known_users_up_to_the_day():
    assert made()["lines"]["item"].to_list() == ["tea", "gas", "tea", "new"]
    assert made(where="amount > 0")["lines"]["user"].to_list() == ["ann", "ann", "eve"]
    goods = made(items="goods", exclude={"part": ["fuel"]})["lines"]
    assert goods["item"].to_list() == ["tea", "tea"]


def test_a_line_given_twice_counts_once_and_lines_of_the_future_or_without_an_item_are_left_out(caplog):
    events = EVENTS.collect()
    late = events.with_columns(at=pl.datetime(2030, 1, 1), till=pl.lit(9, pl.Int64))
    blank = events.with_columns(what=pl.lit(None, pl.String))
    lines = made(pl.concat([events, events, late, blank]).lazy())["lines"]
    assert lines.equals(made()["lines"])
    assert "events: 8 lines without user, basket, item or time are left out" in caplog.text


def test_a_date_long_before_anything_is_read_as_long_ago():
    damaged = EVENTS.collect().with_columns(at=pl.when(pl.col("who") == "bob").then(pl.datetime(1, 1, 1)).otherwise("at"))
    lines = made(damaged.lazy())["lines"]
    assert lines.height == made()["lines"].height
    assert lines["day"].min() == date(2024, 1, 4) - timedelta(days=99_000)


def test_a_hundred_thousand_lines_of_one_household_are_read_and_answered(world, model):
    many = pl.DataFrame({"user": 6, "basket": np.arange(100_000), "item": 1000 + np.arange(100_000) % 96})
    day = pl.Series("day", world.data.as_of.toordinal() - 719_163 - np.arange(100_000) % 200).cast(pl.Int32).cast(pl.Date)
    lines = pl.concat([world.frames["lines"], many.with_columns(day)], how="vertical_relaxed")
    data = world.reload({**world.frames, "lines": lines}, "many")
    rows = KIND.predict(model, data, world.fold.test, world.section)
    assert rows.filter(pl.col("entity") == 6)["items"].list.n_unique().to_list() == [10]
    others = rows.filter(pl.col("entity") != 6)
    before = world.predict(model).filter(pl.col("entity") != 6)
    assert others["items"].equals(before["items"])


FACTS = pl.DataFrame(
    {"who": ["bob", "ann", "ann", None], "town": ["Ulm", "Bonn", "Kiel", "Rom"], "age": [40, 30, 99, 1]}
).lazy()


def told(*columns: str) -> Recommend:
    return section(attributes=[{"table": "people", "columns": columns}])


def test_facts_about_users_slice_scores_and_of_a_user_there_twice_the_first_row_counts(tmp_path: Path):
    frames = KIND.build({"events": EVENTS, "people": FACTS}, {"events": "at"}, told("town", "age"), date(2024, 1, 4))
    for name, frame in frames.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    data = KIND.load(tmp_path, told("town", "age"))
    rows = KIND.slices(data, date(2023, 12, 31), ["age", "visits", "town"], told("town", "age"))
    assert rows.columns == ["_entity", "age", "visits", "town"]
    assert rows.select("_entity", "age", "town").rows() == [("ann", 30, "Bonn"), ("bob", 40, "Ulm"), ("eve", None, None)]


def test_a_fact_that_is_not_there_is_refused():
    with pytest.raises(ParamsError, match=r"features\.attributes\.people = twon: .*did you mean town"):
        KIND.build({"events": EVENTS, "people": FACTS}, {"events": "at"}, told("twon"), date(2024, 1, 4))


def test_users_and_items_may_be_text(tmp_path: Path):
    for name, frame in made(items="goods", category="kind").items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    data = KIND.load(tmp_path, section())
    assert data.histories.users.tolist() == ["ann", "bob", "eve"]
    assert data.categories.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ({"user": "whom"}, ParamsError, r"features\.user = whom: .*did you mean who"),
        ({"items": "goods", "exclude": {"parts": ["fuel"]}}, ParamsError, r"features\.exclude = parts"),
        ({"items": "goods", "category": "kinds"}, ParamsError, r"features\.category = kinds"),
        ({"where": "amout > 0"}, ParamsError, r"features\.where = amout > 0: is no condition on events"),
        ({"where": "amount > 5"}, DataError, r"events: no purchase up to 2024-01-04 is left"),
    ],
)
def test_features_that_cannot_be_made_are_refused_with_their_place(features, error, message):
    with pytest.raises(error, match=message):
        made(**features)


def test_a_table_without_days_is_refused():
    with pytest.raises(ParamsError, match=r"features\.table = events: its source names no time column"):
        KIND.build({"events": EVENTS}, {"events": None}, section(), date(2024, 1, 4))


def test_where_no_item_has_enough_buyers_own_purchases_and_popularity_still_make_the_lists(world):
    features = world.section.features.model_copy(update={"min_users": 10_000})
    rare = world.section.model_copy(update={"features": features})
    usual = world.primary(world.fit(world.defaults("frequency")))
    for name in ("popularity", "frequency", "two_stage"):
        model = world.kind.fit(world.data, world.fold.train, world.defaults(name), rare, 0)
        lists = world.kind.predict(model, world.data, world.fold.test, rare)
        assert lists["items"].list.len().to_list() == [10] * lists.height
        if name != "popularity":
            assert lists["ndcg"].mean() > usual - 0.03


def test_cutoffs_do_not_overlap_and_leave_as_much_history_before_them(world):
    cutoffs = KIND.cutoffs(world.data)
    step = timedelta(days=28)
    assert cutoffs[-1] + step == world.data.as_of
    assert all(later - earlier == step for earlier, later in pairwise(cutoffs))
    assert cutoffs[0] - world.data.first >= step - timedelta(days=1)


def test_training_keeps_one_first_stage_and_copies_no_table_of_candidates(world, monkeypatch):
    """The ranker's bins are made from the rows of the candidates as they are."""
    data, given, made = world.reload(world.frames, "lean"), [], lightgbm.Dataset
    monkeypatch.setattr(lightgbm, "Dataset", lambda rows, *label, **more: given.append(rows) or made(rows, *label, **more))
    cutoffs = world.kind.cutoffs(data)[:-1]
    model = world.kind.fit(data, cutoffs, world.defaults("two_stage"), world.section, 0)
    assert [each is model.learned_ for each in data._kept["learned"].values()] == [True]
    ((first, *_),) = given
    oldest = cutoffs[-world.section.pipeline.ranker_windows :][0]
    assert first.table is data.examples(oldest, model.settings, 10_000, 0)[0].features
    assert np.array_equal(first[1:3], first.table[first.places[1:3]])
    assert np.array_equal(first[2], first.table[first.places[2]])


def test_slices_are_facts_about_users_and_an_unknown_one_is_refused(world):
    rows = KIND.slices(world.data, world.fold.test, ["visits"], world.section)
    bought = world.data.histories.until_positions((world.fold.test - date(1970, 1, 1)).days)
    days = bought.frame().group_by("user").agg(pl.col("day").n_unique())
    counted = rows.join(days, left_on="_entity", right_on="user")
    assert counted.height > 100
    assert (counted["visits"] == counted["day"]).all()
    with pytest.raises(ParamsError, match=r"evaluate\.slices = visit: .*did you mean visits"):
        KIND.slices(world.data, world.fold.test, ["visit"], world.section)
