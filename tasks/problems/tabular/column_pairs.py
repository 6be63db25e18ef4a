"""Differences and ratios of two columns of numbers, for models that split one column at a time.

Small trees say which: two columns that a path splits one after the other may matter by what lies between them. Of the
differences and ratios of the strongest such pairs those stay that other small trees, which have all columns, gain from most.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin  # pyright: ignore[reportMissingTypeStubs]

from evergreen.model_types import stored_type

MOST_ROWS = 5_000
"""The trees learn from so many rows, drawn at random."""
CANDIDATES = 15
"""Pairs whose difference and ratio are tried."""
LEAST_SHARE = 0.03
"""Of the gain of all columns: a difference or ratio with less stays out, except the best."""
TREES: dict[str, Any] = {
    "n_estimators": 40,
    "num_leaves": 15,
    "learning_rate": 0.15,
    "min_child_samples": 10,
    "n_jobs": 1,
    "verbosity": -1,
    "deterministic": True,
    "force_row_wise": True,
}


@stored_type
class ColumnPairs(TransformerMixin, BaseEstimator):
    """At most `count` differences and ratios of two of at least two columns of numbers; a ratio to 0 is missing.

    Fitted: `first_`, `second_`, places of the columns; `ratio_`, whether each is a ratio; `owners_`, output x column, the
    shares of the columns in each output.
    """

    def __init__(self, count: int = 8, classes: bool = False, random_state: int = 0) -> None:
        self.count = count
        self.classes = classes
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> "ColumnPairs":
        rows = np.random.default_rng(self.random_state).permutation(len(X))[:MOST_ROWS]
        columns, target = np.asarray(X, dtype=float)[rows], np.asarray(y)[rows]
        first, second = np.transpose([*_pairs(self._trees(columns, target)), (0, 1)])[:, :CANDIDATES]
        self.first_, self.second_ = np.tile(first, 2), np.tile(second, 2)
        self.ratio_ = np.repeat([False, True], len(first))
        gains = self._trees(np.hstack([columns, self._made(columns)]), target).feature_importance("gain")
        made = gains[columns.shape[1] :]
        best = np.argsort(-made, kind="stable")[: self.count]
        kept = np.sort(best[(made[best] > LEAST_SHARE * gains.sum()) | (np.arange(len(best)) == 0)])
        self.first_, self.second_, self.ratio_ = self.first_[kept], self.second_[kept], self.ratio_[kept]
        one = np.eye(columns.shape[1])
        self.owners_ = (one[self.first_] + one[self.second_]) / 2
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        return self._made(np.asarray(X, dtype=float))

    def _made(self, columns: np.ndarray) -> np.ndarray:
        one, two = columns[:, self.first_], columns[:, self.second_]
        ratios = np.divide(one, two, out=np.full(one.shape, np.nan), where=two != 0)
        return np.where(self.ratio_, ratios, one - two)

    def _trees(self, columns: np.ndarray, target: np.ndarray) -> Any:
        """Small trees, boosted."""
        from lightgbm import LGBMClassifier, LGBMRegressor

        kind: Any = LGBMClassifier if self.classes else LGBMRegressor
        return kind(**TREES, random_state=self.random_state).fit(columns, target).booster_


def _pairs(trees: Any) -> list[tuple[int, int]]:
    """Two columns that a path splits one after the other, those with the largest gain first."""
    gains: dict[tuple[int, int], float] = {}
    for tree in trees.dump_model()["tree_info"]:
        for upper, lower, gain in _steps(tree["tree_structure"]):
            pair = (min(upper, lower), max(upper, lower))
            gains[pair] = gains.get(pair, 0.0) + gain
    return sorted(gains, key=lambda pair: (-gains[pair], pair))


def _steps(node: dict[str, Any]) -> Iterator[tuple[int, int, float]]:
    """The columns of each split and of a split right below it, where they differ, and the gain of the lower one."""
    for child in (node.get("left_child", {}), node.get("right_child", {})):
        if "split_feature" in child:
            if child["split_feature"] != node["split_feature"]:
                yield node["split_feature"], child["split_feature"], child["split_gain"]
            yield from _steps(child)
