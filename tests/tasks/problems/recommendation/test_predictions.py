"""Ranked lists, and what purchases say of them."""

import math
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.tasks.config.params import Recommend
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.data.received_events import RECEIVED
from evergreen.tasks.problems.recommendation.overlap import rank_biased_overlap
from evergreen.tasks.problems.recommendation.predictions import PREDICTIONS
from tests.contracts import LabelledContract

MOMENT = pl.Datetime("us", "UTC")
FEATURES = {"table": "t", "user": "u", "item": "i", "basket": "b", "horizon_days": 7}
SECTION = Recommend.model_validate({"question": "?", "features": FEATURES, "pipeline": {"k": 2}})


class TestRankedLists(LabelledContract):
    kind = "recommendation"
    section = SECTION
    rows = pl.DataFrame(
        {"entity": list("abc"), "at": datetime(2024, 5, 1, tzinfo=UTC), "items": [["x", "y"], ["y", "x"], ["z", "w"]]}
    )
    labels = pl.Series([["x"], ["x"], ["x"]])
    right, wrong = 0, 2


def test_a_loss_is_what_the_list_lacks_of_the_best_one():
    rows = pl.DataFrame({"items": [["a", "b"], ["b", "a"], ["c", "d"]]})
    assert PREDICTIONS.losses(rows, pl.Series([["a"]] * 3), None) == pytest.approx([0.0, 1 - 0.63093, 1.0], abs=1e-5)


def test_a_user_who_bought_nothing_costs_as_much_as_a_list_without_a_hit():
    rows = pl.DataFrame({"items": [["a"], ["a"], ["a"]]})
    assert PREDICTIONS.losses(rows, pl.Series([["a"], [], ["b"]], dtype=pl.List(pl.String)), None).tolist() == [0.0, 1.0, 1.0]
    assert math.isnan(PREDICTIONS.losses(rows[:1], pl.Series(["a"]), None)[0])


@settings(max_examples=50, deadline=None)
@given(*[st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)] * 2, st.floats(0.5, 0.95))
def test_the_overlap_is_the_sum_over_all_depths_with_as_much_agreement_beyond_the_ends(one, other, p):
    found, again = (rank_biased_overlap(*pair, p) for pair in ((one, other), (other, one)))
    assert found == pytest.approx(again)
    assert -1e-9 <= found <= 1 + 1e-9
    size = min(len(one), len(other))
    one, other = one[:size], other[:size]
    agreement = [len(set(one[:depth]) & set(other[:depth])) / depth for depth in range(1, size + 1)]
    agreement += agreement[-1:] * 2000
    whole = (1 - p) * sum(each * p**depth for depth, each in enumerate(agreement))
    assert rank_biased_overlap(one, other, p) == pytest.approx(whole)


@pytest.mark.parametrize(("given", "value"), [("[1, 2]", [1, 2]), ("A7", ["A7"]), ([], []), (("a", "b"), ["a", "b"])])
def test_a_label_is_one_item_or_several(given, value):
    assert PREDICTIONS.parse_label(given) == value


def test_labels_are_what_was_bought_once_the_horizon_is_over(tmp_path):
    wanted = pl.DataFrame({"entity": ["1", "2", "1"], "day": [date(2024, 5, 1), date(2024, 5, 1), date(2024, 5, 28)]})

    def found() -> list:
        return list(PREDICTIONS.find_labels(wanted, SECTION, {}, {}, tmp_path, date(2024, 5, 31)))

    with pytest.raises(SourceError, match=r"known.parquet: is missing, so no label can be read"):
        found()
    pl.DataFrame({"day": [date(2024, 5, 30)]}).write_parquet(tmp_path / "known.parquet")
    days = [date(2024, 5, 1), date(2024, 5, 8), date(2024, 5, 3), date(2024, 5, 9)]
    pl.DataFrame({"user": [1] * 4, "item": [4, 9, 7, 8], "day": days}).write_parquet(tmp_path / "lines.parquet")
    assert found() == [("1", date(2024, 5, 1), [7, 9]), ("2", date(2024, 5, 1), [])]


NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NIGHT = datetime(2024, 5, 1, 23, 30, tzinfo=UTC)


def write_purchases(folder, *bought: tuple[int, str, date, datetime | None]) -> dict:
    """Purchases of user 1, all of them received by the server. Returns the tables."""
    pl.DataFrame({"day": [date(2024, 5, 30)]}).write_parquet(folder / "known.parquet")
    lines = pl.DataFrame(bought, schema={"user": pl.Int64, "item": pl.String, "day": pl.Date, "moment": MOMENT}, orient="row")
    lines.drop("moment").write_parquet(folder / "lines.parquet")
    received = lines.with_columns(pl.col("user").cast(pl.String))
    more = pl.DataFrame({"user": ["1"], "item": ["fuel"], "day": [date(2024, 5, 1)], "moment": [NIGHT]}, received.schema)
    pl.concat([received, more]).write_parquet(folder / "received.parquet")
    return {RECEIVED: folder / "received.parquet"}


def test_after_a_served_list_come_purchases_whose_moment_is_later_and_those_of_later_days(tmp_path):
    """An item that the features leave out, such as fuel, is no label."""
    day, next_day = date(2024, 5, 1), date(2024, 5, 2)
    bought = (1, "before", day, NOON.replace(hour=11)), (1, "after", day, NIGHT), (1, "some time", day, None)
    tables = write_purchases(tmp_path, *bought, (1, "later", next_day, None))
    wanted = pl.DataFrame({"entity": ["1"] * 2, "day": [day] * 2, "at": [NOON, None]}, schema_overrides={"at": MOMENT})
    found = PREDICTIONS.find_labels(wanted, SECTION, tables, {}, tmp_path, date(2024, 5, 31))
    assert found == [("1", NOON, ["after", "later"]), ("1", day, ["later"])]
    assert next(iter(PREDICTIONS.find_labels(wanted, SECTION, {}, {}, tmp_path, date(2024, 5, 31)))) == ("1", NOON, ["later"])


