"""What every kind of problem must keep, on the small store of tests/store.py with its planted answers.

A kind's test file inherits Contract (a kind with rows of features: TabularContract, or SupervisedContract if there is a target)
and fills in the class attributes and hooks.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.linear_model import LinearRegression

from evergreen.tasks import problems
from evergreen.tasks.config import loading, params
from evergreen.tasks.config.params import KindName, Problem
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.model_files import onnx_export as compiling
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Config, Data, Fold, Kind, Model
from evergreen.tasks.problems.prediction_type import Labelled, PredictionType
from tests import store

SEED = 3


@dataclass(frozen=True)
class World:
    """One problem of the small store, its features built, and the last window to judge on."""

    kind: Kind
    section: Problem
    frames: dict[str, pl.DataFrame]
    folder: Path
    data: Data
    fold: Fold

    def fit(self, config: Config, data: Data = None, seed: int = SEED) -> Model:
        return self.kind.fit(self.data if data is None else data, self.fold.train, config, self.section, seed)

    def predict(self, model: Model, data: Data = None) -> pl.DataFrame:
        return self.kind.predict(model, self.data if data is None else data, self.fold.test, self.section)

    def primary(self, model: Model, data: Data = None) -> float:
        return self.kind.score(self.predict(model, data), self.section)[self.kind.metrics[0].name]

    def defaults(self, model: str) -> Config:
        return self.kind.defaults(model, self.section)

    def reload(self, frames: dict[str, pl.DataFrame], name: str) -> Data:
        """The data that `load` reads from other `frames`."""
        return self.kind.load(write(frames, self.folder / name), self.section)


def write(frames: dict[str, pl.DataFrame], folder: Path) -> Path:
    folder.mkdir()
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
    return folder


def keep(frames: dict[str, pl.DataFrame], layout: Layout, problem: str) -> None:
    """Write the frames where the features step does."""
    for folder in (layout.features(problem), layout.newest(problem)):
        folder.mkdir(parents=True)
    for name, frame in frames.items():
        place = layout.newest(problem) / "rows" if name == "newest" else layout.features(problem) / name
        frame.write_parquet(place.with_suffix(".parquet"))


def build(problem: str, folder: Path) -> World:
    store.project(folder)
    known = loading.load(folder / "params.yaml")
    kind, section = problems.kind(known.kind(problem)), known.section(problem)
    tables = {
        table: localised(pl.scan_parquet(folder / "data-in" / f"{table}.parquet"), known, table) for table in known.ingest
    }
    times = {table: source.time for table, source in known.ingest.items()}
    assert known.project.as_of
    frames = kind.build(tables, times, section, known.project.as_of)
    data = kind.load(write(frames, folder / "features"), section)
    fold = kind.splits(data, section).tests[-1]
    return World(kind, section, frames, folder, data, fold)


def localised(table: pl.LazyFrame, known: params.Params, name: str) -> pl.LazyFrame:
    """The table with its times in local time, as ingest leaves them."""
    source = known.ingest[name]
    if not (source.time and source.local_timezone and source.stored_timezone):
        return table
    moved = pl.col(source.time).dt.replace_time_zone(source.stored_timezone).dt.convert_time_zone(source.local_timezone)
    return table.with_columns(moved.dt.replace_time_zone(None))


class Contract:
    """Tests that every kind inherits."""

    problem: ClassVar[str]
    """A problem of the small store."""
    model: ClassVar[str]
    """The model that is held to the floor and to the ceiling."""
    floor: ClassVar[float]
    """What its primary metric reaches on the planted answers, at least (or at most, where small is good)."""
    ceiling: ClassVar[float]
    """How far it may seem better than the baseline where there is nothing to learn, in the metric's unit."""

    def shuffle(self, frames: dict[str, pl.DataFrame], draw: np.random.Generator) -> dict[str, pl.DataFrame]:
        """The frames of `build` with nothing left to learn."""
        raise NotImplementedError

    def unheard(self, example: pd.DataFrame) -> Iterable[pd.DataFrame]:
        """Inputs of the served model that training never held: unknown categories or keys, missing values."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, tmp_path_factory: pytest.TempPathFactory) -> World:
        return build(cls.problem, tmp_path_factory.mktemp(cls.problem))

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls, world: World) -> dict[str, Model]:
        """Every model of the kind with its defaults."""
        return {name: world.fit(world.defaults(name)) for name in world.kind.space(world.section)}

    def test_the_baseline_is_the_first_model_of_the_space(self, world):
        assert next(iter(world.kind.space(world.section))) == world.kind.baseline

    def test_the_defaults_of_each_model_lie_inside_its_space(self, world):
        for model, ranges in world.kind.space(world.section).items():
            defaults = world.defaults(model)
            assert defaults["model"] == model
            for name, each in ranges.items():
                inside = defaults[name] in each.values if each.values else each.low <= defaults[name] <= each.high
                assert inside, f"{model}.{name} = {defaults[name]}"

    def test_the_same_seed_gives_the_same_model(self, world, fitted):
        again = world.fit(world.defaults(self.model))
        assert world.predict(again).equals(world.predict(fitted[self.model]))

    def test_every_model_answers_the_same_after_it_was_saved_and_loaded(self, world, fitted, tmp_path):
        for name, model in fitted.items():
            skops_models.save(model, tmp_path / "model.skops")
            assert world.predict(skops_models.load(tmp_path / "model.skops")).equals(world.predict(model)), name

    def test_scores_name_every_metric_in_order(self, world, fitted):
        model = fitted[self.model]
        config = world.defaults(self.model)
        rows = world.kind.score(world.predict(model), world.section)
        whole = world.kind.score_model(model, world.data, world.fold, config, world.section, SEED)
        assert [*rows, *whole] == [metric.name for metric in world.kind.metrics]
        assert all(type(value) is float and np.isfinite(value) for value in (*rows.values(), *whole.values()))

    def test_it_reaches_its_floor_and_beats_the_baseline_on_planted_answers(self, world, fitted):
        metric = world.kind.metrics[0]
        reached, baseline = world.primary(fitted[self.model]), world.primary(fitted[world.kind.baseline])
        assert metric.gain(reached, self.floor) >= 0, reached
        assert metric.gain(reached, baseline) > 0, (reached, baseline)

    def test_it_stays_under_its_ceiling_where_there_is_nothing_to_learn(self, world):
        data = world.reload(self.shuffle(world.frames, np.random.default_rng(SEED)), "shuffled")
        reached, baseline = (
            world.primary(world.fit(world.defaults(name), data), data) for name in (self.model, world.kind.baseline)
        )
        assert world.kind.metrics[0].gain(reached, baseline) <= self.ceiling, (reached, baseline)

    def test_no_row_gives_no_answer_and_undefined_scores(self, world, fitted):
        for model in fitted.values():
            nobody = world.kind.predict(model, world.data, date(1990, 1, 1), world.section)
            assert nobody.is_empty()
            assert nobody.columns == world.predict(model).columns
            assert all(np.isnan(score) for score in world.kind.score(nobody, world.section).values())

    def test_a_single_row_can_be_scored(self, world, fitted):
        one = world.predict(fitted[self.model]).head(1)
        assert list(world.kind.score(one, world.section)) == list(
            world.kind.score(world.predict(fitted[self.model]), world.section)
        )

    def test_what_was_never_heard_of_is_answered(self, world, fitted):
        for model in fitted.values():
            for strange in self.unheard(world.kind.example(world.data, world.section)):
                answer = np.asarray(model.predict(strange))
                assert len(answer) == len(strange)
                assert not pd.isna(answer).any()

    def test_the_order_of_the_columns_does_not_matter(self, world, fitted):
        example = world.kind.example(world.data, world.section)
        turned = example[example.columns[::-1]]
        for model in fitted.values():
            np.testing.assert_array_equal(model.predict(turned), model.predict(example))

    def test_importance_is_a_share_of_known_features_largest_first(self, world, fitted):
        known = set(world.kind.example(world.data, world.section).columns)
        for model in fitted.values():
            found = world.kind.importance(model)
            assert set(found) <= known
            assert list(found.values()) == sorted(found.values(), reverse=True)
            assert not found or sum(found.values()) == pytest.approx(1)

    def test_plots_are_tables_with_rows_for_model_and_baseline(self, world, fitted):
        model, baseline = (
            world.predict(fitted[name]).with_columns(cutoff=pl.lit(world.fold.test))
            for name in (self.model, world.kind.baseline)
        )
        plots = world.kind.plots(model, baseline, fitted[self.model], world.data, world.section)
        assert plots
        for name, table in plots.items():
            assert table.height > 1, name
            assert not any(dtype.is_nested() for dtype in table.dtypes), name


class PredictionsContract:
    """Tests of the predictions of every kind, on rows of a ledger that the class gives."""

    kind: ClassVar[KindName]
    rows: ClassVar[pl.DataFrame]
    """Some predictions, with entity and at."""

    @pytest.fixture
    def predictions(self) -> PredictionType:
        return problems.predictions(self.kind)

    def test_a_server_may_import_it(self):
        """It neither costs the time nor the memory that training's libraries take."""
        heavy = "sklearn", "lightgbm", "scipy", "pandas", "implicit", "mlflow"
        script = f"import sys; from evergreen.tasks import problems; problems.predictions({self.kind!r}); "
        script += f"print([name for name in {heavy} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_the_whole_kind_has_the_same_predictions(self, predictions):
        assert isinstance(problems.kind(self.kind), type(predictions))
        assert predictions.name == self.kind

    def test_one_comparable_row_per_prediction_and_no_column_without_predictions(self, predictions):
        found = predictions.comparable(self.rows, None, predictions.context_of_rows(self.rows, None))
        assert found.height == self.rows.height
        assert found.width
        assert predictions.comparable(self.rows.select("entity", "at"), None, {}).width == 0

    def test_history_keeps_the_rows(self, predictions, tmp_path):
        assert predictions.with_history(self.rows, tmp_path).select(self.rows.columns).equals(self.rows)

    def test_its_caveat_is_a_sentence(self, predictions):
        assert predictions.caveat[0].isupper()
        assert predictions.caveat.endswith(".")


