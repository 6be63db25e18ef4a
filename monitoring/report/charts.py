"""Charts as small inline SVG: matplotlib draws, the page's style sheet colours. Text stays text, in the reader's own font.

Drawings are made with stand-in colours that `_svg` turns into CSS variables, so that one drawing serves light, dark and print.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import polars as pl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from evergreen.monitoring.report import formatting

MODEL, BASELINE, THIRD, FOURTH, FIFTH, SIXTH = (f"#0f00{n}0" for n in range(1, 7))
SERIES = (MODEL, THIRD, FOURTH, FIFTH, SIXTH)
INK, SOFT, GRID, PAPER = (f"#0e00{n}0" for n in range(1, 5))
VARIABLES = {
    MODEL: "--s1",
    BASELINE: "--s0",
    THIRD: "--s2",
    FOURTH: "--s3",
    FIFTH: "--s4",
    SIXTH: "--s5",
    INK: "--ink",
    SOFT: "--soft",
    GRID: "--grid",
    PAPER: "--card",
}
"""Stand-in colour -> the style sheet's variable."""
LIGHT = {
    MODEL: "#0b7a5b",
    BASELINE: "#8b9089",
    THIRD: "#c9590f",
    FOURTH: "#2e6fb0",
    FIFTH: "#8a4f9e",
    SIXTH: "#a37a00",
    INK: "#1b2420",
    SOFT: "#56635c",
    GRID: "#dedbd1",
    PAPER: "#fffefb",
}
"""The same in the light scheme, for drawings outside the page."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evergreen",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 10,
    "legend.handlelength": 1.4,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}

TAG = re.compile(r"<[^<>]+>")
WIDTH, HEIGHT = 4.3, 2.9
"""Inches of a drawing; on the page it takes the room it is given."""
POINTS = 700
"""Most dots in one drawing; more are thinned evenly."""
POSITIONS = 200
"""Most places of a curve along x."""
ROWS = 12
"""Most rows of a table that stands in for a chart."""


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


@dataclass(frozen=True)
class Drawing:
    """How one of the kinds' tables is drawn."""

    title: str
    caption: str
    needs: tuple[str, ...]
    """Columns without which it cannot be drawn."""
    draw: Callable[[Axes, pl.DataFrame], None]
    height: Callable[[pl.DataFrame], float] = lambda _: HEIGHT
    """Inches."""


def draw(key: str, name: str, table: pl.DataFrame) -> Chart:
    """The chart of the plot `name`, or a generic one for a name or columns that are not known. `key` is unique on the page."""
    known = DRAWINGS.get(name)
    if known and set(known.needs) <= set(table.columns):
        return Chart(name, known.title, known.caption, drawn(key, known.title, known.draw, table, known.height(table)))
    return _generic(key, name, table)


def order(name: str) -> int:
    """The place of a plot among the others of its problem."""
    return list(DRAWINGS).index(name) if name in DRAWINGS else len(DRAWINGS)


def drawn(
    key: str,
    title: str,
    paint: Callable[[Axes, pl.DataFrame], None],
    table: pl.DataFrame,
    height: float = HEIGHT,
    width: float = WIDTH,
) -> Markup:
    """What `paint` makes of `table`, for the page; `key` is unique on it."""
    with matplotlib.rc_context(STYLE):
        return _svg(_figure(paint, table, height, width), key, title)


def _figure(paint: Callable[[Axes, pl.DataFrame], None], table: pl.DataFrame, height: float, width: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    paint(figure.add_subplot(), table)
    return figure


def save(
    path: Path, paint: Callable[[Axes, pl.DataFrame], None], table: pl.DataFrame, height: float = HEIGHT, width: float = WIDTH
) -> None:
    """The same drawing as an SVG file of its own, in the colours of the light scheme."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        _figure(paint, table, height, width).savefig(text, format="svg", metadata={"Date": None}, facecolor=PAPER)
    drawing = text.getvalue()
    for colour, light in LIGHT.items():
        drawing = drawing.replace(colour, light)
    path.write_text(drawing)


def _svg(figure: Figure, key: str, title: str) -> Markup:
    """The figure as an SVG element for inline use: no prolog, no style of its own, ids that start with `key`."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<defs>\s*</defs>", "", drawn, flags=re.S)
    prefix = re.sub(r"[^\w-]", lambda odd: f"_{ord(odd[0]):x}_", key)
    used = {name for tag in TAG.findall(drawn) for name in re.findall(r"#([\w.-]+)[)\"]", tag)}
    drawn = TAG.sub(lambda tag: _tag(tag[0], prefix, used), drawn)
    drawn = re.sub(r"(?<=>)\s*\n\s*|\s*\n\s*(?=<)", "", drawn)
    box = re.search(r'viewBox="[^"]*"', drawn)
    inside = drawn[drawn.index(">") + 1 :].strip()
    return Markup(f'<svg {box[0] if box else ""} role="img" aria-label="{Markup.escape(title)}">{inside}')


