"""Performance: realised once labels are known, estimated before; a missing score has its reason."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Estimate
from evergreen.monitoring.performance import estimated as estimating
from evergreen.monitoring.performance import measurement, scoring
from evergreen.monitoring.performance import realised as realising
from evergreen.tasks import problems
from evergreen.tasks.config.params import Recommend, Tabular

NOON = datetime(2017, 10, 9, 12, tzinfo=UTC)
MOMENT = pl.Datetime("us", "UTC")
WEEK = timedelta(days=7)
EXPECTED = Estimate(score=0.8, low=0.75, high=0.85, rows=500)
EVENTS = {"entity": "id", "horizon_days": 7, "cutoffs": {"first": "2017-01-01"}, "target": {"table": "t", "function": "any"}}
PLAIN = {"table": "t", "target": "y", "columns": {"x": "number"}}


def section(features: dict[str, Any] = EVENTS, **more: Any) -> Tabular:
    return Tabular.model_validate({"question": "?", "features": features, **more})


def predicted(
    answers: dict[str, Any], label: Any = None, entity: Any = None, known: datetime = NOON, version: int = 1
) -> Predictions:
    """As the ledger gives it. `label`: None where unknown, in whole or in part."""
    rows = len(next(iter(answers.values())))
    labels = pl.Series("label", label if label is not None else [None] * rows)
    frame = pl.DataFrame(
        {
            "id": [f"p{row}" for row in range(rows)], "version": version, "variant": "champion", "at": NOON, "cutoff": None,
            "entity": entity if entity is not None else [str(row) for row in range(rows)], **answers, "label": labels,
            "label_at": [None if value is None else known for value in labels],
        },
        schema_overrides={"at": MOMENT, "label_at": MOMENT, "cutoff": pl.Date, "entity": pl.String},
    )  # fmt: skip
    return Predictions(frame, pl.DataFrame())


def chances(rows: int, seed: int = 0, bent: float = 1.0, known: bool = True) -> Predictions:
    """Probabilities that come true; `bent`: as odds to that power instead, so that they are too sure (above 1)."""
    draw = np.random.default_rng(seed)
    chance = draw.beta(1, 3, rows)
    label = (draw.random(rows) < chance).astype(int)
    odds = (chance / (1 - chance)) ** bent
    said = odds / (1 + odds)
    answers = {"prediction": (said > 0.5).astype(int), "probability_0": 1 - said, "probability_1": said}
    return predicted(answers, label if known else None)


def amounts(rows: int, seed: int = 0, known: bool = True, noise: float = 1.0, high: float = 10.0) -> Predictions:
    """Errors of amounts are as large as `noise` times the amount."""
    draw = np.random.default_rng(seed)
    said = draw.uniform(1, high, rows)
    label = said + draw.normal(0, noise * said)
    return predicted({"prediction": said}, label if known else None)


FEATURES = {"table": "t", "user": "u", "item": "i", "basket": "b", "horizon_days": 7}
LISTS = Recommend.model_validate({"question": "?", "features": FEATURES, "pipeline": {"k": 3}})


def realised(kind: str, found: Predictions, **of: Any) -> Estimate:
    made, asked = problems.predictions(kind), of.pop("section", section())  # pyright: ignore[reportArgumentType]
    return realising.realised(made, asked, scoring.to_scorable(made, asked, found), **of)


def estimated(kind: str, found: Predictions, known: tuple[Predictions, ...] = (), asked: Any = None) -> Estimate:
    made, asked = problems.predictions(kind), asked or section()  # pyright: ignore[reportArgumentType]
    frames = [scoring.to_scorable(made, asked, each) for each in known]
    return estimating.estimated(made, asked, scoring.to_scorable(made, asked, found), frames)


def measure(kind: str, windows: list[Predictions], **more: Any) -> Any:
    ends = [NOON - WEEK * back for back in range(len(windows) - 1, -1, -1)]
    made = problems.predictions(kind)  # pyright: ignore[reportArgumentType]
    return measurement.measure(made, section(), EXPECTED, list(zip(ends, windows, strict=True)), **more)


def test_what_is_realised_is_the_metric_with_an_interval_around_it():
    found = realised("classification", chances(2000))
    assert found.score == pytest.approx(0.78, abs=0.04)
    assert 0.02 < found.high - found.low < 0.08
    assert found.rows == 2000
    assert realised("classification", chances(2000)) == found


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_intervals_of_labels_have_their_coverage(kind):
    """In nine of ten draws or more the interval of 200 rows holds the score of very many."""
    make = chances if kind == "classification" else amounts
    whole = realised(kind, make(40_000, 1)).score
    held = [realised(kind, make(200, seed)) for seed in range(2, 32)]
    assert sum(each.low <= whole <= each.high for each in held) >= 25


def test_intervals_are_over_entities_not_rows():
    one, answers = chances(400), ["prediction", "probability_0", "probability_1"]
    many = pl.concat([one.rows] * 5)
    wide = realised("classification", one)
    same = realised("classification", Predictions(many, pl.DataFrame()))
    narrow = realised("classification", predicted(many.select(answers).to_dict(as_series=False), many["label"]))
    assert (same.high - same.low) == pytest.approx(wide.high - wide.low, rel=0.01)
    assert (narrow.high - narrow.low) < 0.6 * (wide.high - wide.low)


def test_many_rows_have_the_interval_of_all_of_them(monkeypatch):
    all_ = realised("classification", chances(6000))
    monkeypatch.setattr(scoring, "MAX_ROWS", 1000)
    some = realised("classification", chances(6000))
    assert some.score == all_.score
    assert some.high - some.low == pytest.approx(all_.high - all_.low, rel=0.3)


@pytest.mark.parametrize(
    ("kind", "found", "reason"),
    [
        ("classification", chances(0), "no predictions"),
        ("classification", chances(50, known=False), "no label is known yet"),
        ("classification", chances(3), "3 labels are known; a score needs 10"),
        ("classification", predicted(dict.fromkeys(("probability_0", "probability_1"), [0.5] * 20), [0] * 20),
         "all 20 labels are 0, so there is no roc_auc"),
        ("classification", predicted({"prediction": [1] * 20}, [1] * 20), "no predictions"),
        ("regression", predicted({"prediction": [1.0] * 20}, ["much"] * 20), "no label is known yet"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_says_why(kind, found, reason):
    assert realised(kind, found).reason == reason
    assert realised(kind, found).score is None


@pytest.mark.parametrize("labels", [["no", "yes"], ["0", "1"], ["false", "true"]])
@pytest.mark.parametrize("order", [1, -1])
def test_classes_are_found_by_their_names_whatever_their_type_and_order(labels, order):
    base = chances(300)
    names = [f"probability_{label}" for label in labels]
    answers = dict(zip(names, (base.rows["probability_0"], base.rows["probability_1"]), strict=True))
    told = {"no": ["no", "yes"], "0": [0.0, 1.0], "false": [False, True]}[labels[0]]
    named = predicted({name: answers[name] for name in names[::order]}, [told[each] for each in base.rows["label"]])
    plain = section({**PLAIN, "positive_class": labels[1]})
    assert realised("classification", named, section=plain).score == realised("classification", base).score


def test_the_threshold_is_what_the_answers_show():
    rows = predicted(
        {"prediction": [1, 1, 0, 0], "probability_0": [0.5, 0.9, 0.95, 0.99], "probability_1": [0.5, 0.1, 0.05, 0.01]},
        [1, 0, 0, 0],
    )
    kind = problems.predictions("classification")
    assert kind.score(scoring.to_scorable(kind, section(), rows), section())["precision"] == 0.5


def test_several_classes_are_scored_and_one_that_was_never_said_too():
    draw = np.random.default_rng(0)
    said = draw.dirichlet([1, 1, 1], 600)
    label = [str("abc"[draw.choice(3, p=row)]) for row in said]
    answers = {f"probability_{name}": said[:, place] for place, name in enumerate("abc")}
    rows = predicted(answers, label)
    found = realised("classification", rows, section=section(PLAIN))
    assert found.score == pytest.approx(0.75, abs=0.05)
    assert estimated("classification", rows, asked=section(PLAIN)).score == pytest.approx(found.score, abs=0.03)
    assert realised("classification", predicted(answers, ["d", *label[1:]]), section=section(PLAIN)).score is not None


def test_probabilities_that_come_true_foretell_the_score():
    blind = chances(3000, known=False)
    found, actual = estimated("classification", blind), realised("classification", chances(3000))
    assert found.score == pytest.approx(actual.score, abs=0.02)
    assert found.low < actual.score < found.high
    assert blind.rows["label"].null_count() == 3000


def test_probabilities_that_are_too_sure_are_straightened_by_what_became_of_earlier_ones():
    blind, actual = chances(3000, bent=2.5, known=False), realised("classification", chances(3000, bent=2.5))
    naive, found = estimated("classification", blind), estimated("classification", blind, (chances(2000, seed=5, bent=2.5),))
    assert abs(naive.score - actual.score) > 0.1
    assert found.score == pytest.approx(actual.score, abs=0.02)


def test_errors_of_earlier_rows_foretell_those_of_amounts():
    past, actual = amounts(8000, seed=5), realised("regression", amounts(3000))
    found = estimated("regression", amounts(3000, known=False), (past,))
    assert found.score == pytest.approx(actual.score, rel=0.06)
    assert found.low < actual.score < found.high


def test_errors_grow_where_predictions_move_to_where_errors_are_larger():
    past = amounts(4000, seed=5)
    low, high = (estimated("regression", amounts(2000, known=False, high=high), (past,)).score for high in (3, 10))
    assert low == pytest.approx(realised("regression", amounts(2000, high=3)).score, rel=0.15)
    assert high > 2 * low


def test_an_estimate_cannot_see_that_the_same_rows_end_otherwise():
    """Its blind spot: what goes in is the same, what comes of it is not."""
    past = amounts(2000, seed=5)
    found, actual = estimated("regression", amounts(2000, known=False), (past,)), realised("regression", amounts(2000, noise=3))
    assert found.high < actual.low


@pytest.mark.parametrize(
    ("kind", "found", "reason"),
    [
        ("classification", chances(0), "no predictions"),
        ("classification", chances(3), "3 predictions; a score needs 10"),
        ("classification", predicted({"probability_0": [1.0] * 90, "probability_1": [0.0] * 90}),
         "one class is too unlikely on these 90 rows to expect a roc_auc"),
        ("regression", amounts(50), "errors of 0 earlier predictions are known; an estimate needs 30"),
    ],
)  # fmt: skip
def test_what_cannot_be_foretold_says_why(kind, found, reason):
    assert estimated(kind, found).reason == reason
    assert estimated(kind, found).score is None


def test_the_newest_window_whose_labels_are_known_is_realised():
    half = chances(400, seed=3)
    labels = [value if row < 150 else None for row, value in enumerate(half.rows["label"])]
    partly = Predictions(half.rows.with_columns(label=pl.Series(labels)), pl.DataFrame())
    found = measure("classification", [chances(300, 1), chances(300, 2), partly, chances(300, 4, known=False)])
    assert found.realised_until == NOON - 2 * WEEK
    assert found.realised == realised("classification", chances(300, 2))
    assert found.estimated.score is not None
    assert found.matured == 0
    assert (found.metric, found.expected) == ("roc_auc", EXPECTED)


def test_the_usual_share_of_labels_is_enough():
    def tenth(seed: int) -> Predictions:
        rows = chances(600, seed).rows
        return Predictions(
            rows.with_columns(pl.when(pl.int_range(pl.len()) % 10 == 0).then("label").alias("label")), pl.DataFrame()
        )

    found = measure("classification", [tenth(1), tenth(2), tenth(3)])
    assert found.realised_until == NOON
    assert found.matured == 0.1


def test_without_labels_there_is_an_estimate_and_a_reason():
    found = measure("classification", [chances(300, known=False)])
    assert (found.realised.reason, found.realised_until) == ("no label is known yet", None)
    assert found.newest == found.estimated
    nothing = measure("classification", [chances(0)])
    assert (nothing.realised.reason, nothing.estimated.reason, nothing.matured) == ("no predictions", "no predictions", 0)


def test_a_loss_is_how_much_worse_than_expected_it_is():
    loss = measure("classification", [chances(3000)]).degradation()
    assert loss
    assert loss[0] == pytest.approx(0.8 - measure("classification", [chances(3000)]).realised.score)
    assert loss[1] < loss[0]


def test_groups_have_no_performance():
    assert measure("clustering", [predicted({"prediction": [1, 2]})]) is None
    assert measurement.cohort_scorer(problems.predictions("clustering"), section()) is None


def test_lists_are_scored_by_what_was_bought_and_never_foretold():
    asked = LISTS
    items = [[1, 2, 3]] * 12
    label = [[1], [7], [], *[[2, 3, 9, 8]] * 9]
    found = realised("recommendation", predicted({"items": items}, label), section=asked)
    assert found.more["hit_rate"].score == pytest.approx(10 / 11)
    two = (1 / np.log2(3) + 1 / 2) / (1 + 1 / np.log2(3) + 1 / 2)
    assert found.score == pytest.approx((1 + 0 + 9 * two) / 11)
    assert realised("recommendation", predicted({"items": items}, [["1"]] * 12), section=asked).score == 1
    nobody = realised("recommendation", predicted({"items": items}, [[]] * 12), section=asked)
    assert nobody.reason == "none of the 12 bought anything, so there is no ndcg"
    wrong = realised("recommendation", predicted({"items": items}, [[7]] * 12), section=asked)
    assert wrong.score == 0
    kind = problems.predictions("recommendation")
    rows = scoring.to_scorable(kind, asked, predicted({"items": items}, label))
    assert estimating.estimated(kind, asked, rows).reason == "lists do not say how likely their items are bought"


def lists_of(users: int, seed: int, lists: int = 1) -> pl.DataFrame:
    """Rows of `as_predicted`: users differ in how good their lists are, in how many they ask for (0 to 2 * lists) and in their
    items; one in three buys nothing."""
    draw = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), draw.integers(1, 2 * lists, users)) if lists > 1 else np.arange(users)
    good = draw.beta(2, 4, users)[user]
    score = np.where(draw.random(len(user)) < good, draw.random(len(user)), 0.0)
    bought = (draw.random(users) < 2 / 3)[user]
    first = draw.geometric(0.03, (users, 5))[user]
    return pl.DataFrame(
        {
            "entity": [f"u{each}" for each in user],
            "label": [["x"]] * len(user),
            "prediction": pl.Series(np.where(bought, score, np.nan), nan_to_null=True),
            "hit_rate": pl.Series(np.where(bought, score > 0, np.nan), nan_to_null=True),
            "items": [[str(item) for item in row] for row in (first + draw.integers(0, 3, first.shape)).tolist()],
        }
    )


def test_a_user_who_asks_often_counts_once_and_coverage_is_that_of_so_many_users():
    one = lists_of(200, 1)
    robot = pl.concat([one, *[one.filter(pl.col("entity") == "u7").with_columns(pl.lit(1.0).alias("prediction"))] * 500])
    kind = problems.predictions("recommendation")
    found, with_robot = (realising.realised(kind, LISTS, each) for each in (one, robot))
    assert with_robot.score == pytest.approx(found.score, abs=0.01)
    assert with_robot.more["coverage_50"] == found.more["coverage_50"]
    draw = np.random.default_rng(0)
    counts = [one[draw.permutation(200)[:50]]["items"].explode().n_unique() for _ in range(400)]
    assert found.more["coverage_50"].score == pytest.approx(np.mean(counts), abs=1.0)
    assert found.describe("ndcg").startswith(f"ndcg {found.score:.4g} [{found.low:.4g}, {found.high:.4g}], hit_rate ")
    few = realising.realised(kind, LISTS, one.head(60))
    assert (few.more["coverage_50"].score, few.more["coverage_50"].low) == (None, None)
    assert few.more["hit_rate"].low is not None


@pytest.mark.parametrize("lists", [1, 4])
def test_intervals_of_realised_lists_are_over_users_and_have_their_coverage(lists):
    kind = problems.predictions("recommendation")
    whole = kind.realised_scores(lists_of(20_000, 1, lists), LISTS)
    found = [realising.realised(kind, LISTS, lists_of(150, seed, lists)) for seed in range(2, 32)]
    for name, true in whole.items():
        held = [each if name == "ndcg" else each.more[name] for each in found]
        assert sum(each.low <= true <= each.high for each in held) >= 26, name


def test_cohorts_are_estimated_from_earlier_ones_by_labels_known_then():
    judge = measurement.cohort_scorer(problems.predictions("regression"), section())
    assert judge
    late = amounts(500, seed=1)
    unknown = Predictions(late.rows.with_columns(label_at=pl.lit(NOON + 2 * WEEK)), pl.DataFrame())
    assert (
        judge.estimated(amounts(500), NOON, [unknown]).reason
        == "errors of 0 earlier predictions are known; an estimate needs 30"
    )
    assert judge.estimated(unknown, NOON, [amounts(500)]).score == pytest.approx(
        judge.realised(amounts(500, seed=2)).score, rel=0.2
    )


@pytest.mark.parametrize(
    ("kind", "labels", "readable"),
    [
        ("regression", [*map(float, range(1, 21)), "[1.5]", "much", "true"], 20),
        ("classification", [*["0", "1"] * 10, "[1]", "perhaps", '{"a": 1}'], 20),
    ],
)
def test_labels_that_cannot_be_read_are_left_out_counted_and_named_and_the_others_give_the_score(
    kind: str, labels: list[Any], readable: int
):
    """As the ledger reads a week with labels of several types: as text."""
    rows = len(labels)
    chance = np.linspace(0.1, 0.9, rows)
    answers = {"prediction": np.arange(1.0, rows + 1)} | (
        {"probability_0": 1 - chance, "probability_1": chance} if kind == "classification" else {}
    )
    mixed = predicted(answers, [str(each) for each in labels])
    alone = Predictions(mixed.rows.head(readable), pl.DataFrame())
    found = measure(kind, [mixed]).realised
    assert (found.score, found.rows) == (realised(kind, alone).score, readable)
    assert found.left_out == f"3 of 23 labels are left out, for they are none of {kind} (predictions p20, p21, p22)"
    assert measure(kind, [alone]).realised.left_out is None


def test_lists_alone_as_labels_of_a_week_are_no_score_and_no_error():
    found = measure("regression", [predicted({"prediction": [1.0] * 12}, [[1.0]] * 12)]).realised
    assert found.score is None
    assert found.left_out.startswith("12 of 12 labels are left out")


def test_an_item_beside_lists_of_items_is_read():
    kind = problems.predictions("recommendation")
    rows = pl.DataFrame({"label": ['["a", "b"]', "c", None]})
    assert kind.readable(rows).to_list() == [["a", "b"], ["c"], None]  # pyright: ignore[reportAttributeAccessIssue]
