"""When features leak the target. One rule for schema inference and for the diagnosis of a model.

A leak is not a feature that predicts well. It is the target in other words, or predicts well while the other features do not,
or gives a numeric target exactly by a short formula.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

ERROR_RATIO = 3.0
"""The other features together must have this many times the error of the leak alone."""
EXACT = 0.999
"""R² from which a formula is the target."""
TERMS = 6
"""Most columns of a formula."""
SAME = 1e-3
"""Share of the target's variance within the values of a copy, at most: what rounding leaves."""
LARGEST_EXPONENT = 2
DIVISORS = 12
"""Columns that are tried as divisors, alone and in pairs, the first ones."""


def stands_apart(alone: float, others: float) -> bool:
    """Whether a feature with the score `alone` predicts far better than the `others` together.

    The error is 1 - score, so ROC AUC, its skill (2 AUC - 1) and R² give the same answer.

    >>> stands_apart(0.99, 0.8), stands_apart(0.99, 0.98)
    (True, False)
    """
    return 1 - others >= ERROR_RATIO * (1 - alone)


def relation(x: np.ndarray, y: np.ndarray, ordered: bool) -> Literal["copy", "band"] | None:
    """How a column is made of the target: one value for each (a copy), or one for each range (a band). None: not so.

    `x`: numbers without NaN, or codes of categories (not `ordered`); `y`: the target, numbers. A column with as many values
    as rows has no relation, unless its order is that of the target.

    >>> y = np.arange(60.0) ** 2
    >>> relation(np.log1p(y), y, True), relation(y // 1000, y, True), relation(y % 7, y, True)
    ('copy', 'band', None)
    """
    levels, codes, counts = np.unique(x, return_inverse=True, return_counts=True)
    if len(levels) < 2 or not np.ptp(y):
        return None
    means = np.bincount(codes, y) / counts
    low, high = np.full(len(levels), np.inf), np.full(len(levels), -np.inf)
    np.minimum.at(low, codes, y)
    np.maximum.at(high, codes, y)
    order = np.argsort(means, kind="stable")
    apart = bool((high[order][:-1] <= low[order][1:]).all()) and len(np.unique(means)) == len(levels)
    steps = np.diff(means)
    in_order = ordered and bool((steps > 0).all() or (steps < 0).all())
    if not apart or not (in_order or len(levels) <= len(x) / 3):
        return None
    if ((y - means[codes]) ** 2).mean() <= SAME * y.var():
        return "copy"
    return "band" if len(levels) <= len(x) / 10 else None


@dataclass(frozen=True)
class Formula:
    """A formula that gives the target."""

    columns: tuple[str, ...]
    text: str
    """Such as net + tax, or 100 * paid / owed."""


def find_formula(numbers: Mapping[str, np.ndarray], y: np.ndarray) -> Formula | None:
    """The formula of two or more numeric columns that gives a numeric target, to a thousandth of its variance; None for none.

    It is a weighted sum, an average, a product, or a ratio, also of sums. `numbers`: NaN for missing values.
    """
    return _weighted_sum(numbers, y) or _product(numbers, y) or _quotient(numbers, y)


def _weighted_sum(numbers: Mapping[str, np.ndarray], y: np.ndarray) -> Formula | None:
    usable = {name: x for name, x in numbers.items() if np.isfinite(x).mean() > 0.9 and np.nanstd(x) > 0}
    fitted = _fit_few(usable, y)
    if fitted is None:
        return None
    names, weights, _ = fitted
    return Formula(tuple(names), _sum_text(names, weights))


def _product(numbers: Mapping[str, np.ndarray], y: np.ndarray) -> Formula | None:
    """Exponents are found as weights of the logarithms, and must be whole."""
    usable = {name: np.abs(x) for name, x in numbers.items() if (x != 0).mean() > 0.9 and np.isfinite(x).mean() > 0.9}
    logs = {name: np.log(np.where(x > 0, x, np.nan)) for name, x in usable.items()}
    logs = {name: x for name, x in logs.items() if np.nanstd(x) > 0}
    with np.errstate(divide="ignore"):
        target = np.where(y != 0, np.log(np.abs(y)), np.nan)
    if np.isfinite(target).mean() < 0.5:
        return None
    fitted = _fit_few(logs, target)
    if fitted is None:
        return None
    names, exponents, factor = fitted
    whole = np.round(exponents)
    if np.abs(whole - exponents).max() > 0.05 or not 1 <= np.abs(whole).min() <= np.abs(whole).max() <= LARGEST_EXPONENT:
        return None
    terms = [name + (f"^{abs(power):.0f}" if abs(power) > 1 else "") for name, power in zip(names, whole, strict=True)]
    above = [term for term, power in zip(terms, whole, strict=True) if power > 0]
    below = [f" / {term}" for term, power in zip(terms, whole, strict=True) if power < 0]
    scale = float(np.exp(factor))
    factors = above if abs(scale - 1) < 0.02 and above else [f"{scale:.3g}", *above]
    return Formula(tuple(names), " * ".join(factors) + "".join(below))


