"""What a project has to show: the champion of each problem, since when and why. Read from the registry and the deployments."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evergreen.flows import settings
from evergreen.flows.operations import rollouts as rolling
from evergreen.tasks.__main__ import STEPS
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import EvergreenError
from evergreen.tasks.core.paths import Layout, read_json

if TYPE_CHECKING:
    from evergreen.monitoring.report.production_section import ProductionRecords
    from evergreen.tasks.release.deployments import Deployment
    from evergreen.tasks.release.mlflow_store import Version
    from evergreen.tasks.release.model_registry import Registry

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Outcome of one problem in a flow."""

    problem: str
    done: list[str] = field(default_factory=list)
    """The steps that ran, in order; the others had nothing to do."""
    error: str | None = None
    action: str | None = None
    """deploy, begin (a rollout) or refuse: what the verdict led to; None: there was no challenger to decide on."""
    verdict: str | None = None
    """The gate's reason."""

    @property
    def status(self) -> Literal["failed", "unchanged", "done"]:
        return "failed" if self.error else "done" if self.done else "unchanged"


@dataclass(frozen=True)
class Row:
    """One problem in the table at the end; what is not known yet is None."""

    problem: str
    version: int | None = None
    """The champion."""
    model: str | None = None
    metric: str | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    since: datetime | None = None
    by: str | None = None
    verdict: str | None = None
    """The newest decision: its reason, also where it refused a challenger."""
    cpu_seconds: float | None = None
    """Of the last run of each of the problem's own steps."""
    compiled: str | None = None
    """Whether the champion has a compiled form: yes, or no and why."""
    rollout: str | None = None
    """The rollout in progress, and errors of running servers, in words."""
    realised: str | None = None
    """Realised scores of the champion in the newest monitoring run, in words."""


