"""Tables behind the pictures of a recommender: by length of history, by source, across the catalogue, and where it is cold.

Intervals (low, high) are normal ones with the confidence of CONFIDENT; the rows of one user count as one.
"""

from collections.abc import Sequence
from datetime import date

import numpy as np
import polars as pl

from evergreen.tasks.problems.recommender.candidate_generation import OWN, order
from evergreen.tasks.problems.recommender.candidate_sources import SOURCES
from evergreen.tasks.problems.recommender.estimators import FirstStage, Recommender, TwoStage
from evergreen.tasks.problems.recommender.interactions import MAX_SHARED_USERS, InteractionData
from evergreen.tasks.problems.recommender.ranker_features import FEATURES
from evergreen.tasks.problems.recommender.ranking_metrics import of_lists, per_user
from evergreen.tasks.problems.recommender.reranking import choose
from evergreen.tasks.problems.recommender.user_histories import Histories, codes, distinct, take, to_day

LISTS = {"": False, "_novel": True}
"""Suffix of metrics and columns -> whether the list holds new items only."""
GROUPS = 8
"""Groups of users of about the same size, from short to long histories."""
POINTS = 100
"""Points of a curve."""
CONFIDENT = 1.96
"""Standard errors to each side of a mean: 95 %."""
VISITS = {0: "none", 1: "1", 4: "2 to 4", 19: "5 to 19", 49: "20 to 49", None: "50 and more"}
"""Most visits before the cutoff -> group of users."""
BUYERS = {0: "none", 4: "1 to 4", 19: "5 to 19", 99: "20 to 99", 499: "100 to 499", None: "500 and more"}
"""Most users who bought an item before the cutoff -> group of items."""
SAMPLED_USERS = 300
"""Users, drawn at random, whose histories are cut short to see what a short one is worth."""
DIALS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Settings of lists.diversity to look at."""
KNOWN = (0, 1, 2, 5, 10)
"""Visits that are left of a history that is cut short."""


def plots(
    predictions: pl.DataFrame, baseline: pl.DataFrame, model: Recommender, data: InteractionData, k: int
) -> dict[str, pl.DataFrame]:
    """Plot name -> table; `predictions` and `baseline` are rows of `predict` over all test windows."""
    rows = {"model": predictions, "baseline": baseline}
    tables = {f"ndcg{suffix}_by_history": _by_history(rows, f"ndcg{suffix}") for suffix in LISTS}
    on = model.learned_.sources if isinstance(model, FirstStage) else SOURCES
    tables |= {f"sources{suffix}": _sources(predictions[f"sources{suffix}"], on) for suffix in LISTS}
    tables["catalogue"] = _catalogue(rows, model, data)
    tables["lists"] = _lists(rows, data)
    tables["by_visits"] = _by_visits(rows)
    tables["by_buyers"] = _by_buyers(rows, data)
    if (short := _short_histories(rows["model"], model, data, k)).height:
        tables["short_histories"] = short
    if isinstance(model, TwoStage) and data.categories.any() and (dial := _diversity(rows["model"], model, data, k)).height:
        tables["diversity"] = dial
    if isinstance(model, TwoStage) and rows["model"].height <= MAX_SHARED_USERS:
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


def _sources(lists: pl.Series, on: Sequence[str]) -> pl.DataFrame:
    """source, share: which part of all list entries each source that is `on` is credited with."""
    credited = entries(lists)
    return pl.DataFrame({"source": on, "share": [(credited == name).sum() / max(len(credited), 1) for name in on]})


def _catalogue(rows: dict[str, pl.DataFrame], model: Recommender, data: InteractionData) -> pl.DataFrame:
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


def _purchases(cutoffs: list[date], data: InteractionData) -> np.ndarray:
    """How many users bought each item in the windows."""
    items = np.concatenate([data.targets(each).pairs % len(data.histories.items) for each in cutoffs])
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


def _lists(rows: dict[str, pl.DataFrame], data: InteractionData) -> pl.DataFrame:
    """series, measure, value, low, high: what the lists are like, beside what is bought in the windows (`purchases`)."""
    given, cutoffs = rows["model"], rows["model"]["cutoff"].unique().sort().to_list()
    bought = [_of_purchases(given.filter(pl.col("cutoff") == each), each, data) for each in cutoffs]
    novel = given.select("entity", **{name: f"{name}_novel" for name in LIKE})
    everything = {"model": given, "model, new items": novel, "baseline": rows["baseline"], "purchases": pl.concat(bought)}
    measures = [
        {"series": series, "measure": name, **mean(frame, name)}
        for series, frame in everything.items()
        for name in (*LIKE, "repeats")
        if name in frame.columns
    ]
    return pl.DataFrame(measures).drop_nulls()


LIKE = ("novelty", "diversity", "dissimilarity")


def _of_purchases(rows: pl.DataFrame, cutoff: date, data: InteractionData) -> pl.DataFrame:
    """entity and what its purchases after `cutoff` are like."""
    targets = data.targets(cutoff)
    found = of_lists(*targets.entries(False), len(targets.users), data.items(cutoff))
    like = pl.DataFrame({"entity": data.histories.users[targets.users], **found}, nan_to_null=True)
    return like.join(rows.select("entity", repeats="bought_repeats"), on="entity", how="left", maintain_order="left")


def mean(rows: pl.DataFrame, column: str) -> dict[str, float | None]:
    """value, low, high: the mean of `column`, never negative, where it is known; the rows of one `entity` vary together."""
    known = rows.select("entity", pl.col(column).cast(pl.Float64)).drop_nulls().drop_nans(column)
    if known.is_empty():
        return {"value": None, "low": None, "high": None}
    value = float(known[column].mean())  # type: ignore[arg-type]
    apart = known.group_by("entity").agg((pl.col(column) - value).sum())[column].to_numpy()
    error = CONFIDENT * float(np.sqrt((apart**2).sum())) / known.height
    return {"value": value, "low": max(value - error, 0.0), "high": value + error}


def _grouped(values: np.ndarray, groups: dict[int | None, str]) -> pl.Series:
    """The name of the group of each value."""
    edges = [most for most in groups if most is not None]
    names = list(groups.values())
    return pl.Series("group", [names[place] for place in np.searchsorted(edges, values)], dtype=pl.String)


def _by_visits(rows: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """series, visits, users, ndcg, low, high, ndcg_novel, low_novel, high_novel: one row per series and group of users."""
    found = []
    for series, frame in rows.items():
        grouped = frame.with_columns(_grouped(frame["visits"].to_numpy(), VISITS))
        for name in VISITS.values():
            part = grouped.filter(pl.col("group") == name)
            row: dict[str, str | float | None] = {"series": series, "visits": name, "users": part["entity"].n_unique()}
            for suffix in LISTS:
                value, low, high = mean(part, f"ndcg{suffix}").values()
                row |= {f"ndcg{suffix}": value, f"low{suffix}": low, f"high{suffix}": high}
            found.append(row)
    return pl.DataFrame(found, infer_schema_length=None).filter(pl.col("users") > 0)


def _by_buyers(rows: dict[str, pl.DataFrame], data: InteractionData) -> pl.DataFrame:
    """series, buyers, share, found: of the items bought in the windows, by how many users had bought them before.

    share: of all purchases in the windows. found: the share of them that was in the buyer's list.
    """
    series = [("model", rows["model"], ""), ("model, new items", rows["model"], "_novel"), ("baseline", rows["baseline"], "")]
    found = []
    for name, frame, suffix in series:
        parts = [_met(part, suffix, data) for _, part in frame.group_by("cutoff", maintain_order=True)]
        buyers, met = (np.concatenate(each) for each in zip(*parts, strict=True))
        table = pl.DataFrame({"group": _grouped(buyers, BUYERS), "met": met}).group_by("group")
        counts = {group: (size, share) for group, size, share in table.agg(pl.len(), pl.col("met").mean()).iter_rows()}
        found += [
            {"series": name, "buyers": group, "share": counts[group][0] / len(met), "found": counts[group][1]}
            for group in BUYERS.values()
            if group in counts
        ]
    return pl.DataFrame(found)


def _met(rows: pl.DataFrame, suffix: str, data: InteractionData) -> tuple[np.ndarray, np.ndarray]:
    """Of each purchase in one window: how many users had bought the item before, and whether it was in the list."""
    cutoff = rows["cutoff"][0]
    targets = data.targets(cutoff)
    row, item = targets.entries(bool(suffix))
    before = np.bincount(targets.known % targets.items, minlength=targets.items)
    listed = rows.select("entity", item=f"items{suffix}").explode("item").drop_nulls()
    user = codes(listed["entity"].to_numpy().astype(data.histories.users.dtype), data.histories.users[targets.users])
    place = codes(listed["item"].to_numpy().astype(data.histories.items.dtype), data.histories.items)
    return before[item], np.isin(row * targets.items + item, user * targets.items + place)


def _short_histories(predictions: pl.DataFrame, model: Recommender, data: InteractionData, k: int) -> pl.DataFrame:
    """visits_known, ndcg, low, high: lists of the last window had only so many of a user's newest visits been known.

    About the same users each time, those with the longest cut or more; what was learned stays.
    """
    cutoff = predictions["cutoff"].max()
    assert isinstance(cutoff, date)
    targets, known = data.targets(cutoff), data.windows.before(cutoff)
    enough = np.flatnonzero(data.visits(targets.users, cutoff) > max(KNOWN))
    chosen = np.sort(np.random.default_rng(0).permutation(enough)[:SAMPLED_USERS])
    users, relevant = targets.users[chosen], targets.sizes(False)[chosen]
    place, visit = _visits(known, users)
    found = []
    for count in (*KNOWN, None) if len(chosen) else ():
        cut = known.part(np.sort(place if count is None else place[visit < count]))
        lists = model.reading(cut, to_day(cutoff)).rank(np.full(len(users), -1) if count == 0 else users, k, False)
        item = data.places_of(lists, model.catalogue_)
        hits = np.zeros((len(chosen), k), bool)
        hits[lists.row, lists.rank] = targets.holds(chosen[lists.row], item, False)
        score = pl.DataFrame({"entity": np.arange(len(chosen)), "ndcg": per_user(hits, relevant)["ndcg"]})
        value, low, high = mean(score, "ndcg").values()
        found.append({"visits_known": "all" if count is None else str(count), "ndcg": value, "low": low, "high": high})
    return pl.DataFrame(found)


def _visits(known: Histories, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in `known`, number of visits of the same user that came later) of every line of these users."""
    row, place = known.places(users)
    first = row.astype(np.int64) * 2**32
    day = first + known.day[place] + 2**31
    days = distinct(day)
    return place, np.searchsorted(days, first + 2**32) - np.searchsorted(days, day) - 1


