"""A fitted pipeline as one ONNX graph, and the proof that both answer alike. The one home of onnx.

The graph is written from what the steps learned, in double precision throughout, so that a threshold of a tree or a split at a
category falls as it does in the pipeline. CONVERTERS says what can be compiled: one function per class. Text never enters the
graph: a category is a number by the time it does (model_files.onnx_runtime.Column), and what its pipeline makes of it,
alone, is a row
of a table (`_tabulate`): one-hot, ordinal, target, frequency, scaled or not.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from onnx import TensorProto, helper, numpy_helper
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype, is_string_dtype
from scipy.sparse import issparse
from sklearn.base import is_clusterer
from sklearn.pipeline import Pipeline

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Section
from evergreen.tasks.core.errors import CompileError, EvergreenError
from evergreen.tasks.core.paths import Layout, write_json
from evergreen.tasks.model_files.onnx_runtime import INPUT, MADE, Column, Compiled, Part, Reading, Text, dumps
from evergreen.tasks.model_files.tree_tables import Tree, boosted, grown, histogram, objective
from evergreen.tasks.problems.base import Model
from evergreen.tasks.problems.tabular.calibration import SMALLEST
from evergreen.tasks.problems.tabular.date_text_encoders import DIGITS
from evergreen.tasks.problems.tabular.preprocessing import MISSING
from evergreen.tasks.problems.tabular.tabular_kind import Said, TabularKind

OPSET, TREES_OPSET, IR = 21, 5, 10
TOLERANCE = 1e-5
"""Largest difference between compiled model and pipeline; of a number, in relation to it where it is above 1."""
LARGEST = 2_000_000
"""A model with more nodes of trees stays as it is: its graph would be slow to load."""
NEVER = "\x00"
"""A category that no table holds."""


class Parity(Section):
    """How alike a compiled model and its pipeline answer."""

    rows: int
    """Rows that both answered, with unseen categories and missing values among them."""
    difference: float
    """The largest difference."""
    tolerance: float


class Latency(Section):
    """Wall time of one row, median milliseconds on the machine that compiled."""

    row_ms: float
    """By the compiled model."""
    pipeline_row_ms: float
    """By the pipeline."""


class Graph:
    """An ONNX graph in the making. A value is known by its name; all are matrices of doubles, one row per case."""

    def __init__(self) -> None:
        self.columns: list[Column] = []
        """How the input is read; converters add what they need."""
        self.texts: list[Text] = []
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, op: str, *inputs: str | np.ndarray, domain: str = "", **attributes: Any) -> str:
        """The value that `op` makes of `inputs`; arrays become constants of the graph."""
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, names, [name], domain=domain, **attributes))
        return name

    def pick(self, x: str, places: Sequence[int] | np.ndarray) -> str:
        return self.add("Gather", x, np.asarray(places, dtype=np.int64), axis=1)

    def side_by_side(self, parts: Sequence[str]) -> str:
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=1)

    def everywhere(self, row: np.ndarray) -> str:
        """`row` once for each case."""
        count = self.add("Shape", INPUT, start=0, end=1)
        return self.add("Expand", row.reshape(1, -1), self.add("Concat", count, np.array([1]), axis=0))

    def linear(self, x: str, weights: np.ndarray, intercept: np.ndarray) -> str:
        """x times `weights` (input x output), plus `intercept`."""
        return self.add("Add", self.add("MatMul", x, weights.astype(float)), np.atleast_1d(intercept).astype(float))

    def file(self, output: str, reading: Reading) -> bytes:
        """The finished model."""
        shape = [None, len(self.columns)]
        graph = helper.make_graph(
            [*self._nodes, helper.make_node("Identity", [output], ["answer"])],
            "evergreen",
            [helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, shape), *self._word_inputs()],
            [helper.make_tensor_value_info("answer", TensorProto.DOUBLE, [None, None])],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", TREES_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="evergreen")
        helper.set_model_props(model, {MADE: dumps(reading)})
        return model.SerializeToString()

    def _word_inputs(self) -> list[Any]:
        kinds = {"ids": TensorProto.INT64, "weights": TensorProto.DOUBLE}
        return [
            helper.make_tensor_value_info(f"{text.input}_{end}", kind, [None, None])
            for text in self.texts
            for end, kind in kinds.items()
        ]

    def _constant(self, array: np.ndarray) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


@dataclass
class Frame:
    """The named columns that a pipeline starts from."""

    features: pd.DataFrame
    """Rows of the training table: the columns, their types and the categories there are."""
    _read: dict[Any, str] = field(default_factory=dict)
    """What was asked for before -> its value: models side by side mostly want the same."""

    def kind(self, name: str) -> Literal["number", "date", "text"]:
        column = self.features[name]
        return "number" if is_numeric_dtype(column) else "date" if is_datetime64_any_dtype(column) else "text"

    def read(self, graph: Graph, columns: Sequence[Column]) -> str:
        """The `columns` of the input."""
        key = tuple(column.model_dump_json() for column in columns)
        if key not in self._read:
            self._read[key] = graph.pick(INPUT, range(len(graph.columns), len(graph.columns) + len(columns)))
            graph.columns += columns
        return self._read[key]

    def numbers(self, graph: Graph, names: Sequence[str]) -> str:
        """The columns `names`, numbers as they are."""
        return self.read(graph, [Column(name=name) for name in names])

    def codes(self, graph: Graph, names: Sequence[str], categories: Sequence[Sequence[str]]) -> str:
        """The columns `names` as whole numbers, counted through all of them; the last of each is a category not seen."""
        columns, start = [], 0
        for name, known in zip(names, categories, strict=True):
            numbers = {each: start + place for place, each in enumerate(known)}
            columns.append(Column(name=name, part="category", codes=numbers, unseen=start + len(known)))
            start += len(known) + 1
        return graph.add("Cast", self.read(graph, columns), to=TensorProto.INT64)

    def words(self, graph: Graph, name: str, ids: Mapping[str, int], rarity: np.ndarray) -> str:
        """The words of a text: the name of an input, with _ids and with _weights behind it."""
        numbered = {word: int(place) for word, place in ids.items()}
        found = Text(name=name, input="", words=numbered, rarity=tuple(rarity.tolist()))
        key = found.model_dump_json()
        if key not in self._read:
            self._read[key] = f"text{len(graph.texts)}"
            graph.texts.append(found.model_copy(update={"input": self._read[key]}))
        return self._read[key]


Value = Frame | str
"""What a step starts from: the named columns, or a matrix."""
Converter = Callable[[Graph, Any, Value], str]


def compile_model(model: Any, features: pd.DataFrame, complete: bool = False) -> bytes:
    """`model`, fitted on frames like `features`, as a file for `tasks.model_files.onnx_runtime.Compiled`.

    `complete`: the model refuses missing numbers, and so will the compiled one.
    Raises CompileError, naming it, for a step that has no compiled form.
    """
    graph = Graph()
    answer = convert(graph, model, Frame(features))
    reading = Reading(
        columns=tuple(graph.columns), texts=tuple(graph.texts), missing=MISSING, complete=complete, **_meaning(model)
    )
    return graph.file(answer, reading)


def convert(graph: Graph, thing: Any, x: Value) -> str:
    """What the fitted `thing` makes of `x`: probabilities by class of a classifier, a column of answers of other models."""
    if name_of(thing) not in CONVERTERS:
        raise CompileError(f"{name_of(thing)} has no compiled form")
    return CONVERTERS[name_of(thing)](graph, thing, x)


def name_of(thing: Any) -> str:
    """Package and class, such as sklearn.Ridge."""
    return f"{type(thing).__module__.partition('.')[0]}.{type(thing).__name__}"


def _meaning(model: Any) -> dict[str, Any]:
    """What the answers of the whole model say."""
    if not hasattr(model, "classes_"):
        return {"answers": "group" if is_clusterer(model) else "value"}
    classes = [each.item() if isinstance(each, np.generic) else each for each in model.classes_]
    threshold = getattr(model, "threshold", None)
    cut = {"threshold": threshold, "positive": classes.index(model.pos_label)} if threshold is not None else {}
    return {"answers": "chances", "classes": classes, **cut}


# -- steps: from a matrix (or the named columns) to a matrix


def _pipeline(graph: Graph, steps: Pipeline, x: Value) -> str:
    return _matrix(_steps(graph, steps.steps, x))


def _steps(graph: Graph, steps: Sequence[tuple[str, Any]], x: Value) -> Any:
    for _, step in steps:
        x = convert(graph, step, x)
    return x


def _matrix(x: Value) -> str:
    if isinstance(x, str):
        return x
    raise CompileError("a model on named columns, without steps before it, has no compiled form")


def _columns(graph: Graph, step: Any, x: Value) -> str:
    if isinstance(x, str):
        raise CompileError("a ColumnTransformer behind another step has no compiled form")
    return graph.side_by_side(
        [_part(graph, part, names, x) for _, part, names in step.transformers_ if len(names) and part != "drop"]
    )


def _part(graph: Graph, part: Any, names: Sequence[str], frame: Frame) -> str:
    kinds = {frame.kind(name) for name in names}
    if kinds == {"number"}:
        found = frame.numbers(graph, names)
        return found if part == "passthrough" else convert(graph, part, found)
    if len(kinds) > 1:
        raise CompileError(f"columns of {' and '.join(sorted(kinds))} in one step have no compiled form")
    reader = part.steps[0][1] if isinstance(part, Pipeline) else part
    if name_of(reader) not in READERS:
        return _tabulate(graph, part, list(names), frame)
    value = READERS[name_of(reader)](graph, reader, names, frame)
    return value if reader is part else _steps(graph, part.steps[1:], value)


def _tabulate(graph: Graph, part: Any, names: list[str], frame: Frame) -> str:
    """Steps that look at each column of text alone: what they give for each category, looked up."""
    categories = _categories(part, names, frame)
    given, owner = _every_category(names, categories)
    raw: Any = part.transform(given)
    made = np.asarray(raw.toarray() if issparse(raw) else raw, dtype=float)
    blocks = _blocks(made, owner, len(names))
    tables = [made[owner == place][:, block] for place, block in enumerate(blocks)]
    widest = max(len(block) for block in blocks)
    stacked = np.vstack([np.pad(table, ((0, 0), (0, widest - table.shape[1]))) for table in tables])
    looked_up = graph.add("Gather", stacked, frame.codes(graph, names, categories), axis=0)
    flat = graph.add("Reshape", looked_up, np.array([-1, widest * len(names)]))
    place = np.empty(made.shape[1], dtype=np.int64)
    for column, block in enumerate(blocks):
        place[block] = column * widest + np.arange(len(block))
    return flat if np.array_equal(place, np.arange(widest * len(names))) else graph.pick(flat, place)


def _categories(part: Any, names: list[str], frame: Frame) -> list[list[str]]:
    """Each column's categories: those that an encoder learned, else those of the data; always with the missing one."""
    steps = [step for _, step in part.steps] if isinstance(part, Pipeline) else [part]
    learned = next((step.categories_ for step in steps if hasattr(step, "categories_")), None)
    found = learned if learned is not None else [frame.features[name].dropna().unique() for name in names]
    return [sorted({*map(str, each), MISSING}) for each in found]


