"""Confidence intervals of scores: how far a score would move had other entities been drawn. Pure functions.

One function decides, `interval`, from scores with one group of entities left out at a time (delete-a-group jackknife):

    scale        the score is mapped to a scale on which it is nearly normal: log for losses, arcsine for areas; proportions
                 keep their own and get Wilson's interval, with as many rows as the spread between entities is worth
    quantile     Student's t, with the degrees of freedom of the variance (Satterthwaite): few positives or heavy tails widen it
    skewness     both ends move by the skewness of the entities' influence (Hall's cubic transformation)
    too few      no interval where fewer than MIN_ENTITIES entities, or one of them alone, carry the score

All rows of an entity are left out together, from all windows, so rows of one entity may depend on each other. Windows are
taken as they are: the interval holds for other entities in the same windows.

Sources: Quenouille (1956) and Tukey (1958); Busing, Meijer and van der Leeden, Delete-m jackknife for unequal m, 1999;
Satterthwaite (1946); Hall, On the removal of skewness by transformation, 1992; Wilson (1927). docs/explanation/intervals.md has
the coverage of each metric, by simulation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

Scale = Literal["linear", "positive", "share", "proportion", "explained"]
"""Of a score. linear: any number, and differences; positive: a loss; share: from 0 to 1, no plain proportion; proportion: the
share of rows that are counted; explained: 1 minus a ratio of losses."""
GROUPS = 200
"""Most groups of entities that are left out in turn."""
MIN_ENTITIES = 8
"""Fewest entities of an interval."""
MIN_FREEDOM = 2.5
"""Fewest degrees of freedom: with less, one entity alone carries the score."""
HEAVY_TAILS = 1.5
"""Of losses, factor on the skewness, because a sample shows too little of that of heavy tails. Chosen by simulation."""
HALF_SEEN = 0.5
"""Of R² and of differences, factor on the degrees of freedom, for the same reason. Chosen by simulation."""
TOO_FEW = "too few"
"""First words of the reason for an interval that is not given."""


class Interval(NamedTuple):
    low: float
    """NaN, as `high`, where there is none."""
    high: float
    why: str = ""
    """Why there is none; empty where there is one."""


def too_few(why: str) -> Interval:
    return Interval(math.nan, math.nan, f"{TOO_FEW} {why}")


def leave_out(frames: Sequence[pl.DataFrame], seed: int, groups: int = GROUPS) -> Iterator[list[pl.DataFrame]]:
    """`frames` without the rows of one group of entities, for each group.

    At most `groups` groups, of as many entities each as possible; one entity each where there are fewer. The same seed makes
    the same groups of the same entities.
    """
    codes, count = _groups(frames, seed, groups)
    for left_out in range(count):
        yield [frame.filter(code != left_out) for frame, code in zip(frames, codes, strict=True)]


def each_alone(frames: Sequence[pl.DataFrame], seed: int, groups: int = GROUPS) -> Iterator[list[pl.DataFrame]]:
    """The rows of `frames` of one group of entities, for each group of `leave_out`."""
    codes, count = _groups(frames, seed, groups)
    for alone in range(count):
        yield [frame.filter(code == alone) for frame, code in zip(frames, codes, strict=True)]


def _groups(frames: Sequence[pl.DataFrame], seed: int, groups: int) -> tuple[list[pl.Series], int]:
    """The group of each row of each frame, and their number."""
    names = pl.concat([frame.select("entity") for frame in frames]).unique().sort("entity")
    group = group_of(names.height, seed, groups)
    names = names.with_columns(__group=pl.Series(group, dtype=pl.Int64))
    codes = [frame.select("entity").join(names, on="entity", how="left", maintain_order="left")["__group"] for frame in frames]
    return codes, int(group.max()) + 1 if len(group) else 0


def group_of(entities: int, seed: int, groups: int = GROUPS) -> np.ndarray:
    """The group of each entity, drawn at random; sizes differ by one at most, which is little where groups are large.

    >>> np.bincount(group_of(10, seed=0, groups=4)).tolist()
    [4, 3, 3]
    """
    size = max(1, math.ceil(entities / max(groups, 1)))
    places = np.arange(entities) % max(entities // size, 1)
    return np.random.default_rng(seed).permutation(places) if size > 1 else places


def interval(score: float, without: Sequence[float], confidence: float, scale: Scale = "linear") -> Interval:
    """The interval of `score`, whose values without each group of `leave_out` are `without`."""
    values = np.asarray(without, dtype=float)
    if len(values) < MIN_ENTITIES:
        return too_few(f"entities for an interval: {len(values)}")
    if not math.isfinite(score) or not np.isfinite(values).all():
        return too_few("rows of one class, or with a label, for an interval")
    if scale == "proportion":
        return _wilson(score, _influence(values), confidence)
    onto, back = SCALES[scale]
    with np.errstate(divide="ignore", invalid="ignore"):
        middle, influence = float(onto(score)), _influence(np.asarray(onto(values)))
    if not math.isfinite(middle) or not np.isfinite(influence).all():
        return too_few("rows that differ for an interval")
    tails = HEAVY_TAILS if scale == "positive" else 1.0
    seen = HALF_SEEN if scale in ("explained", "linear") else 1.0
    return _studentised(middle, influence, confidence, back, tails, seen)


def _influence(values: np.ndarray) -> np.ndarray:
    """Of each group on the score; their mean has the variance of the score."""
    return (len(values) - 1) * (values.mean() - values)


def _studentised(middle: float, influence: np.ndarray, confidence: float, back: "Map", tails: float, seen: float) -> Interval:
    count, squares = len(influence), influence**2
    variance = squares.mean()
    if variance <= 1e-20 * max(1.0, middle**2):
        return Interval(middle, middle) if back is _same else too_few("rows that differ for an interval")
    freedom = seen * min(count - 1.0, 2 * count / max((squares**2).mean() / variance**2 - 1, 1e-9))
    if freedom < seen * MIN_FREEDOM:
        return too_few("entities for an interval: one of them carries the score")
    error = math.sqrt(variance / (count - 1))
    skewness = tails * float((influence**3).mean() / variance**1.5) / math.sqrt(count)
    quantile = _quantile(freedom, confidence)
    low, high = (middle - error * _unskewed(each, skewness) for each in (quantile, -quantile))
    return Interval(float(back(low)), float(back(high)))


def _quantile(freedom: float, confidence: float) -> float:
    """Of Student's t, two-sided."""
    from scipy import special  # pyright: ignore[reportMissingTypeStubs]  # here: servers import the scales of metrics, and not SciPy

    return float(special.stdtrit(freedom, (1 + confidence) / 2))


