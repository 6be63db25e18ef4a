"""The gate: may a candidate replace another model? Pure: frames and a policy in, a verdict out; nothing is written.

The rule uses the interval of the gain on the same rows, with the same entities left out for both (see tasks.core.intervals):

    better       the whole interval lies above margin
    not worse    else, the whole interval lies at or above minus tolerance
    worse        else, the whole interval lies below zero
    cannot tell  else, and wherever the metric is undefined
"""

import logging
import math
from collections.abc import Callable
from datetime import date
from typing import Literal

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Gate, Params, Section
from evergreen.tasks.core import bootstrap, intervals
from evergreen.tasks.core.errors import ParamsError, StepError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import Metric, Model
from evergreen.tasks.release.off_policy_value import OffPolicyValue

log = logging.getLogger(__name__)

NEAR = 0.25
"""A first model that misses a perfect score by at most this share of what the baseline misses may be judged by a sign test.
Chosen by simulation."""
FEWER_GROUPS = (50, 20, 10)
"""Of entities in the sign test, where the metric has no value in smaller groups, as that of one class has none."""

Decision = Literal["better", "not worse", "worse", "cannot tell"]


class Verdict(Section):
    """The gate's decision with its evidence. Numbers that are undefined are NaN."""

    decision: Decision
    promote: bool
    reason: str
    """One sentence for a person."""
    metric: str
    candidate: float
    """Score of the candidate."""
    other: float
    """Score of the model it is compared with."""
    gain: float
    """How much better the candidate is: positive is better, in the metric's unit."""
    low: float
    high: float
    """Interval of the gain."""
    rows: int
    """Rows that both predicted."""
    against: str
    """The model it is compared with, such as champion v3 or baseline prior."""
    off_policy: OffPolicyValue | None = None
    """What a recommender's lists would have earned where the champion's were served; None: not estimated."""

    def of_first(self) -> "Verdict":
        """For lists, while nothing is deployed: what is not surely worse than the baseline serves, and the reason says so. A
        shop is not left without lists."""
        if self.promote or self.decision == "worse":
            return self
        past = self.reason.removeprefix("not promoted: ")
        why = "nothing is deployed yet, and lists that are not surely worse than the baseline are better than none"
        return self.model_copy(update={"promote": True, "reason": f"promoted: {why}: {past}"})

    def with_off_policy(self, found: OffPolicyValue | None) -> "Verdict":
        """With these estimates as evidence. A candidate whose lists are surely worse than the champion's is not promoted,
        however it did on past data; where there is too little to tell they change nothing."""
        if found is None:
            return self
        if not found.surely_worse:
            return self.model_copy(update={"off_policy": found, "reason": f"{self.reason}; {found.words()}"})
        past = self.reason.removeprefix("promoted: ").removeprefix("not promoted: ")
        reason = f"not promoted: surely worse by lists that nobody saw: {found.words()}; on past data: {past}"
        return self.model_copy(update={"off_policy": found, "decision": "worse", "promote": False, "reason": reason})


def judge(
    candidate: pl.DataFrame,
    other: pl.DataFrame,
    score: Callable[[pl.DataFrame], float],
    metric: Metric,
    policy: Gate,
    against: str,
    seed: int,
) -> Verdict:
    """Compare two models by their predictions, one row per entity in both. `score`: such rows -> the metric.

    The same seed leaves out the same groups of entities. Raises DataError where the frames hold different rows.
    """
    left, right = bootstrap.paired(candidate, other)
    scores = score(left), score(right)
    gain = metric.gain(*scores)
    without = (metric.gain(score(one), score(two)) for one, two in intervals.leave_out([left, right], seed, policy.resamples))
    low, high, why = intervals.interval(gain, list(without), policy.confidence)
    decision = decide(gain, low, high, policy)
    promote = decision == "better" or decision == policy.promote
    return Verdict(
        decision=decision,
        promote=promote,
        reason=_reason(decision, promote, metric, policy, (*scores, gain, low, high), left.height, against, why),
        metric=metric.name,
        candidate=scores[0],
        other=scores[1],
        gain=gain,
        low=low,
        high=high,
        rows=left.height,
        against=against,
    )


def of_first_model(
    verdict: Verdict,
    candidate: pl.DataFrame,
    other: pl.DataFrame,
    score: Callable[[pl.DataFrame], float],
    metric: Metric,
    policy: Gate,
    seed: int,
) -> Verdict:
    """`verdict` while nothing is deployed. Arguments as of `judge`.

    Where a few rows carry the score, as huge values do in a loss and the one row that a nearly perfect model ranks wrong, or
    where there are few entities, no model passes by an interval. A candidate that is NEAR perfect serves then if it is better
    in surely more than half of the groups of entities (sign test).
    """
    missed = _missed(metric, verdict.candidate), _missed(metric, verdict.other)
    if verdict.decision != "cannot tell" or not missed[0] <= NEAR * missed[1]:
        return verdict
    from scipy import special  # pyright: ignore[reportMissingTypeStubs]

    pair, gains = bootstrap.paired(candidate, other), [math.nan]
    for count in (policy.resamples, *FEWER_GROUPS):
        groups = intervals.each_alone(pair, seed, count)
        gains = [metric.gain(score(one), score(two)) for one, two in groups]
        if all(map(math.isfinite, gains)):
            break
    won, told = sum(gain > 0 for gain in gains), sum(gain != 0 for gain in gains)
    by_chance = float(special.bdtrc(won - 1, told, 0.5))
    if not all(map(math.isfinite, gains)) or by_chance >= (1 - policy.confidence) / 2:
        return verdict
    past = verdict.reason.removeprefix("not promoted: ")
    why = f"nothing is deployed yet, and it is better in {won:,} of {told:,} groups of entities"
    return verdict.model_copy(update={"promote": True, "reason": f"promoted: {why}: {past}"})