def _every_category(names: list[str], categories: list[list[str]]) -> tuple[pd.DataFrame, np.ndarray]:
    """One row per column and category, the last one never seen, all other columns never seen; and whose row each is."""
    owner = np.repeat(np.arange(len(names)), [len(known) + 1 for known in categories])
    cells = np.full((len(owner), len(names)), NEVER, dtype=object)
    for place, known in enumerate(categories):
        cells[owner == place, place] = [*known, NEVER]
    return pd.DataFrame(cells, columns=names, dtype="str"), owner


def _blocks(made: np.ndarray, owner: np.ndarray, count: int) -> list[np.ndarray]:
    """Which columns of `made` depend on each input. Raises CompileError for one that depends on several."""
    neutral = made[-1]
    depends = np.array([(made[owner == place] != neutral).any(axis=0) for place in range(count)])
    if (depends.sum(axis=0) > 1).any():
        raise CompileError("a step that looks at several categories at once has no compiled form")
    of = np.where(depends.any(axis=0), depends.argmax(axis=0), 0)
    return [np.flatnonzero(of == place) for place in range(count)]


def _dates(graph: Graph, step: Any, names: Sequence[str], frame: Frame) -> str:
    parts: list[Part] = ["days", "year", "month", "day", "dayofweek", "hour"]
    columns, since = [], []
    for name, hours, first in zip(names, step.hours_, step.earliest_, strict=True):
        columns += [Column(name=name, part=part) for part in parts[: 5 + hours]]
        since += [first, *[0.0] * (4 + hours)]
    found = [graph.add("Sub", frame.read(graph, columns), np.array(since))]
    if step.pairs_:
        days = frame.read(graph, [Column(name=name, part="days") for name in names])
        first, second = (graph.pick(days, each) for each in np.transpose(step.pairs_))
        found.append(graph.add("Sub", second, first))
    return graph.side_by_side(found)


