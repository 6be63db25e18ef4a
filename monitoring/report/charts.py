"""The charts of the page: each a title, a caption and a drawing, or a table where there is nothing to draw."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from markupsafe import Markup

from evergreen.monitoring.report import formatting, left_out, vega
from evergreen.monitoring.report.marks import (
    BY_SERIES,
    band,
    constant,
    dots,
    interval,
    lines,
    name,
    number,
    on,
    percent,
    powers,
)
from evergreen.monitoring.report.plots import PLOTS
from evergreen.monitoring.report.vega import INK, ROWS, Spec

AnyChart = TypeVar("AnyChart", "Chart", "Chart | None")
TABLE_ROWS = 12
"""Most rows of a table that stands in for a chart, and most bars."""


@dataclass(frozen=True)
class Chart:
    name: str
    title: str
    caption: str
    """How to read it, in one or two plain sentences."""
    svg: Markup | None
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    """A table, where there is no drawing."""
    more: int = 0
    """Rows left out of the table."""
    left_out: str = ""
    """Why it could not be drawn."""


def attempt(name: str, title: str, make: Callable[..., AnyChart], *arguments: Any) -> AnyChart | Chart:
    """The chart that `make` returns, or the reason in its place where that fails."""
    try:
        return make(*arguments)
    except Exception as error:  # noqa: BLE001  # one chart may not take the page away
        return Chart(name, title, "", None, left_out=left_out.reason(f"chart {title!r}", error))


def draw(name: str, table: pl.DataFrame) -> Chart:
    """The chart of the plot `name`, or a generic one for a name or columns that are not known; never an error."""
    return attempt(name, PLOTS[name].title if name in PLOTS else formatting.plain(name).capitalize(), _draw, name, table)


def _draw(name: str, table: pl.DataFrame) -> Chart:
    plot = PLOTS.get(name)
    if not plot or (spec := plot.of(table)) is None:
        return _generic(name, table)
    shown = _thinned(table.select(sorted(vega.columns(spec))), plot.rows)
    return Chart(name, plot.title, plot.caption, vega.render(plot.title, spec, shown, plot.height))


def save(plots: Path, folder: Path) -> None:
    """Draw the tables of `plots` into `folder`, an SVG file each; those without a plot of their own are left out."""
    for path in sorted(plots.glob("*.csv")):
        table = pl.read_csv(path, infer_schema_length=None)
        plot = PLOTS.get(path.stem)
        if plot and (spec := plot.of(table)) is not None:
            shown = _thinned(table.select(sorted(vega.columns(spec))), plot.rows)
            vega.save(folder / f"{path.stem}.svg", spec, shown, plot.height)


NEW = "_novel"
"""In the names of metrics and plots of new items."""


def order(name: str, primary: str = "") -> float:
    """The place of a plot among the others of its problem; where the primary metric is of new items, their plots come before
    the same ones of all items."""
    names, same = list(PLOTS), name.replace(NEW, "")
    if primary.endswith(NEW) and NEW in name and same in PLOTS:
        return names.index(same) - 0.5
    return names.index(name) if name in PLOTS else len(names)


def _thinned(table: pl.DataFrame, most: int = ROWS) -> pl.DataFrame:
    """At most `most` rows of each series or cluster, evenly, the first and the last among them."""
    by = [column for column in ("series", "cluster") if column in table.columns]
    parts = table.partition_by(by, maintain_order=True) if by else [table]
    return pl.concat(part[_evenly(part.height, most)] for part in parts)


def _evenly(rows: int, most: int) -> Sequence[int]:
    return range(rows) if rows <= most else [round(place * (rows - 1) / (most - 1)) for place in range(most)]


def search(trials: pl.DataFrame, metric: str, greater_is_better: bool, baseline: str | None) -> Chart:
    """Every trial by model, and the best so far. `trials`: number, model, score; one row per scored trial, in order."""
    caption = "One dot per configuration tried, on validation windows before the test windows; the line is the best so far."
    best = {"window": [{"op": "max" if greater_is_better else "min", "field": "score", "as": "best"}], "frame": [None, 0]}
    line = {"mark": STEP, "encoding": {"y": on("best"), "color": constant(INK)}}
    y = number("score", metric, **_in_sight(trials["score"], greater_is_better))
    spec = dots(number("trial", "trial", {"format": "d"}), y, line, color=BY_MODEL, size=40)
    spec["transform"] = [{"calculate": "datum.number + 1", "as": "trial"}, best]
    return _drawn("search", "The search", caption, spec, trials.select("number", "model", "score"), baseline)


STEP = {"type": "line", "interpolate": "step-after", "strokeWidth": 1.2}
BY_MODEL: Spec = {"field": "model", "type": "nominal", "title": None}


def _drawn(name: str, title: str, caption: str, spec: Spec, table: pl.DataFrame, grey: str | None = None) -> Chart:
    return Chart(name, title, caption, vega.render(title, spec, table, grey=grey))


def _in_sight(scores: pl.Series, greater_is_better: bool) -> Spec:
    """Keep one hopeless trial from flattening all others: the axis ends beyond the worse quarter; such trials lie there."""
    worst, quarter = (scores.min(), scores.quantile(0.25)) if greater_is_better else (scores.max(), scores.quantile(0.75))
    best = scores.max() if greater_is_better else scores.min()
    if not isinstance(worst, float) or not isinstance(best, float) or quarter is None:
        return {}
    far = abs(worst - best) > 4 * abs(quarter - best) > 0
    return {"domain": sorted((best + 2 * (quarter - best), best - 0.2 * (quarter - best))), "clamp": True} if far else {}


def pareto(trials: pl.DataFrame, metric: str, baseline: str | None) -> Chart:
    """Quality against the cost of a prediction. `trials`: model, score, cost (ms a row), front (on the front), chosen."""
    caption = (
        "One dot per configuration tried, the chosen one in a ring. Left is quicker; those on the line are not beaten in both."
    )
    front = {"transform": [{"filter": "datum.front"}], "mark": STEP, "encoding": {"color": constant(INK)}}
    ring = {"type": "point", "filled": False, "size": 160, "strokeWidth": 1.2}
    chosen = {"transform": [{"filter": "datum.chosen"}], "mark": ring, "encoding": {"color": constant(INK)}}
    cost = powers("cost", "ms for one row")
    spec = dots(cost, number("score", metric), front, chosen, color=BY_MODEL, size=40)
    return _drawn(
        "pareto", "Quality and cost", caption, spec, trials.select("model", "score", "cost", "front", "chosen"), baseline
    )


def dependence(table: pl.DataFrame) -> Chart:
    """How the prediction moves with one column. `table`: column, output, value, x (null for categories), mean, low, high."""
    title = formatting.plain(table["column"][0])
    share = min(table["low"]) >= 0 and max(table["high"]) <= 1 and table["output"][0] != "prediction"
    y = (percent if share else number)("mean", "mean prediction")
    color = BY_SERIES | {"field": "output"}
    if table["x"].null_count():
        place = name("value", labelLimit=38, labelOverlap=True)
        spec = dots(place, y, interval(strokeWidth=5, opacity=0.35), color=color)
    else:
        days = {"field": "value", "type": "temporal", "title": None, "scale": {"type": "utc"}}
        dated = re.match(r"\d{4}-\d\d-\d\d", table["value"][0])
        spec = lines(days | {"axis": {"tickCount": 3, "format": "%Y-%m-%d"}} if dated else number("x"), y, band(), color=color)
    caption = "The mean prediction had every row this value. The wider the band, the more it depends on the other columns."
    return _drawn("dependence", title, caption, spec, table)


def _generic(plot: str, table: pl.DataFrame) -> Chart:
    """A line for two numbers, bars for a name and a number, else the first rows as they are."""
    title = formatting.plain(plot).capitalize()
    texts = [column for column in table.columns if not table[column].dtype.is_numeric()]
    numeric = [column for column in table.columns if table[column].dtype.is_numeric()]
    if len(texts) <= 1 and len(numeric) == 2:
        names, spec = dict(zip([*numeric, *texts], ("x", "y", "series"), strict=False)), _line
    elif len(texts) == len(numeric) == 1 and table.height <= TABLE_ROWS:
        names, spec = {texts[0]: "x", numeric[0]: "y"}, _columns
    else:
        rows = tuple(tuple(_cell(value) for value in row) for row in table.head(TABLE_ROWS).iter_rows())
        header = tuple(formatting.plain(column) for column in table.columns)
        return Chart(plot, title, "", None, header, rows, max(table.height - TABLE_ROWS, 0))
    x, y, *_ = map(formatting.plain, names)
    return _drawn(plot, title, f"{y.capitalize()} by {x}.", spec(x, y, bool(texts)), _thinned(table.rename(names)))


def _line(x: str, y: str, several: bool) -> Spec:
    return lines(number("x", x), number("y", y), color=BY_SERIES if several else constant(vega.MODEL))


def _columns(x: str, y: str, _: bool) -> Spec:
    return {"mark": {"type": "bar", "color": vega.MODEL}, "encoding": {"x": name("x", x), "y": number("y", y, zero=True)}}


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return formatting.MISSING if value is None else value.isoformat() if isinstance(value, date) else str(value)
    return formatting.number(value)