def _tag(tag: str, prefix: str, used: set[str]) -> str:
    """One tag for inline use: the style sheet's colours, the reader's font, ids that are unique on the page, short numbers.

    Text between tags is not touched.
    """
    tag = re.sub(r' transform="rotate\(-0[^"]*\)"', "", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", tag)
    tag = tag.replace('xlink:href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    return re.sub(r"\s+", " ", re.sub(r"(\d+\.\d\d)\d+", r"\1", tag))


# --- parts that drawings share ---------------------------------------------------------------------------------------------


def people(axes: Axes, x: str = "", y: str = "", percent: str = "") -> None:
    """Labels, few ticks, and numbers as people write them; `percent` names the axes that show shares of 1."""
    for name, axis, text in (("x", axes.xaxis, x), ("y", axes.yaxis, y)):
        axis.set_label_text(text)
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(_per_cent if name in percent else _number))


def _number(value: float, _: int | None = None) -> str:
    """A tick in full, so that evenly spaced ticks read evenly."""
    text = f"{round(float(value), 8):,.8f}".rstrip("0").rstrip(".")
    return formatting.minus(text)


def _per_cent(value: float, _: int | None = None) -> str:
    return f"{_number(100 * float(value))} %"


def _label(name: Any, most: int = 22) -> str:
    """A name as it fits beside an axis or into a legend."""
    text = formatting.plain(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def _colour(name: str, place: int) -> str:
    return BASELINE if name.split(" ")[0] in ("baseline", "random") else SERIES[place % len(SERIES)]


def _groups(table: pl.DataFrame, by: str | None) -> list[tuple[str, pl.DataFrame]]:
    if by is None or by not in table.columns:
        return [("", table)]
    parts = table.partition_by(by, maintain_order=True)
    return [(_label(part[by][0]), part) for part in parts]


def _coloured(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name with its colour: baselines grey, the others in the order of the palette."""
    others = [name for name in names if _colour(name, 0) != BASELINE]
    return [(name, _colour(name, others.index(name) if name in others else 0)) for name in names]


def _thin(table: pl.DataFrame, most: int) -> pl.DataFrame:
    if table.height <= most:
        return table
    return table[[round(place * (table.height - 1) / (most - 1)) for place in range(most)]]


def _legend(axes: Axes, **where: Any) -> None:
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(**({"loc": "best"} | where))


def legend_below(axes: Axes, title: str = "", x: float = 0.5) -> None:
    """In one row under the axes, where it hides nothing; its middle is at `x`, a share of their width."""
    axes.legend(
        title=title,
        loc="upper center",
        bbox_to_anchor=(x, -0.2),
        ncols=4,
        fontsize=9,
        columnspacing=1.2,
        handletextpad=0.4,
        markerscale=1.4,
    )


def _lines(axes: Axes, table: pl.DataFrame, x: str, y: str, by: str | None = None, **style: Any) -> None:
    groups = _groups(table, by)
    for (name, part), (_, colour) in zip(groups, _coloured([name for name, _ in groups]), strict=True):
        part = _thin(part, POSITIONS)
        axes.plot(part[x].to_list(), part[y].to_list(), color=colour, label=name or "_", **style)


def _diagonal(axes: Axes, text: str | None = None) -> None:
    low, high = (f(f(axes.get_xlim()), f(axes.get_ylim())) for f in (min, max))
    axes.axline((low, low), (high, high), color=BASELINE, linewidth=1.2, linestyle=(0, (4, 3)), label=text or "_", zorder=1)


def _heat(
    axes: Axes, shades: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Cells with a text each; a shade from -1 (second colour) over 0 (paper) to 1 (first colour). Rows from the top."""
    for down, (line, told) in enumerate(zip(shades, texts, strict=True)):
        for across, (shade, text) in enumerate(zip(line, told, strict=True)):
            colour = MODEL if shade >= 0 else THIRD
            cell = Rectangle(
                (across - 0.47, down - 0.46), 0.94, 0.92, facecolor=colour, alpha=round(0.6 * min(abs(shade), 1), 3)
            )
            axes.add_patch(cell)
            axes.text(across, down, text, ha="center", va="center", fontsize=10)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), [_label(each) for each in columns])
    axes.set_yticks(range(len(rows)), [_label(each) for each in rows])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _bars(axes: Axes, labels: Sequence[Any], values: Sequence[float], colour: str = MODEL) -> None:
    places = list(range(len(labels)))
    axes.bar(places, list(values), color=colour, width=0.72, linewidth=0)
    axes.grid(False, axis="x")
    axes.set_xticks(places, [_label(each) for each in labels])


# --- the search ------------------------------------------------------------------------------------------------------------


def search(key: str, trials: pl.DataFrame, metric: str, greater_is_better: bool, baseline: str | None) -> Chart:
    """Every trial by model, and the best so far. `trials`: number, model, score; one row per scored trial, in order."""
    title = "The search"
    best = trials["score"].cum_max() if greater_is_better else trials["score"].cum_min()

    def paint(axes: Axes, table: pl.DataFrame) -> None:
        numbers = (table["number"] + 1).to_list()
        axes.step(numbers, best.to_list(), where="post", color=INK, linewidth=1.2, label="best so far")
        others = iter(SERIES * table.height)
        for part in table.partition_by("model", maintain_order=True):
            name, x, y = part["model"][0], (part["number"] + 1).to_list(), part["score"].to_list()
            colour = BASELINE if name == baseline else next(others)
            axes.plot(x, y, "o", color=colour, markersize=6, label=name)
        people(axes, "trial", metric)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _fit(axes, table["score"], greater_is_better)
        legend_below(axes)

    caption = "One dot per configuration tried, on validation windows before the test windows; the line is the best so far."
    return Chart("search", title, caption, drawn(key, title, paint, trials, 3.1))


def _fit(axes: Axes, scores: pl.Series, greater_is_better: bool) -> None:
    """Keep one hopeless trial from flattening all others: the axis ends a little beyond the worse quarter."""
    worst, quarter = (scores.min(), scores.quantile(0.25)) if greater_is_better else (scores.max(), scores.quantile(0.75))
    best = scores.max() if greater_is_better else scores.min()
    if (
        isinstance(worst, float)
        and isinstance(best, float)
        and quarter is not None
        and abs(worst - best) > 4 * abs(quarter - best) > 0
    ):
        axes.set_ylim(*sorted((best + 2 * (quarter - best), best - 0.2 * (quarter - best))))


# --- diagnosis and explanation ---------------------------------------------------------------------------------------------

SEEN = {"learned from": BASELINE, "not learned from": MODEL}
"""Series of the diagnosis's curves -> colour."""
LEANT_ON = 10
"""Most columns in one picture."""


def pareto(key: str, trials: pl.DataFrame, metric: str, baseline: str | None) -> Chart:
    """Quality against what an answer costs. `trials`: model, score, cost, front (on the front), chosen; `cost` in ms a row."""
    title = "Quality and cost"

    def paint(axes: Axes, table: pl.DataFrame) -> None:
        ahead = table.filter("front").sort("cost")
        axes.step(ahead["cost"].to_list(), ahead["score"].to_list(), where="post", color=INK, linewidth=1.2, label="the front")
        others = iter(SERIES * table.height)
        for part in table.partition_by("model", maintain_order=True):
            colour = BASELINE if part["model"][0] == baseline else next(others)
            axes.plot(part["cost"].to_list(), part["score"].to_list(), "o", color=colour, markersize=6, label=part["model"][0])
        chosen = table.filter("chosen")
        ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK, "label": "chosen"}
        axes.plot(chosen["cost"].to_list(), chosen["score"].to_list(), "o", **ring)
        axes.set_xscale("log")
        people(axes, "ms for one row", metric)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
        legend_below(axes)

    caption = "One dot per configuration tried. Left is quicker; those on the line are not beaten in both."
    return Chart("pareto", title, caption, drawn(key, title, paint, trials, 3.1))


