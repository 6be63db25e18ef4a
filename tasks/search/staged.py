"""The order of a staged search: baseline, linear, trees, boosting, then an ensemble; a stage that does not pay ends early.

Pure: what comes next follows from the trials that ended, and from the time that is left.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evergreen.tasks.problems.base import Config, Metric
from evergreen.tasks.search.ensemble import BLEND
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import Tried, standard_error

Request = Config | str | None
"""What to try next: a configuration, a model with whatever hyper-parameters the sampler thinks best, or what it will. BLEND: an
ensemble of what was tried."""
ORDER = ("baseline", "linear", "trees", "boosting", "ensemble")
SHARES = {"baseline": 0.02, "linear": 0.2, "trees": 0.4, "boosting": 1.0}
"""Stage -> until which share of the trials (or of the time) it may go on."""
PATIENCE = 3
"""A stage ends when so many batches brought nothing."""
BEHIND = 2.0
"""A stage that is so many standard errors behind an earlier one after its first batch does not pay."""


@dataclass(frozen=True)
class Stages:
    """defaults: model -> its first configuration; stages: model -> its stage; searched: models with anything to choose."""

    defaults: Mapping[str, Config]
    stages: Mapping[str, str]
    searched: Sequence[str]
    metric: Metric
    n_trials: int
    batch: int
    clock: Clock = field(default_factory=lambda: Clock(None))
    """The time of the search alone."""
    expected: Mapping[str, float] = field(default_factory=dict)
    """Model -> seconds that its defaults will take, as measured on a few rows."""
    workers: int = 1
    starts: Sequence[Config] = ()
    """Configurations that follow the defaults of their stage."""

    def next(self, tried: Sequence[Tried]) -> list[Request]:
        """The next batch; empty at the end."""
        asked: list[Request] = []
        for stage in ORDER[:-1]:
            models = [model for model in self.defaults if self.stages.get(model, "boosting") == stage]
            found = self._stage(stage, models, tried, self.batch - len(asked)) if models else []
            asked += found
            if found and (stage != "baseline" or len(asked) >= self.batch):
                return asked
        return asked or self._ensemble(tried)

    def _stage(self, stage: str, models: Sequence[str], tried: Sequence[Tried], most: int) -> list[Request]:
        """Requests of one stage: the defaults of its models, then more of those that can be searched. None where it is over."""
        mine = [each for each in tried if each.model in models]
        room = self._room(stage, tried)
        missing = [model for model in models if not any(each.model == model for each in mine)]
        affordable = [
            model
            for place, model in enumerate(missing)
            if stage == "baseline" or self._fits(model, mine, room, stage, tried, place)
        ]
        asked: list[Request] = [self.defaults[model] for model in affordable[:most]]
        known = [each.config for each in mine]
        for start in self.starts:
            fits = start["model"] in models and start not in known and len(asked) < min(most, max(room, len(asked)))
            if fits and self._fits(start["model"], mine, room, stage, tried, len(asked), default=False):
                asked.append(start)
        searched = [model for model in models if model in self.searched and (model not in missing or model in affordable)]
        if searched and (asked or self._pays(mine, tried)):
            turns = self._by_score(searched, mine)
            more = [turns[place % len(turns)] for place in range(min(most, room) - len(asked))]
            for model in more:
                if self._fits(model, mine, room, stage, tried, len(asked), default=False):
                    asked.append(model)
        return asked

    def _room(self, stage: str, tried: Sequence[Tried]) -> int:
        """How many more trials the stage may have."""
        if self.clock.seconds is not None:
            return self.batch
        last = stage == "boosting" and BLEND in self.stages
        return max(round(SHARES[stage] * self.n_trials) - last - len(tried), 0)

    def _fits(
        self,
        model: str,
        mine: Sequence[Tried],
        room: int,
        stage: str,
        tried: Sequence[Tried],
        ahead: int,
        default: bool = True,
    ) -> bool:
        """Whether there is time for one more trial of `model`, with `ahead` others before it in the batch.

        A default may use the time of the stages after it, but for what their own defaults are expected to take.
        """
        if self.clock.seconds is None:
            return room > 0 or not mine
        later = self._later(stage, tried)
        left = self.clock.left() - (later if default else max(later, (1 - SHARES[stage]) * self.clock.seconds))
        took = [each.cost.wall_seconds for each in mine if each.model == model and each.state == "complete"][-4:]
        need = max(took) if took else self.expected.get(model, math.inf if self.expected else 0.0)
        return need * math.ceil((ahead + 1) / self.workers) <= left

    def _later(self, stage: str, tried: Sequence[Tried]) -> float:
        """Seconds that the defaults of the later stages are expected to take."""
        after = ORDER[ORDER.index(stage) + 1 :]
        known = {each.model for each in tried}
        waiting = [model for model in self.defaults if self.stages.get(model, "boosting") in after and model not in known]
        return sum(self.expected.get(model, 0.0) for model in waiting) / self.workers

    def _by_score(self, models: Sequence[str], mine: Sequence[Tried]) -> list[str]:
        """Models of a stage, the best so far first; those far behind the best of the stage are left out."""
        top = {model: best_of([each for each in mine if each.model == model], self.metric) for model in models}
        known = [(model, each) for model, each in top.items() if each]
        if not known:
            return list(models)
        known.sort(key=lambda item: -self.metric.gain(item[1].score, 0.0))
        first = known[0][1]
        new = [model for model, each in top.items() if each is None]
        return [*(model for model, each in known if not _far(first, each, self.metric)), *new]

    def _pays(self, mine: Sequence[Tried], tried: Sequence[Tried]) -> bool:
        """Whether the stage has brought something lately, and is not far behind what came before it."""
        top = best_of(mine, self.metric)
        if top is None:
            return False
        since = sum(each.position > top.position for each in mine)
        patience = PATIENCE if self.clock.seconds is None else 2 * PATIENCE
        if since >= patience * self.batch:
            return False
        before = best_of([each for each in tried if each.position < min(one.position for one in mine)], self.metric)
        return before is None or len(mine) < self.batch or not _far(before, top, self.metric)

    def _ensemble(self, tried: Sequence[Tried]) -> list[Request]:
        """One blend, where there are two models to blend and none was tried."""
        able = {each.number for each in tried if each.state == "complete" and self.stages.get(each.model) != "baseline"}
        if BLEND not in self.stages or len(able) < 2 or any(each.model == BLEND for each in tried):
            return []
        return [BLEND]


def _far(best: Tried, other: Tried, metric: Metric) -> bool:
    ahead, error = standard_error(best.folds, other.folds, metric)
    return len(best.folds) > 1 and ahead > 0 and ahead > BEHIND * error


def best_of(tried: Sequence[Tried], metric: Metric) -> Tried | None:
    """The best of the trials that ended well, the first of equals."""
    complete = [each for each in tried if each.state == "complete"]
    return max(complete, key=lambda each: (metric.gain(each.score, 0.0), -each.number)) if complete else None
