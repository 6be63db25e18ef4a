"""Converters of models, and of models around models: probabilities by class, or one column of numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evergreen.tasks.core.errors import CompileError
from evergreen.tasks.model_files.onnx_graph import EQUAL_WITHIN, Added, Converter, Graph, Value, matrix
from evergreen.tasks.model_files.tree_tables import Tree, boosted, grown, histogram, objective
from evergreen.tasks.problems.tabular.calibration import SMALLEST
from evergreen.tasks.problems.tabular.neural_network import LARGEST_INPUT

LARGEST_LOG = 700.0
"""exp of more overflows."""


def _prior(graph: Graph, model: Any, x: Value) -> str:
    if model.strategy != "prior":
        raise CompileError(f"DummyClassifier with strategy {model.strategy} has no compiled form")
    return graph.repeat(np.asarray(model.class_prior_, dtype=float))


def _constant(graph: Graph, model: Any, x: Value) -> str:
    return graph.repeat(np.asarray(model.constant_, dtype=float))


def _logistic(graph: Graph, model: Any, x: Value) -> str:
    return _probabilities(graph, graph.score_line(matrix(x), model.coef_.T, model.intercept_), len(model.coef_))


def _linear(graph: Graph, model: Any, x: Value) -> str:
    return graph.score_line(matrix(x), np.atleast_2d(model.coef_).T, model.intercept_)


def _probabilities(graph: Graph, scores: str, count: int) -> str:
    """Probabilities by class, from `count` columns of scores: one for two classes, else one for each."""
    return _both_classes(graph, graph.add("Sigmoid", scores)) if count == 1 else graph.add("Softmax", scores, axis=1)


def _both_classes(graph: Graph, probability: str) -> str:
    """Probabilities of both classes, from that of the second."""
    return graph.concatenate([graph.add("Sub", np.array([1.0]), probability), probability])


# -- trees


def _lightgbm_classifier(graph: Graph, model: Any, x: Value) -> str:
    name, *settings = objective(model)
    if name not in ("binary", "multiclass") or settings not in ([], ["sigmoid:1"], [f"num_class:{model.n_classes_}"]):
        raise CompileError(f"lightgbm with objective {name} has no compiled form")
    count = 1 if name == "binary" else model.n_classes_
    return _probabilities(graph, graph.score_trees(matrix(x), boosted(model), count), count)


def _lightgbm_regressor(graph: Graph, model: Any, x: Value) -> str:
    name, *_ = objective(model)
    if name not in ("regression", "regression_l1", "huber", "fair", "quantile", "mape"):
        raise CompileError(f"lightgbm with objective {name} has no compiled form")
    return graph.score_trees(matrix(x), boosted(model), 1)


def _histogram_classifier(graph: Graph, model: Any, x: Value) -> str:
    count = model.n_trees_per_iteration_
    scores = graph.score_trees(matrix(x), histogram(model), count)
    return _probabilities(graph, graph.add("Add", scores, model._baseline_prediction.reshape(1, -1).astype(float)), count)


def _histogram_regressor(graph: Graph, model: Any, x: Value) -> str:
    if model.loss not in ("squared_error", "absolute_error", "quantile"):
        raise CompileError(f"{type(model).__name__} with loss {model.loss} has no compiled form")
    scores = graph.score_trees(matrix(x), histogram(model), 1)
    return graph.add("Add", scores, model._baseline_prediction.reshape(1, -1).astype(float))


def _forest(graph: Graph, model: Any, x: Value) -> str:
    """The mean over the trees: of probabilities, or of values."""
    trees = grown(each.tree_ for each in getattr(model, "estimators_", [model]))
    rounded, width = graph.round_to_single(matrix(x)), trees[0].leaves.shape[1]
    scaled = [replace(tree, leaves=tree.leaves / len(trees)) for tree in trees]
    if width == 2:
        second = [replace(tree, leaves=tree.leaves[:, 1:]) for tree in scaled]
        return _both_classes(graph, graph.score_trees(rounded, second, 1))
    return graph.keep_score(Added(rounded, _sum_leaf_rows(graph, rounded, scaled), width, trees=scaled))


def _sum_leaf_rows(graph: Graph, x: str, trees: Sequence[Tree]) -> str:
    """The sum of rows of leaves: each tree gives the number of its leaf, and a table holds the rows."""
    starts = np.cumsum([0, *(len(tree.leaves) for tree in trees)])
    numbered = [
        replace(tree, leaves=np.arange(start, start + len(tree.leaves))[:, None], target=place)
        for place, (tree, start) in enumerate(zip(trees, starts, strict=False))
    ]
    leaf = graph.to_integer(graph.sum_trees(x, numbered, len(trees)))
    rows = graph.add("Gather", np.concatenate([tree.leaves for tree in trees]), leaf, axis=0)
    return graph.add("ReduceSum", rows, np.array([1]), keepdims=0)


# -- neural networks


def _network_regressor(graph: Graph, model: Any, x: Value) -> str:
    mean = _mean(graph, _network_scores(graph, model, x))
    return graph.linear(mean, np.array([[model.deviation_]]), np.array([model.mean_]))


def _network_classifier(graph: Graph, model: Any, x: Value) -> str:
    """The mean of the networks' probabilities."""
    scores, several = _network_scores(graph, model, x), len(model.classes_) > 2
    each = [graph.add("Softmax", score, axis=1) if several else graph.add("Sigmoid", score) for score in scores]
    mean = _mean(graph, each)
    return mean if several else _both_classes(graph, mean)


