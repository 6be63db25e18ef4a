"""Parts of Vega-Lite specs that plots share."""

from collections.abc import Mapping
from typing import Any

from evergreen.monitoring.report.vega import BASELINE, MODEL, SECOND, SOFT, Spec, legend

PLAIN = "replace(datum.label, /_/g, ' ')"
"""Expression: a label without underscores."""
PERCENT = {"labelExpr": "format(100 * datum.value, ',~r') + ' %'"}
DASHED = {"strokeDash": [4, 3], "strokeWidth": 1.2}
STROKES = {"symbolType": "stroke", "symbolSize": 220}
BY_SERIES: Spec = {"field": "series", "type": "nominal", "title": None, "legend": STROKES}
BY_CLUSTER: Spec = {"field": "cluster", "type": "nominal", "title": "group"}


def number(field: str, title: str | None = None, axis: Spec | None = None, zero: bool = False, **scale: Any) -> Spec:
    """A channel of numbers."""
    return {"field": field, "type": "quantitative", "title": title, "axis": axis or {}, "scale": {"zero": zero, **scale}}


def percent(field: str, title: str | None = None, zero: bool = False, **scale: Any) -> Spec:
    """A channel of shares of 1."""
    return number(field, title, PERCENT, zero, **scale)


def powers(field: str, title: str | None = None) -> Spec:
    """A channel of numbers on a logarithmic axis."""
    return number(field, title, {"grid": False}, type="log", nice=False)


def name(field: str, title: str | None = None, **axis: Any) -> Spec:
    """A channel of names, in the order of the table."""
    return {"field": field, "type": "nominal", "sort": None, "title": title, "axis": {"labelExpr": PLAIN, **axis}}


def on(field: str) -> Spec:
    """A number on an axis that another layer describes."""
    return {"field": field, "type": "quantitative"}


def constant(value: Any) -> Spec:
    return {"value": value}


def palette(colours: Mapping[str, str], **more: Any) -> Spec:
    """Colours of names that are known."""
    scale = {"domain": [*colours], "range": [*colours.values()]}
    return {"type": "nominal", "title": None, "scale": scale, **more, "legend": legend(colours) | more.get("legend", {})}


def dashes(field: str) -> Spec:
    """Whole, dashed and dotted lines, in the order of the table."""
    range_ = [[1, 0], [5, 5], [1, 4], [8, 4, 1, 4]]
    return {"field": field, "type": "nominal", "title": None, "sort": None, "scale": {"range": range_}}


def written(field: str) -> str:
    """Expression: a number with three significant digits, whole from 100."""
    value = f"datum.{field}"
    whole = f"abs({value}) >= 100 || {value} == round({value})"
    return f"isValid({value}) ? format({value}, {whole} ? ',.0f' : ',.3r') : '–'"


def lines(x: Spec, y: Spec, *below: Spec, points: bool = False, color: Spec = BY_SERIES, **mark: Any) -> Spec:
    """One line per series over the layers `below`."""
    line = {"mark": {"type": "line", "point": {"size": 30} if points else False, **mark}}
    return {"layer": [*below, line], "encoding": {"x": x, "y": y, "color": color}}


def dots(x: Spec, y: Spec, *below: Spec, color: Spec, **mark: Any) -> Spec:
    return {"layer": [*below, {"mark": {"type": "point", **mark}}], "encoding": {"x": x, "y": y, "color": color}}


def band(opacity: float = 0.18) -> Spec:
    """From `low` to `high`."""
    mark = {"type": "area", "opacity": opacity, "line": False}
    return {"mark": mark, "encoding": {"y": on("low"), "y2": {"field": "high"}}}


def interval(color: Spec | None = None, **mark: Any) -> Spec:
    """An upright bar from `low` to `high`, in the colour of its series or in `color`."""
    encoding = {"y": on("low"), "y2": {"field": "high"}} | ({"color": color} if color else {})
    return {"mark": {"type": "rule", **mark}, "encoding": encoding}


