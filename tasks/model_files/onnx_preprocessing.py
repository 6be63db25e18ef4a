"""Converters of the steps before a model: from named columns, or a matrix, to a matrix.

Text never enters the graph. A category is an integer by the time it does (onnx_runtime.Column), and what the pipeline makes
of it is a row of a table (`_tabulate`): one-hot, ordinal, target or frequency encoding, scaled or not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from sklearn.pipeline import Pipeline

from evergreen.tasks.core.errors import CompileError
from evergreen.tasks.model_files.onnx_graph import Converter, Frame, Graph, Value, matrix, name_of
from evergreen.tasks.model_files.onnx_runtime import Column, Part
from evergreen.tasks.problems.tabular.date_text_encoders import DIGITS
from evergreen.tasks.problems.tabular.preprocessing import MISSING

UNSEEN = "\x00"
"""A category that no table holds."""
EDGE = 1e-7
"""scikit-learn takes a value this near to the smallest or largest for it, and keeps probabilities as far from 0 and 1."""


def _pipeline(graph: Graph, pipeline: Pipeline, x: Value) -> str:
    return matrix(_steps(graph, pipeline.steps, x))


def _steps(graph: Graph, steps: Sequence[tuple[str, Any]], x: Value) -> Value:
    for _, step in steps:
        x = graph.convert(step, x)
    return x


# -- named columns


def _columns(graph: Graph, step: Any, x: Value) -> str:
    if isinstance(x, str):
        raise CompileError("a ColumnTransformer behind another step has no compiled form")
    return graph.concatenate(
        [_part(graph, part, names, x) for _, part, names in step.transformers_ if len(names) and part != "drop"]
    )


def _part(graph: Graph, part: Any, names: Sequence[str], frame: Frame) -> str:
    kinds = {frame.kind(name) for name in names}
    if kinds == {"number"}:
        found = frame.numbers(graph, names)
        return found if part == "passthrough" else graph.convert(part, found)
    if len(kinds) > 1:
        raise CompileError(f"columns of {' and '.join(sorted(kinds))} in one step have no compiled form")
    reader = part.steps[0][1] if isinstance(part, Pipeline) else part
    if name_of(reader) not in READERS:
        return _tabulate(graph, part, list(names), frame)
    value = READERS[name_of(reader)](graph, reader, names, frame)
    return value if reader is part else matrix(_steps(graph, part.steps[1:], value))


def _tabulate(graph: Graph, part: Any, names: list[str], frame: Frame) -> str:
    """Steps that transform each column of text alone, as a table with one row per category."""
    categories = _categories(part, names, frame)
    given, owner = _every_category(names, categories)
    raw: Any = part.transform(given)
    made = np.asarray(raw.toarray() if issparse(raw) else raw, dtype=float)
    blocks = _output_columns(made, owner, len(names))
    tables = [made[owner == place][:, block] for place, block in enumerate(blocks)]
    widest = max(len(block) for block in blocks)
    stacked = np.vstack([np.pad(table, ((0, 0), (0, widest - table.shape[1]))) for table in tables])
    rows = graph.add("Gather", stacked, frame.codes(graph, names, categories), axis=0)
    flat = graph.add("Reshape", rows, np.array([-1, widest * len(names)]))
    place = np.empty(made.shape[1], dtype=np.int64)
    for column, block in enumerate(blocks):
        place[block] = column * widest + np.arange(len(block))
    return flat if np.array_equal(place, np.arange(widest * len(names))) else graph.pick(flat, place)


def _categories(part: Any, names: list[str], frame: Frame) -> list[list[str]]:
    """Each column's categories: those that an encoder learned, else those of the data; always with MISSING."""
    steps = [step for _, step in part.steps] if isinstance(part, Pipeline) else [part]
    learned = next((step.categories_ for step in steps if hasattr(step, "categories_")), None)
    found = learned if learned is not None else [frame.features[name].dropna().unique() for name in names]
    return [sorted({*map(str, each), MISSING}) for each in found]


def _every_category(names: list[str], categories: list[list[str]]) -> tuple[pd.DataFrame, np.ndarray]:
    """One row per column and category, UNSEEN last, with UNSEEN in the other columns; and the column of each row."""
    owner = np.repeat(np.arange(len(names)), [len(known) + 1 for known in categories])
    cells = np.full((len(owner), len(names)), UNSEEN, dtype=object)
    for place, known in enumerate(categories):
        cells[owner == place, place] = [*known, UNSEEN]
    return pd.DataFrame(cells, columns=names, dtype="str"), owner


def _output_columns(made: np.ndarray, owner: np.ndarray, count: int) -> list[np.ndarray]:
    """The columns of `made` that depend on each input. Raises CompileError for one that depends on several."""
    neutral = made[-1]
    depends = np.array([(made[owner == place] != neutral).any(axis=0) for place in range(count)])
    if (depends.sum(axis=0) > 1).any():
        raise CompileError("a step that looks at several categories at once has no compiled form")
    source = np.where(depends.any(axis=0), depends.argmax(axis=0), 0)
    return [np.flatnonzero(source == place) for place in range(count)]


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
    return graph.concatenate(found)


def _column_pairs(graph: Graph, step: Any, x: Value) -> str:
    """Differences and ratios, in the order of the step."""
    first, second = graph.pick(matrix(x), step.first_), graph.pick(matrix(x), step.second_)
    zero = graph.add("Equal", second, np.array([0.0]))
    ratios = graph.add("Where", zero, np.array([np.nan]), graph.add("Div", first, second))
    return graph.add("Where", step.ratio_[None, :], ratios, graph.add("Sub", first, second))