def _missed(metric: Metric, score: float) -> float:
    """How far a score is from a perfect one; NaN where no score is perfect."""
    if metric.scale == "positive":
        return score
    return 1 - score if metric.scale in ("share", "proportion", "explained") else math.nan


def decide(gain: float, low: float, high: float, policy: Gate) -> Decision:
    """The rule at the head of this file.

    >>> policy = Gate(margin=0.0, tolerance=0.01)
    >>> [decide(low + 0.02, low, low + 0.04, policy) for low in (0.005, -0.005, -0.02, -0.05)]
    ['better', 'not worse', 'cannot tell', 'worse']
    """
    if not all(math.isfinite(value) for value in (gain, low, high)):
        return "cannot tell"
    if low > policy.margin:
        return "better"
    if low >= -policy.tolerance:
        return "not worse"
    return "worse" if high < 0 else "cannot tell"


def _reason(
    decision: Decision,
    promote: bool,
    metric: Metric,
    policy: Gate,
    numbers: tuple[float, float, float, float, float],
    rows: int,
    against: str,
    why: str,
) -> str:
    candidate, other, gain, low, high = (format(number, metric.format) for number in numbers)
    beyond = f" by more than {policy.margin:g}" if policy.margin else ""
    kept = f"is not worse than {against} {other} (tolerance {policy.tolerance:g})"
    says = {
        "better": f"beats {against} {other}{beyond}",
        "not worse": kept if promote else f"does not beat {against} {other}{beyond}",
        "worse": f"is worse than {against} {other}",
        "cannot tell": f"cannot be told from {against} {other}",
    }[decision]
    within = f"({why})" if why else f"[{low}, {high}] at {policy.confidence:.0%}"
    return (
        f"{'promoted' if promote else 'not promoted'}: {metric.name} {candidate} {says}: "
        f"gain {gain} {within} ({rows:,} rows of the last window)"
    )


def run(
    params: Params, problem: str, layout: Layout, champion: Model | None, version: int | None, seen: date | None = None
) -> Verdict:
    """Judge the trained model of `problem` on its last test window against `champion`, or the baseline for None.

    The champion, registered as `version`, predicts the same rows now. The decision is "cannot tell" if it cannot, for instance
    since its features are no longer built, or if it learned from days of the window (up to `seen`), which would leak labels.
    Raises StepError where evaluate did not run before, ParamsError for a metric that predictions do not give.
    """
    section, kind = params.section(problem), problems.kind(params.kind(problem))
    metric = problems.metric(kind, section.gate.metric, f"{problem}.gate.metric")
    data = problems.load_stored(kind, layout.features(problem), section)
    candidate = last_window(layout, problem, "predictions")
    cutoff = candidate["cutoff"][0]
    if champion is None:
        other, against = last_window(layout, problem, "baseline"), f"baseline {kind.baseline}"
    else:
        against = f"champion v{version}"
        begins = kind.begins(data, cutoff)
        if seen and begins and seen > begins:
            why = f"it learned from days up to {seen}, and the window begins after {begins}"
            return _unable(metric, against, candidate.height, why, "Train as of a later day.")
        try:
            other = kind.predict(champion, data, cutoff, section)
        except Exception as error:  # noqa: BLE001  # an old model may fail in any way; it stays champion
            advice = "If features were changed on purpose, deploy the candidate by hand."
            return _unable(metric, against, candidate.height, f"{type(error).__name__}: {error}", advice)
    if metric.name not in kind.score(candidate, section):
        raise ParamsError(
            f"params.yaml: {problem}.gate.metric = {metric.name}: cannot be computed from predictions; choose another"
        )

    def score(rows: pl.DataFrame) -> float:
        return kind.score(rows, section)[metric.name]

    verdict = judge(candidate, other, score, metric, section.gate, against, params.project.seed)
    if champion is None and section.predicts == "lists":
        verdict = verdict.of_first()
    elif champion is None:
        verdict = of_first_model(verdict, candidate, other, score, metric, section.gate, params.project.seed)
    log.info("%s: gate: %s", problem, verdict.reason)
    return verdict


def last_window(layout: Layout, problem: str, name: str) -> pl.DataFrame:
    """The rows of the last test window in reports/PROBLEM/evaluation/`name`.parquet. Raises StepError where there are none."""
    path = layout.report(problem) / "evaluation" / f"{name}.parquet"
    if not path.exists():
        raise StepError(f"{path}: is missing. Run evaluate first: python -P -m evergreen evaluate {problem}")
    frame = pl.read_parquet(path)
    return frame.filter(pl.col("cutoff") == pl.col("cutoff").max())


def _unable(metric: Metric, against: str, rows: int, why: str, advice: str) -> Verdict:
    """The verdict where the champion cannot predict the rows, or not fairly."""
    return Verdict(
        decision="cannot tell",
        promote=False,
        reason=f"not promoted: {against} cannot predict the {rows:,} rows of the last window ({why}). {advice}",
        metric=metric.name,
        candidate=math.nan,
        other=math.nan,
        gain=math.nan,
        low=math.nan,
        high=math.nan,
        rows=rows,
        against=against,
    )
