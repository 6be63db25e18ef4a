"""A staged search: baseline, linear, trees, boosting, networks, then an ensemble; a stage without progress ends early.

With a time budget the defaults of all stages come first, boosting right after the linear model: however short the time, both
are judged, and a stage far behind another one is not searched. A network that takes a large part of the time waits for others.

Pure: the next batch follows from the finished trials and the time left.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evergreen.tasks.problems.base import Config, Metric
from evergreen.tasks.search.ensemble import BLEND
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import FinishedTrial, paired_gain

Request = Config | str | None
"""What to try next: a configuration; a model, whose hyper-parameters the sampler suggests; None, where the sampler suggests the
model too; or BLEND, an ensemble of the trials so far."""
STAGES = ("baseline", "linear", "trees", "boosting", "network", "ensemble")
OPENING = ("baseline", "linear", "boosting", "network", "trees")
"""The order of the defaults with a time budget; forests take the longest, so warm starts of boosting come before them."""
LATE = 0.2
"""With a time budget: share of the search from which the default of a network waits for the warm starts."""
SHARES = {"baseline": 0.02, "linear": 0.2, "trees": 0.4, "boosting": 0.85, "network": 1.0}
"""Stage -> the share of the trials (or of the time) at which it ends; the last one of a kind ends with the search."""
PATIENCE = 3
"""A stage ends after this many batches without improvement; with a time budget after twice as many, and that of the best trial,
once no other uses the time, after four times as many."""
MAX_ERRORS_BEHIND = 2.0
"""A stage ends after its first batch when it is more standard errors than this behind an earlier stage."""
MAX_ERRORS_DEFAULT = 4.0
"""With a time budget, a stage ends after its default when that is more standard errors than this behind another stage."""


@dataclass(frozen=True)
class StagedSearch:
    """defaults: model -> its default configuration; stages: model -> its stage; searchable: models with hyper-parameters."""

    defaults: Mapping[str, Config]
    stages: Mapping[str, str]
    searchable: Sequence[str]
    metric: Metric
    n_trials: int
    batch: int
    clock: Clock = field(default_factory=lambda: Clock(None))
    """The time of the search alone."""
    expected_seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Model -> seconds that its defaults are expected to take, from a probe on a few rows."""
    workers: int = 1
    warm_starts: Sequence[Config] = ()
    """Configurations that are tried right after the defaults of their stage."""

    def next_batch(self, trials: Sequence[FinishedTrial]) -> list[Request]:
        """The next batch; empty at the end. The first is never empty, however short the time: a search ends with a model."""
        batch: list[Request] = list(self._opening(trials))
        if batch:
            return batch
        for stage in STAGES[:-1]:
            models = self._models(stage)
            found = self._requests(stage, models, trials, self.batch - len(batch)) if models else []
            batch += found
            if found and (stage != "baseline" or len(batch) >= self.batch):
                return batch
        return batch or self._more_of_best_stage(trials) or self._ensemble(trials) or ([] if trials else [self._simplest()])

    def _more_of_best_stage(self, trials: Sequence[FinishedTrial]) -> list[Request]:
        """With a time budget: the time that no stage uses goes to the stage of the best trial, beyond its own share."""
        top = best_of(trials, self.metric)
        if self.clock.seconds is None or top is None or top.model not in self.searchable:
            return []
        stage = self.stages.get(top.model, "boosting")
        return self._requests(stage, self._models(stage), trials, self.batch, share=1.0, patience=4 * PATIENCE)

    def _models(self, stage: str) -> list[str]:
        return [model for model in self.defaults if self.stages.get(model, "boosting") == stage]

    def _opening(self, trials: Sequence[FinishedTrial]) -> list[Config]:
        """With a time budget: the defaults and warm starts that were not tried and that there is time for, at most a batch."""
        if self.clock.seconds is None:
            return []
        defaults = [self.defaults[model] for stage in OPENING for model in self._models(stage)]
        slow = [each for each in defaults if self._waits(each, trials)]
        order = [*(each for each in defaults if each not in slow), *self.warm_starts, *slow]
        models, tried = {each.model for each in trials}, [each.config for each in trials]
        found, need = list[Config](), 0.0
        for config in order:
            model = config["model"]
            own = 0.0 if self.stages.get(model) == "baseline" and model not in models else self._seconds_of(config, trials)
            known = model in models if config in defaults else config in tried
            if not known and len(found) < self.batch and need + own <= self.clock.left() * self.workers:
                found.append(config)
                need += own
        return found

    def _waits(self, default: Config, trials: Sequence[FinishedTrial]) -> bool:
        """Whether a default comes after the warm starts: a forest, or a network that takes LATE of the search or more."""
        stage = self.stages.get(default["model"])
        slow = self._seconds_of(default, trials) >= LATE * (self.clock.seconds or 0.0)
        return stage == "trees" or (stage == "network" and slow)

    def _simplest(self) -> Config:
        """The default of the model in the earliest stage."""
        return self.defaults[min(self.defaults, key=lambda model: STAGES.index(self.stages.get(model, "boosting")))]

    def _requests(
        self,
        stage: str,
        models: Sequence[str],
        trials: Sequence[FinishedTrial],
        most: int,
        share: float | None = None,
        patience: int | None = None,
    ) -> list[Request]:
        """Requests of one stage: defaults, warm starts, then trials of its searchable models. Empty where the stage is over.

        `share`, `patience`: see SHARES and PATIENCE, which have the defaults.
        """
        mine = [each for each in trials if each.model in models]
        room = self._trials_left(stage, trials)
        missing = [model for model in models if not any(each.model == model for each in mine)]
        affordable = [
            model
            for place, model in enumerate(missing)
            if stage == "baseline" or self._has_time(self.defaults[model], mine, room, stage, trials, place)
        ]
        batch: list[Request] = [self.defaults[model] for model in affordable[:most]]
        known = [each.config for each in mine]
        for start in self.warm_starts:
            fits = start["model"] in models and start not in known and len(batch) < min(most, max(room, len(batch)))
            if fits and self._has_time(start, mine, room, stage, trials, len(batch), share or self._share(stage)):
                batch.append(start)
        searched = [model for model in models if model in self.searchable and (model not in missing or model in affordable)]
        if searched and (batch or self._improves(mine, trials, patience)):
            turns = self._by_score(searched, mine)
            more = [turns[place % len(turns)] for place in range(min(most, room) - len(batch))]
            for model in more:
                if self._has_time(model, mine, room, stage, trials, len(batch), share or self._share(stage)):
                    batch.append(model)
        return batch

    def _trials_left(self, stage: str, trials: Sequence[FinishedTrial]) -> int:
        """Trials that the stage may still run."""
        if self.clock.seconds is not None:
            return self.batch
        kept = BLEND in self.stages and self._share(stage) == 1.0
        return max(round(self._share(stage) * self.n_trials) - kept - len(trials), 0)

    def _share(self, stage: str) -> float:
        """Where the stage ends, see SHARES; the last one that has models ends with the search."""
        later = STAGES[STAGES.index(stage) + 1 : -1]
        return SHARES[stage] if any(self._models(each) for each in later) else 1.0

    def _seconds_of(self, request: Config | str, trials: Sequence[FinishedTrial]) -> float:
        """Wall time that a configuration, or the sampler's next one of a model, is expected to take.

        From the newest trials of the model, or else from its probe; for a known configuration in proportion to its trees.
        """
        config = self.defaults[request] if isinstance(request, str) else request
        done = [each for each in trials if each.model == config["model"] and each.state == "complete"][-4:]
        if done and isinstance(request, str):
            return statistics.median(each.cost.wall_seconds for each in done)
        if done:
            return _work(config) * statistics.median(each.cost.wall_seconds / _work(each.config) for each in done)
        probed = self.expected_seconds.get(config["model"], math.inf if self.expected_seconds else 0.0)
        return probed * _work(config) / _work(self.defaults[config["model"]])

    def _has_time(
        self,
        request: Config | str,
        mine: Sequence[FinishedTrial],
        room: int,
        stage: str,
        trials: Sequence[FinishedTrial],
        ahead: int,
        share: float = 1.0,
    ) -> bool:
        """Whether there is time for one more trial, with `ahead` others before it in the batch, until `share` of the time.

        A default may use the time of the later stages, except the expected time of their defaults.
        """
        if self.clock.seconds is None:
            return room > 0 or not mine
        later = self._later_defaults(stage, trials)
        left = self.clock.left() - max(later, (1 - share) * self.clock.seconds)
        return self._seconds_of(request, mine) * math.ceil((ahead + 1) / self.workers) <= left

    def _later_defaults(self, stage: str, trials: Sequence[FinishedTrial]) -> float:
        """Seconds that the defaults of the later stages are expected to take."""
        after = STAGES[STAGES.index(stage) + 1 :]
        known = {each.model for each in trials}
        waiting = [model for model in self.defaults if self.stages.get(model, "boosting") in after and model not in known]
        return sum(self.expected_seconds.get(model, 0.0) for model in waiting) / self.workers

    def _by_score(self, models: Sequence[str], mine: Sequence[FinishedTrial]) -> list[str]:
        """Models of a stage, the best so far first, without those clearly behind it."""
        top = {model: best_of([each for each in mine if each.model == model], self.metric) for model in models}
        known = [(model, each) for model, each in top.items() if each]
        if not known:
            return list(models)
        known.sort(key=lambda item: -self.metric.gain(item[1].score, 0.0))
        first = known[0][1]
        new = [model for model, each in top.items() if each is None]
        return [*(model for model, each in known if not _clearly_behind(each, first, self.metric)), *new]

    def _improves(self, mine: Sequence[FinishedTrial], trials: Sequence[FinishedTrial], patience: int | None) -> bool:
        """Whether the stage improved lately, and is not clearly behind the stages before it."""
        top = best_of(mine, self.metric)
        if top is None:
            return False
        since = sum(each.position > top.position for each in mine)
        patience = patience or (PATIENCE if self.clock.seconds is None else 2 * PATIENCE)
        if since >= patience * self.batch:
            return False
        others = [each for each in trials if each not in mine]
        if self.clock.seconds is None:
            others = [each for each in others if each.position < min(one.position for one in mine)]
        rival = best_of(others, self.metric)
        if rival is None or (len(mine) < self.batch and self.clock.seconds is None):
            return True
        errors = MAX_ERRORS_BEHIND if len(mine) >= self.batch else MAX_ERRORS_DEFAULT
        return not _clearly_behind(top, rival, self.metric, errors)

    def _ensemble(self, trials: Sequence[FinishedTrial]) -> list[Request]:
        """One blend, where there are two models to blend and no blend was tried."""
        able = {each.number for each in trials if each.state == "complete" and self.stages.get(each.model) != "baseline"}
        if BLEND not in self.stages or len(able) < 2 or any(each.model == BLEND for each in trials):
            return []
        return [BLEND]


def _work(config: Config) -> float:
    """What the time of boosting is roughly proportional to; 1 for other models."""
    trees, leaves = config.get("n_estimators"), config.get("num_leaves")
    return trees * math.sqrt(leaves) if trees and leaves else 1.0


def _clearly_behind(other: FinishedTrial, best: FinishedTrial, metric: Metric, errors: float = MAX_ERRORS_BEHIND) -> bool:
    gain, error = paired_gain(best.folds, other.folds, metric)
    return len(best.folds) > 1 and gain > 0 and gain > errors * error


def best_of(trials: Sequence[FinishedTrial], metric: Metric) -> FinishedTrial | None:
    """The best complete trial, the first of equals."""
    complete = [each for each in trials if each.state == "complete"]
    return max(complete, key=lambda each: (metric.gain(each.score, 0.0), -each.number)) if complete else None
