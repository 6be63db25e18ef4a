"""Compiled models: one ONNX file that scores rows without a frame and without scikit-learn. The one home of onnxruntime.

onnx_export writes the file. Beside the graph it holds a signature: how the cells of a row become numbers, and the meaning of
the output. Serving needs this module, onnxruntime and NumPy alone.
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

from evergreen.tasks.config.base import Section
from evergreen.tasks.core.errors import DataError, ModelError

BATCH = 8192
"""Rows that go through the graph at once."""
SIGNATURE_KEY, TABLES_KEY = "evergreen", "evergreen.scores"
"""Keys of the file's metadata that hold its Signature, and the tables of its scores (score_tables) if it has any."""
PROBABILITY_PREFIX = "probability_"
INPUT, OUTPUT, TRACED = "rows", "output", "traced"
"""Names in the graph; outputs that are only traced have numbers behind their name."""


Part = Literal["number", "category", "days", "year", "month", "day", "dayofweek", "hour", "characters", "words"]
"""What is encoded of a cell: a number; the code of a category; of a moment the days since 1970 or its year, month, day of the
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
    vocabulary: dict[str, int]
    """Word or pair -> its id: its place in `idf`."""
    idf: tuple[float, ...]
    """Inverse document frequency of each."""


class Signature(Section):
    """How a row becomes the graph's input, and what its output means."""

    columns: tuple[Column, ...]
    """One per column of the input."""
    texts: tuple[Text, ...] = ()
    output: Literal["probabilities", "value", "cluster"]
    """Probabilities of each class, a number, or the number of a cluster."""
    classes: tuple[int | str, ...] = ()
    """In the order of the probabilities."""
    threshold: float | None = None
    """Two classes: `positive` is predicted from this probability on. null: the most probable class is predicted."""
    positive: int = 1
    """Place of the class that the threshold is about."""
    missing_category: str = ""
    """The category that a missing value gets."""
    requires_numbers: bool = False
    """Whether missing numbers are refused."""


