"""The lists that a challenger would have made where the champion's were served, judged by the propensities of those.

Judged are the served lists of one horizon, the newest whose purchases are all known. The challenger's configuration learns up
to the day before that horizon, reads histories up to the day before each list, and explores nothing; the champion makes its
lists in the same way, so that neither knows a purchase that judges it.
"""

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta

import polars as pl

from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.rollout.off_policy import FEWEST, estimate
from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Recommend
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import Model
from evergreen.tasks.problems.prediction_type import Labelled
from evergreen.tasks.problems.recommender.evaluation_windows import CalendarWindows
from evergreen.tasks.problems.recommender.interactions import InteractionData
from evergreen.tasks.problems.recommender.list_builder import ListBuilder
from evergreen.tasks.problems.recommender.list_request import Request
from evergreen.tasks.problems.recommender.user_histories import to_day
from evergreen.tasks.release.off_policy_value import OffPolicyValue
from evergreen.tasks.search.best_config import load_best_config

log = logging.getLogger(__name__)

MOST = 5_000
"""Newest lists that are judged."""
SIMPLE = ("k", "show", "place", "blend", "diversity")
"""What a request may say; lists for a basket or with rules of their own are left out."""
IGNORED = ("explore", "as_of")


def judge_challenger(
    params: Params, problem: str, layout: Layout, ledger: Ledger, champion: Model, version: int
) -> OffPolicyValue | None:
    """Of the newest model of `problem` beside its champion, `version`. None for a kind without lists, without dates or calendar
    windows, and where too few lists with exploration were served and labelled to begin with."""
    section = params.section(problem)
    if section.predicts != "lists" or section.features.order is not None or section.features.judge_by != "calendar":
        return None
    if "propensities" not in ledger.output_names(problem):
        return None
    kind = problems.kind(params.kind(problem))
    data: InteractionData = kind.load(layout.features(problem), section)
    assert isinstance(data.windows, CalendarWindows)
    horizon = timedelta(days=data.horizon_days)
    first, last = data.as_of - 2 * horizon, data.as_of - horizon
    zone = params.ingest[section.features.table].local_timezone or "UTC"
    served = _served(params, problem, ledger, version, (first, last), zone)
    known = [each for each in data.windows.cutoffs() if data.windows.end(each) <= to_day(first)]
    if served is None or not known:
        return None
    log.info("%s: gate: %s served lists with exploration judge lists that nobody saw", problem, f"{served.height:,}")
    config = load_best_config(layout.tuning(problem), problem)
    challenger = kind.fit(data, known, config, section, params.project.seed)
    data.forget()
    for name, model in (("wanted", challenger), ("against", champion)):
        served = served.join(_lists(model, data, section, served).rename({"list": name}), on="id", how="left")
    return estimate(served, params.project.seed, section.gate.confidence)


def _served(
    params: Params, problem: str, ledger: Ledger, version: int, days: tuple[date, date], zone: str
) -> pl.DataFrame | None:
    """id, entity, day (local), items, propensities, label and the request of the labelled lists of `version` after the first
    and up to the last of `days`, the newest MOST. None: too few."""
    since, until = (datetime.combine(day + timedelta(days=more), time.min, UTC) for day, more in zip(days, (0, 2), strict=True))
    found = ledger.read(problem, since=since, until=until, version=version, variants=("champion",))
    kind = problems.predictions(params.kind(problem))
    assert isinstance(kind, Labelled)
    asked = found.features.select(pl.all().name.prefix("asked_"))
    rows = found.rows.hstack(asked.get_columns())
    if not {"items", "propensities", "label"} <= set(rows.columns):
        return None
    usual = [f"asked_{name}" for name in (*SIMPLE, *IGNORED)]
    special = [pl.col(name).is_null() for name in asked.columns if name not in usual]
    rows = rows.with_columns(kind.readable(rows), day=pl.col("at").dt.convert_time_zone(zone).dt.date())
    rows = rows.filter(
        pl.col("day") > days[0], pl.col("day") <= days[1], pl.col("cutoff").is_null(), *special,
    ).drop_nulls(["entity", "items", "propensities", "label"]).tail(MOST)  # fmt: skip
    if rows.is_empty() or rows["items"].list.len().sum() < FEWEST:
        return None
    simple = [f"asked_{name}" for name in SIMPLE if f"asked_{name}" in rows.columns]
    return rows.select("id", "entity", "day", "items", "propensities", "label", *simple)


def _lists(model: Model, data: InteractionData, section: Recommend, served: pl.DataFrame) -> pl.DataFrame:
    """id and `list`, what `model` would have shown in its place."""
    builder = ListBuilder.of(model, data, section)
    return pl.concat(_made(builder, part) for part in _requests(served))


def _requests(served: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Rows of one day and one request, day by day; those of a list as long as that which was served."""
    asked = [name for name in served.columns if name.startswith("asked_")]
    rows = served.with_columns(length=pl.col("items").list.len()).sort("day", maintain_order=True)
    yield from rows.partition_by("day", "length", *asked, maintain_order=True)


def _made(builder: ListBuilder, rows: pl.DataFrame) -> pl.DataFrame:
    first = rows.row(0, named=True)
    wishes = {name: first[f"asked_{name}"] for name in SIMPLE if first.get(f"asked_{name}") is not None}
    users, before = tuple(rows["entity"].to_list()), first["day"] - timedelta(days=1)
    asked = {**wishes, "users": users, "k": first["length"], "as_of": before, "explore": 0.0, "explain": False}
    made = builder.recommend(Request.read(asked))
    lists = pl.DataFrame({"row": made.row, "list": pl.Series(made.item).cast(pl.String)})
    lists = lists.group_by("row", maintain_order=True).agg("list")
    found = rows.select("id").with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    return found.join(lists.with_columns(pl.col("row").cast(pl.Int64)), on="row", how="left").select("id", "list")
