"""The experiments of a diagnosis, within a number of CPU seconds: refits of the chosen configuration and of its rivals.

On the folds of the search: other models, each column alone, more rows (learning curve), rows that repeat (noise ceiling), the
two most important hyper-parameters (validation curves), resamples (bias and variance). Experiments that cannot be afforded are
left out and named.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core import bootstrap, intervals
from evergreen.tasks.diagnosis.bias_variance import decompose_error
from evergreen.tasks.diagnosis.examination import CURVE_SHARES, GROUPS, Examination, Fit, skill
from evergreen.tasks.diagnosis.learning_curve import extrapolate, learning_curve_table
from evergreen.tasks.diagnosis.noise_ceiling import estimate_ceiling
from evergreen.tasks.diagnosis.recommendation import Facts, Rival, decide, suspects_of
from evergreen.tasks.diagnosis.single_columns import single_column_skills
from evergreen.tasks.diagnosis.validation_curves import validation_curves
from evergreen.tasks.problems.base import Config, Kind
from evergreen.tasks.problems.prediction_type import SkillScale
from evergreen.tasks.problems.tabular.leak_rule import Formula
from evergreen.tasks.problems.tabular.rows import Rows

ERRORS_ABOVE_GUESSING = 2.6
"""The best of a few models beats guessing when its skill is this many standard errors above 0."""
SHOWN_COLUMNS = 12
MIN_TRIALS = 10
"""A search with a time budget that completed fewer trials was cut."""


def diagnose(
    kind: Kind, data: Rows, section: Tabular, config: Config, seed: int, seconds: float, trials: pl.DataFrame | None = None
) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """What diagnosis.json holds about the model of `config`, and the tables of its curves. Takes about `seconds` of CPU.

    `trials`: those of the search, which rank the hyper-parameters; None: in the order of the space. Where the configuration
    cannot be fitted there is no step, and the recommendation is the reason.
    """
    examination = Examination(kind, data, section, seed, seconds)
    metric = problems.metric(kind, section.tune.metric, "tune.metric")
    whole, config = config, examination.plan(config)
    member = "" if config is whole else str(config["model"])
    chosen = examination.evaluate(config)
    if chosen is None:
        return {"recommendation": f"The model could not be fitted on a part of its rows: {examination.failed}"}, {}
    rivals = {name: fit for name, other in _rivals(kind, section, config).items() if (fit := examination.evaluate(other))}
    skills, formula = single_column_skills(examination)
    facts = _facts(examination, chosen, rivals, skills, formula)
    facts = replace(facts, member=member, cut=search_was_cut(section, trials))
    curve = {share: fit for share in CURVE_SHARES if (fit := examination.evaluate(config, "learning curve", share))}
    facts = extrapolate(examination, facts, curve, chosen)
    facts = estimate_ceiling(examination, facts, chosen)
    step = decide(facts)
    validation = validation_curves(examination, config, trials, metric)
    parts = decompose_error(examination, config)
    tables = {
        "learning_curve": learning_curve_table({**curve, 1.0: chosen}, examination, metric),
        "single_columns": pl.DataFrame(skills[:SHOWN_COLUMNS], schema={"column": pl.String, "skill": pl.Float64}, orient="row"),
        **({"bias_variance": parts} if parts is not None else {}),
        **validation,
    }
    found = {
        **asdict(step),
        "metric": metric.name,
        "scores": {"training": _mean(chosen.train, metric.name), "validation": _mean(chosen.validation, metric.name)},
        "facts": _as_json(asdict(facts)),
        "rows": facts.rows,
        "all_rows": facts.all_rows,
        "left_out": sorted(examination.left_out),
        "cpu_seconds": round(examination.spent, 2),
    }
    return found, {name: table for name, table in tables.items() if table.height}


def search_was_cut(section: Tabular, trials: pl.DataFrame | None) -> bool:
    """Whether a time budget ended the search before MIN_TRIALS trials, or left a trial a single fold of several."""
    if section.tune.budget_seconds is None or trials is None:
        return False
    folds = trials.filter(pl.col("state") == "complete")["folds"].list.len()
    return len(folds) < MIN_TRIALS or bool((folds < min(section.tune.folds, 2)).any())


def _scale(examination: Examination) -> SkillScale:
    scale = examination.prediction_type.skill
    assert scale is not None
    return scale


def _rivals(kind: Kind, section: Tabular, config: Config) -> dict[str, Config]:
    """The simplest model that learns, boosted trees, and the defaults of the chosen model."""
    models = [name for name in kind.space(section) if name != kind.baseline]
    wanted = dict.fromkeys([models[0], next((name for name in models if name == "lightgbm"), models[-1])])
    if config["model"] in models:
        wanted |= {config["model"]: None}
    found = {}
    for name in wanted:
        defaults = kind.defaults(name, section)
        if dict(defaults) != dict(config):
            found[name if name != config["model"] else f"{name} with its defaults"] = defaults
    return found


def _facts(
    examination: Examination, chosen: Fit, rivals: Mapping[str, Fit], skills: list[tuple[str, float]], formula: Formula | None
) -> Facts:
    top = max((chosen, *rivals.values()), key=lambda fit: fit.skill if math.isfinite(fit.skill) else -math.inf)
    return Facts(
        scale=_scale(examination),
        skill=chosen.skill,
        error=_standard_error(examination, chosen),
        train_skill=chosen.train_skill,
        rows=examination.rows,
        all_rows=examination.all_rows,
        rivals=[Rival(name, fit.skill, fit.train_skill, *examination.skill_gain(chosen, fit)) for name, fit in rivals.items()],
        best_low=top.skill - ERRORS_ABOVE_GUESSING * _standard_error(examination, top),
        single_columns=skills,
        formula=formula,
        skill_without_suspects=_skill_without_suspects(examination, skills, chosen),
    )


def _standard_error(examination: Examination, fit: Fit) -> float:
    """Standard error of the mean skill over the folds, by leaving entities out (jackknife)."""
    without = [
        bootstrap.mean([skill(examination.kind.score(frame, examination.section)) for frame in frames])
        for frames in intervals.leave_out(fit.predictions, examination.seed, GROUPS)
    ]
    return math.sqrt(max(len(without) - 1, 0)) * float(np.nanstd(without))


def _skill_without_suspects(examination: Examination, skills: list[tuple[str, float]], chosen: Fit) -> float | None:
    """The skill of boosted trees without the columns that may be leaks; None where there are none, or no other columns."""
    suspects = suspects_of(_scale(examination), skills, chosen.skill)
    if not suspects or len(suspects) == len(skills):
        return None
    kind, section = examination.kind, examination.section
    models = [name for name in kind.space(section) if name != kind.baseline]
    config = kind.defaults("lightgbm" if "lightgbm" in models else models[0], section)
    train, validation = examination.folds[-1]
    fit = examination.fit(config, train[: examination.rows], validation, suspects)
    return skill(fit[1]) if fit else None


def _mean(scores: Sequence[Mapping[str, float]], name: str) -> float | None:
    value = bootstrap.mean([each.get(name, math.nan) for each in scores])
    return value if math.isfinite(value) else None


def _as_json(value: Any) -> Any:
    """`value` with null for what is not finite."""
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
