"""Vega-Lite specs as inline SVG: text stays text in the reader's font, colours are the style sheet's variables.

vl-convert draws in this process and may load nothing: a spec carries its data.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import orjson
import polars as pl
from markupsafe import Markup

Spec = dict[str, Any]

INK, SOFT, GRID, PAPER, BASELINE = (f"var(--{name})" for name in ("ink", "soft", "grid", "card", "s0"))
MODEL, SECOND, *_ = SERIES = tuple(f"var(--s{place})" for place in range(1, 6))
LIGHT = {INK: "#1b2420", SOFT: "#56635c", GRID: "#dedbd1", PAPER: "#fffefb", BASELINE: "#8b9089"} | dict(
    zip(SERIES, ("#0b7a5b", "#c9590f", "#2e6fb0", "#8a4f9e", "#a37a00"), strict=True)
)
"""The style sheet's variables in the light scheme, for drawings outside the page."""

WIDTH, HEIGHT, BROAD = 310, 225, 763
"""Pixels of a drawing with its axes and legend; the page scales it to the room there is."""
ROWS = 200
"""Most rows of a series in a drawing."""
KEPT = 64
"""Drawings that are kept as they were drawn last."""
WRITTEN = 10.5
CONFIG: Spec = {
    "aria": False,
    "background": None,
    "font": "sans-serif",
    "padding": {"left": 6, "right": 6, "top": 3, "bottom": 3},
    "view": {"stroke": None},
    "axis": {
        "domainColor": GRID,
        "gridColor": GRID,
        "gridWidth": 0.7,
        "ticks": False,
        "labelColor": SOFT,
        "labelFontSize": WRITTEN,
        "labelLimit": 115,
        "labelPadding": 5,
        "titleColor": SOFT,
        "titleFontSize": WRITTEN,
        "titleFontWeight": "normal",
        "titlePadding": 7,
    },
    "axisDiscrete": {"grid": False, "labelAngle": 0},
    "axisX": {"labelFlush": False, "tickCount": 4},
    "axisY": {"tickCount": 5},
    "legend": {
        "columnPadding": 14,
        "labelColor": INK,
        "labelFontSize": 10,
        "labelLimit": 150,
        "offset": 8,
        "orient": "bottom",
        "symbolOpacity": 1,
        "symbolSize": 50,
        "symbolStrokeWidth": 2,
        "titleColor": SOFT,
        "titleFontSize": 10,
        "titleFontWeight": "normal",
        "titleOrient": "left",
    },
    "range": {"category": [*SERIES]},
    "line": {"strokeCap": "round", "strokeJoin": "round", "strokeWidth": 2},
    "point": {"filled": True, "opacity": 1, "size": 35},
    "text": {"color": INK, "fontSize": 10},
}
"""How every drawing looks."""

INHERITED = {"fill", "fill-opacity", "font-size", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "text-anchor"}
"""Attributes that a group hands to its parts."""
NEEDLESS = ("aria-hidden", "aria-roledescription", "class", "font-family", "pointer-events", "role")
POINTED = ("point", "circle", "bar", "rect mark", "bar mark")
"""Marks that have the values of one row."""
NUMBER = re.compile(r"-?\d+\.\d+")
DEFAULTS = {"font-weight": "normal", "opacity": "1", "stroke-miterlimit": "10", "transform": "translate(0,0)"}
UNSEEN = {"type": "point", "filled": True, "fillOpacity": 0, "strokeOpacity": 0, "size": 120}
"""A mark at each row of a line, for the pointer alone."""
_values: ContextVar[bool] = ContextVar("values", default=False)
DISC = re.compile(r"M([\d.]+),0A\1,\1,0,1,1,-\1,0A\1,\1,0,1,1,\1,0$")


def columns(spec: Any) -> set[str]:
    """Columns of the table that a spec reads."""
    read, made = set[str](), set[str]()
    for part in _parts(spec):
        for key, value in part.items():
            if key in ("field", "groupby", "fold", "flatten"):
                read |= set(value if isinstance(value, list) else [value])
            elif key == "as":
                made |= set(value if isinstance(value, list) else [value])
            elif isinstance(value, str) and key != "labelExpr":
                read |= set(re.findall(r"datum\.(\w+)", value))
    return read - made


def _parts(spec: Any) -> Iterator[Spec]:
    """The objects that a spec is made of, but for those with data of their own."""
    if isinstance(spec, dict) and "data" not in spec:
        yield spec
        spec = list(spec.values())
    for each in spec if isinstance(spec, list) else ():
        yield from _parts(each)


def numbers(spec: Any) -> set[str]:
    """Those of `columns` that are read as numbers."""
    counted = {each["field"] for each in _parts(spec) if each.get("type") == "quantitative" or each.get("op") in ("max", "sum")}
    return counted.union(*(each.get("fold", ()) for each in _parts(spec))) & columns(spec)


@contextmanager
def with_values() -> Iterator[None]:
    """Drawings that are made in the block show the values of a mark under the pointer."""
    token = _values.set(True)
    try:
        yield
    finally:
        _values.reset(token)


def _pointed(spec: Spec) -> Spec:
    """With a mark to point at for each row of a line that has none."""
    if "layer" in spec:
        return spec | {"layer": [part for each in spec["layer"] for part in _layers(each)]}
    return spec


