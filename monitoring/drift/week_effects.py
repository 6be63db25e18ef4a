"""Differences between weeks without drift: a stationary process with autocorrelation, learned from the weeks that are known.

The mean of a week is y = mean + effect + noise; the effects of weeks t and s correlate by phi ** |t - s|. Few weeks say little
about phi and about the variance of effects, so both are drawn from their posterior instead of being estimated: with few weeks,
or weeks that hang together, large changes are still possible without drift. The prior is flat in phi, flat in the standard
deviation of effects below that of the noise, and flat in its logarithm above, which gives Student's t where phi is 0.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

FEWEST_WEEKS = 4
"""Weeks that must be known before drift is told from a change between weeks."""
PHIS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97])
"""Autocorrelations from one week to the next."""
SIZES = np.geomspace(0.01, 30, 28)
"""Standard deviations of effects, in those of the weekly means."""


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


def posterior(y: np.ndarray, noise: np.ndarray, times: np.ndarray, design: np.ndarray | None = None) -> Posterior:
    """Of weekly means `y` with variances of `noise` at `times` (in weeks).

    `design`: weeks x columns, whose coefficients may be anything (default: the mean alone), by restricted likelihood.
    """
    design = np.ones((len(y), 1)) if design is None else design
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    scale = float(np.sqrt((np.square(residual).sum() + noise.sum()) / len(y))) or 1.0
    size = SIZES * scale
    phi, variance, likelihood = (np.empty((len(PHIS), len(size))) for _ in range(3))
    for row, each in enumerate(PHIS):
        phi[row], variance[row] = each, size**2
        likelihood[row] = _restricted(y, noise, correlation(times, each), size**2, design)
    prior = size / (size + np.sqrt(noise.mean()))  # on a logarithmic grid
    share = np.gradient(PHIS)[:, None] * prior[None, :]
    weight = np.exp(likelihood - likelihood.max()) * share
    return Posterior(phi.ravel(), variance.ravel(), (weight / weight.sum()).ravel())


def _restricted(
    y: np.ndarray, noise: np.ndarray, correlations: np.ndarray, variance: np.ndarray, design: np.ndarray
) -> np.ndarray:
    """Restricted log likelihood, one for each of `variance`."""
    covariance = variance[:, None, None] * correlations + np.diag(noise + 1e-12 * (noise.mean() + 1e-300))
    right = np.broadcast_to(np.column_stack([design, y]), (len(variance), len(y), design.shape[1] + 1))
    solved = np.linalg.solve(covariance, right)
    inner = design.T @ solved[:, :, :-1]
    cross = design.T @ solved[:, :, -1:]
    square = (y @ solved[:, :, -1:])[:, 0] - (cross.transpose(0, 2, 1) @ np.linalg.solve(inner, cross))[:, 0, 0]
    return -0.5 * (np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(inner)[1] + square)


def slope_p(y: np.ndarray, noise: np.ndarray, times: np.ndarray, ramp: np.ndarray) -> tuple[float, float]:
    """Slope of `y` on `ramp`, and its two-sided p against week effects without a slope.

    Generalised least squares at each point of the posterior, averaged.
    """
    design = np.column_stack([np.ones(len(y)), ramp])
    found = posterior(y, noise, times, design)
    kept = np.flatnonzero(found.probability > 1e-6)
    p = slope = 0.0
    for each in kept:
        covariance = found.variance[each] * correlation(times, found.phi[each]) + np.diag(noise + 1e-12)
        solved = np.linalg.solve(covariance, np.column_stack([design, y]))
        inverse = np.linalg.inv(design.T @ solved[:, :2])
        fitted = inverse @ (design.T @ solved[:, 2])
        p += found.probability[each] * 2 * ndtr(-abs(fitted[1]) / np.sqrt(inverse[1, 1]))
        slope += found.probability[each] * fitted[1]
    total = found.probability[kept].sum()
    return float(slope / total), float(p / total)
