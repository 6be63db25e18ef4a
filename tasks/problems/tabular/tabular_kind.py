"""Base of classification, regression and clustering: features and a target, one row per entity and cutoff or per case."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl
from sklearn.pipeline import Pipeline

from evergreen.tasks.config.params import Range, Table, Tabular
from evergreen.tasks.core import memory
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.suggestions import require
from evergreen.tasks.problems import splits as split
from evergreen.tasks.problems.base import (
    NOT_SCORED,
    Config,
    FeatureFolders,
    Fold,
    Model,
    Part,
    PredictRows,
    Splits,
)
from evergreen.tasks.problems.tabular import cutoff_files, holdout_split, out_of_core, plain_rows, preprocessing
from evergreen.tasks.problems.tabular.asked_features import find_features
from evergreen.tasks.problems.tabular.feature_importance import importance
from evergreen.tasks.problems.tabular.model_families import (
    BLEND,
    BY_LEVEL,
    BY_RANK,
    OWN_DEFAULTS,
    PAIRED,
    PORTFOLIO,
    STRAIGHT,
    TREE_ROWS,
    UNSHRUNK,
    Family,
    Stage,
)
from evergreen.tasks.problems.tabular.point_in_time import point_in_time
from evergreen.tasks.problems.tabular.predictions import RowPredictions, case_columns
from evergreen.tasks.problems.tabular.rows import Rows, aged, kept_of_older, to_features
from evergreen.tasks.problems.tabular.stored_table import AT, Selection, StoredTable
from evergreen.tasks.problems.tabular.transform_cache import once
from evergreen.tasks.problems.tabular.weighted_ensemble import Blend

log = logging.getLogger(__name__)

CELLS = 30_000_000
"""Large or wide tables bend at fewer points, so that the matrix of numbers stays within so many (of 8 bytes)."""
CELL_BYTES = 48
"""Of such a number, copies included, while a linear model learns from a sample of a table that is too large for memory."""
MAX_LEVELS = 10_000
"""Columns with more values have new ones in every file."""


@dataclass(frozen=True)
class Training:
    """Rows to learn from."""

    rows: Rows
    """In memory; a sample where there is `stored`."""
    stored: Selection | None = None
    """All of them."""

    @cached_property
    def target(self) -> pl.Series:
        """Of all rows."""
        return self.rows.target if self.stored is None else self.stored.frame([self.stored.table.target])[:, 1]

    def fit(self, model: Any, code: Callable[[pl.Series], np.ndarray]) -> Any:
        """`model`, fitted on all rows. `code`: targets as the model takes them."""
        if self.stored is None:
            return model.fit(self.rows.features, code(self.rows.target))
        return out_of_core.Lesson(self.rows.features, code(self.rows.target), self.stored, code(self.target)).fit(model)


class TabularKind(RowPredictions):
    """The part of the protocol that does not depend on what is predicted."""

    baseline: str
    supervised: ClassVar[bool] = True
    """Whether there is a target to learn from."""
    families: ClassVar[Mapping[str, Family]]
    """Model -> family, the baseline first, simple ones before complex ones."""
    plain: ClassVar[Mapping[str, Family]]
    """The same for plain tables."""
    blend: ClassVar[type[Blend] | None] = None
    """The ensemble of several models. None: no ensembles."""

    def offered(self, section: Tabular) -> Mapping[str, Family]:
        """Model -> family, of those that suit the form of the features. A blend is made of them and is none of them."""
        return self.plain if isinstance(section.features, Table) else self.families

    def stages(self, section: Tabular) -> dict[str, Stage]:
        """Model -> its stage, in the order of the search; last the blend, where the kind has one."""
        found: dict[str, Stage] = {name: family.stage for name, family in self.offered(section).items()}
        if self.blend:
            found[BLEND] = "ensemble"
        return found

    def build(
        self, tables: Mapping[str, pl.LazyFrame], times: Mapping[str, str | None], section: Tabular, as_of: date
    ) -> dict[str, pl.DataFrame]:
        """`rows`: one row per entity and cutoff, known at the cutoff; `newest`: those at `as_of`, with a missing target.

        Of a plain table its rows, see plain_rows.plain.
        """
        if isinstance(section.features, Table):
            return {"rows": plain_rows.plain(tables[section.features.table], section.features, self.target == "class")}
        rows = point_in_time(tables, times, section.features, as_of)
        return {"rows": rows.filter(pl.col("cutoff") < as_of), "newest": rows.filter(pl.col("cutoff") == as_of)}

    def write(
        self,
        tables: Mapping[str, pl.LazyFrame],
        times: Mapping[str, str | None],
        section: Tabular,
        as_of: date,
        folders: FeatureFolders,
    ) -> None:
        if isinstance(section.features, Table):
            table, path = tables[section.features.table], folders.learned / "rows.parquet"
            plain_rows.write(table, section.features, self.target == "class", path)
        else:
            cutoff_files.write(tables, times, section.features, as_of, folders)

    def load(self, folder: Path, section: Tabular) -> Rows:
        """Read rows.parquet, or a sample of its entities where it is too large for memory.

        Raises DataError where there is no row, no feature or an infinite number, ParamsError for an EVERGREEN_LEARNING_MB that
        is no number or too small.
        """
        return self.load_stored(folder, section).in_memory()

    def load_stored(self, folder: Path, section: Tabular) -> Rows:
        """As `load`; what comes from a sample knows the table, so that models learn from all rows and predict all."""
        stored = self._stored(folder, section)
        if stored.fits():
            return self._rows(pl.read_parquet(stored.path), folder, section)
        sample = stored.sample()
        log.info(
            "a sample of %s of %s rows is in memory, by entities: all take about %s MB to learn from, and %s allows %s",
            *(f"{sample.height:,}", f"{stored.height:,}", f"{stored.height * stored.row_bytes / 2**20:,.0f}"),
            *(memory.LEARNING, f"{memory.learning_limit() / 2**20:,.0f}"),
        )
        frame = sample.frame()
        rows = self._rows(frame.drop(AT), folder, section)
        rows.features.index = pd.Index(frame[AT].to_numpy())
        return replace(rows, stored=stored, sampled_from=stored.height)

    def _stored(self, folder: Path, section: Tabular) -> StoredTable:
        names = case_columns(section.features)
        return StoredTable(folder / "rows.parquet", *names, by_class=self.supervised and self.target == "class")

    def scope(self, data: Rows, config: Config, section: Tabular) -> Rows:
        """`data` as models of `config` learn from it: all that is stored, or the sample for those that need it in memory."""
        if data.stored is None or self._out_of_core(data.stored, config, section):
            return data
        return data.in_memory()

    def sampled(self, data: Rows) -> tuple[int, int] | None:
        return None if data.sampled_from is None else (len(data), data.sampled_from)

    def learning_limit(self, folder: Path, section: Tabular) -> int | None:
        stored = self._stored(folder, section)
        return None if stored.fits() else memory.learning_limit()

    def _out_of_core(self, stored: StoredTable, config: Config, section: Tabular) -> bool:
        estimator = None if config["model"] == BLEND else self.offered(section)[config["model"]].estimator
        if not self.supervised or estimator is None or not out_of_core.learns(estimator):
            return False
        return stored.fits_binned() or not out_of_core.binned(estimator)

    def load_types(self, folder: Path, section: Tabular) -> Rows:
        """One row of a plain table, which knows all that are stored: enough for the names, types and `levels` of features."""
        stored = self._stored(folder, section)
        frame, columns = pl.scan_parquet(stored.path, glob=False).head(1).collect(), section.features.roles
        features = to_features(frame.select(list(columns)), stored.path)
        return Rows(frame[stored.entity], None, frame[stored.target], features, roles=columns, stored=stored)

    def load_at(self, folder: Path, section: Tabular, day: date) -> Rows:
        """As `load`, the rows of one cutoff; the others take no memory."""
        rows = pl.scan_parquet(folder / "rows.parquet", glob=False).filter(pl.col("cutoff") == day)
        return self._rows(rows.collect(engine="streaming"), folder, section)

    def days(self, folder: Path) -> list[date]:
        """The cutoffs of rows.parquet, those without complete labels too, ascending; none for a plain table."""
        rows = pl.scan_parquet(folder / "rows.parquet", glob=False)
        if "cutoff" not in rows.collect_schema():
            return []
        return rows.select(pl.col("cutoff").unique().sort()).collect(engine="streaming").to_series().to_list()

    def _rows(self, frame: pl.DataFrame, folder: Path, section: Tabular) -> Rows:
        if isinstance(section.features, Table):
            features = to_features(frame.select(*section.features.columns), folder / "rows.parquet")
            parts = holdout_split.parts(frame, section, self.target == "class")
            return Rows(
                frame[holdout_split.ENTITY],
                None,
                frame[holdout_split.TARGET],
                features,
                parts=parts,
                roles=section.features.columns,
                time=frame[holdout_split.TIME] if section.features.time else None,
            )
        entity = section.features.entity
        named = [name for name in frame.columns if name not in (entity, "cutoff", "target")]
        if frame.is_empty() or not named:
            raise DataError(
                f"{folder / 'rows.parquet'}: {frame.height} rows with {len(named)} features; needs at least one of each."
            )
        target = frame["target"] if "target" in frame.columns else pl.Series("target", [None] * frame.height, pl.Float64)
        features = to_features(frame.select(named), folder / "rows.parquet")
        return Rows(frame[entity], frame["cutoff"], target, features, section.features.horizon_days)

    def splits(self, data: Rows, section: Tabular) -> Splits:
        if data.parts is not None:
            return data.parts.splits
        return split.by_cutoff(self.cutoffs(data), data.horizon_days, section)

    def begins(self, data: Rows, part: Part) -> date | None:
        return part if isinstance(part, date) else data.parts.begins.get(part) if data.parts else None

    def cutoffs(self, data: Rows) -> list[date]:
        """Cutoffs with complete labels, ascending; none for a plain table."""
        if data.cutoff is None:
            return []
        return data.cutoff.filter(data.target.is_not_null()).unique().sort().to_list()

    def space(self, section: Tabular) -> dict[str, dict[str, Range]]:
        """The ranges of each model, and before them the pipeline's choices that params gives as lists."""
        return {model: {**self.choices(model, section), **family.space} for model, family in self.offered(section).items()}

    def choices(self, model: str, section: Tabular) -> dict[str, Range]:
        family = self.offered(section)[model]
        if not family.prepared:
            return {}
        own = {name: each for name, each in family.choices.items() if name not in section.pipeline.model_fields_set}
        return preprocessing.space(section.pipeline, family.native) | own

    def defaults(self, model: str, section: Tabular) -> Config:
        """The family's defaults, and the first of each list of choices."""
        first = {name: each.values[0] for name, each in self.choices(model, section).items() if each.values}
        return {"model": model, **first, **self.offered(section)[model].defaults}

    def portfolio(self, section: Tabular) -> list[Config]:
        """Configurations to try right after the defaults, the most promising first. None where features come from events."""
        if not isinstance(section.features, Table) or "lightgbm" not in self.plain:
            return []
        lines = [model for model, family in self.plain.items() if family.stage == "linear"]
        others = [{"model": model, **more} for model in lines for more in (STRAIGHT, UNSHRUNK, BY_LEVEL)] + [
            {"model": "network", **BY_RANK}
        ]
        found = [OWN_DEFAULTS, PAIRED, *PORTFOLIO[:2], *others, *PORTFOLIO[2:], PORTFOLIO[1] | PAIRED, PORTFOLIO[-2] | PAIRED]
        return [{**self.defaults(str(each.get("model", "lightgbm")), section), **each} for each in found]

    def rows(self, data: Rows, parts: Sequence[Part]) -> int:
        return data.count(parts, labelled=self.supervised)

    def slices(self, data: Rows, part: Part, names: Sequence[str], section: Tabular) -> pl.DataFrame:
        """`_entity` and the features called `names`; raises ParamsError for a name that is no feature."""
        for name in names:
            require(name, data.features, "evaluate.slices")
        blocks = [
            {holdout_split.ENTITY: rows.entity} | {name: pl.Series(rows.features[name]) for name in names}
            for rows in data.blocks([part])
        ]
        return pl.concat(pl.DataFrame(each, nan_to_null=True) for each in blocks)

    def training_rows(self, data: Rows, parts: Sequence[Part], section: Tabular, seed: int) -> Rows:
        """What there is to learn from, of older rows fewer with train.half_life_days. Raises DataError for nothing."""
        rows = data.at(parts, labelled=self.supervised)
        if not len(rows):
            days = ", ".join(map(str, parts)) or "(none)"
            raise DataError(
                f"no {'labelled ' if self.supervised else ''}row to learn from at the cutoffs {days}. "
                "Give more history or an earlier features.cutoffs.first."
            )
        return aged(rows, section.train.half_life_days, seed)

    def training(self, data: Rows, parts: Sequence[Part], config: Config, section: Tabular, seed: int) -> "Training":
        """What a model of `config` learns from. Raises DataError for nothing."""
        data = self.scope(data, config, section)
        rows = self.training_rows(data, parts, section, seed)
        if data.stored is None:
            return Training(rows)
        stored, half_life = data.all_stored(parts, labelled=True), section.train.half_life_days
        if half_life is not None and data.cutoff is not None:
            stored = stored.keep(kept_of_older(stored.frame(["cutoff"])["cutoff"], half_life, seed))
        return Training(rows, stored)

    def assemble(self, rows: Rows, config: Config, section: Tabular, task: preprocessing.Task, seed: int) -> Any:
        """The unfitted model: the steps of the pipeline, as the training rows call for them, and the estimator.

        Of a blend all that its members are.
        """
        if config["model"] == BLEND and self.blend:
            members = [self.assemble(rows, each, section, task, seed) for each in config["members"]]
            return self.blend(members, config["weights"])
        family = self.offered(section)[config["model"]]
        estimator = family.make(config, seed)
        if not family.prepared:
            return estimator
        if "max_samples" in estimator.get_params() and len(rows) > TREE_ROWS:
            estimator.set_params(bootstrap=True, max_samples=TREE_ROWS)
        dates, texts = ([name for name, each in rows.roles.items() if each == role] for role in ("date", "text"))
        others = rows.features.drop(columns=[*dates, *texts]) if dates or texts else rows.features
        numeric, low, high = roles(others, section.pipeline.high_cardinality)
        if not family.native and preprocessing.choose(section.pipeline, config)["impute"] == "none":
            _refuse_missing(rows.features.loc[:, numeric], config["model"])
        if split := preprocessing.native_columns(section.pipeline, config, numeric, low, high, family.native):
            estimator.set_params(categorical_column=split)
        cells = CELLS if rows.sampled_from is None else min(CELLS, memory.learning_limit() // CELL_BYTES)
        bent = _bounded(preprocessing.choose(section.pipeline, config)["spline_knots"], len(rows) * len(numeric), cells)
        steps = preprocessing.preprocess(
            *(section.pipeline, {**config, "spline_knots": bent}, numeric, low, high, task, seed, family.native, dates, texts),
            stratified=task == "continuous" or _smallest_class(rows.target) >= preprocessing.ENCODING_FOLDS,
        )
        return Pipeline([("prepare", once(steps)), ("model", estimator)])

    def score_model(
        self, model: Model, data: Rows, fold: Fold, config: Config, section: Tabular, seed: int
    ) -> dict[str, float]:
        return {}

    def importance(self, model: Model) -> dict[str, float]:
        return importance(model)

    def example(self, data: Rows, section: Tabular) -> pd.DataFrame:
        return data.features.tail(5).reset_index(drop=True)

    def predict_rows(self, model: Model, features: pd.DataFrame) -> dict[str, np.ndarray]:
        """The columns of a prediction: `prediction`, one per row of `features`."""
        return {"prediction": model.predict(features)}

    @property
    def importance_metric(self) -> str:
        return self.metrics[0].name

    def importance_loss(self, whole: pl.DataFrame, shuffled: pl.DataFrame, section: Tabular) -> float:
        metric = self.metrics[0]
        return metric.gain(*(self.score(each, section)[metric.name] for each in (whole, shuffled)))

    def predict_new(self, model: Model, data: Rows, rows: pl.DataFrame, section: Tabular) -> pl.DataFrame:
        """`rows`, the columns of `predict_rows`, and why a row has no prediction: an unknown entity, or no number."""
        return self.predict_found(partial(self.predict_rows, model), *self.find_features(data, rows, section), rows)

    def levels(self, data: Rows) -> dict[str, list[str]]:
        """Category -> its values, sorted; without free text and columns of more than MAX_LEVELS values."""
        texts = [name for name in data.features if data.roles.get(name) != "text"]
        texts = [name for name in texts if pd.api.types.is_string_dtype(data.features[name])]
        if data.stored is not None:
            stored = {str(name): data.stored.values(str(name), MAX_LEVELS) for name in texts}
            return {name: values for name, values in stored.items() if values is not None}
        found = {str(name): sorted(data.features[name].dropna().unique()) for name in texts}
        return {name: values for name, values in found.items() if len(values) <= MAX_LEVELS}

    def find_features(self, data: Rows, rows: pl.DataFrame, section: Tabular) -> tuple[pd.DataFrame, list[str | None]]:
        """The features of each of `rows`, given in it or looked up by its entity, and why a row has none."""
        return find_features(data, rows, section.features.entity)

    def predict_found(
        self, predict: PredictRows, features: pd.DataFrame, why: Sequence[str | None], rows: pl.DataFrame
    ) -> pl.DataFrame:
        """See `predict_new`. `predict`: a pipeline, or the model it was compiled to."""
        there = np.array([each is None for each in why], dtype=bool)
        found = predict(features.loc[there]) if there.any() else {"prediction": np.empty(0)}
        if taken := [name for name in (*found, NOT_SCORED) if name in rows.columns]:
            raise DataError(f"column {taken[0]}: the answer brings a column of that name; rename it in the file")
        places = pl.DataFrame({"row": np.flatnonzero(there), **found})
        predictions = pl.DataFrame({"row": np.arange(len(why))}).join(places, on="row", how="left", maintain_order="left")
        return rows.hstack(predictions.drop("row")).with_columns(pl.Series(NOT_SCORED, why, pl.String))


def roles(features: pd.DataFrame, high_cardinality: int) -> tuple[list[str], list[str], list[str]]:
    """Columns that are numbers, text with few distinct values and text with more than `high_cardinality`."""
    numeric = [name for name in features if pd.api.types.is_numeric_dtype(features[name])]
    text = [name for name in features if pd.api.types.is_string_dtype(features[name])]
    high = [name for name in text if features[name].nunique() > high_cardinality]
    return numeric, [name for name in text if name not in set(high)], high


def _bounded(knots: int, numbers: int, cells: int) -> int:
    """Number of `knots` whose columns, for this many `numbers`, stay within `cells`."""
    return knots if numbers * (1 + knots) <= cells else max(cells // numbers - 1, 0)


def _smallest_class(target: pl.Series) -> int:
    return int(target.value_counts()["count"].min() or 0)  # pyright: ignore[reportArgumentType]


def _refuse_missing(numbers: pd.DataFrame, model: str) -> None:
    missing = numbers.isna().sum()
    if missing.any():
        raise DataError(
            f"{missing.idxmax()}: {missing.max():,} of {len(numbers):,} rows are missing, and with pipeline.impute none "
            f"{model} cannot learn from them. Set pipeline.impute to median, mean or zero, or tune.models to others."
        )
