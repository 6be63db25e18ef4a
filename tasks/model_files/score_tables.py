"""The scores that a compiled model adds up, as tables beside its graph, so that its predictions can be explained exactly.

The graph also returns the matrix that each score is made from, and the scores. A second graph, the link, makes predictions
from scores. `read` needs NumPy alone; the rest is for writing.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evergreen.tasks.core.errors import CompileError
from evergreen.tasks.explanation.exact_shapley import MAX_SCORES, MAX_SLOTS, Line, Score, Trees
from evergreen.tasks.model_files.tree_tables import Tree

if TYPE_CHECKING:
    from evergreen.tasks.model_files.onnx_graph import Added

MAX_LEAVES = 300_000
"""Trees with more leaves are explained by sampling."""
SEVERAL = -2
"""In place of a player: a column that several features change."""


class Tables(NamedTuple):
    link: bytes
    """The graph from scores to predictions."""
    scores: list[Score]


def write(link: bytes, scores: Sequence[Score]) -> str:
    """A text that `read` reads. Raises CompileError for more than MAX_SCORES numbers."""
    if (count := sum(each.width for each in scores)) > MAX_SCORES:
        raise CompileError(f"{count} scores are too many for exact contributions (at most {MAX_SCORES})")
    arrays = {"link": np.frombuffer(link, np.uint8)}
    for place, score in enumerate(scores):
        kind = "trees" if isinstance(score, Trees) else "line"
        arrays |= {f"{place}.{kind}.{each.name}": getattr(score, each.name) for each in fields(type(score))}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return base64.b64encode(file.getvalue()).decode()


def read(text: str) -> Tables:
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        parts: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        for name in arrays.files:
            if name != "link":
                place, kind, field = name.split(".")
                parts.setdefault((int(place), kind), {})[field] = arrays[name]
        link = arrays["link"].tobytes()
    return Tables(link, [Trees(**found) if kind == "trees" else Line(**found) for (_, kind), found in sorted(parts.items())])


def of(added: "Added", player: np.ndarray) -> Score:
    """`player`: of each column of the matrix, as score_owners finds them.

    Raises CompileError where a column that counts belongs to several features.
    """
    if added.weights is None:
        return _trees(added.trees, added.width, player)
    used = (added.weights != 0).any(axis=1)
    return Line(_owned(player, used), added.weights.astype(float))


def _trees(trees: Sequence[Tree], width: int, player: np.ndarray) -> Trees:
    grown = [tree for tree in trees if len(tree.feature)]
    if not grown:
        raise CompileError("trees without a condition have no contributions")
    if (leaves := sum(len(tree.leaves) for tree in grown)) > MAX_LEAVES:
        raise CompileError(f"{leaves:,} leaves are too many for exact contributions (at most {MAX_LEAVES:,})")
    first = np.cumsum([0, *(len(tree.feature) for tree in grown)])
    parents, leaf_parents = zip(*(_parents(tree, start) for tree, start in zip(grown, first, strict=False)), strict=True)
    members = [
        (start + node, value)
        for tree, start in zip(grown, first, strict=False)
        for node, values in tree.members.items()
        for value in values
    ]
    column = np.concatenate([tree.feature for tree in grown]).astype(np.int32)
    used = np.isin(np.arange(len(player)), column)
    is_member = np.concatenate([np.isin(np.arange(len(tree.feature)), list(tree.members)) for tree in grown])
    threshold = np.concatenate([tree.threshold for tree in grown]).astype(float)
    found = Trees(
        player=_owned(player, used),
        column=column,
        threshold=np.where(is_member, -np.inf, threshold),
        missing_left=np.concatenate([tree.missing_left for tree in grown]).astype(bool),
        parent=np.concatenate(parents).astype(np.int32),
        leaf_parent=np.concatenate(leaf_parents).astype(np.int32),
        member_node=np.array([node for node, _ in members], np.int32),
        member=np.array([value for _, value in members], np.int32),
        values=np.concatenate([_in_place(tree, width) for tree in grown]),
    )
    if found.paths.player.shape[1] > MAX_SLOTS:
        raise CompileError(f"more than {MAX_SLOTS} columns on one path are too many for exact contributions")
    return found


def _parents(tree: Tree, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each node and each leaf: 1 + the node above, counted from `start`, negative on its right; 0 at the top."""
    above, leaf_above = np.zeros(len(tree.feature), int), np.zeros(len(tree.leaves), int)
    for children, sign in ((tree.left, 1), (tree.right, -1)):
        number = sign * (start + 1 + np.arange(len(children)))
        inner = children >= 0
        above[children[inner]] = number[inner]
        leaf_above[-1 - children[~inner]] = number[~inner]
    return above, leaf_above


def _in_place(tree: Tree, width: int) -> np.ndarray:
    """Leaf x number: leaves of one column belong to the tree's target."""
    if tree.leaves.shape[1] == width:
        return tree.leaves.astype(float)
    found = np.zeros((len(tree.leaves), width))
    found[:, tree.target] = tree.leaves[:, 0]
    return found


def _owned(player: np.ndarray, used: np.ndarray) -> np.ndarray:
    if (player[used] == SEVERAL).any():
        raise CompileError("a column that several features make has no exact contributions")
    return np.where(used, player, -1).astype(np.int32)