def _texts(graph: Graph, step: Any, names: Sequence[str], frame: Frame) -> str:
    spaces = zip(names, step.spaces_, strict=True)
    return graph.concatenate([part for name, space in spaces for part in _text(graph, name, space, frame)])


def _text(graph: Graph, name: str, space: Sequence[Any], frame: Frame) -> list[str]:
    """The lengths of a text, and the weighted sum of its words' components."""
    lengths = frame.read(graph, [Column(name=name, part="characters"), Column(name=name, part="words")])
    if not space:
        return [lengths]
    vectorizer, projection = space
    words = frame.words(graph, name, vectorizer.vocabulary_, vectorizer.idf_)
    components = np.vstack([projection.components_.T, np.zeros(len(projection.components_))])
    weights = graph.add("Unsqueeze", f"{words}_weights", np.array([2]))
    weighted = graph.add("Mul", graph.add("Gather", components, f"{words}_ids", axis=0), weights)
    summed = graph.add("Mul", graph.add("ReduceSum", weighted, np.array([1]), keepdims=0), np.array([10.0**DIGITS]))
    return [lengths, graph.add("Div", graph.add("Round", summed), np.array([10.0**DIGITS]))]


READERS: dict[str, Callable[[Graph, Any, Sequence[str], Frame], str]] = {"evergreen.Dates": _dates, "evergreen.Words": _texts}
"""Steps that read dates and texts from named columns; other columns that are not numbers are tabulated (`_tabulate`)."""


# -- matrices


def _identity(graph: Graph, step: Any, x: Value) -> str:
    return matrix(x)


def _function(graph: Graph, step: Any, x: Value) -> str:
    if step.func is not None:
        raise CompileError(f"FunctionTransformer with {step.func} has no compiled form")
    return matrix(x)


def _impute(graph: Graph, step: Any, x: Value) -> str:
    """Missing values filled; behind them, where asked for, the indicators of missing values."""
    numbers = matrix(x)
    missing = graph.add("IsNaN", numbers)
    filled = graph.add("Where", missing, np.nan_to_num(step.statistics_.astype(float)), numbers)
    if not step.add_indicator or not len(step.indicator_.features_):
        return filled
    return graph.concatenate([filled, graph.to_double(graph.pick(missing, step.indicator_.features_))])


def _signed_log(graph: Graph, step: Any, x: Value) -> str:
    numbers = matrix(x)
    logs = graph.add("Log", graph.add("Add", graph.add("Abs", numbers), np.array([1.0])))
    return graph.add("Mul", graph.add("Sign", numbers), logs)


def _curves(graph: Graph, step: Any, x: Value) -> str:
    inside = graph.add("Max", graph.add("Min", matrix(x), step.high_), step.low_)
    if not len(step.points_):
        return inside
    beyond = graph.add("Sub", graph.pick(inside, step.columns_), step.points_)
    return graph.concatenate([inside, graph.add("Max", beyond, np.array([0.0]))])


def _standard(graph: Graph, step: Any, x: Value) -> str:
    return _scaled(graph, matrix(x), step.mean_, step.scale_)


def _robust(graph: Graph, step: Any, x: Value) -> str:
    return _scaled(graph, matrix(x), step.center_, step.scale_)


def _scaled(graph: Graph, x: str, centre: np.ndarray | None, scale: np.ndarray | None) -> str:
    moved = x if centre is None else graph.add("Sub", x, centre)
    return moved if scale is None else graph.add("Div", moved, scale)


def _select(graph: Graph, step: Any, x: Value) -> str:
    return graph.pick(matrix(x), np.flatnonzero(step.get_support()))


def _pca(graph: Graph, step: Any, x: Value) -> str:
    scale = np.sqrt(step.explained_variance_) if step.whiten else None
    turned = graph.add("MatMul", graph.add("Sub", matrix(x), step.mean_), np.ascontiguousarray(step.components_.T))
    return _scaled(graph, turned, None, scale)


def _svd(graph: Graph, step: Any, x: Value) -> str:
    return graph.add("MatMul", matrix(x), np.ascontiguousarray(step.components_.T))


def _quantiles(graph: Graph, step: Any, x: Value) -> str:
    """The mean of two interpolations, which differ at repeated quantiles; then, if asked for, the normal quantile."""
    numbers, points = matrix(x), step.quantiles_.T
    levels = np.broadcast_to(step.references_, points.shape)
    both = graph.add("Add", *(graph.interpolate(numbers, points, levels, op) for op in ("GreaterOrEqual", "Greater")))
    inside = graph.add("Mul", both, np.array([0.5]))
    shift = EDGE if step.output_distribution == "normal" else 0.0
    under = graph.add("LessOrEqual", graph.add("Sub", numbers, np.array([shift])), points[:, 0])
    over = graph.add("GreaterOrEqual", graph.add("Add", numbers, np.array([shift])), points[:, -1])
    level = graph.add("Where", under, np.array([0.0]), graph.add("Where", over, np.array([1.0]), inside))
    return _normal_quantile(graph, level) if step.output_distribution == "normal" else level


def _normal_quantile(graph: Graph, level: str) -> str:
    """The normal quantile of probabilities, at least EDGE off 0 and 1: algorithm AS 241 of Wichura (1988), PPND16."""
    bound = EDGE - np.spacing(1)
    p = graph.clip(level, bound, 1 - bound)
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


CONVERTERS: dict[str, Converter] = {
    "sklearn.Pipeline": _pipeline,
    "sklearn.ColumnTransformer": _columns,
    "evergreen.Numbers": _identity,
    "evergreen.ColumnPairs": _column_pairs,
    "sklearn.FunctionTransformer": _function,
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
}
"""Package and class -> its converter."""
