"""The world of a replay: the models that retrainings would have made, what they answered, and what the looks would have found.

Whatever two policies may ask for is worked out once and kept on disk, each file whole or not there; so a replay that was killed
goes on where it was. One folder belongs to one state of data, params and configuration.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.monitoring.drift import detection, reference_data
from evergreen.monitoring.drift.reference_data import Reference
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Drift, Estimate, Performance, Window
from evergreen.monitoring.performance.measurement import measure
from evergreen.monitoring.retraining.backtest import Learned, Scores, moment
from evergreen.monitoring.retraining.backtest_windows import Lesson, Timeline
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core import bootstrap
from evergreen.tasks.core.paths import JUDGED, MODEL, read_json, write_json, writing
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Config, Metric, Model, Part
from evergreen.tasks.problems.prediction_type import Labelled
from evergreen.tasks.problems.tabular.tabular_kind import Rows
from evergreen.tasks.release import promotion_gate

MOMENT = pl.Datetime("us", "UTC")
RESAMPLES = 200
"""Of entities, for every interval of a replay."""
FIRST = "first"
MATURED = 4
"""So many matured windows say how a version does, and how far its estimates are off."""
NOT_ASKED = "the policy does not ask for it"


@dataclass(frozen=True)
class Kept:
    """Files of one folder, made when they are first asked for."""

    folder: Path

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        return read_json(path)

    def frame(self, name: str, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            with writing(path) as scratch:
                make().write_parquet(scratch)
        return pl.read_parquet(path)


@dataclass(frozen=True)
class Card:
    """What is known of a model of the past without loading it."""

    rows: int
    """It learned from."""
    cpu_seconds: float
    """That took."""
    seen: date
    """Last day that the judged one knows anything of."""
    expected: Estimate
    """Its score where it was judged."""


@dataclass(eq=False)
class Past:
    """The world of `monitoring.retraining.backtest`, see there."""

    problem: str
    kind: Any
    """A Kind whose answers are one to one with rows: classification, regression, clustering."""
    section: Tabular
    timeline: Timeline
    config: Config
    metric: Metric
    """What quality is."""
    judged_by: Metric
    """What the gate compares."""
    seed: int
    kept: Kept
    minutes: Callable[[int], float | None]
    """CPU minutes that training with so many rows costs in all its steps; None: not known."""
    said: Callable[[str], None] = lambda line: None
    """Told of every model that is learned."""
    lessons: dict[str, Lesson] = field(default_factory=dict)
    shaped: dict[str, Tabular] = field(default_factory=dict)
    """Of models whose policy weighs rows by age, the section that says so."""
    cards: dict[str, Card] = field(default_factory=dict)
    loaded: dict[tuple[str, str], Model] = field(default_factory=dict)
    answered: dict[tuple[str, date, bool], Predictions] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    everyone: pl.DataFrame = field(init=False)

    @property
    def days(self) -> Sequence[date]:
        return self.timeline.days

    @cached_property
    def _looks(self) -> str:
        """The folder of what is found by looks that are made in this way."""
        return f"looks-{hashlib.sha256(self.section.monitor.model_dump_json().encode()).hexdigest()[:8]}"

    def __post_init__(self) -> None:
        rows, _ = self.timeline.window(self.days[0])
        self.everyone = pl.DataFrame({"entity": rows.entity.unique().sort()})

    # --- models

    def first(self) -> Learned:
        return self._learned(FIRST, self._eve(), self.timeline.first())

    def _eve(self) -> date:
        step = self.days[1] - self.days[0] if len(self.days) > 1 else timedelta(days=1)
        return self.days[0] - step

    def challenger(self, day: date, policy: Retrain) -> Learned | None:
        window = "" if policy.window == "expanding" else f"-{policy.window}-{policy.window_days}"
        name = f"{day}{window}"
        lesson = self.lessons.get(name) or self.timeline.lesson(day, policy)
        if policy.window == "weighted":
            train = self.section.train.model_copy(update={"half_life_days": policy.window_days})
            self.shaped[name] = self.section.model_copy(update={"train": train})
        return self._learned(name, day, lesson) if lesson else None

    def _learned(self, name: str, day: date, lesson: Lesson) -> Learned:
        self.lessons[name] = lesson
        card = self._card(name)
        minutes = self.minutes(card.rows)
        return Learned(name, day, card.cpu_seconds / 60 if minutes is None else minutes)

    def _card(self, name: str) -> Card:
        """What the model of `name` is; it is learned where that was not done yet."""
        if name not in self.cards:
            if not (self._folder(name) / "card.json").exists():
                self._learn(name, self.lessons[name])
            raw = read_json(self._folder(name) / "card.json")
            expected = Estimate.model_validate(raw["expected"])
            self.cards[name] = Card(raw["rows"], raw["cpu_seconds"], date.fromisoformat(raw["seen"]), expected)
        return self.cards[name]

    def _folder(self, name: str) -> Path:
        return self.kept.folder / "models" / name

    def _learn(self, name: str, lesson: Lesson) -> None:
        self.said(f"learns what was known on {name}" if name != FIRST else "learns the first model")
        began = time.process_time()
        section = self.shaped.get(name, self.section)
        judged = self.kind.fit(lesson.rows, lesson.train, self.config, section, self.seed)
        whole = self.kind.fit(lesson.rows, lesson.refit, self.config, section, self.seed) if lesson.refit else judged
        took = time.process_time() - began
        expected = self._judge(judged, lesson)
        with writing(self._folder(name)) as scratch:
            scratch.mkdir()
            skops_models.save(whole, scratch / MODEL)
            if whole is not judged:
                skops_models.save(judged, scratch / JUDGED)
            rows = self.kind.rows(lesson.rows, lesson.refit or lesson.train)
            card = {"rows": rows, "cpu_seconds": took, "seen": lesson.seen, "expected": expected.model_dump()}
            write_json(scratch / "card.json", card)

    def _judge(self, model: Model, lesson: Lesson) -> Estimate:
        """Its score on the rows that judge it, with the interval over entities."""
        if lesson.test is None:
            return Estimate(score=None, low=None, high=None, rows=0, reason="nothing was left to judge it by")
        rows = self.kind.predict(model, lesson.rows, lesson.test, self.section)
        scores = self._resampled(rows)[self.kind.metrics[0].name].to_numpy()
        low, high = bootstrap.interval(scores[1:].tolist(), 0.95)
        known = [float(each) if math.isfinite(each) else None for each in (scores[0], low, high)]
        return Estimate(score=known[0], low=known[1], high=known[2], rows=rows.height)

    def _load(self, name: str, file: str = MODEL) -> Model:
        """The model of `name`, learned before; with JUDGED the one that was judged instead of it, if it is another."""
        self._card(name)
        path = self._folder(name) / file
        if not path.exists():
            return self._load(name)
        if (name, file) not in self.loaded:
            self.loaded[name, file] = skops_models.load(path)
        return self.loaded[name, file]

    def promotes(self, champion: Learned, challenger: Learned) -> tuple[bool, str]:
        found = self.kept.json(f"gates/{champion.name}/{challenger.name}", lambda: self._gated(champion, challenger))
        return found["promote"], found["reason"]

    def _gated(self, champion: Learned, challenger: Learned) -> dict[str, Any]:
        """What tasks.release.promotion_gate says; the judged models meet, and one that would know the answers is not asked."""
        lesson, seen = self.lessons[challenger.name], self._card(champion.name).seen
        assert lesson.test is not None
        if lesson.begins and seen > lesson.begins:
            why = f"the champion learned from days up to {seen}, and the window to judge by begins after {lesson.begins}"
            return {"promote": False, "reason": f"not promoted: {why}"}
        mine, theirs = (
            self.kind.predict(self._load(each, JUDGED), lesson.rows, lesson.test, self.section)
            for each in (challenger.name, champion.name)
        )
        verdict = promotion_gate.judge(mine, theirs, self._score, self.judged_by, self.section.gate, "the champion", self.seed)
        return {"promote": verdict.promote, "reason": verdict.reason}

    def _score(self, rows: pl.DataFrame) -> float:
        return self.kind.score(rows, self.section)[self.judged_by.name]

    # --- quality

    def scores(self, model: Learned, day: date) -> Scores | None:
        if self.timeline.known(day) > self.timeline.newest():
            return None
        table = self.kept.frame(f"scores/{model.name}/{day}", lambda: self._resampled(self._predictions(model.name, day)))
        return table[self.metric.name].to_numpy()

    def _resampled(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Every metric that rows give: as it is, then of RESAMPLES draws of entities, the same draws for any rows."""
        drawn = bootstrap.draw([self.everyone, rows], RESAMPLES, self.seed)
        found = [self.kind.score(rows, self.section), *(self.kind.score(each, self.section) for _, each in drawn)]
        return pl.DataFrame(found, schema=dict.fromkeys(found[0], pl.Float64))

    def _predictions(self, name: str, day: date) -> pl.DataFrame:
        """`predict` of the model in the window that ends on `day`, with the truth as it turned out."""
        rows, part = self.timeline.window(day)
        return self.kept.frame(
            f"predictions/{name}/{day}", lambda: self.kind.predict(self._load(name), rows, part, self.section)
        )

    # --- looks

    def look(self, champion: Learned, version: int, day: date, policy: Retrain) -> Window:
        rows, part = self.timeline.window(day)
        since = self._eve() if day == self.days[0] else self.days[list(self.days).index(day) - 1]
        quiet = Drift(changes=(), reference_rows=0, alarm=False, skipped=NOT_ASKED)
        return Window(
            problem=self.problem,
            version=version,
            since=moment(since),
            until=moment(day),
            rows=len(rows.at([part])),
            new_labels=self._new_labels(champion, day),
            drift=self._drift(champion, version, day) if policy.on_drift else quiet,
            performance=self._performance(champion, version, day, policy) if self._supervised else None,
        )

    @property
    def _supervised(self) -> bool:
        return isinstance(self.kind, Labelled)

    def _new_labels(self, champion: Learned, day: date) -> int:
        """Truths of the windows so far that are known at the end of `day` and were not when the champion learned."""
        seen = self._card(champion.name).seen
        fresh = [each for each in self.days if each <= day and seen < self.timeline.known(each) <= day]
        return sum(self._labelled(each) for each in fresh)

    def _labelled(self, day: date) -> int:
        rows, part = self.timeline.window(day)
        return len(rows.at([part], labelled=self._supervised))

    def _drift(self, champion: Learned, version: int, day: date) -> Drift:
        def make() -> dict[str, Any]:
            now, monitor = self._window(champion, version, day, known=False), self.section.monitor
            return detection.compare(self._reference(champion, version), now, monitor, self.seed).model_dump(mode="json")

        return Drift.model_validate(self.kept.json(f"{self._looks}/drift/{champion.name}/{day}", make))

    def _reference(self, champion: Learned, version: int) -> Reference:
        """As a training leaves one: what was learned from, and answers to rows that were not, where there are such."""
        if champion.name not in self.references:
            model, lesson = self._load(champion.name), self.lessons[champion.name]
            parts = (lesson.test,) if lesson.test is not None else lesson.train
            roles = lesson.rows.roles
            self.references[champion.name] = reference_data.of_predicted(
                self.problem,
                version,
                self.kind.name,
                self._predicted(None, version, lesson.rows, lesson.refit or lesson.train, champion.day, known=True),
                judged=self._predicted(model, version, lesson.rows, parts, champion.day, known=True),
                importance=self.kind.importance(model),
                roles=roles,
                rows=self.section.monitor.reference_rows,
                seed=self.seed,
            )
        return self.references[champion.name]

    def _performance(self, champion: Learned, version: int, day: date, policy: Retrain) -> Performance:
        if policy.on_performance_drop is None:
            none = Estimate(score=None, low=None, high=None, rows=0, reason=NOT_ASKED)
            return Performance(
                metric=self.kind.metrics[0].name,
                greater_is_better=self.kind.metrics[0].greater_is_better,
                expected=none,
                realised=none,
                realised_until=None,
                estimated=none,
                matured=0.0,
            )

        def make() -> dict[str, Any]:
            served = [each for each in self.days if champion.day < each < day]
            ripe = [each for each in served if self.timeline.known(each) <= day]
            seen = [(moment(each), self._window(champion, version, each, known=True)) for each in ripe[-MATURED:]]
            seen.append((moment(day), self._window(champion, version, day, known=self.timeline.known(day) <= day)))
            expected = self._expected(champion, ripe)
            found = measure(self.kind, self.section, expected, seen, self._judged_on(champion), self.seed)
            assert found is not None
            return found.model_dump(mode="json")

        return Performance.model_validate(self.kept.json(f"{self._looks}/performance/{champion.name}/{day}", make))

    def _judged_on(self, champion: Learned) -> pl.DataFrame | None:
        """The rows that judged it, with its answers."""
        lesson = self.lessons[champion.name]
        if lesson.test is None:
            return None
        return self.kind.predict(self._load(champion.name, JUDGED), lesson.rows, lesson.test, self.section)

    def _expected(self, champion: Learned, ripe: list[date]) -> Estimate:
        """As judged; of the first model, which nobody judged, its score in the first window whose truth is known."""
        expected = self._card(champion.name).expected
        if expected.score is not None or not ripe:
            return expected
        scores = self.kept.frame(
            f"scores/{champion.name}/{ripe[0]}", lambda: self._resampled(self._predictions(champion.name, ripe[0]))
        )[self.kind.metrics[0].name].to_numpy()
        low, high = bootstrap.interval(scores[1:].tolist(), 0.95)
        if not np.isfinite([scores[0], low, high]).all():
            return expected
        return Estimate(score=float(scores[0]), low=low, high=high, rows=self._labelled(ripe[0]))

    def _window(self, champion: Learned, version: int, day: date, known: bool) -> Predictions:
        key = (champion.name, day, known)
        if key not in self.answered:
            rows, part = self.timeline.window(day)
            self.answered[key] = self._predicted(self._load(champion.name), version, rows, (part,), day, known)
        return self.answered[key]

    def _predicted(self, model: Model, version: int, rows: Rows, parts: Sequence[Part], day: date, known: bool) -> Predictions:
        """What the ledger would hold of these rows; with their truth only if `known`, and then those alone that have one.

        Without `model` there are no answers.
        """
        chosen = rows.at(parts, labelled=known and self._supervised)
        count, at = len(chosen), moment(day)
        cutoff = chosen.cutoff if chosen.cutoff is not None else pl.Series([None] * count, dtype=pl.Date)
        label = chosen.target if known else pl.Series([None] * count, dtype=chosen.target.dtype)
        known_on = moment(self.timeline.known(day)) if known else None
        frame = pl.DataFrame(
            {
                "id": [f"{day}/{place}" for place in range(count)],
                "version": pl.Series([version] * count, dtype=pl.Int64),
                "variant": ["batch"] * count,
                "at": pl.Series([at] * count, dtype=MOMENT),
                "cutoff": cutoff,
                "entity": chosen.entity.cast(pl.String),
                **(self.kind.predict_rows(model, chosen.features) if model is not None else {}),
                "label": label,
                "label_at": pl.Series([known_on] * count, dtype=MOMENT),
            }
        )
        return Predictions(frame, pl.from_pandas(chosen.features, nan_to_null=True))
