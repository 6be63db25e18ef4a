"""Off-policy estimates against the expected: a simulated shop in which showing an item makes it be bought."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from bench.statistics.off_policy import shop
from evergreen.monitoring.rollout.off_policy import ESTIMATORS, estimate, estimate_shadow
from evergreen.monitoring.rollout.sequential_tests import Judgement, OffPolicyValue
from evergreen.tasks import problems
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX


def served(seed: int, **given: Any) -> pl.DataFrame:
    """Without the champion's own lists: the gain is over what was served."""
    return shop(seed, **given).pairs.drop("against")


def found_in(pairs: pl.DataFrame) -> OffPolicyValue:
    found = estimate(pairs)
    assert found is not None
    return found


def test_estimates_meet_the_expected_hits_on_average_and_their_intervals_contain_it():
    """Ten runs: the mean error is within three standard errors of 0, and at most 2 intervals miss; bench has the rates."""
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    missed: dict[str, int] = dict.fromkeys(ESTIMATORS, 0)
    for seed in range(10):
        pairs, expected, _ = shop(seed, users=120)
        for each in found_in(pairs).estimates:
            errors[each.method].append(each.value - expected)
            if each.low is not None and each.high is not None:
                missed[each.method] += not each.low <= expected <= each.high
    for name, all_errors in errors.items():
        assert abs(np.mean(all_errors)) < 3 * np.std(all_errors) / len(all_errors) ** 0.5, name
        assert missed[name] <= 2, name


def test_the_mean_of_served_hits_is_not_what_other_lists_would_have_earned():
    pairs, expected, _ = shop(7, users=2_000)
    found = found_in(pairs.drop("against"))
    assert abs(found.estimates[-1].value - expected) < 0.1
    assert found.covered == pytest.approx(1, abs=0.05)
    gain = found.estimates[-1]
    assert gain.gain == pytest.approx(gain.value - found.served)


def test_lists_without_exploration_are_too_few_for_another_list_and_enough_for_the_same():
    pairs = served(1, swap=0.0)
    other = found_in(pairs)
    assert other.why == "too few of the items had a chance to be shown: 40%, at least 95% are needed"
    assert all(each.low is None for each in other.estimates)
    assert other.words().startswith("hits of lists that nobody saw: too few of the items")
    same = found_in(pairs.with_columns(wanted="items"))
    assert (same.why, same.covered) == ("", 1.0)
    assert same.estimates[0].value == pytest.approx(same.served)
    assert "hits per list that nobody saw" in same.words()


def test_few_lists_are_too_few():
    assert found_in(served(2, users=5)).why.startswith("too few ")


def test_lists_that_are_no_evidence_are_left_out():
    good = served(3, users=100)
    bad = pl.DataFrame(
        {
            "entity": ["x"] * 5,
            "items": [["1"]] * 5,
            "propensities": [[0.0], [1.5], [0.5, 0.5], None, [1.0]],
            "wanted": [["1"], ["1"], ["1"], ["1"], []],
            "label": [["1"]] * 5,
        },
        schema_overrides=dict(good.schema),
    )
    assert found_in(pl.concat([good, bad])) == found_in(good)
    assert estimate(bad) is None


def test_one_who_asks_often_counts_once():
    pairs = served(4, users=100)
    often = pl.concat([pairs, *([pairs.filter(pl.col("entity") == "u0")] * 50)])
    assert found_in(often).served == pytest.approx(found_in(pairs).served)


def test_an_item_that_could_be_shown_at_several_ranks_counts_at_one():
    """Two ranks draw from one pool, so an item has two chances; by item alone its value would count twice."""
    draw = np.random.default_rng(5)
    rows = []
    for user in range(400):
        first, second = draw.permutation(["a", "b", "c"])[:2].tolist()
        bought = [item for item in (first, second) if item == "a"]
        rows.append((f"u{user}", [first, second], [1 / 3, 1 / 2], ["a", "b"], bought))
    pairs = pl.DataFrame(rows, schema=["entity", "items", "propensities", "wanted", "label"], orient="row")
    found = found_in(pairs)
    assert found.estimates[0].value == pytest.approx(1, abs=0.2)
    assert found.why == "" or found.covered < 1


def test_a_shadow_is_judged_by_the_lists_of_the_champion_for_the_same_requests():
    pairs = served(6, users=100)
    wide = (
        pairs.with_row_index("row").with_columns(id=pl.format("r{}", "row"), version=1, variant=pl.lit("champion")).drop("row")
    )
    shadows = wide.with_columns(
        items="wanted",
        id=pl.col("id") + SHADOW_SUFFIX,
        version=2,
        variant=pl.lit("shadow"),
        propensities=pl.lit(None, pl.List(pl.Float64)),
        label=pl.lit(None, pl.List(pl.String)),
    )
    rows = pl.concat([wide, shadows.select(wide.columns)]).drop("wanted")
    kind, stands = cast(Any, problems.predictions("recommendation")), cast(Any, SimpleNamespace(candidate=2, champion=1))
    found = estimate_shadow(kind, rows, stands)
    assert found == estimate(pairs)
    assert estimate_shadow(kind, rows.drop("propensities"), stands) is None
    explored = pl.when(pl.col("entity") < "u5").then(pl.lit("explore")).otherwise(pl.lit("ease"))
    drawn = rows.with_columns(sources=pl.concat_list(explored))
    assert estimate_shadow(kind, drawn, stands) == estimate(pairs.filter(pl.col("entity") >= "u5"))
    assert estimate_shadow(kind, rows.filter(pl.col("variant") == "champion"), stands) is None
    judged = Judgement(decision="wait", reason="3 requests", tests=()).with_off_policy(found)
    assert (judged.decision, judged.off_policy) == ("wait", found)
    assert "; hits" in judged.reason
