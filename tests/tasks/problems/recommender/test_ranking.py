"""The parts of the recommender, each held to a small and slow counterpart."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from evergreen.tasks.problems.recommender.candidate_generation import best, decayed, order
from evergreen.tasks.problems.recommender.candidate_sources import Decay, Ease, TifuKnn, popularity
from evergreen.tasks.problems.recommender.online_histories import OnlineHistories
from evergreen.tasks.problems.recommender.ranker_features import NEVER, PAIR, USER, Lines, of_pairs, of_users
from evergreen.tasks.problems.recommender.ranking_metrics import per_user
from evergreen.tasks.problems.recommender.user_histories import Histories, codes


def naive(ranked, relevant, k):
    """The metrics of one list by their definitions."""
    hits = [item in relevant for item in ranked[:k]]
    gained = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
    precisions = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
    return {
        "ndcg": gained / ideal,
        "recall": sum(hits) / len(relevant),
        "map": sum(precisions) / min(k, len(relevant)),
        "hit_rate": float(any(hits)),
    }


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(12)), st.sets(st.integers(0, 30), min_size=1), st.integers(1, 10))
def test_metrics_are_what_their_definitions_say(ranked, relevant, k):
    hits = np.array([[item in relevant for item in ranked[:k]]])
    found = per_user(hits, np.array([len(relevant)]))
    assert {name: value[0] for name, value in found.items()} == pytest.approx(naive(ranked, relevant, k))


def test_a_perfect_list_scores_one_and_who_bought_nothing_has_no_score():
    found = per_user(np.array([[True, True, False], [False, False, False]]), np.array([2, 0]))
    assert all(value[0] == 1 for value in found.values())
    assert all(np.isnan(value[1]) for value in found.values())


def direct(x, penalty):
    """EASE as in its paper: items x items."""
    inverse = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1]))
    weights = np.eye(x.shape[1]) - inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("shape", [(6, 20), (30, 8)])
def test_ease_through_users_is_ease_through_items(shape):
    draw = np.random.default_rng(0)
    x = np.log1p(draw.poisson(0.7, shape)).astype(np.float32)
    fresh = draw.poisson(0.7, (4, shape[1])).astype(np.float32)
    ease = Ease.learn(sparse.csr_array(x), 3.0)
    for rows in (x, fresh):
        np.testing.assert_allclose(ease.score(sparse.csr_array(rows)), rows @ direct(x, 3.0), atol=1e-4)


def test_similar_users_lend_the_mean_of_their_purchases_and_nobody_is_his_own_neighbour():
    users = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 3, 0], [0, 0, 0, 0, 9]], np.float32)
    similar = TifuKnn(np.array([10, 11, 12, 13]), sparse.csr_array(users), neighbours=2)
    lent = similar.score(sparse.csr_array(users[:1]), np.array([10]))
    np.testing.assert_allclose(lent, [[1, 1, 0.5, 1.5, 0]])
    anonymous = similar.score(sparse.csr_array(users[:1]), np.array([99]))
    np.testing.assert_allclose(anonymous, [[1, 1, 0.5, 0, 0]])


def test_more_neighbours_than_users_is_every_other_user_that_there_is():
    users = sparse.csr_array(np.eye(3, dtype=np.float32))
    lent = TifuKnn(np.arange(3), users, neighbours=50).score(users[:1], np.array([7]))
    np.testing.assert_allclose(lent, np.full((1, 3), 1 / 3), rtol=1e-6)


def purchases(*lines):
    """Lines (user, basket, item, day)."""
    frame = pl.DataFrame(lines, schema=["user", "basket", "item", "day"], orient="row")
    return frame.with_columns(pl.col("day").cast(pl.Date))


LINES = purchases((2, 1, "b", 10), (1, 2, "a", 11), (1, 2, "b", 11), (1, 3, "a", 39), (3, 4, "c", 40))


def test_a_line_that_comes_twice_counts_once():
    histories = Histories.of(pl.concat([LINES, LINES]))
    assert histories.frame().equals(LINES)
    assert histories.and_then(LINES).frame().equals(LINES)


def test_what_came_later_leaves_no_trace_in_histories_until_a_day():
    early = Histories.of(LINES).until(38)
    assert early.users.tolist() == [1, 2]
    assert early.frame().equals(LINES.head(3))
    assert len(Histories.of(LINES).until(0)) == 0


def test_the_catalogue_needs_so_many_users_and_not_so_many_purchases():
    histories = Histories.of(LINES)
    assert histories.catalogue(2).tolist() == ["b"]
    assert histories.catalogue(1).tolist() == ["a", "b", "c"]


def test_purchases_count_half_after_the_half_life_and_popularity_counts_users():
    histories = Histories.of(LINES)
    catalogue = histories.catalogue(1)
    weights = decayed(histories, catalogue, 39, Decay(28.0)).toarray()
    assert weights[0].tolist() == pytest.approx([1.5, 0.5, 0])
    assert popularity(histories, catalogue, 11, 39).tolist() == [1, 1, 0]


def test_facts_of_users_and_pairs_by_hand():
    histories = Histories.of(LINES)
    catalogue = histories.catalogue(1)
    lines = Lines.of(histories, np.array([0, 1]), catalogue, 39)
    users = dict(zip(USER, of_users(lines).T.tolist(), strict=True))
    assert users["visits"] == [2, 1]
    assert users["days_since_visit"] == [0, 29]
    assert users["visit_gap"] == [28, 0]
    assert users["repeat_share"] == pytest.approx([1 / 3, 0])
    item, group = np.array([0, 2, 1]), np.array([0, 0, 1])
    rows = of_pairs(lines, np.array([0, 0, 1]), item, [(group[lines.bought()[1]], group[item])], 28.0, np.array([2, 1]))
    pairs = dict(zip(PAIR, rows.T.tolist(), strict=True))
    assert pairs["bought"] == [2, 0, 1]
    assert pairs["days_since"] == [0, NEVER, 29]
    assert pairs["days_between"] == [28, NEVER, NEVER]
    assert pairs["decayed_share"] == pytest.approx([0.75, 0, 1])
    assert pairs["category_days_since"] == [0, NEVER, 29]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 7.0, np.nan])), max_size=40),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_rows_are_ordered_as_one_long_sort_would(entries, by_row, kind):
    entries = sorted(entries, key=lambda entry: entry[0]) if by_row else entries
    row, score = np.array([row for row, _ in entries], np.int64), np.array([score for _, score in entries], kind)
    by, rank = order(row, score)
    np.testing.assert_array_equal(by, np.lexsort((-score, row)))
    np.testing.assert_array_equal(rank, [sum(row[by[:at]] == row[by[at]]) for at in range(len(row))])


def test_the_best_of_each_row_leave_out_what_is_ruled_out():
    scores = np.array([[1.0, 3.0, 2.0], [-np.inf, 5.0, -np.inf]])
    assert sorted(best(scores, 2)) == [1, 2, 4]
    assert sorted(best(scores, 9)) == [0, 1, 2, 4]


def test_order_ranks_within_rows_and_keeps_ties_as_they_come():
    by, rank = order(np.array([1, 0, 1, 0]), np.array([1.0, 2.0, 1.0, 3.0]))
    assert by.tolist() == [3, 1, 0, 2]
    assert rank.tolist() == [0, 1, 0, 1]


def test_codes_of_ids_that_are_not_there_are_minus_one():
    assert codes(np.array(["x", "b"]), np.array(["a", "b"])).tolist() == [-1, 1]
    assert codes(np.array([3]), np.array([], dtype=int)).tolist() == [-1]


def _read(row, column, day, weight, late):
    names = [*(f"column {each}" for each in range(4)), *late[::-1].tolist()]
    return sorted(zip(row.tolist(), (names[each] for each in column.tolist()), day.tolist(), strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(1, 4)] * 3, st.integers(30, 50)), min_size=1, max_size=12), st.integers(0, 12))
def test_live_histories_read_as_if_all_lines_had_been_there_from_the_start(drawn, cut):
    events = purchases(*((user, basket, f"{item}", day) for user, basket, item, day in drawn))
    whole = Histories.of(LINES).and_then(events[:cut]).and_then(events[cut:])
    live = OnlineHistories.of(Histories.of(LINES)).and_then(events[:cut]).and_then(events[cut:])
    assert (len(live), live.last_day) == (len(whole), whole.day.max())
    assert live.ids(live.find(whole.users)).tolist() == whole.users.tolist()
    assert live.find(np.array([99])).tolist() == [-1]
    catalogue = np.array(["1", "3", "a", "b"])
    for positions in (np.arange(len(whole.users)), np.array([1]), np.array([], dtype=int)):
        mine = live.find(whole.users[positions])
        assert live.newest(mine).tolist() == whole.newest(positions).tolist()
        ours, theirs = (_read(*each.lines(at, catalogue)) for each, at in ((live, mine), (whole, positions)))
        assert ours == theirs
    assert live.frame().sort(live.frame().columns).equals(whole.frame().sort(whole.frame().columns))


def test_many_new_lines_are_merged_and_a_known_one_waits_nowhere(monkeypatch):
    start = OnlineHistories.of(Histories.of(LINES))
    assert start.and_then(LINES).waiting == 0
    event = purchases((2, 9, "z", 41))
    waiting = start.and_then(event)
    assert (waiting.waiting, waiting.and_then(event).waiting, len(waiting.base)) == (1, 1, len(LINES))
    monkeypatch.setattr("evergreen.tasks.problems.recommender.online_histories.MANY", 0)
    again = waiting.and_then(purchases((2, 10, "z", 42)))
    assert (again.waiting, len(again.base), again.last_day) == (0, len(LINES) + 2, 42)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("few", [0, 10**6])
def test_what_one_user_gets_alone_is_what_he_gets_among_many(few, prepared, monkeypatch):
    monkeypatch.setattr("evergreen.tasks.problems.recommender.candidate_sources.MOVED", few)
    monkeypatch.setattr("evergreen.tasks.problems.recommender.candidate_sources.SHARES", 500)
    draw = np.random.default_rng(0)
    x = draw.poisson(0.5, (30, 40)).astype(np.float32)
    ease = Ease.learn(sparse.csr_array(x), 3.0)
    direct = ease.score(sparse.csr_array(x))
    if prepared:
        ease.prepare()  # room for four items
    similar = TifuKnn(np.arange(30), sparse.csr_array(x), neighbours=5)
    np.testing.assert_allclose(ease.score(sparse.csr_array(x), np.arange(30)), direct, atol=1e-4)
    moved = x.copy()
    moved[3, 7] += 2
    for rows in (sparse.csr_array(x), sparse.csr_array(moved)):
        own, together = np.arange(30), ease.score(rows, np.arange(30))
        lent = similar.score(rows, own)
        for at in (3, 8):
            np.testing.assert_allclose(ease.score(rows[[at]], own[[at]])[0], together[at], atol=1e-4)
            np.testing.assert_allclose(similar.score(rows[[at]], own[[at]])[0], lent[at], atol=1e-6)
            anonymous = ease.score(rows[[at]], np.array([-1]))[0]
            np.testing.assert_allclose(anonymous, ease.score(rows[[at, at]], np.array([-1, at]))[0], atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.5, 7.0, 8.0, 9.0]), min_size=1, max_size=60), st.integers(1, 12))
def test_the_best_of_one_row_are_the_best_of_that_row_among_others(row, count):
    scores = np.array([row, row[::-1]])
    among = best(scores, count)
    assert sorted(best(scores[:1], count)) == sorted(among[among < len(row)])
