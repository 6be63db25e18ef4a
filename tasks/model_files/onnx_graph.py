"""Build ONNX graphs in double precision. The one home of onnx.

A converter writes what one fitted step computes: a function of the graph, the step and its input (see Converter). `Graph`
holds the converters by the names of their steps, so a step that contains others converts them with `graph.convert`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from onnx import TensorProto, helper, numpy_helper
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

from evergreen.tasks.core.errors import CompileError
from evergreen.tasks.model_files.onnx_runtime import (
    INPUT,
    OUTPUT,
    SIGNATURE_KEY,
    TABLES_KEY,
    TRACED,
    Column,
    Signature,
    Text,
    dumps,
)
from evergreen.tasks.model_files.tree_tables import Tree

OPSET, TREES_OPSET, IR = 21, 5, 10
MAX_LEAVES = 2_000_000
"""A model with more leaves stays as it is: its graph would be slow to load."""
SUM, AT_MOST, MEMBER = 1, 0, 6
"""ONNX codes of TreeEnsemble: leaves are added; a node compares with a threshold, or looks for a category."""
TEXT = "text"
"""Start of the names of inputs for texts."""
EQUAL_WITHIN = 1e-12
"""Relative distance below which `interpolate` takes two numbers for equal."""


class Graph:
    """An ONNX graph under construction. A value is the name of a matrix of doubles with one row per case."""

    def __init__(self, converters: Mapping[str, "Converter"]) -> None:
        self.columns: list[Column] = []
        """How the input is read; converters add what they need."""
        self.texts: list[Text] = []
        self.scores: list[Added] = []
        """What models add up; converters of models add theirs."""
        self._converters = converters
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def convert(self, step: Any, x: "Value") -> str:
        """Convert the fitted `step`: a matrix for a transformer, probabilities by class for a classifier, else one column.

        Raises CompileError, naming the step, where it has no converter.
        """
        if name_of(step) not in self._converters:
            raise CompileError(f"{name_of(step)} has no compiled form")
        return self._converters[name_of(step)](self, step, x)

    def add(self, op: str, *inputs: str | np.ndarray, domain: str = "", **attributes: Any) -> str:
        """Add the operator `op` on `inputs`, and return the name of its output. Arrays become constants of the graph."""
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, names, [name], domain=domain, **attributes))
        return name

    def pick(self, x: str, columns: Sequence[int] | np.ndarray) -> str:
        return self.add("Gather", x, np.asarray(columns, dtype=np.int64), axis=1)

    def concatenate(self, parts: Sequence[str]) -> str:
        """The columns of `parts` side by side."""
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=1)

    def repeat(self, row: np.ndarray) -> str:
        """`row` once for each case."""
        count = self.add("Shape", INPUT, start=0, end=1)
        return self.add("Expand", row.reshape(1, -1), self.add("Concat", count, np.array([1]), axis=0))

    def linear(self, x: str, weights: np.ndarray, intercept: np.ndarray) -> str:
        """x times `weights` (input x output), plus `intercept`."""
        return self.add("Add", self.add("MatMul", x, weights.astype(float)), np.atleast_1d(intercept).astype(float))

    def clip(self, x: str, low: float, high: float) -> str:
        return self.add("Max", self.add("Min", x, np.array([high])), np.array([low]))

    def to_double(self, x: str) -> str:
        return self.add("Cast", x, to=TensorProto.DOUBLE)

    def to_integer(self, x: str) -> str:
        return self.add("Cast", x, to=TensorProto.INT64)

    def round_to_single(self, x: str) -> str:
        """Doubles that hold the nearest number of single precision."""
        return self.to_double(self.add("Cast", x, to=TensorProto.FLOAT))

    def interpolate(self, x: str, points: np.ndarray, values: np.ndarray, passed: str, tolerance: float = EQUAL_WITHIN) -> str:
        """Linear interpolation of each column between `values` at `points` (both column x point, ascending).

        `passed`, GreaterOrEqual or Greater, compares x with a point and so decides which of several equal points counts. A
        number within `tolerance` of a point counts as equal: earlier steps may round otherwise than those of the pipeline do,
        and between equal points the value jumps.
        """
        columns, count = points.shape
        moved = points + tolerance * np.maximum(1.0, np.abs(points)) * (1 if passed == "Greater" else -1)
        above = self.add(passed, self.add("Unsqueeze", x, np.array([2])), moved[None])
        below = self.add("ReduceSum", self.to_double(above), np.array([2]), keepdims=0)
        first = self.clip(self.add("Sub", below, np.array([1.0])), 0.0, count - 2.0)
        place = self.to_integer(self.add("Add", first, np.arange(columns) * float(count)))
        after = self.add("Add", place, np.array([1]))
        low, start = (self.add("Gather", each.reshape(-1), place, axis=0) for each in (points, values))
        high, end = (self.add("Gather", each.reshape(-1), after, axis=0) for each in (points, values))
        gap = self.add("Sub", high, low)
        divisor = self.add("Where", self.add("Greater", gap, np.array([0.0])), gap, np.array([1.0]))
        share = self.clip(self.add("Div", self.add("Sub", x, low), divisor), 0.0, 1.0)
        return self.add("Add", start, self.add("Mul", share, self.add("Sub", end, start)))

    def sum_trees(self, x: str, trees: Sequence[Tree], targets: int) -> str:
        """The sums over `trees` of the leaves that a row falls into, one column per target.

        Raises CompileError for more than MAX_LEAVES leaves.
        """
        if (size := sum(len(tree.leaves) for tree in trees)) > MAX_LEAVES:
            raise CompileError(f"{size:,} leaves of trees are too many for a compiled form (at most {MAX_LEAVES:,})")
        return self.add("TreeEnsemble", x, domain="ai.onnx.ml", n_targets=targets, **_tree_attributes(trees))

    def score_trees(self, x: str, trees: Sequence[Tree], targets: int) -> str:
        """`sum_trees`, kept as scores."""
        return self.keep_score(Added(x, self.sum_trees(x, trees, targets), targets, trees=trees))

    def score_line(self, x: str, weights: np.ndarray, intercept: np.ndarray) -> str:
        """`linear`, kept as scores."""
        return self.keep_score(Added(x, self.linear(x, weights, intercept), weights.shape[1], weights=weights))

    def keep_score(self, score: "Added") -> str:
        self.scores.append(score)
        return score.output

    def serialize(self, output: str, signature: Signature, tables: str = "") -> bytes:
        """The finished model. `tables`: of score_tables; with them the model also returns the matrix and the scores of each."""
        traced = [name for score in self.scores for name in (score.x, score.output)]
        graph = helper.make_graph(
            [
                *self._nodes,
                helper.make_node("Identity", [output], [OUTPUT]),
                *(helper.make_node("Identity", [name], [f"{TRACED}{place}"]) for place, name in enumerate(traced)),
            ],
            "evergreen",
            [helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, [None, len(self.columns)]), *self._text_inputs()],
            [_matrix_info(OUTPUT), *(_matrix_info(f"{TRACED}{place}") for place in range(len(traced)))],
            self._constants,
        )
        return _serialize(graph, {SIGNATURE_KEY: dumps(signature), **({TABLES_KEY: tables} if tables else {})})

    def serialize_link(self, output: str) -> bytes:
        """The graph from scores, side by side, to the output.

        Raises CompileError where the output needs more than scores.
        """
        makers = {node.output[0]: node for node in self._nodes}
        starts = {score.output for score in self.scores}
        needed, wanted = set[str](), [output]
        while wanted:
            name = wanted.pop()
            if name in needed or name in starts or name not in makers:
                continue
            needed.add(name)
            wanted += makers[name].input
        nodes = [node for node in self._nodes if node.output[0] in needed]
        given = {name for node in nodes for name in node.input}
        if INPUT in given or any(name.startswith(TEXT) for name in given) or not starts:
            raise CompileError("a model that does not only add up scores has no exact contributions")
        firsts = np.cumsum([0, *(score.width for score in self.scores)])
        picks, constants = [], [each for each in self._constants if each.name in given]
        for score, first in zip(self.scores, firsts, strict=False):
            place = numpy_helper.from_array(np.arange(first, first + score.width), f"columns of {score.output}")
            constants.append(place)
            picks.append(helper.make_node("Gather", [INPUT, place.name], [score.output], axis=1))
        graph = helper.make_graph(
            [*picks, *nodes, helper.make_node("Identity", [output], [OUTPUT])],
            "link",
            [helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, [None, int(firsts[-1])])],
            [_matrix_info(OUTPUT)],
            constants,
        )
        return _serialize(graph, {})

    def _text_inputs(self) -> list[Any]:
        types = {"ids": TensorProto.INT64, "weights": TensorProto.DOUBLE}
        return [
            helper.make_tensor_value_info(f"{text.input}_{part}", kind, [None, None])
            for text in self.texts
            for part, kind in types.items()
        ]

    def _constant(self, array: np.ndarray) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


@dataclass(frozen=True)
class Added:
    """Numbers that a model adds up from a matrix: by trees, or by weights."""

    x: str
    """The matrix."""
    output: str
    """The numbers, side by side."""
    width: int
    """How many."""
    trees: Sequence[Tree] = ()
    weights: np.ndarray | None = None
    """Column x number."""


@dataclass
class Frame:
    """The named columns that a pipeline starts from."""

    features: pd.DataFrame
    """Rows of the training table, for the columns' types and categories."""
    _inputs: dict[Any, str] = field(default_factory=dict)
    """Columns that were asked for -> their value: models side by side mostly want the same."""

    def kind(self, name: str) -> Literal["number", "date", "text"]:
        column = self.features[name]
        return "number" if is_numeric_dtype(column) else "date" if is_datetime64_any_dtype(column) else "text"

    def read(self, graph: Graph, columns: Sequence[Column]) -> str:
        """The `columns` of the input."""
        key = tuple(column.model_dump_json() for column in columns)
        if key not in self._inputs:
            self._inputs[key] = graph.pick(INPUT, range(len(graph.columns), len(graph.columns) + len(columns)))
            graph.columns += columns
        return self._inputs[key]

    def numbers(self, graph: Graph, names: Sequence[str]) -> str:
        """The columns `names`, numbers as they are."""
        return self.read(graph, [Column(name=name) for name in names])

    def codes(self, graph: Graph, names: Sequence[str], categories: Sequence[Sequence[str]]) -> str:
        """The columns `names` as integers, counted through all of them; the last of each column is an unseen category."""
        columns, start = [], 0
        for name, known in zip(names, categories, strict=True):
            numbers = {each: start + place for place, each in enumerate(known)}
            columns.append(Column(name=name, part="category", codes=numbers, unseen=start + len(known)))
            start += len(known) + 1
        return graph.to_integer(self.read(graph, columns))

    def words(self, graph: Graph, name: str, ids: Mapping[str, int], idf: np.ndarray) -> str:
        """The words of a text: the name of an input, without _ids and _weights."""
        numbered = {word: int(place) for word, place in ids.items()}
        found = Text(name=name, input="", vocabulary=numbered, idf=tuple(idf.tolist()))
        key = found.model_dump_json()
        if key not in self._inputs:
            self._inputs[key] = f"{TEXT}{len(graph.texts)}"
            graph.texts.append(found.model_copy(update={"input": self._inputs[key]}))
        return self._inputs[key]


