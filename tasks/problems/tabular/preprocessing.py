"""From a table of features to a matrix: every step learns inside the fold, and the same object serves.

Numbers are filled, logged and scaled; categories, dates and words become numbers; then come selection and projection.
Everything here can be saved by tasks.model_files.skops_models.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import SelectPercentile, VarianceThreshold, f_classif, f_regression
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    OneHotEncoder,
    OrdinalEncoder,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.utils.validation import check_is_fitted

from evergreen.model_types import stored_type
from evergreen.tasks.config import params
from evergreen.tasks.config.params import Range
from evergreen.tasks.problems.base import Config
from evergreen.tasks.problems.tabular.column_pairs import ColumnPairs
from evergreen.tasks.problems.tabular.date_text_encoders import Dates, Words

Task = Literal["binary", "multiclass", "continuous", "none"]
"""What is learned: two classes, several, a number, or nothing (clustering)."""

MISSING = "(missing)"
"""The category of a missing category."""

ENCODING_FOLDS = 5
"""A target encoder gives each fold of its training rows what it learns from the others."""
OUTER = 0.01
"""Share of the values at either end that Curves takes as their edge."""
ONEHOT_LEVELS = 200
"""Most categories of a column of high cardinality that get a column of their own: the matrix stays in memory."""
OTHER = "(other)"
"""The category of those that are too rare to be told apart."""

FOR_NUMBERS = ("impute", "scale", "log", "missing_indicator", "spline_knots")
FOR_ALL = ("column_pairs", "encode", "encode_high", "min_category_count", "select", "select_share", "reduce", "components")


def space(pipeline: params.Pipeline, native: bool) -> dict[str, Range]:
    """The dimensions of the search: the choices given as lists. A `native` model reads numbers as they are."""
    fields = FOR_ALL if native and pipeline.reduce == ("none",) else FOR_NUMBERS + FOR_ALL
    return {name: Range(values=options) for name in fields if len(options := getattr(pipeline, name)) > 1}


def choose(pipeline: params.Pipeline, config: Config) -> dict[str, Any]:
    """One value for each choice: that of `config`, else the first in params."""
    return {name: config.get(name, getattr(pipeline, name)[0]) for name in FOR_NUMBERS + FOR_ALL}


def preprocess(
    pipeline: params.Pipeline,
    config: Config,
    numeric: Sequence[str],
    low: Sequence[str],
    high: Sequence[str],
    task: Task,
    seed: int,
    native: bool = False,
    dates: Sequence[str] = (),
    texts: Sequence[str] = (),
    stratified: bool = True,
) -> Pipeline:
    """The steps before the model, unfitted. They take a pandas frame and find its columns by name, in any order.

    `numeric`: columns of numbers; `low`, `high`: categories with few and with many distinct values; `dates`; `texts`: columns
    of words. A category never seen counts as none of the known ones. `native`: the model understands missing values and does
    not care for scale, so numbers pass as they are unless the selection or the projection needs them complete. `stratified`:
    every class has ENCODING_FOLDS rows or more.
    """
    chosen = choose(pipeline, config)
    raw = native and chosen["select"] in ("none", "variance") and chosen["reduce"] == "none"
    if not splits_categories(chosen, native):
        chosen |= {name: "target" for name in ("encode", "encode_high") if chosen[name] == "native"}
    scale = [] if raw else _scale(chosen["scale"], seed)
    pairs = chosen["column_pairs"] and len(numeric) > 1 and task != "none"
    parts = [
        ("numbers", Pipeline([("read", Numbers())] if raw else _numbers(chosen, seed)), list(numeric)),
        (
            "low",
            Pipeline(_categories(chosen["encode"], task, seed, scale, stratified, chosen["min_category_count"])),
            list(low),
        ),
        ("high", Pipeline(_categories(chosen["encode_high"], task, seed, scale, stratified, 2, ONEHOT_LEVELS)), list(high)),
        ("pairs", Pipeline(_pairs(chosen, task, seed, raw, scale)), list(numeric) if pairs else []),
        ("dates", Pipeline([("read", Dates()), *([] if raw else _filled("median")), *scale]), list(dates)),
        ("texts", Pipeline([("read", _words(pipeline, seed)), *scale]), list(texts)),
    ]
    numbered = {"numbers"} | {part for part, name in (("low", "encode"), ("high", "encode_high")) if chosen[name] == "native"}
    parts.sort(key=lambda part: part[0] not in numbered)
    columns = ColumnTransformer([part for part in parts if part[2]], sparse_threshold=0)
    outputs = max(1, int((len(numeric) + len(low) + len(high) + len(dates) + len(texts)) * chosen["select_share"]))
    return Pipeline(
        [("columns", columns), *_select(chosen, task), *_reduce(chosen["reduce"], min(chosen["components"], outputs), seed)]
    )


def splits_categories(chosen: Mapping[str, Any], native: bool) -> bool:
    """Whether a model gets the numbers of categories (`native`): LightGBM does, where each column keeps its place."""
    return native and chosen["select"] == "none" and chosen["reduce"] == "none"


def native_columns(
    pipeline: params.Pipeline, config: Config, numeric: Sequence[str], low: Sequence[str], high: Sequence[str], native: bool
) -> list[int]:
    """Places of the columns, among those that `preprocess` gives, that hold numbers of categories: they follow the numbers."""
    chosen = choose(pipeline, config)
    if not splits_categories(chosen, native):
        return []
    named = {"encode": low, "encode_high": high}
    count = sum(len(columns) for name, columns in named.items() if chosen[name] == "native")
    return list(range(len(numeric), len(numeric) + count))


def _numbers(chosen: dict[str, Any], seed: int) -> list[tuple[str, Any]]:
    return [
        ("read", Numbers()),
        *_filled(chosen["impute"], chosen["missing_indicator"]),
        *([("log", SignedLog())] if chosen["log"] else []),
        *([("curves", Curves(chosen["spline_knots"]))] if chosen["spline_knots"] else []),
        *_scale(chosen["scale"], seed),
    ]


def _pairs(chosen: dict[str, Any], task: Task, seed: int, raw: bool, scale: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    made = ColumnPairs(chosen["column_pairs"], task != "continuous", seed)
    return [("read", Numbers()), ("make", made), *([] if raw else _filled("median")), *scale]


def _filled(strategy: str, indicate: bool = False) -> list[tuple[str, Any]]:
    if strategy == "none":
        return []
    how = "constant" if strategy == "zero" else strategy
    return [("impute", SimpleImputer(strategy=how, fill_value=0.0, keep_empty_features=True, add_indicator=indicate))]


def _words(pipeline: params.Pipeline, seed: int) -> Words:
    return Words(pipeline.text_vocabulary, pipeline.text_components, seed)


def _scale(name: str, seed: int) -> list[tuple[str, Any]]:
    scalers = {
        "standard": StandardScaler(),
        "robust": RobustScaler(),
        "quantile": QuantileTransformer(n_quantiles=100, output_distribution="normal", random_state=seed),
    }
    return [("scale", scalers[name])] if name in scalers else []


def _categories(
    name: str, task: Task, seed: int, scale: list[tuple[str, Any]], stratified: bool, rare: int = 0, most: int | None = None
) -> list[tuple[str, Any]]:
    """Text to numbers. Without a target there is nothing to encode by, so frequency takes the place of target.

    `rare`: rows of a category to stand for itself, and `most`: categories that may; of those of high cardinality, which `most`
    bounds, this is asked where each gets a column.
    """
    merged = rare and (most is None or name == "onehot")
    read: list[tuple[str, Any]] = [("read", Text()), *([("rare", Rare(rare, most))] if merged else [])]
    if name == "onehot":
        return [*read, ("encode", OneHotEncoder(handle_unknown="ignore", sparse_output=False))]
    if name == "target" and task != "none":
        folds = StratifiedKFold if stratified and task != "continuous" else KFold
        crossed: Any = folds(n_splits=ENCODING_FOLDS, shuffle=True, random_state=seed)
        encoder: Any = TargetEncoder(target_type=task, cv=crossed)
    elif name in ("ordinal", "native"):
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    else:
        encoder = FrequencyEncoder()
    return [*read, ("encode", encoder), *([] if name == "native" else scale)]


def _select(chosen: dict[str, Any], task: Task) -> list[tuple[str, Any]]:
    percentile = 100 * chosen["select_share"]
    univariate = f_of_numbers if task == "continuous" else f_of_classes
    selectors = {
        "variance": lambda: VarianceThreshold(),
        "univariate": lambda: SelectPercentile(univariate, percentile=percentile),
        "model": lambda: SelectPercentile(l1_weights, percentile=percentile),
    }
    return [("select", selectors[chosen["select"]]())] if chosen["select"] in selectors else []


def _reduce(name: str, components: int, seed: int) -> list[tuple[str, Any]]:
    reducers = {"pca": PCA, "svd": TruncatedSVD}
    return [("reduce", reducers[name](n_components=components, random_state=seed))] if name in reducers else []


@stored_type
def f_of_classes(X: np.ndarray, y: np.ndarray) -> Any:
    """The univariate test of each column; one that does not vary says nothing, and no warning either."""
    return _quietly(f_classif, X, y)


@stored_type
def f_of_numbers(X: np.ndarray, y: np.ndarray) -> Any:
    return _quietly(f_regression, X, y)


def _quietly(test: Callable[..., Any], X: np.ndarray, y: np.ndarray) -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", "Features .* are constant", UserWarning)
        return test(X, y)


@stored_type
def l1_weights(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The weight of each column in a linear model with l1 penalty, without sign: the score of `select: model`."""
    if np.unique(y).size > 20 or not np.all(np.mod(y, 1) == 0):
        centred = y - y.mean()
        strongest = np.abs(X.T @ centred).max() / len(y)
        return np.abs(Lasso(alpha=0.01 * strongest or 1.0, max_iter=2000, tol=1e-3).fit(X, centred).coef_)
    model = LogisticRegression(l1_ratio=1.0, solver="saga", C=100 / len(y), max_iter=200, tol=1e-3)
    return np.abs(model.fit(X, y).coef_).max(axis=0)