def _texts(graph: Graph, step: Any, names: Sequence[str], frame: Frame) -> str:
    spaces = zip(names, step.spaces_, strict=True)
    return graph.side_by_side([part for name, space in spaces for part in _text(graph, name, space, frame)])


def _text(graph: Graph, name: str, space: Sequence[Any], frame: Frame) -> list[str]:
    """How long a text is, and the sum of the places of its words."""
    lengths = frame.read(graph, [Column(name=name, part="letters"), Column(name=name, part="words")])
    if not space:
        return [lengths]
    vectorizer, projection = space
    given = frame.words(graph, name, vectorizer.vocabulary_, vectorizer.idf_)
    places = np.vstack([projection.components_.T, np.zeros(len(projection.components_))])
    weights = graph.add("Unsqueeze", f"{given}_weights", np.array([2]))
    weighted = graph.add("Mul", graph.add("Gather", places, f"{given}_ids", axis=0), weights)
    found = graph.add("Mul", graph.add("ReduceSum", weighted, np.array([1]), keepdims=0), np.array([10.0**DIGITS]))
    return [lengths, graph.add("Div", graph.add("Round", found), np.array([10.0**DIGITS]))]


READERS: dict[str, Callable[[Graph, Any, Sequence[str], Frame], str]] = {"evergreen.Dates": _dates, "evergreen.Words": _texts}
"""Steps that read dates and texts from the named columns; other columns that are no numbers are looked up (`_tabulate`)."""


def _same(graph: Graph, step: Any, x: Value) -> str:
    return _matrix(x)


def _passed(graph: Graph, step: Any, x: Value) -> str:
    if step.func is not None:
        raise CompileError(f"FunctionTransformer with {step.func} has no compiled form")
    return _matrix(x)


def _impute(graph: Graph, step: Any, x: Value) -> str:
    """Gaps filled; behind them, where asked for, whether there was one."""
    numbers = _matrix(x)
    missing = graph.add("IsNaN", numbers)
    filled = graph.add("Where", missing, np.nan_to_num(step.statistics_.astype(float)), numbers)
    if not step.add_indicator or not len(step.indicator_.features_):
        return filled
    return graph.side_by_side([filled, _number(graph, graph.pick(missing, step.indicator_.features_))])


