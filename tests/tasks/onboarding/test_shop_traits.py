"""`init` recognises what is peculiar about a shop; an ordinary one gets no word."""

from collections.abc import Callable, Iterable

import numpy as np
import polars as pl
import pytest

from bench import shops
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.params_template import section
from evergreen.tasks.onboarding.schema_inference import infer_schema
from evergreen.tasks.onboarding.shop_shape import find_shape
from evergreen.tasks.onboarding.shop_traits import FEW_USERS, Traits, find_traits
from tests.tasks.problems.recommender.test_shop_shapes import AS_OF, DAYS, Line, bundles, fans, regulars, table

Draw = np.random.Generator


def traits(rows: Iterable[Line]) -> Traits:
    return find_traits(table(rows).select(user="who", item="what", day=pl.col("at").dt.date(), order="till"))


def shoppers(draw: Draw, users: int = FEW_USERS) -> Iterable[Line]:
    for user in range(users):
        for turn, day in enumerate(draw.uniform(0, DAYS, 6)):
            for item in draw.permutation(80)[:3].tolist():
                yield f"u{user}", f"b{user} {turn}", f"i{item}", float(day)


def with_reseller(draw: Draw) -> Iterable[Line]:
    yield from shoppers(draw)
    for day in range(DAYS):
        yield from (("reseller", f"r{day}", f"i{item}", float(day)) for item in range(40))


def with_robots(draw: Draw) -> Iterable[Line]:
    yield from shoppers(draw)
    yield from ((f"robot {each}", f"r{each}", f"i{item}", 3.0) for each in range(3) for item in range(80))


def news(draw: Draw) -> Iterable[Line]:
    for user in range(FEW_USERS):
        for day in draw.permutation(DAYS)[:6].tolist():
            yield f"u{user}", f"b{user} {day}", f"story {day // 3} {draw.integers(4)}", float(day)


def seasons(draw: Draw) -> Iterable[Line]:
    for user in range(FEW_USERS):
        for day in draw.permutation(DAYS)[:6].tolist():
            yield f"u{user}", f"b{user} {day}", f"coat {day // 42} {draw.integers(12)}", float(day)


def subscriptions(draw: Draw) -> Iterable[Line]:
    for user in range(FEW_USERS):
        first = draw.integers(28)
        for turn in range(7):
            yield f"u{user}", f"b{user} {turn}", f"paper {user % 7}", float(first + round(turn * 30.44))


@pytest.mark.parametrize(
    ("rows", "says", "horizon", "bundled"),
    [
        (shoppers, (), None, False),
        (lambda draw: shoppers(draw, 200), ("200 users: differences between models are hard to see",), None, False),
        (with_reseller, (r"one user (reseller) has 27% of all lines",), None, False),
        (with_robots, ("3 users take 80 different items a day or more, others 3 (such as robot 0)",), None, False),
        (news, ("half of the purchases are of items that are sold for 3 days: windows have 1 days",), 1, False),
        (seasons, ("half of the purchases are of items that are sold for 42 days: each training chooses",), None, False),
        (subscriptions, ("100% of the items bought three times come monthly: windows have 31 days",), 31, False),
        (bundles, ("150 users", "36 pairs of items are nearly always bought together"), None, True),
    ],
    ids=["ordinary", "few shoppers", "reseller", "robots", "news", "seasons", "subscriptions", "bundles"],
)
def test_a_peculiar_shop_is_recognised_and_an_ordinary_one_is_not(
    rows: Callable[[Draw], Iterable[Line]], says: tuple[str, ...], horizon: int | None, bundled: bool
):
    found = traits(rows(np.random.default_rng(0)))
    assert len(found.notes) == len(says), found.notes
    assert all(note.startswith(said) for note, said in zip(found.notes, says, strict=True)), found.notes
    assert (found.horizon_days, found.bundles) == (horizon, bundled)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [lambda draw: regulars(draw, 120), lambda draw: fans(draw, 300), shoppers])