@stored_type
class Numbers(TransformerMixin, BaseEstimator):
    """Columns as one float matrix; None and NaN are both missing."""

    def fit(self, X: pd.DataFrame, y: Any = None) -> "Numbers":
        self.columns_ = X.shape[1]
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        return X.to_numpy(dtype=float, na_value=np.nan)


@stored_type
class SignedLog(TransformerMixin, BaseEstimator):
    """sign(x) log(1 + |x|): tames counts and money, keeps zero and the sign."""

    def fit(self, X: np.ndarray, y: Any = None) -> "SignedLog":
        self.columns_ = X.shape[1]
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        return np.sign(X) * np.log1p(np.abs(X))


@stored_type
class Curves(TransformerMixin, BaseEstimator):
    """Each column within its outer hundredths, and beside it what it exceeds each of `knots` quantiles by: with these a linear
    model bends there. A column with few values stays as it is."""

    def __init__(self, knots: int = 5) -> None:
        self.knots = knots

    def fit(self, X: np.ndarray, y: Any = None) -> "Curves":
        self.low_, self.high_ = np.quantile(X, [OUTER, 1 - OUTER], axis=0)
        levels = np.arange(1, self.knots + 1) / (self.knots + 1)
        found = []
        for column, low, high in zip(X.T, self.low_, self.high_, strict=True):
            points = np.unique(np.quantile(column, levels)) if len(np.unique(column)) > self.knots else np.empty(0)
            found.append(points[(points > low) & (points < high)])
        self.columns_ = np.repeat(np.arange(X.shape[1]), [len(each) for each in found])
        self.points_ = np.concatenate(found)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """The columns, then one for each of `columns_` and its point of `points_`."""
        check_is_fitted(self)
        inside = np.clip(X, self.low_, self.high_)
        return np.hstack([inside, np.maximum(inside[:, self.columns_] - self.points_, 0.0)])