class Compiled:
    """A compiled model. Calls from several threads at once are fine."""

    def __init__(self, file: Path | bytes) -> None:
        """Raises ModelError for an invalid file."""
        try:
            given = file if isinstance(file, bytes) else file.read_bytes()
            self._session = _open(given)
            properties = self._session.get_modelmeta().custom_metadata_map
            signature = Signature.model_validate_json(properties[SIGNATURE_KEY])
        except (Fail, InvalidGraph, InvalidProtobuf, NotImplemented, OSError, KeyError, ValueError) as error:
            shown = "compiled model" if isinstance(file, bytes) else file
            raise ModelError(f"{shown}: not a readable compiled model: {str(error)[:200]}. Train it again.") from error
        self.signature, self._file = signature, given
        self.tables = properties.get(TABLES_KEY, "")
        """For score_tables.read; empty for a model that has no exact contributions."""
        self.features = list(dict.fromkeys(each.name for each in (*signature.columns, *signature.texts)))
        """The features that a row must name."""
        self._readers = [(column.name, _reader(column, signature)) for column in signature.columns]
        self._orders: dict[tuple[str, ...], Callable[[Sequence[Any]], tuple[Any, ...]]] = {}
        """Keys of a row, in their order -> takes the cells of the graph's columns from its values."""
        self._coded = [(place, read) for place, (_, read) in enumerate(self._readers) if not isinstance(read, _Number)]
        self._texts = [(text, _Words(text)) for text in signature.texts]
        self._names = [f"{PROBABILITY_PREFIX}{name}" for name in signature.classes]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens its own session."""
        return Compiled, (self._file,)

    def predict_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The prediction for one row of features: `prediction`, and for a classifier `probability_<class>` of each class.

        None and NaN are missing values. Raises DataError for a missing feature or an invalid value.
        """
        encoded = self.encode(row)
        output = self._run([encoded.numbers], [[each] for each in encoded.words])[0]
        if self.signature.output == "value":
            return {"prediction": float(output[0])}
        if self.signature.output == "cluster":
            return {"prediction": int(output[0])}
        probabilities = output.tolist()
        return {
            "prediction": self.signature.classes[self._choose(probabilities)],
            **dict(zip(self._names, probabilities, strict=True)),
        }

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The predictions for `rows`, in their order; each as `predict_row` gives it, and raising what it raises."""
        return self.predict_encoded([self.encode(row) for row in rows])

    def encode(self, row: Mapping[str, Any]) -> "EncodedRow":
        """Encode a row as numbers, for `predict_encoded`, so that each row of a batch has its own error.

        Raises DataError, naming it, for a missing feature or an invalid value.
        """
        numbers = [read(_cell(row, name)) for name, read in self._readers]
        return EncodedRow(numbers, [read(_cell(row, text.name)) for text, read in self._texts])

    def encode_plain(self, row: Mapping[str, Any]) -> "EncodedRow | None":
        """Encode a row as `encode` does, in a fraction of its time, from values as JSON has them (no infinite number).

        None for a row that `encode` must check: a feature is missing, a number is a text or must not be missing, a category is
        not a text, or a date is invalid.
        """
        try:
            names = tuple(row)
            numbers: list[Any] = list((self._orders.get(names) or self._order(names))(tuple(row.values())))
            for place, read in self._coded:
                numbers[place] = read.plain(numbers[place])
            words = [read(_as_plain_text(row[text.name])) for text, read in self._texts]
        except (KeyError, DataError, TypeError):
            return None
        if not PLAIN.issuperset(map(type, numbers)) or (self.signature.requires_numbers and None in numbers):
            return None
        return EncodedRow(numbers, words)

    def typed_encoder(self, levels: Mapping[str, frozenset[str]]) -> "Callable[[Sequence[Any]], EncodedRow | None]":
        """Encodes a row as `encode_plain` does, from the values of `features` in their order: each float or None where
        `reads_number`, else text or None. None for a row that `encode` must check.

        `levels`: feature -> its categories; of such a feature any other one is left to `encode`.
        """
        tables = [
            (place, read.table(levels.get(name, frozenset())))
            for place, (name, read) in enumerate(self._readers)
            if isinstance(read, _Code) and levels.get(name)
        ]
        others = [(place, read) for place, read in self._coded if place not in dict(tables)]
        place_of = {name: place for place, name in enumerate(self.features)}
        places = [place_of[name] for name, _ in self._readers]
        take = list if places == list(range(len(self.features))) else _getter(places)
        texts = [(place_of[text.name], read) for text, read in self._texts]
        complete = self.signature.requires_numbers

        def encode(values: Sequence[Any]) -> EncodedRow | None:
            numbers: list[Any] = list(take(values))
            try:
                for place, table in tables:
                    numbers[place] = table[numbers[place]]
                for place, read in others:
                    numbers[place] = read.plain(numbers[place])
                words = [read(values[place]) for place, read in texts]
            except (KeyError, DataError):
                return None
            return None if complete and None in numbers else EncodedRow(numbers, words)

        return encode

    def reads_number(self, name: str) -> bool:
        """Whether the graph takes that feature as a number, and not by its text."""
        return all(isinstance(read, _Number) for each, read in self._readers if each == name) and not any(
            each.name == name for each, _ in self._texts
        )

    def _order(self, names: tuple[str, ...]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """Where the cells of the graph's columns stand in a row with these keys. Raises KeyError for one that is not there."""
        places = {name: place for place, name in enumerate(names)}
        found = _getter([places[name] for name, _ in self._readers])
        if len(self._orders) >= MAX_ORDERS:
            self._orders.clear()
        self._orders[names] = found
        return found

    def predict_encoded(self, rows: Sequence["EncodedRow"]) -> list[dict[str, Any]]:
        """The predictions for encoded rows, in their order."""
        words = [list(each) for each in zip(*(row.words for row in rows), strict=True)]
        predicted = self._predict(np.array([row.numbers for row in rows], dtype=float), words)
        return [
            dict(zip(predicted, each, strict=True))
            for each in zip(*(part.tolist() for part in predicted.values()), strict=True)
        ]

    def predict_mixed(
        self, own: "EncodedRow", others: Sequence["EncodedRow"], names: Sequence[str], taken: np.ndarray, other: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The predictions for mixtures of two encoded rows: `own`, and the one of `others` at the place `other`.

        `taken`: mixture x name, whether that feature is the one of `own`; features outside `names` are those of `own`.
        """
        place = {name: each for each, name in enumerate(names)}
        owners = np.array([place.get(name, len(names)) for name, _ in self._readers], dtype=int)
        wide = np.column_stack([taken, np.ones(len(taken), bool)])
        numbers = np.array([each.numbers for each in others], dtype=float).reshape(len(others), len(owners))
        points = np.where(wide[:, owners], np.array(own.numbers, dtype=float), numbers[other])
        words = [
            [mine if one else others[at].words[text] for one, at in zip(wide[:, place.get(each.name, -1)], other, strict=True)]
            for text, ((each, _), mine) in enumerate(zip(self._texts, own.words, strict=True))
        ]
        return self._predict(points, words)

    def predict_columns(self, columns: Mapping[str, Iterable[Any]] | Any, rows: int | None = None) -> dict[str, np.ndarray]:
        """The predictions for whole columns (a frame, or feature -> its values), named as by `predict_row`.

        `rows`: how many there are; needed only for a model that reads no feature, such as a baseline.
        """
        return self._predict(*self.encode_columns(columns, rows))

    def encode_columns(
        self, columns: Mapping[str, Iterable[Any]] | Any, rows: int | None = None
    ) -> tuple[np.ndarray, list[list["Weights"]]]:
        """Whole columns as the graph takes them: row x column of the input, and each row's words for each text."""
        cells = [_column(columns[name], read) for name, read in self._readers]
        words = [[read(value) for value in columns[text.name]] for text, read in self._texts]
        count = len(cells[0]) if rows is None and cells else rows or 0
        return np.column_stack(cells) if cells else np.empty((count, 0)), words

    def trace(self, points: np.ndarray, words: Sequence[Sequence["Weights"]]) -> list[np.ndarray]:
        """Of each score its matrix and its numbers, in turn, for encoded rows (see `encode_columns`)."""
        names = [each.name for each in self._session.get_outputs() if each.name != OUTPUT]
        return self._session.run(names, self._feeds(points, words))  # pyright: ignore[reportReturnType]

    def owners(self) -> tuple[list[str], list[str]]:
        """The feature of each column of the input, and of each text."""
        return [name for name, _ in self._readers], [text.name for text, _ in self._texts]

    def _predict(self, points: np.ndarray, words: Sequence[Sequence["Weights"]]) -> dict[str, np.ndarray]:
        count = len(points)
        places = (slice(first, first + BATCH) for first in range(0, count, BATCH))
        parts = [self._run(points[place], [each[place] for each in words]) for place in places]
        values = np.concatenate(parts) if parts else np.empty((0, max(1, len(self._names))))
        return self._outputs(values)

    def _outputs(self, values: np.ndarray) -> dict[str, np.ndarray]:
        if self.signature.output == "value":
            return {"prediction": values[:, 0]}
        if self.signature.output == "cluster":
            return {"prediction": values[:, 0].astype(int)}
        chosen = values.argmax(axis=1)
        if self.signature.threshold is not None:
            positive = self.signature.positive
            chosen = np.where(values[:, positive] >= self.signature.threshold, positive, 1 - positive)
        return {"prediction": np.array(self.signature.classes)[chosen], **dict(zip(self._names, values.T, strict=True))}

    def _choose(self, probabilities: list[float]) -> int:
        if self.signature.threshold is None:
            return probabilities.index(max(probabilities))
        positive = self.signature.positive
        return positive if probabilities[positive] >= self.signature.threshold else 1 - positive

    def _run(self, points: Any, words: Sequence[Sequence["Weights"]]) -> np.ndarray:
        return self._session.run([OUTPUT], self._feeds(points, words))[0]  # pyright: ignore[reportReturnType]

    def _feeds(self, points: Any, words: Sequence[Sequence["Weights"]]) -> dict[str, np.ndarray]:
        feeds = {INPUT: np.asarray(points, dtype=float)}
        for (text, _), found in zip(self._texts, words, strict=True):
            feeds[f"{text.input}_ids"], feeds[f"{text.input}_weights"] = _padded(found, len(text.idf))
        return feeds


def _open(file: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors arrive as exceptions
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def open_link(file: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """The link of a compiled model: scores (row x number) -> predictions (row x output)."""
    session = _open(file)
    return lambda scores: session.run([OUTPUT], {INPUT: scores})[0]


MAX_ORDERS = 64
"""Orders of the keys of rows that are remembered."""
PLAIN = frozenset((float, int, type(None)))
"""Types of a number as JSON has it; NumPy makes NaN of None."""
Weights = dict[int, float]
"""Word -> its weight in one text."""


class EncodedRow(NamedTuple):
    """A row as the graph takes it."""

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


def _getter(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """The values at `places`, in their order."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple(values[place] for place in places)


def _cell(row: Mapping[str, Any], name: str) -> Any:
    try:
        return row[name]
    except KeyError:
        raise DataError(f"{name}: is missing from the row; give null for a value that is not known") from None


def _column(values: Any, read: Callable[[Any], float]) -> np.ndarray:
    if isinstance(read, _Number) and not read.complete and getattr(getattr(values, "dtype", None), "kind", "O") in "fiu":
        return np.asarray(values, dtype=float)
    return np.array([read(value) for value in values], dtype=float)


def _reader(column: Column, signature: Signature) -> "_Number | _Code | _Moment | _Length":
    if column.part == "number":
        return _Number(column.name, signature.requires_numbers)
    if column.part == "category":
        return _Code(column.codes or {}, column.unseen, signature.missing_category)
    if column.part in ("characters", "words"):
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
            raise DataError(f"{self.name} = {value}: not a finite number") from None
        if abs(number) == np.inf:
            raise DataError(f"{self.name} = {value}: not a finite number")
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

    def table(self, levels: frozenset[str]) -> dict[str | None, float]:
        """The number of each of `levels`, and of None."""
        return {level: float(self.plain(level)) for level in (None, *levels)}

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
            raise DataError(f"{self.name} = {value}: not a date; write it as 2024-03-31 or 2024-03-31T17:00") from None
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

    Lower case, no accents, words of two letters or more; 1 + log of how often, times idf, all together of length 1.
    """

    def __init__(self, text: Text) -> None:
        self.ids, self.idf = text.vocabulary, text.idf

    def __call__(self, value: Any) -> Weights:
        found = WORD.findall(_plain(_as_text(value).lower()))
        pairs = (f"{first} {second}" for first, second in pairwise(found))
        counts = Counter(self.ids[each] for each in (*found, *pairs) if each in self.ids)
        weights = {word: (1 + math.log(count)) * self.idf[word] for word, count in counts.items()}
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
    """A cell of a category as the text that training knows: None and NaN are `missing`, truth values are lower case, and whole
    numbers have no decimals.
    """
    if value is None or value != value:
        return missing
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def dumps(signature: Signature) -> str:
    return json.dumps(signature.model_dump(exclude_defaults=True), separators=(",", ":"))
