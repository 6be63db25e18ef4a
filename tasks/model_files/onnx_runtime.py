"""Compiled models: one ONNX file that answers rows without a frame and without scikit-learn. The one home of onnxruntime.

evergreen.model_files.onnx_export makes the file. Beside the graph it holds how the cells of a row become numbers and what
the answer means, so this
module, onnxruntime and NumPy are all that serving needs.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NotImplemented

from evergreen.tasks.config.params import Section
from evergreen.tasks.core.errors import DataError, ModelError

BATCH = 8192
"""Rows that go through the graph at once."""
MADE = "evergreen"
"""Key of the file's metadata under which `Reading` lies."""
PREFIX = "probability_"
INPUT = "rows"


Part = Literal["number", "category", "days", "year", "month", "day", "dayofweek", "hour", "letters", "words"]
"""What is read from a cell: a number; the code of a category; of a moment the days since 1970 or its year, month, day of the
month, day of the week (Monday is 0) or hour; of a text the log of 1 + the number of its letters or words."""


class Column(Section):
    """How one column of the graph's input is read from a row."""

    name: str
    """Feature of the row."""
    part: Part = "number"
    codes: dict[str, int] | None = None
    """category: each one's number."""
    unseen: int = 0
    """category: the number of one that is not among `codes`."""


class Text(Section):
    """How a text is read: as words and pairs of neighbours, each with its weight (TF-IDF as scikit-learn has it)."""

    name: str
    """Feature of the row."""
    input: str
    """The graph's inputs: this with _ids and with _weights behind it, one row per case, padded with the last id and 0."""
    words: dict[str, int]
    """Word or pair -> its id: its place in `rarity`."""
    rarity: tuple[float, ...]
    """What each one's weight is multiplied by."""


