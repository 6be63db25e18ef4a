"""Row groups: a column whose values repeat, and whose rows are so alike that validation must keep them together.

The name of a column plays no part. Rows belong together if the column fixes the target, so that a model need only remember its
values, unless these are words with many rows each, unequally many: a category that decides the target. They also do if the
other columns recognise its values, so that boosted trees predict rows of a known value far better than rows of a new one. The
latter is true of many a category, such as the model of a car. So rows must also have been collected by the column: as many rows
for each value, each row of a value with another value of some further column (a panel), or several facts that are the same in
all rows of a value and together name it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import Role
from evergreen.tasks.onboarding.column_inference import as_numbers
from evergreen.tasks.problems.tabular.row_hashes import hash_rows

ROWS = 2_500
"""Rows that are looked at, in whole groups."""
FEATURES = 60
"""Other columns that are looked at."""
FOLDS = 5
FEWEST_GROUPS = 8
FIXED_GROUPS = 20
"""Fewest values of a column that fixes the target; with fewer it is a category that says much."""
SAME_SHARE = 0.98
"""Share of the groups in which all rows agree, where a column is fixed."""
SURE = 20.0
"""Minus the logarithm of the probability that chance explains what is seen."""
WORSE_BY_CHANCE = 0.005
"""Probability that chance predicts so many groups worse when they are new (sign test)."""
GAP = 0.1
"""Share of the target's variance by which new groups must be predicted worse."""
LARGE, FEW = 30, 50
"""With fewer than FEW values of LARGE rows each or more, new values are unlikely: a category."""
SMALL = 20
"""Rows per value below which fixed columns are facts about an entity."""
BALANCED = 0.001
"""Probability that values drawn at random have so equal numbers of rows."""
TREES: dict[str, Any] = {"n_estimators": 80, "num_leaves": 31, "min_child_samples": 4, "n_jobs": 1, "verbosity": -1}
SMOOTH = 0.5
"""Correlation of the means of neighbouring values from which a number is a quantity and no name."""


@dataclass(frozen=True)
class Group:
    """A column by which rows belong together, and the evidence."""

    column: str
    evidence: str
    """Why, in a few words."""
    keeps: bool
    """True: validation must keep the rows together. False: only worth a warning."""
    fixes_target: bool
    loss: float
    """Loss on new groups, as a share of the target's variance."""


def find_groups(
    table: pl.LazyFrame, rows: int, candidates: Sequence[str], features: Mapping[str, Role], target: str, classes: bool
) -> list[Group]:
    """Groups among the columns `candidates`, whole numbers or text without missing values; those to keep together first.

    `table`: rows with the types of training; `rows`: their number.
    """
    found = []
    for name in candidates:
        sample = _whole_groups(table.filter(pl.col(target).is_not_null()), rows, name)
        group = _Candidate(sample, name, features, target, classes).judge() if sample.height else None
        if group is not None:
            found.append(group)
    return sorted(found, key=lambda each: (not each.keeps, not each.fixes_target, -each.loss))


def _whole_groups(table: pl.LazyFrame, rows: int, name: str) -> pl.DataFrame:
    """About ROWS rows, all that have one of some values of the column; the same ones each time."""
    if rows <= ROWS:
        return table.collect()
    values = table.select(pl.col(name).unique()).collect()
    drawn = hash_rows(values) < 2.0**64 * max(ROWS / rows, FEWEST_GROUPS / max(values.height, 1))
    kept = values.filter(pl.Series(drawn)).lazy()
    return table.join(kept, on=name, how="semi").head(4 * ROWS).collect(engine="streaming")


