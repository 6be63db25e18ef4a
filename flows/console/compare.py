"""Two versions side by side: scores, what they were made from, and the rows or lists that differ most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from evergreen.flows import settings
from evergreen.flows.console import equal_lists, equal_rows, trial
from evergreen.flows.console.kept import Kept, Made
from evergreen.flows.console.overview import MOST_ROWS
from evergreen.flows.console.visits import NotFoundError, Visit, whole_number
from evergreen.monitoring.report import formatting, production_section
from evergreen.tasks.core.errors import EvergreenError, ParamsError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.flows.console.equal_lists import EqualLists
    from evergreen.flows.console.equal_rows import EqualRows
    from evergreen.monitoring.report.production_section import CohortRow
    from evergreen.tasks.release.mlflow_store import Version
    from evergreen.tasks.release.model_registry import Registry

ENDS = ("_low", "_high", "_baseline", "_gain", "_gain_low", "_gain_high")
"""Of the registry's names of a metric's further numbers."""
OUTCOMES = ("cpu_seconds.", "peak_mb.", "verdict.", "compiled", "dvc.reports/", "dvc.models/", "digest", "sha256", "candidate")
"""How lineage names what came out of a training. Prefect's run is linked instead."""
LADDER = "ladder."
"""Begins the registry's names of the validated scores of models."""
COSTS = {"cpu_seconds": "CPU seconds of", "peak_mb": "peak memory in MB of"}
"""Names of the registry that are costs of a step, and how they are shown."""
SHOWN_WEEKS = 24
"""Most weeks of both versions together, the newest."""
KEPT_SECONDS = 600
"""Predictions of both versions on the same rows are kept for so long: they take seconds, and their rows change slowly."""
KEPT = 20