def _diversity(predictions: pl.DataFrame, model: TwoStage, data: InteractionData, k: int) -> pl.DataFrame:
    """series, dial, ndcg, low, high, diversity: what lists.diversity costs, on the last window, for the same drawn users."""
    cutoff = predictions["cutoff"].max()
    assert isinstance(cutoff, date)
    rows, targets, found = data.draw(cutoff, SAMPLED_USERS, 0), data.targets(cutoff), []
    scorer: TwoStage = data.scorer(model, cutoff)
    candidates, label, score = data.scored_rows(scorer, cutoff, rows)
    category = take(scorer.learned_.category, candidates.item, scorer.learned_.numbers(candidates.late)[0])
    place = data.places_of(candidates, scorer.catalogue_)
    for series, suffix, kept in (("all items", "", label | True), ("new items", "_novel", ~candidates.bought)):
        by = np.flatnonzero(kept)[order(candidates.row[kept], score[kept])[0]]
        starts = np.searchsorted(candidates.row[by], np.arange(len(rows) + 1))
        for dial in DIALS if len(rows) else ():
            lists = [part[choose(category[part], k, None, dial, [], None)] for part in np.split(by, starts[1:-1])]
            row = np.repeat(np.arange(len(rows)), [len(each) for each in lists])
            hits = np.zeros((len(rows), k), bool)
            hits[row, np.concatenate([np.arange(len(each)) for each in lists])] = label[np.concatenate(lists)]
            ndcg = per_user(hits, targets.sizes(bool(suffix))[rows])["ndcg"]
            value, low, high = mean(pl.DataFrame({"entity": rows, "ndcg": ndcg}), "ndcg").values()
            like = of_lists(row, place[np.concatenate(lists)], len(rows), data.items(cutoff))["diversity"]
            point = {"ndcg": value, "low": low, "high": high, "diversity": float(np.nanmean(like))}
            found.append({"series": series, "dial": dial, **point})
    return pl.DataFrame(found)