class LabelledContract(PredictionsContract):
    """Tests of predictions that labels judge."""

    section: ClassVar[Problem]
    labels: ClassVar[pl.Series]
    """One for each of `rows`: some as predicted, some not."""
    right: ClassVar[int]
    """Place of a row whose prediction is right, and of one that is wrong."""
    wrong: ClassVar[int]

    @pytest.fixture
    def predictions(self) -> Labelled:
        return cast(Labelled, problems.predictions(self.kind))

    def frame(self, predictions: Labelled) -> pl.DataFrame:
        known = self.rows.with_columns(label=self.labels, label_at=pl.lit(None, pl.Datetime("us", "UTC")))
        return predictions.as_predicted(known, self.section)

    def test_a_wrong_prediction_costs_more_than_a_right_one(self, predictions):
        losses = predictions.losses(self.rows, self.labels, None)
        assert len(losses) == self.rows.height
        assert losses[self.wrong] > losses[self.right]

    def test_a_label_is_parsed_to_itself_and_nothing_is_none(self, predictions):
        first = self.labels.to_list()[0]
        assert predictions.parse_label(first) == first
        for nothing in (None, "", float("nan")):
            with pytest.raises(ValueError, match=r"^has no value$"):
                predictions.parse_label(nothing)

    def test_rows_of_the_ledger_are_scored_as_those_of_the_model(self, predictions):
        frame = self.frame(predictions)
        assert {"entity", "label", "label_at"} <= set(frame.columns)
        assert np.isfinite(predictions.primary_score(frame, self.section))
        name = predictions.realised_metric(self.section).name
        assert name in predictions.why_undefined(frame["label"].head(1), self.section)
        assert name in predictions.realised_scores(frame, self.section)

    def test_labels_are_drawn_for_the_rows_that_are_there_or_it_says_why_not(self, predictions):
        frame = self.frame(predictions)
        if predictions.no_estimate:
            with pytest.raises(NotImplementedError, match=predictions.no_estimate):
                predictions.draw_labels(frame, [], 1, SEED)
            return
        drawn = predictions.draw_labels(frame, [frame] * 30, 3, SEED)
        assert not isinstance(drawn, str), drawn
        for part in drawn:
            assert set(part["entity"]) <= set(frame["entity"])
            assert not part["label"].null_count()


