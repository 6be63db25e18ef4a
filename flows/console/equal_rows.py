"""Two versions on the same rows: the newest of the ledger, predicted again by both."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evergreen.flows import settings
from evergreen.flows.console import trial
from evergreen.flows.console.visits import Visit
from evergreen.monitoring.report import charts, formatting
from evergreen.monitoring.report.charts import Chart
from evergreen.tasks.core.errors import ParamsError, RequestError

if TYPE_CHECKING:
    import polars as pl

    from evergreen.monitoring.ledger.predictions import Ledger, Predictions
    from evergreen.serving.loaded_model import ParsedRow, RowModel
    from evergreen.tasks.core.intervals import Interval

ROWS = 2_000
"""Most predictions of the ledger that are predicted again, the newest."""
DAYS = 91
"""They are no older than so many days, counted from the newest."""
SHOWN = 15
GROUPS = 40
"""Groups of entities that are left out in turn for the interval of a gain."""
DECIDED = ("accuracy", "precision", "recall", "f1")
"""Metrics of the predicted class alone: both versions differ in them by the rows whose class changed."""
MIN_CHANGED = 10
"""Fewest entities with another predicted class for the interval of such a gain; chosen by simulation."""
MIN_LABELS = 30
"""Fewest labels that scores are compared on."""


@dataclass(frozen=True)
class Gain:
    """One metric of both versions on the rows with a label, and how much better the second is."""

    label: str
    first: str
    second: str
    gain: str
    """With its interval, over entities."""


@dataclass(frozen=True)
class Disagreement:
    id: str
    entity: str | None
    first: float
    second: float
    gap: float


@dataclass(frozen=True)
class EqualRows:
    rows: int
    """Rows that both predicted."""
    labels: int
    mean_gap: float
    changed: int
    """Rows with another predicted class; of numbers, with another number."""
    correlation: float | None
    largest: list[Disagreement]
    gains: list[Gain] = field(default_factory=list[Gain])
    calibration: Chart | None = None


def compare(visit: Visit, problem: str, first: "RowModel", second: "RowModel") -> EqualRows:
    """Raises ParamsError where the ledger has no rows that both versions accept."""
    import numpy as np

    models = first, second
    found = _newest(settings.ledger(visit.layout), problem)
    rows, features = found.rows, [trial.as_json(each) for each in found.features.iter_rows(named=True)]
    outputs = [_predict(each, features) for each in models]
    both = [place for place in range(rows.height) if all(each[place] for each in outputs)]
    if not both:
        raise ParamsError(f"{problem}: none of the newest {rows.height} rows fits both versions: their features differ")
    rows, left, right = rows[both], [outputs[0][each] for each in both], [outputs[1][each] for each in both]
    numbers = np.array([[_number(one), _number(other)] for one, other in zip(left, right, strict=True)])
    gaps = np.abs(numbers[:, 0] - numbers[:, 1])
    order = [int(each) for each in np.argsort(-gaps, kind="stable")[:SHOWN] if gaps[each] > 0]
    ids, entities = rows["id"].to_list(), rows["entity"].to_list()
    gains, calibration, labels = _scores(visit, problem, rows, {f"v{first.version}": left, f"v{second.version}": right})
    return EqualRows(
        rows=rows.height,
        labels=labels,
        mean_gap=float(gaps.mean()),
        changed=sum(one["prediction"] != other["prediction"] for one, other in zip(left, right, strict=True)),
        correlation=float(np.corrcoef(numbers.T)[0, 1]) if len(both) > 2 and numbers.std(axis=0).min() > 0 else None,
        largest=[
            Disagreement(ids[each], entities[each], float(numbers[each, 0]), float(numbers[each, 1]), float(gaps[each]))
            for each in order
        ],
        gains=gains,
        calibration=calibration,
    )


def _newest(ledger: "Ledger", problem: str) -> "Predictions":
    """The newest predictions that have labels; where few have, the newest of all."""
    from evergreen.monitoring.ledger import lookup

    found = lookup.read_newest(ledger, problem, DAYS, ROWS, labelled=True)
    if found.rows.height < MIN_LABELS:
        found = lookup.read_newest(ledger, problem, DAYS, ROWS, labelled=False)
    if found.rows.is_empty():
        raise ParamsError(f"{problem}: the ledger has no predictions yet")
    return found


def _predict(model: "RowModel", rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The output for each row; an empty one where the version does not accept it."""
    parsed: list[ParsedRow | None] = []
    for row in rows:
        try:
            parsed.append(model.parse({name: row.get(name) for name in model.features}))
        except RequestError:
            parsed.append(None)
    known = [each for each in parsed if each]
    outputs = iter(model.predict(known) if known else [])
    return [next(outputs) if each else {} for each in parsed]