def _signed_log(graph: Graph, step: Any, x: Value) -> str:
    numbers = _matrix(x)
    logs = graph.add("Log", graph.add("Add", graph.add("Abs", numbers), np.array([1.0])))
    return graph.add("Mul", graph.add("Sign", numbers), logs)


def _curves(graph: Graph, step: Any, x: Value) -> str:
    inside = graph.add("Max", graph.add("Min", _matrix(x), step.high_), step.low_)
    if not len(step.points_):
        return inside
    beyond = graph.add("Sub", graph.pick(inside, step.columns_), step.points_)
    return graph.side_by_side([inside, graph.add("Max", beyond, np.array([0.0]))])


def _standard(graph: Graph, step: Any, x: Value) -> str:
    return _scaled(graph, _matrix(x), step.mean_, step.scale_)


def _robust(graph: Graph, step: Any, x: Value) -> str:
    return _scaled(graph, _matrix(x), step.center_, step.scale_)


def _scaled(graph: Graph, x: str, centre: np.ndarray | None, spread: np.ndarray | None) -> str:
    moved = x if centre is None else graph.add("Sub", x, centre)
    return moved if spread is None else graph.add("Div", moved, spread)


def _select(graph: Graph, step: Any, x: Value) -> str:
    return graph.pick(_matrix(x), np.flatnonzero(step.get_support()))


def _pca(graph: Graph, step: Any, x: Value) -> str:
    spread = np.sqrt(step.explained_variance_) if step.whiten else None
    turned = graph.add("MatMul", graph.add("Sub", _matrix(x), step.mean_), np.ascontiguousarray(step.components_.T))
    return _scaled(graph, turned, None, spread)


def _svd(graph: Graph, step: Any, x: Value) -> str:
    return graph.add("MatMul", _matrix(x), np.ascontiguousarray(step.components_.T))


def _quantiles(graph: Graph, step: Any, x: Value) -> str:
    """The mean of two interpolations, which differ where a quantile is there more than once; then the normal distribution."""
    numbers, known = _matrix(x), step.quantiles_.T
    levels = np.broadcast_to(step.references_, known.shape)
    both = graph.add("Add", *(_interpolate(graph, numbers, known, levels, op) for op in ("GreaterOrEqual", "Greater")))
    inside = graph.add("Mul", both, np.array([0.5]))
    shift = EDGE if step.output_distribution == "normal" else 0.0
    under = graph.add("LessOrEqual", graph.add("Sub", numbers, np.array([shift])), known[:, 0])
    over = graph.add("GreaterOrEqual", graph.add("Add", numbers, np.array([shift])), known[:, -1])
    level = graph.add("Where", under, np.array([0.0]), graph.add("Where", over, np.array([1.0]), inside))
    return _normal(graph, level) if step.output_distribution == "normal" else level


EDGE = 1e-7
"""scikit-learn counts as the smallest or largest value what is so near to it, and keeps probabilities as far from 0 and 1."""

SAME = 1e-12
"""Numbers (in relation to their size) that are no farther apart count as one where it matters."""


def _interpolate(graph: Graph, x: str, known: np.ndarray, values: np.ndarray, passed: str, near: float = SAME) -> str:
    """Column by column: `values` at `known` (both column x point, ascending), and between them on a line.

    `passed` compares x with a point: which of several equal points counts. Next to a point is at it: the steps before may
    round another way than those of the pipeline, and where points are equal that would be a jump.
    """
    columns, points = known.shape
    moved = known + near * np.maximum(1.0, np.abs(known)) * (1 if passed == "Greater" else -1)
    above = graph.add(passed, graph.add("Unsqueeze", x, np.array([2])), moved[None])
    count = graph.add("ReduceSum", _number(graph, above), np.array([2]), keepdims=0)
    first = _between(graph, graph.add("Sub", count, np.array([1.0])), 0.0, points - 2.0)
    place = graph.add("Cast", graph.add("Add", first, np.arange(columns) * float(points)), to=TensorProto.INT64)
    after = graph.add("Add", place, np.array([1]))
    low, start = (graph.add("Gather", each.reshape(-1), place, axis=0) for each in (known, values))
    high, end = (graph.add("Gather", each.reshape(-1), after, axis=0) for each in (known, values))
    gap = graph.add("Sub", high, low)
    safe = graph.add("Where", graph.add("Greater", gap, np.array([0.0])), gap, np.array([1.0]))
    share = graph.add("Div", graph.add("Sub", x, low), safe)
    kept = _between(graph, share, 0.0, 1.0)
    return graph.add("Add", start, graph.add("Mul", kept, graph.add("Sub", end, start)))


def _normal(graph: Graph, level: str) -> str:
    """The normal quantile of probabilities, EDGE off 0 and 1 at least: algorithm AS 241 of Wichura (1988), PPND16."""
    bound = EDGE - np.spacing(1)
    p = _between(graph, level, bound, 1 - bound)
    q = graph.add("Sub", p, np.array([0.5]))
    near = graph.add("Sub", np.array([0.180625]), graph.add("Mul", q, q))
    centre = graph.add("Mul", q, graph.add("Div", _polynomial(graph, near, CENTRE[0]), _polynomial(graph, near, CENTRE[1])))
    tail = graph.add("Min", p, graph.add("Sub", np.array([1.0]), p))
    far = graph.add("Sub", graph.add("Sqrt", graph.add("Neg", graph.add("Log", tail))), np.array([1.6]))
    outer = graph.add("Div", _polynomial(graph, far, TAIL[0]), _polynomial(graph, far, TAIL[1]))
    signed = graph.add("Mul", graph.add("Sign", q), outer)
    return graph.add("Where", graph.add("LessOrEqual", graph.add("Abs", q), np.array([0.425])), centre, signed)


