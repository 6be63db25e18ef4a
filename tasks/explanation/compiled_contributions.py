"""Exact contributions to the predictions of a compiled model, for the page, the model card and the server.

The server and its bundle import this module, so it imports NumPy and onnxruntime alone.
"""

from collections.abc import Sequence

import numpy as np

from evergreen.tasks.explanation.exact_shapley import ExactShapley, Rows
from evergreen.tasks.model_files import score_tables
from evergreen.tasks.model_files.onnx_runtime import Compiled, EncodedRow, Weights, open_link

TOLERANCE = 1e-5
"""Relative distance up to which contributions must sum to the prediction."""
Encoded = tuple[np.ndarray, Sequence[Sequence[Weights]]]
"""Rows as `Compiled.encode_columns` gives them."""


class CompiledContributions:
    """Exact contributions from fixed background rows."""

    def __init__(self, compiled: Compiled, backgrounds: Encoded) -> None:
        """`compiled` must have tables."""
        tables = score_tables.read(compiled.tables)
        self._compiled, self._link = compiled, open_link(tables.link)
        self._shapley = ExactShapley(tables.scores, self._link, len(compiled.features), self._trace(backgrounds))
        self.base = self._shapley.base
        """The mean prediction of the background rows, per output of the graph."""

    def values(self, rows: Encoded) -> np.ndarray | None:
        """Row x feature of the model x output of the graph.

        None where they do not sum to the prediction: a value changes a column of the model that no value did at training time.
        """
        traced = self._trace(rows)
        found = self._shapley.values(traced)
        right = self._link(traced.scores) - self.base
        close = np.abs(found.sum(axis=1) - right) <= TOLERANCE * np.maximum(1.0, np.abs(right))
        return found if close.all() else None

    def _trace(self, rows: Encoded) -> Rows:
        traced = self._compiled.trace(*rows)
        return Rows(traced[::2], np.hstack(traced[1::2]))


def encoded(rows: Sequence[EncodedRow]) -> Encoded:
    """Rows of requests as `CompiledContributions` takes them."""
    words = [list(each) for each in zip(*(row.words for row in rows), strict=True)]
    return np.array([row.numbers for row in rows], dtype=float), words
