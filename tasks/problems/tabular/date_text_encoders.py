"""Dates and words as numbers: the steps that read such columns of a plain table."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.validation import check_is_fitted

from evergreen.model_types import stored_type

DAY = np.timedelta64(1, "D")
MOST_PAIRS = 6
"""Days between two dates are a feature of their own for so many pairs of columns."""
DIGITS = 6
"""Decimals of a text's place: the last digits of a sum depend on its order, and no split of a tree may hang on them."""
MOST_TEXTS = 50_000
"""The words are learned from at most so many rows."""


@stored_type
class Dates(TransformerMixin, BaseEstimator):
    """Columns of dates as numbers; a missing date is missing in all of them.

    Per column: days since the earliest in training, year, month, day of the month, day of the week (Monday is 0), hour where
    times are given; then the days between two columns, for the first MOST_PAIRS pairs.
    """

    def fit(self, X: pd.DataFrame, y: Any = None) -> "Dates":
        days = [_days(X[name]) for name in X]
        self.earliest_ = [0.0 if np.isnan(each).all() else float(np.nanmin(each)) for each in days]
        self.hours_ = [bool((each % 1 > 0).any()) for each in days]
        self.pairs_ = list(itertools.combinations(range(X.shape[1]), 2))[:MOST_PAIRS]
        one = np.eye(X.shape[1])
        each = np.repeat(one, [5 + hours for hours in self.hours_], axis=0)
        self.owners_ = np.vstack([each, *((one[[first]] + one[[second]]) / 2 for first, second in self.pairs_)])
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        days = [_days(X[name]) for name in X]
        found = []
        for name, since, first, hours in zip(X, days, self.earliest_, self.hours_, strict=True):
            at = pd.to_datetime(X[name]).dt
            found += [since - first, at.year, at.month, at.day, at.dayofweek, *([at.hour] if hours else [])]
        found += [days[second] - days[first] for first, second in self.pairs_]
        return np.column_stack([np.asarray(each, dtype=float) for each in found])


def _days(column: Any) -> np.ndarray:
    """Days since 1970, with fractions; NaN where missing."""
    moments = pd.to_datetime(column).to_numpy().astype("datetime64[us]")
    return np.where(np.isnat(moments), np.nan, (moments - np.datetime64(0, "us")) / DAY)


@stored_type
class Words(TransformerMixin, BaseEstimator):
    """Columns of words as numbers: per column how long it is, and where it lies in a space of few dimensions.

    The space: words and pairs of neighbours by how telling they are (TF-IDF), `words` of them at most, projected to
    `components` dimensions (latent semantic analysis). A missing text has no words.
    """

    def __init__(self, words: int = 2000, components: int = 20, random_state: int = 0) -> None:
        self.words = words
        self.components = components
        self.random_state = random_state

    def fit(self, X: pd.DataFrame, y: Any = None) -> "Words":
        self.spaces_ = [self._space(_texts(X[name])) for name in X]
        widths = [2 + (space[1].components_.shape[0] if space else 0) for space in self.spaces_]
        self.owners_ = np.repeat(np.eye(X.shape[1]), widths, axis=0)
        return self

    def _space(self, texts: list[str]) -> list[Any]:
        """Vectorizer and projection; empty where there are too few words."""
        texts = texts[:: max(1, len(texts) // MOST_TEXTS)]
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), min_df=2, max_features=self.words, sublinear_tf=True, strip_accents="unicode"
        )
        try:
            weights = csr_matrix(vectorizer.fit_transform(texts))
        except ValueError:
            return []  # no word comes twice
        rows, words = weights.shape  # pyright: ignore[reportGeneralTypeIssues]
        most = min(self.components, rows - 1, words - 1)
        return [vectorizer, TruncatedSVD(most, random_state=self.random_state).fit(weights)] if most > 0 else []

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        return np.column_stack([_placed(_texts(X[name]), space) for name, space in zip(X, self.spaces_, strict=True)])


def _texts(column: Any) -> list[str]:
    return column.astype(object).where(column.notna(), "").astype(str).tolist()


def _placed(texts: list[str], space: Sequence[Any]) -> np.ndarray:
    lengths = np.log1p([[len(each), len(each.split())] for each in texts])
    if not space:
        return lengths
    vectorizer, projection = space
    places = projection.transform(csr_matrix(vectorizer.transform(texts)))
    return np.column_stack([lengths, np.round(places, DIGITS)])
