"""The interface of a kind of problem. Stages and the gate use it and never ask for the kind.

Days: a cutoff is the last day whose events may be used. The label of a cutoff covers the `horizon_days` days after it. Rows of
a plain table have no cutoff; the part of the table names them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import polars as pl

from evergreen.tasks.config.params import KindName, Range

if TYPE_CHECKING:
    import pandas as pd

    from evergreen.tasks.core.intervals import Scale

Config = Mapping[str, Any]
"""One point of the search: "model" names the model, the other keys are its hyper-parameters and pipeline choices."""
Model = Any
"""A fitted scikit-learn estimator, savable by tasks.model_files.skops_models."""
NOT_SCORED = "not_scored"
"""Column of predictions: why a row has none; null where it has one."""
Data = Any
"""The result of `load`; opaque to all but the kind."""


@dataclass(frozen=True)
class Metric:
    name: str
    greater_is_better: bool = True
    format: str = ".3f"
    scale: "Scale" = "linear"
    """Of its confidence interval."""

    def gain(self, candidate: float, other: float) -> float:
        """How much better `candidate` is than `other`: positive is better, in the metric's unit."""
        return candidate - other if self.greater_is_better else other - candidate


Part = date | str
"""Some of the rows: those at a cutoff, or those of a named part of a plain table, such as "test"."""


@dataclass(frozen=True)
class Fold:
    """Learn from the rows of `train`, judge on those of `test`; no label of `train` reaches past a cutoff `test`."""

    train: tuple[Part, ...]
    test: Part


@dataclass(frozen=True)
class Splits:
    folds: tuple[Fold, ...]
    """For the search; no row of a test is in them."""
    tests: tuple[Fold, ...]
    """To judge by, oldest first."""
    refit: tuple[Part, ...] | None = None
    """What the model that serves learns from once it is judged; None: the one that was judged in the last test serves."""


@dataclass(frozen=True)
class FeatureFolders:
    """Where the features step writes."""

    learned: Path
    """What models learn from."""
    newest: Path
    """The rows of the last day, for kinds whose labels come later."""
    earlier: Path
    """What an earlier run learned from; perhaps not there."""
    record: Path
    """A JSON file for what the frames follow from; perhaps not there."""


def write_frames(frames: Mapping[str, pl.DataFrame], folder: Path) -> None:
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")


class Kind(Protocol):
    name: KindName
    metrics: tuple[Metric, ...]
    """The primary metric first."""
    baseline: str
    """Name of the model that needs no learning worth the name."""

    def headline(self, section: Any) -> Metric:
        """The metric that pages, cards and monitoring show first."""
        ...

    def build(
        self, tables: Mapping[str, pl.LazyFrame], times: Mapping[str, str | None], section: Any, as_of: date
    ) -> dict[str, pl.DataFrame]:
        """The features step: file name -> frame, from checked tables cut at `as_of`. `times`: table -> its time column."""
        ...

    def write(
        self,
        tables: Mapping[str, pl.LazyFrame],
        times: Mapping[str, str | None],
        section: Any,
        as_of: date,
        folders: "FeatureFolders",
    ) -> None:
        """Write the frames of `build`, one parquet file each; what an earlier run wrote may be used again. Raises what `build`
        raises."""
        ...

    def load(self, folder: Path, section: Any) -> Data:
        """Read the frames of `build` that models learn from."""
        ...

    def splits(self, data: Data, section: Any) -> Splits:
        """Training and test parts. Raises DataError where there are too few rows."""
        ...

    def begins(self, data: Data, part: Part) -> date | None:
        """The last day before the events or rows that judge in `part`; None where rows have no order in time."""
        ...

    def space(self, section: Any) -> dict[str, dict[str, Range]]:
        """Model -> hyper-parameter -> range; simple models before complex ones, the baseline first."""
        ...

    def defaults(self, model: str, section: Any) -> Config:
        """A sound configuration of `model`, tried before any other."""
        ...

    def fit(self, data: Data, parts: Sequence[Part], config: Config, section: Any, seed: int) -> Model:
        """Learn from the rows of `parts` and their labels, and nothing else."""
        ...

    def predict(self, model: Model, data: Data, part: Part, section: Any) -> pl.DataFrame:
        """One row per entity at a cutoff, or per row of `part`: `entity`, prediction and `label`, for `score` and `plots`."""
        ...

    def score(self, predictions: pl.DataFrame, section: Any) -> dict[str, float]:
        """Every metric over rows of `predict` for one part (or a resample of them), in the order of `metrics`."""
        ...

    def score_model(self, model: Model, data: Data, fold: Fold, config: Config, section: Any, seed: int) -> dict[str, float]:
        """Metrics of the model as a whole that rows cannot give, such as stability; empty for most kinds."""
        ...

    def plots(
        self, predictions: pl.DataFrame, baseline: pl.DataFrame, model: Model, data: Data, section: Any
    ) -> dict[str, pl.DataFrame]:
        """Plot name -> tidy table: the curves of this kind on the test windows (`predictions` has a column `cutoff`)."""
        ...

    def rows(self, data: Data, parts: Sequence[Part]) -> int:
        """How many rows (recommendation: users) `fit` learns from in `parts`."""
        ...

    def importance(self, model: Model) -> dict[str, float]:
        """Feature -> importance in the model, largest first; empty where the model has none."""
        ...

    def slices(self, data: Data, part: Part, names: Sequence[str], section: Any) -> pl.DataFrame:
        """`_entity` and one column per name in `names`, for error slices; in the row order of `predict`.

        Raises ParamsError, naming the nearest, for an unknown name.
        """
        ...

    def example(self, data: Data, section: Any) -> Any:
        """Up to five rows of the pandas frame that the model's own `predict` takes: the signature of the served model."""
        ...

    def predict_new(self, model: Model, data: Data, rows: pl.DataFrame, section: Any) -> pl.DataFrame:
        """The prediction of `model` for each of `rows`, in their order: features, or the entity's key alone.

        Where rows and predictions are one to one, the columns of `rows` come first and NOT_SCORED last.
        Raises DataError for columns that are missing, or taken by the prediction.
        """
        ...


