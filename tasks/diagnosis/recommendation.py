"""From the facts of a diagnosis to the ONE next step that promises most, with its evidence. Pure.

Skill puts all kinds on one scale: 0 is guessing, 1 is perfect; 2 ROC AUC - 1 for classes, R² for numbers. A model overfits when
a simpler one, with less training skill, has more validation skill. It underfits when a richer one has more of both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from evergreen.tasks.problems.prediction_type import SkillScale
from evergreen.tasks.problems.tabular.leak_rule import Formula, stands_apart

MIN_GAIN = 0.02
"""Differences in skill below this are not worth a step."""
OVERFIT_GAP = 0.3
"""A model overfits when its training skill is this far above its validation skill."""
PERFECT = 0.97
"""Skill from which next to nothing is left to gain."""
ENOUGH_ROWS = 2_000
"""Fits of fewer rows, of four times as many, say little about models of all rows: complex models gain more with rows."""


@dataclass(frozen=True)
class Rival:
    """Another configuration besides the chosen one. gain, low, high: its additional validation skill, with the interval."""

    name: str
    skill: float
    train_skill: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Facts:
    """What a diagnosis found; it alone decides the step. Skills are those on validation rows, unless named otherwise."""

    scale: SkillScale
    skill: float
    error: float
    """Standard error of `skill`."""
    train_skill: float
    rows: int
    """Training rows of the fits, of `all_rows` that there are."""
    all_rows: int
    rivals: list[Rival] = field(default_factory=list)
    best_low: float = math.nan
    """Skill of the best of the model and its rivals, minus ERRORS_ABOVE_GUESSING standard errors."""
    single_columns: list[tuple[str, float]] = field(default_factory=list)
    """(column, skill by itself), the best first."""
    formula: Formula | None = None
    """A formula of columns that is the target."""
    skill_without_suspects: float | None = None
    """Skill of boosted trees without the columns that look like leaks."""
    last_gain: tuple[float, float, float] | None = None
    """Skill gained by the last doubling of the rows, with its interval."""
    doubling: float | None = None
    """Skill that another doubling of all rows may gain."""
    explained: float | None = None
    """Share of the target's variance that the model explains (for classes, by its probabilities)."""
    ceiling: float | None = None
    """The largest share that any model could explain; see diagnosis.noise_ceiling."""
    ceiling_error: float = 0.0
    """Standard error of `ceiling`."""
    member: str = ""
    """The largest member of a blend, which stands for it; "": the model itself was examined."""
    cut: bool = False
    """Whether the search ended for lack of time before it had tried much: another model may be what it did not come to."""


@dataclass(frozen=True)
class Step:
    """step: its name. recommendation: one or two sentences. evidence: one sentence per fact."""

    step: str
    title: str
    recommendation: str
    evidence: list[str]


def sees_few(rows: int, all_rows: int) -> bool:
    """Whether fits of `rows` say little about models of `all_rows`."""
    return rows < ENOUGH_ROWS and 4 * rows <= all_rows


def decide(facts: Facts) -> Step:
    """The first of these that applies: a leak, too few rows seen, noise, another model, nothing to gain, more rows; else better
    features."""
    for rule in (_leak, _sees_few, _noise, _other_model, _nothing_to_gain, _more_data):
        if step := rule(facts):
            return step
    return Step(
        "better features",
        "Better features",
        "Add columns with new information: with these columns, more rows and other models no longer help.",
        [_level(facts), *_last_doubling(facts), *(_compare(rival, facts) for rival in facts.rivals)],
    )


def suspects_of(scale: SkillScale, single_columns: Sequence[tuple[str, float]], model: float) -> list[str]:
    """Up to three columns that by themselves nearly reach the skill of the model, far more than all others."""
    known = [(name, value) for name, value in single_columns if math.isfinite(value)]
    if not known or known[0][1] < 0.8 or model < 0.8:
        return []
    top = known[0][1]
    group = [name for name, value in known if value >= 0.95 * top]
    rest = max((value for name, value in known if name not in group), default=0.0)
    certain = top >= scale.leak and model >= scale.leak - MIN_GAIN
    return group[:3] if len(group) <= 3 and (rest < 0.7 * top or certain) else []


def _leak(facts: Facts) -> Step | None:
    if facts.formula:
        return _leak_of(facts.formula.columns, [f"{facts.formula.text} is the target, to a thousandth of its variance."])
    suspects = suspects_of(facts.scale, facts.single_columns, facts.skill)
    if not suspects:
        return None
    top, without = facts.single_columns[0][1], facts.skill_without_suspects
    certain = top >= facts.scale.leak
    if not (certain if without is None else stands_apart(top, without) and (certain or without > 0.1)):
        return None
    rest = next((each for each in facts.single_columns if each[0] not in suspects), None)
    alone = [f"{name} alone reaches {_score(facts, value)}" for name, value in facts.single_columns if name in suspects]
    alone += [f"the best of the other columns alone, {rest[0]}, {_score(facts, rest[1])}"] if rest else []
    evidence = [f"{'; '.join(alone)}."]
    if without is not None:
        it = "it" if len(suspects) == 1 else "them"
        evidence.append(f"The model reaches {_score(facts, facts.skill)}; boosted trees without {it} {_score(facts, without)}.")
    return _leak_of(suspects, evidence)


def _leak_of(names: Sequence[str], evidence: list[str]) -> Step:
    column, becomes, it = ("column", "it becomes", "it") if len(names) == 1 else ("columns", "they become", "them")
    return Step(
        "leak",
        f"A leak: check {column} {_and(names)}",
        f"A leak: check {column} {_and(names)}. Find out when {becomes} known; if that is after the prediction is needed, "
        f"drop {it} from the features and train again.",
        evidence,
    )


