"""What a logged model takes and gives: scorer.json in the folder of the model."""

from typing import Literal

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.data import ColumnType, Source

MANIFEST = "scorer.json"
"""File of the manifest in the model's folder."""

Trained = Literal["number", "text", "date"]
"""Type of a column in the frame that a model takes: float64, text, or datetime64."""


class InputColumn(Section):
    """A column of the input of a model of rows."""

    type: ColumnType
    """Its type in the contract of the table."""
    trained: Trained
    required: bool
    """Whether it must be there: training had no row without it. An optional column that is absent is missing in every row."""


class Manifest(Section):
    """Of a model of rows, or of a recommender."""

    problem: str
    predicts: Literal["rows", "lists"]
    columns: dict[str, InputColumn] = {}
    """rows: column -> its types, in the order of training."""
    contract: Source = Source(parquet="input")
    """rows: formats and missing values of the columns."""
    user: str = ""
    """lists: column of the user's key."""
    item: str = ""
    """lists: name of the item's key."""
    k: int = 10
    """lists: length of a list, unless the parameter `k` says otherwise."""