def _unskewed(quantile: float, skewness: float) -> float:
    """The quantile of a studentised mean whose values have this skewness, divided by the root of their number."""
    if abs(skewness) < 1e-6:
        return quantile
    return 3 * (math.cbrt(1 + skewness * (quantile - skewness / 6)) - 1) / skewness


def _wilson(share: float, influence: np.ndarray, confidence: float) -> Interval:
    """Rows: as many as would give a share of independent rows this variance. Only entities that count in it are counted.

    Where each entity is one row, the share alone gives the variance, and the quantile is the normal one.
    """
    inside = influence[np.abs(influence) > 1e-12]
    count, concerned = len(influence), len(inside)
    variance = float((influence**2).mean()) / (count - 1)
    if not 0 < share < 1 or variance <= 1e-20:
        return too_few("rows that differ for an interval")
    if concerned < MIN_ENTITIES:
        return too_few(f"entities that count in it for an interval: {concerned}")
    rows = share * (1 - share) / variance
    single = len(np.unique(inside.round(9))) <= 2
    square = _quantile(math.inf if single else concerned - 1.0, confidence) ** 2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = math.sqrt(square) / (1 + square / rows) * math.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    return Interval(middle - half, middle + half)


Map = Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _angle(share: Any) -> Any:
    return np.arcsin(np.sqrt(share))


def _share_of(angle: Any) -> Any:
    return np.sin(np.clip(angle, 0, np.pi / 2)) ** 2


def _unexplained(explained: Any) -> Any:
    return -np.log1p(-explained)


def _explained(unexplained: Any) -> Any:
    return -np.expm1(-unexplained)


SCALES: dict[Scale, tuple[Map, Map]] = {
    "linear": (_same, _same),
    "positive": (np.log, np.exp),
    "share": (_angle, _share_of),
    "explained": (_unexplained, _explained),
}
"""Scale of a score -> its map onto the scale of the interval, and the way back. Both rise."""
