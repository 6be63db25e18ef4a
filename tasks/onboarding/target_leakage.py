"""Target leakage: features that are the target in other words, give it by a formula, predict it too well alone or in pairs,
or are filled in after the target is known. The rules are in leak_rule.

Only a copy of the target is left out of the params template. Everything else stays, with the evidence and the option that
leaves it out: a person must say what is known at prediction time.
"""

import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import KindName, Role
from evergreen.tasks.core.columns import within_32_bits
from evergreen.tasks.onboarding.column_inference import as_numbers
from evergreen.tasks.problems.tabular.leak_rule import find_formula, relation, stands_apart

ROWS = 5_000
"""Largest sample of rows."""
CELLS = 1_000_000
"""Largest sample of a wide table: rows times columns."""
FOLDS = 3
DECIDES, SUSPICIOUS = 0.99, 0.965
"""Score (ROC AUC or R²) from which two features together decide the target, and from which one alone is suspicious."""
PURITY = 0.97
"""Lowest share of one class among the rows where a leaking feature is present."""
WIDE = 200
"""In a table with more features, only features with a high rank score are examined closely."""
HIGH_RANK_SCORE = 0.8
"""ROC AUC of the feature as a score, or its rank correlation."""
PAIRS = 12
"""Numeric features, the best alone, that are combined in pairs for a class."""
MIN_ROWS = 30
"""Lowest number of rows for a statement."""


@dataclass(frozen=True)
class Leak:
    """Features that leak the target."""

    columns: tuple[str, ...]
    facts: str
    """The evidence, for the comment in params.yaml."""
    subject: str = ""
    """The formula of several columns; else the column's name."""
    copy: bool = False
    """The target in other words, and left out of the template. False: only a warning."""

    @property
    def warning(self) -> str:
        said = f"{self.subject or self.columns[0]}: {self.facts}"
        if self.copy:
            return f"{said}. Left out of columns; put it back there if it is known at prediction time"
        options = " ".join(f"--drop {shlex.quote(name)}" for name in self.columns)
        it, be = ("it", "stays") if len(self.columns) == 1 else ("they", "stay")
        return f"{said}; {it} {be}. If {it} {'is' if it == 'it' else 'are'} not known at prediction time, use {options}"


