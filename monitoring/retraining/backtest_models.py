"""Counterfactual models of the backtest: the models of retrainings, the gate's verdicts on them, and their scores.

Every result is computed once for all policies and cached on disk, each file whole or absent: an interrupted backtest resumes.
One folder belongs to one state of data, params and configuration.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.monitoring.ledger.records import Estimate
from evergreen.monitoring.retraining.backtest import Scores, TrainedModel
from evergreen.monitoring.retraining.backtest_windows import PastWindows, TrainingSet
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.config.params import Recommend, Tabular
from evergreen.tasks.core import intervals
from evergreen.tasks.core.paths import JUDGED, MODEL, read_json, write_json, writing
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Config, Metric, Model
from evergreen.tasks.problems.prediction_type import realised_metric
from evergreen.tasks.release import promotion_gate

GROUPS = 200
"""Most groups of entities, for every interval of a backtest."""
FIRST = "first"


@dataclass(frozen=True)
class DiskCache:
    """Files of one folder, computed on first use."""

    folder: Path

    def json(self, name: str, compute: Callable[[], Any]) -> Any:
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, compute())
        return read_json(path)

    def frame(self, name: str, compute: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            with writing(path) as scratch:
                compute().write_parquet(scratch)
        return pl.read_parquet(path)


@dataclass(frozen=True)
class ModelSummary:
    """What is known of a model without loading it."""

    rows: int
    """Of its training data."""
    cpu_seconds: float
    """Of its training."""
    known_until: date
    """Last day covered by the training data of the evaluated model."""
    expected: Estimate
    """Its evaluation score."""


@dataclass(eq=False)
class CounterfactualModels:
    """Models, verdicts and scores of `monitoring.retraining.backtest.Counterfactual`."""

    problem: str
    kind: Any
    """A Kind."""
    section: Tabular | Recommend
    past: PastWindows
    config: Config
    metric: Metric
    """The metric of quality."""
    gate_metric: Metric
    seed: int
    cache: DiskCache
    minutes: Callable[[int], float | None]
    """CPU minutes of all steps of a training, by its number of rows; None: unknown."""
    report: Callable[[str], None] = lambda line: None
    """Called with a line for every model that is trained."""
    training_sets: dict[str, TrainingSet] = field(default_factory=dict)
    weighted_sections: dict[str, Tabular | Recommend] = field(default_factory=dict)
    """Sections of models whose policy weights rows by age."""
    summaries: dict[str, ModelSummary] = field(default_factory=dict)
    loaded: dict[tuple[str, str], Model] = field(default_factory=dict)
    entities: pl.DataFrame = field(init=False)

    @property
    def days(self) -> Sequence[date]:
        return self.past.days

    @property
    def realised_metric(self) -> Metric:
        """The metric that monitoring compares with that of the evaluation."""
        return realised_metric(self.kind, self.section)

    def __post_init__(self) -> None:
        self.entities = pl.DataFrame({"entity": self.past.entities().unique().sort()})

    # Training

    def first(self) -> TrainedModel:
        return self._trained(FIRST, self.day_before(), self.past.first())

    def day_before(self) -> date:
        """The end of the window before the first."""
        step = self.days[1] - self.days[0] if len(self.days) > 1 else timedelta(days=1)
        return self.days[0] - step

    def challenger(self, day: date, policy: Retrain) -> TrainedModel | None:
        window = "" if policy.window == "expanding" else f"-{policy.window}-{policy.window_days}"
        name = f"{day}{window}"
        training_set = self.training_sets.get(name) or self.past.training_set(day, policy)
        if policy.window == "weighted":
            train = self.section.train.model_copy(update={"half_life_days": policy.window_days})
            self.weighted_sections[name] = self.section.model_copy(update={"train": train})
        return self._trained(name, day, training_set) if training_set else None

    def _trained(self, name: str, day: date, training_set: TrainingSet) -> TrainedModel:
        self.training_sets[name] = training_set
        summary = self.summary(name)
        minutes = self.minutes(summary.rows)
        return TrainedModel(name, day, summary.cpu_seconds / 60 if minutes is None else minutes)

    def summary(self, name: str) -> ModelSummary:
        """Of the model `name`, which is trained now if it was not before."""
        if name not in self.summaries:
            path = self._folder(name) / "summary.json"
            if not path.exists():
                self._train(name, self.training_sets[name])
            raw = read_json(path)
            expected = Estimate.model_validate(raw["expected"])
            day = date.fromisoformat(raw["known_until"])
            self.summaries[name] = ModelSummary(raw["rows"], raw["cpu_seconds"], day, expected)
        return self.summaries[name]

    def _folder(self, name: str) -> Path:
        return self.cache.folder / "models" / name

    def _train(self, name: str, training_set: TrainingSet) -> None:
        self.report(f"training as of {name}" if name != FIRST else "training the first model")
        start = time.process_time()
        section, rows = self.weighted_sections.get(name, self.section), training_set.rows
        evaluated = self.kind.fit(rows, training_set.train, self.config, section, self.seed)
        served = evaluated
        if training_set.refit:
            served = self.kind.fit(rows, training_set.refit, self.config, section, self.seed)
        seconds = time.process_time() - start
        expected = self._evaluate(evaluated, training_set)
        with writing(self._folder(name)) as scratch:
            scratch.mkdir()
            skops_models.save(served, scratch / MODEL)
            if served is not evaluated:
                skops_models.save(evaluated, scratch / JUDGED)
            summary = {
                "rows": self.kind.rows(rows, training_set.refit or training_set.train),
                "cpu_seconds": seconds,
                "known_until": training_set.known_until,
                "expected": expected.model_dump(),
            }
            write_json(scratch / "summary.json", summary)

    def _evaluate(self, model: Model, training_set: TrainingSet) -> Estimate:
        """Its score on the test rows, with the interval over entities."""
        if training_set.test is None:
            return Estimate(score=None, low=None, high=None, rows=0, reason="no rows were left for the evaluation")
        rows = self.kind.predict(model, training_set.rows, training_set.test, self.section)
        scores = self.score_without(rows)[self.realised_metric.name].to_numpy()
        low, high, _ = intervals.interval(scores[0], scores[1:].tolist(), 0.95, self.realised_metric.scale)
        known = [float(each) if math.isfinite(each) else None for each in (scores[0], low, high)]
        return Estimate(score=known[0], low=known[1], high=known[2], rows=rows.height)

    def load(self, name: str, file: str = MODEL) -> Model:
        """The model `name`; with JUDGED the evaluated one, where it differs from the served one."""
        self.summary(name)
        path = self._folder(name) / file
        if not path.exists():
            return self.load(name)
        if (name, file) not in self.loaded:
            self.loaded[name, file] = skops_models.load(path)
        return self.loaded[name, file]

    # The gate

    def promotes(self, champion: TrainedModel, challenger: TrainedModel) -> tuple[bool, str]:
        found = self.cache.json(f"gates/{champion.name}/{challenger.name}", lambda: self._judge(champion, challenger))
        return found["promote"], found["reason"]

    def _judge(self, champion: TrainedModel, challenger: TrainedModel) -> dict[str, Any]:
        """The verdict of tasks.release.promotion_gate on the evaluated models; none if the champion has seen the test rows."""
        training_set, known = self.training_sets[challenger.name], self.summary(champion.name).known_until
        assert training_set.test is not None
        if training_set.test_after and known > training_set.test_after:
            why = f"the champion was trained on days up to {known}, and the test window begins after {training_set.test_after}"
            return {"promote": False, "reason": f"not promoted: {why}"}
        mine, theirs = (
            self.kind.predict(self.load(each, JUDGED), training_set.rows, training_set.test, self.section)
            for each in (challenger.name, champion.name)
        )
        gate = self.section.gate
        verdict = promotion_gate.judge(mine, theirs, self._gate_score, self.gate_metric, gate, "the champion", self.seed)
        return {"promote": verdict.promote, "reason": verdict.reason}

    def _gate_score(self, rows: pl.DataFrame) -> float:
        return self.kind.score(rows, self.section)[self.gate_metric.name]

    # Quality

    @property
    def further(self) -> Sequence[Metric]:
        return ()

    def scores(self, model: TrainedModel, day: date, metric: str | None = None) -> Scores | None:
        if self.past.labelled_on(day) > self.past.last_day():
            return None
        return self.score_window(model.name, day)[metric or self.metric.name].to_numpy()

    def score_window(self, name: str, day: date) -> pl.DataFrame:
        """Every metric of the model `name` in the window that ends on `day`, as `score_without` has it."""
        return self.cache.frame(f"scores_without/{name}/{day}", lambda: self.score_without(self._predict_window(name, day)))

    def score_without(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Every metric of predicted rows: the score, then those without each of GROUPS of entities, the same for any rows."""
        drawn = intervals.leave_out([self.entities, rows], self.seed, GROUPS)
        found = [self.kind.score(rows, self.section), *(self.kind.score(each, self.section) for _, each in drawn)]
        return pl.DataFrame(found, schema=dict.fromkeys(found[0], pl.Float64))

    def _predict_window(self, name: str, day: date) -> pl.DataFrame:
        """`predict` of the model in the window that ends on `day`, with the labels that arrived later."""
        rows, part = self.past.window(day)
        path = f"predictions/{name}/{day}"
        return self.cache.frame(path, lambda: self.kind.predict(self.load(name), rows, part, self.section))
