"""What lists are like beside being right, held to the definitions."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.tasks.problems.recommender import ranking_metrics
from evergreen.tasks.problems.recommender.ranking_metrics import Items, of_lists
from evergreen.tasks.problems.recommender.user_histories import Histories


def beside(entries, owners, category):
    """What one list is like, by the definitions. `owners`: item -> the users who bought it, of four."""
    pairs = [(one, other) for place, one in enumerate(entries) for other in entries[:place]]
    alike = [len(owners[one] & owners[other]) / math.sqrt(len(owners[one]) * len(owners[other])) for one, other in pairs]
    return {
        "novelty": np.mean([-math.log2((len(owners[item]) + 1) / 5) for item in entries]),
        "diversity": np.mean([category[one] != category[other] for one, other in pairs]),
        "dissimilarity": 1 - np.mean(alike),
    }


def bought(owners):
    pairs = [(user, item) for item, users in owners.items() for user in sorted(users)]
    return Histories.of(pl.DataFrame(pairs, schema=["user", "item"], orient="row").with_columns(basket=1, day=0))


OWNERS = {0: {1, 2, 3, 4}, 1: {1, 2}, 2: {2, 3}, 3: {4}, 4: {1, 2, 3}}


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(5)), st.integers(2, 5), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_what_lists_are_like_is_what_the_definitions_say(entries, size, category):
    items = Items.of(bought(OWNERS), np.array(category))
    row = np.concatenate([np.zeros(size, int), [2]])
    found = of_lists(row, np.array([*entries[:size], 1]), 3, items)
    expected = beside(entries[:size], OWNERS, category)
    assert {name: each[0] for name, each in found.items()} == pytest.approx(expected, abs=1e-6)
    assert all(np.isnan(each[1]) for each in found.values())
    assert [name for name, each in found.items() if np.isnan(each[2])] == ["diversity", "dissimilarity"]


def test_without_categories_nothing_is_said_of_diversity():
    found = of_lists(np.zeros(3, int), np.arange(3), 1, Items.of(bought(OWNERS), np.zeros(5, int)))
    assert np.isnan(found["diversity"][0])
    assert found["dissimilarity"][0] > 0


def test_many_buyers_are_sampled_and_say_about_the_same(monkeypatch):
    draw = np.random.default_rng(1)
    owners = {item: set(np.flatnonzero(draw.random(3000) < 0.2 + 0.1 * item).tolist()) for item in range(5)}
    whole = of_lists(np.zeros(5, int), np.arange(5), 1, Items.of(bought(owners), np.ones(5, int)))
    monkeypatch.setattr(ranking_metrics, "BUYERS", 500)
    sampled = of_lists(np.zeros(5, int), np.arange(5), 1, Items.of(bought(owners), np.ones(5, int)))
    assert sampled["novelty"][0] == whole["novelty"][0]
    assert sampled["dissimilarity"][0] != whole["dissimilarity"][0]
    assert sampled["dissimilarity"][0] == pytest.approx(whole["dissimilarity"][0], abs=0.05)
