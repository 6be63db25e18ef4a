"""The sources of candidates that are off by default, the facts the ranker reads, and what happens above the bounds."""

import dataclasses
from datetime import date
from typing import Any

import lightgbm
import numpy as np
import polars as pl
import pytest
from scipy import sparse

from evergreen.tasks.config.params import Recommend, Sources
from evergreen.tasks.core import step_cache
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.recommendation.kind import KIND
from evergreen.tasks.problems.recommender import candidate_generation, dask_partitions
from evergreen.tasks.problems.recommender.candidate_generation import Learned, Settings
from evergreen.tasks.problems.recommender.candidate_sources import SOURCES, Factors, ItemNeighbours, Segments, favourites
from evergreen.tasks.problems.recommender.item_catalogue import mostly_at
from evergreen.tasks.problems.recommender.ranker_features import FEATURES, ITEM, NEVER, PAIR, Lines, of_items, of_pairs
from evergreen.tasks.problems.recommender.user_histories import Histories
from tests.contracts import World, build

SWITCHES = ("tifu_knn", "ease", "item_knn", "co_visitation", "als", "segment_popularity")
ALL = {f"with_{name}": True for name in SWITCHES}
NONE = {f"with_{name}": False for name in SWITCHES}


def purchases(*lines: tuple[int, int, str, int]) -> Histories:
    frame = pl.DataFrame(lines, schema=["user", "basket", "item", "day"], orient="row")
    return Histories.of(frame.with_columns(pl.col("day").cast(pl.Date)))


