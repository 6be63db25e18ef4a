"""Purchases that the server received join those of the tables, each once, and move the last known day if they are complete."""

from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest

from evergreen.tasks.problems.recommender.received_purchases import RECEIVED
from tests.tasks.problems.recommender.test_shop_shapes import AS_OF, KIND, section, table

USERS = 20


def week(back: int) -> date:
    return AS_OF - timedelta(days=7 * back)


@pytest.fixture(scope="module")
def lines() -> pl.DataFrame:
    """Each of 20 users buys once a week, for ten weeks up to AS_OF."""
    rows = [(f"u{user}", f"u{user} {back}", f"i{user % 7}", 167.5 - 7 * back) for user in range(USERS) for back in range(10)]
    return table(rows)


def received(*events: tuple[str, str, str, date]) -> pl.LazyFrame:
    schema = {"user": pl.String, "basket": pl.String, "item": pl.String, "day": pl.Date, "place": pl.String}
    return pl.LazyFrame([(*each, None) for each in events], schema=schema, orient="row")


def build(lines: pl.DataFrame, events: pl.LazyFrame, **features: Any) -> tuple[pl.DataFrame, date]:
    found = KIND.build({"lines": lines.lazy(), RECEIVED: events}, {"lines": "at"}, section(**features), AS_OF)
    return found["lines"], found["known"].item()


def test_a_purchase_that_the_tables_hold_too_counts_once(lines):
    before, _ = build(lines, received())
    after, day = build(lines, received(("u3", "u3 2", "i3", week(2)), ("u3", "late", "i5", week(1))))
    assert (after.height, day) == (before.height + 1, AS_OF)
    assert after.filter(pl.col("basket") == "late").rows() == [("u3", "late", "i5", week(1))]


def test_purchases_of_as_many_users_as_usual_move_the_last_known_day(lines):
    events = received(*((f"u{user}", f"new {user}", "i1", AS_OF + timedelta(days=1 + user % 7)) for user in range(12)))
    found, day = build(lines, events)
    assert day == AS_OF + timedelta(days=7)
    assert found.filter(pl.col("day") > AS_OF).height == 12


def test_a_few_purchases_wait_for_the_tables(lines, caplog):
    found, day = build(lines, received(("u1", "new", "i1", AS_OF + timedelta(days=5)), ("u1", "old", "i2", AS_OF)))
    assert day == AS_OF
    assert set(found.filter(pl.col("basket").is_in(["new", "old"]))["basket"]) == {"old"}
    assert "1 purchases that the server received after 2024-06-16 wait until the tables reach their days" in caplog.text


def test_new_users_and_items_are_learned_of_and_excluded_items_are_not(lines):
    items = pl.LazyFrame({"what": ["i1", "fuel", "x9"], "kind": ["a", "b", "a"]})
    events = received(("new", "1", "x9", AS_OF), ("new", "1", "fuel", AS_OF))
    tables = {"lines": lines.lazy(), "items": items, RECEIVED: events}
    known = section(items="items", exclude={"kind": ["b"]})
    found = KIND.build(tables, {"lines": "at"}, known, AS_OF)["lines"]
    assert found.filter(pl.col("user") == "new")["item"].to_list() == ["x9"]


def test_last_lines_take_received_ones_as_the_newest(lines):
    found, _ = build(lines, received(("u1", "late", "i6", AS_OF)), judge_by="last_lines")
    mine = found.filter(pl.col("user") == "u1", pl.col("day") == AS_OF).sort("step")
    assert mine["basket"].to_list() == ["u1 0", "late"]
