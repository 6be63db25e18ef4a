"""The predictions of each kind, and their scores against labels.

Monitoring reads the ledger's rows with these classes, and so do servers during a rollout. A module `predictions` of a kind
therefore imports Polars and NumPy only, and training libraries inside functions.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import polars as pl

from evergreen.tasks.config.params import KindName
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.columns import texts
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.problems.base import Metric

if TYPE_CHECKING:
    from evergreen.tasks.core.intervals import Scale

Context = Mapping[str, Any]
"""Facts of training that predictions are compared by, in JSON's types; each kind has its own."""
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""A whole number as it is written out again."""
ENOUGH = 30
"""An estimate of a score learns from so many earlier rows with label, at least."""


@dataclass(frozen=True)
class SkillScale:
    """Skill, 0 for guessing and 1 for perfect, and the common metric it stands for."""

    metric: str
    at_zero: float
    """The metric's value where the skill is 0."""
    leak: float
    """A single column with this much skill, in a model that has it too, leaks the target."""

    def show(self, skill: float) -> str:
        """
        >>> SkillScale("ROC AUC", at_zero=0.5, leak=0.95).show(0.8)
        'ROC AUC 0.900'
        """
        return f"{self.metric} {self.at_zero + self.difference(skill):.3f}"

    def difference(self, skill: float) -> float:
        """A difference of skill in the metric's unit."""
        return (1 - self.at_zero) * skill


