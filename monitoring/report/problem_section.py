"""The section of the page about one problem: scores, charts, slices, search, costs and lineage."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.monitoring.report import charts, formatting, production_section
from evergreen.monitoring.report.charts import Chart
from evergreen.monitoring.report.left_out import Attempts
from evergreen.monitoring.report.production_section import Production, ProductionRecords
from evergreen.monitoring.report.step_costs import Cost, step_costs
from evergreen.monitoring.report.step_files import read, read_csv
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout

log = logging.getLogger(__name__)

VERDICTS = {
    "better": "Better than its baseline",
    "worse": "Worse than its baseline",
    "cannot tell": "Cannot be told from its baseline",
    "same": "Its baseline",
    "unknown": "Not judged yet",
}


SLICES = "For whom it is better and worse"


@dataclass(frozen=True)
class Bar:
    """Places on a line from 0 to 100: an interval, its score, and what it is compared with."""

    low: float | None
    score: float | None
    high: float | None
    reference: float | None = None


@dataclass(frozen=True)
class Score:
    """One metric of the model beside its baseline, as text and as places on a line."""

    name: str
    label: str
    meaning: str | None
    greater_is_better: bool
    score: str
    low: str
    high: str
    baseline: str
    gain: str
    gain_low: str
    gain_high: str
    standing: str
    bar: Bar
    places: int
    """Decimals that the interval lets one speak of."""
    why: str = ""
    """Why the score has no interval."""


@dataclass(frozen=True)
class Slice:
    value: str
    rows: int | None
    score: str
    low: str
    high: str
    bar: Bar


@dataclass(frozen=True)
class Search:
    """What tuning tried and what it gained."""

    method: str
    trials: int
    failed: int
    seconds: float | None
    metric: str
    best: str
    default: str | None
    gain: str | None
    """Gain over the best default."""
    models: list[tuple[str, str, int, bool]]
    """Model, its best score, its number of trials, whether it was chosen."""
    chart: Chart | None
    pareto: Chart | None = None
    """Quality against cost of each trial, where that was measured."""
    why: str | None = None
    """Why the chosen one was chosen."""
    cpu: float | None = None
    """CPU seconds of that gain."""
    nested: tuple[str, str] | None = None
    """Score of the nested cross-validation, and by how much the tuned one flatters itself."""
    ladder: list[tuple[str, str, str, str, str, bool]] = field(default_factory=list)
    """Model from simple to complex, score, interval, how far the best is ahead with its standard error, number judged, whether
    it was chosen."""


@dataclass(frozen=True)
class Answer:
    """All the page says about one problem."""

    name: str
    kind: str
    question: str
    status: str
    """deployed, trained or missing."""
    standing: str
    champion: Mapping[str, Any] | None = None
    model: str | None = None
    baseline: str | None = None
    primary: Score | None = None
    scores: list[Score] = field(default_factory=list)
    evaluation: Mapping[str, Any] | None = None
    windows: list[dict[str, Any]] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    importance: list[tuple[str, str, float]] = field(default_factory=list)
    importance_left_out: int = 0
    slices: list[tuple[str, list[Slice]]] = field(default_factory=list)
    search: Search | None = None
    costs: list[Cost] = field(default_factory=list)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Mapping[str, Any] | None = None
    diagnosis_charts: list[Chart] = field(default_factory=list)
    """The curves of the diagnosis."""
    explanation: Mapping[str, Any] | None = None
    reasons: list[Chart] = field(default_factory=list)
    """What it leans on, what moves an answer, and how."""
    production: Production | None = None
    newer: bool = False
    """Whether the scores are those of a candidate that is not the champion."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Title of a part that failed -> the reason."""

    @property
    def verdict(self) -> str:
        return VERDICTS[self.standing]


