"""How well attributes place items that nobody has bought yet: some sold items are hidden from the model, as if they were new.

A user is offered the hidden items alone. Right is what he bought of them after the cutoff, and never before. Compared are the
orders by attributes, by how many users bought other items of the same category lately, and by chance.
"""

from datetime import date

import numpy as np
import polars as pl

from evergreen.tasks.problems.recommender.candidate_generation import LATELY, best, decayed
from evergreen.tasks.problems.recommender.candidate_sources import Decay, popularity
from evergreen.tasks.problems.recommender.estimators import TwoStage
from evergreen.tasks.problems.recommender.interactions import InteractionData, Targets
from evergreen.tasks.problems.recommender.item_contents import Contents
from evergreen.tasks.problems.recommender.ranking_metrics import per_user
from evergreen.tasks.problems.recommender.source_ablation import interval
from evergreen.tasks.problems.recommender.user_histories import codes, to_day

SHARE = 0.1
"""Of the items with enough buyers: how many are hidden."""
USERS = 2_000
"""Most users judged."""


def judge_hidden(model: TwoStage, data: InteractionData, cutoff: date, k: int, seed: int = 0) -> pl.DataFrame:
    """order, ndcg, low, high, hit_rate, users, items: one row per order of the hidden items, with the 95 % interval of NDCG.

    Empty where nobody with a history bought a hidden item that was new to him.
    """
    day, known = to_day(cutoff), data.before(cutoff)
    sold = known.catalogue(model.min_users)
    draw = np.random.default_rng(seed)
    hidden = np.sort(sold[draw.permutation(len(sold))[: round(SHARE * len(sold))]])
    targets, rows = data.targets(cutoff), data.draw(cutoff, USERS, seed)
    wanted = _wanted(targets, rows, codes(data.histories.items, hidden))
    judged = np.flatnonzero(wanted.any(axis=1))
    if not len(judged):
        return pl.DataFrame()
    wanted = wanted[judged]
    visible = known.part(np.flatnonzero(codes(known.items, hidden)[known.item] < 0))
    ids, columns = data.histories.users[targets.users[rows[judged]]], codes(hidden, known.items)
    of_users = codes(ids, known.users)
    contents = Contents.learn(data.items_table, known.items, columns)
    bought = decayed(visible, known.items, day, Decay(model.half_life_days, model.half_life_orders))[of_users]
    score = np.zeros(wanted.shape, np.float32)
    score[:, codes(contents.new, columns)] = contents.score(bought)
    recent = popularity(visible, known.items, day - LATELY + 1, day)
    category = data.categories[codes(known.items, data.histories.items)]
    usual = np.bincount(category, recent) / np.maximum(np.bincount(category), 1)
    orders = {
        "attributes": score,
        "popularity of the category": np.tile(usual[category[columns]], (len(judged), 1)),
        "random": draw.random(wanted.shape),
    }
    owned = known.matrix(hidden)[of_users].toarray() > 0
    return pl.DataFrame([_row(name, _without(each, owned), wanted, k) for name, each in orders.items()])


def _wanted(targets: Targets, rows: np.ndarray, column: np.ndarray) -> np.ndarray:
    """rows x hidden: what each bought after the cutoff for the first time. `column`: of each item, -1: visible."""
    row, item = targets.entries(True)
    place, at = column[item], codes(row, rows)
    kept = (place >= 0) & (at >= 0)
    found = np.zeros((len(rows), int((column >= 0).sum())), bool)
    found[at[kept], place[kept]] = True
    return found


def _without(score: np.ndarray, owned: np.ndarray) -> np.ndarray:
    return np.where(owned, -np.inf, score).astype(np.float32)


def _row(name: str, score: np.ndarray, wanted: np.ndarray, k: int) -> dict[str, str | float | int]:
    row, item = np.divmod(best(score, k), score.shape[1])
    by = np.lexsort((-score[row, item], row))
    row, item = row[by], item[by]
    hits = np.zeros((len(score), k), bool)
    hits[row, np.arange(len(row)) - np.searchsorted(row, row)] = wanted[row, item]
    ndcg = per_user(hits, wanted.sum(axis=1))["ndcg"]
    mean, low, high = interval(ndcg)
    found = {"ndcg": mean, "low": low, "high": high, "hit_rate": float(hits.any(axis=1).mean())}
    return {"order": name, **found, "users": len(score), "items": score.shape[1]}
