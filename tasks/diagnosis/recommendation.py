"""From what an examination found to the ONE next step that promises most, in plain words and with its evidence. Pure.

Skill puts all kinds on one scale: 0 is guessing, 1 is perfect; 2 ROC AUC - 1 for classes, R² for numbers. "A simpler model" is
one that does worse on the rows it learned from and better on others; "a richer one" does better on both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

NEAR = 0.02
"""Differences in skill below this are not worth a step."""
BY_HEART = 0.3
"""So much more skill on the rows it learned from than on others, and a model knows them by heart."""
ALONE = {"classification": 0.95, "regression": 0.98}
"""A single column with this much skill, in a model that has it too, gives the target away."""


@dataclass(frozen=True)
class Rival:
    """Another configuration beside the chosen one. gain: how much more skill it has on rows not learned from."""

    name: str
    skill: float
    train_skill: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Facts:
    """What the examination found; the step is decided by this alone. Skills are those on rows not learned from."""

    kind: str
    skill: float
    error: float
    """Standard error of it."""
    train_skill: float
    rows: int
    """Rows that the models of the examination learned from, of `all_rows` that there are."""
    all_rows: int
    rivals: list[Rival] = field(default_factory=list)
    best_low: float = math.nan
    """The skill of the best of model and rivals, less SURE standard errors."""
    alone: list[tuple[str, float]] = field(default_factory=list)
    """Column -> skill by itself, the best first."""
    together: list[str] = field(default_factory=list)
    """Columns whose weighted sum is the target."""
    without: float | None = None
    """Skill of the model without the columns that look like leaks."""
    last_gain: tuple[float, float, float] | None = None
    """Skill gained by the last doubling of the rows, with its interval."""
    doubling: float | None = None
    """Skill that another doubling of all rows may bring."""
    explained: float | None = None
    """Share of the target's variance that the model explains (for classes by its probabilities)."""
    ceiling: float | None = None
    """The largest share that any model could: rows that are the same in every feature differ in their target by the rest."""
    ceiling_error: float = 0.0
    """Standard error of it."""


@dataclass(frozen=True)
class Step:
    step: str
    title: str
    said: str
    evidence: list[str]


def decide(facts: Facts) -> Step:
    """The step that the facts call for: a leak, noise, another model, nothing left, more rows or columns, in this order."""
    for rule in (_leak, _noise, _other_model, _nothing_left, _more_data):
        if step := rule(facts):
            return step
    return Step(
        "better features",
        "Better features",
        "Look for columns that say something new: more rows and other models no longer help with these.",
        [_level(facts), *_flat(facts), *(_stood(rival, facts) for rival in facts.rivals)],
    )


def _leak(facts: Facts) -> Step | None:
    if facts.together:
        return _leak_of(facts.together, [f"A weighted sum of {_and(facts.together)} is the target, to a thousandth."])
    suspects = suspects_of(facts.kind, facts.alone, facts.skill)
    if not suspects:
        return None
    top = facts.alone[0][1]
    certain = top >= ALONE[facts.kind]
    falls = facts.without is not None and 0.1 < facts.without < 0.6 * top
    if not (certain or falls):
        return None
    rest = next((each for each in facts.alone if each[0] not in suspects), None)
    told = [f"{name} alone reaches {_shown(facts, value)}" for name, value in facts.alone if name in suspects]
    told += [f"the best of the other columns alone, {rest[0]}, {_shown(facts, rest[1])}"] if rest else []
    evidence = [f"{'; '.join(told)}."]
    if facts.without is not None:
        evidence.append(
            f"The model reaches {_shown(facts, facts.skill)}; boosted trees without it {_shown(facts, facts.without)}."
        )
    return _leak_of(suspects, evidence)


def _leak_of(names: Sequence[str], evidence: list[str]) -> Step:
    column = "column" if len(names) == 1 else "columns"
    it = "it" if len(names) == 1 else "them"
    return Step(
        "leak",
        f"A leak: look at {column} {_and(names)}",
        f"A leak: look at {column} {_and(names)}. Find out when {it} becomes known; if that is after the answer is needed, "
        f"take {it} out of the features and train again.".replace("them becomes", "they become"),
        evidence,
    )


def _noise(facts: Facts) -> Step | None:
    if facts.best_low > 0:
        return None
    tried = [_stood(rival, facts) for rival in facts.rivals]
    evidence = [
        f"On rows it did not learn from, the model reaches {_shown(facts, facts.skill)} (guessing: {_shown(facts, 0.0)}), and "
        f"the best of {len(tried) + 1} models is not beyond doubt above that.",
        *tried,
    ]
    if facts.train_skill > 0.2:
        evidence.append(f"Its {_shown(facts, facts.train_skill)} on the rows it learned from is learned by heart.")
    if facts.alone and math.isfinite(facts.alone[0][1]):
        evidence.append(f"The best single column, {facts.alone[0][0]}, reaches {_shown(facts, facts.alone[0][1])}.")
    return Step(
        "stop",
        "Stop: these columns do not tell the target",
        "Stop tuning: nothing in these columns tells the target better than guessing does. Only other columns can help.",
        evidence,
    )