def _number(output: Mapping[str, Any]) -> float:
    """The probability of the last class, the predicted amount, or the number of the group."""
    probabilities = [name for name in output if name != "prediction"]
    return float(output[probabilities[-1]] if probabilities else output["prediction"])


def _scores(
    visit: Visit, problem: str, rows: "pl.DataFrame", outputs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[Gain], Chart | None, int]:
    """The metrics of both on the rows with a label, the calibration where there is one, and the number of labels."""
    import polars as pl

    from evergreen.monitoring.ledger.predictions import Predictions
    from evergreen.monitoring.performance.scoring import to_scorable
    from evergreen.tasks import problems
    from evergreen.tasks.problems.prediction_type import Labelled

    kind, section = problems.predictions(visit.params.kind(problem)), visit.params.section(problem)
    known = rows["label"].is_not_null()
    if not isinstance(kind, Labelled) or known.sum() < MIN_LABELS:
        return [], None, int(known.sum()) if isinstance(kind, Labelled) else 0
    head = rows.select("id", "version", "variant", "at", "cutoff", "entity", "label", "label_at")
    frames: list[pl.DataFrame] = []
    for each in outputs.values():
        predicted: Predictions = Predictions(head.hstack(pl.DataFrame(list(each))).filter(known), pl.DataFrame())
        frames.append(to_scorable(kind, section, predicted).filter(pl.col("label").is_not_null()))
    if any(frame.height < MIN_LABELS for frame in frames):
        return [], None, frames[0].height
    one, two = frames
    gains = [_shown(each) for each in measure_gains(kind, section, one, two, visit.params.project.seed)]
    return gains, _calibration(kind, dict(zip(outputs, frames, strict=True))), frames[0].height


@dataclass(frozen=True)
class MeasuredGain:
    """One metric of both versions on the same rows."""

    name: str
    first: float
    second: float
    gain: float
    """How much better the second is."""
    interval: "Interval"


def measure_gains(kind: Any, section: Any, one: "pl.DataFrame", two: "pl.DataFrame", seed: int) -> Iterator[MeasuredGain]:
    """Of each metric that is defined on `one` and `two`, the rows of both versions as `to_scorable` gives them."""
    from evergreen.tasks.core import intervals

    scores = kind.score(one, section), kind.score(two, section)
    parts = [
        (kind.score(left, section), kind.score(right, section)) for left, right in intervals.leave_out([one, two], seed, GROUPS)
    ]
    changed = _changed_entities(one, two) if kind.target == "class" else one.height
    for metric in kind.metrics:
        first, second = (each.get(metric.name, math.nan) for each in scores)
        if not (math.isfinite(first) and math.isfinite(second)):
            continue
        gain = metric.gain(second, first)
        without = [metric.gain(right[metric.name], left[metric.name]) for left, right in parts if metric.name in left]
        interval = intervals.interval(gain, without, section.evaluate.confidence)
        if metric.name in DECIDED and changed < MIN_CHANGED:
            interval = intervals.too_few(f"entities with another predicted class: {changed} of at least {MIN_CHANGED}")
        yield MeasuredGain(metric.name, first, second, gain, interval)


def _changed_entities(one: "pl.DataFrame", two: "pl.DataFrame") -> int:
    """Entities with a row whose predicted class differs."""
    from evergreen.tasks.problems.classification import scores

    left, right = (scores.decisions(each) for each in (one, two))
    return one.filter(left != right)["entity"].n_unique()


def _shown(each: MeasuredGain) -> Gain:
    low, high, why = each.interval
    within = f"({why})" if why else f"[{formatting.number(low)}, {formatting.number(high)}]"
    first, second = (formatting.number(score) for score in (each.first, each.second))
    return Gain(formatting.label(each.name), first, second, f"{formatting.signed(each.gain)} {within}")


def _calibration(kind: Any, frames: "Mapping[str, pl.DataFrame]") -> Chart | None:
    """Of a classifier, one line per version."""
    import polars as pl

    if kind.target != "class":
        return None
    from evergreen.tasks.problems.classification import plots

    drawn: list[pl.DataFrame] = []
    for version, frame in frames.items():
        table = plots.draw(frame, frame)["calibration"]
        if "predicted" in table.columns:
            drawn.append(table.with_columns(pl.col("series").str.replace("model", version)))
    return charts.draw("calibration", pl.concat(drawn)) if len(drawn) > 1 else None
