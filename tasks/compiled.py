"""Compiled models: one ONNX file that answers rows without a frame and without scikit-learn. The one home of onnxruntime.

tasks.compile makes the file. Beside the graph it holds how the cells of a row become numbers and what the answer means, so this
module, onnxruntime and NumPy are all that serving needs.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NotImplemented

from tasks.errors import DataError, ModelError
from tasks.params import Section

BATCH = 8192
"""Rows that go through the graph at once."""
MADE = "evergreen"
"""Key of the file's metadata under which `Reading` lies."""
PREFIX = "probability_"
INPUT = "rows"


class Column(Section):
    """How one column of the graph's input is read from a row."""

    name: str
    """Feature of the row."""
    codes: dict[str, int] | None = None
    """Category -> its number; null: the feature is a number itself."""
    unseen: int = 0
    """The number of a category that is not among `codes`."""


class Reading(Section):
    """What a file says besides its graph."""

    columns: tuple[Column, ...]
    """One per column of the input."""
    answers: Literal["chances", "value", "group"]
    """Probabilities of each class, a number, or the number of a group."""
    classes: tuple[int | str, ...] = ()
    """In the order of the probabilities."""
    threshold: float | None = None
    """Two classes: probability of class `positive` from which the answer is that class. null: the most probable class."""
    positive: int = 1
    """Place of the class that the threshold is about."""
    missing: str = ""
    """The category of a missing category."""
    complete: bool = False
    """Whether every number must be there."""


class Compiled:
    """A compiled model. Calls from several threads at once are fine."""

    def __init__(self, file: Path | bytes) -> None:
        """Raises ModelError for a file that is no compiled model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong arrives as an exception
        try:
            given = file if isinstance(file, bytes) else file.read_bytes()
            self._session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
            reading = Reading.model_validate_json(self._session.get_modelmeta().custom_metadata_map[MADE])
        except (Fail, InvalidGraph, InvalidProtobuf, NotImplemented, OSError, KeyError, ValueError) as error:
            shown = "compiled model" if isinstance(file, bytes) else file
            raise ModelError(f"{shown}: is no compiled model that can be read: {str(error)[:200]}. Train it again.") from error
        self.reading = reading
        self.features = list(dict.fromkeys(column.name for column in reading.columns))
        """The features that a row must name."""
        self._readers = [(column.name, _reader(column, reading)) for column in reading.columns]
        self._names = [f"{PREFIX}{name}" for name in reading.classes]

    def predict_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one row of features: `prediction`, and for a classifier `probability_<class>` of each class.

        None and NaN are missing values. Raises DataError for a feature that is not there or cannot be what it should be.
        """
        answer = self._run([[read(_cell(row, name)) for name, read in self._readers]])[0]
        if self.reading.answers == "value":
            return {"prediction": float(answer[0])}
        if self.reading.answers == "group":
            return {"prediction": int(answer[0])}
        chances = answer.tolist()
        return {"prediction": self.reading.classes[self._choose(chances)], **dict(zip(self._names, chances, strict=True))}

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers to `rows`, in their order; each as `predict_row` gives it, and raising what it raises."""
        said = self.predict_columns({name: [_cell(row, name) for row in rows] for name in self.features}, len(rows))
        return [dict(zip(said, each, strict=True)) for each in zip(*(part.tolist() for part in said.values()), strict=True)]

    def predict_columns(self, columns: Mapping[str, Iterable[Any]] | Any, rows: int | None = None) -> dict[str, np.ndarray]:
        """The answers to whole columns (a frame, or feature -> its values), by the names that `predict_row` gives them.

        `rows`: how many there are; needed only for a model that reads no feature, such as a baseline.
        """
        cells = [_column(columns[name], read) for name, read in self._readers]
        count = len(cells[0]) if rows is None and cells else rows or 0
        points = np.column_stack(cells) if cells else np.empty((count, 0))
        parts = [self._run(points[first : first + BATCH]) for first in range(0, count, BATCH)]
        answers = np.concatenate(parts) if parts else np.empty((0, max(1, len(self._names))))
        return self._said(answers)

    def _said(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        if self.reading.answers == "value":
            return {"prediction": answers[:, 0]}
        if self.reading.answers == "group":
            return {"prediction": answers[:, 0].astype(int)}
        chosen = answers.argmax(axis=1)
        if self.reading.threshold is not None:
            positive = self.reading.positive
            chosen = np.where(answers[:, positive] >= self.reading.threshold, positive, 1 - positive)
        return {"prediction": np.array(self.reading.classes)[chosen], **dict(zip(self._names, answers.T, strict=True))}

    def _choose(self, chances: list[float]) -> int:
        if self.reading.threshold is None:
            return chances.index(max(chances))
        positive = self.reading.positive
        return positive if chances[positive] >= self.reading.threshold else 1 - positive

    def _run(self, points: Any) -> np.ndarray:
        return self._session.run(None, {INPUT: np.asarray(points, dtype=float)})[0]  # pyright: ignore[reportReturnType]


def _cell(row: Mapping[str, Any], name: str) -> Any:
    try:
        return row[name]
    except KeyError:
        raise DataError(f"{name}: is missing from the row; give null for a value that is not known") from None


def _column(values: Any, read: Callable[[Any], float]) -> np.ndarray:
    if isinstance(read, _Number) and not read.complete and getattr(getattr(values, "dtype", None), "kind", "O") in "fiu":
        return np.asarray(values, dtype=float)
    return np.array([read(value) for value in values], dtype=float)


def _reader(column: Column, reading: Reading) -> Callable[[Any], float]:
    if column.codes is None:
        return _Number(column.name, reading.complete)
    return _Code(column.codes, column.unseen, reading.missing)


class _Number:
    def __init__(self, name: str, complete: bool) -> None:
        self.name, self.complete = name, complete

    def __call__(self, value: Any) -> float:
        if type(value) is float and value == value and abs(value) != np.inf:
            return value
        try:
            number = np.nan if value is None else float(value)
        except (TypeError, ValueError):
            raise DataError(f"{self.name} = {value}: is no finite number") from None
        if abs(number) == np.inf:
            raise DataError(f"{self.name} = {value}: is no finite number")
        if self.complete and number != number:
            raise DataError(f"{self.name}: is missing, and this model needs every number")
        return number


class _Code:
    def __init__(self, codes: Mapping[str, int], unseen: int, missing: str) -> None:
        self.codes, self.unseen, self.missing = codes, unseen, missing

    def __call__(self, value: Any) -> float:
        if not isinstance(value, str):
            value = text(value, self.missing)
        return self.codes.get(value, self.unseen)


def text(value: Any, missing: str) -> str:
    """A cell of a category as the text that training knows: None and NaN are `missing`, truth values are lower case."""
    if value is None or value != value:
        return missing
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def dumps(reading: Reading) -> str:
    return json.dumps(reading.model_dump(exclude_defaults=True), separators=(",", ":"))