def answer(
    name: str, params: Params, layout: Layout, champion: Mapping[str, Any] | None, records: ProductionRecords | None
) -> Answer:
    """All that the page shows of the problem `name`; see page.build. A part that fails is left out, with its reason."""
    tried = Attempts(name)
    bare = Answer(
        name, params.kind(name), params.section(name).question, "deployed" if champion else "missing", "unknown", champion
    )
    found = tried.get("the problem", bare, _answer, name, params, layout, champion, tried)
    produced = tried.get("In production", None, production, layout, name, records)
    return replace(found, production=produced, left_out=tried.reasons)


def _answer(name: str, params: Params, layout: Layout, champion: Mapping[str, Any] | None, tried: Attempts) -> Answer:
    section, kind = params.section(name), params.kind(name)
    evaluation = read(layout.report(name) / "evaluation" / "evaluation.json")
    card = read(layout.model(name) / "model.json") or {}
    none: list[Any] = []
    found = Answer(
        name=name,
        kind=kind,
        question=section.question,
        status="deployed" if champion else "missing",
        standing="unknown",
        champion=champion,
        model=tried.get("the model", None, lambda: (card.get("config") or {}).get("model")),
        search=tried.get("How it was found", None, _search, layout, name, evaluation),
        costs=tried.get("What it cost", none, step_costs, layout, name),
        lineage=tried.get("What it was made from", {}, _lineage, champion, card),
    )
    if not evaluation:
        return found
    scores: list[Score] = tried.get("Performance", none, lambda: [_score(each) for each in _metrics(evaluation)])
    primary = next((each for each in scores if each.name == evaluation.get("primary")), scores[0] if scores else None)
    importance, left_out = tried.get("Feature importance", (none, 0), _importance, card.get("importance") or {})
    is_baseline = evaluation.get("model") == evaluation.get("baseline")
    advice = ("learning_curve", "validation_curve_1", "validation_curve_2", "bias_variance")
    reasons = tried.get("Feature importance", none, _charts, layout, name, "explanation", ("permutation", "contributions"))
    return replace(
        found,
        status="deployed" if champion else "trained",
        standing="same" if is_baseline else primary.standing if primary else "unknown",
        model=evaluation.get("model"),
        baseline=evaluation.get("baseline"),
        primary=primary,
        scores=scores,
        evaluation=evaluation,
        windows=tried.get("Window by window", none, _windows, evaluation, primary),
        charts=tried.get("Charts", none, _charts, layout, name, "plots", None, str(evaluation.get("primary"))),
        importance=importance,
        importance_left_out=left_out,
        slices=tried.get(SLICES, none, _slices, evaluation, primary),
        newer=tried.get("the newest candidate", False, _newer, champion, evaluation),
        diagnosis=read(layout.report(name) / "diagnosis" / "diagnosis.json"),
        diagnosis_charts=tried.get("The next step", none, _charts, layout, name, "diagnosis", advice),
        explanation=read(layout.report(name) / "explanation" / "explanation.json"),
        reasons=[*reasons, *tried.get("Partial dependence", none, _dependence, layout, name)],
    )


def production(layout: Layout, name: str, records: ProductionRecords | None) -> Production | None:
    """The section about its production; None where nothing is known of it."""
    found = production_section.build(
        name, records or ProductionRecords(), read(layout.report(name) / "backtest" / "backtest.json")
    )
    drift = found and found.drift
    if not found or not drift or (drift.report and (layout.page.parent / drift.report).is_file()):
        return found
    return replace(found, drift=replace(drift, report=None))


def _newer(champion: Mapping[str, Any] | None, evaluation: Mapping[str, Any]) -> bool:
    """Whether the champion was judged by another score on the last test window than the model evaluated now."""
    verdict = (champion or {}).get("verdict") or {}
    windows = evaluation.get("windows") or [{}]
    now, then = (windows[-1].get("scores") or {}).get(verdict.get("metric")), verdict.get("candidate")
    return now is not None and then is not None and not math.isclose(now, then, rel_tol=1e-6)