def _other_model(facts: Facts) -> Step | None:
    """A rival that is better: simpler or richer by how well it does on the rows it learned from.

    Better beyond doubt; a far simpler one than a model that learns by heart need only be ahead.
    """
    by_heart = facts.train_skill - facts.skill > BY_HEART
    better = [
        each
        for each in facts.rivals
        if (each.gain >= NEAR and each.low > 0)
        or (by_heart and each.gain > 0 and each.train_skill < facts.train_skill - BY_HEART / 2)
    ]
    if not better:
        return None
    top = max(better, key=lambda each: each.gain)
    evidence = [
        _level(facts),
        f"{top.name} reaches {_shown(facts, top.skill)} on the same rows, {_difference(facts, top.gain, top.low, top.high)}, "
        f"and {_shown(facts, top.train_skill)} on those it learned from.",
        *_flat(facts),
    ]
    if top.train_skill < facts.train_skill - NEAR:
        return Step(
            "simpler model",
            "Simpler model",
            f"Take a simpler model: this one learns its rows by heart, and {top.name}, which cannot, does better on others. "
            "Narrow tune.space to simpler values, or tune.models to simpler families.",
            evidence,
        )
    return Step(
        "richer model",
        "Richer model",
        f"Take a richer model: this one is too simple for what the columns say, and {top.name} finds more in them "
        "(or give it features that bend and combine). Add the family to tune.models, or widen tune.space.",
        evidence,
    )


def _nothing_left(facts: Facts) -> Step | None:
    doubt = NEAR + 1.64 * math.hypot(facts.error, facts.ceiling_error)
    if facts.ceiling is not None and facts.explained is not None and facts.explained >= facts.ceiling - doubt:
        return Step(
            "stop",
            "Stop: as good as the data allow",
            "Stop: rows that are the same in every column differ in their target, and the model is at that ceiling.",
            [
                f"It explains {facts.explained:.0%} of what varies; rows that repeat say that no model with these columns can "
                f"explain more than about {facts.ceiling:.0%}.",
                _level(facts),
            ],
        )
    if facts.skill >= 0.97:
        return Step(
            "stop", "Stop: next to nothing is left to gain", "Stop: the model is right nearly everywhere.", [_level(facts)]
        )
    return None


def _more_data(facts: Facts) -> Step | None:
    """The curve still rises at its end, and another doubling is worth something."""
    if facts.last_gain is None or facts.doubling is None or facts.last_gain[1] <= 0 or facts.doubling < NEAR / 2:
        return None
    return Step(
        "more data",
        "More data",
        "Collect more rows: the score still rises with them, and no other model does better with those there are.",
        [*_flat(facts), _level(facts), *(_stood(rival, facts) for rival in facts.rivals)],
    )


def suspects_of(kind: str, alone: Sequence[tuple[str, float]], model: float) -> list[str]:
    """Columns that by themselves do nearly what the model does, far more than all the others."""
    known = [(name, value) for name, value in alone if math.isfinite(value)]
    if not known or known[0][1] < 0.8 or model < 0.8:
        return []
    top = known[0][1]
    group = [name for name, value in known if value >= 0.95 * top]
    rest = max((value for name, value in known if name not in group), default=0.0)
    certain = top >= ALONE[kind] and model >= ALONE[kind] - NEAR
    return group[:3] if len(group) <= 3 and (rest < 0.7 * top or certain) else []


def _flat(facts: Facts) -> list[str]:
    """What the end of the learning curve says, where there is one."""
    if facts.last_gain is None or facts.doubling is None:
        return []
    gain, low, high = facts.last_gain
    return [
        f"From {facts.rows // 2:,} to {facts.rows:,} rows it gained {_difference(facts, gain, low, high)}; doubling all "
        f"{facts.all_rows:,} may bring about {_unit(facts, facts.doubling):.3f} more."
    ]


def _level(facts: Facts) -> str:
    return (
        f"The model reaches {_shown(facts, facts.train_skill)} on the rows it learned from and {_shown(facts, facts.skill)} on "
        "others."
    )


def _stood(rival: Rival, facts: Facts) -> str:
    return f"{rival.name} reaches {_shown(facts, rival.skill)} ({_difference(facts, rival.gain, rival.low, rival.high)})."


def _shown(facts: Facts, value: float) -> str:
    """A skill in the score that people know."""
    return f"ROC AUC {(value + 1) / 2:.3f}" if facts.kind == "classification" else f"R² {value:.3f}"


def _unit(facts: Facts, gain: float) -> float:
    return gain / 2 if facts.kind == "classification" else gain


def _difference(facts: Facts, *values: float) -> str:
    gain, low, high = (_unit(facts, each) for each in values)
    return f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"


def _and(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
