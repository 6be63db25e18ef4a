"""Exact Shapley values of models that add up scores: trees and lines, from the tables of a compiled model.

A score is a sum over leaves, or over weighted columns. For a leaf, an explained row and a background row, the columns on the
leaf's path decide: those whose conditions only the explained row meets, and those that only the background row meets. The
leaf's value then goes to these columns in closed form. All conditions on encoded columns of one feature count as one player,
so contributions are those of the user's columns.

A link carries scores to predictions: the logistic function, calibration, a blend of several models. Each background row's
contributions to a score are multiplied by what the score contributes to the prediction, per unit of the score: exact where
the link is a line, and else the rule of a series of models. Contributions sum to the prediction minus the mean prediction of
the background rows.

Sources: Lundberg et al., From local explanations to global understanding with explainable AI for trees, 2020 (interventional);
Chen, Lundberg and Lee, Explaining a series of models by propagating Shapley values, 2022. The server and its bundle import this
module, so it imports NumPy alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

MAX_SCORES = 10
"""Most scores: the link is asked for each subset of them."""
MAX_SLOTS = 63
"""Most players on the path of a leaf, whose bits make one number."""
MAX_PAIRS = 8_000_000
"""Most pairs of a leaf and a background row: fewer background rows are used where there are many leaves."""
NEAR = 1e-6
"""Scores of two rows that are nearer than this, relative to their size, are moved apart by this, for the slope of the link."""

Link = Callable[[np.ndarray], np.ndarray]
"""Scores (row x score) -> predictions (row x output)."""


@dataclass(frozen=True)
class Line:
    """A weighted sum of columns."""

    player: np.ndarray
    """Of each column."""
    weights: np.ndarray
    """Column x number."""

    @property
    def width(self) -> int:
        return self.weights.shape[1]

    @property
    def cost(self) -> int:
        return 1

    def from_backgrounds(self, matrix: np.ndarray) -> "LineBackgrounds":
        """This score and the matrix of the background rows."""
        return LineBackgrounds(self, matrix)


@dataclass(frozen=True)
class LineBackgrounds:
    line: Line
    matrix: np.ndarray

    def contributions(self, matrix: np.ndarray, slopes: np.ndarray, players: int) -> np.ndarray:
        """Player x output, the sum over the background rows.

        matrix: 1 x column, the explained row; slopes: background row x number x output, what multiplies its contributions.
        """
        steps = np.einsum("bc,bno->cno", matrix - self.matrix, slopes)
        by_column = np.einsum("cno,cn->co", steps, self.line.weights)
        used, found = self.line.player >= 0, np.zeros((players, slopes.shape[2]))
        np.add.at(found, self.line.player[used], by_column[used])
        return found


@dataclass(frozen=True)
class Trees:
    """A sum of leaves. A row goes left at a node where its column is at most the threshold, or is one of the members."""

    player: np.ndarray
    """Of each column of the matrix; -1 for one that no tree looks at."""
    column: np.ndarray
    """Of each node, as are threshold, missing_left and parent."""
    threshold: np.ndarray
    missing_left: np.ndarray
    """Whether a missing value goes left."""
    parent: np.ndarray
    """1 + the node above, negative where this node is on its right; 0 at the top."""
    leaf_parent: np.ndarray
    """The same of each leaf."""
    member_node: np.ndarray
    """Nodes with categories, once for each category that goes left."""
    member: np.ndarray
    """Its number."""
    values: np.ndarray
    """Leaf x number."""

    @property
    def width(self) -> int:
        return self.values.shape[1]

    @property
    def cost(self) -> int:
        return len(self.values)

    @cached_property
    def paths(self) -> "Paths":
        return Paths.of(self)

    def from_backgrounds(self, matrix: np.ndarray) -> "TreesBackgrounds":
        """This score and the matrix of the background rows."""
        return TreesBackgrounds.of(self, matrix)

    def met(self, matrix: np.ndarray) -> np.ndarray:
        """Row x leaf: the bits of the players whose conditions the row meets."""
        paths, found = self.paths, np.empty((len(matrix), len(self.values)), self.paths.whole.dtype)
        for place, row in enumerate(matrix):  # row by row, since conditions are many
            met = self._goes_left(row)[paths.node] == paths.left
            slots = np.logical_and.reduceat(met, paths.slot_start)
            found[place] = np.bitwise_or.reduceat(slots.astype(found.dtype) << paths.bit, paths.leaf_start)
        return found

    def _goes_left(self, row: np.ndarray) -> np.ndarray:
        cells = row[self.column]
        left = np.where(np.isnan(cells), self.missing_left, cells <= self.threshold)
        if len(self.member_node):
            left[self.member_node] = False
            left[self.member_node[cells[self.member_node] == self.member]] = True
        return left


@dataclass(frozen=True)
class TreesBackgrounds:
    """Groups of background rows that meet the same conditions of a leaf."""

    trees: Trees
    leaf: np.ndarray
    """Of each group."""
    met: np.ndarray
    """Of each group: the bits of the players whose conditions its rows meet."""
    first: np.ndarray
    """The place of its first row in `row`, and the number of all."""
    row: np.ndarray
    """Background rows, group after group."""

    @classmethod
    def of(cls, trees: Trees, matrix: np.ndarray) -> "TreesBackgrounds":
        met = trees.met(matrix).T
        order = np.argsort(met, axis=1, kind="stable")
        ordered = np.take_along_axis(met, order, axis=1)
        starts = np.ones(ordered.shape, bool)
        starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        first = np.flatnonzero(starts)
        return cls(trees, first // len(matrix), ordered.ravel()[first], np.append(first, met.size), order.ravel())

    def contributions(self, matrix: np.ndarray, slopes: np.ndarray, players: int) -> np.ndarray:
        """As LineBackgrounds.contributions."""
        paths, own = self.trees.paths, self.trees.met(matrix)[0][self.leaf]
        group = np.flatnonzero(((own | self.met) == paths.whole[self.leaf]) & (own != self.met))
        found = np.zeros((players, slopes.shape[2]))
        if not len(group):
            return found
        own, theirs, leaf = own[group], self.met[group], self.leaf[group]
        gains, losses = own & ~theirs, theirs & ~own
        counts = np.bitwise_count(gains), np.bitwise_count(losses)
        values = np.einsum("gn,gno->go", self.trees.values[leaf], self._sum(slopes, group))
        for which, table in ((gains, GAIN), (losses, LOSS)):
            pair, bit = _bits(which)
            player, share = paths.player[leaf[pair], bit], table[counts][pair]
            for output in range(slopes.shape[2]):
                found[:, output] += np.bincount(player, share * values[pair, output], players)
        return found

    def _sum(self, slopes: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Group x number x output: the sum over the rows of each group."""
        sizes = self.first[group + 1] - self.first[group]
        starts = np.cumsum(sizes) - sizes
        rows = self.row[np.arange(sizes.sum()) + np.repeat(self.first[group] - starts, sizes)]
        return np.add.reduceat(slopes[rows], starts, axis=0)