@stored_type
class Text(TransformerMixin, BaseEstimator):
    """Columns as one matrix of text; a missing value becomes the category MISSING."""

    def fit(self, X: pd.DataFrame, y: Any = None) -> "Text":
        self.columns_ = X.shape[1]
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        return np.where(X.isna().to_numpy(), MISSING, X.to_numpy(dtype=object)).astype(str)


@stored_type
class Rare(TransformerMixin, BaseEstimator):
    """Categories with fewer than `least` training rows become one, OTHER; so do those never seen, and all but the `most`
    frequent."""

    def __init__(self, least: int = 2, most: int | None = None) -> None:
        self.least = least
        self.most = most

    def fit(self, X: np.ndarray, y: Any = None) -> "Rare":
        counted = [np.unique(column, return_counts=True) for column in X.T]
        places = [np.argsort(-counts, kind="stable")[: self.most] for _, counts in counted]
        kept = zip(counted, places, strict=True)
        self.categories_ = [categories[np.sort(place[counts[place] >= self.least])] for (categories, counts), place in kept]
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        kept = [np.isin(column, known) for column, known in zip(X.T, self.categories_, strict=True)]
        return np.where(np.column_stack(kept), X.astype(object), OTHER).astype(str)


@stored_type
class FrequencyEncoder(TransformerMixin, BaseEstimator):
    """A category's share of the training rows; 0 for one never seen."""

    def fit(self, X: np.ndarray, y: Any = None) -> "FrequencyEncoder":
        counted = [np.unique(column, return_counts=True) for column in X.T]
        self.categories_ = [categories for categories, _ in counted]
        self.shares_ = [counts / len(X) for _, counts in counted]
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        return np.column_stack(
            [_find_shares(column, *known) for column, *known in zip(X.T, self.categories_, self.shares_, strict=True)]
        )