def dependence(key: str, table: pl.DataFrame) -> Chart:
    """How the answer moves with one column. `table`: column, answer, value, x (null for categories), mean, low, high."""
    title = formatting.plain(table["column"][0])

    def paint(axes: Axes, table: pl.DataFrame) -> None:
        ordered = table["x"].null_count() == 0
        days = ordered and "-" in table["value"][0][1:]
        for name, part in _groups(table, "answer"):
            colour = SERIES[table["answer"].unique(maintain_order=True).to_list().index(part["answer"][0]) % len(SERIES)]
            x = part["x"].to_list() if ordered else list(range(part.height))
            low, mean, high = (part[column].to_list() for column in ("low", "mean", "high"))
            if ordered:
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
                axes.plot(x, mean, color=colour, label=name)
            else:
                axes.vlines(x, low, high, color=colour, alpha=0.35, linewidth=5)
                axes.plot(x, mean, "o", color=colour, markersize=6, label=name)
        share = min(table["low"]) >= 0 and max(table["high"]) <= 1 and table["answer"][0] != "prediction"
        people(axes, "", "mean answer", percent="y" if share else "")
        first = table.filter(pl.col("answer") == table["answer"][0])
        if days:
            axes.set_xticks(*_some(first["x"].to_list(), first["value"].to_list(), 3))
        elif not ordered:
            axes.set_xticks(*_some(list(range(first.height)), [_label(each, 9) for each in first["value"]], 6))
        _legend(axes)

    caption = "The mean answer had every row this value. The wider the band, the more it depends on the other columns."
    return Chart("dependence", title, caption, drawn(key, title, paint, table))