Value = Frame | str
"""The input of a step: the named columns, or a matrix."""
Converter = Callable[[Graph, Any, Value], str]


def name_of(step: Any) -> str:
    """Package and class, such as sklearn.Ridge."""
    return f"{type(step).__module__.partition('.')[0]}.{type(step).__name__}"


def matrix(x: Value) -> str:
    """`x`, which must be a matrix. Raises CompileError for named columns."""
    if isinstance(x, str):
        return x
    raise CompileError("a model on named columns, without steps before it, has no compiled form")


def _tree_attributes(trees: Sequence[Tree]) -> dict[str, Any]:
    """All trees as the flat lists that the operator TreeEnsemble takes."""
    trees = [tree if len(tree.feature) else _stump(tree) for tree in trees]
    nodes = np.cumsum([0, *(len(tree.feature) for tree in trees)])
    leaves = np.cumsum([0, *(len(tree.leaves) for tree in trees)])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(tree, name) for tree in trees])

    def children(name: str) -> list[int]:
        found = [
            np.where(getattr(tree, name) < 0, leaf - 1 - getattr(tree, name), node + getattr(tree, name))
            for tree, node, leaf in zip(trees, nodes, leaves, strict=False)
        ]
        return np.concatenate(found).tolist()

    members = [tree.members.get(node) for tree in trees for node in range(len(tree.feature))]
    listed = [value for each in members if each for value in (*each, np.nan)]
    return {
        "aggregate_function": SUM,
        "post_transform": 0,
        "tree_roots": nodes[:-1].tolist(),
        "nodes_featureids": joined("feature").tolist(),
        "nodes_splits": _tensor(joined("threshold").astype(float)),
        "nodes_modes": _tensor(np.array([MEMBER if each else AT_MOST for each in members], dtype=np.uint8)),
        "nodes_missing_value_tracks_true": joined("missing_left").astype(int).tolist(),
        "nodes_truenodeids": children("left"),
        "nodes_falsenodeids": children("right"),
        "nodes_trueleafs": (joined("left") < 0).astype(int).tolist(),
        "nodes_falseleafs": (joined("right") < 0).astype(int).tolist(),
        "leaf_targetids": np.repeat([tree.target for tree in trees], [len(tree.leaves) for tree in trees]).tolist(),
        "leaf_weights": _tensor(np.concatenate([tree.leaves[:, 0] for tree in trees]).astype(float)),
        **({"membership_values": _tensor(np.array(listed))} if listed else {}),
    }


def _stump(tree: Tree) -> Tree:
    """A tree of one leaf with a node above it, which ONNX requires."""
    leaf, zero = np.array([-1]), np.array([0])
    return Tree(zero, np.array([0.0]), np.array([False]), leaf, leaf, tree.leaves, target=tree.target)


def _matrix_info(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, None])


def _serialize(graph: Any, properties: dict[str, str]) -> bytes:
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", TREES_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="evergreen")
    helper.set_model_props(model, properties)
    return model.SerializeToString()


def _tensor(array: np.ndarray) -> Any:
    return numpy_helper.from_array(array)
