"""Features that give the target away: too good alone, or in a simple combination of two, or known only after the fact.

What is sure is left out of the draft; what is only suspicious stays, with a warning. Source of the idea to compare a column
with all others together: a leak is not what is good, but what is good where everything else is not.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import KindName, Role

ROWS = 5_000
"""Rows that are looked at, chosen at random."""
CELLS = 1_000_000
"""Of a wide table fewer rows are looked at, so that rows times columns stay below this."""
FOLDS = 3
SURE, SUSPICIOUS = 0.99, 0.965
"""Score (ROC AUC, or R²) of one column alone from which it is a leak, or may be one."""
APART = 3.0
"""It must err so many times less than all the other columns together."""
FILLED = 0.97
"""Being filled in tells the class: in this share of the rows at least."""
LIKE = 0.9
"""Rank correlation from which a suspicious column goes with a sure one."""
WIDE = 200
"""Of a table with more columns, only those are looked at closely whose own order says something of the target."""
TELLING = 0.8
"""ROC AUC of a column's own order, or its rank correlation, that says something."""
PAIRS = 12
"""Columns of numbers, the best alone, that are tried two by two for a class; for a number three times as many."""
FEWEST = 30


@dataclass(frozen=True)
class Leak:
    columns: tuple[str, ...]
    why: str
    """Short, for a comment beside the column."""
    warning: str
    sure: bool
    """It is left out; otherwise only warned about."""


