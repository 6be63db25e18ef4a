"""Small neural networks for plain tables: the mean of a few multi-layer perceptrons, each stopped early on rows of its own.

scikit-learn fits them; what stays is their weights, so that a prediction needs NumPy alone. They need numbers of one scale:
inputs beyond LARGEST_INPUT are cut off there, so that no odd row gets an answer far outside what was learned.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special  # pyright: ignore[reportMissingTypeStubs]
from sklearn import metrics  # pyright: ignore[reportMissingTypeStubs]
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # pyright: ignore[reportMissingTypeStubs]
from sklearn.neural_network import MLPClassifier, MLPRegressor  # pyright: ignore[reportMissingTypeStubs]

from evergreen.model_types import stored_type

LARGEST_INPUT = 4.0
"""Standard deviations."""
HELD_OUT_SHARE = 0.1
"""Share of the rows that tell a network when to stop."""
LEAST_HELD_OUT = 30
"""With fewer held-out rows than this nothing is held out, and all epochs are run."""
MOST_EPOCHS, PATIENCE = 60, 8
"""Epochs of a network, and those without improvement after which it stops."""
MOST_STEPS = 10_000
"""Steps of the optimiser per network; a large table gets fewer epochs."""
BATCHES = 30
"""Batches of an epoch, about; a batch has LEAST_BATCH to MOST_BATCH rows."""
LEAST_BATCH, MOST_BATCH = 16, 256

log_loss: Any = metrics.log_loss  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
softmax: Any = special.softmax  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
Layers = list[tuple[np.ndarray, np.ndarray]]
"""Weights (input x output) and intercepts of each layer."""
Loss = Callable[[Any, np.ndarray, np.ndarray], float]


class NeuralNetwork(BaseEstimator):
    """`networks` perceptrons with `hidden_layers` layers of `hidden_units` rectified linear units (ReLU).

    alpha: strength of the L2 penalty; learning_rate_init: of Adam. Fitted: `layers_`, one list of layers per network.
    """

    def __init__(
        self,
        hidden_units: int = 64,
        hidden_layers: int = 1,
        alpha: float = 1e-4,
        learning_rate_init: float = 2e-3,
        networks: int = 2,
        random_state: int = 0,
    ) -> None:
        self.hidden_units = hidden_units
        self.hidden_layers = hidden_layers
        self.alpha = alpha
        self.learning_rate_init = learning_rate_init
        self.networks = networks
        self.random_state = random_state

    def _learn(self, estimator: Any, X: Any, y: np.ndarray, loss: Loss, **classes: np.ndarray) -> None:
        """`loss`: of a fitted network, on held-out rows and their targets. `classes`: of a classifier, its `classes`."""
        points = _bounded(X).astype(np.float32)
        self.layers_: list[Layers] = []
        for place in range(self.networks):
            order = np.random.default_rng((self.random_state, place)).permutation(len(y))
            count = int(HELD_OUT_SHARE * len(y))
            held, rest = (order[:count], order[count:]) if count >= LEAST_HELD_OUT else (order[:0], order)
            batch = int(np.clip(len(rest) // BATCHES, min(LEAST_BATCH, len(rest)), MOST_BATCH))
            network = estimator(
                hidden_layer_sizes=(self.hidden_units,) * self.hidden_layers,
                alpha=self.alpha,
                learning_rate_init=self.learning_rate_init,
                batch_size=batch,
                random_state=self.random_state + place,
            )
            self.layers_.append(_fit(network, points, y, rest, held, batch, loss, classes))

    @property
    def feature_importances_(self) -> np.ndarray:
        """Of each input: the product of the weights without sign, summed over all ways to an output (Garson, 1991)."""
        products = [np.linalg.multi_dot([np.abs(weights) for weights, _ in layers]) for layers in self.layers_]
        return np.mean([each.sum(axis=1) for each in products], axis=0)

    def _scores(self, X: Any) -> list[np.ndarray]:
        """The last layer's sums of each network: row x output."""
        points = _bounded(X)
        return [_sums(points, layers) for layers in self.layers_]


def _fit(
    network: Any,
    points: np.ndarray,
    y: np.ndarray,
    rest: np.ndarray,
    held: np.ndarray,
    batch: int,
    loss: Loss,
    classes: dict[str, np.ndarray],
) -> Layers:
    """The layers after the epoch with the least loss on the rows `held`, or after the last one where there are none."""
    epochs = int(np.clip(MOST_STEPS * batch // max(len(rest), 1), 1, MOST_EPOCHS))
    inside, targets, best, since = points[rest], y[rest], math.inf, 0
    found: Layers = []
    for _ in range(epochs):
        network.partial_fit(inside, targets, **classes)
        now = loss(network, points[held], y[held]) if len(held) else -math.inf
        if now < best or not len(held) or not found:
            best, found, since = now, _layers(network), 0
        else:
            since += 1
        if since >= PATIENCE:
            break
    return found


def _layers(network: Any) -> Layers:
    """A copy in double precision."""
    parts = zip(network.coefs_, network.intercepts_, strict=True)
    return [(np.array(weights, dtype=float), np.array(intercepts, dtype=float)) for weights, intercepts in parts]


def _bounded(X: Any) -> np.ndarray:
    return np.clip(np.asarray(X, dtype=float), -LARGEST_INPUT, LARGEST_INPUT)


def _sums(points: np.ndarray, layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    for place, (weights, intercepts) in enumerate(layers):
        points = (np.maximum(points, 0.0) if place else points) @ weights + intercepts
    return points


@stored_type
class NeuralNetworkRegressor(RegressorMixin, NeuralNetwork):
    """Learns a number by its squared error, in standard deviations of the training target: `mean_`, `deviation_`."""

    def fit(self, X: Any, y: np.ndarray) -> "NeuralNetworkRegressor":
        self.mean_, self.deviation_ = float(np.mean(y)), float(np.std(y)) or 1.0

        def loss(network: Any, points: np.ndarray, targets: np.ndarray) -> float:
            answers: np.ndarray = network.predict(points)
            return float(np.mean((answers - targets) ** 2))

        self._learn(MLPRegressor, X, (np.asarray(y, dtype=float) - self.mean_) / self.deviation_, loss)
        return self

    def predict(self, X: Any) -> np.ndarray:
        return self.mean_ + self.deviation_ * np.mean(self._scores(X), axis=0)[:, 0]


@stored_type
class NeuralNetworkClassifier(ClassifierMixin, NeuralNetwork):
    """Learns probabilities by their log loss; the mean of the networks' probabilities."""

    def fit(self, X: Any, y: np.ndarray) -> "NeuralNetworkClassifier":
        self.classes_, places = np.unique(y, return_inverse=True)

        def loss(network: Any, points: np.ndarray, targets: np.ndarray) -> float:
            return float(log_loss(targets, network.predict_proba(points), labels=network.classes_))

        self._learn(MLPClassifier, X, places, loss, classes=np.unique(places))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Row x class."""
        scores = self._scores(X)
        if len(self.classes_) > 2:
            return np.mean([softmax(each, axis=1) for each in scores], axis=0)
        second = np.mean([special.expit(each[:, 0]) for each in scores], axis=0)
        return np.column_stack([1 - second, second])

    def predict(self, X: Any) -> np.ndarray:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