def _some(places: Sequence[float], names: Sequence[str], most: int) -> tuple[list[float], list[str]]:
    """At most `most` ticks, evenly."""
    step = max(1, -(-len(places) // most))
    return list(places[::step]), list(names[::step])


def _metric_of(table: pl.DataFrame) -> str:
    return formatting.label(table["metric"][0])


def _with_bands(axes: Axes, table: pl.DataFrame, x: str) -> None:
    for name, colour in SEEN.items():
        part = table.filter(pl.col("series") == name).sort(x)
        places = part[x].to_list()
        axes.fill_between(places, part["low"].to_list(), part["high"].to_list(), color=colour, alpha=0.18, linewidth=0)
        axes.plot(places, part["score"].to_list(), "o-", color=colour, markersize=5, label=name)


def _learning_curve(axes: Axes, table: pl.DataFrame) -> None:
    _with_bands(axes, table, "rows")
    people(axes, "rows learned from", _metric_of(table))
    legend_below(axes)


def _validation_curve(axes: Axes, table: pl.DataFrame) -> None:
    numeric = table["value"].dtype.is_numeric()
    if not numeric:
        table = table.with_columns(pl.col("value", "chosen").cast(pl.String).fill_null("none"))
    values = table["value"].unique(maintain_order=True).to_list()
    if not numeric:
        table = table.with_columns(value=pl.Series([values.index(each) for each in table["value"]]))
    _with_bands(axes, table, "value")
    chosen = table["chosen"][0]
    axes.axvline(
        float(chosen) if numeric else values.index(chosen), color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)), label="chosen"
    )
    if numeric and table["log"][0]:
        axes.set_xscale("log")
    people(axes, formatting.plain(table["parameter"][0]), _metric_of(table))
    if numeric and table["log"][0]:
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
    if not numeric:
        axes.set_xticks(range(len(values)), [_label(each, 12) for each in values])
    legend_below(axes)


def _bias_variance(axes: Axes, table: pl.DataFrame) -> None:
    places = list(range(table.height))
    axes.barh(places, table["share"].to_list(), color=[BASELINE, MODEL], alpha=0.85, height=0.55, linewidth=0)
    axes.grid(False, axis="y")
    people(axes, "share of what varies in the target", percent="x")
    axes.set_yticks(places, [_label(each) for each in table["part"]])
    axes.invert_yaxis()


def _permutation(axes: Axes, table: pl.DataFrame) -> None:
    shown = table.head(LEANT_ON).reverse()
    places, values = list(range(shown.height)), shown["importance"].to_list()
    axes.barh(places, values, color=MODEL, alpha=0.85, height=0.62, linewidth=0)
    for place, low, high in zip(places, shown["low"], shown["high"], strict=True):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=INK, linewidth=1.4)
    axes.axvline(0, color=GRID, linewidth=0.8)
    axes.grid(False, axis="y")
    people(axes, "score lost")
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set_yticks(places, [_label(each) for each in shown["column"]])


def _contributions(axes: Axes, table: pl.DataFrame) -> None:
    """One dot per row and column, spread where there are many; the colour says how large the value is."""
    table = table.filter(pl.col("answer") == table["answer"][0])
    names = table["column"].unique(maintain_order=True).to_list()[:LEANT_ON]
    levels = (("low", THIRD), ("middle", SOFT), ("high value", MODEL), ("no number", BASELINE))
    for label, colour in levels[: 4 if table["place"].null_count() else 3]:
        axes.plot([], [], "o", color=colour, markersize=3.2, markeredgewidth=0, label=label)
    width = max(abs(each) for each in table["contribution"]) or 1.0
    for place, name in enumerate(reversed(names)):
        part = table.filter(pl.col("column") == name)
        heights = _spread([each / width for each in part["contribution"]])
        for level, (_, colour) in enumerate(levels):
            kept = [row for row, value in enumerate(part["place"]) if (3 if value is None else min(int(3 * value), 2)) == level]
            if kept:
                x, y = [part["contribution"][row] for row in kept], [place + heights[row] for row in kept]
                axes.plot(x, y, "o", color=colour, markersize=3.2, alpha=0.75, markeredgewidth=0)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.grid(False, axis="y")
    people(axes, "added to the mean answer")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks(range(len(names)), [_label(each) for each in reversed(names)])
    legend_below(axes, x=0.1)


