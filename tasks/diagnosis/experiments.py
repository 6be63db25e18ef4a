"""The doctor's examination: the chosen configuration learned again in other ways, within a number of CPU seconds.

On the folds of the search (the rows that judge stay unseen): on ever more rows (learning curve), with other values of the two
hyper-parameters that matter most (validation curves), on resamples (bias and variance), beside other families, and each column
alone. What cannot be afforded is left out and named.
"""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeRegressor

from evergreen.tasks import problems
from evergreen.tasks.config.params import Range, Tabular
from evergreen.tasks.core import bootstrap
from evergreen.tasks.diagnosis.recommendation import Facts, Rival, decide, suspects_of
from evergreen.tasks.problems.base import Config, Fold, Kind, Metric
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.row_subset import ROWS
from evergreen.tasks.problems.tabular.tabular_kind import Rows

FOLDS = 3
"""Most folds of the search that are looked at."""
TESTED = 3_000
"""Most rows of a fold that a fit is scored on, those it learned from and those it did not."""
FIRST = (500, 2_000)
"""Rows of the first two fits: how long they take tells how many rows can be afforded."""
ESSENTIAL = 0.6
"""Share of the time for what the step is decided by; the rest is for validation curves, bias and variance."""
SHARES = (0.125, 0.25, 0.5)
"""Points of the learning curve below the whole."""
RESAMPLES, DRAWS = 8, 60
"""Fits on resamples for bias and variance; resamples of predictions for an interval."""
POINTS = 4
"""Values per validation curve beside the chosen one."""
LEVEL = 0.95
SURE = 2.6
"""The best of a handful of models knows something when its skill is so many standard errors above that of guessing."""
NOISE_ROWS, NOISE_SHARE = 30, 0.05
"""So many rows, and so large a share of all, must be like another one before they tell how much noise there is."""


@dataclass(frozen=True)
class Fit:
    """One configuration, learned and judged on each fold: scores, and predictions of the rows not learned from."""

    train: list[dict[str, float]]
    test: list[dict[str, float]]
    said: list[pl.DataFrame]

    @property
    def skill(self) -> float:
        return bootstrap.mean([skill(each) for each in self.test])

    @property
    def train_skill(self) -> float:
        return bootstrap.mean([skill(each) for each in self.train])


def examine(
    kind: Kind, data: Rows, section: Tabular, config: Config, seed: int, seconds: float, trials: pl.DataFrame | None = None
) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """What diagnosis.json says of the model that `config` makes, and the tables of its curves. Takes about `seconds` of CPU.

    `trials`: the search's, which tell the hyper-parameters that matter; None: the first of its family.
    """
    subject = Subject(kind, data, section, seed, seconds)
    metric = problems.metric(kind, section.tune.metric, "tune.metric")
    subject.plan(config)
    chosen = subject.judge(config)
    if chosen is None:
        return {"said": f"The model could not be learned again on a part of its rows: {subject.failed}"}, {}
    rivals = {name: fit for name, other in _rivals(kind, section, config).items() if (fit := subject.judge(other))}
    alone, together = _alone(subject)
    facts = _facts(subject, chosen, rivals, alone, together)
    curve = {share: fit for share in SHARES if (fit := subject.judge(config, "learning curve", share))}
    facts = _with_curve(subject, facts, curve, chosen)
    facts = _with_ceiling(subject, facts, chosen)
    step = decide(facts)
    validation = _validation_curves(subject, config, trials, metric)
    spread = _bias_variance(subject, config)
    tables = {
        "learning_curve": _learning_table({**curve, 1.0: chosen}, subject, metric),
        "alone": pl.DataFrame(alone[:12], schema={"column": pl.String, "skill": pl.Float64}, orient="row"),
        **({"bias_variance": spread} if spread is not None else {}),
        **validation,
    }
    found = {
        **asdict(step),
        "metric": metric.name,
        "scores": {
            "learned from": _mean(chosen.train, metric.name),
            "not learned from": _mean(chosen.test, metric.name),
        },
        "facts": _plain(asdict(facts)),
        "rows": facts.rows,
        "all_rows": facts.all_rows,
        "left_out": sorted(subject.left_out),
        "cpu_seconds": round(subject.spent, 2),
    }
    return found, {name: table for name, table in tables.items() if table.height}