def _polynomial(graph: Graph, x: str, factors: Sequence[float]) -> str:
    """Horner's rule; the constant term comes first."""
    value = graph.add("Mul", x, np.array([factors[-1]]))
    for factor in factors[-2:0:-1]:
        value = graph.add("Mul", graph.add("Add", value, np.array([factor])), x)
    return graph.add("Add", value, np.array([factors[0]]))


CENTRE = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
TAIL = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
"""Numerators and denominators of AS 241, near the middle and away from it."""


# -- models: from a matrix to answers


def _prior(graph: Graph, model: Any, x: Value) -> str:
    if model.strategy != "prior":
        raise CompileError(f"DummyClassifier with strategy {model.strategy} has no compiled form")
    return graph.everywhere(np.asarray(model.class_prior_, dtype=float))


def _constant(graph: Graph, model: Any, x: Value) -> str:
    return graph.everywhere(np.asarray(model.constant_, dtype=float))


def _logistic(graph: Graph, model: Any, x: Value) -> str:
    return _chances(graph, graph.linear(_matrix(x), model.coef_.T, model.intercept_), len(model.coef_))


def _linear(graph: Graph, model: Any, x: Value) -> str:
    return graph.linear(_matrix(x), np.atleast_2d(model.coef_).T, model.intercept_)


def _chances(graph: Graph, scores: str, count: int) -> str:
    """Probabilities by class, of `count` columns of scores: one for two classes, else one for each."""
    return _two(graph, graph.add("Sigmoid", scores)) if count == 1 else graph.add("Softmax", scores, axis=1)


def _two(graph: Graph, chance: str) -> str:
    """Probabilities of both classes, of that of the second."""
    return graph.side_by_side([graph.add("Sub", np.array([1.0]), chance), chance])


def _boosted_classes(graph: Graph, model: Any, x: Value) -> str:
    name, *settings = objective(model)
    if name not in ("binary", "multiclass") or settings not in ([], ["sigmoid:1"], [f"num_class:{model.n_classes_}"]):
        raise CompileError(f"lightgbm with objective {name} has no compiled form")
    count = 1 if name == "binary" else model.n_classes_
    return _chances(graph, _walk(graph, _matrix(x), boosted(model), count), count)


def _boosted_value(graph: Graph, model: Any, x: Value) -> str:
    name, *_ = objective(model)
    if name not in ("regression", "regression_l1", "huber", "fair", "quantile", "mape"):
        raise CompileError(f"lightgbm with objective {name} has no compiled form")
    return _walk(graph, _matrix(x), boosted(model), 1)


def _histogram_classes(graph: Graph, model: Any, x: Value) -> str:
    count = model.n_trees_per_iteration_
    scores = _walk(graph, _matrix(x), histogram(model), count)
    return _chances(graph, graph.add("Add", scores, model._baseline_prediction.reshape(1, -1).astype(float)), count)


def _histogram_value(graph: Graph, model: Any, x: Value) -> str:
    if model.loss not in ("squared_error", "absolute_error", "quantile"):
        raise CompileError(f"{type(model).__name__} with loss {model.loss} has no compiled form")
    scores = _walk(graph, _matrix(x), histogram(model), 1)
    return graph.add("Add", scores, model._baseline_prediction.reshape(1, -1).astype(float))


def _forest(graph: Graph, model: Any, x: Value) -> str:
    """The mean over the trees: of probabilities, or of values."""
    trees = grown(each.tree_ for each in getattr(model, "estimators_", [model]))
    rounded = graph.add("Cast", graph.add("Cast", _matrix(x), to=TensorProto.FLOAT), to=TensorProto.DOUBLE)
    width = trees[0].leaves.shape[1]
    scaled = [replace(tree, leaves=tree.leaves / len(trees)) for tree in trees]
    if width == 2:
        return _two(graph, _walk(graph, rounded, [replace(tree, leaves=tree.leaves[:, 1:]) for tree in scaled], 1))
    return _looked_up(graph, rounded, scaled)


def _looked_up(graph: Graph, x: str, trees: Sequence[Tree]) -> str:
    """The sum of rows of leaves: each tree says which of them, a table holds them."""
    starts = np.cumsum([0, *(len(tree.leaves) for tree in trees)])
    each = [
        replace(tree, leaves=np.arange(start, start + len(tree.leaves))[:, None], target=place)
        for place, (tree, start) in enumerate(zip(trees, starts, strict=False))
    ]
    leaf = graph.add("Cast", _walk(graph, x, each, len(trees)), to=TensorProto.INT64)
    found = graph.add("Gather", np.concatenate([tree.leaves for tree in trees]), leaf, axis=0)
    return graph.add("ReduceSum", found, np.array([1]), keepdims=0)


