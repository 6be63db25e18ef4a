"""Propensities are chances: each list comes as often as the product of its propensities says."""

from collections import Counter

import numpy as np
import pytest

from evergreen.tasks.problems.recommender.list_composition import _drawn
from evergreen.tasks.problems.recommender.propensities import draw_chances, of_list, pool_shares
from evergreen.tasks.problems.recommender.reranking import drawn_places

LISTS = 20_000


def test_a_list_comes_as_often_as_its_propensities_say():
    """Five new products in two categories, of which one is not allowed; lists of four with 0.4 places for them."""
    random = np.random.default_rng(5)
    shares = pool_shares(np.array([0, 2, 5]), mine=np.array([0, 1, 1]))
    allowed = np.array([True, True, True, False, True])
    seen, chance = Counter[tuple[int, ...]](), dict[tuple[int, ...], float]()
    for _ in range(LISTS):
        due = drawn_places(0.4, 4, random.random())
        drawn = _drawn(random, shares, 30)
        drawn = drawn[allowed[drawn]][: due[-1]]
        places = np.diff([0, *due]) > 0
        left = iter(drawn.tolist())
        made = tuple(next(left) if place else -1 for place in places)
        seen[made] += 1
        chance[made] = float(np.prod(of_list(places.tolist(), draw_chances(drawn, shares, allowed).tolist(), 0.4, 4)))
    assert sum(chance.values()) == pytest.approx(1.0, abs=1e-3)
    for made, number in seen.items():
        error = (chance[made] * (1 - chance[made]) / LISTS) ** 0.5
        assert abs(number / LISTS - chance[made]) < 4 * error, made


def test_a_place_that_finds_nothing_new_is_the_models():
    assert of_list([False, False], [], share=1.0, k=2) == [1.0, 1.0]


def test_without_a_category_of_the_user_all_new_products_are_alike():
    assert pool_shares(np.array([0, 0, 2]), mine=np.array([0])).tolist() == [0.5, 0.5]
    assert pool_shares(np.array([0, 0]), mine=np.array([], int)).tolist() == []