def _mean(graph: Graph, values: Sequence[str]) -> str:
    return _weighted_sum(graph, values, [1 / len(values)] * len(values))


def _network_scores(graph: Graph, model: Any, x: Value) -> list[str]:
    """The last layer's sums of each network."""
    found = list[str]()
    bounded = graph.clip(matrix(x), -LARGEST_INPUT, LARGEST_INPUT)
    for layers in model.layers_:
        points = bounded
        for place, (weights, intercepts) in enumerate(layers):
            points = graph.linear(graph.add("Relu", points) if place else points, weights, intercepts)
        found.append(points)
    return found


# -- clusterers


def _kmeans(graph: Graph, model: Any, x: Value) -> str:
    """The nearest centre."""
    centres = model.cluster_centers_.astype(float)
    squares = graph.linear(matrix(x), -2 * centres.T, (centres**2).sum(axis=1))
    return graph.to_double(graph.add("ArgMin", squares, axis=1))


def _gaussian_mixture(graph: Graph, model: Any, x: Value) -> str:
    """The component with the largest product of density and weight."""
    points, dimensions = matrix(x), model.means_.shape[1]
    roots = [_precision_root(model, place) for place in range(len(model.means_))]
    squares = [
        graph.add("ReduceSumSquare", graph.linear(points, root, -mean @ root), np.array([1]), keepdims=1)
        for mean, root in zip(model.means_, roots, strict=True)
    ]
    constants = np.array([np.linalg.slogdet(root)[1] for root in roots]) + np.log(model.weights_)
    scores = graph.add("Mul", graph.concatenate(squares), np.array([-0.5]))
    densities = graph.add("Add", scores, constants - dimensions / 2 * np.log(2 * np.pi))
    return graph.to_double(graph.add("ArgMax", densities, axis=1))


def _precision_root(model: Any, place: int) -> np.ndarray:
    """The Cholesky factor of a component's precision matrix."""
    found = model.precisions_cholesky_
    if model.covariance_type == "tied":
        return found
    each = found[place]
    return each if model.covariance_type == "full" else np.diag(np.broadcast_to(each, model.means_.shape[1:]))


def _quantile_groups(graph: Graph, model: Any, x: Value) -> str:
    edges = model.edges_ - EQUAL_WITHIN * np.maximum(1.0, np.abs(model.edges_))
    passed = graph.add("GreaterOrEqual", graph.pick(matrix(x), [0]), edges.reshape(1, -1))
    return graph.add("ReduceSum", graph.to_double(passed), np.array([1]), keepdims=1)


def _segmenter(graph: Graph, model: Any, x: Value) -> str:
    found = graph.convert(model.clusterer_, graph.convert(model.prepare_, x))
    order = model.labels_in_order_
    labels = np.full(max(int(order.max()) + 1, getattr(model.clusterer_, "n_clusters", 0)) + 1, len(order) - 1.0)
    labels[order] = np.arange(len(order))
    return graph.add("Gather", labels, graph.to_integer(found), axis=0)


# -- models around models


def _offset_regressor(graph: Graph, model: Any, x: Value) -> str:
    if isinstance(x, str):
        raise CompileError("OffsetRegressor behind another step has no compiled form")
    first = x.numbers(graph, [model.offset])
    offset = graph.add("Where", graph.add("IsNaN", first), np.array([0.0]), first)
    rest = graph.convert(model.regressor_, x)
    return graph.add("Add", graph.score_line(offset, np.array([[float(model.factor_)]]), np.zeros(1)), rest)


