"""Truths that a project's own data hold: what became of the predictions of event problems, once their horizon has passed."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from monitoring.ledger import Ledger, Truth
from tasks.errors import SourceError
from tasks.layout import Layout
from tasks.params import Features, Interactions, Params, tables_of
from tasks.problems import naming

AGAIN = timedelta(days=28)
"""Truths that became known so lately are looked up again: rows come late, and rows are mended."""

Found = Iterable[tuple[str, date, Any]]
"""Whom a truth is about, the day after which it begins, and what it is."""


def collect(params: Params, problem: str, layout: Layout, ledger: Ledger, as_of: date) -> int:
    """Write the truths of the predictions in `ledger` whose horizon had passed at the end of `as_of`; returns how many are new
    or changed.

    They are those of the labels that features are built with: of the days 1 to `horizon_days` after the last day that the
    features knew, or after the day on which an answer was asked for. A target comes from data/tables, so the answers may be of
    any day; what users of a recommender bought comes from its features. A truth is known at the end of the last of those days,
    or when monitor.labels_after_days says. A problem of a plain table, and one without target, has none here.
    """
    section = params.section(problem)
    features = section.features
    if not isinstance(features, Interactions) and (not isinstance(features, Features) or features.target is None):
        return 0
    after = timedelta(days=max(features.horizon_days, section.monitor.labels_after_days or 0))
    asked = ledger.untold(problem, until=as_of - after, again=as_of - after - AGAIN)
    if asked.is_empty():
        return 0
    with naming(problem):
        if isinstance(features, Interactions):
            found = _bought(layout, problem, features.horizon_days, as_of, asked)
        else:
            found = _targets(params, problem, layout, features, as_of, asked)
    told = ledger.label(
        problem,
        [
            Truth(value, entity=entity, at=day, known_at=datetime.combine(day + after, time.max, UTC))
            for entity, day, value in found
        ],
    )
    return told.matched + told.waiting + told.changed


def _targets(params: Params, problem: str, layout: Layout, features: Features, as_of: date, asked: pl.DataFrame) -> Found:
    from tasks.problems.tabular.point_in_time import CUTOFF, TARGET, targets

    tables = {name: _scan(layout.table(name)) for name in tables_of(params.section(problem))}
    times = {name: params.ingest[name].time for name in tables}
    rows = targets(tables, times, features, as_of, asked.rename({"entity": features.entity, "day": CUTOFF}))
    return rows.select(pl.col(features.entity).cast(pl.String), CUTOFF, TARGET).drop_nulls().iter_rows()


def _bought(layout: Layout, problem: str, horizon_days: int, as_of: date, asked: pl.DataFrame) -> Found:
    """The items of each, in the order of their ids; none for a user who bought nothing."""
    folder = layout.features(problem)
    known = min(as_of, _scan(folder / "known.parquet").collect().item())
    lines = _scan(folder / "lines.parquet").select(pl.col("user").cast(pl.String).alias("entity"), "item", bought="day")
    asked = asked.filter(pl.col("day") + pl.duration(days=horizon_days) <= known)
    later = (
        asked.lazy()
        .join(lines, on="entity")
        .filter(pl.col("bought") > pl.col("day"), pl.col("bought") <= pl.col("day") + pl.duration(days=horizon_days))
    )
    lists = later.group_by("entity", "day").agg(pl.col("item").unique().sort())
    return asked.join(lists.collect(), on=["entity", "day"], how="left").with_columns(pl.col("item").fill_null([])).iter_rows()


def _scan(path: Path) -> pl.LazyFrame:
    if not path.is_file():
        raise SourceError(f"{path}: is not there, so no truth can be looked up. Build the features first: evergreen train")
    return pl.scan_parquet(path)
