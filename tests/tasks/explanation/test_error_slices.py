"""Groups of rows with larger errors."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from evergreen.tasks.explanation.error_slices import find_error_slices
from evergreen.tasks.problems.regression.kind import Regression
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.rows import Rows


def test_there_is_no_error_slice_where_errors_are_alike_everywhere():
    draw = np.random.default_rng(5)
    features = pd.DataFrame(draw.normal(size=(1200, 4)), columns=list("abcd"))
    target = pl.Series(draw.normal(size=1200))
    rows = row_subset.subset(Rows(pl.Series(np.arange(1200)), None, target, features), np.arange(1200))

    class Flat(Regression):
        def predict(self, model: Any, data: Rows, part: str, section: Any) -> pl.DataFrame:
            return pl.DataFrame({"entity": data.entity, "label": data.target, "prediction": 0.0})

    found: Any = find_error_slices(Flat(), None, rows, None, list("abcd"), 0)  # pyright: ignore[reportArgumentType]
    assert found == []