def find(rows: pl.DataFrame, features: Mapping[str, Role], target: str, kind: KindName, time: str | None = None) -> list[Leak]:
    """The leaks among the `features` of `rows`, sure ones first; none where fewer than FEWEST rows have a target."""
    found = list(_after_the_fact(rows, features, target, time)) if time else []
    known: dict[str, Role] = {
        name: role for name, role in features.items() if not any(name in leak.columns for leak in found if leak.sure)
    }
    whole = rows.filter(pl.col(target).is_not_null())
    whole = whole.sample(min(whole.height, ROWS, max(1_000, CELLS // max(1, len(known)))), seed=0)
    if whole.height < FEWEST or not known:
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        look = Look(whole, known, target, kind)
        found += look.leaks() if len(np.unique(look.y)) > 1 else []
    return sorted(found, key=lambda leak: not leak.sure)


class Look:
    """A sample with its target, each column as numbers (codes for words)."""

    def __init__(self, rows: pl.DataFrame, features: Mapping[str, Role], target: str, kind: KindName) -> None:
        self.target, self.classes = target, problems.predictions(kind).target == "class"
        y = rows[target].cast(pl.String).rank("dense") - 1 if self.classes else rows[target].cast(pl.Float64)
        self.y = y.to_numpy().astype(int if self.classes else float)
        self.names = list(features)
        self.words = {name for name, role in features.items() if role in ("category", "text")}
        self.values = {name: _numbers(rows[name], name in self.words) for name in features}
        self.labels = rows[target].cast(pl.String).unique().sort().to_list() if self.classes else []
        if self.classes:
            self._merge_rare()
        self.alone = {name: self._alone(name) for name in self.names}

    def _merge_rare(self) -> None:
        """Rows of a class with fewer than FOLDS rows are left out: no fold could judge them."""
        counts = np.bincount(self.y)
        kept = counts[self.y] >= FOLDS
        self.y, self.values = self.y[kept], {name: value[kept] for name, value in self.values.items()}
        codes, self.y = np.unique(self.y, return_inverse=True)
        self.labels = [self.labels[code] for code in codes]

    def leaks(self) -> list[Leak]:
        filled = list(self._filled())
        taken = {leak.columns[0] for leak in filled}
        near = [name for name in self.names if name not in taken and self.alone[name] >= SUSPICIOUS]
        found = [*filled, *self._apart(near, taken)]
        sure = {name for leak in found if leak.sure for name in leak.columns}
        found = [self._goes_with(leak, sure) for leak in found]
        sure = {name for leak in found if leak.sure for name in leak.columns}
        return [*found, *self._combined(sure)]

    # One column

    def _alone(self, name: str) -> float:
        values = self.values[name]
        if name in self.words:
            return self._lookup(values)
        if len(self.names) > WIDE and (rough := self._quick(values)) < TELLING:
            return rough if self.classes else rough**2
        if self.classes:
            return self._tree(values[:, None], 3)
        there = ~np.isnan(values)
        line = abs(np.corrcoef(values[there], self.y[there])[0, 1]) if there.mean() > 0.5 and values[there].std() else 0.0
        return max(self._tree(values[:, None], 6), line**2 * there.mean())

    def _tree(self, X: np.ndarray, depth: int) -> float:
        from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

        tree = DecisionTreeClassifier if self.classes else DecisionTreeRegressor
        return self._judged(tree(max_depth=depth, min_samples_leaf=3, random_state=0), X)

    def _others(self, names: Sequence[str]) -> float:
        """What boosted trees make of the columns `names` together; of a wide table, of the best WIDE of them."""
        from lightgbm import LGBMClassifier, LGBMRegressor

        names = sorted(names, key=lambda name: -self.alone[name])[:WIDE]
        if not names:
            return 0.5 if self.classes else 0.0
        model = LGBMClassifier if self.classes else LGBMRegressor
        X = np.column_stack([self.values[name] for name in names])
        return self._judged(model(n_estimators=60, num_leaves=15, min_child_samples=10, n_jobs=1, verbosity=-1), X)

    def _splits(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        from sklearn.model_selection import KFold, StratifiedKFold

        splitter = (StratifiedKFold if self.classes else KFold)(FOLDS, shuffle=True, random_state=0)
        return cast(Iterator[tuple[np.ndarray, np.ndarray]], splitter.split(self.y, self.y))

    def _judged(self, model: Any, X: np.ndarray) -> float:
        answers = np.zeros((len(self.y), len(self.labels))) if self.classes else np.zeros(len(self.y))
        for train, test in self._splits():
            model.fit(X[train], self.y[train])
            answers[test] = model.predict_proba(X[test]) if self.classes else model.predict(X[test])
        return self._score(answers)

    def _lookup(self, codes: np.ndarray) -> float:
        """Each level answers what it had in the other folds, drawn a little towards the mean."""
        truth = np.eye(len(self.labels))[self.y] if self.classes else self.y[:, None]
        answers = np.zeros(truth.shape)
        codes = codes.astype(int)
        for train, test in self._splits():
            mean = truth[train].mean(axis=0)
            counts = np.bincount(codes[train], minlength=codes.max() + 1)[:, None]
            sums = np.column_stack([np.bincount(codes[train], column, codes.max() + 1) for column in truth[train].T])
            answers[test] = ((sums + mean) / (counts + 1))[codes[test]]
        return self._score(answers if self.classes else answers[:, 0])

    def _score(self, answers: np.ndarray) -> float:
        """ROC AUC (of several classes the mean, by their share), or R²."""
        from sklearn.metrics import r2_score, roc_auc_score

        if not self.classes:
            return float(r2_score(self.y, answers))
        if len(self.labels) == 2:
            return float(roc_auc_score(self.y, answers[:, 1]))
        answers = answers / answers.sum(axis=1, keepdims=True)
        return float(roc_auc_score(self.y, answers, multi_class="ovr", average="weighted"))

    # Rules

    def _filled(self) -> Iterator[Leak]:
        """Columns that are there (or not zero) only where the target is of one class: filled in when the answer was known."""
        if not self.classes:
            return
        shares = np.bincount(self.y) / len(self.y)
        for name in self.names:
            if name in self.words:
                continue
            for what, there, purity in (
                ("is filled in", ~np.isnan(self.values[name]), FILLED),
                ("is not 0", np.nan_to_num(self.values[name]) != 0, 0.995),
            ):
                count, empty = int(there.sum()), int((~there).sum())
                if count < FEWEST or empty < 0.05 * len(self.y):
                    continue
                inside = np.bincount(self.y[there], minlength=len(shares))
                best = int(inside.argmax())
                share = inside[best] / count
                outside = np.bincount(self.y[~there], minlength=len(shares))[best] / empty
                missed = inside[best] < 0.2 * (self.y == best).sum()
                chance = shares[best] ** count
                if share < purity or outside > 0.5 or missed or chance > 1e-9:
                    continue
                said = f"{what} in {count:,} rows, {share:.1%} of them {self.labels[best]}"
                yield Leak(
                    (name,),
                    f"gives {self.target} away: {said}",
                    f"{name}: {said}: it seems to be known only once {self.target} is. Left out of columns",
                    sure=True,
                )
                break

    def _apart(self, near: list[str], taken: set[str]) -> Iterator[Leak]:
        """Columns that alone do far better than all the others together."""
        if not near:
            return
        rest = [name for name in self.names if name not in taken and name not in near]
        others = self._others(rest)
        metric = "ROC AUC" if self.classes else "R²"
        for name in sorted(near, key=lambda each: -self.alone[each]):
            score = self.alone[name]
            if (1 - others) < APART * (1 - score):
                continue
            sure = score >= SURE
            facts = f"alone it reaches {metric} {score:.3f}, all the others together {others:.3f}"
            advice = "Left out of columns" if sure else "It stays; take it out if it is not known in time"
            yield Leak(
                (name,), f"gives {self.target} away: {facts}", f"{name}: gives {self.target} away: {facts}. {advice}", sure
            )

    def _goes_with(self, leak: Leak, sure: set[str]) -> Leak:
        """A suspicious column that moves with a sure leak is one too."""
        name = leak.columns[0]
        if leak.sure or name in self.words:
            return leak
        for other in sure - self.words:
            like = abs(_rank_correlation(self.values[name], self.values[other]))
            if like >= LIKE:
                why = f"{leak.why}, and it moves with {other} (rank correlation {like:.2f})"
                return Leak(leak.columns, why, f"{name}: {why}. Left out of columns", sure=True)
        return leak

    def _combined(self, sure: set[str]) -> Iterator[Leak]:
        """Pairs of columns of numbers that say by sum, difference, product or quotient what neither says alone."""
        able = [
            name for name in self.names if name not in self.words and name not in sure and not np.isnan(self.values[name]).all()
        ]
        best = sorted(able, key=lambda name: -self.alone[name])[: PAIRS if self.classes else 3 * PAIRS]
        able = [name for name in able if name in best]
        taken: set[str] = set()
        for first, second in combinations(able, 2):
            if taken & {first, second}:
                continue
            for sign, value in _combinations(self.values[first], self.values[second]):
                if self._gives_away(value) and self._needs_both(first, second):
                    taken |= {first, second}
                    formula = f"{first} {sign} {second}"
                    yield Leak(
                        (first, second),
                        f"gives {self.target} away: {formula} tells it",
                        f"{formula}: gives {self.target} away, though neither does alone. Both are left out of columns; "
                        "put back what is known in time",
                        sure=True,
                    )
                    break

    def _gives_away(self, value: np.ndarray) -> bool:
        if not self.classes:
            there = np.isfinite(value)
            if there.mean() < 0.5 or not value[there].std():
                return False
            error = np.abs(value[there] - self.y[there])
            return bool((error <= 1e-6 * np.abs(self.y[there]) + 1e-9).mean() >= 0.98) or bool(
                np.abs(np.corrcoef(value[there], self.y[there])[0, 1]) >= 0.99999
            )
        value = np.where(np.isfinite(value), value, np.nan)
        return self._quick(value) >= SURE and self._tree(value[:, None], 3) >= 0.995

    def _quick(self, value: np.ndarray) -> float:
        """What the order of the values says, at the cost of a sort: ROC AUC (of the first two classes), or rank correlation."""
        from scipy.stats import rankdata

        if not self.classes:
            return abs(_rank_correlation(value, self.y))
        ranks = rankdata(np.nan_to_num(value))
        best = 0.0
        for label in range(1 if len(self.labels) == 2 else 2):
            mine = self.y == label
            count, rest = mine.sum(), (~mine).sum()
            score = (ranks[mine].sum() - count * (count + 1) / 2) / (count * rest)
            best = max(best, score, 1 - score)
        return float(best)

    def _needs_both(self, first: str, second: str) -> bool:
        if max(self.alone[first], self.alone[second]) >= (SUSPICIOUS if self.classes else 0.999):
            return False
        others = self._others([name for name in self.names if name not in (first, second)])
        return (1 - others) >= APART * (1 - SURE)


def _combinations(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    with np.errstate(all="ignore"):
        yield "+", a + b
        yield "-", a - b
        yield "*", a * b
        yield "/", np.where(b != 0, a / np.where(b != 0, b, 1), np.nan)
        yield "by which one divides", np.where(a != 0, b / np.where(a != 0, a, 1), np.nan)


def _numbers(column: pl.Series, words: bool) -> np.ndarray:
    """float64 with NaN for what is missing; words become codes, missing one of its own."""
    if words:
        return (column.cast(pl.String).fill_null("").rank("dense") - 1).to_numpy().astype(float)
    if column.dtype.is_temporal():
        column = column.cast(pl.Datetime("us")).cast(pl.Int64)
    values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    pair = pl.DataFrame({"a": a, "b": b}).filter(pl.all_horizontal(pl.all().is_not_nan()))
    found = pair.select(pl.corr("a", "b", method="spearman")).item() if pair.height > 2 else None
    return float(found) if found is not None and found == found else 0.0


# With time


def _after_the_fact(rows: pl.DataFrame, features: Mapping[str, Role], target: str, time: str | None) -> Iterator[Leak]:
    """Columns that are not yet there in the newest rows, or where the target is not; dates that lie after the row's own."""
    ordered = rows.sort(str(time))
    newest = ordered.tail(max(FEWEST, ordered.height // 20))
    before = ordered.head(ordered.height - newest.height)
    unknown, known = rows.filter(pl.col(target).is_null()), rows.filter(pl.col(target).is_not_null())
    for name, role in features.items():
        if name == time:
            continue
        for new, old, where in (
            (newest, before, f"in the newest rows by {time}"),
            (unknown, known, f"where {target} is not known yet"),
        ):
            if new.height < FEWEST or old.height < FEWEST:
                continue
            empty, was = (part[name].null_count() / part.height for part in (new, old))
            if empty >= 0.9 and was <= 0.5:
                said = f"missing {where} ({empty:.0%}; else {was:.0%})"
                yield Leak((name,), said, f"{name}: {said}: it is filled in after the fact. Left out of columns", sure=True)
                break
        else:
            if role == "date":
                yield from _later(rows, name, str(time))


def _later(rows: pl.DataFrame, name: str, time: str) -> Iterator[Leak]:
    both = rows.select(pl.col(name).cast(pl.Datetime("us")), at=pl.col(time).cast(pl.Datetime("us"))).drop_nulls()
    if both.height < FEWEST:
        return
    share = (both[name] > both["at"]).mean()
    if isinstance(share, float) and share >= 0.5:
        sure = rows[name].null_count() > 0
        said = f"lies after {time} in {share:.0%} of the rows"
        advice = "it is filled in after the fact. Left out of columns" if sure else "take it out if it was not known then"
        yield Leak((name,), said, f"{name}: {said}: {advice}", sure)