def blocks(users: int = 40, items: int = 12) -> Any:
    """Even users buy the first half of the items, odd ones the second, each misses some."""
    draw = np.random.default_rng(1)
    mine = (np.arange(items) < items // 2) == (np.arange(users)[:, None] % 2 == 0)
    return sparse.csr_array((mine & (draw.random((users, items)) < 0.7)).astype(np.float32))


def test_neighbours_of_an_item_are_the_nearest_by_cosine_without_itself():
    x = blocks().toarray()
    x[:, 3] = 0  # nobody buys it
    unit = x / np.maximum(np.linalg.norm(x, axis=0), 1e-12)
    cosine = unit.T @ unit
    np.fill_diagonal(cosine, 0)
    nearest = ItemNeighbours.learn(sparse.csr_array(x), 3).nearest.toarray()
    for found, true in zip(nearest, cosine, strict=True):
        assert (found > 0).sum() <= 3
        np.testing.assert_allclose(np.sort(found)[-3:], np.sort(true)[-3:], atol=1e-6)


def test_a_row_that_holds_everything_makes_nothing_neighbours(monkeypatch):
    monkeypatch.setattr("evergreen.tasks.problems.recommender.candidate_sources.LONGEST", 2)
    nearest = ItemNeighbours.learn(sparse.csr_array(np.array([[1, 1, 0], [1, 1, 1]], np.float32)), 5).nearest
    np.testing.assert_allclose(nearest.toarray(), [[0, 1, 0], [1, 0, 0], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("learn", [lambda x: ItemNeighbours.learn(x, 5), lambda x: Factors.learn(x, 2, seed=0)])
def test_what_a_user_misses_of_his_own_half_scores_above_the_other_half(learn):
    x = blocks()
    source, dense = learn(x), x.toarray()
    together = source.score(x)
    for user in range(x.shape[0]):
        own, missed = np.arange(12) // 6 == user % 2, dense[user] == 0
        assert together[user, own & missed].min(initial=np.inf) > together[user, ~own].max()
        np.testing.assert_allclose(source.score(x[[user]])[0], together[user], atol=1e-5)


def test_a_user_without_purchases_has_no_factors_and_a_seed_gives_the_same_ones():
    x = blocks()
    first, again = (Factors.learn(x, 4, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.items, again.items)
    assert not first.score(sparse.csr_array((1, 12), dtype=np.float32)).any()


def test_what_is_popular_in_a_segment_is_the_share_of_its_users_who_bought_it():
    bought = sparse.csr_array(np.array([[1, 0, 2], [0, 0, 1], [0, 3, 0], [1, 1, 1]], np.float32))
    segments = Segments.learn(np.array([10, 11, 12, 13]), np.array([0, 0, 1, -1]), bought)
    np.testing.assert_allclose(
        segments.score(np.array([12, 10, 13, 99])), [[0, 1, 0], [0.5, 0, 1], [0, 0, 0], [0, 0, 0]], atol=1e-6
    )


def test_a_user_stands_out_by_the_category_that_others_buy_less_not_by_the_one_all_buy():
    bought = sparse.csr_array(np.array([[9, 4, 0], [9, 0, 1], [9, 0, 0], [0, 0, 0]], np.float32))
    assert favourites(bought, np.array([0, 1, 2])).tolist() == [1, 2, 0, -1]


def test_a_user_belongs_where_most_of_the_late_baskets_were():
    histories = purchases((1, 1, "a", 1), (1, 2, "a", 2), (1, 3, "a", 9), (2, 4, "a", 9), (3, 5, "a", 9))
    places = pl.DataFrame({"user": [1, 1, 1, 2], "basket": [1, 2, 3, 4], "place": ["x", "x", "y", "x"]})
    early, late = mostly_at(places, histories, 0), mostly_at(places, histories, 5)
    assert early is not None
    assert late is not None
    assert early[0] == early[1]
    assert early[2] == -1
    assert late[0] != late[1]
    assert mostly_at(places.clear(), histories, 0) is None


HISTORY = purchases((1, 1, "a", 10), (1, 2, "b", 20), (1, 3, "a", 30), (1, 4, "a", 36), (1, 5, "b", 40), (2, 6, "a", 40))


def test_the_rhythm_of_a_pair_by_hand():
    catalogue = HISTORY.catalogue(1)
    lines = Lines.of(HISTORY, np.array([0, 1]), catalogue, 40)
    gap = of_items(HISTORY, catalogue, np.zeros(2, int), 40)[:, ITEM.index("usual_gap")]
    assert gap.tolist() == [13, 20]
    item, column = np.array([0, 0, 1]), lines.bought()[1]
    kinds = [(group[column], group[item]) for group in (np.zeros(2, int), np.array([1, 1]), np.array([2, 1]))]
    rows = of_pairs(lines, np.array([0, 1, 1]), item, kinds, 90.0, np.array([5, 1]), gap[item])
    found = dict(zip(PAIR, rows.T.tolist(), strict=True))
    assert found["days_since_second"] == [10, NEVER, NEVER]
    assert found["days_since_third"] == [30, NEVER, NEVER]
    assert found["last_gap"] == [6, NEVER, NEVER]
    assert found["gap_spread"] == [7, 0, 0]  # gaps of 20 and 6 around 13
    assert found["visits_since"] == [1, 0, 1]
    assert found["overdue_for_item"] == pytest.approx([4 / 13, 0, NEVER])
    assert found["bought_7d"] == [1, 1, 0]
    assert found["group1_28d"] == [4, 1, 1]  # one group of both items
    assert found["group2_28d"] == [2, 1, 0]  # one group each


def test_facts_of_items_count_first_buyers_and_who_comes_back():
    rows = of_items(HISTORY, HISTORY.catalogue(1), np.zeros(2, int), 40)
    found = dict(zip(ITEM, rows.T.tolist(), strict=True))
    assert found["users"] == [2, 1]
    assert found["new_users_7d"] == [1, 0]
    assert found["new_users_28d"] == [1, 1]
    assert found["share_of_category"] == pytest.approx([2 / 3, 1 / 3])
    assert found["kept_share"][0] > 0


SETTINGS = Settings(min_users=1, popularity_days=20, candidates=10, half_life_days=90, ease_penalty=5, user_neighbours=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build("recommend", tmp_path_factory.mktemp("sources"))


def test_a_source_that_is_off_is_not_there_and_one_that_is_on_is_named(world):
    data, day = world.data, int(world.data.histories.day[-1])
    for on in ((), ("ease",), ("item_knn", "segment_popularity"), SWITCHES):
        settings = dataclasses.replace(SETTINGS, **NONE | {f"with_{name}": True for name in on})
        learned = data.learned(day, settings)
        assert set(learned.sources) == {"rebuy", "popular", *on}
        found = learned.propose(data.histories, np.arange(20), day, settings)
        scores = found.features[:, -2 * len(SOURCES) : -len(SOURCES)]
        for place, name in enumerate(SOURCES):
            assert scores[:, place].any() == (name in learned.sources)


def test_the_two_stages_learn_with_all_sources_and_with_none(world, tmp_path):
    for on in (NONE, ALL):
        model = world.fit({**world.defaults("two_stage"), **on, "learning_rate": 0.3, "ranker_trees": 20})
        assert world.primary(model) > 0.5, on
        skops_models.save(model, tmp_path / "model.skops")
        assert world.predict(skops_models.load(tmp_path / "model.skops")).equals(world.predict(model))


def test_above_the_bound_no_users_by_users_system_is_built_and_a_factor_model_stands_in(world, monkeypatch):
    data, day = world.data, int(world.data.histories.day[-1])

    def refuse(*args: Any) -> None:
        raise AssertionError("a users x users system was built")

    monkeypatch.setattr(candidate_generation.Ease, "learn", refuse)
    learned = data.learned(day, dataclasses.replace(SETTINGS, max_dense_users=30))
    assert learned.ease is None
    assert len(learned.tifu_knn.ids) == 30
    assert set(learned.sources) == {"rebuy", "popular", "tifu_knn", "als"}
    found = learned.propose(data.histories, np.arange(50), day, SETTINGS)
    assert len(np.unique(found.row)) == 50


def test_candidates_do_not_depend_on_how_many_users_are_scored_at_a_time(world, monkeypatch):
    data, day = world.data, int(world.data.histories.day[-1])
    settings = dataclasses.replace(SETTINGS, **ALL)
    learned = data.learned(day, settings)
    whole = learned.propose(data.histories, np.arange(40), day, settings)
    monkeypatch.setattr(candidate_generation, "CELLS", 8 * len(learned.catalogue))
    parts = learned.propose(data.histories, np.arange(40), day, settings)
    assert parts.item.tolist() == whole.item.tolist()
    np.testing.assert_allclose(parts.features, whole.features, atol=1e-4)


def test_a_model_of_before_these_facts_still_answers(world, tmp_path):
    """It has no new settings, narrower facts of items, and trees that ask for fewer columns in another order."""
    model = world.fit({**world.defaults("two_stage"), "ranker_trees": 5})
    old = model.reading(model.histories_, model.day_)
    for name in (*NONE, "als_factors", "item_neighbours", "max_dense_users"):
        delattr(old, name)
    kept = {name: getattr(model.learned_, name) for name in ("catalogue", "category", "popular", "ease", "tifu_knn")}
    old.learned_ = Learned(**kept, facts=model.learned_.facts[:, :9])
    names = ["bought", "users_28d", "ease", "tifu_knn_place"]
    found = old.propose(np.arange(60))
    table = found.features[:, [FEATURES.index(name) for name in names]]
    data = lightgbm.Dataset(table, table[:, 0] > 3, feature_name=names, params={"verbosity": -1})
    old._keep(lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 5))
    skops_models.save(old, tmp_path / "model.skops")
    loaded = skops_models.load(tmp_path / "model.skops")
    order = np.argsort(-loaded.order_by(found), kind="stable")
    assert (table[order[:50], 0] > 3).all()
    assert set(loaded.importance()) == set(names)
    assert len(loaded.predict(pl.DataFrame({"household_id": [1, 2]}).to_pandas())) == 20


GOODS = pl.DataFrame({"what": ["tea", "gas"], "kind": ["drinks", None], "brand": [7, 8]}).lazy()
EVENTS = pl.DataFrame({"who": [1, 2, 2], "what": ["tea", "gas", "new"], "till": [1, 2, 3], "at": [date(2024, 1, 2)] * 3}).lazy()


def section(**features: Any) -> Recommend:
    named = {"table": "events", "user": "who", "item": "what", "basket": "till", "min_users": 1, "horizon_days": 7}
    return Recommend.model_validate({"question": "What next?", "features": named | features})


def made(**features: Any) -> dict[str, pl.DataFrame]:
    return KIND.build(
        {"events": EVENTS, "goods": GOODS}, {"events": "at", "goods": None}, section(**features), date(2024, 1, 4)
    )


def test_groups_of_items_are_numbered_one_column_each_and_what_has_none_shares_number_0(tmp_path):
    named = {"items": "goods", "groups": ["brand", "kind"]}
    for name, frame in made(**named).items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    data = KIND.load(tmp_path, section(**named))
    assert data.histories.items.tolist() == ["gas", "new", "tea"]
    assert data.groups.tolist() == [[2, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"items": "goods", "groups": ["brnd"]}, r"features\.groups = brnd: .*did you mean brand"),
        ({"groups": ["brand"]}, r"features\.groups = .*needs a table of items; give features\.items"),
    ],
)
def test_groups_that_cannot_be_read_are_refused_with_their_place(features, message):
    with pytest.raises(ParamsError, match=message):
        made(**features)


def test_each_switch_that_is_left_open_is_a_dimension_of_the_search():
    assert KIND.space(section())["two_stage"]["with_item_knn"].values == (False,)
    given = section().model_copy(update={"pipeline": Sources.model_validate({"sources": {"item_knn": [True, False]}})})
    assert KIND.space(given)["two_stage"]["with_item_knn"].values == (True, False)


def test_steps_that_share_the_cache_learn_from_the_same_examples_and_propose_once(world, tmp_path, monkeypatch):
    cutoff, proposed = world.fold.train[-1], []
    propose = dask_partitions.propose
    monkeypatch.setattr(dask_partitions, "propose", lambda *given: proposed.append(1) or propose(*given))

    def examples(name: str):
        return world.reload(world.frames, name).examples(cutoff, SETTINGS, 1000, 0)

    plain, label = examples("without")
    for name, calls in (("first", 2), ("second", 2)):
        with step_cache.using(tmp_path / "cache", world.folder / "data-in", world.section.features.model_dump_json()):
            found, same = examples(name)
        assert len(proposed) == calls
        np.testing.assert_array_equal(same, label)
        for each in vars(plain):
            np.testing.assert_array_equal(getattr(found, each), getattr(plain, each))