def test_ordinary_shops_of_other_seeds_get_the_usual_window_and_sources(rows, seed: int):
    found = traits(rows(np.random.default_rng(seed)))
    assert (found.horizon_days, found.bundles) == (None, False)
    assert all("users: differences" in note for note in found.notes), found.notes


def test_an_empty_table_has_no_traits():
    empty = pl.DataFrame(schema={"user": pl.String, "item": pl.String, "day": pl.Date, "order": pl.String})
    assert find_traits(empty) == Traits()


def test_windows_follow_the_shop():
    draw = np.random.default_rng(1)
    shapes = [find_shape(table(rows(draw)).lazy(), "who", "what", "till", "at") for rows in (news, subscriptions, shoppers)]
    assert [(each.horizon_days, each.windows) for each in shapes] == [(1, 3), (31, 3), (28, 3)]
    assert not any("history is short" in note for each in shapes for note in each.notes)


def draft(rows: pl.DataFrame):
    asked = InitOptions(user="who", item="what", basket="till", time="at")
    return section("shop", infer_schema(rows.lazy(), asked, AS_OF), asked)


def test_the_draft_weighs_by_ratings_and_offers_to_weigh_by_quantities():
    draw = np.random.default_rng(2)
    rows = table(shoppers(draw, 60))
    plain, rated, counted = (
        draft(rows.with_columns(**columns))["features"]
        for columns in (
            {},
            {"stars": pl.Series(draw.integers(1, 6, rows.height))},
            {"quantity": pl.Series(draw.integers(-1, 6, rows.height))},
        )
    )
    assert (rated["weight"].value, rated["weight_as"]) == ("stars", "rating")
    assert not {"weight", "where"} & {*plain}
    assert "weight" not in counted
    assert "weight: quantity  # to let purchases count by their quantity" in map(str, counted)
    assert counted["where"].value == '"quantity" >= 0'


SEEN = {
    "few shoppers": ("calendar", 28, "200 users: differences"),
    "one purchase per item": ("last_orders", 14, "lists show new items only"),
    "visitors without an account": ("last_lines", 14, "only 0 have two orders, 300 two lines"),
    "news": ("last_orders", 1, "items that are sold for 3 days"),
    "seasons": ("calendar", 28, "train at least once a season"),
    "subscriptions": ("calendar", 31, "come monthly"),
    "ratings": ("calendar", 28, ""),
    "bundles": ("calendar", 28, "co_visitation is on"),
    "reseller": ("calendar", 28, "one user (reseller) has 34% of all lines"),
    "robots": ("calendar", 28, "robots?"),
    "out of stock": ("calendar", 28, ""),
    "returns": ("calendar", 28, ""),
}
"""Shape of bench.shops with dates -> how `init` judges it, the days of a window, and what it says."""


@pytest.mark.parametrize("shape", SEEN)
def test_init_reads_each_planted_shape(shape: str):
    rows = shops.table(shape, 0)
    found = find_shape(rows.lazy(), "who", "what", "till", "at")
    judge_by, days, says = SEEN[shape]
    assert (found.judge_by, found.horizon_days) == (judge_by, days)
    assert says in " ".join(found.notes)
    drafted = draft(rows)
    discover = shape in ("one purchase per item", "visitors without an account", "news")
    assert found.discover is discover
    assert (drafted["gate"] == {"metric": "ndcg_novel"}) is discover  # the gate judges the lists that are shown


def test_every_shape_is_planted():
    assert {*SEEN, "orders without dates"} == {*shops.SHAPES}
    assert len(shops.SHAPES) == 13
    assert shops.table("orders without dates", 0).columns == ["who", "till", "what", "turn"]


def test_the_draft_of_a_shop_with_bundles_looks_at_baskets():
    drafted = draft(table(bundles(np.random.default_rng(3))))
    assert drafted["pipeline"]["sources"]["co_visitation"].value is True
