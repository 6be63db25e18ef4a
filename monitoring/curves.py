"""Curves over time: how good a version is from window to window, and what became of each policy of a replay."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from monitoring import charts, words
from monitoring.charts import BASELINE, PAPER, SERIES, Chart

WIDE, HIGH = 8.6, 3.3
"""Inches of a drawing as wide as the page."""
TICKS = 7


def replay(key: str, found: Mapping[str, Any]) -> Chart:
    """The quality of each policy from window to window. `found`: what replay.json says."""
    title = "Quality under each policy"
    caption = (
        "One line per policy, its band the 95 % interval over entities; a dot where a retraining was promoted, a hollow one "
        "where the gate kept the champion."
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
    label = words.label(found["metric"])

    def paint(axes: Any, table: pl.DataFrame) -> None:
        others = iter(SERIES * table.height)
        for part in table.partition_by("policy", maintain_order=True):
            name = part["policy"][0]
            colour = BASELINE if name == "never" else next(others)
            known = part.filter(pl.col("score").is_not_null())
            days = known["day"].to_list()
            axes.fill_between(days, known["low"].to_list(), known["high"].to_list(), color=colour, alpha=0.1, linewidth=0)
            axes.plot(days, known["score"].to_list(), color=colour, label=name, linewidth=1.8)
            for promoted, fill in ((True, colour), (False, PAPER)):
                marked = known.filter(pl.col("promoted") == promoted)
                style = {"color": colour, "markerfacecolor": fill, "markersize": 5, "markeredgewidth": 1.2}
                axes.plot(marked["day"].to_list(), marked["score"].to_list(), "o", **style)
        charts.people(axes, "", label)
        _dates(axes, table["day"].to_list())
        charts.legend_below(axes)

    return table, paint


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
