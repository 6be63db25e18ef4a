"""Tables behind the pictures of a recommender: by length of history, by source, across the catalogue."""

from datetime import date

import numpy as np
import polars as pl

from tasks.problems.ranking.candidates import OWN, order
from tasks.problems.ranking.features import FEATURES
from tasks.problems.ranking.histories import codes
from tasks.problems.ranking.metrics import per_user
from tasks.problems.ranking.models import Recommender, TwoStage
from tasks.problems.ranking.purchases import Purchases
from tasks.problems.ranking.sources import SOURCES

LISTS = {"": False, "_novel": True}
"""Suffix of metrics and columns -> whether the list holds new items only."""
GROUPS = 8
"""Groups of users of about the same size, from short to long histories."""
POINTS = 100
"""Points of a curve."""


def plots(
    predictions: pl.DataFrame, baseline: pl.DataFrame, model: Recommender, data: Purchases, k: int
) -> dict[str, pl.DataFrame]:
    """Plot name -> table; `predictions` and `baseline` are rows of `predict` over all test windows."""
    rows = {"model": predictions, "baseline": baseline}
    tables = {f"ndcg{suffix}_by_history": _by_history(rows, f"ndcg{suffix}") for suffix in LISTS}
    tables |= {f"sources{suffix}": _sources(predictions[f"sources{suffix}"]) for suffix in LISTS}
    tables["catalogue"] = _catalogue(rows, model, data)
    if isinstance(model, TwoStage):
        tables["candidates"] = _candidates(predictions, model, data, k)
    return tables


def entries(lists: pl.Series) -> pl.Series:
    """All entries of all lists."""
    return lists.explode().drop_nulls()


def _by_history(rows: dict[str, pl.DataFrame], metric: str) -> pl.DataFrame:
    """series, visits (median of the group), the mean metric: one row per series and group."""
    visits = rows["model"]["visits"].to_numpy()
    edges = np.unique(np.quantile(visits, np.arange(1, GROUPS) / GROUPS)) if len(visits) else np.zeros(0)
    groups = [
        frame.group_by(pl.Series("group", np.searchsorted(edges, frame["visits"].to_numpy())))
        .agg(pl.col("visits").median(), pl.col(metric).mean())
        .sort("visits")
        .select(pl.lit(name).alias("series"), "visits", metric)
        for name, frame in rows.items()
    ]
    return pl.concat(groups).drop_nulls()


def _sources(lists: pl.Series) -> pl.DataFrame:
    """source, share: which part of all list entries each source is credited with."""
    credited = entries(lists)
    return pl.DataFrame({"source": SOURCES, "share": [(credited == name).sum() / max(len(credited), 1) for name in SOURCES]})


def _catalogue(rows: dict[str, pl.DataFrame], model: Recommender, data: Purchases) -> pl.DataFrame:
    """series, share_of_catalogue, share_of_entries: the items that fill most places come first."""
    size = len(model.catalogue_)
    lists = {
        "model": rows["model"]["items"],
        "model, new items": rows["model"]["items_novel"],
        "baseline": rows["baseline"]["items"],
    }
    counts = {name: entries(each).value_counts()["count"].to_numpy() for name, each in lists.items()}
    counts["purchases"] = _purchases(rows["model"]["cutoff"].unique().to_list(), data)
    return pl.concat([_curve(name, each, size) for name, each in counts.items() if len(each)])


def _purchases(cutoffs: list[date], data: Purchases) -> np.ndarray:
    """How many users bought each item in the windows."""
    items = np.concatenate([data.truth(each).pairs % len(data.histories.items) for each in cutoffs])
    return np.unique(items, return_counts=True)[1]


def _curve(name: str, counts: np.ndarray, size: int) -> pl.DataFrame:
    """Points are denser where the curve is steep: at its start."""
    share = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
    places = np.unique(np.geomspace(1, max(len(share), 1), POINTS).astype(int))
    return pl.DataFrame(
        {
            "series": [name] * len(places),
            "share_of_catalogue": np.minimum(places / size, 1),
            "share_of_entries": share[places - 1],
        }
    )


def _candidates(predictions: pl.DataFrame, model: TwoStage, data: Purchases, k: int) -> pl.DataFrame:
    """source, ndcg, recall, ndcg_novel, recall_novel: candidates of the last window sorted by each source, and by the ranker.

    Means over users with a history. `similar` ranks as TIFU-kNN does: own purchases and those of similar users together.
    """
    cutoff = predictions["cutoff"].max()
    assert isinstance(cutoff, date)
    found, truth = data.candidates(model.learned_, cutoff, model.settings), data.truth(cutoff)
    known = data.known_rows(cutoff)
    scores = {name: found.features[:, FEATURES.index(name)] for name in SOURCES}
    scores["similar"] = OWN * scores["again"] + (1 - OWN) * scores["similar"]
    scores["two_stage"] = model.order_by(found)
    item = codes(model.catalogue_, data.histories.items)
    rows = []
    for name, score in scores.items():
        row: dict[str, str | float] = {"source": name}
        for suffix, novel in LISTS.items():
            kept = ~found.bought if novel else np.ones(len(score), bool)
            by, rank = order(found.row[kept], score[kept])
            top = np.flatnonzero(kept)[by[rank < k]]
            hits = np.zeros((len(known), k), bool)
            hits[found.row[top], rank[rank < k]] = truth.holds(known[found.row[top]], item[found.item[top]], novel)
            values = per_user(hits, truth.sizes(novel)[known])
            row |= {f"{metric}{suffix}": float(np.nanmean(values[metric])) for metric in ("ndcg", "recall")}
        rows.append(row)
    return pl.DataFrame(rows)
