"""Null distributions of the drift statistics: a window and a reference drawn from the reference itself.

Both are drawn by entity, since the rows of one entity resemble each other. Weeks differ without drift too: to the window of
each draw is added a difference as between the weeks that are known (drift.week_differences).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from evergreen.monitoring.drift import histograms
from evergreen.monitoring.drift.histograms import Bins, Categories, Codes, Numbers

STEP = 2 ** (1 / 4)
"""Sizes of windows are rounded down to a power of this: thresholds are then up to a tenth too high, never too low."""
TAIL = 0.1
"""Share of the draws that the tail is fitted to."""
HEAVIEST = 0.8
"""Shape of the heaviest tail."""
USUAL_SHAPE, USUAL_DRAWS = 0.2, 40
"""Shape of the tail of the square of Student's t with ten degrees of freedom, which counts as much as so many draws."""
LIGHT = 1e-6
"""A tail of a smaller shape is exponential."""
HALF = 0.5
"""Prior count of missing rows, so that a first one is not impossible."""

Shares = tuple[np.ndarray, np.ndarray]
"""Rows per bin and sums of Codes.beyond, both per row: draws x bins."""


def rounded(size: int) -> int:
    """`size` on the coarse grid, never above it."""
    return max(1, math.floor(STEP ** math.floor(math.log(size, STEP) + 1e-9) + 1e-9)) if size > 0 else 0


@dataclass(frozen=True, eq=False)
class Weights:
    """How often each row of a reference is in each draw: arrays of rows x draws."""

    window: np.ndarray
    reference: np.ndarray
    week: np.ndarray
    """Week of each row, 0 to K - 1."""
    times: np.ndarray
    """Of each week, in weeks."""
    share: np.ndarray
    """Of each row, its share of its entity in its week."""
    extra: np.ndarray
    """Of each draw, share of rows that are missing for the first time."""


def weights(entity: np.ndarray, week: np.ndarray, times: np.ndarray, size: int, draws: int, seed: int) -> Weights:
    """For rows of `entity` (codes) in `week` (codes) at `times`; `size`: clusters in a window.

    Each entity counts once a week.
    """
    random = np.random.default_rng([seed, size])
    people = int(entity.max()) + 1
    block, share = blocks(entity, week)
    total = int(block.max()) + 1
    reference = _times(random, people, people, draws)[:, entity].T * share[:, None]
    window = _times(random, total, size, draws)[:, block].T * share[:, None]
    extra = random.poisson(size * random.gamma(HALF, 1, draws) / people) / size
    return Weights(
        window=np.ascontiguousarray(window),
        reference=np.ascontiguousarray(reference),
        week=week,
        times=times,
        share=share,
        extra=extra,
    )


