"""Differences between weeks without drift: a stationary process with autocorrelation, learned from the weeks that are known.

The mean of a week is y = mean + effect + noise; the effects of weeks t and s correlate by phi ** |t - s|. Few weeks of one
column say little about phi and about the variance of effects, so both are drawn from their posterior, and its prior is learned
from the other columns: a mixture of their posteriors (nonparametric empirical Bayes) and of a wide prior, which counts like
WIDE columns. Effects are measured in standard deviations of a row, so that columns compare. The wide prior is Jeffreys's in
phi, and falls in the size of effects beyond USUAL.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

FEWEST_WEEKS = 4
"""Weeks that must be known before drift is told from a change between weeks."""
PHIS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97])
"""Autocorrelations from one week to the next."""
SIZES = np.geomspace(0.003, 300, 40)
"""Standard deviations of effects, in those of a row."""
USUAL = 0.3
"""Size of effects beyond which the wide prior falls, in standard deviations of a row."""
WIDE = 1.0
"""Columns that the wide prior counts like."""
ROUNDS = 60
"""Of expectation maximisation."""


@dataclass(frozen=True, eq=False)
class Series:
    """A column's value in each week that is known."""

    y: np.ndarray
    noise: np.ndarray
    """Sampling variance of each."""
    times: np.ndarray
    """In weeks."""
    row: float
    """Variance of one row."""
    ramp: np.ndarray | None = None
    """What y may rise with, beside its mean; None: nothing."""

    @property
    def design(self) -> np.ndarray:
        """weeks x 1 or 2, whose coefficients may be anything."""
        ones = np.ones(len(self.y))
        return np.column_stack([ones] if self.ramp is None else [ones, self.ramp])

    @property
    def residual(self) -> np.ndarray:
        return self.y - self.design @ np.linalg.lstsq(self.design, self.y, rcond=None)[0]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Variance of week effects and their autocorrelation: points of a grid and their probability."""

    phi: np.ndarray
    variance: np.ndarray
    probability: np.ndarray

    def draw(self, random: np.random.Generator, draws: int) -> np.ndarray:
        """Numbers of points of the grid."""
        return random.choice(len(self.probability), draws, p=self.probability)


def correlation(times: np.ndarray, phi: float) -> np.ndarray:
    """Between the effects of weeks at `times` (in weeks)."""
    return np.asarray(phi ** np.abs(times[:, None] - times[None, :])) if phi else np.eye(len(times))


def apart(times: np.ndarray, share: np.ndarray, now: float, phi: float) -> float:
    """Variance of the effect of a week at `now` less the mean of the weeks at `times`, in variances of an effect.

    `share`: of each week in the mean, adding up to 1.
    """
    between = phi ** np.abs(now - times) if phi else np.zeros(len(times))
    return float(1 + share @ correlation(times, phi) @ share - 2 * share @ between)


def pool(series: Sequence[Series]) -> list[Posterior]:
    """The posterior of each of a table's columns, whose prior the other columns make.

    Columns that move together count as fewer.
    """
    if not series:
        return []
    likelihood = np.stack([np.exp(each - each.max()) for each in map(_likelihood, series)])
    wide = np.tile(np.sqrt(SIZES) / (1 + (SIZES / USUAL) ** 1.5), len(PHIS)) * np.repeat(
        np.gradient(np.arcsin(PHIS)), len(SIZES)
    )
    wide /= wide.sum()
    share = _independent(series) / len(series)
    found = _normed(likelihood * wide)
    for _ in range(ROUNDS):
        found = _normed(likelihood * (WIDE * wide + share * found.sum(axis=0)))
    others = WIDE * wide + share * (found.sum(axis=0) - found)
    found = _normed(likelihood * others)
    phi, size = np.repeat(PHIS, len(SIZES)), np.tile(SIZES, len(PHIS))
    return [Posterior(phi, np.square(size) * each.row, mine) for each, mine in zip(series, found, strict=True)]


def _normed(weight: np.ndarray) -> np.ndarray:
    """Each row adding up to 1."""
    return weight / weight.sum(axis=1, keepdims=True)


def _independent(series: Sequence[Series]) -> float:
    """How many independent columns these are worth, by the correlations of their weeks beyond those of chance."""
    times = np.unique(np.concatenate([each.times for each in series]))
    table = np.zeros((len(series), len(times)))
    for row, each in zip(table, series, strict=True):
        residual = each.residual
        row[np.searchsorted(times, each.times)] = residual / max(float(np.linalg.norm(residual)), 1e-300)
    count, free = len(series), len(times) - series[0].design.shape[1]
    if count < 2 or free < 2:
        return 1.0
    squares = (np.square(table @ table.T).sum() - count) / (count * (count - 1))
    return count / (1 + (count - 1) * max(0.0, (squares - 1 / free) / (1 - 1 / free)))


def _likelihood(series: Series) -> np.ndarray:
    """Restricted log likelihood at each of PHIS and SIZES, flattened.

    In each phi's own coordinates the covariance is diagonal for all sizes.
    """
    noise = series.noise + 1e-12 * (series.noise.mean() + 1e-300)
    scale = 1 / np.sqrt(noise)
    data = np.column_stack([series.design, series.y]) * scale[:, None]
    found = []
    for phi in PHIS:
        values, vectors = np.linalg.eigh(correlation(series.times, phi) * scale[:, None] * scale)
        turned = vectors.T @ data
        variance = 1 + series.row * np.square(SIZES)[:, None] * np.maximum(values, 0)
        weighed = turned[None] / variance[:, :, None]
        inner = np.einsum("ki,skj->sij", turned, weighed)
        square = inner[:, -1, -1] - np.einsum(
            "si,si->s", inner[:, -1, :-1], np.linalg.solve(inner[:, :-1, :-1], inner[:, :-1, -1:])[:, :, 0]
        )
        found.append(-0.5 * (np.log(variance).sum(axis=1) + np.linalg.slogdet(inner[:, :-1, :-1])[1] + square))
    return np.concatenate(found)


def slope_p(series: Series, found: Posterior) -> tuple[float, float]:
    """Slope of a series on its ramp, and its two-sided p against week effects without a slope.

    Generalised least squares at each point of the posterior, averaged.
    """
    kept = np.flatnonzero(found.probability > 1e-6)
    p = slope = 0.0
    for each in kept:
        covariance = found.variance[each] * correlation(series.times, found.phi[each]) + np.diag(series.noise + 1e-12)
        solved = np.linalg.solve(covariance, np.column_stack([series.design, series.y]))
        inverse = np.linalg.inv(series.design.T @ solved[:, :2])
        fitted = inverse @ (series.design.T @ solved[:, 2])
        p += found.probability[each] * 2 * ndtr(-abs(fitted[1]) / np.sqrt(inverse[1, 1]))
        slope += found.probability[each] * fitted[1]
    total = found.probability[kept].sum()
    return float(slope / total), float(p / total)