def _layers(layer: Spec) -> list[Spec]:
    mark = layer.get("mark")
    is_bare = mark == "line" or (isinstance(mark, dict) and mark["type"] == "line" and not mark.get("point"))
    if is_bare and "strokeDash" not in layer.get("encoding", {}):
        return [layer, layer | {"mark": UNSEEN}]
    return [_pointed(layer)]


def render(title: str, spec: Spec, table: pl.DataFrame, height: int = HEIGHT, width: int = WIDTH, grey: Any = None) -> Markup:
    """`table` drawn as `spec` says, as an SVG element for the page; the series `grey` gets the colour of baselines."""
    root = _drawn(spec, table, height, width, grey)
    inside = "".join(ElementTree.tostring(part, encoding="unicode") for part in root).replace(" />", "/>")
    return Markup(f'<svg viewBox="{root.attrib["viewBox"]}" role="img" aria-label="{Markup.escape(title)}">{inside}</svg>')


def save(path: Path, spec: Spec, table: pl.DataFrame, height: int = HEIGHT, width: int = BROAD, grey: Any = None) -> None:
    """The same as an SVG file, in the colours of the light scheme."""
    root = _drawn(spec, table, height, width, grey)
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "font-family": "sans-serif", "style": f"background: {PAPER}"}
    path.write_text(in_light(ElementTree.tostring(root, encoding="unicode")))


def in_light(text: str) -> str:
    for variable, colour in LIGHT.items():
        text = text.replace(variable, colour)
    return text


def _drawn(spec: Spec, table: pl.DataFrame, height: int, width: int, grey: Any) -> Element:
    shown = _values.get()
    fit = {"type": "fit-x" if "height" in spec else "fit", "contains": "padding"}
    config = CONFIG | {"aria": shown}
    frame = {"width": width, "height": height, "autosize": fit, "config": config, "data": {"values": table.to_dicts()}}
    whole = orjson.dumps(frame | _coloured(_pointed(spec) if shown else spec, table, width, grey)).decode()
    return _shortened(ElementTree.fromstring(_convert(whole).replace('xmlns="http://www.w3.org/2000/svg" ', "", 1)))


@lru_cache(KEPT)
def _convert(spec: str) -> str:
    """A whole spec as SVG. The console asks for the same one with each visit of a page."""
    import vl_convert  # 88 MB of code: loaded where something is drawn

    return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])


def _coloured(spec: Any, table: pl.DataFrame, width: int, grey: Any) -> Any:
    """With colours for the series that have none yet, baselines grey, and a legend where there are several."""
    if isinstance(spec, list):
        return [_coloured(each, table, width, grey) for each in spec]
    if not isinstance(spec, dict):
        return spec
    made = {key: _coloured(value, table, width, grey) for key, value in spec.items()}
    color = made.get("color")
    if isinstance(color, dict) and color.get("field") in table.columns and "scale" not in color:
        found = table[color["field"]].unique(maintain_order=True)
        names = (found.sort() if found.dtype.is_numeric() else found).to_list()
        rest = itertools.cycle(SERIES)
        shades = [BASELINE if name == grey or str(name).startswith(("baseline", "random")) else next(rest) for name in names]
        shown = legend(names, width) | color.get("legend", {}) if len(names) > 1 else None
        made["color"] = color | {"scale": {"domain": names, "range": shades}, "legend": shown}
    return made


def legend(names: Iterable[Any], width: int = WIDTH) -> Spec:
    """As many names in a line as have room."""
    return {"columns": max(width // (6.5 * (4 + max(len(str(name)) for name in names))), 1)}


def _shortened(part: Element) -> Element:
    """Remove invisible marks, factor out attributes that all parts of a group share, and round coordinates to two decimals."""
    kept = [_shortened(each) for each in part if not _draws_nothing(each)]
    bare = [inner for each in kept for inner in (each if each.tag == "g" and not each.attrib else [each])]
    part[:] = [each for each in bare if each.tag != "g" or len(each)]
    given = {name: value for name, value in part.items() if name not in NEEDLESS and DEFAULTS.get(name) != value}
    if (said := given.pop("aria-label", "")) and part.get("aria-roledescription") in POINTED:
        given["data-values"] = NUMBER.sub(_rounded, said)
    given |= {name: re.sub(r"(\.\d\d)\d+", r"\1", given[name]) for name in ("d", "transform", "x2", "y2") if name in given}
    if disc := DISC.match(given.get("d", "")):
        x, y = given.pop("transform", "translate(0,0)")[len("translate(") : -1].split(",")
        part.tag, given = "circle", {"cx": x, "cy": y, "r": disc[1]} | {name: given[name] for name in given if name != "d"}
    part.attrib = given
    if part.tag == "g" and len(part) > 1 and {each.tag for each in part} == {part[0].tag} != {"g"}:
        shared = set.intersection(*(set(each.items()) for each in part))
        part.attrib |= {name: value for name, value in sorted(shared) if name in INHERITED}
        for each in part:
            each.attrib = {name: value for name, value in each.items() if name not in part.attrib or name not in INHERITED}
    return part


def _rounded(number: re.Match[str]) -> str:
    """Four significant digits."""
    return f"{float(number[0]):.4g}"


def _draws_nothing(part: Element) -> bool:
    unpainted = part.get("class") in ("background", "foreground") and part.get("fill") is None and part.get("stroke") is None
    return unpainted or part.get("opacity") == "0" or (part.tag == "path" and not part.get("d"))
