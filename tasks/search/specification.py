"""All that a search depends on: its space, settings and objective, and the fingerprint by which an interrupted one resumes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from evergreen.tasks.config.params import Params, Problem, Tune
from evergreen.tasks.core.paths import Layout, sha256
from evergreen.tasks.problems.base import Config, Kind, Metric
from evergreen.tasks.search.space import Space
from evergreen.tasks.search.time_budget import Clock, Estimate
from evergreen.tasks.search.trials import Outcome

MAX_MODEL_MB = 50.0
"""Of a plain table, where params do not say."""
LIMITS = {"n_trials", "timeout_seconds", "budget_seconds", "workers", "choose", "max_latency_ms", "max_model_mb", "nested"}
"""Settings of tune that change no trial."""
CODE = ("tasks/tune.py", "tasks/search", "tasks/problems", "tasks/config", "tasks/core", "model_types.py")
"""The code of evergreen that trials depend on: the same as in the deps of the stage tune in dvc.yaml."""


@dataclass(frozen=True)
class Search:
    """One search. `evaluate`: a configuration, and the fold scores of the best so far -> how the trial ended."""

    name: str
    space: Space
    defaults: dict[str, Config]
    """Model -> its default configuration, within the space."""
    tune: Tune
    """Without null for a setting that steers the search; see `resolve_settings`."""
    metric: Metric
    seed: int
    evaluate: Callable[[Config, Sequence[float] | None], Outcome]
    stages: Mapping[str, str] = field(default_factory=dict)
    """Model -> its stage, for a staged search; with BLEND where the kind can blend."""
    score: Callable[[pl.DataFrame], float] | None = None
    """Score of blended predictions."""
    units: Callable[[pl.DataFrame], pl.DataFrame] | None = None
    """Predictions -> unit and value of the metric, where models are compared unit by unit; see search.ladder."""
    clock: Clock = field(default_factory=lambda: Clock(None))
    """The time of the search alone."""
    expected_seconds: Mapping[str, float] = field(default_factory=dict)
    """Model -> seconds that a trial of its defaults is expected to take."""
    estimate: Estimate | None = None
    """With a time budget: what the steps after the search will need."""
    warm_starts: Sequence[Config] = ()
    """Configurations that are tried right after the defaults."""
    probes: Mapping[str, Outcome] = field(default_factory=dict)
    """Model -> outcome of its defaults on one fold of a few rows."""

    @property
    def baseline(self) -> str:
        return next(iter(self.space))


def resolve_settings(section: Problem) -> Tune:
    """The section tune, with a value for each null whose meaning depends on the kind of table."""
    tune, plain = section.tune, not section.features.by_cutoff
    method = tune.method or ("staged" if plain else "tpe")
    resolved = {
        "method": method,
        "choose": "simplest" if method == "staged" or section.predicts == "lists" else "best",
        "batch_size": 4 if plain else 1,
        "prune": plain,
        "max_model_mb": MAX_MODEL_MB if plain else None,
    }
    return tune.model_copy(update={name: value for name, value in resolved.items() if getattr(tune, name) is None})


def stages_of(kind: Kind, section: Problem) -> dict[str, str]:
    """Model -> stage. For a kind that names no stages, the baseline comes first and the other models count as boosting."""
    if hasattr(kind, "stages"):
        return dict(kind.stages(section))  # pyright: ignore[reportAttributeAccessIssue]
    return {model: "baseline" if model == kind.baseline else "boosting" for model in kind.space(section)}


def fingerprint(params: Params, problem: str, layout: Layout, limit: int | None = None) -> str:
    """A hash of all that trials depend on: features, sections of params.yaml, seed, code and locked versions.

    `limit`: bytes that bound the sample of a table that is too large for memory.

    LIMITS are left out, so that an interrupted search can resume with more or fewer trials or workers.
    """
    section = params.section(problem)
    settings = {
        "seed": params.project.seed,
        "tune": section.tune.model_dump(mode="json", exclude=LIMITS),
        "rest": section.model_dump(mode="json", include={"features", "pipeline", "train"}),
        "windows": section.evaluate.windows,
    }
    if limit is not None:
        settings["limit"] = limit
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    data = sorted(path for path in layout.features(problem).rglob("*") if path.is_file())
    for path in [*_code(), *data, *([layout.lock] if layout.lock.exists() else [])]:
        digest.update(path.name.encode())
        digest.update(sha256(path).encode())
    return digest.hexdigest()[:16]


def _code() -> list[Path]:
    """The files of CODE."""
    package = Path(__file__).parents[2]
    return [path for name in CODE for path in sorted((package / name).rglob("*.py")) or [package / name]]