def digest(origin: Mapping[str, str], problem: str) -> str:
    """A short digest of the inputs of a verdict: model and evaluation by their DVC hashes, and the gate's policy."""
    parts = {path: origin.get(f"dvc.{path}") for path in (f"models/{problem}/model", f"reports/{problem}/evaluation")}
    text = json.dumps([parts, json.loads(origin["params"])["gate"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cutoff(registry: "Registry", problem: str, version: int) -> date | None:
    """The last day that a version which is judged learned from, as its lineage says; None where it does not."""
    found = registry.version(problem, version)
    day = (found.tags.get("begins") or found.tags.get("cutoff", "none")) if found else "none"
    return date.fromisoformat(day) if day != "none" else None


def standing(layout: Layout, problem: str) -> tuple[int | None, bool]:
    """The version under which the model as it is now was registered, if it was and its files are whole, and whether it was
    decided on last.

    A rollback is no decision on what is there now: it stays in force until there is something new. A rollout's beginning is.
    """
    from evergreen.tasks.release.lineage import lineage

    wanted = digest(lineage(layout, load(layout.params), problem), problem)
    registry = settings.registry(layout)
    known = [each.version for each in registry.versions(problem) if each.tags.get("digest") == wanted]
    known = [each for each in known if registry.damage(problem, each) is None]
    if not known:
        return None, False
    deployments = settings.deployments(layout)
    judged = [each.version for each in deployments.history(problem) if each.action in ("deploy", "refuse", "begin")]
    return max(known), max(known) in (deployments.champion(problem), *judged[-1:])


def nothing_to_do(layout: Layout, problems: Sequence[str], deploy: bool) -> bool:
    """Whether every step of `problems` is fresh, their candidates are judged, and the page is there."""
    from evergreen.tasks.release import pipeline_file
    from evergreen.tasks.release.lineage import Stages

    pipeline_file.name_sources(layout, load(layout.params))
    names = [f"{step}@{name}" if name else step for step, own in STEPS.items() for name in (problems if own else [None])]
    stages = Stages(layout)
    if not layout.page.exists() or not all(stages.fresh(name) for name in names):
        return False
    return all(version and (decided or not deploy) for version, decided in (standing(layout, each) for each in problems))


def rows(layout: Layout, problems: Iterable[str]) -> list[Row]:
    """One row per problem, in this order."""
    registry, deployments = settings.registry(layout), settings.deployments(layout)
    rollouts = settings.rollouts(layout)
    return [
        _row(layout, problem, *_champion(registry, deployments, problem), rolling.describe(rollouts, problem))
        for problem in problems
    ]


def page(layout: Layout) -> Path:
    """Rebuild the page of all problems."""
    from evergreen.monitoring.report.page import build

    params = load(layout.params)
    champions = {name: found for name in params.problems if (found := champion(layout, name))}
    return build(params, layout, champions, {problem: production_records(layout, problem) for problem in params.problems})


def page_after(layout: Layout, what: str) -> None:
    """Rebuild the page after `what`, which is recorded and stands without it: a failure is a warning."""
    try:
        page(layout)
    except (EvergreenError, OSError) as error:
        log.warning("the page was not rebuilt: %s. %s is done; evergreen report rebuilds the page", error, what.capitalize())


def champion(layout: Layout, problem: str) -> dict[str, Any] | None:
    """The champion as the page shows it; None: nothing is deployed."""
    version, decisions = _champion(settings.registry(layout), settings.deployments(layout), problem)
    return _describe(version, decisions) if version else None


PAGE_ROWS = 100_000
"""Weeks with more changed predictions together are shown on the page as they were counted last."""


def production_records(layout: Layout, problem: str, most_rows: int = PAGE_ROWS) -> "ProductionRecords":
    """Stored records of a problem in production. `most_rows`: see Ledger.cohorts."""
    from evergreen.monitoring.report.production_section import ProductionRecords

    decisions, ledger = settings.decision_log(layout), settings.ledger(layout)
    return ProductionRecords(
        runs=[each.decision for each in decisions.runs(problem)],
        retrainings=decisions.retrainings(problem),
        cohorts=ledger.cohorts(problem, most_rows=most_rows),
        rollout=settings.rollouts(layout).current(problem),
    )


def _champion(registry: Any, deployments: Any, problem: str) -> tuple["Version | None", list["Deployment"]]:
    """The champion's version and all decisions, oldest first."""
    decisions = sorted(deployments.history(problem), key=lambda each: each.at)
    number = deployments.champion(problem)
    return (registry.version(problem, number) if number else None), decisions


def _arrival(version: "Version", decisions: list["Deployment"]) -> "Deployment | None":
    """The decision that made `version` the champion it is now."""
    from evergreen.tasks.release.deployments import MOVES

    return next((each for each in reversed(decisions) if each.version == version.version and each.action in MOVES), None)


def _describe(version: "Version", decisions: list["Deployment"]) -> dict[str, Any]:
    arrival = _arrival(version, decisions)
    return {
        "version": version.version,
        "aliases": version.aliases,
        "since": arrival and arrival.at,
        "by": arrival and arrival.by,
        "reason": arrival and arrival.reason,
        "verdict": arrival.evidence if arrival else {},
        "lineage": version.tags,
    }


def _row(layout: Layout, problem: str, version: "Version | None", decisions: list["Deployment"], rollout: str | None) -> Row:
    spent = [read_json(path)["cpu_seconds"] for path in sorted((layout.var / "costs").glob(f"*@{problem}.json"))]
    cpu = round(math.fsum(spent), 1) if spent else None
    newest = decisions[-1].reason if decisions else None
    if version is None:
        return Row(problem, verdict=newest, cpu_seconds=cpu, rollout=rollout)
    arrival = _arrival(version, decisions)
    metric = version.tags.get("metric")
    known = {plain(name): value for name, value in version.metrics.items()}
    numbers = {part: known.get(plain(f"{metric}{end}")) for part, end in SUFFIXES.items()}
    return Row(
        problem,
        version.version,
        version.tags.get("model"),
        metric,
        **numbers,
        since=arrival and arrival.at,
        by=arrival and arrival.by,
        verdict=newest,
        cpu_seconds=cpu,
        compiled=version.tags.get("compiled"),
        rollout=rollout,
        realised=_realised(layout, problem, version.version),
    )


def _realised(layout: Layout, problem: str, version: int) -> str | None:
    """None without a realised score of this version."""
    newest = settings.decision_log(layout).runs(problem, last=1)
    window = newest[0].decision.window if newest else None
    found = window.performance if window and window.version == version else None
    if found is None or found.realised.score is None or found.realised_until is None:
        return None
    expected = found.expected.describe(found.metric)
    return f"{found.realised.describe(found.metric)} up to {found.realised_until:%Y-%m-%d}; expected {expected}"


SUFFIXES = {"score": "", "low": "_low", "high": "_high", "baseline": "_baseline"}
"""How the registry names the numbers of one metric."""


def plain(name: str) -> str:
    """MLflow takes no @ in a metric's name; whatever stands there instead."""
    return re.sub(r"\W", "_", name)
