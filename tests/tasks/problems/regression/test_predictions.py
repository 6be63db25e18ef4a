"""Predicted numbers, and what labels say of them."""

from datetime import UTC, datetime

import polars as pl
import pytest

from evergreen.tasks.config.params import Tabular
from evergreen.tasks.problems.regression.predictions import PREDICTIONS
from tests.contracts import LabelledContract

SECTION = Tabular.model_validate(
    {"question": "How much?", "features": {"entity": "id", "horizon_days": 28, "cutoffs": {"first": "2024-01-01"}}}
)


class TestQuantities(LabelledContract):
    kind = "regression"
    section = SECTION
    rows = pl.DataFrame({"entity": list("abc"), "at": datetime(2024, 5, 1, tzinfo=UTC), "prediction": [1.0, 5.0, 2.0]})
    labels = pl.Series([1.0, 9.0, 2.5])
    right, wrong = 0, 1


def test_a_loss_is_the_squared_error_or_the_absolute_one_where_the_gate_compares_that():
    rows, labels = pl.DataFrame({"prediction": [1.0, 5.0]}), pl.Series([3, 5])
    assert PREDICTIONS.losses(rows, labels, None).tolist() == [4.0, 0.0]
    assert PREDICTIONS.losses(rows, labels, "mae").tolist() == [2.0, 0.0]


@pytest.mark.parametrize(("given", "value"), [("2.50", 2.5), ("-3", -3), (4, 4)])
def test_a_label_is_a_number(given, value):
    assert PREDICTIONS.parse_label(given) == value


@pytest.mark.parametrize("given", ["much", float("inf"), [1]])
def test_what_is_no_number_is_no_label(given):
    with pytest.raises(ValueError, match=r"^value = .*: is no finite number$"):
        PREDICTIONS.parse_label(given)


def test_without_enough_earlier_errors_no_label_is_drawn():
    frame = pl.DataFrame({"entity": ["a"], "label": [1.0], "prediction": [1.0]})
    said = "errors of 1 earlier predictions are known; an estimate needs 30"
    assert PREDICTIONS.draw_labels(frame, [frame], 1, 0) == said
