"""Groups of rows: what of them can drift."""

from datetime import UTC, datetime

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.problems.clustering.predictions import PREDICTIONS
from evergreen.tasks.problems.prediction_type import Labelled
from tests.contracts import PredictionsContract


class TestSegments(PredictionsContract):
    kind = "clustering"
    rows = pl.DataFrame({"entity": list("abcd"), "at": datetime(2024, 5, 1, tzinfo=UTC), "prediction": [0, 0, 1, 1]})


def test_no_label_judges_a_group():
    assert not isinstance(problems.predictions("clustering"), Labelled)


def test_a_row_far_from_its_group_is_seen():
    rows = TestSegments.rows
    features = pl.DataFrame({"spend": [1.0, 1.1, 100.0, 110.0], "town": list("xyxy")})
    context = PREDICTIONS.context_of_rows(rows, features)
    assert context["features"] == ["spend"]
    near = PREDICTIONS.comparable(rows, features, context)["distance"]
    far = PREDICTIONS.comparable(rows, features.with_columns(spend=pl.col("spend").reverse()), context)["distance"]
    assert near.max() < 0.1 < 1 < far.min()
    unknown = rows.with_columns(prediction=pl.lit(7))
    assert PREDICTIONS.comparable(unknown, features, context)["distance"].null_count() == 4


def test_without_features_the_group_alone_is_compared():
    assert PREDICTIONS.comparable(TestSegments.rows, None, {}).columns == ["group"]
