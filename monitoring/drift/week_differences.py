"""How far weeks lie apart in one column, and random differences like them for the draws without drift."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse import csr_matrix

from evergreen.monitoring.drift import null_distribution, week_effects
from evergreen.monitoring.drift.histograms import Bins, Codes, Histogram, Numbers
from evergreen.monitoring.drift.null_distribution import Shares, Weights, per_row
from evergreen.monitoring.drift.week_effects import Posterior, Series

VALUES, MISSING = "values", "missing"
"""What differs between the weeks of a column: its values, or the share of its rows without one."""

NOISY = 24
"""Draws that tell how much of the difference between weeks is noise, or more where few weeks are known."""
NOISY_WEEKS = 240


class PastWindow(Protocol):
    """A part in a past window of production; see reference_data.PastPart."""

    @property
    def time(self) -> float: ...
    @property
    def columns(self) -> Mapping[str, Histogram]: ...
    @property
    def calm(self) -> frozenset[str]: ...


@dataclass(frozen=True, eq=False)
class WeekDifferences:
    """The weeks that are known of one column, less their mean: weeks x bins."""

    shares: np.ndarray
    beyond: np.ndarray
    """Sums of Codes.beyond per row."""
    series: Series
    """Along the main direction in which weeks differ."""
    size: np.ndarray
    """Share of each week in the reference."""

    def draw(self, by: Weights, now: float, posterior: Posterior, random: np.random.Generator) -> Shares:
        """How far a week at `now` without drift lies apart from the reference in each draw.

        Random sums of the differences between weeks, whose size is drawn from the posterior along the main one of them.
        """
        draws, y = by.window.shape[1], self.series.y
        chosen = posterior.draw(random, draws)
        apart_by = {phi: week_effects.apart(by.times, self.size, now, phi) for phi in week_effects.PHIS}
        apart = np.array([apart_by[phi] for phi in posterior.phi[chosen]])
        far = np.sqrt(posterior.variance[chosen] * apart / np.square(y).sum())
        mixed = random.normal(size=(draws, len(y))) * far[:, None]
        return mixed @ self.shares, mixed @ self.beyond


def draw(
    bins: Mapping[str, Bins], codes: Mapping[str, Codes], by: Weights, past: Sequence[PastWindow], now: float, seed: int
) -> dict[tuple[str, str], Shares]:
    """Column and VALUES or MISSING -> how far a week at `now` without drift lies apart from the reference in each draw.

    `past`: windows of production. Without an entry where fewer than FEWEST_WEEKS are known or none differ.
    """
    found: dict[tuple[str, str], WeekDifferences] = {}
    for name, each in codes.items():
        windows = [window for window in past if name in window.calm]
        times = np.concatenate([by.times, [window.time for window in windows]])
        if len(times) < week_effects.FEWEST_WEEKS:
            continue
        there = [window.columns[name] for window in windows]
        apart = find(each, bins[name].bins, by, there, times, isinstance(bins[name], Numbers))
        if apart:
            found[name, VALUES] = apart
        before = [Histogram(one.rows, 0, np.array([one.present, one.rows - one.present]), np.zeros(2)) for one in there]
        if len(each.bin) < each.rows or any(one.counts[1] > 0 for one in before):
            apart = find(null_distribution.missing_codes(each), 2, by, before, times, False)
            if apart:
                found[name, MISSING] = apart
    posteriors = week_effects.pool([each.series for each in found.values()])
    moved = {}
    for place, ((key, each), posterior) in enumerate(zip(found.items(), posteriors, strict=True)):
        moved[key] = each.draw(by, now, posterior, np.random.default_rng([seed, place]))
    return moved


def find(
    codes: Codes, bins: int, by: Weights, past: Sequence[Histogram], times: np.ndarray, is_number: bool
) -> WeekDifferences | None:
    """Of a column in the weeks of the reference and in `past` windows of production; None where none differ.

    `times`: of all these; `is_number`: whether the order of bins counts.
    """
    weeks = len(by.times)
    place, share = by.week[codes.place] * bins + codes.bin, by.share[codes.place]
    counts = np.bincount(place, share, minlength=weeks * bins).reshape(weeks, bins)
    beyond = np.bincount(place, codes.beyond * share, minlength=weeks * bins).reshape(weeks, bins)
    known = per_row(
        np.vstack([counts, *(each.counts[None] for each in past)]), np.vstack([beyond, *(each.beyond[None] for each in past)])
    )
    present = np.concatenate([counts.sum(axis=1), [each.present for each in past]])
    there = present > 0
    if there.sum() < 2:
        return None
    shares, further = (each[there] - each[there].mean(axis=0) for each in known)
    profile = np.cumsum(shares, axis=1) if is_number else shares
    axis = np.linalg.svd(profile, full_matrices=False)[2][0]
    y = profile @ axis
    row = _row_variance(codes, bins, by, axis, is_number, counts.sum(axis=1)) if np.square(y).sum() > 0 else 0.0
    if row <= 0:
        return None
    series = Series(y, row / present[there], times[there], row)
    return WeekDifferences(shares, further, series, counts.sum(axis=1) / counts.sum())


def _row_variance(codes: Codes, bins: int, by: Weights, axis: np.ndarray, is_number: bool, present: np.ndarray) -> float:
    """Sampling variance along `axis`, of differences between weeks, for one cluster of rows in each.

    By draws of the reference, so that rows of an entity depend on each other within a week and between weeks.
    """
    weeks, most = len(by.times), max(NOISY, NOISY_WEEKS // len(by.times))
    place = by.week[codes.place] * bins + codes.bin
    every = csr_matrix((np.ones(len(place), np.float32), (place, codes.place)), (weeks * bins, codes.rows))
    drawn = (every @ by.reference[:, :most]).T.astype(float).reshape(-1, weeks, bins)[:, present > 0]
    shares = per_row(drawn, drawn)[0]
    profiles = np.cumsum(shares, axis=-1) if is_number else shares
    noise = profiles - profiles.mean(axis=0)
    along, weeks = noise @ axis, noise.shape[1]
    if weeks == 1:
        return float(along.var() * present[present > 0][0])
    between = along - along.mean(axis=1, keepdims=True)
    return float((np.square(between).mean(axis=0) * present[present > 0]).mean() * weeks / (weeks - 1)) * _main(noise)


def _main(noise: np.ndarray) -> float:
    """How much larger noise is along the direction in which it is largest by chance than along a fixed one.

    `noise`: draws x weeks x bins. The main direction of the differences between weeks is chosen as the largest too.
    """
    noise = noise - noise.mean(axis=1, keepdims=True)
    flat = noise.reshape(-1, noise.shape[2])
    fixed = np.linalg.eigh(flat.T @ flat)[1][:, -1]
    usual = float(np.square(noise @ fixed).sum(axis=1).mean())
    largest = float(np.linalg.eigvalsh(noise @ noise.transpose(0, 2, 1))[:, -1].mean())
    return max(largest / usual, 1.0) if usual > 0 else 1.0