def _walk(graph: Graph, x: str, trees: Sequence[Tree], targets: int) -> str:
    """The sums over `trees` of the leaves that a row falls into, one column per target."""
    if (size := sum(len(tree.leaves) for tree in trees)) > LARGEST:
        raise CompileError(f"{size:,} leaves of trees are too many for a compiled form (at most {LARGEST:,})")
    trees = [tree if len(tree.feature) else _stump(tree) for tree in trees]
    nodes = np.cumsum([0, *(len(tree.feature) for tree in trees)])
    leaves = np.cumsum([0, *(len(tree.leaves) for tree in trees)])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(tree, name) for tree in trees])

    def children(name: str) -> np.ndarray:
        starts = zip(trees, nodes, leaves, strict=False)
        return np.concatenate(
            [
                np.where(getattr(tree, name) < 0, leaf - 1 - getattr(tree, name), node + getattr(tree, name))
                for tree, node, leaf in starts
            ]
        )

    members = [tree.members.get(node) for tree in trees for node in range(len(tree.feature))]
    told = (
        {"membership_values": _tensor(np.array([v for each in members if each for v in (*each, np.nan)]))}
        if any(members)
        else {}
    )
    return graph.add(
        "TreeEnsemble",
        x,
        domain="ai.onnx.ml",
        n_targets=targets,
        aggregate_function=SUM,
        post_transform=0,
        tree_roots=nodes[:-1].tolist(),
        nodes_featureids=joined("feature").tolist(),
        nodes_splits=_tensor(joined("threshold").astype(float)),
        nodes_modes=_tensor(np.array([MEMBER if each else AT_MOST for each in members], dtype=np.uint8)),
        nodes_missing_value_tracks_true=joined("missing_left").astype(int).tolist(),
        nodes_truenodeids=children("left").tolist(),
        nodes_falsenodeids=children("right").tolist(),
        nodes_trueleafs=(joined("left") < 0).astype(int).tolist(),
        nodes_falseleafs=(joined("right") < 0).astype(int).tolist(),
        leaf_targetids=np.repeat([tree.target for tree in trees], [len(tree.leaves) for tree in trees]).tolist(),
        leaf_weights=_tensor(np.concatenate([tree.leaves[:, 0] for tree in trees]).astype(float)),
        **told,
    )


SUM, AT_MOST, MEMBER = 1, 0, 6
"""Numbers that ONNX gives to sums over trees and to the two kinds of node."""


def _stump(tree: Tree) -> Tree:
    """A tree of one leaf, with a node above it: ONNX wants one."""
    end, zero = np.array([-1]), np.array([0])
    return Tree(zero, np.array([0.0]), np.array([False]), end, end, tree.leaves, target=tree.target)


def _tensor(array: np.ndarray) -> Any:
    return numpy_helper.from_array(array)


def _nearest(graph: Graph, model: Any, x: Value) -> str:
    """The centre at the smallest distance."""
    centres = model.cluster_centers_.astype(float)
    squares = graph.linear(_matrix(x), -2 * centres.T, (centres**2).sum(axis=1))
    return _number(graph, graph.add("ArgMin", squares, axis=1))


def _likeliest(graph: Graph, model: Any, x: Value) -> str:
    """The component of a Gaussian mixture with the largest density times weight."""
    points, dimensions = _matrix(x), model.means_.shape[1]
    spreads = [_precision(model, place) for place in range(len(model.means_))]
    squares = [
        graph.add("ReduceSumSquare", graph.linear(points, spread, -mean @ spread), np.array([1]), keepdims=1)
        for mean, spread in zip(model.means_, spreads, strict=True)
    ]
    known = np.array([np.linalg.slogdet(spread)[1] for spread in spreads]) + np.log(model.weights_)
    scores = graph.add("Mul", graph.side_by_side(squares), np.array([-0.5]))
    return _number(graph, graph.add("ArgMax", graph.add("Add", scores, known - dimensions / 2 * np.log(2 * np.pi)), axis=1))


def _precision(model: Any, place: int) -> np.ndarray:
    """The root of a component's precision matrix."""
    found = model.precisions_cholesky_
    if model.covariance_type == "tied":
        return found
    each = found[place]
    return each if model.covariance_type == "full" else np.diag(np.broadcast_to(each, model.means_.shape[1:]))


def _quantile_groups(graph: Graph, model: Any, x: Value) -> str:
    edges = model.edges_ - SAME * np.maximum(1.0, np.abs(model.edges_))
    passed = graph.add("GreaterOrEqual", graph.pick(_matrix(x), [0]), edges.reshape(1, -1))
    return graph.add("ReduceSum", _number(graph, passed), np.array([1]), keepdims=1)


def _number(graph: Graph, x: str) -> str:
    return graph.add("Cast", x, to=TensorProto.DOUBLE)


# -- models around models


def _segments(graph: Graph, model: Any, x: Value) -> str:
    found = convert(graph, model.clusterer_, convert(graph, model.prepare_, x))
    order = model.labels_in_order_
    named = np.full(max(int(order.max()) + 1, getattr(model.clusterer_, "n_clusters", 0)) + 1, len(order) - 1.0)
    named[order] = np.arange(len(order))
    return graph.add("Gather", named, graph.add("Cast", found, to=TensorProto.INT64), axis=0)