def _bits(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each number once for each bit that is set in it, and the place of the bit."""
    width = 8 * numbers.itemsize
    little = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False)
    return np.divmod(np.flatnonzero(np.unpackbits(little.view(np.uint8), bitorder="little")), width)


@dataclass(frozen=True)
class Paths:
    """The conditions on the way to each leaf, sorted by leaf and player. A slot is a player on the path of a leaf."""

    node: np.ndarray
    """Of each condition."""
    left: np.ndarray
    """Whether the row must go left there."""
    slot_start: np.ndarray
    """The first condition of each slot."""
    bit: np.ndarray
    """Of each slot in its leaf's number."""
    leaf_start: np.ndarray
    """The first slot of each leaf."""
    whole: np.ndarray
    """Of each leaf: the number with the bits of all its players."""
    player: np.ndarray
    """Leaf x bit."""

    @classmethod
    def of(cls, trees: Trees) -> "Paths":
        leaves, above = np.arange(len(trees.leaf_parent)), trees.leaf_parent
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while len(leaves):
            node = np.abs(above) - 1
            parts.append((leaves, node, above > 0))
            further = trees.parent[node] != 0
            leaves, above = leaves[further], trees.parent[node][further]
        leaf, node, left = (np.concatenate(each) for each in zip(*parts, strict=True))
        player = trees.player[trees.column[node]]
        order = np.lexsort((player, leaf))
        leaf, node, left, player = leaf[order], node[order], left[order], player[order]
        slot_start = np.flatnonzero(np.r_[True, (np.diff(leaf) != 0) | (np.diff(player) != 0)])
        slot_leaf = leaf[slot_start]
        leaf_start = np.flatnonzero(np.r_[True, np.diff(slot_leaf) != 0])
        bit = np.arange(len(slot_leaf)) - np.repeat(leaf_start, np.diff(np.r_[leaf_start, len(slot_leaf)]))
        most = int(bit.max()) + 1
        kind = next((each for each in (np.uint8, np.uint16, np.uint32) if most <= 8 * np.dtype(each).itemsize), np.uint64)
        table = np.full((len(trees.leaf_parent), most), -1)
        table[slot_leaf, bit] = player[slot_start]
        bits = bit.astype(kind)
        whole = np.bitwise_or.reduceat(np.ones_like(bits) << bits, leaf_start)
        return cls(node, left, slot_start, bits, leaf_start, whole, table)


def _weights(gain: bool) -> np.ndarray:
    """The share of a leaf's value that a player gets, by how many gain and lose: it enters first of all that lose, last of
    all that gain; a loser's share is negative."""
    table = np.zeros((MAX_SLOTS + 2, MAX_SLOTS + 2))
    for gaining in range(MAX_SLOTS + 1):
        for losing in range(MAX_SLOTS + 1 - gaining):
            if gaining + losing and (gaining if gain else losing):
                share = 1 / math.comb(gaining + losing, losing)
                table[gaining, losing] = share / gaining if gain else -share / losing
    return table


GAIN, LOSS = _weights(True), _weights(False)


Score = Trees | Line
"""One or several numbers that a model adds up, from a matrix (row x column)."""


@dataclass(frozen=True)
class Rows:
    """Rows as the scores see them."""

    matrices: Sequence[np.ndarray]
    """Row x column, for each score."""
    scores: np.ndarray
    """Row x number, those of all scores side by side."""


class ExactShapley:
    """Contributions to the predictions of one model, from fixed background rows."""

    def __init__(self, scores: Sequence[Score], link: Link, players: int, backgrounds: Rows) -> None:
        """`players`: how many columns of the user there are."""
        used = max(1, min(len(backgrounds.scores), MAX_PAIRS // max(1, sum(each.cost for each in scores))))
        chosen = np.arange(used) * len(backgrounds.scores) // used
        self._parts = [each.from_backgrounds(matrix[chosen]) for each, matrix in zip(scores, backgrounds.matrices, strict=True)]
        self._link, self._given, self._players = link, backgrounds.scores[chosen], players
        self._ends = np.cumsum([each.width for each in scores])[:-1]
        self.base = link(self._given).mean(axis=0)
        """The mean prediction of the background rows, per output."""

    def values(self, rows: Rows) -> np.ndarray:
        """Row x player x output."""
        return np.array([self._explain(rows, place) for place in range(len(rows.scores))])

    def _explain(self, rows: Rows, place: int) -> np.ndarray:
        slopes = np.split(slopes_of_link(self._link, rows.scores[place], self._given), self._ends, axis=1)
        parts = zip(self._parts, rows.matrices, slopes, strict=True)
        found = [part.contributions(matrix[[place]], slope, self._players) for part, matrix, slope in parts]
        return np.sum(found, axis=0) / len(self._given)


def slopes_of_link(link: Link, own: np.ndarray, backgrounds: np.ndarray) -> np.ndarray:
    """Background row x score x output: the score's own Shapley value in the link, per unit of the score.

    own: the scores of the explained row; backgrounds: row x score.
    """
    rows, count = backgrounds.shape
    least = NEAR * np.maximum(1.0, np.abs(backgrounds))
    step = own - backgrounds
    moved = backgrounds + np.where(np.abs(step) < least, least, step)
    subsets = np.array(list(product((False, True), repeat=count)))[:, ::-1]
    mixed = np.where(subsets[:, None, :], moved, backgrounds)
    outputs = link(mixed.reshape(-1, count)).reshape(len(subsets), rows, -1)
    sizes = np.count_nonzero(subsets, axis=1).tolist()
    found = np.empty((rows, count, outputs.shape[2]))
    for score in range(count):
        without = np.flatnonzero(~subsets[:, score])
        weights = np.array([1 / (count * math.comb(count - 1, sizes[each])) for each in without])
        gains = outputs[without + 2**score] - outputs[without]
        found[:, score] = np.tensordot(weights, gains, 1) / (moved - backgrounds)[:, score, None]
    return found
