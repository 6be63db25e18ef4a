"""Within a search, what comes before the model is learned once per fold: trials that prepare alike share the matrices.

Without `reusing` around it nothing here has any effect, and no saved model holds any of it.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin, clone


class Matrices:
    """What was learned and transformed, newest last; the oldest is forgotten where all take more than `most_mb`."""

    def __init__(self, most_mb: float) -> None:
        self.most = most_mb * 2**20
        self.kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, key: str) -> Any:
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def put(self, key: str, value: Any, size: int) -> None:
        if size > self.most / 2:
            return
        self.kept[key] = (value, size)
        while sum(each for _, each in self.kept.values()) > self.most:
            self.kept.popitem(last=False)


_here: ContextVar[Matrices | None] = ContextVar("matrices", default=None)


@contextmanager
def reusing(matrices: Matrices) -> Iterator[None]:
    """Let the models assembled in the block share `matrices`. All rows in it must come from one table, index and all."""
    token = _here.set(matrices)
    try:
        yield
    finally:
        _here.reset(token)


def once(steps: Any) -> Any:
    """`steps`, or within `reusing` the same steps in a form that learns once from the same rows."""
    return steps if _here.get() is None else Once(steps)


class Once(TransformerMixin, BaseEstimator):
    """`steps`, fitted and applied at most once to the same rows. Rows are known by their places in the table."""

    def __init__(self, steps: Any = None) -> None:
        self.steps = steps

    def fit(self, X: pd.DataFrame, y: Any = None) -> "Once":
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X: pd.DataFrame, y: Any = None, **given: Any) -> np.ndarray:
        """As that of the steps: a target encoder gives its training rows other values than `transform` would."""
        self.key_ = _hash((self.steps, _mark(X), None if y is None else np.asarray(y)))
        matrices = _here.get()
        found = matrices.get(self.key_) if matrices else None
        if found is None:
            steps: Any = clone(self.steps)
            found = (steps, _frozen(steps.fit_transform(X, y)))
            if matrices:
                matrices.put(self.key_, found, found[1].nbytes)
        self.steps_, matrix = found
        return matrix

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        matrices = _here.get()
        if matrices is None:
            return self.steps_.transform(X)
        key = f"{self.key_} {_hash(_mark(X))}"
        found = matrices.get(key)
        if found is None:
            found = _frozen(self.steps_.transform(X))
            matrices.put(key, found, found.nbytes)
        return found


def _hash(value: Any) -> str:
    return str(joblib.hash(value))


def _mark(X: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Key of these rows of the table."""
    return X.index.to_numpy(), tuple(map(str, X.columns))


def _frozen(matrix: Any) -> np.ndarray:
    """Read-only, so that no model changes what the next one gets."""
    matrix = np.asarray(matrix)
    matrix.flags.writeable = False
    return matrix