def _offset(graph: Graph, model: Any, x: Value) -> str:
    if isinstance(x, str):
        raise CompileError("OffsetRegressor behind another step has no compiled form")
    first = x.numbers(graph, [model.offset])
    guess = graph.add("Where", graph.add("IsNaN", first), np.array([0.0]), first)
    rest = convert(graph, model.regressor_, x)
    return graph.add("Add", graph.add("Mul", guess, np.array([model.factor_])), rest)


def _blend(graph: Graph, model: Any, x: Value) -> str:
    """The weighted mean of models side by side."""
    parts = [
        graph.add("Mul", convert(graph, each, x), np.array([float(weight)]))
        for each, weight in zip(model.models_, model.weights_, strict=True)
    ]
    return parts[0] if len(parts) == 1 else graph.add("Sum", *parts)


def _calibrated(graph: Graph, model: Any, x: Value) -> str:
    """The maps of tasks.problems.tabular.calibration: on the log-odds, or lines between points."""
    chances, maps = convert(graph, model.estimator_, x), model.maps
    places = [1] if len(model.classes_) == 2 else range(len(model.classes_))
    learned = _bent if model.method == "sigmoid" else _stepped
    found = [learned(graph, graph.pick(chances, [place]), each) for place, each in zip(places, maps, strict=True)]
    if len(found) == 1:
        return _two(graph, found[0])
    together = graph.side_by_side(found)
    return graph.add("Div", together, graph.add("ReduceSum", together, np.array([1]), keepdims=1))


def _bent(graph: Graph, chance: str, line: Sequence[float]) -> str:
    kept = _between(graph, chance, SMALLEST, 1 - SMALLEST)
    odds = graph.add("Sub", graph.add("Log", kept), graph.add("Log", graph.add("Sub", np.array([1.0]), kept)))
    return graph.add("Sigmoid", graph.linear(odds, np.array([[line[0]]]), np.array(line[1])))


def _stepped(graph: Graph, chance: str, steps: Sequence[np.ndarray]) -> str:
    known, values = (np.atleast_2d(np.pad(each, (0, int(len(each) == 1)), "edge")) for each in steps)
    return _interpolate(graph, chance, known, values, "GreaterOrEqual", near=0.0)


def _from_log(graph: Graph, model: Any, x: Value) -> str:
    """evergreen.tasks.problems.regression.kind.LogRegressor."""
    logs = convert(graph, model.regressor_, x)
    size = graph.add("Exp", graph.add("Min", graph.add("Abs", logs), np.array([700.0])))
    plain = graph.add("Mul", graph.add("Sign", logs), graph.add("Sub", size, np.array([1.0])))
    return _between(graph, graph.add("Mul", plain, np.array([model.factor_])), model.low_, model.high_)


def _between(graph: Graph, x: str, low: float, high: float) -> str:
    return graph.add("Max", graph.add("Min", x, np.array([high])), np.array([low]))


def _inner(graph: Graph, model: Any, x: Value) -> str:
    return convert(graph, model.estimator_, x)


CONVERTERS: dict[str, Converter] = {
    "sklearn.Pipeline": _pipeline,
    "sklearn.ColumnTransformer": _columns,
    "evergreen.Numbers": _same,
    "sklearn.FunctionTransformer": _passed,
    "sklearn.SimpleImputer": _impute,
    "evergreen.SignedLog": _signed_log,
    "evergreen.Curves": _curves,
    "sklearn.StandardScaler": _standard,
    "sklearn.RobustScaler": _robust,
    "sklearn.QuantileTransformer": _quantiles,
    "sklearn.VarianceThreshold": _select,
    "sklearn.SelectPercentile": _select,
    "sklearn.PCA": _pca,
    "sklearn.TruncatedSVD": _svd,
    "sklearn.DummyClassifier": _prior,
    "sklearn.DummyRegressor": _constant,
    "sklearn.LogisticRegression": _logistic,
    "sklearn.Ridge": _linear,
    "sklearn.ElasticNet": _linear,
    "sklearn.Lasso": _linear,
    "lightgbm.LGBMClassifier": _boosted_classes,
    "lightgbm.LGBMRegressor": _boosted_value,
    "sklearn.HistGradientBoostingClassifier": _histogram_classes,
    "sklearn.HistGradientBoostingRegressor": _histogram_value,
    "sklearn.DecisionTreeClassifier": _forest,
    "sklearn.DecisionTreeRegressor": _forest,
    "sklearn.RandomForestClassifier": _forest,
    "sklearn.RandomForestRegressor": _forest,
    "sklearn.ExtraTreesClassifier": _forest,
    "sklearn.ExtraTreesRegressor": _forest,
    "sklearn.KMeans": _nearest,
    "sklearn.GaussianMixture": _likeliest,
    "evergreen.QuantileGroups": _quantile_groups,
    "evergreen.Segmenter": _segments,
    "evergreen.OffsetRegressor": _offset,
    "evergreen.LogRegressor": _from_log,
    "evergreen.Calibrated": _calibrated,
    "evergreen.BlendClassifier": _blend,
    "evergreen.BlendRegressor": _blend,
    "sklearn.FixedThresholdClassifier": _inner,
}
"""Package and class -> what writes its graph."""


