"""Learning from more rows than fit into memory: boosted trees, linear models and baselines.

What comes before the model (imputation, scaling, encoding) and its settings are learned from a sample in memory; then the model
learns from all rows, block by block. It ends as the same scikit-learn estimator that `fit` makes, so that it is saved, compiled
and explained alike. Blocks have the same rows whatever the settings, and are added up in order: the same to the bit.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightgbm
import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
from scipy import linalg, optimize, special  # pyright: ignore[reportMissingTypeStubs]
from sklearn import base  # pyright: ignore[reportMissingTypeStubs]
from sklearn.dummy import DummyClassifier, DummyRegressor  # pyright: ignore[reportMissingTypeStubs]
from sklearn.linear_model import LogisticRegression, Ridge  # pyright: ignore[reportMissingTypeStubs]
from sklearn.model_selection import FixedThresholdClassifier  # pyright: ignore[reportMissingTypeStubs]
from sklearn.pipeline import Pipeline  # pyright: ignore[reportMissingTypeStubs]
from sklearn.preprocessing import TargetEncoder  # pyright: ignore[reportMissingTypeStubs]

from evergreen.tasks.core import memory
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.tabular.stored_table import Selection

clone: Any = base.clone  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
minimize: Any = optimize.minimize  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
solve: Any = linalg.solve  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
least_squares: Any = linalg.lstsq  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
logsumexp: Any = special.logsumexp  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
softmax: Any = special.softmax  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
train: Any = lightgbm.train  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@dataclass(frozen=True)
class Lesson:
    """What a model learns from: a sample in memory, and all rows."""

    X: pd.DataFrame
    """Features of the sample; its index holds the places of rows in the file."""
    y: np.ndarray
    stored: Selection
    """All rows to learn from; its blocks have `features`, indexed alike."""
    targets: np.ndarray
    """One value per row of `stored`."""

    def about(self, y: np.ndarray, targets: np.ndarray) -> "Lesson":
        """The same rows with another target."""
        return replace(self, y=y, targets=targets)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers of all rows."""
        return self.stored.frame([name])[name].cast(float).to_numpy()

    def fit(self, model: Any) -> Any:
        """`model`, fitted. Raises DataError where a linear model meets a missing number that the sample does not have."""
        if hasattr(model, "fit_stored"):
            return model.fit_stored(self)
        if isinstance(model, FixedThresholdClassifier):
            return _bound(model, self.fit(clone(model.estimator)))
        if isinstance(model, Pipeline):
            return self._fit_pipeline(model)
        return _LEARNERS[type(model)](model.fit(self.X, self.y), self.X, self.y, Blocks(self), self.targets)

    def _fit_pipeline(self, model: Any) -> Pipeline:
        steps, last = clone(model.named_steps["prepare"]), clone(model.named_steps["model"])
        matrix = np.asarray(steps.fit_transform(self.X, self.y), dtype=float)
        blocks = Blocks(self, steps, matrix if _crosses(steps) else None)
        learned = _LEARNERS[type(last)](last, matrix, self.y, blocks, self.targets)
        return Pipeline([("prepare", steps), ("model", learned)])


@dataclass(frozen=True)
class Blocks:
    """All rows of a lesson as matrices, block by block."""

    lesson: Lesson
    steps: Any = None
    """Fitted on the sample; None: no matrix is asked for."""
    crossed: np.ndarray | None = None
    """The sample's own matrix, where a target encoder gives training rows other values than new ones."""

    @property
    def rows(self) -> int:
        return self.lesson.stored.block_rows

    def __call__(self, what: str) -> Iterator[np.ndarray]:
        for block in self.lesson.stored.blocks(what):
            matrix = np.asarray(self.steps.transform(block.features), dtype=float)
            if self.crossed is not None:
                at, here = np.asarray(self.lesson.X.index), np.asarray(block.features.index)
                places = np.minimum(np.searchsorted(at, here), len(at) - 1)
                known = at[places] == here
                matrix[known] = self.crossed[places[known]]
            yield matrix


