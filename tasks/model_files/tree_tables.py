"""Fitted trees of any library as flat tables of nodes and leaves, in double precision, for compiled models."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evergreen.tasks.core.errors import CompileError

CATEGORICAL, DEFAULT_LEFT = 1, 2
"""Bits of LightGBM's decision type; the two above them are the kind of missing values."""
ZERO, NAN = 1, 2
"""LightGBM's kinds of missing values: zero, or NaN. With neither (0), a missing value counts as zero."""


@dataclass(frozen=True)
class Tree:
    """One tree. A row goes left where its feature is at most the threshold, or is one of the members."""

    feature: np.ndarray
    threshold: np.ndarray
    missing_left: np.ndarray
    """Whether a missing value goes left."""
    left: np.ndarray
    """Node on the left; -1 - k is leaf k."""
    right: np.ndarray
    leaves: np.ndarray
    """One row per leaf, one column per target."""
    members: dict[int, list[int]] = field(default_factory=dict)
    """Node -> the categories that go left; other nodes compare with the threshold."""
    target: int = 0
    """The target of a tree whose leaves have one column."""


def boosted(model: Any) -> list[Tree]:
    """The trees of a fitted LightGBM model, `target` being the class of each in turn. Raises CompileError for linear leaves."""
    text = model.booster_.model_to_string()
    head, *blocks = re.split(r"\n(?=Tree=\d+\n)", text.partition("\nend of trees")[0])
    per_round = int(re.search(r"^num_tree_per_iteration=(\d+)", head, re.M)[1])  # pyright: ignore[reportOptionalSubscript]
    return [_lightgbm(_fields(block), place % per_round) for place, block in enumerate(blocks)]


def objective(model: Any) -> list[str]:
    """What a fitted LightGBM model minimises: its name, then its settings such as sigmoid:1."""
    text = model.booster_.model_to_string(num_iteration=1)
    return re.search(r"^objective=(.+)$", text, re.M)[1].split()  # pyright: ignore[reportOptionalSubscript]


def _fields(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _lightgbm(fields: dict[str, str], target: int) -> Tree:
    if fields.get("is_linear", "0") == "1":
        raise CompileError("lightgbm with linear_tree has no compiled form")

    def numbers(name: str, kind: type) -> np.ndarray:
        return np.array(fields.get(name, "").split(), dtype=float).astype(kind)

    leaves = numbers("leaf_value", float)[:, None]
    decision = numbers("decision_type", int)
    threshold, missing = numbers("threshold", float), decision >> 2
    if (missing == ZERO).any():
        raise CompileError("lightgbm with zero_as_missing has no compiled form")
    names = decision & CATEGORICAL > 0
    missing_left = np.where(missing == NAN, decision & DEFAULT_LEFT > 0, threshold >= 0) & ~names
    bounds, words = numbers("cat_boundaries", int), numbers("cat_threshold", np.int64)
    members = {int(node): _members(words[slice(*bounds[int(threshold[node]) :][:2])]) for node in np.flatnonzero(names)}
    children = numbers("left_child", int), numbers("right_child", int)
    return Tree(numbers("split_feature", int), threshold, missing_left, *children, leaves, members, target)


def _members(words: np.ndarray) -> list[int]:
    """The numbers of the bits that are set in words of 32 bits."""
    octets = words.astype("<u4").view(np.uint8)
    return np.flatnonzero(np.unpackbits(octets, bitorder="little")).tolist()


def histogram(model: Any) -> list[Tree]:
    """The trees of a fitted HistGradientBoosting model. Raises CompileError for categories of its own."""
    if getattr(model, "_preprocessor", None) is not None:
        raise CompileError(f"{type(model).__name__} with categorical_features has no compiled form")
    rounds = ((place, each.nodes) for every in model._predictors for place, each in enumerate(every))
    return [
        _compact(
            nodes["feature_idx"].astype(int),
            nodes["num_threshold"],
            nodes["missing_go_to_left"].astype(bool),
            nodes["left"].astype(int),
            nodes["right"].astype(int),
            nodes["is_leaf"].astype(bool),
            nodes["value"][:, None],
            target,
        )
        for target, nodes in rounds
    ]


def grown(trees: Iterable[Any]) -> list[Tree]:
    """The trees of scikit-learn's own: probabilities (row) of each class, or a value, in their leaves.

    They compare features that were rounded to single precision with thresholds in double precision.
    """
    return [
        _compact(
            tree.feature,
            tree.threshold,
            tree.missing_go_to_left.astype(bool),
            tree.children_left,
            tree.children_right,
            tree.children_left < 0,
            tree.value[:, 0, :],
        )
        for tree in trees
    ]


def _compact(
    feature: np.ndarray,
    threshold: np.ndarray,
    missing_left: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    is_leaf: np.ndarray,
    values: np.ndarray,
    target: int = 0,
) -> Tree:
    """A tree whose leaves were numbered with its nodes."""
    place = np.where(is_leaf, -np.cumsum(is_leaf), np.cumsum(~is_leaf) - 1)
    inner = ~is_leaf
    return Tree(
        feature[inner],
        threshold[inner],
        missing_left[inner],
        place[left[inner]],
        place[right[inner]],
        values[is_leaf],
        target=target,
    )