def _spread(values: Sequence[float], bins: int = 60) -> list[float]:
    """Heights from -0.4 to 0.4 that lay rows of like value beside each other."""
    counts: dict[int, int] = {}
    heights = []
    for value in values:
        place = round(bins * value)
        count = counts[place] = counts.get(place, 0) + 1
        heights.append(0.055 * (count // 2) * (1 if count % 2 else -1))
    return [max(min(each, 0.4), -0.4) for each in heights]


def _by_column(table: pl.DataFrame) -> float:
    """Inches for one line per column."""
    return 1.0 + 0.24 * min(table["column"].n_unique(), LEANT_ON)


# --- a table we do not know ------------------------------------------------------------------------------------------------


def _generic(key: str, name: str, table: pl.DataFrame) -> Chart:
    """A line for two numbers, bars for a name and a number, else the first rows as they are."""
    title = formatting.plain(name).capitalize()
    texts = [column for column in table.columns if not table[column].dtype.is_numeric()]
    numbers = [column for column in table.columns if table[column].dtype.is_numeric()]
    if len(texts) <= 1 and len(numbers) == 2:
        x, y = numbers

        def paint(axes: Axes, table: pl.DataFrame) -> None:
            _lines(axes, table, x, y, texts[0] if texts else None)
            people(axes, formatting.plain(x), formatting.plain(y))
            _legend(axes)

        return Chart(
            name, title, f"{formatting.plain(y).capitalize()} by {formatting.plain(x)}.", drawn(key, title, paint, table)
        )
    if len(texts) == 1 and len(numbers) == 1 and table.height <= ROWS:

        def paint_bars(axes: Axes, table: pl.DataFrame) -> None:
            people(axes, formatting.plain(texts[0]), formatting.plain(numbers[0]))
            _bars(axes, table[texts[0]].to_list(), table[numbers[0]].to_list())

        return Chart(
            name,
            title,
            f"{formatting.plain(numbers[0]).capitalize()} by {formatting.plain(texts[0])}.",
            drawn(key, title, paint_bars, table),
        )
    return _table(name, title, table)


def _table(name: str, title: str, table: pl.DataFrame) -> Chart:
    rows = tuple(tuple(_cell(value) for value in row) for row in table.head(ROWS).iter_rows())
    header = tuple(formatting.plain(column) for column in table.columns)
    return Chart(name, title, "", None, header, rows, max(table.height - ROWS, 0))


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return formatting.MISSING if value is None else value.isoformat() if isinstance(value, date) else str(value)
    return formatting.number(value)


# --- classification --------------------------------------------------------------------------------------------------------


def _roc(axes: Axes, table: pl.DataFrame) -> None:
    _lines(axes, table, "false_positive_rate", "true_positive_rate", "series")
    people(axes, "share of negatives called positive", "share of positives found", percent="xy")
    _legend(axes, loc="lower right")


def _precision_recall(axes: Axes, table: pl.DataFrame) -> None:
    _lines(axes, table, "recall", "precision", "series")
    axes.set_ylim(bottom=0)
    people(axes, "recall: share of positives found", "precision", percent="xy")
    _legend(axes, loc="upper right")


def _calibration(axes: Axes, table: pl.DataFrame) -> None:
    _lines(axes, table, "predicted", "observed", "series", marker="o", markersize=5)
    axes.set(xlim=(0, None), ylim=(0, None))
    _diagonal(axes, "as often as said")
    people(axes, "probability given", "share that came true", percent="xy")
    _legend(axes, loc="upper left")


def _gain(axes: Axes, table: pl.DataFrame) -> None:
    _lines(axes, table, "share_of_rows", "share_found", "series")
    people(axes, "share of cases asked, best first", "share of positives found", percent="xy")
    _legend(axes, loc="lower right")


def _scores(axes: Axes, table: pl.DataFrame) -> None:
    table = table.filter(pl.col("series") == table["series"][0])
    edges = [*table["low"].to_list(), table["high"][-1]]
    for column, name, colour in (("share_of_negatives", "negatives", BASELINE), ("share_of_positives", "positives", MODEL)):
        axes.stairs(table[column].to_list(), edges, color=colour, fill=True, alpha=0.45, label=name)
    people(axes, "probability given", "share of the class", percent="xy")
    _legend(axes, loc="upper right")


def _confusion(axes: Axes, table: pl.DataFrame) -> None:
    names = sorted({*table["truth"].cast(pl.String).to_list(), *table["predicted"].cast(pl.String).to_list()})
    found = {(str(truth), str(said)): rows for truth, said, rows in table.select("truth", "predicted", "rows").iter_rows()}
    totals = {name: sum(found.get((name, said), 0) for said in names) or 1 for name in names}
    shades = [[found.get((truth, said), 0) / totals[truth] for said in names] for truth in names]
    texts = [[f"{found.get((truth, said), 0):,}" for said in names] for truth in names]
    _heat(axes, shades, texts, names, names)
    axes.set(xlabel="said", ylabel="true")


# --- regression ------------------------------------------------------------------------------------------------------------


def _predicted_actual(axes: Axes, table: pl.DataFrame) -> None:
    shown = _thin(table.sort("predicted"), POINTS)
    axes.plot(
        shown["predicted"].to_list(), shown["actual"].to_list(), "o", color=MODEL, markersize=4, alpha=0.45, markeredgewidth=0
    )
    _diagonal(axes)
    people(axes, "predicted", "actual")


def _residuals(axes: Axes, table: pl.DataFrame) -> None:
    for name, part in sorted(_groups(table, "series"), key=lambda group: group[0] == "model"):
        model = name == "model"
        edges = [*part["low"].to_list(), part["high"][-1]]
        colour, alpha = (MODEL, 0.45) if model else (BASELINE, 1.0)
        axes.stairs(part["share"].to_list(), edges, color=colour, alpha=alpha, fill=model, linewidth=1.8, label=name)
    axes.axvline(0, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    people(axes, "actual minus predicted", "share of rows", percent="y")
    _legend(axes, loc="upper right")


def _error_by_prediction(axes: Axes, table: pl.DataFrame) -> None:
    _lines(axes, table, "decile", "mae", "series", marker="o", markersize=5)
    axes.set_ylim(bottom=0)
    people(axes, "tenth of the rows by prediction, smallest first", "mean absolute error")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    _legend(axes, loc="upper left")


# --- clustering ------------------------------------------------------------------------------------------------------------


def _profile(axes: Axes, table: pl.DataFrame) -> None:
    groups = table.unique("cluster", maintain_order=True).sort("cluster")
    features = table["feature"].unique(maintain_order=True).to_list()
    cells = {
        (group, feature): (mean, far)
        for group, feature, mean, far in table.select("cluster", "feature", "mean", "deviations").rows()
    }
    shown = [[cells.get((group, feature), (None, 0.0)) for group in groups["cluster"]] for feature in features]
    names = [f"{group}\n{formatting.share(part)}" for group, part in groups.select("cluster", "share").rows()]
    shades = [[(far or 0.0) / 1.5 for _, far in line] for line in shown]
    _heat(axes, shades, [[formatting.number(mean) for mean, _ in line] for line in shown], features, names)
    axes.set_xlabel("group and its size")


def _projection(axes: Axes, table: pl.DataFrame) -> None:
    for place, (name, part) in enumerate(_groups(_thin(table, POINTS).sort("cluster"), "cluster")):
        colour = SERIES[place % len(SERIES)]
        axes.plot(
            part["first"].to_list(),
            part["second"].to_list(),
            "o",
            color=colour,
            markersize=3.6,
            alpha=0.5,
            markeredgewidth=0,
            label=name,
        )
    people(axes, "first direction", "second direction")
    legend_below(axes, "group")


def _silhouettes(axes: Axes, table: pl.DataFrame) -> None:
    for place, (name, part) in enumerate(_groups(_thin(table, 2 * POSITIONS), "cluster")):
        axes.fill_between(
            part["place"].to_list(),
            0,
            part["silhouette"].to_list(),
            color=SERIES[place % len(SERIES)],
            alpha=0.6,
            linewidth=0,
            label=name,
        )
    axes.axhline(sum(table["silhouette"]) / table.height, color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
    people(axes, "rows of each group, the surest first", "silhouette")
    axes.set_xticks([])
    legend_below(axes, "group")


# --- recommendation --------------------------------------------------------------------------------------------------------


def _by_history(metric: str, label: str) -> Callable[[Axes, pl.DataFrame], None]:
    def paint(axes: Axes, table: pl.DataFrame) -> None:
        _lines(axes, table, "visits", metric, "series", marker="o", markersize=5)
        axes.set_ylim(bottom=0)
        people(axes, "visits before the cutoff", label)
        _legend(axes)

    return paint


def _sources(axes: Axes, table: pl.DataFrame) -> None:
    shown = table.sort("share")
    places = list(range(shown.height))
    axes.barh(places, shown["share"].to_list(), color=MODEL, alpha=0.85, height=0.66, linewidth=0)
    axes.grid(False, axis="y")
    people(axes, "share of all places in the lists", percent="x")
    axes.set_yticks(places, [_label(each) for each in shown["source"]])


def _catalogue(axes: Axes, table: pl.DataFrame) -> None:
    _lines(axes, table, "share_of_catalogue", "share_of_entries", "series")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    people(axes, "share of the catalogue, most frequent first", "share of all places", percent="xy")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    legend_below(axes)


def _candidates(axes: Axes, table: pl.DataFrame) -> None:
    """Each column shaded by its own best."""
    metrics = ("ndcg", "recall", "ndcg_novel", "recall_novel")
    best = {metric: max((value for value in table[metric] if value), default=1.0) for metric in metrics}
    cells = [[row[metric] or 0.0 for metric in metrics] for row in table.iter_rows(named=True)]
    shades = [[value / best[metric] for value, metric in zip(line, metrics, strict=True)] for line in cells]
    columns = [formatting.label(metric).replace(", ", "\n") for metric in metrics]
    _heat(axes, shades, [[formatting.number(value) for value in line] for line in cells], table["source"].to_list(), columns)


def _ablations(axes: Axes, table: pl.DataFrame) -> None:
    """Two dots with their intervals per source that is left out: all items, and new items."""
    left = table.filter(pl.col("variant") != "all sources")
    for place, (suffix, colour, name) in enumerate((("", MODEL, "all items"), ("_novel", THIRD, "new items"))):
        height = [down + 0.2 * place - 0.1 for down in range(left.height)]
        axes.hlines(height, left[f"low{suffix}"], left[f"high{suffix}"], color=colour, linewidth=1.4)
        axes.plot(left[f"gain{suffix}"].to_list(), height, "o", color=colour, markersize=6, label=name)
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    people(axes, "change of NDCG")
    axes.set_yticks(range(left.height), [_label(each) for each in left["variant"]])
    axes.set_ylim(left.height - 0.5, -0.5)
    axes.grid(False, axis="y")
    legend_below(axes)


def _diversity(axes: Axes, table: pl.DataFrame) -> None:
    """One line per kind of list, from the dial at 0 to the dial at 1."""
    _lines(axes, table, "diversity", "ndcg", "series", marker="o", markersize=5)
    for row in table.filter(pl.col("dial").is_in([0.0, 1.0])).iter_rows(named=True):
        axes.annotate(
            f"{row['dial']:g}", (row["diversity"], row["ndcg"]), xytext=(4, 4), textcoords="offset points", color=SOFT
        )
    axes.set_ylim(bottom=0)
    people(axes, "pairs of different categories in a list", "NDCG", "x")
    _legend(axes)


def _lists(axes: Axes, table: pl.DataFrame) -> None:
    """Series across, measures down, each with its interval; shaded by the largest of its measure."""
    names, measures = (table[name].unique(maintain_order=True).to_list() for name in ("series", "measure"))
    cells = {(row["series"], row["measure"]): row for row in table.iter_rows(named=True)}
    most = {name: part["value"].max() or 1.0 for (name,), part in table.group_by("measure")}
    lines = [[cells.get((series, measure)) for series in names] for measure in measures]
    shades = [[each["value"] / most[each["measure"]] if each else 0.0 for each in line] for line in lines]
    texts = [[_with_interval(each) if each else "" for each in line] for line in lines]
    columns = [name.replace(", ", "\n") for name in names]
    _heat(axes, shades, texts, [formatting.label(each) for each in measures], columns)


def _with_interval(cell: dict[str, Any]) -> str:
    places = 2 if cell["value"] > 1 else 3
    return f"{formatting.number(cell['value'], places)}\n± {formatting.number((cell['high'] - cell['low']) / 2, places)}"


def _in_groups(group: str, value: str, x: str, y: str, percent: str = "") -> Callable[[Axes, pl.DataFrame], None]:
    """One place along x per value of `group`, in their order, and one line per series, with bars from `low` to `high`."""

    def paint(axes: Axes, table: pl.DataFrame) -> None:
        names = table[group].unique(maintain_order=True).to_list()
        placed = table.with_columns(place=pl.Series([names.index(each) for each in table[group]]))
        _lines(axes, placed, "place", value, "series", marker="o", markersize=5)
        if {"low", "high"} <= set(table.columns):
            axes.vlines(placed["place"], placed["low"], placed["high"], color=SOFT, linewidth=1, zorder=1)
        axes.set_ylim(bottom=0)
        people(axes, x, y, percent)
        axes.set_xticks(range(len(names)), [str(name).replace(" and ", "\nand ").replace(" to ", "\nto ") for name in names])
        axes.grid(False, axis="x")
        _legend(axes)

    return paint


def _per_row(table: pl.DataFrame) -> float:
    """Inches that a heat map needs."""
    return 1.0 + 0.34 * table["feature" if "feature" in table.columns else "source"].n_unique()


CURVE = "With the other settings as chosen; the band goes from the lowest fold to the highest."
DRAWINGS: dict[str, Drawing] = {
    "gain": Drawing(
        "Gain",
        "Ask only the most likely share of all, and this many of the positives are among them.",
        ("series", "share_of_rows", "share_found"),
        _gain,
    ),
    "roc": Drawing(
        "ROC",
        "Positives found against false alarms, at every threshold; the further up and left, the better.",
        ("series", "false_positive_rate", "true_positive_rate"),
        _roc,
    ),
    "precision_recall": Drawing(
        "Precision and recall",
        "The more positives are to be found, the more of the calls are wrong.",
        ("series", "recall", "precision"),
        _precision_recall,
    ),
    "calibration": Drawing(
        "Calibration",
        "Tenths of the rows by probability: on the dashed line, what is said is what happens.",
        ("series", "predicted", "observed"),
        _calibration,
    ),
    "scores": Drawing(
        "Probabilities",
        "The less the two overlap, the better the model tells them apart.",
        ("series", "low", "high", "share_of_negatives", "share_of_positives"),
        _scores,
    ),
    "confusion": Drawing(
        "Confusion",
        "Rows by what is true and what is said at the threshold; the darker, the larger the share of its true class.",
        ("truth", "predicted", "rows"),
        _confusion,
    ),
    "predicted_actual": Drawing(
        "Predicted and actual",
        "One dot per row, evenly drawn from small to large predictions; on the dashed line both are the same.",
        ("predicted", "actual"),
        _predicted_actual,
    ),
    "residuals": Drawing(
        "Errors",
        "How far off, in the target’s unit; the narrower, the better. The widest hundredth is left out.",
        ("series", "low", "high", "share"),
        _residuals,
    ),
    "error_by_prediction": Drawing(
        "Error by size",
        "How far off predictions are, from the smallest tenth to the largest.",
        ("series", "decile", "mae"),
        _error_by_prediction,
    ),
    "profile": Drawing(
        "What makes a group",
        "Means by group. Green is above the mean of all, orange below; the stronger, the further away.",
        ("cluster", "share", "feature", "mean", "deviations"),
        _profile,
        _per_row,
    ),
    "projection": Drawing(
        "The map",
        "Rows on the two directions in which they differ most; the colour is the group.",
        ("cluster", "first", "second"),
        _projection,
        lambda _: HEIGHT + 0.4,
    ),
    "silhouettes": Drawing(
        "How sure the groups are",
        "One place per row: near 1 it sits deep in its group, below 0 it would fit another group better.",
        ("place", "cluster", "silhouette"),
        _silhouettes,
        lambda _: HEIGHT + 0.4,
    ),
    "ndcg_by_history": Drawing(
        "By length of history",
        "How good the lists are for users with few and with many visits.",
        ("series", "visits", "ndcg"),
        _by_history("ndcg", "NDCG"),
    ),
    "ndcg_novel_by_history": Drawing(
        "New items, by length of history",
        "The same for lists of items that the user never bought.",
        ("series", "visits", "ndcg_novel"),
        _by_history("ndcg_novel", "NDCG, new items"),
    ),
    "candidates": Drawing(
        "What each source is worth",
        "The candidates of the last window, sorted by one source alone and by the whole model.",
        ("source", "ndcg", "recall", "ndcg_novel", "recall_novel"),
        _candidates,
        _per_row,
    ),
    "ablations": Drawing(
        "What the whole loses without a source",
        "Both stages learned again without it, on a sample: left of zero it is missed; a bar across zero cannot tell.",
        ("variant", "gain", "low", "high", "gain_novel", "low_novel", "high_novel"),
        _ablations,
        lambda table: 1.3 + 0.45 * table.height,
    ),
    "by_visits": Drawing(
        "New and old customers",
        "How good the lists are by the visits before the cutoff, also for users without any; bars are 95 % intervals.",
        ("series", "visits", "ndcg", "low", "high"),
        _in_groups("visits", "ndcg", "visits before the cutoff", "NDCG"),
    ),
    "short_histories": Drawing(
        "What a short history is worth",
        "The same long-known users, had only so many of their newest visits been known. What was learned stays.",
        ("visits_known", "ndcg", "low", "high"),
        _in_groups("visits_known", "ndcg", "newest visits known", "NDCG"),
    ),
    "by_buyers": Drawing(
        "Rare and popular items",
        "Which share of what is bought was in the buyer's list, by how many users had bought the item before.",
        ("series", "buyers", "share", "found"),
        _in_groups("buyers", "found", "users who bought the item before", "found", "y"),
    ),
    "diversity": Drawing(
        "What diversity costs",
        "Lists of the last window with answers.diversity from 0 to 1: how mixed they get, and how good they stay.",
        ("series", "dial", "ndcg", "low", "high", "diversity"),
        _diversity,
    ),
    "lists": Drawing(
        "What the lists are like",
        "Beside what is really bought: how little known the items are (bits), how different from each other, how many repeats.",
        ("series", "measure", "value", "low", "high"),
        _lists,
        lambda table: 1.0 + 0.55 * table["measure"].n_unique(),
    ),
    "sources": Drawing(
        "Where the lists come from",
        "Each place in a list is credited to the source that ranked its item highest.",
        ("source", "share"),
        _sources,
        lambda table: 1.1 + 0.3 * table.height,
    ),
    "sources_novel": Drawing(
        "Where new items come from",
        "The same for lists of items that the user never bought.",
        ("source", "share"),
        _sources,
        lambda table: 1.1 + 0.3 * table.height,
    ),
    "catalogue": Drawing(
        "How wide the choice is",
        "The lower the curve, the more of the catalogue the lists use.",
        ("series", "share_of_catalogue", "share_of_entries"),
        _catalogue,
        lambda _: HEIGHT + 0.4,
    ),
    "learning_curve": Drawing(
        "More rows",
        "The score by how many rows it learned from: on these, and on others. Where the two meet, more of the same rows "
        "help no further.",
        ("rows", "series", "score", "low", "high", "metric"),
        _learning_curve,
        lambda _: HEIGHT + 0.3,
    ),
    **{
        f"validation_curve_{place}": Drawing(
            title,
            CURVE,
            ("value", "series", "score", "low", "high", "parameter", "chosen", "log", "metric"),
            _validation_curve,
            lambda _: HEIGHT + 0.3,
        )
        for place, title in ((1, "The setting that matters most"), (2, "The one after it"))
    },
    "bias_variance": Drawing(
        "Why it errs",
        "Its squared error on other rows. More rows or a simpler model take away variance, a richer model bias, nothing "
        "takes away noise.",
        ("part", "share"),
        _bias_variance,
        lambda _: 1.6,
    ),
    "permutation": Drawing(
        "What it leans on",
        "What of its score on rows it never saw is lost when a column is shuffled; the line is the interval. Columns that say "
        "the same stand in for each other.",
        ("column", "importance", "low", "high"),
        _permutation,
        _by_column,
    ),
    "contributions": Drawing(
        "What moves an answer",
        "One dot per row: what the column added to its answer or took from it (Shapley values; they add up to the answer).",
        ("answer", "column", "row", "contribution", "place"),
        _contributions,
        lambda table: 0.5 + _by_column(table),
    ),
}
"""Plot name -> how it is drawn, in the order of the page."""
