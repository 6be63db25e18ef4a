"""Items that nobody had bought when the model learned: whoever bought one since may buy it again."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.problems.recommender import item_catalogue, item_explanations
from evergreen.tasks.problems.recommender.estimators import TwoStage
from evergreen.tasks.problems.recommender.item_catalogue import ItemCatalogue
from evergreen.tasks.problems.recommender.list_builder import ListBuilder
from evergreen.tasks.problems.recommender.list_request import Request
from evergreen.tasks.problems.recommender.user_histories import Histories, to_date
from tests.contracts import World, build

LATE = [7, 1_010_101]
"""Below and above all ids of the small store."""
MODELS = ["popularity", "recent_popularity", "frequency", "item_knn", "ease", "tifu_knn", "two_stage"]
OWN = MODELS[2:]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build("recommend", tmp_path_factory.mktemp("late"))


def shop(world: World, model: str) -> ListBuilder:
    return ListBuilder.of(world.fit(world.defaults(model)), world.data, world.section)


def items_of(builder: ListBuilder, user: Any, **wishes: Any) -> list[Any]:
    return builder.recommend(Request.read({"users": [user], **wishes})).item.tolist()


def purchases(user: Any, items: list[Any], days: list[date]) -> pl.DataFrame:
    rows = [(user, f"late {day}", item, day) for day in days for item in items]
    return pl.DataFrame(rows, schema=["user", "basket", "item", "day"], orient="row")


@pytest.mark.parametrize("model", OWN)
def test_an_item_first_bought_after_training_is_in_the_next_list_of_its_buyer_alone(world, model):
    before = shop(world, model)
    today = to_date(before.day)
    after = before.observe(purchases(7, LATE, [today, *(today - timedelta(7 * week) for week in range(1, 12))]))
    found = after.recommend(Request.read({"users": [7], "k": 10}))
    assert set(LATE) <= set(found.item.tolist())
    places = [found.item.tolist().index(item) for item in LATE]
    assert all(found.explanation[place] == "bought 12 times, last today" for place in places)
    assert items_of(after, 8) == items_of(before, 8)
    assert not set(LATE) & {*items_of(after, None), *items_of(after, 7, show="discover", k=100)}
    assert not set(LATE) & {*items_of(before, 7, k=100)}


@pytest.mark.parametrize("model", MODELS)
def test_nobody_elses_list_changes(world, model):
    before = shop(world, model)
    before.recommend(Request.read({"users": [9]}))  # builds what is built lazily
    after = before.observe(purchases(7, LATE, [to_date(before.day)]))
    for user in [8, 9, 10, None, "nobody"]:
        for wishes in ({}, {"show": "discover"}, {"rules": {"max_per_category": 2}}):
            ours, theirs = (each.recommend(Request.read({"users": [user], **wishes})) for each in (before, after))
            assert (ours.item.tolist(), ours.source, ours.explanation) == (
                theirs.item.tolist(),
                theirs.source,
                theirs.explanation,
            )
            assert ours.score.tolist() == pytest.approx(theirs.score.tolist(), nan_ok=True)


def test_the_same_purchases_one_by_one_and_at_once_give_the_same_lists(world):
    before, today = shop(world, "two_stage"), to_date(world.data.histories.day[-1])
    lines = pl.concat([purchases(7, LATE, [today]), purchases(9, [*LATE, 8], [today])])
    at_once, singly = before.observe(lines), before
    for row in reversed(range(lines.height)):
        singly = singly.observe(lines[row])
    for user in (7, 9, 11):
        assert items_of(at_once, user, k=30) == items_of(singly, user, k=30)


def test_a_champion_that_learned_earlier_is_judged_with_the_items_bought_since(world):
    """As it serves: the gate and backtests would otherwise compare it with less than it can do."""
    data, section, kind = world.data, world.section, world.kind
    splits = kind.splits(data, section)
    early = kind.fit(data, splits.tests[0].train, world.defaults("frequency"), section, 0)
    cutoff = splits.tests[-1].test
    late = world.frames["lines"].filter(pl.col("day") <= cutoff).sort("day").tail(1)
    renamed = pl.lit(LATE[1], late.schema["item"])
    planted = [
        late.with_columns(
            item=renamed, basket=pl.lit(10**9 + turn, late.schema["basket"]), day=pl.lit(cutoff - timedelta(turn))
        )
        for turn in range(5)
    ]
    planted.append(planted[0].with_columns(basket=pl.lit(10**9 + 9, late.schema["basket"]), day=pl.lit(cutoff + timedelta(3))))
    frames = {**world.frames, "lines": pl.concat([world.frames["lines"], *planted])}
    known = world.reload(frames, "planted")
    rows = kind.predict(early, known, cutoff, section).filter(pl.col("entity") == late["user"][0])
    assert LATE[1] in rows["items"].to_list()[0]
    assert LATE[1] not in early.catalogue_


def test_lists_and_the_table_of_sources_share_the_scores_of_a_model_that_covers_late_items(world, monkeypatch):
    data, kind = world.data, world.kind
    section = world.section.model_copy(update={"evaluate": world.section.evaluate.model_copy(update={"ablation_users": 0})})
    splits = kind.splits(data, section)
    model = kind.fit(data, splits.tests[-1].train, world.defaults("two_stage"), section, 0)
    cutoff = splits.tests[-1].test
    line = world.frames["lines"].filter(pl.col("day") == cutoff).head(1)
    late = line.with_columns(item=pl.lit(LATE[1], line.schema["item"]), basket=pl.lit(10**9, line.schema["basket"]))
    known = world.reload({**world.frames, "lines": pl.concat([world.frames["lines"], late])}, "shared")
    assert LATE[1] not in model.catalogue_
    scored, order_by = [], TwoStage.order_by
    monkeypatch.setattr(TwoStage, "order_by", lambda self, found: scored.append(len(found.row)) or order_by(self, found))
    predictions = kind.predict(model, known, cutoff, section).with_columns(cutoff=pl.lit(cutoff))
    tables = kind.plots(predictions, predictions, model, known, section)
    assert len(scored) == 1
    assert tables["candidates"].height


def test_attributes_of_a_late_item_are_those_of_the_items_like_it():
    table = pl.DataFrame(
        {"item": [1, 2, 3, 9], "category": ["a", "b", "b", "b"], "name": None, "stock": None, "group1": ["x", None, "y", "z"]}
    )
    found = item_catalogue.matching_items(table, np.array([9, 10]), np.array([1, 2, 3]))
    assert {name: at.tolist() for name, at in found.items()} == {"category": [1, -1], "group1": [-1, -1], "group2": [-1, -1]}


def test_the_catalogue_takes_in_what_was_bought_and_keeps_every_position(monkeypatch):
    table = pl.DataFrame(
        {
            "item": ["a", "b", "c", "d"],
            "category": ["one", "two", None, "two"],
            "name": ["A", "B", "C", "D"],
            "stock": [True] * 3 + [False],
        }
    )
    monkeypatch.setattr(item_catalogue, "ROOM", 1)
    bought = Histories.of(purchases("u", ["b", "c"], [date(2024, 1, 1)]))
    made = ItemCatalogue.of(np.array(["b", "c"]), bought, table, 0)
    found = made.including(["aa", "d"]).including(["longer than all", "d", "b"])
    names = ["b", "c", "a", "d", "aa", "longer than all"]
    assert found.positions([*names, "e", None]).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert found.ids_of(np.arange(6)).tolist() == names
    assert (len(made), len(found), found.by_popularity(None).tolist()) == (2, 5, [0, 1, 4, 3, 5])
    assert [found.categories[each] for each in found.category[:6]] == ["two", "", "one", "two", "", ""]
    assert found.stock is not None
    assert found.stock[:6].tolist() == [True, True, True, False, False, False]
    assert found.can_show(np.arange(6)).tolist() == [True, True, False, True, True, True]
    assert made.positions(["aa", "b"]).tolist() == [-1, 0]
    other = made.including(["other"])
    assert other.positions(["other", "aa"]).tolist() == [4, -1]
    assert other.by_popularity(None).tolist() == [0, 1, 4]


def test_exploration_draws_from_items_that_came_since_as_few_users_bought_them():
    table = pl.DataFrame({"item": ["a", "b"], "category": ["one", "two"], "name": None, "stock": [None, None]})
    made = ItemCatalogue.of(np.array(["b"]), Histories.of(purchases("u", ["b"], [date(2024, 1, 1)])), table, 0)
    found = made.including(["new", "a"])
    assert [made.categories[each] for each in made.category[made.pool(9)[0]]] == ["one", "two"]
    assert (found.ids_of(found.pool(9)[0]).tolist(), found.pool(9)[1].tolist()) == (["new", "a", "b"], [0, 1, 2, 3])
    assert (made.pool(1)[0].tolist(), found.pool(1)[0].tolist()) == ([1], [])


@pytest.mark.parametrize("model", OWN)
def test_an_item_that_came_since_moves_nothing_that_was_learned(world, model):
    before = shop(world, model)
    after = before.observe(purchases(7, LATE, [to_date(before.day)])).observe(purchases("9876", LATE, [to_date(before.day)]))
    assert after.model.catalogue_ is before.model.catalogue_
    assert after.model.learned_ is before.model.learned_ if model != "frequency" else True
    assert all(getattr(after.catalogue, name) is getattr(before.catalogue, name) for name in ("ids", "category", "users"))
    assert after.histories.base is before.histories
    assert set(LATE) <= set(items_of(after, 9876, k=30))


def test_an_item_that_nobody_bought_lately_is_not_called_popular():
    table = pl.DataFrame({"item": ["a"], "category": [None], "name": [None], "stock": [None]}, item_catalogue.NONE.schema)
    bought = Histories.of(purchases("u", ["a"], [date(2024, 1, 1)]))
    catalogue = ItemCatalogue.of(np.array(["a"]), bought, table, bought.day[-1] + 1)
    assert item_explanations.new(catalogue, 0, "popular", None) == "bought by 1 customer so far"