class Subject:
    """What is examined: a problem's rows, its folds, and the CPU time that is left.

    What the step is decided by gets ESSENTIAL of the time, on as many folds as can be afforded with all of their rows, else on
    as many rows of the newest fold.
    """

    def __init__(self, kind: Kind, data: Rows, section: Tabular, seed: int, seconds: float) -> None:
        self.kind, self.data, self.section, self.seed = kind, data, section, seed
        self.start, self.seconds = time.process_time(), seconds
        self.left_out: set[str] = set()
        self.failed = ""
        self.folds = [self._split(fold) for fold in _few(kind, data, section)]
        self.all_rows = min(len(train) for train, _ in self.folds)
        self.rows = self.all_rows
        self.fixed, self.per_row = 0.0, 0.0
        """CPU seconds of one fit, and of each row in it; found by `plan`."""

    @property
    def spent(self) -> float:
        return time.process_time() - self.start

    def _split(self, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        """Rows to learn from, in a random order of their entities, and rows to judge on."""
        train = row_subset.by_entity(self.data, row_subset.places(self.data, fold.train), self.seed)
        test = row_subset.by_entity(self.data, row_subset.places(self.data, (fold.test,)), self.seed)[:TESTED]
        return train, np.sort(test)

    def plan(self, config: Config) -> None:
        """Learn from few rows and from some more, and choose folds and rows so that the examination fits into its time."""
        sizes = [min(size, self.all_rows) for size in FIRST]
        sizes[0] = min(sizes[0], -(-sizes[1] // 2))
        took = [self._time(config, size) for size in sizes]
        self.per_row = max(took[1] - took[0], 0.0) / max(sizes[1] - sizes[0], 1)
        self.fixed = max(took[0] - sizes[0] * self.per_row, 0.0)
        fits = 3.5 + len(SHARES)
        budget = ESSENTIAL * self.seconds - self.spent
        for count in range(len(self.folds), 0, -1):
            if count == 1 or count * (fits * self.fixed + (3.5 + sum(SHARES)) * self.all_rows * self.per_row) <= budget:
                self.folds = self.folds[-count:]
                break
        if len(self.folds) == 1:
            self.rows = self._affordable(budget - fits * self.fixed, 3.5 + sum(SHARES))

    def _time(self, config: Config, rows: int) -> float:
        started = time.process_time()
        train, test = self.folds[-1]
        self.fit(config, train[:rows], test)
        return time.process_time() - started

    def _affordable(self, seconds: float, fits: float) -> int:
        rows = seconds / fits / max(self.per_row, 1e-9)
        return min(self.all_rows, max(FIRST[0], int(min(rows, self.all_rows))))

    def narrowed(self, fits: int, what: str) -> "Subject | None":
        """The same for `fits` more fits in the time that is left: on the newest fold, with as many rows as can be afforded."""
        left = self.seconds - self.spent - fits * self.fixed
        if left < fits * FIRST[0] * self.per_row:
            self.left_out.add(what)
            return None
        other = copy.copy(self)
        other.folds, other.rows = self.folds[-1:], min(self.rows, self._affordable(left, fits))
        return other

    def judge(self, config: Config, what: str = "", share: float = 1.0) -> Fit | None:
        """Learn and judge on every fold, from `share` of the rows; None where the time is up or it cannot be learned.

        What is named is left out, and noted, where the time is up.
        """
        if what and self.spent > self.seconds:
            self.left_out.add(what)
            return None
        fits = []
        for train, test in self.folds:
            fit = self.fit(config, train[: max(2, round(share * self.rows))], test)
            if fit is None:
                return None
            fits.append(fit)
        return Fit(*(list(each) for each in zip(*fits, strict=True)))

    def fit(self, config: Config, train: np.ndarray, test: np.ndarray, without: Sequence[str] = ()) -> Any:
        """(scores on rows learned from, scores on `test`, predictions of `test`), or None where it cannot be learned."""
        rows, judged = (_dropped(row_subset.subset(self.data, each), without) for each in (train, test))
        try:
            model = self.kind.fit(rows, [ROWS], config, self.section, self.seed)
            known = _dropped(row_subset.subset(self.data, train[:TESTED]), without)
            said = self.kind.predict(model, judged, ROWS, self.section)
            seen = self.kind.predict(model, known, ROWS, self.section)
            return self.kind.score(seen, self.section), self.kind.score(said, self.section), said
        except Exception as error:  # noqa: BLE001  # too few rows of a class, a family that needs more: the others go on
            self.failed = f"{type(error).__name__}: {error}"
            return None


def skill(scores: Mapping[str, float]) -> float:
    return 2 * scores["roc_auc"] - 1 if "roc_auc" in scores else scores["r2"]


def _few(kind: Kind, data: Rows, section: Tabular) -> Sequence[Fold]:
    """The newest folds where they go forward in time, else the first ones: those of one cross-validation."""
    folds = kind.splits(data, section).folds
    return folds[-FOLDS:] if kind.begins(data, folds[-1].test) else folds[:FOLDS]


def _dropped(rows: Rows, names: Sequence[str]) -> Rows:
    return row_subset.without(rows, names) if names else rows


def _rivals(kind: Kind, section: Tabular, config: Config) -> dict[str, Config]:
    """What the model is held against: the simplest family that learns, boosted trees, and its own family's defaults."""
    families = [name for name in kind.space(section) if name != kind.baseline]
    wanted = dict.fromkeys([families[0], next((name for name in families if name == "lightgbm"), families[-1])])
    if config["model"] in families:
        wanted |= {config["model"]: None}
    found = {}
    for name in wanted:
        defaults = kind.defaults(name, section)
        if dict(defaults) != dict(config):
            found[name if name != config["model"] else f"{name} with its defaults"] = defaults
    return found


# --- what is found ---------------------------------------------------------------------------------------------------------


def _facts(
    subject: Subject, chosen: Fit, rivals: Mapping[str, Fit], alone: list[tuple[str, float]], together: list[str]
) -> Facts:
    beside = [_beside(subject, name, chosen, fit) for name, fit in rivals.items()]
    top = max((chosen, *rivals.values()), key=lambda fit: fit.skill if math.isfinite(fit.skill) else -math.inf)
    return Facts(
        kind=subject.kind.name,
        skill=chosen.skill,
        error=_error(subject, chosen),
        train_skill=chosen.train_skill,
        rows=subject.rows,
        all_rows=subject.all_rows,
        rivals=beside,
        best_low=top.skill - SURE * _error(subject, top),
        alone=alone,
        together=together,
        without=_without(subject, alone, chosen),
    )


def _error(subject: Subject, fit: Fit) -> float:
    """Standard error of the mean skill over the folds, by resampling entities."""
    drawn = [
        bootstrap.mean([skill(subject.kind.score(frame, subject.section)) for frame in frames])
        for frames in bootstrap.draw(fit.said, DRAWS, subject.seed)
    ]
    return float(np.nanstd(drawn))


def _beside(subject: Subject, name: str, mine: Fit, other: Fit) -> Rival:
    gain, low, high = _gained(subject, mine, other)
    return Rival(name, other.skill, other.train_skill, gain, low, high)


def _gained(subject: Subject, mine: Fit, other: Fit) -> tuple[float, float, float]:
    """How much more skill `other` has on the same rows, with the interval over resamples of entities."""
    count = len(mine.said)
    gains = []
    for frames in bootstrap.draw([*mine.said, *other.said], DRAWS, subject.seed):
        skills = [skill(subject.kind.score(frame, subject.section)) for frame in frames]
        gains.append(bootstrap.mean(skills[count:]) - bootstrap.mean(skills[:count]))
    return other.skill - mine.skill, *bootstrap.interval(gains, LEVEL)


def _alone(subject: Subject) -> tuple[list[tuple[str, float]], list[str]]:
    """Column -> skill of the best guess from it alone, the best first; and columns whose weighted sum is the target."""
    train, test = subject.folds[-1][0][:TESTED], subject.folds[-1][1]
    y, classes = _answers(subject, np.concatenate([train, test]))
    y, truth = y[: len(train)], y[len(train) :]
    seen, asked = (subject.data.features.iloc[rows] for rows in (train, test))
    found = []
    for name in subject.data.features:
        said = _guess(seen[name], y, asked[name])
        found.append((str(name), _skill_of(said, truth, classes)))
    found.sort(key=lambda item: -item[1] if math.isfinite(item[1]) else 1.0)
    return found, [] if classes else _sum(seen, y, asked, truth)


def _answers(subject: Subject, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """The target as columns of numbers: one per class (0 or 1), or itself; and the number of classes, 0 for a number."""
    target = subject.data.target[rows]
    if subject.kind.name == "regression":
        return target.cast(pl.Float64).to_numpy()[:, None], 0
    places = target.rank("dense").to_numpy().astype(int) - 1
    return np.eye(int(places.max()) + 1)[places], int(places.max()) + 1


def _guess(seen: pd.Series, y: np.ndarray, asked: pd.Series) -> np.ndarray:
    """The target's mean by value of one column: by category, or by the leaves of a small tree for numbers and dates."""
    if pd.api.types.is_string_dtype(seen):
        mean, counts = y.mean(axis=0), seen.fillna("").value_counts()
        codes = pd.Series(np.arange(len(counts)), index=counts.index)
        place = seen.fillna("").map(codes).to_numpy(dtype=int)
        sums = np.zeros((len(counts) + 1, y.shape[1]))
        np.add.at(sums, place, y)
        sizes = np.append(counts.to_numpy(), 0)[:, None]
        return ((sums + 5 * mean) / (sizes + 5))[asked.fillna("").map(codes).fillna(len(counts)).astype(int).to_numpy()]
    x, z = (_numbers(each)[:, None] for each in (seen, asked))
    if not np.isfinite(x).any():
        return np.tile(y.mean(axis=0), (len(z), 1))
    tree = DecisionTreeRegressor(max_leaf_nodes=32, min_samples_leaf=max(5, len(x) // 100), random_state=0)
    return tree.fit(x, y).predict(z).reshape(len(z), -1)


def _numbers(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column):
        days = column.to_numpy(dtype="datetime64[s]").astype(float) / 86_400
        return np.where(column.isna().to_numpy(), np.nan, days)
    return column.to_numpy(dtype=float, na_value=np.nan)


def _skill_of(said: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Skill of columns of numbers, as `skill` of the kind's own scores."""
    if not classes:
        spread = float(((truth - truth.mean()) ** 2).sum())
        return 1 - float(((truth - said) ** 2).sum()) / spread if spread else math.nan
    from evergreen.tasks.problems.classification.scores import ranking

    columns = range(1, 2) if classes == 2 else range(classes)
    return bootstrap.mean([2 * ranking(truth[:, each] == 1, said[:, each])[0] - 1 for each in columns])


def _sum(seen: pd.DataFrame, y: np.ndarray, asked: pd.DataFrame, truth: np.ndarray) -> list[str]:
    """Up to three numeric columns whose weighted sum is the target, to a thousandth of its variance; none: empty."""
    numeric = [name for name in seen if pd.api.types.is_numeric_dtype(seen[name]) and seen[name].std() > 0]
    if len(numeric) < 2:
        return []
    middle, spread = seen[numeric].median(), seen[numeric].std()

    def scaled(frame: pd.DataFrame) -> pd.DataFrame:
        return (frame[numeric].fillna(middle) - middle) / spread

    weights = np.abs(LinearRegression().fit(scaled(seen), y[:, 0]).coef_)
    top = [numeric[place] for place in np.argsort(-weights)[:3] if weights[place] > 0]
    for names in (top[:1], top[:2], top[:3]):
        line = LinearRegression().fit(scaled(seen)[names], y[:, 0])
        if _skill_of(line.predict(scaled(asked)[names])[:, None], truth, 0) > 0.999:
            return [str(name) for name in names]
    return []


def _without(subject: Subject, alone: list[tuple[str, float]], chosen: Fit) -> float | None:
    """The skill of boosted trees without the suspects; None where there are none, or nothing else."""
    suspects = suspects_of(subject.kind.name, alone, chosen.skill)
    if not suspects or len(suspects) == len(alone):
        return None
    models = [name for name in subject.kind.space(subject.section) if name != subject.kind.baseline]
    config = subject.kind.defaults("lightgbm" if "lightgbm" in models else models[0], subject.section)
    train, test = subject.folds[-1]
    fit = subject.fit(config, train[: subject.rows], test, suspects)
    return skill(fit[1]) if fit else None


def _with_curve(subject: Subject, facts: Facts, curve: Mapping[float, Fit], chosen: Fit) -> Facts:
    """What the last doubling of rows brought, and what another may bring: doublings shrink as the last two did."""
    if 0.5 not in curve:
        return facts
    last = _gained(subject, curve[0.5], chosen)
    before = curve[0.5].skill - curve[0.25].skill if 0.25 in curve else math.nan
    shrinks = min(max(last[0] / before, 0.3), 0.9) if before > 0 and last[0] > 0 else 0.6
    steps = math.log2(facts.all_rows / facts.rows) + 1
    return _replace(facts, last_gain=last, doubling=max(last[0], 0.0) * shrinks**steps)


def _with_ceiling(subject: Subject, facts: Facts, chosen: Fit) -> Facts:
    """The share of the target's variance that the model explains, and the largest that is possible where rows repeat."""
    train = subject.folds[-1][0]
    y, _ = _answers(subject, train)
    variance = float(y.var(axis=0).sum())
    groups = row_subset.alike(subject.data, train)
    sizes = np.bincount(groups)
    twice = sizes[groups] > 1
    explained = _explained(chosen)
    if not variance or twice.sum() < max(NOISE_ROWS, NOISE_SHARE * len(train)):
        return _replace(facts, explained=explained)
    means = np.stack([np.bincount(groups, column) / sizes for column in y.T], axis=1)
    within = float(((y - means[groups]) ** 2).sum() / (sizes[sizes > 1] - 1).sum())
    error = within / variance * math.sqrt(2 / (sizes[sizes > 1] - 1).sum())
    return _replace(facts, explained=explained, ceiling=max(0.0, 1 - within / variance), ceiling_error=error)


def _explained(fit: Fit) -> float:
    """1 - mean squared error / variance, over the folds; of probabilities for classes."""
    shares = []
    for frame in fit.said:
        if "prediction" in frame.columns:
            truth, said = (frame[name].to_numpy()[:, None] for name in ("truth", "prediction"))
        else:
            from evergreen.tasks.problems.classification.scores import arrays

            place, said, _ = arrays(frame)
            truth = (place[:, None] == np.arange(said.shape[1])).astype(float)
        spread = float(((truth - truth.mean(axis=0)) ** 2).sum())
        shares.append(1 - float(((truth - said) ** 2).sum()) / spread if spread else math.nan)
    return bootstrap.mean(shares)


def _replace(facts: Facts, **changes: Any) -> Facts:
    return Facts(**{**facts.__dict__, **changes})


# --- the curves ------------------------------------------------------------------------------------------------------------


def _mean(scores: Sequence[Mapping[str, float]], name: str) -> float | None:
    value = bootstrap.mean([each.get(name, math.nan) for each in scores])
    return value if math.isfinite(value) else None


def _points(fit: Fit, metric: Metric) -> list[dict[str, Any]]:
    """Mean over the folds, lowest and highest fold, of rows learned from and of others."""
    found = []
    for series, scores in (("learned from", fit.train), ("not learned from", fit.test)):
        values = [each[metric.name] for each in scores if math.isfinite(each.get(metric.name, math.nan))]
        if values:
            found.append({"series": series, "score": float(np.mean(values)), "low": min(values), "high": max(values)})
    return found


def _learning_table(curve: Mapping[float, Fit], subject: Subject, metric: Metric) -> pl.DataFrame:
    rows = [
        {"rows": round(share * subject.rows), **point} for share in sorted(curve) for point in _points(curve[share], metric)
    ]
    return pl.DataFrame(rows).with_columns(metric=pl.lit(metric.name)) if rows else pl.DataFrame()


def _bias_variance(subject: Subject, config: Config) -> pl.DataFrame | None:
    """The expected squared error on rows not learned from, in parts, by fits on resamples of the entities of the last fold.

    `error`: mean over fits. `variance`: how far fits lie from their mean. `bias`: the rest, which holds the noise of the labels
    too. Of probabilities, summed over the classes, for classification; all as shares of the target's variance.
    """
    narrowed = subject.narrowed(RESAMPLES, "bias and variance")
    if narrowed is None:
        return None
    subject = narrowed
    train, test = subject.folds[-1]
    random = np.random.default_rng(subject.seed)
    answers = []
    for _ in range(RESAMPLES):
        rows = row_subset.drawn(subject.data, train[: subject.rows], random)
        fit = subject.fit(config, rows, test)
        if fit is not None:
            answers.append(fit[2])
    columns = [set(frame.columns) for frame in answers]
    if len(answers) < RESAMPLES / 2 or any(each != columns[0] for each in columns):
        return None
    names = [name for name in answers[0].columns if name == "prediction" or name.startswith("probability_")]
    said = np.stack([frame.select(names).to_numpy() for frame in answers])
    truth, _ = _answers(subject, test)
    truth = truth if truth.shape[1] == said.shape[2] else np.zeros((len(test), 0))
    if not truth.shape[1]:
        return None
    total = float(truth.var(axis=0).sum()) or 1.0
    error = float(((said - truth) ** 2).sum(axis=2).mean()) / total
    variance = float(said.var(axis=0, ddof=1).sum(axis=1).mean()) / total
    return pl.DataFrame({"part": ["bias and noise", "variance"], "share": [max(error - variance, 0.0), variance]}).with_columns(
        rows=pl.lit(subject.rows)
    )


def _validation_curves(
    subject: Subject, config: Config, trials: pl.DataFrame | None, metric: Metric
) -> dict[str, pl.DataFrame]:
    """Of the two hyper-parameters that matter most: value -> scores, all else as chosen; of a blend's first member."""
    config = config["members"][0] if config.get("members") else config
    space = subject.kind.space(subject.section).get(config["model"], {})
    ranges = {name: each for name, each in space.items() if name in config}
    names = _that_matter(config, ranges, trials)[:2]
    narrowed = subject.narrowed(2 * POINTS + 1, "validation curves") if names else None
    chosen = narrowed.judge(config) if narrowed else None
    if narrowed is None or chosen is None:
        return {}
    tables = {}
    for place, name in enumerate(names):
        points = [{"value": config[name], **point} for point in _points(chosen, metric)]
        for value in _values(ranges[name], config[name]):
            fit = narrowed.judge({**config, name: value}, "validation curves")
            points += [{"value": value, **point} for point in _points(fit, metric)] if fit else []
        if len(points) > 2:
            table = pl.DataFrame([{**each, "value": str(each["value"])} for each in points])
            numeric = not isinstance(config[name], str | bool) and config[name] is not None
            if numeric:
                table = table.with_columns(pl.col("value").cast(pl.Float64, strict=False)).drop_nulls("value").sort("value")
            told = {"parameter": name, "chosen": str(config[name]), "log": ranges[name].log, "metric": metric.name}
            tables[f"validation_curve_{place + 1}"] = table.with_columns(
                **{key: pl.lit(each) for key, each in told.items()}, rows=pl.lit(narrowed.rows)
            )
    return tables


def _that_matter(config: Config, ranges: Mapping[str, Range], trials: pl.DataFrame | None) -> list[str]:
    """The hyper-parameters of `ranges`, by how well each alone orders the family's trials; for few trials numbers first."""
    varied = [name for name, each in ranges.items() if len(_values(each, config[name]))]
    varied.sort(key=lambda name: ranges[name].values is not None)
    if trials is None:
        return varied
    done = trials.filter((pl.col("model") == config["model"]) & pl.col("score").is_not_null())
    if done.height < 8:
        return varied
    tried = [json.loads(text) for text in done["config"]]
    scores = done["score"].rank().to_numpy()
    return sorted(varied, key=lambda name: -_association([each.get(name) for each in tried], scores))


def _association(values: Sequence[Any], ranks: np.ndarray) -> float:
    """Share of the variance of `ranks` that `values` explain: by rank correlation for numbers, by group means for the rest."""
    if len({str(each) for each in values}) < 2:
        return 0.0
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
        return float(np.corrcoef(pd.Series(values).rank().to_numpy(), ranks)[0, 1] ** 2)
    means = pd.Series(ranks).groupby(pd.Series([str(each) for each in values])).transform("mean")
    return float(means.var() / ranks.var()) if ranks.var() else 0.0


def _values(each: Range, chosen: Any) -> list[Any]:
    """POINTS values over a range, the chosen one and what is all but the same left out."""
    if each.values is not None:
        return [value for value in each.values if value != chosen][:POINTS]
    assert each.low is not None
    assert each.high is not None
    steps = [step / (POINTS - 1) for step in range(POINTS)]
    points = [each.low * (each.high / each.low) ** s if each.log else each.low + (each.high - each.low) * s for s in steps]
    points = list(dict.fromkeys(round(point) if each.integer else point for point in points))
    return [point for point in points if isinstance(chosen, int | float) and not math.isclose(point, chosen, rel_tol=0.02)]


def _plain(value: Any) -> Any:
    """For JSON: null for what is not finite."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