class PredictionType(ABC):
    """The predictions of a kind."""

    name: KindName
    metrics: tuple[Metric, ...]
    """The primary metric first."""
    caveat: str
    """A caveat of the predictions: a sentence of the model card."""
    aspect: Literal["prediction", "segments", "ranking"] = "prediction"
    """Aspect of a change in predictions."""
    skill: SkillScale | None = None
    """How diagnosis shows the skill of models; None: they cannot be diagnosed."""
    target: Literal["class", "number"] | None = None
    """What the column holds that a model of rows learns. None: there is no such column."""

    @abstractmethod
    def score(self, predictions: pl.DataFrame, section: Any) -> dict[str, float]:
        """Every metric over rows of `Kind.predict` for one part (or a resample of them), in the order of `metrics`."""

    def headline(self, section: Any) -> Metric:
        """The metric that pages, cards and monitoring show first."""
        return self.metrics[0]

    @abstractmethod
    def comparable(self, rows: pl.DataFrame, features: pl.DataFrame | None, context: Context) -> pl.DataFrame:
        """The columns of predictions that drift detection compares: one row each for `rows`, no column where they hold none.

        `features`: of the same rows; None where they are unknown.
        """

    @abstractmethod
    def question(self, name: str, columns: Mapping[str, str | None]) -> str:
        """The question that a new problem called `name` asks. `columns`: target, positive_class, user and item."""

    def comparable_labels(self, labels: pl.Series) -> pl.DataFrame:
        """The column `label` as drift detection compares it; no column where labels are not compared."""
        return pl.DataFrame()

    def resemblance(self, one: pl.DataFrame, other: pl.DataFrame) -> np.ndarray | None:
        """From 0 to 1, how much two versions' predictions of the same requests resemble each other, row by row; None for a kind
        without such a measure."""
        return None

    def stored_rows(self, folder: Path, section: Any, card: Mapping[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame] | None:
        """The rows that the features step left in `folder`: entity, cutoff, at, label and whether the version with this model
        card `learned` from them; apart from these their features, whose names may be the same. None where predictions are not
        made from rows of features."""
        return None

    def context(self, folder: Path, card: Mapping[str, Any]) -> Context:
        """Of the version with this model card, from what the features step left in `folder`."""
        return {}

    def context_of_rows(self, rows: pl.DataFrame, features: pl.DataFrame | None) -> Context:
        """The same, from predictions that a version made of rows of `features`."""
        return {}

    def purchases(self, folder: Path, section: Any) -> tuple[pl.DataFrame, date] | None:
        """user, item and day of what the features step left in `folder`, and the day up to which they are complete. None for a
        kind without purchases, and for purchases without dates."""
        return None

    def with_history(self, rows: pl.DataFrame, folder: Path) -> pl.DataFrame:
        """Predictions with columns from the features in `folder`."""
        return rows


class Labelled(PredictionType):
    """Predictions that a label, known later, can judge."""

    largest_loss: float = math.inf
    """Upper limit of a loss (see `losses`)."""
    labelled_by_moment: bool = False
    """Whether the label of a prediction without a cutoff begins with its moment, not with its day."""
    no_estimate: str = ""
    """Why no score can be estimated before the labels are known; empty: it can."""

    def parse_label(self, given: Any, outputs: Collection[str] = ()) -> Any:
        """A label as this kind has it, from JSON's types or the text of a CSV file.

        `outputs`: names of the outputs of predictions, which show the classes; empty: not known. Raises ValueError, with the
        rule, for what can be none.
        """
        if given is None or (isinstance(given, float) and given != given) or (isinstance(given, str) and not given.strip()):
            raise ValueError("has no value")
        return self._parse(given, outputs)

    @abstractmethod
    def _parse(self, given: Any, outputs: Collection[str]) -> Any: ...

    def readable(self, rows: pl.DataFrame) -> pl.Series:
        """The column `label` of rows of the ledger, each as `parse_label` gives it; null for one that it refuses.

        A class that no version knows is read: every version missed it.
        """
        labels = rows["label"]
        values = labels if labels.dtype.is_nested() else labels.unique(maintain_order=True)
        known = dict[Any, Any]()
        for value in values:
            with suppress(ValueError):
                known[_hashable(value)] = self.parse_label(value)
        found = pl.Series("label", [known.get(_hashable(value)) for value in values], strict=False)
        if labels.dtype.is_nested():
            return found
        each = pl.DataFrame({"sent": values, "label": found})
        return labels.to_frame("sent").join(each, on="sent", how="left", maintain_order="left", nulls_equal=True)["label"]

    @abstractmethod
    def losses(self, rows: pl.DataFrame, labels: pl.Series, metric: str | None) -> np.ndarray:
        """How wrong each prediction was, for the comparison of two versions; NaN where label or prediction is malformed.

        `labels`: one for each row, none missing. `metric`: the one that the promotion gate compares.
        """

    @abstractmethod
    def find_labels(
        self,
        wanted: pl.DataFrame,
        section: Any,
        tables: Mapping[str, Path],
        times: Mapping[str, str | None],
        folder: Path,
        as_of: date,
    ) -> Iterable[tuple[str, date, Any]]:
        """Entity, day (or the moment in `at`) and label of those of `wanted` that the project's own data label by the end of
        `as_of`.

        `wanted`: entity, day and, if `labelled_by_moment`, `at`: null where the day is that of a cutoff. `tables`: table of the
        section, and received_events.RECEIVED, -> its file; `times`: table -> its time column. `folder`: what the features step
        left. Raises SourceError where a file is missing.
        """

    def count_labels(self, folder: Path, section: Any, after: date, until: date) -> int | None:
        """Rows with label of the cutoffs after `after` whose horizon ended by `until`, in the features that the project has.

        None where features hold no labels; then the ledger's are counted.
        """
        return None

    @abstractmethod
    def as_predicted(self, rows: pl.DataFrame, section: Any) -> pl.DataFrame:
        """Rows of the ledger as `Kind.predict` gives them, with label_at; invalid labels are null."""

    def realised_metric(self, section: Any) -> Metric:
        """The metric of predictions whose labels are known: the headline, where labels allow it."""
        return self.headline(section)

    def primary_score(self, predictions: pl.DataFrame, section: Any) -> float:
        """The headline metric over rows of `as_predicted`."""
        return self.score(predictions, section)[self.realised_metric(section).name]

    def realised_scores(self, predictions: pl.DataFrame, section: Any) -> dict[str, float]:
        """Score name -> value over rows of `as_predicted` with label: the realised metric, and what else is told of a week."""
        return {self.realised_metric(section).name: self.primary_score(predictions, section)}

    def scale_of(self, score: str) -> "Scale":
        """The scale of the interval of a realised score."""
        for each in self.metrics:
            if each.name == score:
                return each.scale
        return "linear"

    def why_undefined(self, labels: pl.Series, section: Any) -> str:
        """Why the realised metric is not defined on rows with these labels."""
        name, count = self.realised_metric(section).name, len(labels)
        if labels.n_unique() > 1:
            return f"{name} is not defined on these {count:,} rows"
        only = f"{labels[0]:g}" if labels.dtype.is_numeric() else labels[0]
        return f"all {count:,} labels are {only}, so there is no {name}"

    def draw_labels(
        self, predictions: pl.DataFrame, known: Sequence[pl.DataFrame], draws: int, seed: int
    ) -> Iterator[pl.DataFrame] | str:
        """`draws` resamples of entities, each row with a label drawn as the model expects it: what the score will be.

        `predictions`: rows of `as_predicted`. `known`: earlier ones, all with label. A text says why `known` is too small.
        """
        raise NotImplementedError(self.no_estimate)


def scan(path: Path) -> pl.LazyFrame:
    """A table, or a file. Raises SourceError where it is missing."""
    if not table_parts.is_there(path):
        raise SourceError(f"{path}: is missing, so no label can be read. Build the features first: evergreen train")
    return table_parts.scan(path)


def realised_metric(kind: Any, section: Any) -> Metric:
    """The metric that monitoring compares with that of the evaluation: the headline, where labels allow it."""
    return kind.realised_metric(section) if isinstance(kind, Labelled) else kind.headline(section)


def _hashable(value: Any) -> Any:
    """A value of a column as a key."""
    if isinstance(value, pl.Series):
        return repr(value.to_list())
    return repr(cast("object", value)) if isinstance(value, list | dict) else value


def as_scalar(given: Any) -> Any:
    """Whole numbers in text become numbers, dates text; the rest stays."""
    if isinstance(given, date):
        return str(given)
    if isinstance(given, str) and WHOLE.fullmatch(given):
        return int(given)
    return given


def floats(values: pl.Series) -> np.ndarray:
    """`values` as numbers, NaN for what is none."""
    return values.cast(pl.Float64, strict=False).to_numpy()


def category_labels(labels: pl.Series) -> pl.Series:
    """Labels as names of classes: whole numbers without decimals."""
    return texts(labels).str.replace(r"^(-?\d+)\.0+$", "$1")