def _candidates(predictions: pl.DataFrame, model: TwoStage, data: InteractionData, k: int) -> pl.DataFrame:
    """source, ndcg, recall, ndcg_novel, recall_novel: candidates of the last window sorted by each source, and by the ranker.

    Means over users with a history. `tifu_knn` ranks as TIFU-kNN does: own purchases and those of similar users together.
    """
    cutoff = predictions["cutoff"].max()
    assert isinstance(cutoff, date)
    scorer: TwoStage = data.scorer(model, cutoff)
    (found, ranked), targets, known = data.scored(scorer, cutoff), data.targets(cutoff), data.known_rows(cutoff)
    scores = {name: found.features[:, FEATURES.index(name)] for name in scorer.learned_.sources}
    if "tifu_knn" in scores:
        scores["tifu_knn"] = OWN * scores["rebuy"] + (1 - OWN) * scores["tifu_knn"]
    scores["two_stage"] = ranked
    item, rows = data.places_of(found, scorer.catalogue_), []
    for name, score in scores.items():
        row: dict[str, str | float] = {"source": name}
        for suffix, novel in LISTS.items():
            kept = ~found.bought if novel else np.ones(len(score), bool)
            by, rank = order(found.row[kept], score[kept])
            top = np.flatnonzero(kept)[by[rank < k]]
            hits = np.zeros((len(known), k), bool)
            hits[found.row[top], rank[rank < k]] = targets.holds(known[found.row[top]], item[top], novel)
            values = per_user(hits, targets.sizes(novel)[known])
            row |= {f"{metric}{suffix}": float(np.nanmean(values[metric])) for metric in ("ndcg", "recall")}
        rows.append(row)
    return pl.DataFrame(rows)
