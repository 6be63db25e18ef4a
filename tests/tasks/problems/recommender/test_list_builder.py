"""A request answered: rules hold, lists are as long as can be, shares are met, new baskets count at once, reasons are true."""

from collections import Counter
from datetime import date
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.tasks.config.params import ListRules
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.problems.recommender import item_catalogue
from evergreen.tasks.problems.recommender.list_builder import ListBuilder, moved
from evergreen.tasks.problems.recommender.list_request import RecommendedLists, Request
from evergreen.tasks.problems.recommender.reranking import choose, places
from evergreen.tasks.problems.recommender.user_histories import to_date
from tests.contracts import World, build

NEW = [5000, 5001, 5002, 5003]
"""Products that nobody bought yet, in AISLE 0."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small store; products of an even number are in stock, and there are four new ones."""
    made = build("recommend", tmp_path_factory.mktemp("answering"))
    fresh = pl.DataFrame({"item": NEW, "category": ["AISLE 0"] * 4})
    items = pl.concat([made.frames["items"], fresh], how="diagonal_relaxed")
    items = items.with_columns(stock=pl.col("item") % 2 == 0, name=pl.format("Good {}", "item"))
    lines = pl.scan_parquet(made.folder / "data-in" / "transactions.parquet")
    at = item_catalogue.places(lines, made.section.features.model_copy(update={"place": "store_id"}))
    frames = {**made.frames, "items": items, "places": at}
    return World(made.kind, made.section, frames, made.folder, made.reload(frames, "stocked"), made.fold)


@pytest.fixture(scope="module")
def shop(world: World) -> ListBuilder:
    model = world.fit({**world.defaults("two_stage"), "learning_rate": 0.2})
    return ListBuilder.of(model, world.data, world.section)


def ask(shop: ListBuilder, *users: Any, **wishes: Any) -> RecommendedLists:
    return shop.recommend(Request.read({"users": users, **wishes}))


def lists(answer: RecommendedLists) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row, item in zip(answer.row.tolist(), answer.item.tolist(), strict=True):
        found.setdefault(row, []).append(item)
    return found


def bought(shop: ListBuilder, user: int, within: int = 10**6) -> set[int]:
    first = to_date(shop.day - min(within, 10_000) + 1)
    return set(shop.histories.frame().filter((pl.col("user") == user) & (pl.col("day") >= first))["item"])


def aisle(item: int) -> str:
    return "AISLE 0" if item in NEW else f"AISLE {(item - 1000) // 12}"


def test_without_wishes_the_answer_is_the_models_own(shop, world):
    asked = pl.DataFrame({"household_id": list(range(1, 61))})
    expected = shop.model.predict(asked.to_pandas())
    found = ask(shop, *range(1, 61)).frame(asked["household_id"], "product_id", False)
    assert found["product_id"].to_list() == expected["product_id"].tolist()
    assert found["source"].to_list() == expected["source"].tolist()
    assert found["score"].to_list() == pytest.approx(expected["score"].tolist(), abs=1e-6)


def test_who_is_asked_for_twice_or_unknown_or_nobody_has_a_list_in_its_place(shop):
    found = lists(ask(shop, 9, "4", 9, 10**9, None, 4.0, "x", 10**30))
    assert found[0] == found[2] != found[1] == found[5]
    assert found[3] == found[4] == found[6] == found[7]
    assert all(len(each) == 10 for each in found.values())


RULED = st.fixed_dictionaries(
    {},
    optional={
        "bought_within_days": st.integers(1, 60),
        "not_bought_within_days": st.integers(1, 60),
        "in_stock": st.booleans(),
        "categories": st.sets(st.sampled_from([f"AISLE {n}" for n in range(8)])).map(tuple),
        "exclude_categories": st.sets(st.sampled_from([f"AISLE {n}" for n in range(8)]), max_size=6).map(tuple),
        "exclude_items": st.sets(st.integers(1000, 1095), max_size=30).map(tuple),
        "max_per_category": st.integers(1, 4),
        "promote": st.sets(st.integers(1000, 1095), max_size=5).map(tuple),
        "promote_share": st.floats(0, 1),
        "discover_share": st.floats(0, 1),
    },
)


