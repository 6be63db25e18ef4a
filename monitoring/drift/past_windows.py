"""Past windows of a version: histograms of what was compared, stored beside its reference data.

They show how much weeks differ where the reference does not, and slow changes that no single window shows.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from evergreen.monitoring.drift.histograms import Histogram
from evergreen.monitoring.drift.reference_data import PartName, PastPart
from evergreen.tasks.core.paths import writing

log = logging.getLogger(__name__)

MOST = 26
"""The newest windows that are used."""
KEPT_DAYS = 800
"""Older windows are removed."""


PastWindow = Mapping[PartName, PastPart]
"""What drift detection keeps of a window."""


def save(window: PastWindow, folder: Path, until: datetime) -> None:
    """Write the window that ends at `until` to the `folder` of a reference; the same window again replaces it."""
    rows = [
        {
            "part": name,
            "time": part.time,
            "column": column,
            "rows": float(each.rows),
            "odd": each.odd,
            "counts": each.counts.tolist(),
            "beyond": each.beyond.tolist(),
            "calm": column in part.calm,
            "faulty": column in part.faulty,
        }
        for name, part in window.items()
        for column, each in part.columns.items()
    ]
    if not rows:
        return
    with writing(_path(folder, until)) as scratch:
        pl.DataFrame(rows).write_parquet(scratch)
    for old in sorted((folder / "windows").glob("*.parquet")):
        if _read_moment(old) < until - timedelta(days=KEPT_DAYS):
            old.unlink(missing_ok=True)


def load(folder: Path, until: datetime, days: int) -> list[PastWindow]:
    """The newest windows before the one of `days` days that ends at `until`; none overlaps with it or with another one.

    Oldest first. A damaged file is left out.
    """
    found: list[PastWindow] = []
    limit, tolerance = until, timedelta(hours=2)
    for path in sorted((folder / "windows").glob("*.parquet"), reverse=True):
        moment = _read_moment(path)
        if moment <= limit - timedelta(days=days) + tolerance and len(found) < MOST:
            try:
                found.append(_read(path))
            except (OSError, KeyError, pl.exceptions.PolarsError) as error:
                log.warning("%s: is damaged and left out: %s", path, error)
                continue
            limit = moment
    return found[::-1]


def _path(folder: Path, until: datetime) -> Path:
    return folder / "windows" / f"{until.astimezone(UTC):%Y%m%dT%H%M%S}.parquet"


def _read_moment(path: Path) -> datetime:
    return datetime.strptime(path.stem, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def _read(path: Path) -> PastWindow:
    parts: dict[PartName, PastPart] = {}
    for (name,), rows in pl.read_parquet(path).partition_by("part", as_dict=True).items():
        columns = {
            each["column"]: Histogram(each["rows"], each["odd"], np.array(each["counts"]), np.array(each["beyond"]))
            for each in rows.iter_rows(named=True)
        }
        calm, faulty = (frozenset(rows.filter(pl.col(flag))["column"]) for flag in ("calm", "faulty"))
        parts[name] = PastPart(rows["time"][0], columns, calm, faulty)  # pyright: ignore[reportArgumentType]
    return parts
