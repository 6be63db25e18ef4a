"""Curves over time: how good a version is from window to window, and what became of each policy of a replay."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.monitoring.ledger.records import Decision
from evergreen.monitoring.report import charts, formatting
from evergreen.monitoring.report.charts import BASELINE, INK, MODEL, PAPER, SERIES, Chart

WIDE, HIGH = 10.6, 3.6
"""Inches of a drawing as wide as the page."""
TICKS = 7


def replay(key: str, found: Mapping[str, Any]) -> Chart:
    """The quality of each policy from window to window. `found`: what replay.json says."""
    title = "Quality under each policy"
    caption = (
        "One line per policy (those that did the same lie within each other), its band the 95 % interval over entities; a dot "
        "where a retraining was promoted, a hollow one where the gate kept the champion."
    )
    table, paint = _replayed(found)
    return Chart("replay", title, caption, charts.drawn(key, title, paint, table, HIGH, WIDE))


def save_replay(found: Mapping[str, Any], path: Path) -> None:
    """The same as an SVG file."""
    table, paint = _replayed(found)
    charts.save(path, paint, table, HIGH, WIDE)


def _replayed(found: Mapping[str, Any]) -> tuple[pl.DataFrame, Any]:
    rows = [
        {"policy": each["policy"], "day": _day(point["day"]), "promoted": step["promoted"]}
        | {name: point[name] for name in ("score", "low", "high")}
        for each in found["outcomes"]
        for point, step in zip(each["points"], each["steps"], strict=True)
    ]
    schema = {"policy": pl.String, "day": pl.Int64, "promoted": pl.Boolean}
    table = pl.DataFrame(rows, schema=schema | dict.fromkeys(("score", "low", "high"), pl.Float64))
    label = formatting.label(found["metric"])

    def paint(axes: Any, table: pl.DataFrame) -> None:
        others = iter(SERIES * table.height)
        parts = table.partition_by("policy", maintain_order=True)
        for place, part in enumerate(parts):
            name = part["policy"][0]
            colour = BASELINE if name == "never" else next(others)
            width = 1.6 + 1.8 * (len(parts) - 1 - place)  # policies that did the same lie within each other
            known = part.filter(pl.col("score").is_not_null())
            days = known["day"].to_list()
            axes.fill_between(days, known["low"].to_list(), known["high"].to_list(), color=colour, alpha=0.1, linewidth=0)
            axes.plot(days, known["score"].to_list(), color=colour, label=name, linewidth=width)
            for promoted, fill in ((True, colour), (False, PAPER)):
                marked = known.filter(pl.col("promoted") == promoted)
                style = {"color": colour, "markerfacecolor": fill, "markersize": 5, "markeredgewidth": 1.2}
                axes.plot(marked["day"].to_list(), marked["score"].to_list(), "o", **style)
        charts.people(axes, "", label)
        _dates(axes, table["day"].to_list())
        charts.legend_below(axes)

    return table, paint


def timeline(key: str, looks: Sequence[Decision], retrained: Sequence[date]) -> Chart | None:
    """How good the predictions were from look to look. `retrained`: the days of retrainings. None where no score is known."""
    told = [row for each in looks for row in _scored(each)]
    if not told:
        return None
    metric, title = formatting.label(_metric(looks)), "From week to week"
    caption = (
        f"{metric} of each window, when its truths came, and as it was estimated before; bands are 95 % intervals, the dashed "
        "line is what the version had when it was judged. Triangles: alarms of drift. Upright lines: retrainings."
    )
    alarms = [each.at.date().toordinal() for each in looks if each.window.drift.alarm]
    days = [each.at.date().toordinal() for each in looks]

    def paint(axes: Any, table: pl.DataFrame) -> None:
        for what, colour, style in LINES:
            part = table.filter(pl.col("what") == what).unique("day", keep="last").sort("day")
            x = part["day"].to_list()
            if what == "expected":
                axes.step(x, part["score"].to_list(), where="post", color=colour, label=what, **style)
                continue
            there = part.filter(pl.col("low").is_not_null() & pl.col("high").is_not_null())
            band = {"color": colour, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(there["day"].to_list(), there["low"].to_list(), there["high"].to_list(), **band)
            axes.plot(x, part["score"].to_list(), "o-", color=colour, label=what if x else "_", **style)
        low, high = axes.get_ylim()
        for day in retrained:
            axes.axvline(day.toordinal(), color=INK, linewidth=1, linestyle=(0, (1, 2)))
        floor = low - 0.06 * (high - low)
        axes.plot(alarms, [floor] * len(alarms), "^", color=SERIES[1], markersize=7, label="alarm" if alarms else "_")
        axes.set_ylim(floor - 0.06 * (high - low), high)
        charts.people(axes, "", metric)
        _dates(axes, [*days, *table["day"].to_list()])
        charts.legend_below(axes)

    schema = {"what": pl.String, "day": pl.Int64} | dict.fromkeys(("score", "low", "high"), pl.Float64)
    return Chart("timeline", title, caption, charts.drawn(key, title, paint, pl.DataFrame(told, schema=schema), HIGH, WIDE))


LINES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("expected", BASELINE, {"linewidth": 1.3, "linestyle": (0, (4, 3))}),
    ("estimated", SERIES[2], {"linewidth": 1.6, "markersize": 4}),
    ("realised", MODEL, {"linewidth": 1.8, "markersize": 5}),
)


def _scored(look: Decision) -> list[dict[str, Any]]:
    """What one look says of scores: one row for each that is known, on the day that it is about."""
    found = look.window.performance
    if found is None:
        return []
    days = {"realised": found.realised_until or look.at, "estimated": look.at, "expected": look.at}
    return [
        {"what": what, "day": day.date().toordinal(), "score": each.score, "low": each.low, "high": each.high}
        for what, day in days.items()
        if (each := getattr(found, what)).score is not None
    ]


def _metric(looks: Sequence[Decision]) -> str:
    return next(each.window.performance.metric for each in reversed(looks) if each.window.performance)


def _day(text: Any) -> int:
    return date.fromisoformat(str(text)[:10]).toordinal()


def _dates(axes: Any, days: Sequence[int]) -> None:
    """Few ticks, as days people write."""
    if not days:
        return
    first, last = min(days), max(days)
    step = max((last - first) // (TICKS - 1), 1)
    places = list(range(first, last + 1, step))[:TICKS]
    axes.set_xticks(places, [f"{date.fromordinal(each).day} {date.fromordinal(each):%b}" for each in places])