def _find_shares(column: np.ndarray, categories: np.ndarray, shares: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(categories, column), len(categories) - 1)
    return np.where(categories[place] == column, shares[place], 0.0)


def fold_back(steps: Pipeline, weights: np.ndarray) -> dict[str, float]:
    """Weights of the columns that the fitted `steps` give -> their share per input column, largest first, summing to 1.

    A projection hands each weight to its inputs by the size of their loadings; a category gets the sum over its columns.
    """
    if "reduce" in steps.named_steps:
        weights = weights @ np.abs(steps.named_steps["reduce"].components_)
    if "select" in steps.named_steps:
        kept, chosen = weights, steps.named_steps["select"].get_support()
        weights = np.zeros(len(chosen))
        weights[chosen] = kept
    found: dict[str, float] = {}
    columns = steps.named_steps["columns"]
    for name, part, inputs in columns.transformers_:
        if name != "remainder":
            block = weights[columns.output_indices_[name]]
            for each, weight in zip(inputs, block @ _owners(part, inputs), strict=True):
                found[each] = found.get(each, 0.0) + float(weight)
    total = sum(found.values()) or 1.0
    return {name: value / total for name, value in sorted(found.items(), key=lambda item: -item[1])}


def _owners(part: Pipeline, inputs: Sequence[str]) -> np.ndarray:
    """Which share of each column (row of the matrix) that `part` gives belongs to each of its inputs."""
    read, encoder, fill, made = (part.named_steps.get(name) for name in ("read", "encode", "impute", "make"))
    if isinstance(read, Dates | Words):
        return read.owners_
    if isinstance(made, ColumnPairs):
        return made.owners_
    one = np.eye(len(inputs))
    if isinstance(encoder, OneHotEncoder):
        return np.repeat(one, [len(categories) for categories in encoder.categories_], axis=0)
    if isinstance(encoder, TargetEncoder) and encoder.target_type_ == "multiclass":
        return np.repeat(one, len(encoder.classes_), axis=0)  # pyright: ignore[reportArgumentType]
    if isinstance(fill, SimpleImputer) and fill.indicator_ is not None:
        one = np.vstack([one, one[fill.indicator_.features_]])
    bent = part.named_steps.get("curves")
    return np.vstack([one, one[bent.columns_]]) if isinstance(bent, Curves) else one