class Reading(Section):
    """What a file says besides its graph."""

    columns: tuple[Column, ...]
    """One per column of the input."""
    texts: tuple[Text, ...] = ()
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
        self.reading, self._file = reading, given
        self.features = list(dict.fromkeys(each.name for each in (*reading.columns, *reading.texts)))
        """The features that a row must name."""
        self._readers = [(column.name, _reader(column, reading)) for column in reading.columns]
        self._cells = _getter([name for name, _ in self._readers])
        self._coded = [(place, read) for place, (_, read) in enumerate(self._readers) if not isinstance(read, _Number)]
        self._texts = [(text, _Words(text)) for text in reading.texts]
        self._names = [f"{PREFIX}{name}" for name in reading.classes]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes its own session of the file."""
        return Compiled, (self._file,)

    def predict_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one row of features: `prediction`, and for a classifier `probability_<class>` of each class.

        None and NaN are missing values. Raises DataError for a feature that is not there or cannot be what it should be.
        """
        point = self.read(row)
        answer = self._run([point.numbers], [[each] for each in point.words])[0]
        if self.reading.answers == "value":
            return {"prediction": float(answer[0])}
        if self.reading.answers == "group":
            return {"prediction": int(answer[0])}
        chances = answer.tolist()
        return {"prediction": self.reading.classes[self._choose(chances)], **dict(zip(self._names, chances, strict=True))}

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers to `rows`, in their order; each as `predict_row` gives it, and raising what it raises."""
        return self.answer([self.read(row) for row in rows])

    def read(self, row: Mapping[str, Any]) -> "Point":
        """A row as numbers, for `answer`: so that of rows that are asked together each has its own error.

        Raises DataError, naming it, for a feature that is not there or cannot be what it should be.
        """
        numbers = [read(_cell(row, name)) for name, read in self._readers]
        return Point(numbers, [read(_cell(row, text.name)) for text, read in self._texts])

    def read_plain(self, row: Mapping[str, Any]) -> "Point | None":
        """What `read` gives, in a fraction of its time, for a row of values as JSON has them (no number is infinite).

        None for a row that needs a closer look: a feature is not there, a number is a text or missing where it must not be,
        a category is no text, or a date is none.
        """
        try:
            numbers: list[Any] = list(self._cells(row))
            for place, read in self._coded:
                numbers[place] = read.plain(numbers[place])
            words = [read(_as_plain_text(row[text.name])) for text, read in self._texts]
        except (KeyError, DataError, TypeError):
            return None
        if not PLAIN.issuperset(map(type, numbers)) or (self.reading.complete and None in numbers):
            return None
        return Point(numbers, words)

    def answer(self, points: Sequence["Point"]) -> list[dict[str, Any]]:
        """The answers to rows that were read, in their order."""
        words = [list(each) for each in zip(*(point.words for point in points), strict=True)]
        said = self._answer(np.array([point.numbers for point in points], dtype=float), words)
        return [dict(zip(said, each, strict=True)) for each in zip(*(part.tolist() for part in said.values()), strict=True)]

    def predict_columns(self, columns: Mapping[str, Iterable[Any]] | Any, rows: int | None = None) -> dict[str, np.ndarray]:
        """The answers to whole columns (a frame, or feature -> its values), by the names that `predict_row` gives them.

        `rows`: how many there are; needed only for a model that reads no feature, such as a baseline.
        """
        cells = [_column(columns[name], read) for name, read in self._readers]
        words = [[read(value) for value in columns[text.name]] for text, read in self._texts]
        count = len(cells[0]) if rows is None and cells else rows or 0
        return self._answer(np.column_stack(cells) if cells else np.empty((count, 0)), words)

    def _answer(self, points: np.ndarray, words: Sequence[Sequence["Weights"]]) -> dict[str, np.ndarray]:
        count = len(points)
        places = (slice(first, first + BATCH) for first in range(0, count, BATCH))
        parts = [self._run(points[place], [each[place] for each in words]) for place in places]
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

    def _run(self, points: Any, words: Sequence[Sequence["Weights"]]) -> np.ndarray:
        feeds = {INPUT: np.asarray(points, dtype=float)}
        for (text, _), found in zip(self._texts, words, strict=True):
            feeds[f"{text.input}_ids"], feeds[f"{text.input}_weights"] = _padded(found, len(text.rarity))
        return self._session.run(None, feeds)[0]  # pyright: ignore[reportReturnType]


PLAIN = frozenset((float, int, type(None)))
"""Types of a number as JSON has it; NumPy makes NaN of None."""
Weights = dict[int, float]
"""Word -> its weight in one text."""


class Point(NamedTuple):
    """A row, read."""

    numbers: list[float] | list[float | None]
    """One per column of the input; None is NaN."""
    words: list[Weights]
    """One per text."""


def _padded(texts: Sequence[Weights], end: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids and weights of each text, all as long as the longest, with the id `end` and weight 0 behind its own."""
    longest = max(map(len, texts), default=0)
    ids, weights = np.full((len(texts), longest), end), np.zeros((len(texts), longest))
    for row, found in enumerate(texts):
        ids[row, : len(found)], weights[row, : len(found)] = list(found), list(found.values())
    return ids, weights


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """The values of `names`, in their order; raises KeyError for one that is not there."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: tuple(row[name] for name in names)


def _cell(row: Mapping[str, Any], name: str) -> Any:
    try:
        return row[name]
    except KeyError:
        raise DataError(f"{name}: is missing from the row; give null for a value that is not known") from None


def _column(values: Any, read: Callable[[Any], float]) -> np.ndarray:
    if isinstance(read, _Number) and not read.complete and getattr(getattr(values, "dtype", None), "kind", "O") in "fiu":
        return np.asarray(values, dtype=float)
    return np.array([read(value) for value in values], dtype=float)


def _reader(column: Column, reading: Reading) -> "_Number | _Code | _Moment | _Length":
    if column.part == "number":
        return _Number(column.name, reading.complete)
    if column.part == "category":
        return _Code(column.codes or {}, column.unseen, reading.missing)
    if column.part in ("letters", "words"):
        return _Length(column.part == "words")
    return _Moment(column.name, MOMENTS[column.part])


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

    def plain(self, value: Any) -> float:
        """Of a text or None; raises TypeError for anything else."""
        if type(value) is str:
            return self.codes.get(value, self.unseen)
        if value is None:
            return self.codes.get(self.missing, self.unseen)
        raise TypeError


class _Moment:
    """A part of a date or time; NaN where it is missing."""

    def __init__(self, name: str, part: Callable[[datetime], float]) -> None:
        self.name, self.part = name, part

    def __call__(self, value: Any) -> float:
        if value is None or value != value or value == "":
            return np.nan
        return self.part(self._read(value))

    plain = __call__

    def _read(self, value: Any) -> datetime:
        try:
            found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        except ValueError:
            raise DataError(f"{self.name} = {value}: is no date; write it as 2024-03-31 or 2024-03-31T17:00") from None
        return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


EPOCH, MICROSECONDS = datetime(1970, 1, 1), 86_400_000_000
MOMENTS: dict[str, Callable[[datetime], float]] = {
    "days": lambda at: (at - EPOCH) // timedelta(microseconds=1) / MICROSECONDS,
    "year": lambda at: at.year,
    "month": lambda at: at.month,
    "day": lambda at: at.day,
    "dayofweek": lambda at: at.weekday(),
    "hour": lambda at: at.hour,
}


class _Words:
    """The words of a text and pairs of neighbours with their weights, as scikit-learn's TfidfVectorizer finds them.

    Lower case, no accents, words of two letters or more; 1 + log of how often, times rarity, all together of length 1.
    """

    def __init__(self, text: Text) -> None:
        self.ids, self.rarity = text.words, text.rarity

    def __call__(self, value: Any) -> Weights:
        found = WORD.findall(_plain(_as_text(value).lower()))
        pairs = (f"{first} {second}" for first, second in pairwise(found))
        counts = Counter(self.ids[each] for each in (*found, *pairs) if each in self.ids)
        weights = {word: (1 + math.log(count)) * self.rarity[word] for word, count in counts.items()}
        length = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}


WORD = re.compile(r"(?u)\b\w\w+\b")


def _plain(value: str) -> str:
    """Without accents."""
    if value.isascii():
        return value
    return "".join(letter for letter in unicodedata.normalize("NFKD", value) if not unicodedata.combining(letter))


def _as_text(value: Any) -> str:
    return text(value, "")


def _as_plain_text(value: Any) -> str | None:
    if value is None or type(value) is str:
        return value
    raise TypeError


class _Length:
    """Of a text: its letters, or its words."""

    def __init__(self, words: bool) -> None:
        self.words = words

    def __call__(self, value: Any) -> float:
        found = _as_text(value)
        return float(np.log1p(len(found.split() if self.words else found)))

    def plain(self, value: Any) -> float:
        """Raises TypeError for what is neither text nor None."""
        return self(_as_plain_text(value))


def text(value: Any, missing: str) -> str:
    """A cell of a category as the text that training knows: None and NaN are `missing`, truth values are lower case."""
    if value is None or value != value:
        return missing
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def dumps(reading: Reading) -> str:
    return json.dumps(reading.model_dump(exclude_defaults=True), separators=(",", ":"))