class _Candidate:
    """One column, and what the rows of its values have in common."""

    def __init__(self, sample: pl.DataFrame, name: str, features: Mapping[str, Role], target: str, classes: bool) -> None:
        self.sample, self.name, self.target, self.classes = sample, name, target, classes
        self.codes = _codes(sample[name])
        self.counts = np.bincount(self.codes)
        self.groups = len(self.counts)
        others = [each for each in features if each not in (name, target)]
        self.others = {each: _codes(sample[each]) for each in others[:FEATURES]}
        self.roles = {each: features[each] for each in self.others}

    def judge(self) -> Group | None:
        """None where the rows of a value are no more alike than others."""
        size = len(self.codes) / self.groups
        if self.groups < FEWEST_GROUPS or size < 2 or self._is_quantity():
            return None
        if self._fixes(_codes(self.sample[self.target])) and self.groups >= FIXED_GROUPS:
            keeps = size < SMALL or self._contains_digits() or any(self._collected())
            evidence = f"{size:.1f} rows each, and all rows of one have the same {self.target}"
            return Group(self.name, evidence, keeps, True, 1.0)
        if not self.others or not self._has_similar_rows():
            return None
        from scipy.stats import binom

        known, unknown = (((self._target - each) ** 2).sum(axis=1) for each in self._predictions)
        variance = float(((self._target - self._target.mean(axis=0)) ** 2).sum(axis=1).mean()) or 1.0
        by_group = np.bincount(self.codes, unknown - known)
        chance = binom.sf((by_group > 0).sum() - 1, self.groups, 0.5)
        if chance > WORSE_BY_CHANCE or (unknown - known).mean() < GAP * variance:
            return None
        collected = next(self._collected(), "")
        keeps = bool(collected) and not (size >= LARGE and self.groups < FEW)
        scores = [self._score(each) for each in self._predictions]
        trees = f"boosted trees reach {scores[0]} for known {self.name} and {scores[1]} for new ones"
        evidence = f"{collected or f'{size:.1f} rows each'}; {trees}"
        return Group(self.name, evidence, keeps, False, float(unknown.mean() / variance))

    # --- what the rows of one value have in common

    def _fixes(self, codes: np.ndarray) -> bool:
        """Whether a column, given as codes, is the same in all rows of nearly all values, beyond chance."""
        shares = np.bincount(codes) / len(codes)
        agreement = max(float((shares**2).sum()), 1e-12)
        first = np.full(self.groups, -1)
        first[self.codes[::-1]] = codes[::-1]
        other = np.bincount(self.codes, codes != first[self.codes], self.groups) > 0
        return other.mean() <= 1 - SAME_SHARE and -np.log(agreement) * (len(codes) - self.groups) >= SURE

    def _has_similar_rows(self) -> bool:
        """Whether any column varies less within values than between them, beyond chance (F test)."""
        from scipy.stats import f

        rows, groups = len(self.codes), self.groups
        for values in self._numbers.values():
            there = values - values.mean()
            between = (np.bincount(self.codes, there) ** 2 / self.counts).sum()
            within = (there**2).sum() - between
            ratio = between / (groups - 1) / max(within / (rows - groups), 1e-12 * (between + within) + 1e-300)
            if f.sf(ratio, groups - 1, rows - groups) < 1e-6:
                return True
        return False

    def _is_quantity(self) -> bool:
        """Whether neighbouring numbers have neighbouring means of some column: then they are measured, as a month or a dose."""
        column = self.sample[self.name]
        if not column.dtype.is_numeric():
            return False
        limit = max(SMOOTH, 2.5 / np.sqrt(self.groups))
        for values in [*self._numbers.values(), self._y]:
            means = np.bincount(self.codes, values) / self.counts
            if means[1:].std() and means[:-1].std() and abs(np.corrcoef(means[1:], means[:-1])[0, 1]) > limit:
                return True
        return False

    def _contains_digits(self) -> bool:
        """Whether most values hold a digit: those of an identifier do, unlike words that decide the target, such as breeds."""
        column = self.sample[self.name]
        return column.dtype.is_numeric() or column.cast(pl.String).str.contains(r"\d").sum() > len(column) / 2

    def _collected(self) -> Iterator[str]:
        """Evidence that rows were collected by this column."""
        from scipy.stats import chi2

        rows, size = len(self.codes), len(self.codes) / self.groups
        spread = ((self.counts - size) ** 2 / size).sum()
        if chi2.cdf(spread, self.groups - 1) < BALANCED:
            yield f"{'' if np.ptp(self.counts) == 0 else 'about '}{size:.0f} rows each"
        for name, codes in self.others.items():
            shares = np.bincount(codes) / rows
            expected = (self.counts * (self.counts - 1) / 2).sum() * (shares**2).sum()
            if len(shares) <= rows / 3 and expected >= SURE and _distinct(self.codes, codes) == rows:
                yield f"{size:.1f} rows each, never two with the same {name}"
        fixed = [name for name, codes in self.others.items() if self._fixes(codes) and not self._is_alias(name)]
        if len(fixed) >= 2 and size < SMALL:
            named = _codes(self.sample.select(pl.struct(fixed).alias("facts"))["facts"])
            if named.max() + 1 >= 0.9 * self.groups:
                yield f"{size:.1f} rows each, with the same {', '.join(fixed[:3])}"

    def _is_alias(self, name: str) -> bool:
        """Whether a column is another name of the same values; a measured number is a fact about them."""
        codes = self.others[name]
        return (
            not self.sample[name].dtype.is_float()
            and codes.max() + 1 >= SAME_SHARE * self.groups
            and _distinct(self.codes, codes) <= self.groups / SAME_SHARE
        )

    # --- known and unknown values

    @cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        """The other columns as numbers, without those that are another name of this one or unique in each row."""
        found = {}
        for name, codes in self.others.items():
            coded = self.roles[name] in ("category", "text")
            if self._is_alias(name) or (coded and codes.max() + 1 > 0.9 * len(codes)):
                continue
            values = as_numbers(self.sample[name], coded)
            found[name] = np.where(np.isnan(values), np.nanmedian(values) if (~np.isnan(values)).any() else 0.0, values)
        return found

    @cached_property
    def _y(self) -> np.ndarray:
        if self.classes:
            return _codes(self.sample[self.target]).astype(float)
        return self.sample[self.target].cast(pl.Float64).to_numpy()

    @cached_property
    def _target(self) -> np.ndarray:
        """One column per class, or the number."""
        return np.eye(int(self._y.max()) + 1)[self._y.astype(int)] if self.classes else self._y[:, None]

    @cached_property
    def _predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each row, by boosted trees that learned from other rows of its value, and by trees that learned from none."""
        draw = np.random.default_rng(0)
        ranks = np.empty(len(self.codes), dtype=int)  # rows of one value go to different folds
        ranks[np.lexsort((draw.random(len(self.codes)), self.codes))] = np.arange(len(self.codes))
        values = draw.permutation(self.groups)
        return self._predict(ranks % FOLDS), self._predict(values[self.codes] % FOLDS)

    def _predict(self, folds: np.ndarray) -> np.ndarray:
        from lightgbm import LGBMClassifier, LGBMRegressor

        X, made = np.column_stack(list(self._numbers.values())), np.zeros(self._target.shape)
        for fold in range(FOLDS):
            test = folds == fold
            made[test] = self._target[~test].mean(axis=0)
            if len(np.unique(self._y[~test])) == 1:
                continue
            if self.classes:
                model = LGBMClassifier(**TREES).fit(X[~test], self._y[~test])
                made[np.ix_(test, model.classes_.astype(int))] = np.asarray(model.predict_proba(X[test]))
            else:
                made[test, 0] = np.asarray(LGBMRegressor(**TREES).fit(X[~test], self._y[~test]).predict(X[test]))
        return made

    def _score(self, predicted: np.ndarray) -> str:
        from sklearn.metrics import roc_auc_score

        if not self.classes:
            return f"RMSE {np.sqrt(((self._target - predicted) ** 2).mean()):.3g}"
        if predicted.shape[1] == 2:
            return f"ROC AUC {roc_auc_score(self._y, predicted[:, 1]):.3f}"
        return f"accuracy {(predicted.argmax(axis=1) == self._y).mean():.3f}"


def _codes(column: pl.Series) -> np.ndarray:
    """0, 1, … by value; a missing value is one too."""
    return column.rank("dense").fill_null(0).to_numpy().astype(int) if column.null_count() else _ranks(column)


def _ranks(column: pl.Series) -> np.ndarray:
    return (column.rank("dense") - 1).to_numpy().astype(int)


def _distinct(first: np.ndarray, second: np.ndarray) -> int:
    return len(np.unique(first.astype(np.int64) * (int(second.max()) + 1) + second))