def learns(estimator: Callable[..., Any]) -> bool:
    """Whether models of this class can learn block by block."""
    return estimator in _LEARNERS


def binned(estimator: Callable[..., Any]) -> bool:
    """Whether all rows are in memory meanwhile, a byte or two per value."""
    return estimator in (lightgbm.LGBMClassifier, lightgbm.LGBMRegressor)


def _bound(model: Any, inner: Any) -> Any:
    """`model`, fitted, with `inner` as what it fitted."""
    model.estimator_ = inner
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(inner, name):
            setattr(model, name, getattr(inner, name))
    return model


def _crosses(steps: Any) -> bool:
    parts: list[Any] = [part for _, part, _ in steps.named_steps["columns"].transformers_]
    return any(isinstance(step, TargetEncoder) for part in parts if hasattr(part, "steps") for _, step in part.steps)


def _shares(model: Any, X: Any, y: np.ndarray, blocks: Blocks, targets: np.ndarray) -> Any:
    classes: np.ndarray = model.classes_
    model.class_prior_ = np.array([(targets == each).mean() for each in classes.tolist()])
    return model


def _mean(model: Any, X: Any, y: np.ndarray, blocks: Blocks, targets: np.ndarray) -> Any:
    if model.strategy == "mean":
        model.constant_ = np.array([[targets.mean()]])
    return model


def _trees(model: Any, X: np.ndarray, y: np.ndarray, blocks: Blocks, targets: np.ndarray) -> Any:
    """LightGBM, from all rows in bins whose edges come from the sample. One tree of the sample brings its settings."""
    trees = model.n_estimators
    model.set_params(n_estimators=1).fit(X, y)
    model.set_params(n_estimators=trees)
    settings = {name: value for name, value in model.booster_.params.items() if name != "num_iterations"}
    edges = lightgbm.Dataset(X, params=settings).construct()
    labels = np.searchsorted(model.classes_, targets) if hasattr(model, "classes_") else targets
    source: Any = _Sequence(blocks("lightgbm: bins"), len(targets), blocks.rows)
    rows = lightgbm.Dataset(source, label=labels, reference=edges, params=settings)
    model._Booster = train(settings, rows, trees)  # as its own Dask estimators do
    model._Booster.free_dataset()
    return model


class _Sequence(lightgbm.Sequence):
    """Blocks that LightGBM takes in order, once."""

    def __init__(self, blocks: Iterator[np.ndarray], rows: int, batch_size: int) -> None:
        self.blocks, self.rows, self.batch_size = blocks, rows, batch_size

    def __getitem__(self, idx: Any) -> np.ndarray:
        return next(self.blocks)

    def __len__(self) -> int:
        return self.rows


def _ridge(model: Any, X: np.ndarray, y: np.ndarray, blocks: Blocks, targets: np.ndarray) -> Any:
    """The exact solution, from sums of products of columns; numbers lie about the sample's means, so that they keep digits."""
    model.fit(X, y)
    middle, level = X.mean(axis=0), targets.mean()
    gram, cross, sums, at = np.zeros((X.shape[1],) * 2), np.zeros(X.shape[1]), np.zeros(X.shape[1]), 0
    for block in blocks("ridge: products"):
        rest = _complete(block, "ridge") - middle
        gram += rest.T @ rest
        cross += rest.T @ (targets[at : at + len(rest)] - level)
        sums += rest.sum(axis=0)
        at += len(rest)
    gram -= np.outer(sums, sums) / len(targets)
    gram[np.diag_indices_from(gram)] += model.alpha
    try:
        model.coef_ = solve(gram, cross, assume_a="pos")
    except linalg.LinAlgError:
        model.coef_ = least_squares(gram, cross)[0]
    model.intercept_ = float(level - (middle + sums / len(targets)) @ model.coef_)
    return model