def blocks(entity: np.ndarray, week: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code of each row's entity in its week, and the row's share of it."""
    block = np.unique(entity * (int(week.max(initial=0)) + 1) + week, return_inverse=True)[1]
    return block, (1 / np.bincount(block)[block]).astype(np.float32) if len(block) else np.ones(0, dtype=np.float32)


def _times(random: np.random.Generator, things: int, size: int, draws: int) -> np.ndarray:
    """How often each of `things` is among `size` drawn with replacement: draws x things."""
    if size > 4 * things:
        return random.poisson(size / things, (draws, things)).astype(np.float32)
    return np.stack([np.bincount(random.integers(0, things, size), minlength=things) for _ in range(draws)]).astype(np.float32)


def statistics(
    bins: Bins, codes: Codes, by: Weights, moved: Shares | None, moved_missing: Shares | None
) -> dict[str, np.ndarray]:
    """Statistic -> its value in each draw, for one column. missing: difference of shares.

    `moved`: how far the week of each draw lies apart, `moved_missing` in missing rows (see week_differences); None: nowhere.
    """
    found = {}
    if len(codes.bin):
        is_number = isinstance(bins, Numbers)
        win, ref = _drawn(codes, bins.bins, by, moved, is_number)
        if isinstance(bins, Categories):
            found["jensenshannon"] = histograms.jensenshannon(win[0], ref[0])
        else:
            if not bins.heavy:
                found["wasserstein"] = histograms.wasserstein(bins, win[0], win[1], ref[0], ref[1])
            found["ks"] = histograms.kolmogorov(win[0], ref[0])
    found["missing"] = _missing(codes, by, moved_missing)
    return found


def _drawn(codes: Codes, bins: int, by: Weights, moved: Shares | None, is_number: bool) -> tuple[Shares, Shares]:
    """Of window and reference in each draw."""
    count = csr_matrix((np.ones(len(codes.bin), np.float32), (codes.bin, codes.place)), (bins, codes.rows))
    beyond = csr_matrix((codes.beyond.astype(np.float32), (codes.bin, codes.place)), (bins, codes.rows))
    win, ref = (per_row((count @ rows).T.astype(float), (beyond @ rows).T.astype(float)) for rows in (by.window, by.reference))
    if moved is not None:
        win = win[0] + moved[0], win[1] + moved[1]
        if not is_number:
            kept = np.maximum(win[0], 0)
            win = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-12), win[1]
    return win, ref


def per_row(counts: np.ndarray, beyond: np.ndarray) -> Shares:
    """Counts per bin and sums of Codes.beyond, along the last axis, as shares of all rows."""
    rows = np.maximum(counts.sum(axis=-1, keepdims=True), 1e-12)
    return counts / rows, beyond / rows


def missing_codes(codes: Codes) -> Codes:
    """Each row in bin 1 where its value is missing, else in bin 0."""
    missing = np.ones(codes.rows, dtype=np.int64)
    missing[codes.place] = 0
    return Codes(missing, np.zeros(codes.rows), np.arange(codes.rows), codes.rows)


def _missing(codes: Codes, by: Weights, moved: Shares | None) -> np.ndarray:
    """How far the share of missing rows lies apart in each draw."""
    if len(codes.bin) == codes.rows and moved is None:
        return by.extra
    win, ref = _drawn(missing_codes(codes), 2, by, moved, False)
    return histograms.variation(win[0], ref[0]) + by.extra


def p_values(drawn: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Share of draws without drift that come as far as `observed`; beyond nearly all of them by a fitted tail (see _tail).

    Both at least 0: distances.
    """
    ordered = np.sort(drawn)
    count = len(ordered)
    above = count - np.searchsorted(ordered, observed - 1e-12, side="left")
    p = np.minimum((above + 1) / (count + 1), 1.0)
    start, scale, shape, share = _tail(np.square(ordered))
    with np.errstate(over="ignore"):
        excess = np.maximum(np.square(observed) - start, 0) / scale
        beyond = share * (np.exp(-excess) if shape < LIGHT else (1 + shape * excess) ** (-1 / shape))
    return np.where(observed > ordered[-2], np.clip(beyond, 1e-12, p), p)


def threshold(drawn: np.ndarray, p: float) -> float:
    """What the statistic stays below in all but a share `p` of draws."""
    ordered = np.sort(drawn)
    count = len(ordered)
    if p > 2 / (count + 1):
        return float(ordered[min(count - 1, max(0, math.ceil(count - p * (count + 1))))])
    start, scale, shape, share = _tail(np.square(ordered))
    rarer = share / max(p, 1e-12)
    return math.sqrt(start + scale * (math.log(rarer) if shape < LIGHT else (rarer**shape - 1) / shape))


def tried(p: np.ndarray) -> float:
    """How many independent tests those of one column are worth: at most all of them (tests x draws without drift)."""
    return float(np.clip((p.min(axis=0) <= TAIL).mean() / TAIL, 1, len(p)))


def _tail(ordered: np.ndarray) -> tuple[float, float, float, float]:
    """Start, scale and shape of the generalised Pareto distribution that the outer TAIL of the squared draws follow, and
    their share.

    Squares, since distances of large samples are lengths of normal vectors. By probability-weighted moments (Hosking and
    Wallis), drawn to USUAL_SHAPE, since few draws say little of the shape; never with an end, which no draws can know of.
    """
    most = max(1, int(TAIL * len(ordered)))
    start = float(ordered[-most - 1])
    excess = ordered[-most:] - start
    mean = float(excess.mean())
    weighted = float((excess * (1 - (np.arange(1, most + 1) - 0.35) / most)).mean())
    found = min(max(2 - mean / (mean - 2 * weighted), 0.0), HEAVIEST) if mean > 2 * weighted else HEAVIEST
    shape = (most * found + USUAL_DRAWS * USUAL_SHAPE) / (most + USUAL_DRAWS)
    share = (most + 1) / (len(ordered) + 1)
    return (start, mean * (1 - shape), shape, share) if mean > 0 else (start, 1e-9, 0.0, share)


def simes(p: np.ndarray) -> np.ndarray:
    """Of p-values (tests x draws), the level at which Benjamini and Hochberg would find anything at all, per draw."""
    count = len(p)
    return (np.sort(p, axis=0) * count / np.arange(1, count + 1)[:, None]).min(axis=0)


def level(p: np.ndarray, false_alarm_rate: float) -> float:
    """The level for Benjamini and Hochberg at which they find anything in at most a share `false_alarm_rate` of the draws.

    `p`: tests x draws, all without drift; columns move together in them as they do in the data.
    """
    if not p.size:
        return false_alarm_rate
    return min(false_alarm_rate, float(np.quantile(simes(p), false_alarm_rate, method="lower")))


def discoveries(p: Sequence[float], at: float) -> tuple[list[bool], float]:
    """Which tests Benjamini and Hochberg find at level `at`, and the p up to which they do (for none: that of the first)."""
    ordered = np.sort(np.asarray(p, dtype=float))
    steps = at * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    below = np.flatnonzero(ordered <= steps)
    cut = float(steps[below[-1]]) if len(below) else float(steps[0]) if len(steps) else at
    return [len(below) > 0 and each <= cut for each in p], cut