@dataclass(frozen=True)
class Pair:
    """What both versions have under one name."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class Run:
    """Where a version was made."""

    version: int
    mlflow: str
    """Its address, or the command that shows it; empty where MLflow has lost it."""
    prefect: str | None
    """The id of the run of the training flow; None for a version that is older than this record."""


def show(visit: Visit) -> Response:
    problem = visit.problem
    registry = settings.registry(visit.layout)
    versions = {each.version: each for each in registry.versions(problem)}
    known = sorted(versions, reverse=True)
    if not known:
        raise NotFoundError(f"{problem}: no version is registered yet; run evergreen train {problem}")
    champion = settings.deployments(visit.layout).champion(problem) or known[0]
    rest = [each for each in known if each != champion]
    first, second = _asked(visit, "a", champion, known), _asked(visit, "b", rest[0] if rest else champion, known)
    one, two = versions[first], versions[second]
    if visit.partial:
        return _show_both(visit, problem, first, second)
    asked = "rows" in visit.query and first != second
    made, line = None, None
    if asked:
        at_once = "whole" in visit.query
        made, line = _both(visit, problem, first, second) if at_once else (BOTH.peek(_key(visit, first, second)), None)
    return visit.render(
        "compare.html",
        problem=problem,
        known=known,
        first=first,
        second=second,
        champion=champion,
        figures=_figures(one, two),
        ladder=_ladder(one, two),
        chosen=[each.tags.get("model", "unknown") for each in (one, two)],
        costs=_costs(one, two),
        differences=_differences(one.tags, two.tags),
        asked=asked,
        made=made,
        line=line,
        weeks=_weeks(visit, problem, {first, second}),
        kind=visit.params.kind(problem),
        runs=[_run(registry, each) for each in ((one, two) if first != second else (one,))],
        verdicts=_verdicts(visit, problem, {first, second}),
    )


@dataclass(frozen=True)
class Both:
    """What two versions predict: rows of the ledger, or lists for the same users."""

    rows: "EqualRows | None" = None
    lists: "EqualLists | None" = None


BOTH: Kept[Both] = Kept(KEPT_SECONDS, KEPT)


def _show_both(visit: Visit, problem: str, first: int, second: int) -> Response:
    """The part of the page that takes long; it is asked for when the page stands."""
    made, line = _both(visit, problem, first, second)
    return visit.render("both.html", problem=problem, first=first, second=second, made=made, line=line)


def _both(visit: Visit, problem: str, first: int, second: int) -> tuple[Made[Both] | None, str | None]:
    """What both predict, or why they cannot."""
    key, anew = _key(visit, first, second), "anew" in visit.query
    try:
        return BOTH.get(key, lambda: _predict(visit, problem, first, second), anew), None
    except EvergreenError as error:
        return None, str(error)


def _key(visit: Visit, first: int, second: int) -> tuple[Layout, str, int, int]:
    return visit.layout, visit.problem, first, second


def _predict(visit: Visit, problem: str, first: int, second: int) -> Both:
    from evergreen.serving.loaded_model import ListModel, RowModel

    one, two = (trial.loaded(visit.layout, problem, each) for each in (first, second))
    if isinstance(one, ListModel) and isinstance(two, ListModel):
        return Both(lists=equal_lists.compare(visit, problem, one, two))
    if isinstance(one, RowModel) and isinstance(two, RowModel):
        return Both(rows=equal_rows.compare(visit, problem, one, two))
    raise ParamsError(f"{problem}: v{first} and v{second} are of different kinds; choose two versions of one kind")


def _weeks(visit: Visit, problem: str, versions: set[int]) -> "list[CohortRow]":
    """Realised scores of both versions in production, as they were counted last, the newest week first."""
    cohorts = settings.ledger(visit.layout).cohorts(problem, most_rows=MOST_ROWS)
    return [production_section.weekly(each) for each in reversed(cohorts) if each.version in versions][:SHOWN_WEEKS]


def _run(registry: "Registry", version: "Version") -> Run:
    try:
        page = registry.run_page(version)
    except EvergreenError:  # the run was deleted, or its server is away: the figures are those of the version
        page = ""
    return Run(version.version, page, version.tags.get("prefect.run"))


def _asked(visit: Visit, name: str, default: int, known: Sequence[int]) -> int:
    version = whole_number(name, visit.query.get(name, ""))
    if version is None:
        return default
    if version not in known:
        raise ParamsError(f"{name} = {version}: no registered version; there are {', '.join(f'v{each}' for each in known)}")
    return version


def _figures(one: "Version", two: "Version") -> list[Pair]:
    """The metrics of both, each as it was evaluated, with its interval."""
    names = [
        name for name in {**one.metrics, **two.metrics} if not name.endswith(ENDS) and not name.startswith((LADDER, *COSTS))
    ]
    return [Pair(formatting.label(name), _shown(one.metrics, name), _shown(two.metrics, name)) for name in sorted(names)]


def _ladder(one: "Version", two: "Version") -> list[Pair]:
    """The models that each search tried, with their validated scores."""
    names = {name for name in {**one.metrics, **two.metrics} if name.startswith(LADDER) and not name.endswith(ENDS)}
    return [Pair(name.removeprefix(LADDER), _shown(one.metrics, name), _shown(two.metrics, name)) for name in sorted(names)]


def _costs(one: "Version", two: "Version") -> list[Pair]:
    """What training them cost, step by step."""
    found: list[Pair] = []
    for name in sorted({**one.metrics, **two.metrics}):
        what, _, step = name.partition(".")
        if what in COSTS and step:
            found.append(Pair(f"{COSTS[what]} {step}", _shown(one.metrics, name), _shown(two.metrics, name)))
    return found


def _shown(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return formatting.MISSING
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    interval = "" if low is None or high is None else f" [{formatting.number(low)}, {formatting.number(high)}]"
    return f"{formatting.number(metrics[name])}{interval}"


def _differences(one: Mapping[str, str], two: Mapping[str, str]) -> list[Pair]:
    """What differs in model, data, params and code."""
    found: list[Pair] = []
    for name in sorted({*one, *two}):
        if one.get(name) == two.get(name) or name.startswith((*OUTCOMES, "prefect.run")):
            continue
        left, right = one.get(name, ""), two.get(name, "")
        if name == "params":
            found += _nested(left, right)
        else:
            found.append(Pair(name, left[:200], right[:200]))
    return found


def _nested(left: str, right: str) -> list[Pair]:
    """The leaves of two JSON objects that differ."""
    import json

    one, two = (dict(_leaves(json.loads(text or "{}"))) for text in (left, right))
    names = [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
    return [Pair(f"params: {name}", str(one.get(name, ""))[:200], str(two.get(name, ""))[:200]) for name in names]


def _leaves(value: Any, path: str = "") -> "list[tuple[str, Any]]":
    if not isinstance(value, dict):
        return [(path, value)]
    items: Any = value.items()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    return [leaf for name, each in items for leaf in _leaves(each, f"{path}.{name}" if path else str(name))]


def _verdicts(visit: Visit, problem: str, versions: set[int]) -> list[str]:
    """What the gate said of them, the newest first."""
    history = settings.deployments(visit.layout).history(problem)
    said = [each for each in history if each.version in versions and each.action in ("deploy", "refuse", "begin")]
    return [f"v{each.version}, {each.at:%Y-%m-%d %H:%M}: {each.reason}" for each in reversed(said)]