def _sees_few(facts: Facts) -> Step | None:
    if not sees_few(facts.rows, facts.all_rows):
        return None
    return Step(
        "longer diagnosis",
        "Too few rows seen to say more",
        f"In its time the diagnosis fitted models on {facts.rows:,} of {facts.all_rows:,} rows, too few to say what holds for "
        "all. Train with a longer tune.budget_seconds (--seconds), or without one and a longer evaluate.diagnose_seconds.",
        [_level(facts)],
    )


def _noise(facts: Facts) -> Step | None:
    if facts.best_low > 0:
        return None
    rivals = [_compare(rival, facts) for rival in facts.rivals]
    evidence = [
        f"On validation rows the model reaches {_score(facts, facts.skill)} (guessing: {_score(facts, 0.0)}), and the best of "
        f"{len(rivals) + 1} models is not significantly better than guessing.",
        *rivals,
    ]
    if facts.train_skill > 0.2:
        evidence.append(f"Its {_score(facts, facts.train_skill)} on training rows is overfitting.")
    if facts.single_columns and math.isfinite(facts.single_columns[0][1]):
        name, value = facts.single_columns[0]
        evidence.append(f"The best single column, {name}, reaches {_score(facts, value)}.")
    return Step(
        "stop",
        "Stop: these columns do not predict the target",
        "Stop tuning: no model predicts the target from these columns better than guessing. Only other columns can help.",
        evidence,
    )


def _other_model(facts: Facts) -> Step | None:
    """A better rival. Significantly better; or better at all, and far simpler than a model that overfits."""
    overfits = facts.train_skill - facts.skill > OVERFIT_GAP
    better = [
        each
        for each in facts.rivals
        if (each.gain >= MIN_GAIN and each.low > 0)
        or (overfits and each.gain > 0 and each.train_skill < facts.train_skill - OVERFIT_GAP / 2)
    ]
    if not better:
        return None
    top = max(better, key=lambda each: each.gain)
    evidence = [
        _level(facts),
        f"{top.name} reaches {_score(facts, top.skill)} on the same validation rows, "
        f"{_difference(facts, top.gain, top.low, top.high)}, and {_score(facts, top.train_skill)} on training rows.",
        *_last_doubling(facts),
    ]
    if facts.cut:
        return Step(
            "longer search",
            "A longer search",
            f"The search ended before it had tried much, and {top.name} is better on the same rows: train again with a longer "
            "tune.budget_seconds (--seconds), before you change the models.",
            evidence,
        )
    if top.train_skill < facts.train_skill - MIN_GAIN:
        return Step(
            "simpler model",
            "Simpler model",
            f"The model overfits: {top.name} has a lower training score and a higher validation score. "
            "Narrow tune.space to simpler values, or tune.models to simpler models.",
            evidence,
        )
    return Step(
        "richer model",
        "Richer model",
        f"The model underfits: {top.name} has a higher training and validation score. "
        "Add that model to tune.models, widen tune.space, or add features with curves and interactions.",
        evidence,
    )


def _nothing_to_gain(facts: Facts) -> Step | None:
    tolerance = MIN_GAIN + 1.64 * math.hypot(facts.error, facts.ceiling_error)
    if facts.ceiling is not None and facts.explained is not None and facts.explained >= facts.ceiling - tolerance:
        return Step(
            "stop",
            "Stop: as good as the data allow",
            "Stop: rows with equal features differ in their target, and the model reaches that ceiling.",
            [
                f"It explains {facts.explained:.0%} of the variance; by the rows that repeat, no model with these columns can "
                f"explain more than about {facts.ceiling:.0%}.",
                _level(facts),
            ],
        )
    if facts.skill >= PERFECT:
        return Step("stop", "Stop: next to nothing to gain", "Stop: the model is right nearly everywhere.", [_level(facts)])
    return None


def _more_data(facts: Facts) -> Step | None:
    """The learning curve still rises at its end, and another doubling is worth a step."""
    if facts.last_gain is None or facts.doubling is None or facts.last_gain[1] <= 0 or facts.doubling < MIN_GAIN / 2:
        return None
    return Step(
        "more data",
        "More data",
        "Collect more rows: the score still rises with them, and no other model is better with the rows there are.",
        [*_last_doubling(facts), _level(facts), *(_compare(rival, facts) for rival in facts.rivals)],
    )


def _last_doubling(facts: Facts) -> list[str]:
    """The end of the learning curve in words, where there is one."""
    if facts.last_gain is None or facts.doubling is None:
        return []
    gain, low, high = facts.last_gain
    return [
        f"From {facts.rows // 2:,} to {facts.rows:,} rows it gained {_difference(facts, gain, low, high)}; doubling all "
        f"{facts.all_rows:,} may gain about {_unit(facts, facts.doubling):.3f} more."
    ]


def _level(facts: Facts) -> str:
    training, validation = _score(facts, facts.train_skill), _score(facts, facts.skill)
    model = f"{facts.member}, the largest member of the blend," if facts.member else "The model"
    return f"{model} reaches {training} on training rows and {validation} on validation rows."


def _compare(rival: Rival, facts: Facts) -> str:
    return f"{rival.name} reaches {_score(facts, rival.skill)} ({_difference(facts, rival.gain, rival.low, rival.high)})."


def _score(facts: Facts, value: float) -> str:
    """A skill as the common metric."""
    return facts.scale.show(value)


def _unit(facts: Facts, gain: float) -> float:
    return facts.scale.difference(gain)


def _difference(facts: Facts, *values: float) -> str:
    gain, low, high = (_unit(facts, each) for each in values)
    return f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"


def _and(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