class TabularContract(Contract):
    """Tests of the kinds that learn from one row per entity and cutoff."""

    def unheard(self, example: pd.DataFrame) -> Iterable[pd.DataFrame]:
        texts = example.select_dtypes(exclude="number").columns
        yield example.assign(**dict.fromkeys(texts, "never seen"))
        yield example.assign(**dict.fromkeys(example.columns, None))
        yield example.head(1)

    def test_every_model_has_a_compiled_form_that_answers_alike(self, world, fitted):
        held_out = world.data.at([world.fold.test]).features
        for name, model in fitted.items():
            made = compiling.compare(model, partial(world.kind.predict_rows, model), world.data.features, held_out, SEED)
            assert made.parity, name


class SupervisedContract(TabularContract):
    """Tests of the kinds that learn a target."""

    def shuffle(self, frames: dict[str, pl.DataFrame], draw: np.random.Generator) -> dict[str, pl.DataFrame]:
        """The targets change places among the rows that have one."""
        target = frames["rows"]["target"].to_numpy().copy()
        known = ~np.isnan(target)
        target[known] = draw.permutation(target[known])
        return {"rows": frames["rows"].with_columns(target=pl.Series(target, nan_to_null=True))}

    def test_no_feature_alone_or_in_sum_reproduces_the_target(self, world):
        rows = world.frames["rows"].filter(pl.col("cutoff").is_in(list(world.fold.train)))
        target, features = rows["target"].to_numpy(), numbers(rows)
        for name, column in features.items():
            assert abs(correlation(column, target)) < 0.95, name
        together = LinearRegression().fit(np.column_stack(list(features.values())), target)
        assert together.score(np.column_stack(list(features.values())), target) < 0.95


def numbers(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    """Numeric features that vary, gaps filled with the mean."""
    found = {name: rows[name].fill_null(strategy="mean").to_numpy() for name in feature_names(rows)}
    return {name: column for name, column in found.items() if column.std() > 0}


def feature_names(rows: pl.DataFrame) -> Sequence[str]:
    keys = ("household_id", "cutoff", "target")
    return [name for name, dtype in rows.schema.items() if dtype == pl.Float64 and name not in keys]


def correlation(first: Any, second: Any) -> float:
    return float(np.corrcoef(first, second)[0, 1])