def find_leaks(
    rows: pl.DataFrame, features: Mapping[str, Role], target: str, kind: KindName, time: str | None = None
) -> list[Leak]:
    """Leaks among the `features` of `rows`, copies first; none if fewer than MIN_ROWS rows have a target."""
    found = list(_filled_in_later(rows, features, target, time)) if time else []
    known: dict[str, Role] = {
        name: role for name, role in features.items() if not any(name in leak.columns for leak in found if name != time)
    }
    whole = rows.filter(pl.col(target).is_not_null())
    whole = whole.sample(min(whole.height, ROWS, max(1_000, CELLS // max(1, len(known)))), seed=0)
    if whole.height < MIN_ROWS or not known:
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sample = Sample(whole, known, target, kind)
        found += sample.leaks() if len(np.unique(sample.y)) > 1 else []
    return sorted(found, key=lambda leak: not leak.copy)


class Sample:
    """A sample of rows: the target, and each feature as numbers (codes for categories and text)."""

    def __init__(self, rows: pl.DataFrame, features: Mapping[str, Role], target: str, kind: KindName) -> None:
        self.target, self.classes = target, problems.predictions(kind).target == "class"
        y = rows[target].cast(pl.String).rank("dense") - 1 if self.classes else rows[target].cast(pl.Float64)
        self.y = y.to_numpy().astype(int if self.classes else float)
        self.names = list(features)
        self.coded = {name for name, role in features.items() if role in ("category", "text")}
        self.values = {name: as_numbers(rows[name], name in self.coded) for name in features}
        self.labels = rows[target].cast(pl.String).unique().sort().to_list() if self.classes else []
        if self.classes:
            self._drop_rare_classes()
        self.alone = {name: self._alone(name) for name in self.names}

    def _drop_rare_classes(self) -> None:
        """Drop classes with fewer than FOLDS rows, which cannot be cross-validated."""
        counts = np.bincount(self.y)
        kept = counts[self.y] >= FOLDS
        self.y, self.values = self.y[kept], {name: value[kept] for name, value in self.values.items()}
        codes, self.y = np.unique(self.y, return_inverse=True)
        self.labels = [self.labels[code] for code in codes]

    def leaks(self) -> list[Leak]:
        found = [leak for name in self.names if (leak := self._made_of_target(name))]
        found += self._present_for_one_class({name for leak in found for name in leak.columns})
        if not self.classes:
            found += self._formula({name for leak in found for name in leak.columns if leak.copy})
        taken = {name for leak in found for name in leak.columns}
        near = [name for name in self.names if name not in taken and self.alone[name] >= SUSPICIOUS]
        found += self._standing_apart(near, taken)
        taken = {name for leak in found for name in leak.columns}
        return [*found, *(self._pairs(taken) if self.classes else ())]

    # --- one feature

    def _alone(self, name: str) -> float:
        values = self.values[name]
        if name in self.coded:
            return self._lookup(values)
        if len(self.names) > WIDE and (rough := self._rank_score(values)) < HIGH_RANK_SCORE:
            return rough if self.classes else rough**2
        if self.classes:
            return self._tree(values[:, None], 3)
        there = ~np.isnan(values)
        line = abs(np.corrcoef(values[there], self.y[there])[0, 1]) if there.mean() > 0.5 and values[there].std() else 0.0
        return max(self._tree(values[:, None], 6), line**2 * there.mean())

    def _tree(self, X: np.ndarray, depth: int) -> float:
        from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

        tree = DecisionTreeClassifier if self.classes else DecisionTreeRegressor
        return self._cross_validated_score(tree(max_depth=depth, min_samples_leaf=3, random_state=0), within_32_bits(X))

    def _score_jointly(self, names: Sequence[str]) -> float:
        """Score of boosted trees on the features `names` together; in a wide table, on the best WIDE of them."""
        from lightgbm import LGBMClassifier, LGBMRegressor

        names = sorted(names, key=lambda name: -self.alone[name])[:WIDE]
        if not names:
            return 0.5 if self.classes else 0.0
        model = LGBMClassifier if self.classes else LGBMRegressor
        X = np.column_stack([self.values[name] for name in names])
        return self._cross_validated_score(
            model(n_estimators=60, num_leaves=15, min_child_samples=10, n_jobs=1, verbosity=-1), X
        )

    def _splits(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        from sklearn.model_selection import KFold, StratifiedKFold

        splitter = (StratifiedKFold if self.classes else KFold)(FOLDS, shuffle=True, random_state=0)
        return cast(Iterator[tuple[np.ndarray, np.ndarray]], splitter.split(self.y, self.y))

    def _cross_validated_score(self, model: Any, X: np.ndarray) -> float:
        answers = np.zeros((len(self.y), len(self.labels))) if self.classes else np.zeros(len(self.y))
        for train, test in self._splits():
            model.fit(X[train], self.y[train])
            answers[test] = model.predict_proba(X[test]) if self.classes else model.predict(X[test])
        return self._score(answers)

    def _lookup(self, codes: np.ndarray) -> float:
        """Score of a category's mean target in the other folds, shrunk towards the overall mean."""
        target = np.eye(len(self.labels))[self.y] if self.classes else self.y[:, None]
        answers = np.zeros(target.shape)
        codes = codes.astype(int)
        for train, test in self._splits():
            mean = target[train].mean(axis=0)
            counts = np.bincount(codes[train], minlength=codes.max() + 1)[:, None]
            sums = np.column_stack([np.bincount(codes[train], column, codes.max() + 1) for column in target[train].T])
            answers[test] = ((sums + mean) / (counts + 1))[codes[test]]
        return self._score(answers if self.classes else answers[:, 0])

    def _score(self, answers: np.ndarray) -> float:
        """ROC AUC (of several classes, their weighted mean) or R²."""
        from sklearn.metrics import r2_score, roc_auc_score

        if not self.classes:
            return float(r2_score(self.y, answers))
        if len(self.labels) == 2:
            return float(roc_auc_score(self.y, answers[:, 1]))
        answers = answers / answers.sum(axis=1, keepdims=True)
        return float(roc_auc_score(self.y, answers, multi_class="ovr", average="weighted"))

    # --- rules

    def _made_of_target(self, name: str) -> Leak | None:
        """A feature with one value for each value of the target (a copy), or for each range of it (a band)."""
        there = ~np.isnan(self.values[name])
        if there.sum() < MIN_ROWS or there.mean() < 0.5:
            return None
        x, y = self.values[name][there], self.y[there]
        count = len(np.unique(x))
        if self.classes:
            pairs = len(np.unique(np.column_stack([x, y]), axis=0))
            if count == len(np.unique(y)) == pairs:
                return Leak((name,), f"is {self.target} in other words: one value for each class", copy=True)
            return None
        kind = relation(x, y, name not in self.coded)
        if kind == "copy":
            return Leak((name,), f"is {self.target} in other words: {count:,} values, each for one {self.target}", copy=True)
        facts = f"leaks {self.target}: its {count:,} values are ranges of {self.target} that do not overlap"
        return Leak((name,), facts) if kind == "band" else None

    def _present_for_one_class(self, taken: set[str]) -> Iterator[Leak]:
        """Features that are present (or not zero) only for one class: they are filled in once the target is known."""
        if not self.classes:
            return
        shares = np.bincount(self.y) / len(self.y)
        for name in self.names:
            if name in self.coded or name in taken:
                continue
            for what, there, purity in (
                ("is present", ~np.isnan(self.values[name]), PURITY),
                ("is not 0", np.nan_to_num(self.values[name]) != 0, 0.995),
            ):
                count, empty = int(there.sum()), int((~there).sum())
                if count < MIN_ROWS or empty < 0.05 * len(self.y):
                    continue
                inside = np.bincount(self.y[there], minlength=len(shares))
                best = int(inside.argmax())
                share = inside[best] / count
                outside = np.bincount(self.y[~there], minlength=len(shares))[best] / empty
                missed = inside[best] < 0.2 * (self.y == best).sum()
                chance = shares[best] ** count
                if share < purity or outside > 0.5 or missed or chance > 1e-9:
                    continue
                facts = f"{what} in {count:,} rows, {share:.1%} of them {self.labels[best]}"
                yield Leak((name,), f"leaks {self.target}: {facts}; it seems to be filled in once {self.target} is known")
                break

    def _standing_apart(self, near: list[str], taken: set[str]) -> Iterator[Leak]:
        """Features that alone predict far better than all others together."""
        if not near:
            return
        rest = [name for name in self.names if name not in taken and name not in near]
        others = self._score_jointly(rest)
        metric = "ROC AUC" if self.classes else "R²"
        for name in sorted(near, key=lambda each: -self.alone[each]):
            score = self.alone[name]
            if stands_apart(score, others):
                yield Leak(
                    (name,), f"leaks {self.target}: {metric} {score:.3f} alone, {others:.3f} of all other columns together"
                )

    def _formula(self, copies: set[str]) -> list[Leak]:
        """Numeric features that give a numeric target by a formula."""
        names = sorted((name for name in self.names if name not in self.coded | copies), key=lambda name: -self.alone[name])
        best = set(names[: len(self.y) // 5])
        formula = find_formula({name: self.values[name] for name in self.names if name in best}, self.y)
        if formula is None:
            return []
        return [Leak(formula.columns, f"leaks {self.target}: it is {self.target}, to a thousandth", formula.text)]

    def _pairs(self, taken: set[str]) -> Iterator[Leak]:
        """Pairs of numeric features whose sum, difference, product or quotient decides the class, though neither does alone."""
        numbers = (name for name in self.names if name not in self.coded | taken)
        candidates = [name for name in numbers if not np.isnan(self.values[name]).all()]
        best = sorted(candidates, key=lambda name: -self.alone[name])[:PAIRS]
        seen: set[str] = set()
        for first, second in combinations([name for name in candidates if name in best], 2):
            if seen & {first, second}:
                continue
            for sign, value in _combinations(self.values[first], self.values[second]):
                if self._decides(value) and self._needs_both(first, second):
                    seen |= {first, second}
                    facts = f"it decides {self.target}, though neither column does alone"
                    yield Leak((first, second), facts, f"{first} {sign} {second}")
                    break

    def _decides(self, value: np.ndarray) -> bool:
        value = np.where(np.isfinite(value), value, np.nan)
        return self._rank_score(value) >= DECIDES and self._tree(value[:, None], 3) >= 0.995

    def _rank_score(self, value: np.ndarray) -> float:
        """ROC AUC of the values as a score (of the first two classes), or their rank correlation. It costs one sort."""
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
        if max(self.alone[first], self.alone[second]) >= SUSPICIOUS:
            return False
        others = self._score_jointly([name for name in self.names if name not in (first, second)])
        return stands_apart(DECIDES, others)


def _combinations(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    with np.errstate(all="ignore"):
        yield "+", a + b
        yield "-", a - b
        yield "*", a * b
        yield "/", np.where(b != 0, a / np.where(b != 0, b, 1), np.nan)
        yield "divides", np.where(a != 0, b / np.where(a != 0, a, 1), np.nan)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    pair = pl.DataFrame({"a": a, "b": b}).filter(pl.all_horizontal(pl.all().is_not_nan()))
    found = pair.select(pl.corr("a", "b", method="spearman")).item() if pair.height > 2 else None
    return float(found) if found is not None and found == found else 0.0


# --- with time


def _filled_in_later(rows: pl.DataFrame, features: Mapping[str, Role], target: str, time: str | None) -> Iterator[Leak]:
    """Features missing in the newest rows or where the target is missing, and dates after the row's own time."""
    ordered = rows.sort(str(time))
    newest = ordered.tail(max(MIN_ROWS, ordered.height // 20))
    before = ordered.head(ordered.height - newest.height)
    unknown, known = rows.filter(pl.col(target).is_null()), rows.filter(pl.col(target).is_not_null())
    for name, role in features.items():
        if name == time:
            continue
        for new, old, where in (
            (newest, before, f"in the newest rows by {time}"),
            (unknown, known, f"where {target} is missing"),
        ):
            if new.height < MIN_ROWS or old.height < MIN_ROWS:
                continue
            empty, was = (part[name].null_count() / part.height for part in (new, old))
            if empty >= 0.9 and was <= 0.5:
                facts = f"missing {where} ({empty:.0%}; otherwise {was:.0%})"
                yield Leak((name,), f"{facts}; it is filled in later")
                break
        else:
            if role == "date":
                yield from _dates_after(rows, name, str(time))


def _dates_after(rows: pl.DataFrame, name: str, time: str) -> Iterator[Leak]:
    both = rows.select(pl.col(name).cast(pl.Datetime("us")), at=pl.col(time).cast(pl.Datetime("us"))).drop_nulls()
    if both.height < MIN_ROWS:
        return
    share = (both[name] > both["at"]).mean()
    if isinstance(share, float) and share >= 0.5:
        facts = f"is after {time} in {share:.0%} of the rows"
        yield Leak((name,), facts + ("; it is filled in later" if rows[name].null_count() > 0 else ""))
