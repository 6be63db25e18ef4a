"""Truths from outside the ledger: those of a file, and those that the project's own data hold once a horizon has passed."""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.monitoring.ledger.label_matching import Label, LabelCounts, RejectedLabel
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.tasks.config.params import Features, Interactions, KindName, Params, Problem, Table, nearest, tables_of
from evergreen.tasks.core.errors import DataError, ParamsError, SourceError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems import naming

AGAIN = timedelta(days=28)
"""Truths that became known so lately are looked up again: rows come late, and rows are mended."""

ID = ("id", "prediction_id")
TRUTH = ("truth", "target", "label", "value")
TIME = ("cutoff", "at", "time")
KNOWN = ("known_at",)
"""What columns of a file of truths are called, where params and the caller do not say."""

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
    asked = ledger.unlabelled(problem, until=as_of - after, recheck_after=as_of - after - AGAIN)
    if asked.is_empty():
        return 0
    with naming(problem):
        if isinstance(features, Interactions):
            found = _bought(layout, problem, features.horizon_days, as_of, asked)
        else:
            found = _targets(params, problem, layout, features, as_of, asked)
    told = ledger.add_labels(
        problem,
        [
            Label(value, entity=entity, at=day, known_at=datetime.combine(day + after, time.max, UTC))
            for entity, day, value in found
        ],
    )
    return told.matched + told.pending + told.changed


def _targets(params: Params, problem: str, layout: Layout, features: Features, as_of: date, asked: pl.DataFrame) -> Found:
    from evergreen.tasks.problems.tabular.point_in_time import CUTOFF, TARGET, targets

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


# Of a file


@dataclass(frozen=True)
class Columns:
    """The columns of a file of truths. None: by their usual names and by those in params."""

    truth: str | None = None
    id: str | None = None
    entity: str | None = None
    time: str | None = None
    known: str | None = None


def label(
    ledger: Ledger, problem: str, kind: KindName, section: Problem, rows: pl.DataFrame, columns: Columns = Columns()
) -> LabelCounts:
    """Write the truths of a file: each row names its prediction by id, or by entity and time, and says what turned out.

    Rows that cannot be kept are refused one by one, by their place from 0. Raises DataError where a column that is needed is
    not there, ParamsError for a problem where nothing is ever true.
    """
    if kind == "clustering":
        raise ParamsError(f"{problem}: is a problem of clustering, where nothing turns out true or false; name another one")
    chosen = _choose(rows, section, columns)
    truths, places, refused = list[Label](), list[int](), list[RejectedLabel]()
    for place, row in enumerate(rows.select(pl.col(each).alias(name) for name, each in chosen.items()).iter_rows(named=True)):
        try:
            truths.append(_truth(row, kind))
            places.append(place)
        except ValueError as error:
            refused.append(RejectedLabel(place, str(error)))
    told = ledger.add_labels(problem, truths)
    refused += [RejectedLabel(places[each.index], each.reason) for each in told.rejected]
    return replace(told, rejected=tuple(sorted(refused, key=lambda each: each.index)))


def _choose(rows: pl.DataFrame, section: Problem, asked: Columns) -> dict[str, str]:
    """truth, id, entity, time and known -> the column of `rows`. Raises DataError where one is missing."""
    features = section.features
    entity = features.user if isinstance(features, Interactions) else features.entity
    table = features if isinstance(features, Table) else None
    usual = {
        "truth": (*TRUTH, table and table.target),
        "id": ID,
        "entity": (entity,),
        "time": (*TIME, table and table.time),
        "known": KNOWN,
    }
    found = dict[str, str]()
    for role, names in usual.items():
        if (named := getattr(asked, role)) is not None:
            if named not in rows.columns:
                raise DataError(f"--{role} {named}: no such column{nearest(named, rows.columns)}")
            found[role] = named
        elif there := [name for name in names if name in rows.columns]:
            found[role] = there[0]
    shown = ", ".join(rows.columns) or "(none)"
    if "truth" not in found:
        raise DataError(f"columns {shown}: none is called {', '.join(filter(None, usual['truth']))}; name it with --truth")
    if "id" not in found and not {"entity", "time"} <= found.keys():
        raise DataError(
            f"columns {shown}: which prediction is a row about? It needs id, or {entity or 'an entity (--entity)'} and cutoff "
            "or at; name them with --id, or --entity and --time"
        )
    return found


def _truth(row: Mapping[str, Any], kind: KindName) -> Label:
    """Raises ValueError, saying why, for a row that says nothing."""
    named = {name: _key(row.get(name)) for name in ("id", "entity")}
    known = _moment("known_at", row.get("known"))
    if known is not None and not isinstance(known, datetime):
        known = datetime.combine(known, time.max)
    return Label(value_of(kind, row["truth"]), **named, at=_moment("time", row.get("time")), known_at=known)


def _key(given: Any) -> str | None:
    """7 and 7.0 are the same one."""
    whole = isinstance(given, float) and given.is_integer()
    return None if given is None else str(int(given) if whole else given).strip()


def value_of(kind: KindName, given: Any) -> Any:
    """A truth as a problem of that kind has it: a number, a class, or a list of items (also as text of JSON).

    Raises ValueError, saying why, for what can be none.
    """
    if given is None or given != given or given == "":
        raise ValueError("has no value")
    if kind == "recommendation":
        if isinstance(given, str):
            with suppress(ValueError):
                given = json.loads(given)
        return list(given) if isinstance(given, list | tuple) else [given]
    if isinstance(given, date):
        return str(given)
    if isinstance(given, str) and given.lstrip("-").isdigit() and str(int(given)) == given:
        return int(given)
    if kind != "regression":
        return given
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"value = {given!s:.40}: is no number")
    return number


def _moment(name: str, given: Any) -> datetime | date | None:
    if given is None or isinstance(given, date):
        return given
    text = str(given).strip()
    try:
        return date.fromisoformat(text) if len(text) == len("YYYY-MM-DD") else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name} = {text:.40}: is neither a day (YYYY-MM-DD) nor a time (YYYY-MM-DDTHH:MM:SS)") from None
