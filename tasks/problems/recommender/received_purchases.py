"""Purchases that the server received, added to those of the tables; a purchase that is in both counts once."""

import logging
from collections.abc import Mapping
from datetime import date

import polars as pl

from evergreen.tasks.config.params import Interactions
from evergreen.tasks.core.paths import RECEIVED
from evergreen.tasks.problems.recommender.item_catalogue import allowed

log = logging.getLogger(__name__)

ENOUGH = 0.5
"""Received purchases move the last known day if at least this share of the usual number of users is in them."""


def add(
    lines: pl.DataFrame, tables: Mapping[str, pl.LazyFrame], section: Interactions, as_of: date
) -> tuple[pl.DataFrame, date]:
    """`lines` (user, basket, item, day, perhaps `step` and `weight`) with the received purchases, and the last known day.

    The day is that of the newest purchase received, if the days after `as_of` have at least half of the users that as many
    days before have in the tables. Otherwise the server does not receive all purchases, so that those days would be taken for
    weak ones: purchases after `as_of` then wait for the tables.
    """
    if RECEIVED not in tables:
        return lines, as_of
    received = _typed(tables[RECEIVED], lines, tables, section)
    day = _last_day(lines, received, as_of)
    known = received.filter(pl.col("day") <= day)
    log.info("%s of the purchases are from the server", f"{known.height:,}")
    if waiting := received.height - known.height:
        log.warning(
            "%s purchases that the server received after %s wait until the tables reach their days: they are from fewer than "
            "half of the usual number of users",
            f"{waiting:,}", as_of,
        )  # fmt: skip
    if "step" in lines.columns:  # the newest, in the order of their days
        first = lines.select(pl.col("step").max() + 1).item()
        known = known.with_columns(step=pl.lit(first) + pl.int_range(pl.len()))
    if "weight" in lines.columns:
        known = known.with_columns(weight=pl.lit(1, pl.Float32))
    return pl.concat([lines, known.select(lines.columns)], how="vertical_relaxed"), day


def places(tables: Mapping[str, pl.LazyFrame], known: pl.DataFrame) -> pl.DataFrame:
    """`known` (user, basket, place) with the places of received baskets."""
    if RECEIVED not in tables:
        return known
    columns = ["user", "basket", "place"]
    received = tables[RECEIVED].select(columns).drop_nulls().unique(columns[:2], keep="first", maintain_order=True).collect()
    text = known.select(pl.col(columns).cast(pl.String))
    return pl.concat([text, received]).unique(columns[:2], keep="first", maintain_order=True)


def _typed(
    received: pl.LazyFrame, lines: pl.DataFrame, tables: Mapping[str, pl.LazyFrame], section: Interactions
) -> pl.DataFrame:
    """The received purchases of items that are not excluded, with ids of the types that `lines` has, by day."""
    types = {name: lines.schema[name] for name in ("user", "item")}
    found = received.select(pl.col(name).cast(kind, strict=False) for name, kind in types.items()).collect()
    found = found.with_columns(received.select("basket", "day").collect())
    basket = found["basket"].cast(lines.schema["basket"], strict=False)
    found = (found if basket.null_count() else found.with_columns(basket)).drop_nulls().sort("day", maintain_order=True)
    if section.items is None or not section.exclude:
        return found
    kept = allowed(tables[section.items], section).select(item=section.item).collect()
    return found.join(kept, on="item", how="semi", maintain_order="left")


def _last_day(lines: pl.DataFrame, received: pl.DataFrame, as_of: date) -> date:
    later = received.filter(pl.col("day") > as_of)
    if later.is_empty():
        return as_of
    newest: date = later["day"].to_list()[-1]
    usual = lines.filter(pl.col("day") > as_of - (newest - as_of))["user"].n_unique()
    return newest if later["user"].n_unique() >= ENOUGH * usual else as_of
