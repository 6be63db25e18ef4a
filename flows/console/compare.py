"""Two versions side by side: figures, what they were made from, and the rows on which they differ most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from evergreen.flows import settings
from evergreen.flows.console import trial
from evergreen.flows.console.visits import NotFoundError, Visit
from evergreen.monitoring.report import formatting
from evergreen.tasks.core.errors import EvergreenError, ParamsError, RequestError

if TYPE_CHECKING:
    from evergreen.serving.loaded_model import RowModel
    from evergreen.tasks.release.mlflow_store import Version

ROWS = 2_000
"""Most predictions of the ledger that both versions predict again, the newest."""
DAYS = 28
SHOWN = 15
ENDS = ("_low", "_high", "_baseline")
"""Of the registry's names of a metric's further numbers."""


@dataclass(frozen=True)
class Figure:
    label: str
    first: str
    second: str


@dataclass(frozen=True)
class Difference:
    name: str
    first: str
    second: str


@dataclass(frozen=True)
class Disagreement:
    id: str
    entity: str | None
    first: Any
    second: Any
    gap: float


@dataclass(frozen=True)
class Disagreements:
    rows: int
    """Rows that both predicted."""
    mean_gap: float
    changed: int
    """Rows with another predicted class; of numbers, with another number."""
    largest: list[Disagreement]
    correlation: float | None


def show(visit: Visit) -> Response:
    problem = visit.problem
    known = sorted((each.version for each in settings.registry(visit.layout).versions(problem)), reverse=True)
    if not known:
        raise NotFoundError(f"{problem}: no version is registered yet; run evergreen train {problem}")
    champion = settings.deployments(visit.layout).champion(problem) or known[0]
    rest = [each for each in known if each != champion]
    first, second = _asked(visit, "a", champion, known), _asked(visit, "b", rest[0] if rest else champion, known)
    registry = settings.registry(visit.layout)
    one, two = registry.version(problem, first), registry.version(problem, second)
    if one is None or two is None:
        raise NotFoundError(f"{problem}: v{first if one is None else second} is not registered; choose another version")
    rows, line = None, None
    if "rows" in visit.query and first != second:
        try:
            rows = _disagreements(visit, problem, first, second)
        except EvergreenError as error:
            line = str(error)
    return visit.render(
        "compare.html",
        problem=problem,
        known=known,
        first=first,
        second=second,
        champion=champion,
        figures=_figures(one, two),
        differences=_differences(one.tags, two.tags),
        rows=rows,
        line=line,
        verdicts=_verdicts(visit, problem, {first, second}),
    )


def _asked(visit: Visit, name: str, default: int, known: Sequence[int]) -> int:
    text = visit.query.get(name, "").removeprefix("v")
    if not text:
        return default
    if not text.isdigit() or int(text) not in known:
        raise ParamsError(f"{name} = {text[:20]!r}: no registered version; there are {', '.join(f'v{each}' for each in known)}")
    return int(text)


def _figures(one: "Version", two: "Version") -> list[Figure]:
    """The metrics of both, each as it was evaluated, with its interval."""
    names = [name for name in {**one.metrics, **two.metrics} if not name.endswith(ENDS)]
    return [Figure(formatting.label(name), _shown(one.metrics, name), _shown(two.metrics, name)) for name in sorted(names)]


def _shown(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return formatting.MISSING
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    interval = "" if low is None or high is None else f" [{formatting.number(low)}, {formatting.number(high)}]"
    return f"{formatting.number(metrics[name])}{interval}"


def _differences(one: Mapping[str, str], two: Mapping[str, str]) -> list[Difference]:
    """What differs in model, data, params and code."""
    found = []
    for name in sorted({*one, *two}):
        if one.get(name) == two.get(name):
            continue
        left, right = one.get(name, ""), two.get(name, "")
        if name == "params":
            found += _nested(left, right)
        else:
            found.append(Difference(name, left[:200], right[:200]))
    return found


def _nested(left: str, right: str) -> list[Difference]:
    """The leaves of two JSON objects that differ."""
    import json

    one, two = (dict(_leaves(json.loads(text or "{}"))) for text in (left, right))
    names = [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
    return [Difference(f"params: {name}", str(one.get(name, ""))[:200], str(two.get(name, ""))[:200]) for name in names]


def _leaves(value: Any, path: str = "") -> "list[tuple[str, Any]]":
    if not isinstance(value, dict):
        return [(path, value)]
    return [leaf for name, each in value.items() for leaf in _leaves(each, f"{path}.{name}" if path else str(name))]


def _verdicts(visit: Visit, problem: str, versions: set[int]) -> list[str]:
    """What the gate said of them, the newest first."""
    history = settings.deployments(visit.layout).history(problem)
    said = [each for each in history if each.version in versions and each.action in ("deploy", "refuse", "begin")]
    return [f"v{each.version}, {each.at:%Y-%m-%d %H:%M}: {each.reason}" for each in reversed(said)]


def _disagreements(visit: Visit, problem: str, first: int, second: int) -> Disagreements:
    """Both versions on the newest rows of the ledger. Raises ParamsError for a recommender, and without rows."""
    import numpy as np

    from evergreen.serving.loaded_model import RowModel

    models = [trial.loaded(visit.layout, problem, each) for each in (first, second)]
    models = [each for each in models if isinstance(each, RowModel)]
    if len(models) < 2:
        raise ParamsError(f"{problem}: lists have no rows to compare; try both versions with one user instead")
    ledger = settings.ledger(visit.layout)
    latest = ledger.latest(problem)
    if latest is None:
        raise ParamsError(f"{problem}: the ledger has no predictions yet")
    found = ledger.read(problem, since=latest - timedelta(days=DAYS), labels=False)
    heads = found.rows.select("id", "entity").tail(ROWS).rows()
    features = [trial.as_json(each) for each in found.features.tail(ROWS).iter_rows(named=True)]
    left, right = (_predict(each, features) for each in models)
    both = [place for place in range(len(heads)) if left[place] is not None and right[place] is not None]
    if not both:
        raise ParamsError(f"{problem}: none of the newest {len(heads)} rows fits both versions: their features differ")
    numbers = np.array([[_number(left[each]), _number(right[each])] for each in both])
    gaps = np.abs(numbers[:, 0] - numbers[:, 1])
    order = np.argsort(-gaps, kind="stable")[:SHOWN]
    largest = [_disagreement(heads[both[at]], *numbers[at].tolist()) for at in order if gaps[at] > 0]
    changed = sum(left[each]["prediction"] != right[each]["prediction"] for each in both)  # type: ignore[index]
    spread = numbers.std(axis=0).min() > 0
    correlation = float(np.corrcoef(numbers.T)[0, 1]) if spread and len(both) > 2 else None
    return Disagreements(len(both), float(gaps.mean()), changed, largest, correlation)


def _disagreement(head: tuple[Any, ...], first: float, second: float) -> Disagreement:
    id_, entity = head
    return Disagreement(id_, entity, first, second, abs(first - second))


def _predict(model: "RowModel", rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
    """The output for each row; None for one that the version does not accept."""
    parsed = []
    for row in rows:
        try:
            parsed.append(model.parse({name: row.get(name) for name in model.features}))
        except RequestError:
            parsed.append(None)
    outputs = iter(model.predict([each for each in parsed if each]))
    return [next(outputs) if each else None for each in parsed]


def _number(output: Mapping[str, Any] | None) -> float:
    """The probability of the last class, the predicted amount, or the group."""
    assert output is not None
    probabilities = [name for name in output if name != "prediction"]
    value = output[probabilities[-1]] if probabilities else output["prediction"]
    return float(value)