def _logistic(model: Any, X: np.ndarray, y: np.ndarray, blocks: Blocks, targets: np.ndarray) -> Any:
    """L-BFGS from the sample's solution on, with scikit-learn's loss, penalty and tolerance.

    The matrix of all rows is read in each step; what EVERGREEN_LEARNING_MB has no room for lies in a file without a name.
    """
    model.fit(X, y)
    codes, count = np.searchsorted(model.classes_, targets), len(model.classes_)
    weights = _class_weights(model.class_weight, codes, count)
    start = np.hstack([model.coef_, model.intercept_[:, None]])
    with tempfile.SpooledTemporaryFile(max_size=memory.learning_limit() // 8) as file:
        for block in blocks("logistic: matrix"):
            file.write(_complete(block, "logistic").astype(np.float32).tobytes())
        loss = _Loss(file, codes, weights, start.shape, blocks.rows, 1 / (model.C * weights[codes].sum()))
        limits = {"maxiter": model.max_iter, "maxls": 50, "gtol": model.tol, "ftol": 64 * np.finfo(float).eps}
        found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=limits)
    both = found.x.reshape(start.shape)
    model.coef_, model.intercept_ = both[:, :-1].copy(), both[:, -1].copy()
    model.n_iter_ = np.array([found.nit], dtype=np.int32)
    return model


def _class_weights(given: str | None, codes: np.ndarray, count: int) -> np.ndarray:
    """One weight per class; `balanced` as in scikit-learn."""
    sizes = np.bincount(codes, minlength=count)
    return len(codes) / (count * np.maximum(sizes, 1)) if given == "balanced" else np.ones(count)


@dataclass(frozen=True)
class _Loss:
    """Mean log loss of all rows, weighted by class, with half the squared coefficients times `penalty`; and its gradient."""

    file: Any
    codes: np.ndarray
    weights: np.ndarray
    shape: tuple[int, int]
    """Outputs (one for two classes), and columns with the intercept last."""
    rows: int
    penalty: float

    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = flat.reshape(self.shape)
        total, gradient, weight = 0.0, np.zeros(self.shape), 0.0
        self.file.seek(0)
        for start in range(0, len(self.codes), self.rows):
            codes = self.codes[start : start + self.rows]
            block = np.frombuffer(self.file.read(4 * len(codes) * (self.shape[1] - 1)), np.float32)
            block = block.reshape(len(codes), -1).astype(float)
            share = self.weights[codes]
            losses, slopes = _log_loss(block @ both[:, :-1].T + both[:, -1], codes)
            slopes *= share[:, None]
            total += float(losses @ share)
            gradient[:, :-1] += slopes.T @ block
            gradient[:, -1] += slopes.sum(axis=0)
            weight += float(share.sum())
        gradient /= weight
        gradient[:, :-1] += self.penalty * both[:, :-1]
        return total / weight + self.penalty / 2 * float((both[:, :-1] ** 2).sum()), gradient.ravel()


def _log_loss(scores: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each row, and its slope by each score; one score: that of the second of two classes."""
    if scores.shape[1] == 1:
        score = scores[:, 0]
        return np.logaddexp(0.0, score) - codes * score, (special.expit(score) - codes)[:, None]
    rows = np.arange(len(codes))
    losses, slopes = logsumexp(scores, axis=1) - scores[rows, codes], softmax(scores, axis=1)
    slopes[rows, codes] -= 1.0
    return losses, slopes


def _complete(block: np.ndarray, model: str) -> np.ndarray:
    if missing := int(np.isnan(block).any(axis=1).sum()):
        raise DataError(
            f"{missing:,} of {len(block):,} rows of a block have a missing number, and with pipeline.impute none {model} "
            "cannot learn from them. Set pipeline.impute to median, mean or zero, or tune.models to others."
        )
    return block


_LEARNERS: Mapping[Any, Callable[..., Any]] = {
    DummyClassifier: _shares,
    DummyRegressor: _mean,
    lightgbm.LGBMClassifier: _trees,
    lightgbm.LGBMRegressor: _trees,
    LogisticRegression: _logistic,
    Ridge: _ridge,
}