@runtime_checkable
class RowKind(Kind, Protocol):
    """A kind that predicts rows of features, one by one: its models can be compiled, and columns have importance."""

    @property
    def importance_metric(self) -> str:
        """Name of the score of `importance_loss`."""
        ...

    def load_at(self, folder: Path, section: Any, day: date) -> Data:
        """Read the rows of one cutoff of `days` alone."""
        ...

    def load_types(self, folder: Path, section: Any) -> Data:
        """Of a plain table what names, types and `levels` of its features need, in memory that does not grow with its rows."""
        ...

    def days(self, folder: Path) -> list[date]:
        """The cutoffs that there are rows of, ascending; none for a plain table."""
        ...

    def predict_rows(self, model: Model, features: "pd.DataFrame") -> dict[str, np.ndarray]:
        """The columns of a prediction, such as `prediction`: one value per row of `features`."""
        ...

    def levels(self, data: Data) -> dict[str, list[str]]:
        """Category -> its values in `data`, sorted."""
        ...

    def find_features(self, data: Data, rows: pl.DataFrame, section: Any) -> "tuple[pd.DataFrame, list[str | None]]":
        """The features of each of `rows`, given in it or looked up by its entity, and why a row has none."""
        ...

    def predict_found(
        self, predict: "PredictRows", features: "pd.DataFrame", why: Sequence[str | None], rows: pl.DataFrame
    ) -> pl.DataFrame:
        """`rows` with their predictions and NOT_SCORED. `features`, `why`: see `find_features`."""
        ...

    def importance_loss(self, whole: pl.DataFrame, shuffled: pl.DataFrame, section: Any) -> float:
        """How much worse predictions are with one column shuffled: both frames are rows of `predict`."""
        ...


PredictRows = Callable[["pd.DataFrame"], dict[str, np.ndarray]]
"""The columns of predictions for a frame of features, by a pipeline or by the model it was compiled to."""


@runtime_checkable
class ExplainedKind(RowKind, Protocol):
    """A kind whose predictions are numbers that columns contribute to, and that a label shows to be wrong."""

    loss_name: str
    """Of `row_losses`."""

    def outputs(self, model: Model, most: int) -> "tuple[Callable[[pd.DataFrame], np.ndarray], list[str]]":
        """Features -> row x output, and the name of each output: of two classes the positive one, of more the first `most`."""
        ...

    def row_losses(self, predictions: pl.DataFrame) -> np.ndarray:
        """The loss of each row of `predict`; all rows have a label."""
        ...


@runtime_checkable
class Finishing(Protocol):
    """A kind that calibrates its models with out-of-fold predictions."""

    def finishes(self, section: Any) -> bool:
        """Whether params enable calibration."""
        ...

    def finish(self, model: Model, held_out: pl.DataFrame, section: Any, seed: int) -> Model:
        """`model`, fitted, calibrated with `held_out`: out-of-fold rows of `predict` by models of the same configuration."""
        ...


@runtime_checkable
class OutOfCore(Protocol):
    """A kind whose table may be too large for memory: `load` then gives a sample of its rows."""

    def load_stored(self, folder: Path, section: Any) -> Data:
        """As `load`; a sample knows the table that it is from, so that models learn from all rows and predict all."""
        ...

    def scope(self, data: Data, config: Config, section: Any) -> Data:
        """`data` as models of `config` learn from it: all that is stored, or a sample for those that need it in memory."""
        ...

    def sampled(self, data: Data) -> tuple[int, int] | None:
        """Rows in memory and rows of the table; None where all are in memory."""
        ...

    def learning_limit(self, folder: Path, section: Any) -> int | None:
        """Bytes that bound the sample of this table; None where the whole table may be in memory."""
        ...


@runtime_checkable
class Paired(Protocol):
    """A kind whose models are compared unit by unit, such as user by user, so that a few windows tell them apart."""

    def unit_values(self, predictions: pl.DataFrame, metric: str) -> pl.DataFrame:
        """unit and value, one row per unit whose `metric` is defined. `predictions`: rows of `predict`."""
        ...


@runtime_checkable
class Portfolio(Protocol):
    """A kind with configurations that are worth a trial on any table."""

    def portfolio(self, section: Any) -> Sequence[Config]:
        """Configurations to try right after the defaults, the most promising first."""
        ...
