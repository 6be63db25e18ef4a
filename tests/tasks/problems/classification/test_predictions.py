"""Predicted probabilities, and what labels say of them."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.problems.classification.predictions import PREDICTIONS
from tests.contracts import LabelledContract
from tests.tasks.problems.classification.test_kind import SECTION


class TestClassProbabilities(LabelledContract):
    kind = "classification"
    section = SECTION
    rows = pl.DataFrame(
        {"entity": list("abcd"), "at": datetime(2024, 5, 1, tzinfo=UTC), "probability_0": [0.9, 0.2, 0.6, 0.4]}
    ).with_columns(probability_1=1 - pl.col("probability_0"))
    labels = pl.Series([0, 1, 1, 0])
    right, wrong = 0, 2


def test_a_loss_is_the_sum_of_the_squared_errors_of_all_classes():
    rows = pl.DataFrame({"probability_no": [0.9, 0.2, 0.5], "probability_yes": [0.1, 0.8, 0.5]})
    assert PREDICTIONS.losses(rows, pl.Series(["no", "no", "maybe"]), None) == pytest.approx([0.02, 1.28, 1.5])


@pytest.mark.parametrize(("given", "value"), [("1", 1), ("01", "01"), (True, True), ("no", "no")])
def test_a_label_is_the_name_of_a_class(given, value):
    assert PREDICTIONS.parse_label(given) == value


def test_of_two_classes_one_probability_is_compared_and_of_several_all():
    two = pl.DataFrame({"probability_0": [0.1], "probability_1": [0.9]})
    assert PREDICTIONS.comparable(two, None, {}).columns == ["probability_1"]
    three = pl.DataFrame({f"probability_{name}": [1 / 3] for name in "bac"})
    assert PREDICTIONS.comparable(three, None, {}).columns == [f"probability_{name}" for name in "abc"]


def test_labels_of_one_class_are_compared_as_one_whatever_their_type():
    assert PREDICTIONS.comparable_labels(pl.Series([1.0, 0.0]))["label"].to_list() == ["1", "0"]
    assert PREDICTIONS.comparable_labels(pl.Series(["1.0", "1"]))["label"].to_list() == ["1", "1"]


def test_drawn_labels_come_about_as_often_as_the_probabilities_say_and_without_known_labels_vary():
    chance = np.full(4000, 0.2)
    frame = pl.DataFrame({"entity": range(4000), "label": pl.Series([None] * 4000, dtype=pl.Float64)}).with_columns(
        probability_0=1 - chance, probability_1=chance, threshold=pl.lit(None, pl.Float64)
    )
    shares = [part["label"].mean() for part in PREDICTIONS.draw_labels(frame, [], 100, 0)]
    assert np.median(shares) == pytest.approx(0.2, abs=0.03)
    assert np.std(shares) > 0.03