def test_orders_without_dates_join_served_lists_by_the_moment_of_their_receipt(tmp_path):
    """The days of such orders move with each ingest."""
    features = {name: each for name, each in FEATURES.items() if name != "horizon_days"}
    features |= {"order": "number", "horizon_orders": 1, "days_per_order": 7}
    section = Recommend.model_validate({"question": "?", "features": features})
    late, day = NOON.replace(day=9), date(2024, 5, 30)
    tables = write_purchases(tmp_path, (1, "new", day, NIGHT), (1, "old", day, None), (1, "too late", day, late))
    asked = {"entity": ["1"] * 2, "day": [date(2024, 5, 1)] * 2, "at": [NOON, None]}
    wanted = pl.DataFrame(asked, schema_overrides={"at": MOMENT})
    found = PREDICTIONS.find_labels(wanted, section, tables, {}, tmp_path, date(2024, 5, 31))
    assert found == [("1", NOON, ["new"])]


DISCOVER = {"lists": {"show": "discover"}, "gate": {"metric": "ndcg_novel"}}


@pytest.mark.parametrize(
    ("given", "headline", "realised"),
    [
        ({}, "ndcg", "ndcg"),
        ({"gate": {"metric": "recall"}}, "recall", "recall"),
        (DISCOVER, "ndcg_novel", "ndcg_novel"),
        ({"gate": {"metric": "ndcg_novel"}}, "ndcg_novel", "ndcg"),
        ({"lists": {"show": "discover"}}, "ndcg", "ndcg"),
        ({"gate": {"metric": "coverage"}}, "coverage", "ndcg"),
    ],
)
def test_the_gates_metric_is_shown_first_and_realised_where_lists_show_what_it_counts(given, headline, realised):
    section = Recommend.model_validate(SECTION.model_dump(exclude_unset=True) | given)
    assert PREDICTIONS.headline(section).name == headline
    assert PREDICTIONS.realised_metric(section).name == realised


def test_where_lists_show_new_items_alone_only_those_are_labels(tmp_path):
    section = Recommend.model_validate(SECTION.model_dump(exclude_unset=True) | DISCOVER)
    day, next_day, before = date(2024, 5, 1), date(2024, 5, 2), date(2024, 4, 1)
    old = [(1, "again", before, None), (1, "morning", day, NOON.replace(hour=11)), (1, "some time", day, None)]
    new = [(1, "again", next_day, None), (1, "morning", next_day, None), (1, "some time", next_day, None)]
    tables = write_purchases(tmp_path, *old, *new, (1, "night", day, NIGHT), (1, "later", next_day, None))
    wanted = pl.DataFrame({"entity": ["1"] * 2, "day": [day] * 2, "at": [NOON, None]}, schema_overrides={"at": MOMENT})
    found = list(PREDICTIONS.find_labels(wanted, section, tables, {}, tmp_path, date(2024, 5, 31)))
    assert found == [("1", NOON, ["later", "night"]), ("1", day, ["later"])]
    rows = pl.DataFrame({"entity": ["1"], "items": [["later", "night"]], "label": [["later", "night"]], "label_at": [NIGHT]})
    assert PREDICTIONS.realised_scores(PREDICTIONS.as_predicted(rows, section), section)["ndcg_novel"] == 1.0


def test_an_order_without_date_that_came_before_the_list_makes_an_item_known(tmp_path):
    features = {name: each for name, each in FEATURES.items() if name != "horizon_days"}
    features |= {"order": "number", "horizon_orders": 1, "days_per_order": 7}
    section = Recommend.model_validate({"question": "?", "features": features} | DISCOVER)
    day = date(2024, 5, 30)
    tables = write_purchases(tmp_path, (1, "new", day, NIGHT), (1, "again", day, NIGHT))
    lines = pl.read_parquet(tmp_path / "lines.parquet")
    old = lines.filter(pl.col("item") == "again").with_columns(day=date(2024, 5, 2))
    pl.concat([lines, old]).write_parquet(tmp_path / "lines.parquet")
    wanted = pl.DataFrame({"entity": ["1"], "day": [date(2024, 5, 1)], "at": [NOON]}, schema_overrides={"at": MOMENT})
    assert list(PREDICTIONS.find_labels(wanted, section, tables, {}, tmp_path, date(2024, 5, 31))) == [("1", NOON, ["new"])]


def test_a_rare_item_makes_a_list_less_popular(tmp_path):
    lines = pl.DataFrame({"user": [1, 2, 3, 4, 1, 2], "item": [*"aaaa", *"bb"], "day": date(2024, 5, 1)})
    lines.write_parquet(tmp_path / "lines.parquet")
    context = PREDICTIONS.context(tmp_path, {"cutoff": "2024-05-01"})
    assert context == {"bits": {"a": 0.0, "b": 1.0}, "rarest": 2.0}
    rows = pl.DataFrame({"items": [["a"], ["b"], ["a", "unknown"], []]}, schema={"items": pl.List(pl.String)})
    assert PREDICTIONS.comparable(rows, None, context)["popularity"].to_list() == [0.0, -1.0, -1.0, None]
