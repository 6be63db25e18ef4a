"""Ranked lists, and what purchases say of them."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from evergreen.tasks.config.params import Recommend
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.problems.recommendation.predictions import PREDICTIONS
from tests.contracts import LabelledContract

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


def test_a_rare_item_makes_a_list_less_popular(tmp_path):
    lines = pl.DataFrame({"user": [1, 2, 3, 4, 1, 2], "item": [*"aaaa", *"bb"], "day": date(2024, 5, 1)})
    lines.write_parquet(tmp_path / "lines.parquet")
    context = PREDICTIONS.context(tmp_path, {"cutoff": "2024-05-01"})
    assert context == {"bits": {"a": 0.0, "b": 1.0}, "rarest": 2.0}
    rows = pl.DataFrame({"items": [["a"], ["b"], ["a", "unknown"], []]}, schema={"items": pl.List(pl.String)})
    assert PREDICTIONS.comparable(rows, None, context)["popularity"].to_list() == [0.0, -1.0, -1.0, None]