# -- with a version


@dataclass(frozen=True)
class Attempt:
    """What became of compiling a model: a file and its parity, or why there is none."""

    file: bytes = b""
    parity: Parity | None = None
    latency: Latency | None = None
    reason: str = ""

    def tags(self) -> dict[str, str]:
        """What the version says of it."""
        if not self.file:
            return {"compiled": f"no: {self.reason}"}
        told = {f"compiled.{name}": f"{value:g}" for name, value in self._measured().items()}
        return {"compiled": "yes", "compiled.sha256": hashlib.sha256(self.file).hexdigest(), **told}

    def write(self, folder: Path) -> None:
        """COMPILED and parity.json, if there is a file."""
        if self.file:
            folder.mkdir(parents=True)
            (folder / COMPILED).write_bytes(self.file)
            write_json(folder / "parity.json", self._measured())

    def _measured(self) -> dict[str, float]:
        """The parity and the latency under one roof."""
        return {name: value for part in (self.parity, self.latency) if part for name, value in part.model_dump().items()}


COMPILED = "model.onnx"
"""Name of the file, in the folder `compiled` of a version."""


def attempt(params: Params, problem: str, layout: Layout, model: Model) -> Attempt:
    """Compile the trained `model` of `problem` and compare the two on the rows it was judged on. Raises nothing: a model that
    cannot be compiled answers as it is, and the attempt says why.
    """
    try:
        kind, section = problems.kind(params.kind(problem)), params.section(problem)
        if not isinstance(kind, TabularKind):
            raise CompileError(f"{kind.name} has no compiled form: its lists come from live histories")
        data = kind.load(layout.features(problem), section)
        held_out = data.at([kind.splits(data, section).tests[-1].test]).features.tail(PARITY_ROWS)
        if not len(held_out):
            raise CompileError(f"{problem} has no row to compare on")
        said: Said = partial(kind.said, model)
        found = compare(model, said, data.features, held_out, params.project.seed)
        return replace(found, latency=latency(said, found.file, held_out.head(1)))
    except Exception as error:  # noqa: BLE001  # whatever a step or the runtime says, the pipeline itself can still answer
        reason = " ".join(str(error).split())[:200] if isinstance(error, EvergreenError) else f"{type(error).__name__}: {error}"
        return Attempt(reason=reason)


def compare(model: Model, said: Said, features: pd.DataFrame, held_out: pd.DataFrame, seed: int) -> Attempt:
    """Compile `model`, fitted on frames like `features`, and compare on `held_out`. Raises CompileError."""
    file = compile_model(model, features, complete=_refuses_gaps(said, held_out.head(1)))
    return Attempt(file, parity(said, file, held_out, seed))


def _refuses_gaps(said: Said, row: pd.DataFrame) -> bool:
    try:
        said(row.assign(**dict.fromkeys(row.select_dtypes("number"), np.nan)))
    except ValueError:
        return True
    return False


# -- parity


PARITY_ROWS = 1_000
"""Most rows that are compared, each also in a strange copy."""


def parity(said: Said, file: bytes, features: pd.DataFrame, seed: int) -> Parity:
    """Compare the answers of `file` with those of the pipeline, `said`, on `features`: rows held out from training, if any.

    To each row comes a copy with gaps and categories never seen. Raises CompileError where the answers differ.
    """
    compiled = Compiled(file)
    asked = _with_strange_copies(features, np.random.default_rng(seed), gaps=not compiled.reading.complete)
    expected, found = said(asked), compiled.predict_columns(asked, len(asked))
    difference = max(_difference(found[name], expected[name]) for name in expected)
    if not difference <= TOLERANCE:
        raise CompileError(f"the compiled form differs by {difference:.2g} (at most {TOLERANCE:g}) on {len(asked):,} rows")
    return Parity(rows=len(asked), difference=difference, tolerance=TOLERANCE)


def latency(said: Said, file: bytes, row: pd.DataFrame) -> Latency:
    """What the one row of `row` takes."""
    compiled, cells = Compiled(file), row.to_dict("records")[0]
    return Latency(
        row_ms=_median_ms(lambda: compiled.predict_row(cells), 100),
        pipeline_row_ms=_median_ms(lambda: said(row), 10),
    )


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest one; of classes and groups, 0 where all are the same and infinite where not. A gap equals a gap alone."""
    if np.asarray(expected).dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else np.inf
    apart = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    return float(np.max(np.where(np.isnan(found) & np.isnan(expected), 0.0, apart), initial=0.0))


def _with_strange_copies(features: pd.DataFrame, draw: np.random.Generator, gaps: bool) -> pd.DataFrame:
    """`features`, then a copy in which a tenth of the cells is missing and another tenth of the categories unknown."""
    strange = features.copy()
    for name in features:
        chance = draw.random(len(features))
        if is_string_dtype(features[name]):
            strange[name] = strange[name].mask(chance < 0.2, "never seen").mask(chance < 0.1)
        elif gaps or not is_numeric_dtype(features[name]):
            strange[name] = strange[name].mask(chance < 0.1)
    return pd.concat([features, strange], ignore_index=True)


def _median_ms(work: Callable[[], Any], times: int) -> float:
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return round(1000 * float(np.median(taken)), 4)
