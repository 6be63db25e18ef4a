"""Ablation of candidate sources: both stages are refitted without each source and compared with the full model.

For speed on a sample: a few hundred random users, the same for all, two windows for training and one for evaluation. Scores are
therefore slightly below those of the full model; only their differences count.
"""

import copy
from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl

from evergreen.tasks.problems.recommender.candidate_generation import Candidates, Learned, order
from evergreen.tasks.problems.recommender.estimators import TwoStage
from evergreen.tasks.problems.recommender.interactions import InteractionData, Targets
from evergreen.tasks.problems.recommender.ranking_metrics import per_user
from evergreen.tasks.problems.recommender.user_histories import to_day

SWITCHED = ("ease", "tifu_knn", "item_knn", "co_visitation", "als", "segment_popularity", "content")
"""Sources that can be off, named as their part of what was learned. Own purchases and popularity are always there."""
WINDOWS = 2
"""Windows to learn from."""


def ablate(model: TwoStage, data: InteractionData, cutoff: date, k: int, users: int) -> pl.DataFrame:
    """variant, ndcg, recall, ndcg_novel, recall_novel; gain, low, high, gain_novel, low_novel, high_novel.

    gain: how much better NDCG is than that of all sources, on the same users, with its 95 % interval; below 0, the source
    that is left out was of use. Empty where there are too few windows to learn from.
    """
    days = [day for day in data.windows.cutoffs() if data.windows.end(day) <= to_day(cutoff)][-WINDOWS:]
    days = [day for day in days if day > data.first and len(data.known_rows(day))]
    if not days or not len(data.known_rows(cutoff)):
        return pl.DataFrame()
    rows, whole = [], {}
    for name in ("", *(source for source in SWITCHED if getattr(model.learned_, source) is not None)):
        found = _without(name, model, data, cutoff, days, k, users)
        whole = whole or found
        row: dict[str, str | float | None] = {"variant": f"without {name}" if name else "all sources"}
        for suffix in ("", "_novel"):
            row |= {f"{metric}{suffix}": float(np.nanmean(found[f"{metric}{suffix}"])) for metric in ("ndcg", "recall")}
            gain = interval(found[f"ndcg{suffix}"] - whole[f"ndcg{suffix}"])
            row |= {f"{label}{suffix}": value for label, value in zip(("gain", "low", "high"), gain, strict=True)}
        rows.append(row)
    return pl.DataFrame(rows)


def _without(
    source: str, model: TwoStage, data: InteractionData, cutoff: date, days: list[date], k: int, users: int
) -> dict[str, np.ndarray]:
    """Each metric of every user of the sample, for two stages that never knew `source`."""
    settings, examples = model.settings, []
    for day in days:
        learned = _stripped(data.learned(to_day(day), settings), source)
        examples.append(data.labelled(learned, day, settings, data.draw(day, users, 0)))
    learned, rows = _stripped(model.learned_, source), data.draw(cutoff, users, 0)
    twin = copy.copy(model).learn_ranker(learned, examples)
    found, label = data.labelled(learned, cutoff, settings, rows)
    return _scores(found, label, twin.order_by(found), data.targets(cutoff), rows, k)


def _stripped(learned: Learned, source: str) -> Learned:
    return replace(learned, **{source: None}) if source else learned


def _scores(
    found: Candidates, label: np.ndarray, score: np.ndarray, targets: Targets, rows: np.ndarray, k: int
) -> dict[str, np.ndarray]:
    """Metrics of the lists of everything and of new items, one per user of `rows` of the targets."""
    metrics = {}
    for suffix, kept in (("", np.ones(len(score), bool)), ("_novel", ~found.bought)):
        by, rank = order(found.row[kept], score[kept])
        top = np.flatnonzero(kept)[by[rank < k]]
        hits = np.zeros((len(rows), k), bool)
        hits[found.row[top], rank[rank < k]] = label[top]
        metrics |= {f"{name}{suffix}": value for name, value in per_user(hits, targets.sizes(bool(suffix))[rows]).items()}
    return metrics


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of what is known of `values`, and its normal 95 % interval."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return float("nan"), float("nan"), float("nan")
    mean, error = float(known.mean()), 1.96 * float(known.std(ddof=1)) / len(known) ** 0.5
    return mean, mean - error, mean + error
