"""A shop that numbers its orders and knows no dates: the newest orders of all lie side by side, and one order is a step."""

import json
from datetime import date, timedelta
from importlib import import_module
from itertools import pairwise
from typing import Any

import polars as pl
import pytest

from evergreen.tasks import evaluate, features, ingest, train, tune, validate
from evergreen.tasks.__main__ import STEPS
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Interactions, Recommend
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems import splits
from evergreen.tasks.problems.recommendation.kind import KIND
from evergreen.tasks.problems.recommender.model_ladder import MODELS
from tests import ordered_shop

AS_OF = date(2024, 3, 31)
LINES = pl.DataFrame(
    {
        "who": ["ann", "ann", "ann", "bob", "bob", "bob"],
        "what": ["tea", "tea", "jam", "tea", "ham", "ham"],
        "till": [11, 12, 15, 13, 14, 14],
        "number": [1, 2, 7, 1, 2, 2],
    }
)


def section(**features: Any) -> Recommend:
    named = {"table": "lines", "user": "who", "item": "what", "basket": "till", "order": "number", "min_users": 1}
    return Recommend.model_validate({"question": "What next?", "features": named | features})


def built(lines: pl.DataFrame = LINES, time: str | None = None, **features: Any) -> dict[str, pl.DataFrame]:
    return KIND.build({"lines": lines.lazy()}, {"lines": time}, section(**features), AS_OF)


def back(frames: dict[str, pl.DataFrame]) -> dict[tuple[str, int], int]:
    """(user, basket) -> days before the last known one."""
    lines = frames["lines"].with_columns(ago=(pl.lit(AS_OF) - pl.col("day")).dt.total_days())
    return {(user, basket): ago for user, basket, ago in lines.select("user", "basket", "ago").iter_rows()}


def test_the_newest_order_of_every_user_is_of_the_last_known_day_and_each_step_back_is_one_order():
    steps = {("ann", 15): 0, ("ann", 12): 7, ("ann", 11): 14, ("bob", 14): 0, ("bob", 13): 7}
    assert back(built()) == steps
    assert back(built(days_per_order=2)) == {key: days // 7 * 2 for key, days in steps.items()}


def test_in_one_sequence_for_the_shop_an_average_user_orders_once_per_step():
    found = back(built(order="till", order_scope="shop"))
    assert found == {("ann", 15): 0, ("bob", 14): 3, ("bob", 13): 7, ("ann", 12): 10, ("ann", 11): 14}


def test_thirty_thousand_orders_of_one_user_stay_in_the_calendar():
    many = pl.DataFrame({"who": "ann", "what": "tea", "till": range(30_000), "number": range(30_000)})
    lines = built(many)["lines"]
    assert lines.height == 30_000
    assert lines["day"].min() == AS_OF - timedelta(days=99_000)


@pytest.mark.parametrize(
    ("features", "time", "message"),
    [
        ({"order": "numbre"}, None, r"features\.order = numbre: .*did you mean number"),
        (
            {"order": "what"},
            None,
            r"features\.order = what: holds String, not numbers; declare ingest\.lines\.types: \{what: int",
        ),
        ({}, "at", r"features\.order = number: lines has times too \(ingest\.lines\.time = at\); remove one"),
    ],
)
def test_a_column_that_cannot_number_orders_is_refused(features, time, message):
    with pytest.raises(ParamsError, match=message):
        built(time=time, **features)


def test_the_horizon_is_counted_in_orders():
    given = {"table": "lines", "user": "who", "item": "what", "basket": "till", "order": "number"}
    assert Interactions.model_validate(given).horizon_days == 7
    two = Interactions.model_validate({**given, "horizon_orders": 2, "days_per_order": 10})
    assert two.horizon_days == 20
    assert Interactions.model_validate(two.model_dump()) == two
    with pytest.raises(ValueError, match="give horizon_orders instead of horizon_days"):
        Interactions.model_validate({**given, "horizon_days": 28})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A project of 200 customers, from the file to the evaluation."""
    place = Layout(ordered_shop.project(tmp_path_factory.mktemp("orders")))
    known = loading.load(place.params)
    for step in (ingest, validate, features, tune, train, evaluate):
        step.run(known, "next" if STEPS[step.__name__.rpartition(".")[2]] else None, place)
    return place


@pytest.mark.slow
def test_the_test_windows_are_the_last_orders_of_every_customer(trained):
    data = KIND.load(trained.features("next"), section())
    cutoffs = KIND.cutoffs(data)
    assert all(later - earlier == timedelta(days=7) for earlier, later in pairwise(cutoffs))
    last = splits.split_by_time(cutoffs, 7, 2)[-1].test
    lines = ordered_shop.make().with_columns(last=pl.col("order_number").max().over("customer"))
    newest = lines.filter(pl.col("order_number") == pl.col("last"))
    assert len(data.targets(last).users) == lines["customer"].n_unique()
    assert len(data.targets(last).pairs) == newest.select("customer", "product").n_unique()


@pytest.mark.slow
def test_the_chosen_model_is_clearly_better_than_popularity_and_than_own_frequency(trained):
    told = json.loads((trained.report("next") / "evaluation" / "evaluation.json").read_text())
    score = {each["name"]: each for each in told["metrics"]}
    assert score["ndcg"]["score"] > score["ndcg"]["baseline"] + 0.2
    assert score["ndcg_novel"]["score"] > score["ndcg_novel"]["baseline"] + 0.1
    best = json.loads((trained.tuning("next") / "best.json").read_text())
    ladder = {each["model"]: each for each in best["ladder"]}
    assert list(ladder) == list(MODELS)
    assert {each["units"] for each in ladder.values()} == {200}
    assert told["model"] == next(name for name, each in ladder.items() if each["behind"] <= each["error"])
    assert ladder[told["model"]]["score"] >= ladder["frequency"]["score"]
    assert ladder["frequency"]["score"] > ladder["popularity"]["score"] + 0.1


@pytest.mark.slow
def test_the_answer_is_a_list_of_the_customers_taste(trained):
    known = loading.load(trained.params).section("next")
    data = KIND.load(trained.features("next"), known)
    model = import_module("evergreen.tasks.model_files.skops_models").load(trained.model("next") / "model.skops")
    asked = pl.DataFrame({"customer": ["customer 0004", "customer 0001"]})
    answer = KIND.predict_new(model, data, asked, known)
    assert answer["customer"].to_list() == ["customer 0004"] * 10 + ["customer 0001"] * 10
    groups = [ordered_shop.group(product) for product in answer["product"]]
    assert sum(each in (4, -1) for each in groups[:10]) >= 9
    assert sum(each in (1, -1) for each in groups[10:]) >= 9