def across(axis: str, where: Spec, color: str = SOFT, **mark: Any) -> Spec:
    """A line across the whole drawing, upright for `axis` x."""
    other, end = ("y", "height") if axis == "x" else ("x", "width")
    encoding = {axis: where, other: constant(0), f"{other}2": constant(end), "color": constant(color)}
    return {"mark": {"type": "rule", **DASHED, **mark}, "encoding": encoding}


def zero(**mark: Any) -> Spec:
    """An upright line at 0."""
    return {"data": {"values": [{"at": 0}]}, **across("x", on("at"), **mark)}


def diagonal(x: str, y: str, low: str = "0") -> Spec:
    """Where `x` and `y` are the same, from the expression `low` as far as both go."""
    ends = [{"op": op, "field": field, "as": f"{op}_{field}"} for op in ("min", "max") for field in (x, y)]
    end = {"calculate": f"[{low}, min(datum.max_{x}, datum.max_{y})]", "as": "end"}
    return {
        "transform": [{"aggregate": ends}, end, {"flatten": ["end"]}],
        "mark": {"type": "line", "strokeWidth": 1.2},
        "encoding": {"x": on("end"), "y": on("end"), "color": constant(BASELINE), "strokeDash": constant([4, 3])},
    }


def first_of(field: str) -> list[Spec]:
    """Transforms: the rows of the table's first `field` alone."""
    first = {"window": [{"op": "first_value", "field": field, "as": "first"}], "frame": [None, None], "groupby": []}
    return [first, {"filter": f"datum.{field} == datum.first"}]


def best_of(field: str, group: str) -> Spec:
    return {"joinaggregate": [{"op": "max", "field": field, "as": "best"}], "groupby": [group]}


def cells(x: Spec, y: Spec, shade: str, text: str, *transform: Spec, row: int | None = 25, rise: int = 0) -> Spec:
    """A table of coloured cells; `shade` (-1: second colour, 0: paper, 1: first colour) and `text` are expressions.

    `row`: the height of a row in pixels; None fits all into the drawing. Text of two lines begins `rise` pixels higher.
    """
    computed = {"shade": shade, "depth": "0.6 * min(abs(datum.shade), 1)", "text": text}
    color = {"condition": {"test": "datum.shade < 0", "value": SECOND}, "value": MODEL}
    opacity = {"field": "depth", "type": "quantitative", "scale": None}
    writing = {"type": "text", "lineBreak": "\n", "dy": -rise}
    return {
        "transform": [*transform, *({"calculate": formula, "as": made} for made, formula in computed.items())],
        **({"height": {"step": row}} if row else {}),
        "layer": [
            {"mark": "rect", "encoding": {"color": color, "fillOpacity": opacity}},
            {"mark": writing, "encoding": {"text": {"field": "text", "type": "nominal"}}},
        ],
        "encoding": {axis: part | {"scale": {"paddingInner": 0.07, "paddingOuter": 0}} for axis, part in (("x", x), ("y", y))},
    }


def bars(x: Spec, y: Spec, *above: Spec, row: int = 24, color: Spec | None = None) -> Spec:
    """Lying bars, one for each name."""
    bar = {"mark": {"type": "bar", "opacity": 0.85, "height": {"band": 0.62}}, "encoding": {"color": color or constant(MODEL)}}
    return {"height": {"step": row}, "layer": [bar, *above], "encoding": {"x": x, "y": y}}


def bins(share: str, series: str, *transform: Spec) -> Spec:
    """Upright bars from `low` to `high`."""
    encoding = {"x": on("low"), "x2": {"field": "high"}, "y": on(share), "y2": {"datum": 0}, "color": {"datum": series}}
    return {"transform": [*transform], "mark": {"type": "rect", "opacity": 0.45, "strokeWidth": 0}, "encoding": encoding}


def groups(x: str, title: str, y: Spec, *below: Spec, color: Spec = BY_SERIES) -> Spec:
    """One place along x for each name, in the order of the table."""
    split = "split(replace(replace(datum.label, ' and more', '+'), ' to ', '|to '), '|')"
    return lines(name(x, title, labelExpr=split), y, *below, points=True, color=color)
