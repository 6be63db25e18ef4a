"""Curves over time: scores of the monitoring windows, and of each policy of a backtest."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.monitoring.ledger.records import Decision
from evergreen.monitoring.report import formatting, vega
from evergreen.monitoring.report.charts import Chart
from evergreen.monitoring.report.marks import DASHED, STROKES, across, band, constant, interval, number, on, palette
from evergreen.monitoring.report.vega import BASELINE, BROAD, INK, MODEL, PAPER, SECOND, SERIES, Spec

HIGH = 260
DAY: Spec = {
    "field": "day",
    "type": "temporal",
    "title": None,
    "scale": {"type": "utc"},
    "axis": {"format": "%-d %b", "tickCount": 7},
}
KNOWN = {"filter": "isValid(datum.score)"}
SCORES = {"day": pl.String} | dict.fromkeys(("score", "low", "high"), pl.Float64)


def backtest(found: Mapping[str, Any]) -> Chart:
    """The quality of each policy from window to window. `found`: the content of backtest.json."""
    title = "Quality under each policy"
    caption = (
        "One line per policy (equal policies overlap), its band the 95 % interval over entities; a dot "
        "where a retraining was promoted, a hollow one where the gate kept the champion."
    )
    return Chart("backtest", title, caption, vega.render(title, *_policy_curves(found), HIGH, BROAD, grey="never"))


def save_backtest(found: Mapping[str, Any], path: Path) -> None:
    """The same as an SVG file."""
    vega.save(path, *_policy_curves(found), HIGH, grey="never")


def _policy_curves(found: Mapping[str, Any]) -> tuple[Spec, pl.DataFrame]:
    outcomes = found["outcomes"]
    rows = [
        {"policy": each["policy"], "promoted": step["promoted"], "width": 1.6 + 1.8 * (len(outcomes) - 1 - place)}
        | {"day": str(point["day"])[:10], **{name: point[name] for name in ("score", "low", "high")}}
        for place, each in enumerate(outcomes)  # each line narrower than the one before, which it may cover
        for point, step in zip(each["points"], each["steps"], strict=True)
    ]
    table = pl.DataFrame(rows, {"policy": pl.String, "promoted": pl.Boolean, "width": pl.Float64, **SCORES})
    width = {"field": "width", "type": "quantitative", "scale": None}
    dot = {"type": "point", "filled": False, "strokeWidth": 1.2}
    spec = {
        "transform": [KNOWN],
        "layer": [
            band(0.1),
            {"mark": "line", "encoding": {"size": width}},
            {"transform": [{"filter": "datum.promoted === true"}], "mark": dot | {"filled": True}},
            {"transform": [{"filter": "datum.promoted === false"}], "mark": dot | {"fill": PAPER}},
        ],
        "encoding": {
            "x": DAY,
            "y": number("score", formatting.label(found["metric"])),
            "color": {"field": "policy", "type": "nominal", "title": None, "legend": STROKES},
        },
    }
    return spec, table


def timeline(runs: Sequence[Decision], retrained: Sequence[date]) -> Chart | None:
    """Scores of the monitoring runs. `retrained`: the days of retrainings. None where no score is known."""
    scores = [row for each in runs for row in _scored(each)]
    if not scores:
        return None
    metric, title = formatting.label(_metric(runs)), "From week to week"
    caption = (
        f"{metric} of each window, realised and estimated; bands are 95 % intervals, the dashed "
        "line is the score in evaluation. Triangles: alarms of drift. Upright lines: retrainings."
    )
    alarms = [{"what": "alarm", "day": each.at.date().isoformat()} for each in runs if each.window.drift.alarm]
    events = [*alarms, *({"what": "retraining", "day": day.isoformat()} for day in retrained)]
    table = pl.DataFrame([*scores, *events], {"what": pl.String, **SCORES}).unique(["what", "day"], keep="last").sort("day")
    drawn = {name: colour for name, colour in COLOURS.items() if name in table["what"]}
    layers = TIMELINE if sum(bool(_scored(each)) for each in runs) > 1 else [*ONE_RUN, *TIMELINE]
    svg = vega.render(title, {"layer": layers, "encoding": _timeline_axes(metric, drawn)}, table, HIGH, BROAD)
    return Chart("timeline", title, caption, svg)


COLOURS = {"expected": BASELINE, "estimated": SERIES[2], "realised": MODEL, "alarm": SECOND}


def _only(what: str, mark: Spec, **encoding: Spec) -> Spec:
    return {"transform": [{"filter": f"datum.what == '{what}'"}], "mark": mark, "encoding": encoding}


BOUNDED: Spec = {"transform": [{"filter": "isValid(datum.low) && datum.what != 'expected'"}]}
TIMELINE: list[Spec] = [
    {**BOUNDED, **band(0.15)},
    _only("expected", {"type": "line", "interpolate": "step-after", **DASHED}),
    _only("estimated", {"type": "line", "point": {"size": 20}, "strokeWidth": 1.6}),
    _only("realised", {"type": "line", "point": {"size": 30}}),
    _only("alarm", {"type": "point", "shape": "triangle-up", "size": 60, "yOffset": -8}, y=constant("height")),
    {**across("x", DAY, INK, strokeDash=[1, 2]), "transform": [{"filter": "datum.what == 'retraining'"}]},
]
ONE_RUN: list[Spec] = [
    {**BOUNDED, **interval(strokeWidth=5, opacity=0.3)},
    {**across("y", on("score"), BASELINE), "transform": [{"filter": "datum.what == 'expected'"}]},
]
"""A single run draws no band and no line."""


def _timeline_axes(metric: str, colours: Mapping[str, str]) -> Spec:
    return {
        "x": DAY,
        "y": number("score", metric),
        "color": palette(colours, field="what", legend={"symbolType": "circle", "columns": 4}),
    }


def _scored(run: Decision) -> list[dict[str, Any]]:
    """The scores of one monitoring run: one row for each, on the day of its labels."""
    found = run.window.performance
    if found is None:
        return []
    days = {"realised": found.realised_until or run.at, "estimated": run.at, "expected": run.at}
    return [
        {"what": what, "day": day.date().isoformat(), "score": each.score, "low": each.low, "high": each.high}
        for what, day in days.items()
        if (each := getattr(found, what)).score is not None
    ]


def _metric(runs: Sequence[Decision]) -> str:
    return next(each.window.performance.metric for each in reversed(runs) if each.window.performance)
