"""Ranked lists of items, and how purchases judge them."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import KindName, Recommend
from evergreen.tasks.core.paths import RECEIVED
from evergreen.tasks.problems.base import Metric
from evergreen.tasks.problems.prediction_type import Context, Labelled, scan
from evergreen.tasks.problems.recommendation.overlap import rank_biased_overlap

RANKED = ("ndcg", "recall", "map", "hit_rate")
BEYOND_ACCURACY = ("novelty", "diversity", "dissimilarity", "popularity_bias")
"""Metrics of lists other than their accuracy."""
FORMATS = {"novelty": ".2f", "popularity_bias": ".2f"}
NEW = "_novel"
"""Suffix of metrics and columns of lists of new items alone."""
LISTS = {"": False, NEW: True}
"""Suffix of metrics and columns -> whether the list holds new items only."""
COVERED = 50
"""Users whose lists the realised coverage counts, so that weeks of more and of fewer users can be compared."""
COVERAGE = f"coverage_{COVERED}"
"""How many items there are in the lists of COVERED users."""
ITEMS = "_items"
"""Column with the items of a list: coverage counts its entries; drift does not compare it as it is."""


class RankedLists(Labelled):
    """`items` of each user, best first; the label: what the user bought.

    Context: `bits`, item -> how rare it is among buyers, -log2 of its share; `rarest`: of any other item.
    """

    name: KindName = "recommendation"
    metrics = (
        *(
            Metric(f"{name}{suffix}", format=".4f", scale="proportion" if name == "hit_rate" else "share")
            for suffix in LISTS
            for name in RANKED
        ),
        *(
            Metric(f"{name}{suffix}", name != "popularity_bias", FORMATS.get(name, ".3f"))
            for suffix in LISTS
            for name in BEYOND_ACCURACY
        ),
        *(Metric(f"coverage{suffix}", format=".4f") for suffix in LISTS),
    )
    caveat = "Lists follow what was bought; that somebody was never shown an item does not mean it was not wanted."
    aspect = "ranking"
    largest_loss = 1.0
    labelled_by_moment = True
    no_estimate = "lists do not say how likely their items are bought"

    def question(self, name: str, columns: Mapping[str, str | None]) -> str:
        return f"Which {columns['item']} will each {columns['user']} take next?"

    def headline(self, section: Recommend) -> Metric:
        """The metric of the promotion gate: where lists are there to discover, that of new items."""
        return next((each for each in self.metrics if each.name == section.gate.metric), self.metrics[0])

    def realised_metric(self, section: Recommend) -> Metric:
        """The headline; of all items where lists show more than new ones, and NDCG where one user's list has no such score."""
        found = self.headline(section).name
        name = found if _counts_new(section) else found.removesuffix(NEW)
        return next((each for each in self.metrics if each.name == name and name.removesuffix(NEW) in RANKED), self.metrics[0])

    def _parse(self, given: Any, outputs: Collection[str]) -> list[Any]:
        """One item, several, or several as text of JSON."""
        if isinstance(given, str):
            with suppress(ValueError):
                given = json.loads(given)
        items = list(given) if isinstance(given, list | tuple | pl.Series) else [given]
        for item in items:
            if (
                isinstance(item, bool)
                or not isinstance(item, str | int | float)
                or item in ("", math.inf, -math.inf)
                or item != item
            ):
                raise ValueError(f"value = {given!s:.40}: is no list of items; an item is a text or a number")
        return items

    def readable(self, rows: pl.DataFrame) -> pl.Series:
        labels = rows["label"]
        flat = labels.dtype == pl.List(pl.String) or labels.dtype == pl.List(pl.Int64)
        return labels if flat else super().readable(rows)

    def score(self, predictions: pl.DataFrame, section: Recommend) -> dict[str, float]:
        """Means over users. Coverage is about the model, not about users: see `Recommendation.score_model`."""
        names = [f"{name}{suffix}" for kind in (RANKED, BEYOND_ACCURACY) for suffix in LISTS for name in kind]
        means = predictions.select(pl.col(names).mean().fill_null(float("nan"))).row(0)
        return dict(zip(names, means, strict=True))

    def resemblance(self, one: pl.DataFrame, other: pl.DataFrame) -> np.ndarray | None:
        """Rank-biased overlap of the lists."""
        if "items" not in one.columns:
            return None
        lists = (each["items"].cast(pl.List(pl.String)).to_list() for each in (one, other))
        return np.array([rank_biased_overlap(mine or (), theirs or ()) for mine, theirs in zip(*lists, strict=True)])

    def losses(self, rows: pl.DataFrame, labels: pl.Series, metric: str | None) -> np.ndarray:
        """1 - NDCG of the list, of binary gain (Järvelin and Kekäläinen 2002); 1 for a user who bought nothing: a version after
        which fewer users buy is worse."""
        return np.array([_ndcg_lost(*each) for each in zip(rows["items"], labels, strict=True)])

    def find_labels(
        self,
        wanted: pl.DataFrame,
        section: Recommend,
        tables: Mapping[str, Path],
        times: Mapping[str, str | None],
        folder: Path,
        as_of: date,
    ) -> Iterable[tuple[str, date, Any]]:
        """The items that each user bought, in the order of their ids; none for a user who bought nothing.

        Where the realised metric is one of new items, only those that the user had not bought before the list.

        After a served list (`at`) come the purchases of later days, and those of its own day whose moment is known and later.
        Orders without dates join only served lists, through the purchases that the server received.
        """
        dated, horizon = section.features.order is None, pl.duration(days=section.features.horizon_days)
        known = min(as_of, scan(folder / "known.parquet").collect().item()) if dated else as_of
        lines = scan(folder / "lines.parquet").select(pl.col("user").cast(pl.String).alias("entity"), "item", bought="day")
        moment = pl.col("at") if "at" in wanted.columns else pl.lit(None, pl.Datetime("us", "UTC"))
        wanted = wanted.with_columns(at=moment).filter(pl.col("day") + horizon <= known)
        wanted = wanted if dated else wanted.drop_nulls("at")
        after = _received(tables, lines, dated).join(wanted.lazy(), on="entity").filter(pl.col("moment") > pl.col("at"))
        if dated:
            day, bought = pl.col("day"), pl.col("bought")
            later = lines.join(wanted.lazy(), on="entity").filter(bought > day, bought <= day + horizon)
            after = pl.concat([after.filter(bought == day).select(later.collect_schema().names()), later])
        else:
            after = after.filter(pl.col("moment") <= pl.col("at") + horizon)
        key = ["entity", "day", "at"]
        if _counts_new(section):
            known_items = _bought_before(_received(tables, lines, dated), lines, wanted.lazy(), dated)
            after = after.join(known_items, on=[*key, "item"], how="anti", nulls_equal=True)
        lists = after.group_by(key).agg(pl.col("item").unique().sort()).collect()
        found = wanted.join(lists, on=key, how="left", nulls_equal=True).with_columns(pl.col("item").fill_null([]))
        return [(entity, at or day, items) for entity, day, at, items in found.select(*key, "item").iter_rows()]

    def as_predicted(self, rows: pl.DataFrame, section: Recommend) -> pl.DataFrame:
        """`prediction` and `hit_rate`: of the list, null for a user who bought nothing; `items`: the list."""
        from evergreen.tasks.problems.recommender.ranking_metrics import per_user

        texts = pl.List(pl.String)
        schema = {"entity": pl.String, "label_at": pl.Datetime("us", "UTC"), "label": texts, "prediction": pl.Float64}
        schema |= {"hit_rate": pl.Float64, "items": texts}
        if "items" not in rows.columns:
            return pl.DataFrame(schema=schema)
        k = section.pipeline.k
        bought = rows["label"].cast(texts) if rows["label"].dtype.base_type() == pl.List else rows["label"].clear(rows.height)
        rows = rows.select("entity", "label_at", pl.col("items").cast(texts), bought.cast(texts).alias("label"))
        hits, relevant = np.zeros((rows.height, k), bool), np.zeros(rows.height, int)
        for row, (items, label) in enumerate(rows.select("items", "label").iter_rows()):
            wanted = set(label or ())
            relevant[row] = len(wanted)
            hits[row, : min(len(items or ()), k)] = [each in wanted for each in (items or ())[:k]]
        values = per_user(hits, relevant)
        names = {"prediction": self.realised_metric(section).name.removesuffix(NEW), "hit_rate": "hit_rate"}
        found = rows.with_columns(pl.Series(name, values[metric], nan_to_null=True) for name, metric in names.items())
        return found.select(list(schema))

    def primary_score(self, predictions: pl.DataFrame, section: Recommend) -> float:
        """The mean over users, as in evaluation: one who asks often counts once."""
        return _mean_over_users(predictions, "prediction")

    def realised_scores(self, predictions: pl.DataFrame, section: Recommend) -> dict[str, float]:
        """The primary metric, `hit_rate` (a mean over users, too) and COVERAGE."""
        primary = self.primary_score(predictions, section)
        hits = _mean_over_users(predictions, "hit_rate")
        return {self.realised_metric(section).name: primary, "hit_rate": hits, COVERAGE: _coverage(predictions)}

    def why_undefined(self, labels: pl.Series, section: Recommend) -> str:
        what = "anything new" if _counts_new(section) else "anything"
        return f"none of the {len(labels):,} bought {what}, so there is no {self.realised_metric(section).name}"

    def context(self, folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
        """From the purchases up to the cutoff of the version."""
        lines = pl.scan_parquet(folder / "lines.parquet").filter(pl.col("day") <= date.fromisoformat(str(card["cutoff"])))
        known = lines.select("user", "item").unique().collect()
        users = max(known["user"].n_unique(), 1)
        buyers = known.group_by("item").len().filter(pl.col("len") > 1).sort("item")
        bits = (-(buyers["len"] / users).log(2)).round(3)
        return {"bits": dict(zip(buyers["item"].cast(pl.String), bits, strict=True)), "rarest": float(np.log2(users))}

    def comparable(self, rows: pl.DataFrame, features: pl.DataFrame | None, context: Context) -> pl.DataFrame:
        """`popularity` of a list: minus the mean bits of its items; `repeats` where the rows have it; and ITEMS."""
        name = _items(rows)
        if name is None:
            return pl.DataFrame()
        bits = context.get("bits", {})
        known = pl.DataFrame({"item": list(bits), "bits": list(bits.values())}, {"item": pl.String, "bits": pl.Float64})
        items = rows.select(pl.col(name).cast(pl.List(pl.String)).alias("item"))
        long = items.with_row_index("row").explode("item").drop_nulls("item").join(known, on="item", how="left")
        mean = long.group_by("row").agg(-pl.col("bits").fill_null(context.get("rarest", 0.0)).mean())
        order = pl.DataFrame({"row": pl.Series(range(rows.height), dtype=pl.UInt32)})
        found = {"popularity": order.join(mean, on="row", how="left", maintain_order="left")["bits"]}
        if "repeats" in rows.columns:
            found["repeats"] = rows["repeats"].cast(pl.Float64, strict=False)
        return pl.DataFrame(found | {ITEMS: items["item"]})

    def purchases(self, folder: Path, section: Recommend) -> tuple[pl.DataFrame, date] | None:
        path = folder / "lines.parquet"
        if section.features.order is not None or not path.exists():
            return None
        return pl.read_parquet(path, columns=["user", "item", "day"]), pl.read_parquet(folder / "known.parquet").item()

    def with_history(self, rows: pl.DataFrame, folder: Path) -> pl.DataFrame:
        """With `repeats`: the share of a list (entity, cutoff or at, items) that its user had bought by then."""
        name, path = _items(rows), folder / "lines.parquet"
        if name is None or "repeats" in rows.columns or not path.exists():
            return rows
        day = pl.coalesce(*(pl.col(each).cast(pl.Date) for each in ("cutoff", "at") if each in rows.columns))
        long = rows.select(pl.col("entity").cast(pl.String), day.alias("known"), pl.col(name).alias("item"))
        long = long.with_row_index("row").explode("item").with_columns(pl.col("item").cast(pl.String)).drop_nulls("item")
        lines = pl.read_parquet(path, columns=["user", "item", "day"])
        first = lines.select(pl.col("user").cast(pl.String).alias("entity"), pl.col("item").cast(pl.String), "day")
        first = first.join(long.select("entity", "item").unique(), on=["entity", "item"], how="semi")
        first = first.group_by("entity", "item").agg(pl.col("day").min())
        share = (pl.col("day") <= pl.col("known")).fill_null(False).mean().alias("repeats")
        found = long.join(first, on=["entity", "item"], how="left").group_by("row").agg(share)
        return rows.with_row_index("row").join(found, on="row", how="left", maintain_order="left").drop("row")


PREDICTIONS = RankedLists()


def _counts_new(section: Recommend) -> bool:
    """Whether lists show new items alone and are judged by those."""
    return section.lists.show == "discover" and (section.gate.metric or "").endswith(NEW)


def _ndcg_lost(items: Any, bought: Any) -> float:
    if bought is None or isinstance(bought, str) or items is None or not len(items):
        return math.nan
    wanted = {str(each) for each in bought}
    if not wanted:
        return 1.0
    gains = [1 / np.log2(place + 2) for place in range(len(items))]
    hits = sum(gain for gain, item in zip(gains, items, strict=True) if str(item) in wanted)
    return 1 - float(hits / sum(gains[: len(wanted)]))


def _mean_over_users(predictions: pl.DataFrame, value: str) -> float:
    found = predictions.drop_nulls(value).group_by("entity").agg(pl.col(value).mean())[value].mean()
    return found if isinstance(found, float) else math.nan


def _coverage(predictions: pl.DataFrame) -> float:
    """How many items there are in the lists of COVERED users, drawn at random: the expected number. NaN where there are fewer
    than twice as many users.

    Rarefaction: Hurlbert 1971.
    """
    users = predictions["entity"].n_unique()
    if users < 2 * COVERED:
        return math.nan
    shown = predictions.select("entity", pl.col("items").alias("item")).explode("item").drop_nulls().unique()
    without = users - shown.group_by("item").len()["len"].sort().to_numpy().astype(float)
    draws = np.arange(COVERED)
    never = np.prod(np.maximum(without[:, None] - draws, 0) / (users - draws), axis=1)
    return float((1 - never).sum())


def _received(tables: Mapping[str, Path], lines: pl.LazyFrame, dated: bool) -> pl.LazyFrame:
    """The purchases of the server whose moment is known, if the features hold them too: entity, item, bought and moment."""
    path, item = tables.get(RECEIVED), lines.collect_schema()["item"]
    received = scan(path) if path else pl.LazyFrame()
    if "moment" not in received.collect_schema():
        return lines.with_columns(moment=pl.lit(None, pl.Datetime("us", "UTC"))).clear()
    columns = pl.col("user").alias("entity"), pl.col("item").cast(item, strict=False), pl.col("day").alias("bought"), "moment"
    held = ["entity", "item", *(["bought"] if dated else [])]
    return received.drop_nulls("moment").select(*columns).join(lines.select(held), on=held, how="semi")


def _bought_before(received: pl.LazyFrame, lines: pl.LazyFrame, wanted: pl.LazyFrame, dated: bool) -> pl.LazyFrame:
    """entity, day, at and item: what the user of each of `wanted` had bought when the list was made.

    On the day of the list itself a purchase of unknown moment came before it.
    """
    held = ["entity", "item", *(["bought"] if dated else [])]
    later = received.group_by(held).len("received")
    plain = lines.group_by(held).len().join(later, on=held, how="left").filter(pl.col("len") > pl.col("received").fill_null(0))
    day, bought = pl.col("day"), pl.col("bought")
    own = plain.join(wanted, on="entity").filter(bought <= day if dated else True)
    by_moment = pl.when(pl.col("at").is_null()).then(bought <= day).otherwise(pl.col("moment") <= pl.col("at"))
    heard = received.join(wanted, on="entity").filter(by_moment)
    return pl.concat([each.select("entity", "day", "at", "item") for each in (own, heard)]).unique()


def _items(rows: pl.DataFrame) -> str | None:
    return next((name for name in ("items", "prediction") if name in rows.columns and rows[name].dtype == pl.List), None)