def _metrics(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The metric that the gate judges by, then the others, without those that are undefined for these data."""
    known = [
        each
        for each in evaluation.get("metrics", [])
        if not (formatting.absent(each.get("score")) and formatting.absent(each.get("baseline")))
    ]
    return sorted(known, key=lambda metric: metric["name"] != evaluation.get("primary"))


def _score(metric: Mapping[str, Any]) -> Score:
    name = metric["name"]
    score, low, high, baseline = (metric.get(key) for key in ("score", "low", "high", "baseline"))
    gain, gain_low, gain_high = (metric.get(key) for key in ("gain", "gain_low", "gain_high"))
    places = formatting.seen(
        formatting.digits(*((score, high) if not formatting.absent(high) else (score, baseline))), score, baseline
    )
    finer = places if formatting.absent(gain_low) else formatting.digits(gain_low, gain_high)
    return Score(
        name=name,
        label=formatting.label(name),
        meaning=formatting.meaning(name),
        greater_is_better=bool(metric.get("greater_is_better", True)),
        score=formatting.number(score, places),
        low=formatting.number(low, places),
        high=formatting.number(high, places),
        baseline=formatting.number(baseline, places),
        gain=formatting.signed(gain, finer),
        gain_low=formatting.number(gain_low, finer),
        gain_high=formatting.number(gain_high, finer),
        standing=_standing(gain_low, gain_high),
        bar=_bar(low, score, high, baseline, _span((low, score, high, baseline))),
        places=places,
        why=str(metric.get("no_interval", "")),
    )


def _standing(low: float | None, high: float | None) -> str:
    """What the interval of a gain says."""
    if low is None or high is None or formatting.absent(low) or formatting.absent(high):
        return "unknown"
    return "better" if low > 0 else "worse" if high < 0 else "cannot tell"


def _span(values: Iterable[float | None]) -> tuple[float, float]:
    """An axis that holds all of `values` with some air."""
    known = [float(each) for each in values if each is not None and not formatting.absent(each)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    air = 0.12 * (high - low) or abs(high) * 0.1 or 1.0
    return low - air, high + air


def _bar(low: float | None, score: float | None, high: float | None, reference: float | None, span: tuple[float, float]) -> Bar:
    def place(value: float | None) -> float | None:
        if value is None or formatting.absent(value):
            return None
        return round(min(max(100 * (value - span[0]) / (span[1] - span[0]), 0.0), 100.0), 2)

    return Bar(place(low), place(score), place(high), place(reference))


def _windows(evaluation: Mapping[str, Any], primary: Score | None) -> list[dict[str, Any]]:
    """One row per test window: the primary score beside the baseline's, and all other metrics."""
    windows = evaluation.get("windows") or []
    if not primary:
        return []
    pairs = [((each.get("scores") or {}).get(primary.name), (each.get("baseline") or {}).get(primary.name)) for each in windows]
    flat = [value for pair in pairs for value in pair]
    span, places = _span(flat), primary.places
    return [
        {
            "cutoff": each.get("cutoff"),
            "learned": len(each.get("trained_on") or ()),
            "rows": each.get("rows"),
            "score": formatting.number(score, places),
            "baseline": formatting.number(baseline, places),
            "bar": _bar(None, score, None, baseline, span),
            "all": [
                (
                    formatting.number((each.get("scores") or {}).get(metric["name"])),
                    formatting.number((each.get("baseline") or {}).get(metric["name"])),
                )
                for metric in _metrics(evaluation)
            ],
        }
        for each, (score, baseline) in zip(windows, pairs, strict=True)
    ]


def _small(values: Sequence[float | None]) -> bool:
    return all(each is None or formatting.absent(each) or abs(each) < 10 for each in values)


def _charts(
    layout: Layout, name: str, folder: str = "plots", only: Sequence[str] | None = None, primary: str = ""
) -> list[Chart]:
    """One per table in a folder of the problem's report; of all, or of those called `only`. `primary`: name of the metric."""
    drawn = []
    for path in sorted((layout.report(name) / folder).glob("*.csv")):
        table = read_csv(path) if only is None or path.stem in only else None
        if table is not None and table.height:
            drawn.append(charts.draw(path.stem, table))
    return sorted(drawn, key=lambda chart: (charts.order(chart.name, primary), chart.name))


def _dependence(layout: Layout, name: str) -> list[Chart]:
    """One chart per column, the most important first."""
    path = layout.report(name) / "explanation" / "dependence.csv"
    table = read_csv(path) if path.is_file() else None
    if table is None or not table.height:
        return []
    table = table.with_columns(pl.col("column", "output", "value").cast(pl.String), pl.col("x").cast(pl.Float64))
    parts = table.partition_by("column", maintain_order=True)
    titles = [formatting.plain(str(part["column"][0])) for part in parts]
    return [charts.attempt("dependence", title, charts.dependence, part) for title, part in zip(titles, parts, strict=True)]


def _importance(importance: Mapping[str, float], most: int = 10) -> tuple[list[tuple[str, str, float]], int]:
    """Feature, its share of the whole as text, and as places of 100 of the largest; and how many are left out."""
    known = {name: abs(value) for name, value in importance.items() if not formatting.absent(value) and value}
    ranked = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    whole = math.fsum(known.values())
    rows = [(name, formatting.share(value / whole), round(100 * value / ranked[0][1], 2)) for name, value in ranked[:most]]
    return rows, len(ranked) - len(rows)


def _slices(evaluation: Mapping[str, Any], primary: Score | None) -> list[tuple[str, list[Slice]]]:
    """Feature -> its slices, all on one axis with the score over all rows."""
    found = evaluation.get("slices") or []
    if not found or not primary:
        return []
    overall = next((each.get("score") for each in evaluation["metrics"] if each["name"] == primary.name), None)
    span = _span([value for each in found for value in (each.get("low"), each.get("high"), each.get("score"))] + [overall])
    grouped: dict[str, list[Slice]] = {}
    for each in found:
        low, score, high = each.get("low"), each.get("score"), each.get("high")
        places = formatting.digits(score, high) if not formatting.absent(high) else 3
        row = Slice(
            value=str(each.get("value")),
            rows=each.get("rows"),
            score=formatting.number(score, places),
            low=formatting.number(low, places),
            high=formatting.number(high, places),
            bar=_bar(low, score, high, overall, span),
        )
        grouped.setdefault(str(each.get("feature")), []).append(row)
    return list(grouped.items())


def _search(layout: Layout, name: str, evaluation: Mapping[str, Any] | None) -> Search | None:
    best = read(layout.tuning(name) / "best.json")
    if not best:
        return None
    trials = _trials(layout.tuning(name) / "trials.parquet")
    metric = str(best.get("metric"))
    greater = _greater(metric, evaluation, trials, best)
    scored = trials.filter(pl.col("score").is_not_null() & pl.col("score").is_not_nan()) if trials.height else trials
    default = _best_default(scored, greater)
    known = [best.get("score"), *(best.get("models") or {}).values()]
    places = max(formatting.digits(*known), 3 if _small(known) else 1)
    counts = dict(trials.group_by("model").len().iter_rows()) if trials.height else {}
    models = sorted(
        {**dict.fromkeys(counts), **(best.get("models") or {})}.items(),
        key=lambda item: (formatting.absent(item[1]), -(item[1] or 0) if greater else item[1] or 0),
    )
    gain = (
        0.0
        if default is None or formatting.absent(best.get("score"))
        else (best["score"] - default[1]) * (1 if greater else -1)
    )
    told = best.get("search_gain") or {}
    gain = told.get("gain", gain)
    nested = best.get("nested") or {}
    optimism = nested.get("optimism")
    return Search(
        method=str(best.get("method")),
        trials=int(best.get("trials") or trials.height),
        failed=trials.height - scored.height,
        seconds=best.get("seconds"),
        metric=metric,
        best=formatting.number(best.get("score"), places),
        default=None if default is None else f"{default[0]} {formatting.number(default[1], places)}",
        gain=formatting.number(gain, formatting.seen(places, gain)) if gain > 0 else None,
        cpu=told.get("cpu_seconds"),
        why=(best.get("chosen") or {}).get("why"),
        nested=None
        if optimism is None
        else (formatting.number(nested.get("score"), places), formatting.number(optimism, places + 1)),
        pareto=_pareto(
            name, layout.tuning(name) / "trials.parquet", formatting.label(metric), (evaluation or {}).get("baseline")
        ),
        models=[
            (model, formatting.number(score, places), counts.get(model, 0), model == best.get("model"))
            for model, score in models
        ],
        ladder=[_rung(each, best.get("model"), places) for each in best.get("ladder") or []],
        chart=charts.attempt(
            "search", "The search", charts.search, scored, formatting.label(metric), greater, (evaluation or {}).get("baseline")
        )
        if scored.height > 1
        else None,
    )


def _rung(each: Mapping[str, Any], chosen: Any, places: int) -> tuple[str, str, str, str, str, bool]:
    within = f"{formatting.number(each['low'], places)} to {formatting.number(each['high'], places)}"
    ahead = (
        ""
        if not each["behind"]
        else f"{formatting.number(each['behind'], places)} ± {formatting.number(each['error'], places)}"
    )
    score = formatting.number(each["score"], places)
    return each["model"], score, within, ahead, f"{each['units']:,}", each["model"] == chosen


def _trials(path: Path) -> pl.DataFrame:
    """Trials in the order of their numbers; no rows where the file is not there or not what it should be."""
    try:
        return (
            pl.read_parquet(path, columns=["number", "model", "score"])
            .sort("number")
            .with_columns(pl.col("score").cast(pl.Float64))
        )
    except FileNotFoundError:
        pass
    except (OSError, pl.exceptions.PolarsError) as error:
        log.warning("page: %s cannot be read, so the page leaves it out: %s", path, error)
    return pl.DataFrame(schema={"number": pl.Int64, "model": pl.String, "score": pl.Float64})


def _pareto(name: str, path: Path, metric: str, baseline: str | None) -> Chart | None:
    """Quality against the time of an answer; None where the search did not measure it."""
    try:
        trials = pl.read_parquet(path, columns=["model", "score", "latency_ms", "front", "chosen"])
    except (OSError, pl.exceptions.PolarsError):
        return None
    known = trials.rename({"latency_ms": "cost"}).filter(pl.col("score").is_not_null() & (pl.col("cost") > 0))
    return charts.attempt("pareto", "Quality and cost", charts.pareto, known, metric, baseline) if known.height > 1 else None


def _greater(metric: str, evaluation: Mapping[str, Any] | None, trials: pl.DataFrame, best: Mapping[str, Any]) -> bool:
    """Whether more of the search's metric is better: as evaluated, else by which end of the trials was chosen."""
    for each in (evaluation or {}).get("metrics", []):
        if each["name"] == metric:
            return bool(each.get("greater_is_better", True))
    lowest = trials["score"].drop_nulls().drop_nans().min()
    return lowest is None or best.get("score") != lowest


def _best_default(trials: pl.DataFrame, greater: bool) -> tuple[str, float] | None:
    """The best of the models as they come: the first trial of each is its default."""
    if not trials.height:
        return None
    firsts = trials.sort("number").group_by("model", maintain_order=True).first().sort("score", descending=greater)
    return firsts["model"][0], firsts["score"][0]


def _lineage(champion: Mapping[str, Any] | None, card: Mapping[str, Any]) -> dict[str, Any]:
    """What the champion was made from: its recorded lineage, then what the model's own card says."""
    told = {
        key: card[key] for key in ("cutoff", "rows", "trained_on", "features", "config") if card.get(key) not in (None, [], {})
    }
    recorded = dict((champion or {}).get("lineage") or {})
    return recorded | {
        f"model {key}" if key in recorded else key: value for key, value in told.items() if recorded.get(key) != value
    }