@settings(max_examples=150, deadline=None)
@given(
    rules=RULED,
    user=st.integers(1, 240) | st.none(),
    k=st.integers(1, 120),
    show=st.sampled_from(["all", "rebuy", "discover", "blend"]),
    diversity=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_a_list_holds_what_is_allowed_and_is_as_long_as_that_lets_it(shop, rules, user, k, show, diversity):
    answer = ask(shop, user, k=k, show=show, diversity=diversity, rules=rules)
    allowed = permitted(shop, user, show, rules)
    cap = rules.get("max_per_category", 10**6)
    possible = sum(min(cap, count) for count in Counter(map(aisle, allowed)).values())
    found = answer.item.tolist()
    assert set(found) <= allowed
    assert len(found) == len(set(found)) == min(k, possible)
    assert max(Counter(map(aisle, found)).values(), default=0) <= cap
    assert answer.rank.tolist() == list(range(1, len(found) + 1))
    assert [(note.asked, note.found) for note in answer.notes] == ([(k, possible)] if possible < k else [])
    for note in answer.notes:
        assert note.found + sum(note.costs.values()) == note.of == 96


def permitted(shop: ListBuilder, user: int | None, show: str, rules: dict[str, Any]) -> set[int]:
    """The items that the rules allow by their words."""
    own = bought(shop, user) if user else set()
    lately, just = (
        bought(shop, user, rules[key]) if user and key in rules else set()
        for key in ("bought_within_days", "not_bought_within_days")
    )
    return {
        item
        for item in shop.model.catalogue_.tolist()
        if (show != "rebuy" or item in own)
        and (show != "discover" or item not in own)
        and ("bought_within_days" not in rules or item in lately)
        and item not in just
        and (not rules.get("in_stock") or item % 2 == 0)
        and ("categories" not in rules or aisle(item) in rules["categories"])
        and aisle(item) not in rules.get("exclude_categories", ())
        and item not in rules.get("exclude_items", ())
    }


def test_rules_that_exclude_everything_say_which_one_cost_how_many(shop):
    answer = ask(shop, 5, rules={"in_stock": True, "categories": ["AISLE 1"], "exclude_categories": ["AISLE 1"]})
    assert answer.item.tolist() == answer.source == answer.explanation == []
    assert str(answer.notes[0]) == (
        "5: 0 of 10 asked for; of 96 items in_stock leaves out 48, categories leaves out 42, exclude_categories leaves out 6"
    )


def test_more_than_the_catalogue_is_all_of_it_and_a_note(shop):
    answer = ask(shop, 5, k=1000)
    assert sorted(answer.item.tolist()) == shop.model.catalogue_.tolist()
    assert str(answer.notes[0]) == "5: 96 of 1,000 asked for; of 96 items there are no more"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_blend_holds_its_share_of_new_items_spread_over_the_list(shop, share):
    for user in (3, 8, 50):
        own, found = bought(shop, user), ask(shop, user, show="blend", blend=share, k=8).item.tolist()
        fresh = np.cumsum([item not in own for item in found])
        assert fresh.tolist() == places(share, 8, nearest=True)


def test_both_parts_of_a_blend_keep_the_models_order(shop):
    own = bought(shop, 7)
    blend, again, new = (ask(shop, 7, show=show, blend=0.5).item.tolist() for show in ("blend", "rebuy", "discover"))
    assert [item for item in blend if item in own] == again[:5]
    assert [item for item in blend if item not in own] == new[:5]


def test_promoted_items_have_their_share_also_those_that_nobody_bought(shop):
    answer = ask(shop, 4, rules={"promote": [NEW[1], NEW[0], 1095], "promote_share": 0.2})
    promoted = [item in (NEW[1], NEW[0], 1095) for item in answer.item.tolist()]
    assert np.cumsum(promoted).tolist() == places(0.2, 10)
    alone = ask(shop, 4, rules={"promote": [NEW[1]], "promote_share": 0.1})
    assert (alone.item.tolist()[-1], alone.source[-1], alone.explanation[-1]) == (NEW[1], "promoted", "promoted")


def test_a_floor_of_new_items_is_no_ceiling(shop):
    own = bought(shop, 6)
    least = ask(shop, 6, rules={"discover_share": 0.3}).item.tolist()
    assert sum(item not in own for item in least) == 3
    assert all(item not in own for item in ask(shop, 6, show="discover", rules={"discover_share": 0.3}).item.tolist())


def test_diversity_at_zero_changes_nothing_and_up_to_one_spreads_the_list_over_categories(shop):
    users = range(1, 61)
    spread = []
    for dial in (0.0, 0.2, 0.5, 1.0):
        found = lists(ask(shop, *users, diversity=dial))
        spread.append(np.mean([len({aisle(item) for item in each}) for each in found.values()]))
        if dial == 0:
            assert found == lists(ask(shop, *users))
    assert spread == sorted(spread)
    assert spread[0] < spread[1] < 7.5 < spread[-1]


def test_exploration_gives_new_products_their_share_the_same_to_the_same_user_on_the_same_day(shop):
    users = list(range(1, 241))
    first = ask(shop, *users, explore=0.05)
    explored = [item for item, source in zip(first.item.tolist(), first.source, strict=True) if source == "explore"]
    assert set(explored) <= set(NEW)
    assert len(set(explored)) == 4
    assert len(explored) == pytest.approx(0.05 * 2400, rel=0.25)
    assert first.item.tolist() == ask(shop, *users, explore=0.05).item.tolist()
    assert lists(first)[17] == lists(ask(shop, users[17], explore=0.05))[0]
    tomorrow = ask(shop, *users, explore=0.05, as_of=to_date(shop.day + 1))
    assert [source == "explore" for source in tomorrow.source] != [source == "explore" for source in first.source]
    assert all(len(each) == len(set(each)) == 10 for each in lists(first).values())


def test_exploration_keeps_the_rules_and_stays_out_of_what_is_bought_again(shop):
    stocked = ask(shop, *range(1, 100), explore=0.3, rules={"in_stock": True})
    assert {item for item, source in zip(stocked.item.tolist(), stocked.source, strict=True) if source == "explore"} == {
        5000,
        5002,
    }
    assert "explore" not in ask(shop, *range(1, 100), explore=0.3, show="rebuy").source
    assert "explore" not in ask(shop, *range(1, 100), explore=0.3, rules={"exclude_categories": ["AISLE 0"]}).source


def test_a_list_with_exploration_has_the_chance_of_each_item(shop):
    found = ask(shop, *range(1, 241), k=4, explore=0.3)
    assert found.propensity is not None
    chance, drawn = found.propensity.reshape(-1, 4), np.array(found.source).reshape(-1, 4) == "explore"
    assert drawn.sum(axis=1).min() == 1  # 1.2 places of 4
    second = drawn[:, 1]
    assert second.mean() == pytest.approx(0.2, abs=0.08)
    assert chance[~second, 1] == pytest.approx(0.8)
    assert chance[second, 1] == pytest.approx(0.2 / len(NEW), abs=0.02)
    assert (
        found.frame(pl.Series("user", range(1, 241)), "item", explain=False)["propensity"].to_list()
        == found.propensity.tolist()
    )
    assert ask(shop, 17, show="rebuy", explore=0.3).propensity is None
    assert ask(shop, 17).propensity is None


EVEN = [1000, 1001, 1024, 1025, 1048]


def test_a_strangers_basket_counts_and_is_neither_recommended_nor_kept(shop):
    before = len(shop.histories)
    answer = shop.recommend(Request.read({"items": EVEN, "k": 6}))
    assert not set(answer.item.tolist()) & set(EVEN)
    assert np.mean([(item - 1000) // 12 % 2 == 0 for item in answer.item.tolist()]) > 0.8
    assert answer.item.tolist() != ask(shop, None, k=6).item.tolist()
    assert any(reason.startswith("bought with Good 10") for reason in answer.explanation)
    assert len(shop.histories) == before


def test_a_known_users_basket_counts_beside_the_history(shop):
    user = 6
    answer = ask(shop, user, items=[ask(shop, user).item.tolist()[0]])
    assert answer.item.tolist() != ask(shop, user).item.tolist()
    assert ask(shop, user).item.tolist()[0] not in answer.item.tolist()
    own = bought(shop, 60)
    assert set(ask(shop, 60, items=[1000, 1095], show="rebuy", k=96).item.tolist()) == own - {1000, 1095}
    with pytest.raises(DataError, match="items belong to one user; ask for each user alone"):
        ask(shop, 1, 2, items=[1000])


def test_what_lies_in_the_basket_but_is_no_item_changes_nothing(shop):
    assert shop.recommend(Request.read({"items": ["what", 10**12, None]})).item.tolist() == ask(shop, None).item.tolist()


def test_a_stranger_gets_what_is_popular_where_he_is(shop, world):
    first = to_date(shop.day - shop.model.popularity_days + 1)
    lines = world.frames["lines"].filter(pl.col("day") >= first)
    there = lines.join(world.frames["places"].filter(pl.col("place") == "303"), on=["user", "basket"])
    counts = dict(there.group_by("item").agg(pl.col("user").n_unique()).iter_rows())
    found = [counts[item] for item in shop.recommend(Request.read({"place": 303})).item.tolist()]
    assert found == sorted(counts.values(), reverse=True)[:10]
    assert shop.recommend(Request.read({"place": "nowhere"})).item.tolist() == ask(shop, None).item.tolist()


def basket(user: Any, items: list[int], day: date, number: Any = "new") -> pl.DataFrame:
    size = len(items)
    return pl.DataFrame({"user": [user] * size, "basket": [number] * size, "item": items, "day": [day] * size})


def test_a_new_basket_counts_at_once_once_and_for_its_user_alone(shop):
    day = to_date(shop.day + 2)
    never = sorted(set(shop.model.catalogue_.tolist()) - bought(shop, 6))[:2]
    after = shop.observe(basket(6, never, day))
    assert set(ask(after, 6, show="rebuy", k=96).item.tolist()) == bought(shop, 6) | set(never)
    reasons = dict(zip(ask(after, 6, k=96).item.tolist(), ask(after, 6, k=96).explanation, strict=True))
    assert reasons[never[0]] == "bought once, today"
    twice = after.observe(basket(6, never, day))
    assert twice.recommend(Request(users=(6,))).explanation == after.recommend(Request(users=(6,))).explanation
    others = [7, 8, 9, None]
    assert ask(after, *others).explanation == ask(shop, *others).explanation
    assert ask(shop, 6, show="rebuy", k=96).item.tolist() != ask(after, 6, show="rebuy", k=96).item.tolist()


def test_a_user_first_seen_in_an_event_is_answered_from_it(shop):
    after = shop.observe(basket("77777", EVEN, to_date(shop.day)))
    answer = ask(after, 77777, show="discover", k=6)
    assert np.mean([(item - 1000) // 12 % 2 == 0 for item in answer.item.tolist()]) > 0.8


def test_lists_as_of_a_day_are_those_of_histories_up_to_it(shop, world):
    day = to_date(shop.day - 30)
    cut = world.data.histories.until(shop.day - 30)
    past = ListBuilder.of(shop.model, moved(world.data, pl.DataFrame(), day), world.section)
    asked = ask(shop, *range(1, 41), as_of=day)
    assert asked.explanation == ask(past, *range(1, 41)).explanation
    assert len(past.histories) == len(cut)
    assert (asked.as_of, asked.learned) == (day, to_date(shop.learned))
    assert asked.explanation != ask(shop, *range(1, 41)).explanation
    with pytest.raises(DataError, match="as_of = 1999-01-01: lies before the first purchase"):
        ask(shop, 1, as_of=date(1999, 1, 1))


def test_a_hundred_thousand_lines_of_one_user_change_no_other(shop):
    draw = np.random.default_rng(0)
    size = 100_000
    items, day = draw.choice(shop.model.catalogue_, size), to_date(shop.day)
    lines = pl.DataFrame({"user": [6] * size, "basket": np.arange(size) // 20 - 10**6, "item": items, "day": [day] * size})
    after = shop.observe(lines)
    assert ask(after, 7, 8).explanation == ask(shop, 7, 8).explanation
    assert len(ask(after, 6).item) == 10


def test_reasons_tell_how_often_and_when_each_item_was_bought(shop, world):
    lines = world.frames["lines"].filter(pl.col("user") == 12)
    answer = ask(shop, 12, show="rebuy")
    for item, reason in zip(answer.item.tolist(), answer.explanation, strict=True):
        mine = lines.filter(pl.col("item") == item)
        ago = (to_date(shop.day) - mine["day"].max()).days
        when = "today" if ago == 0 else f"{ago} day{'' if ago == 1 else 's'} ago"
        assert reason == (f"bought {mine.height} times, last {when}" if mine.height > 1 else f"bought once, {when}")


def test_a_reason_to_discover_is_an_own_item_that_the_same_users_bought(shop, world):
    pairs = world.frames["lines"].select("user", "item").unique()
    buyers = {item: set(pairs.filter(pl.col("item") == item)["user"]) for item in shop.model.catalogue_.tolist()}
    own, told = bought(shop, 12), 0
    answer = ask(shop, 12, show="discover", k=30)
    for item, reason in zip(answer.item.tolist(), answer.explanation, strict=True):
        if reason.startswith("bought with"):
            partner = int(reason.split("(")[1].rstrip(")"))
            assert partner in own
            assert len(buyers[item] & buyers[partner]) >= 3
            told += 1
    assert told > 5
    assert ask(shop, 12, explain=False).explanation == []


@pytest.mark.parametrize(
    ("wishes", "error", "says"),
    [
        ({"k": 0}, DataError, "request: k = 0: must be greater than or equal to 1"),
        ({"k": "many"}, DataError, "request: k = many: must be a valid integer"),
        ({"blend": 1.5}, DataError, "request: blend = 1.5: must be less than or equal to 1"),
        ({"show": "best"}, DataError, "request: show = best"),
        ({"rules": {"max_per_category": 0}}, DataError, "request: rules.max_per_category = 0: must be greater"),
        ({"kk": 3}, DataError, "request: kk = 3: unknown request field; did you mean k"),
        (
            {"rules": {"max_per_cat": 3}},
            DataError,
            "request: rules.max_per_cat = 3: unknown request field; did you mean max_per_category",
        ),
        ({"rules": {"categories": ["AISLE 11"]}}, ParamsError, "categories = AISLE 11: no such category; did you mean AISLE 1"),
    ],
)
def test_a_wish_that_is_none_is_refused_with_its_place(shop, wishes, error, says):
    with pytest.raises(error, match=says):
        ask(shop, 1, **wishes)


def test_stock_of_which_nothing_is_known_cannot_be_a_rule(shop, world):
    data = world.reload({**world.frames, "items": world.frames["items"].drop("stock")}, "unstocked")
    bare = ListBuilder.of(shop.model, data, world.section)
    with pytest.raises(ParamsError, match=r"in_stock = true: nothing says what is in stock; name a column in features\.stock"):
        ask(bare, 1, rules={"in_stock": True})


def test_new_stock_counts_in_the_next_answer(shop):
    table = pl.LazyFrame({"product_id": [1000, 1001, 1001, None], "left": [0, 0, 7, 1]})
    section = shop.section.features.model_copy(update={"stock": "left", "stock_table": "shelf"})
    after = shop.restocked(item_catalogue.stock(table, section))
    assert ask(after, 1, rules={"in_stock": True}).item.tolist() == [1001]


def test_what_params_say_holds_and_a_request_may_say_otherwise(shop, world):
    rules = ListRules(max_per_category=1, in_stock=True)
    answers = world.section.lists.model_copy(update={"rules": rules, "show": "discover"})
    set_up = ListBuilder.of(shop.model, world.data, world.section.model_copy(update={"lists": answers}))
    own, found = bought(shop, 3), ask(set_up, 3).item.tolist()
    assert len(found) == len({aisle(item) for item in found})
    assert all(item % 2 == 0 and item not in own for item in found)
    loose = ask(set_up, 3, show="all", rules={"max_per_category": None}).item.tolist()
    assert loose == ask(shop, 3, rules={"in_stock": True}).item.tolist()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.integers(1, 15),
    st.none() | st.integers(1, 3),
    st.sampled_from([0.0, 0.5]),
    st.floats(0, 1),
)
def test_a_want_is_met_at_every_place_as_long_as_there_is_something_to_meet_it(category, k, cap, diversity, share):
    kinds = np.array(category)
    mask, due = kinds % 2 == 1, places(share, k)
    chosen = choose(kinds, k, cap, diversity, [(mask, due)], None)
    met = np.cumsum(mask[chosen])
    for place in range(len(chosen)):
        left = set(np.flatnonzero(mask)) - set(chosen[:place].tolist())
        free = [at for at in left if not cap or (kinds[chosen[:place]] == kinds[at]).sum() < cap]
        assert met[place] >= due[place] or not free
    if not diversity and not share and not cap:
        assert chosen.tolist() == list(range(min(k, len(kinds))))


def test_a_table_of_items_keeps_no_excluded_ones_and_tells_names_and_stock():
    table = pl.LazyFrame(
        {"sku": [1, 2, 3, 3], "kind": ["tea", "gas", None, "tea"], "words": ["Assam", "95", "Mug", "?"], "left": [3, 1, 0, 5]}
    )
    named = {"table": "events", "user": "who", "item": "sku", "basket": "till", "items": "skus", "category": "kind"}
    section = item_catalogue.Interactions.model_validate(
        {**named, "name": "words", "stock": "left", "exclude": {"kind": ["gas"]}}
    )
    found = item_catalogue.items({"skus": table}, section)
    assert found.rows() == [(1, "tea", "Assam", True), (3, None, "Mug", True)]
    with pytest.raises(ParamsError, match=r"features\.name = word: no such feature; did you mean words"):
        item_catalogue.items({"skus": table}, section.model_copy(update={"name": "word"}))
    with pytest.raises(ParamsError, match=r"features\.stock = kind: holds String; it must hold numbers or true and false"):
        item_catalogue.items({"skus": table}, section.model_copy(update={"stock": "kind"}))
    with pytest.raises(ParamsError, match=r"features\.category = kind: needs a table of items; give features\.items"):
        item_catalogue.items({}, section.model_copy(update={"items": None}))


def test_days_of_a_shop_that_numbers_its_orders_are_told_in_orders(shop, world):
    features = world.section.features.model_copy(update={"order": "order_number", "days_per_order": 7})
    ordered = ListBuilder.of(shop.model, world.data, world.section.model_copy(update={"features": features}))
    day = to_date(shop.day - 21)
    later = ordered.observe(basket(400, [1000, 1001], day, "a")).observe(basket(400, [1001], to_date(shop.day), "b"))
    reasons = dict(zip(ask(later, 400).item.tolist(), ask(later, 400).explanation, strict=True))
    assert reasons[1000] == "bought once, 3 orders ago"
    assert reasons[1001] == "bought 2 times, last with the newest order"


def test_ids_of_text_are_compared_whole(world):
    lines = world.frames["lines"].with_columns(pl.format("h{}", "user").alias("user"), pl.format("p{}", "item").alias("item"))
    items = world.frames["items"].with_columns(pl.format("p{}", "item").alias("item"))
    data = world.reload({**world.frames, "lines": lines, "items": items, "places": item_catalogue.NOWHERE}, "text")
    named = ListBuilder.of(world.fit(world.defaults("frequency"), data), data, world.section)
    assert ask(named, "h24").source[0] == "rebuy"
    assert ask(named, "h2400000").item.tolist() == ask(named, None).item.tolist()
    after = named.observe(pl.DataFrame({"user": ["h2400000"], "basket": [1], "item": ["p1003"], "day": [to_date(named.day)]}))
    assert ask(after, "h2400000").item.tolist()[0] == "p1003"
    assert ask(after, "h240").explanation == ask(named, "h240").explanation