def _quotient(numbers: Mapping[str, np.ndarray], y: np.ndarray) -> Formula | None:
    """A sum or a column, divided by a column or by the sum of two: then the target times the divisor is a sum."""
    usable = {name: x for name, x in list(numbers.items())[:DIVISORS] if np.isfinite(x).mean() > 0.9 and np.nanstd(x) > 0}
    divisors = {name: (x, (name,)) for name, x in usable.items()}
    divisors |= {f"({a} + {b})": (usable[a] + usable[b], (a, b)) for a, b in combinations(usable, 2)}
    for text, (divisor, parts) in divisors.items():
        fitted = _fit_few(usable, y * divisor, fewest=1)
        if fitted is None:
            continue
        names, weights, constant = fitted
        with np.errstate(all="ignore"):
            made = sum(weight * usable[name] for name, weight in zip(names, weights, strict=True)) / divisor
        there = np.isfinite(made) & np.isfinite(y)
        exact = there.mean() > 0.5 and abs(constant) <= SAME * np.nanstd(y * divisor)
        if (
            exact
            and len({*names, *parts}) > 1
            and _unexplained(made[there] - y[there].mean(), y[there] - y[there].mean()) <= SAME
        ):
            above = _sum_text(names, weights)
            return Formula(tuple(dict.fromkeys([*names, *parts])), f"{f'({above})' if len(names) > 1 else above} / {text}")
    return None


def _fit_few(columns: Mapping[str, np.ndarray], y: np.ndarray, fewest: int = 2) -> tuple[list[str], np.ndarray, float] | None:
    """Names, weights and constant of the shortest weighted sum that is `y`; None for none of `fewest` to TERMS columns."""
    names = list(columns)
    there = (
        np.isfinite(y) & np.isfinite(np.column_stack(list(columns.values()))).all(axis=1) if names else np.zeros(len(y), bool)
    )
    if len(names) < 2 or there.sum() < max(30, 3 * len(names)) or there.mean() < 0.5 or not y[there].std():
        return None
    X, target = np.column_stack([columns[name][there] for name in names]), y[there]
    spread = X.std(axis=0)
    if not spread.all():
        return None
    Z = (X - X.mean(axis=0)) / spread
    centred = target - target.mean()
    every = _solve(Z, centred)
    if _unexplained(Z @ every, centred) > 1 - EXACT:
        return None
    order = np.argsort(-np.abs(every))
    for count in range(1, min(TERMS, len(names)) + 1):
        chosen = order[:count]
        weights = _solve(Z[:, chosen], centred)
        if _unexplained(Z[:, chosen] @ weights, centred) <= 1 - EXACT:
            found, constant = weights / spread[chosen], target.mean() - X[:, chosen].mean(axis=0) @ (weights / spread[chosen])
            places = np.argsort(chosen)
            kept: list[str] = [names[int(place)] for place in chosen[places]]
            return (kept, found[places], float(constant)) if count >= fewest else None
    return None


def _solve(Z: np.ndarray, y: np.ndarray) -> np.ndarray:
    solution: np.ndarray = np.linalg.lstsq(Z, y, rcond=None)[0]  # pyright: ignore[reportUnknownVariableType]
    return solution


def _unexplained(fitted: np.ndarray, centred: np.ndarray) -> float:
    return float(((centred - fitted) ** 2).sum() / (centred**2).sum())


def _sum_text(names: Sequence[str], weights: np.ndarray) -> str:
    size = float(np.abs(weights).mean())
    if np.abs(np.abs(weights) - size).max() > 0.02 * size:
        ordered = [(f"{abs(weight):.3g} * {name}", weight) for name, weight in zip(names, weights, strict=True)]
        return _joined(ordered)
    text = _joined(list(zip(names, weights, strict=True)))
    if abs(size - 1) < 0.02:
        return text
    return (
        f"average of {', '.join(names)}"
        if abs(size * len(names) - 1) < 0.02 and (weights > 0).all()
        else f"{size:.3g} * ({text})"
    )


def _joined(terms: Sequence[tuple[str, float]]) -> str:
    ordered = sorted(terms, key=lambda term: term[1] < 0)
    first, rest = ordered[0], ordered[1:]
    text = first[0] if first[1] > 0 else f"-{first[0]}"
    return text + "".join(f" {'+' if weight > 0 else '-'} {name}" for name, weight in rest)