def _blend(graph: Graph, model: Any, x: Value) -> str:
    """The weighted mean of models side by side."""
    return _weighted_sum(graph, [graph.convert(each, x) for each in model.models_], model.weights_)


def _weighted_sum(graph: Graph, values: Sequence[str], weights: Sequence[float]) -> str:
    parts = [graph.add("Mul", value, np.array([float(weight)])) for value, weight in zip(values, weights, strict=True)]
    return parts[0] if len(parts) == 1 else graph.add("Sum", *parts)


def _calibrated(graph: Graph, model: Any, x: Value) -> str:
    """The maps of tasks.problems.tabular.calibration, by class."""
    probabilities, maps = graph.convert(model.estimator_, x), model.maps
    places = [1] if len(model.classes_) == 2 else range(len(model.classes_))
    apply = _sigmoid_map if model.method == "sigmoid" else _isotonic_map
    found = [apply(graph, graph.pick(probabilities, [place]), each) for place, each in zip(places, maps, strict=True)]
    if len(found) == 1:
        return _both_classes(graph, found[0])
    concatenated = graph.concatenate(found)
    return graph.add("Div", concatenated, graph.add("ReduceSum", concatenated, np.array([1]), keepdims=1))


def _sigmoid_map(graph: Graph, probability: str, line: Sequence[float]) -> str:
    kept = graph.clip(probability, SMALLEST, 1 - SMALLEST)
    odds = graph.add("Sub", graph.add("Log", kept), graph.add("Log", graph.add("Sub", np.array([1.0]), kept)))
    return graph.add("Sigmoid", graph.linear(odds, np.array([[line[0]]]), np.array(line[1])))


def _isotonic_map(graph: Graph, probability: str, steps: Sequence[np.ndarray]) -> str:
    points, values = (np.atleast_2d(np.pad(each, (0, int(len(each) == 1)), "edge")) for each in steps)
    return graph.interpolate(probability, points, values, "GreaterOrEqual", tolerance=0.0)


def _log_regressor(graph: Graph, model: Any, x: Value) -> str:
    logs = graph.convert(model.regressor_, x)
    size = graph.add("Exp", graph.add("Min", graph.add("Abs", logs), np.array([LARGEST_LOG])))
    plain = graph.add("Mul", graph.add("Sign", logs), graph.add("Sub", size, np.array([1.0])))
    return graph.clip(graph.add("Mul", plain, np.array([model.factor_])), model.low_, model.high_)


def _inner_model(graph: Graph, model: Any, x: Value) -> str:
    return graph.convert(model.estimator_, x)


CONVERTERS: dict[str, Converter] = {
    "sklearn.DummyClassifier": _prior,
    "sklearn.DummyRegressor": _constant,
    "sklearn.LogisticRegression": _logistic,
    "sklearn.Ridge": _linear,
    "sklearn.ElasticNet": _linear,
    "sklearn.Lasso": _linear,
    "lightgbm.LGBMClassifier": _lightgbm_classifier,
    "lightgbm.LGBMRegressor": _lightgbm_regressor,
    "sklearn.HistGradientBoostingClassifier": _histogram_classifier,
    "sklearn.HistGradientBoostingRegressor": _histogram_regressor,
    "sklearn.DecisionTreeClassifier": _forest,
    "sklearn.DecisionTreeRegressor": _forest,
    "sklearn.RandomForestClassifier": _forest,
    "sklearn.RandomForestRegressor": _forest,
    "sklearn.ExtraTreesClassifier": _forest,
    "sklearn.ExtraTreesRegressor": _forest,
    "evergreen.NeuralNetworkClassifier": _network_classifier,
    "evergreen.NeuralNetworkRegressor": _network_regressor,
    "sklearn.KMeans": _kmeans,
    "sklearn.GaussianMixture": _gaussian_mixture,
    "evergreen.QuantileGroups": _quantile_groups,
    "evergreen.Segmenter": _segmenter,
    "evergreen.OffsetRegressor": _offset_regressor,
    "evergreen.LogRegressor": _log_regressor,
    "evergreen.Calibrated": _calibrated,
    "evergreen.BlendClassifier": _blend,
    "evergreen.BlendRegressor": _blend,
    "sklearn.FixedThresholdClassifier": _inner_model,
}
"""Package and class -> its converter."""
