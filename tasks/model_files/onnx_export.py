"""Write a fitted pipeline as one ONNX model, and keep it only if both predict alike (onnx_parity).

The graph is written from what the steps learned, in double precision throughout, so that rows fall on the same side of a
threshold as in the pipeline. CONVERTERS lists what can be compiled: one function per class.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import is_clusterer

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import CompileError, EvergreenError, ModelError
from evergreen.tasks.core.paths import COMPILED, Layout, write_json
from evergreen.tasks.model_files import onnx_estimators, onnx_preprocessing, score_owners, score_tables
from evergreen.tasks.model_files.onnx_graph import Converter, Frame, Graph
from evergreen.tasks.model_files.onnx_parity import PARITY_ROWS, Latency, Parity, latency, parity, refuses_missing_numbers
from evergreen.tasks.model_files.onnx_runtime import Compiled, Signature
from evergreen.tasks.problems.base import Model, PredictRows, RowKind
from evergreen.tasks.problems.tabular.preprocessing import MISSING

CONVERTERS: Mapping[str, Converter] = {**onnx_preprocessing.CONVERTERS, **onnx_estimators.CONVERTERS}
"""Package and class -> converter."""


@dataclass(frozen=True)
class Attempt:
    """A compiled model with its parity, or the reason why there is none."""

    file: bytes = b""
    parity: Parity | None = None
    latency: Latency | None = None
    reason: str = ""

    def tags(self) -> dict[str, str]:
        """The version's tags about it."""
        if not self.file:
            return {"compiled": f"no: {self.reason}"}
        measured = {f"compiled.{name}": f"{value:g}" for name, value in self._measured().items()}
        return {"compiled": "yes", "compiled.sha256": hashlib.sha256(self.file).hexdigest(), **measured}

    def write(self, folder: Path) -> None:
        """COMPILED and parity.json, if there is a file."""
        if self.file:
            folder.mkdir(parents=True)
            (folder / COMPILED).write_bytes(self.file)
            write_json(folder / "parity.json", self._measured())

    def _measured(self) -> dict[str, float]:
        """Parity and latency together."""
        return {name: value for part in (self.parity, self.latency) if part for name, value in part.model_dump().items()}


def attempt(params: Params, problem: str, layout: Layout, model: Model) -> Attempt:
    """Compile the trained `model` of `problem` and compare the two on the rows it was judged on.

    Raises nothing: without a compiled model the pipeline itself serves, and the attempt has the reason.
    """
    try:
        kind, section = problems.kind(params.kind(problem)), params.section(problem)
        if not isinstance(kind, RowKind):
            raise CompileError(f"{kind.name} has no compiled form: its lists come from live histories")
        data = kind.load(layout.features(problem), section)
        held_out = data.at([kind.splits(data, section).tests[-1].test]).features.tail(PARITY_ROWS)
        if not len(held_out):
            raise CompileError(f"{problem} has no row to compare on")
        predict: PredictRows = partial(kind.predict_rows, model)
        found = compare(model, predict, data.features, held_out, params.project.seed)
        return replace(found, latency=latency(predict, found.file, held_out.head(1)))
    except Exception as error:  # noqa: BLE001  # whatever a step or the runtime raises, the pipeline itself can still serve
        reason = " ".join(str(error).split())[:200] if isinstance(error, EvergreenError) else f"{type(error).__name__}: {error}"
        return Attempt(reason=reason)


def compare(model: Model, predict: PredictRows, features: pd.DataFrame, held_out: pd.DataFrame, seed: int) -> Attempt:
    """Compile `model`, fitted on frames like `features`, and compare on `held_out`. Raises CompileError."""
    file = compile_model(model, features, requires_numbers=refuses_missing_numbers(predict, held_out.head(1)))
    return Attempt(file, parity(predict, file, held_out, seed))


def compile_model(model: Any, features: pd.DataFrame, requires_numbers: bool = False) -> bytes:
    """`model`, fitted on frames like `features`, as a file for onnx_runtime.Compiled.

    `requires_numbers`: the model refuses missing numbers, and so will the compiled one.
    Raises CompileError, naming it, for a step without a converter.
    """
    graph = Graph(CONVERTERS)
    output = graph.convert(model, Frame(features))
    signature = Signature(
        columns=tuple(graph.columns),
        texts=tuple(graph.texts),
        missing_category=MISSING,
        requires_numbers=requires_numbers,
        **_output(model),
    )
    return graph.serialize(output, signature, _score_tables(graph, output, signature, features))


def _score_tables(graph: Graph, output: str, signature: Signature, features: pd.DataFrame) -> str:
    """For exact contributions; empty where the model has none."""
    try:
        link = graph.serialize_link(output)
        compiled, rows = Compiled(graph.serialize(output, signature)), _various_rows(features)
        owners = score_owners.find(compiled, *compiled.encode_columns(rows, len(rows)))
        return score_tables.write(link, [score_tables.of(*each) for each in zip(graph.scores, owners, strict=True)])
    except CompileError:
        return ""


def _various_rows(features: pd.DataFrame) -> pd.DataFrame:
    """Rows evenly from all, then those with the smallest and the largest value of each number."""
    evenly = np.linspace(0, len(features) - 1, min(score_owners.ROWS, len(features))).astype(int)
    numbers = features.select_dtypes("number").to_numpy(dtype=float, na_value=np.nan)
    low, high = (np.where(np.isnan(numbers), other, numbers) for other in (np.inf, -np.inf))
    return features.iloc[[*evenly, *low.argmin(axis=0), *high.argmax(axis=0)]] if len(features) else features


def compile_for_explanation(model: Any, features: pd.DataFrame) -> Compiled | None:
    """The compiled `model`, fitted on frames like `features`; None where it has no compiled form."""
    try:
        return Compiled(compile_model(model, features))
    except (CompileError, ModelError):
        return None


def _output(model: Any) -> dict[str, Any]:
    """The fields of Signature about the output."""
    if not hasattr(model, "classes_"):
        return {"output": "cluster" if is_clusterer(model) else "value"}
    classes = [each.item() if isinstance(each, np.generic) else each for each in model.classes_]
    threshold = getattr(model, "threshold", None)
    cut = {"threshold": threshold, "positive": classes.index(model.pos_label)} if threshold is not None else {}
    return {"output": "probabilities", "classes": classes, **cut}
