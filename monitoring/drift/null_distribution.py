"""Null distributions of the drift statistics: a window and a reference drawn from the reference itself.

Both are drawn by entity, with all of its rows (of one week, for a window), since the rows of one entity resemble each other.
Weeks differ without drift too: to the window of each draw is added how one week of the reference lies apart from the others,
less what of that is noise, and stretched as Student's t is, since a few weeks say little about how far the next one may lie.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.stats import chi2

from evergreen.monitoring.drift import histograms
from evergreen.monitoring.drift.histograms import Bins, Categories, Codes, Numbers

STEP = 2 ** (1 / 4)
"""Sizes of windows are rounded down to a power of this: thresholds are then up to a tenth too high, never too low."""
NOISY = 24
"""Draws that tell how much of the difference between weeks is noise."""
TAIL = 0.1
"""Share of the draws that the tail is fitted to."""
LIGHT = 1e-6
"""A tail of a smaller shape is exponential."""
SURE = 0.05
"""The difference between weeks is taken as large as it is with a chance of this: a few weeks may be alike by chance."""
HALF = 0.5
"""Prior count of missing or unseen rows, so that a first one is not impossible."""


def rounded(size: int) -> int:
    """`size` on the coarse grid, never above it."""
    return max(1, math.floor(STEP ** math.floor(math.log(size, STEP) + 1e-9) + 1e-9)) if size > 0 else 0


@dataclass(frozen=True, eq=False)
class Weights:
    """How often each row of a reference is in each draw: arrays of rows x draws."""

    window: np.ndarray
    reference: np.ndarray
    week: np.ndarray | None
    """Week of each row, 0 to K - 1; None where there are fewer than two."""
    chosen: np.ndarray
    """Of each draw, the week that its window lies apart like."""
    stretch: np.ndarray
    """Of each draw, by how much."""
    extra: np.ndarray
    """Of each draw, share of rows that are missing or unseen for the first time."""


def weights(entity: np.ndarray, week: np.ndarray | None, size: int, draws: int, seed: int) -> Weights:
    """For rows of `entity` (codes) in `week` (codes); `size`: entities in a window."""
    random = np.random.default_rng([seed, size])
    people = int(entity.max()) + 1
    block = entity if week is None else np.unique(entity * (int(week.max()) + 1) + week, return_inverse=True)[1]
    blocks = int(block.max()) + 1
    reference = _times(random, people, people, draws)[:, entity].T
    window = _times(random, blocks, size, draws)[:, block].T
    weeks = 1 if week is None else int(week.max()) + 1
    stretch = np.sqrt((1 + 1 / weeks) * (weeks - 1) / random.chisquare(max(weeks - 1, 1), draws))
    extra = random.poisson(size * random.gamma(HALF, 1, draws) / people) / size
    return Weights(
        window=np.ascontiguousarray(window),
        reference=np.ascontiguousarray(reference),
        week=week if weeks > 1 else None,
        chosen=random.integers(0, weeks, draws),
        stretch=stretch,
        extra=extra,
    )


def _times(random: np.random.Generator, things: int, size: int, draws: int) -> np.ndarray:
    """How often each of `things` is among `size` drawn with replacement: draws x things."""
    if size > 4 * things:
        return random.poisson(size / things, (draws, things)).astype(np.float32)
    return np.stack([np.bincount(random.integers(0, things, size), minlength=things) for _ in range(draws)]).astype(np.float32)


def statistics(bins: Bins, codes: Codes, by: Weights) -> dict[str, np.ndarray]:
    """Statistic -> its value in each draw, for one column. missing and unseen: differences of shares."""
    found = {}
    if isinstance(bins, Numbers):
        win, ref = _drawn(codes, bins.bins, by, cumulative=True)
        if win is not None and ref is not None:
            if not bins.heavy:
                found["wasserstein"] = histograms.wasserstein(bins, win[0], win[1], ref[0], ref[1])
            found["ks"] = histograms.kolmogorov(win[0], ref[0])
    else:
        win, ref = _drawn(codes, bins.bins, by)
        if win is not None and ref is not None:
            found["jensenshannon"] = histograms.jensenshannon(win[0], ref[0])
        if bins.complete:
            found["unseen"] = _unseen(bins, codes, by)
    found["missing"] = _missing(codes, by)
    return found


Shares = tuple[np.ndarray, np.ndarray]
"""Rows per bin and sums of Codes.beyond, both per row: draws x bins."""


def _drawn(codes: Codes, bins: int, by: Weights, cumulative: bool = False) -> tuple[Shares | None, Shares | None]:
    """Of window and reference in each draw; None where the reference has no values."""
    if not len(codes.bin):
        return None, None
    count = csr_matrix((np.ones(len(codes.bin), np.float32), (codes.bin, codes.place)), (bins, codes.rows))
    beyond = csr_matrix((codes.beyond.astype(np.float32), (codes.bin, codes.place)), (bins, codes.rows))
    win, ref = (_per_row((count @ rows).T.astype(float), (beyond @ rows).T.astype(float)) for rows in (by.window, by.reference))
    if by.week is not None:
        apart, share = _apart(codes, bins, by, by.week, cumulative)
        far = (share * by.stretch)[:, None]
        win = win[0] + far * apart[0][by.chosen], win[1] + far * apart[1][by.chosen]
        if not cumulative:
            kept = np.maximum(win[0], 0)
            win = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-12), win[1]
    return win, ref


def _per_row(counts: np.ndarray, beyond: np.ndarray) -> Shares:
    rows = np.maximum(counts.sum(axis=-1, keepdims=True), 1e-12)
    return counts / rows, beyond / rows


def _apart(codes: Codes, bins: int, by: Weights, week: np.ndarray, cumulative: bool) -> tuple[Shares, float]:
    """How each week lies apart from the others (weeks x bins), and how much of that is more than noise, 0 to 1."""
    weeks = int(week.max()) + 1
    place = week[codes.place] * bins + codes.bin
    counts = np.bincount(place, minlength=weeks * bins).reshape(weeks, bins).astype(float)
    beyond = np.bincount(place, codes.beyond, minlength=weeks * bins).reshape(weeks, bins)
    apart = _from_others(counts, beyond)
    every = csr_matrix((np.ones(len(place), np.float32), (place, codes.place)), (weeks * bins, codes.rows))
    drawn = (every @ by.reference[:, :NOISY]).T.astype(float).reshape(-1, weeks, bins)
    noisy = np.stack([_from_others(each, each)[0] for each in drawn]) - apart[0]
    energy, noise = (
        float(np.square(np.cumsum(each, axis=-1) if cumulative else each).sum(axis=-1).mean()) for each in (apart[0], noisy)
    )
    most = energy * (weeks - 1) / float(chi2.ppf(SURE, weeks - 1))
    return apart, math.sqrt(min(max(most - noise, 0.0) / energy, 1.0)) if energy > 0 else 0.0


def _from_others(counts: np.ndarray, beyond: np.ndarray) -> Shares:
    """Shares of each week less those of all others; zeros for a week without values."""
    mine = _per_row(counts, beyond)
    rest = _per_row(counts.sum(axis=0) - counts, beyond.sum(axis=0) - beyond)
    there = (counts.sum(axis=1, keepdims=True) > 0) & (counts.sum() > counts.sum(axis=1, keepdims=True))
    return np.where(there, mine[0] - rest[0], 0.0), np.where(there, mine[1] - rest[1], 0.0)


def _missing(codes: Codes, by: Weights) -> np.ndarray:
    missing = np.ones(codes.rows, dtype=np.int64)
    missing[codes.place] = 0
    return _share(missing, by)


def _unseen(bins: Categories, codes: Codes, by: Weights) -> np.ndarray:
    """Share of rows whose category one entity alone has: as often a new one comes."""
    own = np.array([name in bins.single for name in bins.names[: bins.own]] + [False, False])
    if bins.own < len(bins.names):
        own[bins.own] = bins.names[bins.own] in bins.single
    single = np.zeros(codes.rows, dtype=np.int64)
    single[codes.place] = own[codes.bin]
    if not single.any():
        return by.extra
    rows = by.window.sum(axis=0)
    return (single.astype(np.float32) @ by.window) / np.maximum(rows, 1) + by.extra


def _share(marked: np.ndarray, by: Weights) -> np.ndarray:
    """How far the share of marked rows lies apart in each draw."""
    if not marked.any():
        return by.extra
    codes = Codes(marked, np.zeros(len(marked)), np.arange(len(marked)), len(marked))
    win, ref = _drawn(codes, 2, by)
    assert win is not None
    assert ref is not None
    return histograms.variation(win[0], ref[0]) + by.extra


def p_values(drawn: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Share of draws without drift that come as far as `observed`; beyond nearly all of them by a fitted tail (see _tail)."""
    ordered = np.sort(drawn)
    count = len(ordered)
    above = count - np.searchsorted(ordered, observed - 1e-12, side="left")
    p = np.minimum((above + 1) / (count + 1), 1.0)
    start, scale, shape, share = _tail(ordered)
    with np.errstate(over="ignore"):
        excess = np.maximum(observed - start, 0) / scale
        beyond = share * (np.exp(-excess) if shape < LIGHT else (1 + shape * excess) ** (-1 / shape))
    return np.where(observed > ordered[-2], np.clip(beyond, 1e-12, p), p)


def threshold(drawn: np.ndarray, p: float) -> float:
    """What the statistic stays below in all but a share `p` of draws."""
    ordered = np.sort(drawn)
    count = len(ordered)
    if p > 2 / (count + 1):
        return float(ordered[min(count - 1, max(0, math.ceil(count - p * (count + 1))))])
    start, scale, shape, share = _tail(ordered)
    rarer = share / max(p, 1e-12)
    return start + scale * (math.log(rarer) if shape < LIGHT else (rarer**shape - 1) / shape)


def _tail(ordered: np.ndarray) -> tuple[float, float, float, float]:
    """Start, scale and shape of the generalised Pareto distribution that the outer TAIL of the draws follow, and their share.

    By probability-weighted moments (Hosking and Wallis); never with an end, which no draws can know of.
    """
    most = max(1, int(TAIL * len(ordered)))
    start = float(ordered[-most - 1])
    excess = ordered[-most:] - start
    mean = float(excess.mean())
    weighted = float((excess * (1 - (np.arange(1, most + 1) - 0.35) / most)).mean())
    shape = min(max(2 - mean / (mean - 2 * weighted), 0.0), 0.9) if mean > 2 * weighted else 0.9
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
