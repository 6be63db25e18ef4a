"""How much a purchase counts: by its quantity or by its rating, robust against heavy tails."""

import logging
from collections.abc import Mapping

import polars as pl

from evergreen.tasks.config.params import Interactions
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import require

log = logging.getLogger(__name__)

LEAST, MOST = 0.25, 4.0
"""Weights of quantities: sixteen times the usual quantity of an item, or more, counts as four purchases."""
BEST = 2.0
"""Largest weight of a rating."""
LINE = ["user", "basket", "item"]


def value(section: Interactions, schema: Mapping[str, pl.DataType]) -> dict[str, pl.Expr]:
    """The column `value` of `section.weight`, as numbers; empty without one. Raises ParamsError for a column of no numbers."""
    if section.weight is None:
        return {}
    require(section.weight, list(schema), "features.weight")
    if not schema[section.weight].is_numeric():
        raise ParamsError(
            f"features.weight = {section.weight}: holds {schema[section.weight]}, not numbers; name a column of quantities or "
            "ratings, or declare its type under ingest"
        )
    number = pl.col(section.weight).cast(pl.Float64)
    return {"value": pl.when(number.is_finite()).then(number)}


def weigh(lines: pl.DataFrame, section: Interactions) -> pl.DataFrame:
    """One row per user, basket and item with its `weight`, where `lines` (user, basket, item, when, value) have a value.

    quantity: lines below 0 are returns and left out; those of one basket and item are added up; 0 weighs 1, as a missing value.
    rating: the mean counts.
    """
    if "value" not in lines.columns:
        return lines
    if section.weight_as == "rating":
        once = _once(lines, pl.col("value").mean())
        return once.with_columns(weight=_rated(once["value"]).cast(pl.Float32))
    returned = (lines["value"] < 0).fill_null(False)
    if count := int(returned.sum()):
        log.warning("%s lines with %s below 0 are returns; they are left out", f"{count:,}", section.weight)
    once = _once(lines.filter(~returned), pl.col("value").sum())
    usual = pl.col("value").filter(pl.col("value") > 0).median().over("item")
    share = pl.when(pl.col("value") > 0).then((pl.col("value") / usual).sqrt().clip(LEAST, MOST))
    return once.with_columns(weight=share.fill_null(1.0).cast(pl.Float32))


def _once(lines: pl.DataFrame, total: pl.Expr) -> pl.DataFrame:
    """The first row of each user, basket and item, and `total` of its values."""
    rest = pl.col([name for name in lines.columns if name not in (*LINE, "value")])
    return lines.sort("when").group_by(LINE, maintain_order=True).agg(rest.first(), total.alias("value"))


def _rated(values: pl.Series) -> pl.Series:
    above = values - values.min()
    usual = above.filter(above > 0).median()
    if usual is None:  # all alike
        return pl.Series(values=[1.0]).new_from_index(0, len(values))
    return (above / usual).clip(0, BEST).fill_null(1.0)
