"""What the model goes by, on rows it never saw, in terms of the table's own columns; what it costs to run; and its card.

- Importance: how much the score falls when one column is shuffled among the rows; the interval is over shuffles and entities.
- Contributions: Shapley values of the answer on its own scale (a probability, an amount), so that they and the mean answer add
  up to what was said. Estimated by going through the columns in random orders and their reverse, from another row's values to
  the row's own: Štrumbelj and Kononenko, Explaining prediction models and individual predictions with feature contributions,
  2014. It asks the whole pipeline, so it means the same for a line, a forest and a blend of both.
- Dependence: the mean answer had every row this value in that column (Friedman 2001), and how differently rows move.
- Weak spots: groups of rows, found on one half of the entities, where the loss on the other half is larger beyond doubt.

The model that is explained is the one that was judged.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from sklearn.tree import DecisionTreeRegressor

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Section, Tabular
from evergreen.tasks.core import bootstrap
from evergreen.tasks.core.paths import MODEL, Layout, read_json, writing
from evergreen.tasks.explanation.model_card import card, markdown
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.model_files.trained_model import load_evaluated_model
from evergreen.tasks.problems.base import Kind, Model
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.row_subset import ROWS
from evergreen.tasks.problems.tabular.tabular_kind import Rows

log = logging.getLogger(__name__)

SHUFFLES, RESAMPLES = 4, 60
SHOWN = 15
"""Columns whose importance gets an interval: those that one shuffle says matter most."""
EXPLAINED, ORDERS = 120, 2
"""Rows whose answers are taken apart; random orders of the columns for each, beside their reverses."""
MOST_CALLS = 150_000
"""Most answers that the contributions may ask the model for."""
CURVES, GRID, BANDED = 6, 12, 150
"""Columns with a curve of dependence, values of each, rows it is averaged over."""
CLASSES = 3
"""Most classes that contributions and curves are shown for."""
SPOTS, SMALLEST = 3, 0.04
"""Weak spots that are told, and the least share of the rows that is one."""
LEVEL = 0.95
BATCH = 1_000
MANY = 20_000
"""Most rows in which weak spots are looked for."""
TIMED_SECONDS = 0.4


class Result(Section):
    explanation: str
    """Path of explanation.json."""
    card: str
    """Path of card.md."""
    leans_on: list[str]
    """The columns that matter most, up to three."""


Answers = Callable[[pd.DataFrame], np.ndarray]
"""Rows of features -> one column of numbers per thing that is said: a probability, an amount."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Explain the judged model of `problem`; writes the folder explanation: explanation.json, its tables and card.md.

    Raises StepError where train did not run for these windows.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section, kind = params.section(problem), problems.kind(params.kind(problem))
    data = kind.load(layout.features(problem), section)
    fold = kind.splits(data, section).tests[-1]
    model, _ = load_evaluated_model(layout.model(problem), problem, fold)
    found: dict[str, Any] = {"problem": problem, "kind": kind.name, "of": str(fold.test)}
    tables: dict[str, pl.DataFrame] = {}
    if isinstance(data, Rows) and isinstance(section, Tabular):
        held = row_subset.places(data, (fold.test,), labelled=getattr(kind, "supervised", False))
        order = row_subset.by_entity(data, held, params.project.seed)
        few, many = (row_subset.subset(data, np.sort(order[:most])) for most in (section.evaluate.explain_rows, MANY))
        said, tables = explain(kind, model, few, many, section, params.project.seed, problem)
        found |= said
    else:
        found["note"] = f"{kind.name} answers with lists; each item of an answer comes with its own reason."
    serving = _serving(layout.model(problem) / MODEL, kind, data, section)
    report = layout.report(problem)
    evaluation, best = read_json(report / "evaluation" / "evaluation.json"), read_json(layout.tuning(problem) / "best.json")
    diagnosis = _there(report / "diagnosis" / "diagnosis.json")
    described = card(
        params, problem, read_json(layout.model(problem) / "model.json"), evaluation, best, diagnosis, found, serving,
        _spent(layout, problem),
    )  # fmt: skip
    folder = report / "explanation"
    with writing(folder) as scratch:
        scratch.mkdir()
        text = json.dumps({**found, "serving": serving, "card": described}, indent=2, allow_nan=False)
        (scratch / "explanation.json").write_text(text + "\n")
        (scratch / "card.md").write_text(markdown(described))
        for name, table in tables.items():
            table.write_csv(scratch / f"{name}.csv")
    leans = [str(each["column"]) for each in found.get("importance", [])[:3] if (each["importance"] or 0) > 0]
    log.info("%s: explain: leans on %s", problem, ", ".join(leans) or "no column")
    return Result(explanation=str(folder / "explanation.json"), card=str(folder / "card.md"), leans_on=leans)


def _there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _spent(layout: Layout, problem: str) -> dict[str, dict[str, float]]:
    """Step -> what its last run cost."""
    paths = sorted((layout.var / "costs").glob(f"*@{problem}.json"))
    return {path.stem.partition("@")[0]: read_json(path) for path in paths}


def explain(
    kind: Kind, model: Model, rows: Rows, many: Rows, section: Tabular, seed: int, label: str = ""
) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """What explanation.json says of `model` on `rows` (of the one part ROWS, none of which it learned from), and its tables.

    `many`: more such rows, to look for weak spots in.
    """
    log.info("%s: explain: which columns matter, on %d rows", label, len(rows))
    importance = _importance(kind, model, rows, section, seed)
    tables = {"permutation": importance}
    found: dict[str, Any] = {
        "rows": len(rows),
        "metric": kind.metrics[0].name if getattr(kind, "supervised", False) else "share of rows that change their group",
        "importance": importance.head(SHOWN).to_dicts(),
    }
    if not getattr(kind, "supervised", False):
        return found, tables
    answers, names = _said(kind, model)
    log.info("%s: explain: what each column adds to an answer", label)
    contributions = Contributions(answers, names, rows, importance["column"].to_list(), seed)
    tables["contributions"] = contributions.summary()
    found["mean_answer"] = dict(zip(names, contributions.base.tolist(), strict=True))
    found["predictions"] = _examples(kind, model, rows, section, contributions)
    tables["dependence"] = _dependence(answers, names, rows, importance["column"].to_list()[:CURVES])
    found["weak_spots"] = _weak_spots(kind, model, many, section, importance["column"].to_list(), seed)
    return found, {name: table for name, table in tables.items() if table.height}


# --- importance ------------------------------------------------------------------------------------------------------------


def _importance(kind: Kind, model: Model, rows: Rows, section: Tabular, seed: int) -> pl.DataFrame:
    """column, importance, low, high: the fall of the primary metric, the most important first.

    Of clustering: the share of rows that change their group.
    """
    random = np.random.default_rng(seed)
    whole = kind.predict(model, rows, ROWS, section)
    names = [str(name) for name in rows.features]
    once = {name: _shuffled(kind, model, rows, section, name, 1, random) for name in names}
    first = {name: _fall(kind, whole, frames, section) for name, frames in once.items()}
    ranked = sorted(names, key=lambda name: -first[name] if math.isfinite(first[name]) else math.inf)
    found = []
    for place, name in enumerate(ranked):
        frames = once[name]
        if place < SHOWN:
            frames = frames + _shuffled(kind, model, rows, section, name, SHUFFLES - 1, random)
            low, high = _fall_interval(kind, whole, frames, section, seed)
        else:
            low, high = math.nan, math.nan
        found.append({"column": name, "importance": _fall(kind, whole, frames, section), "low": low, "high": high})
    table = pl.DataFrame(found, schema={"column": pl.String} | dict.fromkeys(("importance", "low", "high"), pl.Float64))
    shown = table.head(SHOWN).sort("importance", descending=True, nulls_last=True)
    return pl.concat([shown, table.slice(SHOWN)]).with_columns(pl.col("importance", "low", "high").fill_nan(None))


def _shuffled(
    kind: Kind, model: Model, rows: Rows, section: Tabular, name: str, times: int, random: np.random.Generator
) -> list[pl.DataFrame]:
    """Predictions with the column `name` shuffled among the rows, once per time."""
    if not times:
        return []
    count = len(rows)
    orders = [random.permutation(count) for _ in range(times)]
    many = row_subset.subset(rows, np.tile(np.arange(count), times))
    many.features[name] = many.features[name].iloc[np.concatenate(orders)].to_numpy()
    said = kind.predict(model, many, ROWS, section)
    return [said.slice(count * place, count) for place in range(times)]


def _fall(kind: Kind, whole: pl.DataFrame, frames: Sequence[pl.DataFrame], section: Tabular) -> float:
    return bootstrap.mean([_worse(kind, whole, each, section) for each in frames])


def _worse(kind: Kind, whole: pl.DataFrame, other: pl.DataFrame, section: Tabular) -> float:
    if not getattr(kind, "supervised", False):
        return float(np.mean((whole["cluster"] != other["cluster"]).to_numpy()))
    metric = kind.metrics[0]
    return metric.gain(*(kind.score(each, section)[metric.name] for each in (whole, other)))


def _fall_interval(
    kind: Kind, whole: pl.DataFrame, frames: Sequence[pl.DataFrame], section: Tabular, seed: int
) -> tuple[float, float]:
    """Over resamples of entities, each with another one of the shuffles."""
    falls = []
    for place, drawn in enumerate(bootstrap.draw([whole, *frames], RESAMPLES, seed)):
        falls.append(_worse(kind, drawn[0], drawn[1 + place % len(frames)], section))
    return bootstrap.interval(falls, LEVEL)


# --- contributions ---------------------------------------------------------------------------------------------------------


def _said(kind: Kind, model: Model) -> tuple[Answers, list[str]]:
    """What the model says as numbers, and the name of each: the positive class alone of two, the first CLASSES of more."""
    if kind.name == "regression":
        return lambda features: np.asarray(model.predict(features), dtype=float)[:, None], ["prediction"]
    classes = [str(each) for each in model.classes_]
    kept = slice(1, 2) if len(classes) == 2 else slice(0, CLASSES)
    return lambda features: model.predict_proba(features)[:, kept], classes[kept]


class Contributions:
    """Shapley values of the answers to some rows. values: row x column x answer; base: the mean answer they start from."""

    def __init__(self, answers: Answers, names: Sequence[str], rows: Rows, ranked: Sequence[str], seed: int) -> None:
        self.names, self.columns, self.features = list(names), list(ranked), rows.features
        self.answers = answers(rows.features)
        random = np.random.default_rng(seed)
        count = max(3, min(EXPLAINED, MOST_CALLS // (2 * ORDERS * (len(ranked) + 1)), len(rows)))
        self.places = self._three() + [
            each for each in row_subset.evenly(np.arange(len(rows)), count) if each not in self._three()
        ]
        self.base = self.answers.mean(axis=0)
        self.values = self._values(answers, random)

    def _three(self) -> list[int]:
        """The rows with the largest, the middle and the smallest answer, each once."""
        order = np.argsort(self.answers[:, 0], kind="stable")
        return list(dict.fromkeys(int(order[place]) for place in (-1, len(order) // 2, 0)))

    def _values(self, answers: Answers, random: np.random.Generator) -> np.ndarray:
        """Column by column, from the values of a random row to the row's own; the mean over the orders and their reverses."""
        width, own = len(self.columns), self.features.iloc[self.places]
        total = np.zeros((len(self.places), width, len(self.names)))
        for _ in range(ORDERS):
            other = self.features.iloc[random.integers(0, len(self.features), len(self.places))]
            order = random.permutation(width)
            for each in (order, order[::-1]):
                total += self._walk(answers, own, other, each)
        total /= 2 * ORDERS
        # what was drawn to start from is not quite the mean: the rest is shared in proportion, so that all adds up
        rest = self.answers[self.places] - self.base - total.sum(axis=1)
        weight = np.abs(total) + 1e-12
        found = total + rest[:, None, :] * weight / weight.sum(axis=1, keepdims=True)
        return np.where(np.abs(found) > 1e-12, found, 0.0)

    def _walk(self, answers: Answers, own: pd.DataFrame, other: pd.DataFrame, order: np.ndarray) -> np.ndarray:
        mixed, count, width = [other], len(own), len(order)
        now = other.copy()
        for place in order:
            name = self.columns[place]
            now = now.copy(deep=False)
            now[name] = own[name].to_numpy()
            mixed.append(now)
        said = answers(pd.concat(mixed, ignore_index=True).astype(self.features.dtypes.to_dict()))
        steps = np.diff(said.reshape(width + 1, count, -1), axis=0)
        found = np.empty((count, width, steps.shape[2]))
        found[:, order, :] = steps.transpose(1, 0, 2)
        return found

    def summary(self) -> pl.DataFrame:
        """answer, column, row, contribution, value (text), place (0 to 1: of the value among those of its column)."""
        parts = []
        strength = np.abs(self.values).mean(axis=0)
        for answer, name in enumerate(self.names):
            for column in np.argsort(-strength[:, answer])[:SHOWN]:
                values = self.features[self.columns[column]].iloc[self.places]
                parts.append(
                    pl.DataFrame(
                        {
                            "answer": name,
                            "column": self.columns[column],
                            "row": self.places,
                            "contribution": self.values[:, column, answer],
                            "value": [_text(each) for each in values],
                            "place": _places(values),
                        }
                    )
                )
        return pl.concat(parts) if parts else pl.DataFrame()

    def of(self, place: int) -> list[dict[str, Any]]:
        """What the columns add to the first answer to the explained row at `place`, the strongest first."""
        row = self.features.iloc[self.places[place]]
        order = np.argsort(-np.abs(self.values[place, :, 0]), kind="stable")
        return [
            {"column": self.columns[each], "value": _text(row[self.columns[each]]), "adds": float(self.values[place, each, 0])}
            for each in order
        ]


def _places(values: pd.Series) -> list[float | None]:
    """Rank of each value among its column's, from 0 to 1; null for what is missing or has no order."""
    if pd.api.types.is_string_dtype(values):
        return [None] * len(values)
    ranks = (values.rank() - 1) / max(values.notna().sum() - 1, 1)
    return [None if math.isnan(each) else float(each) for each in ranks]


def _text(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return str(value.date()) if value == value.normalize() else str(value)
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    return f"{value:.6g}" if isinstance(value, int | float | np.number) else str(value)


def _examples(kind: Kind, model: Model, rows: Rows, section: Tabular, contributions: Contributions) -> list[dict[str, Any]]:
    """The largest, the middle and the smallest answer, taken apart."""
    found = []
    titles = ("the largest answer", "an answer in the middle", "the smallest answer")
    for place, title in zip(range(len(contributions._three())), titles, strict=False):
        row = contributions.places[place]
        found.append(
            {
                "title": title,
                "entity": str(rows.entity[row]),
                "truth": _text(rows.target[row]),
                "of": contributions.names[0],
                "answer": float(contributions.answers[row, 0]),
                "mean_answer": float(contributions.base[0]),
                "parts": contributions.of(place)[:6],
                "rest": float(sum(each["adds"] for each in contributions.of(place)[6:])),
            }
        )
    return found


# --- dependence ------------------------------------------------------------------------------------------------------------


def _dependence(answers: Answers, names: Sequence[str], rows: Rows, columns: Sequence[str]) -> pl.DataFrame:
    """column, answer, value (text), x (number; null for categories), mean, low, high.

    low, high: how differently rows move, the middle half of them, each taken from its own mean over the values.
    """
    few: Any = rows.features.iloc[row_subset.evenly(np.arange(len(rows)), BANDED)]
    found = []
    for column in columns:
        grid = _grid(pd.Series(rows.features[column]))
        if len(grid) < 2:
            continue
        frames = [
            few.assign(**{column: pd.Series([value] * len(few), index=few.index).astype(few[column].dtype)}) for value in grid
        ]
        said = answers(pd.concat(frames, ignore_index=True)).reshape(len(grid), len(few), -1)
        moved = np.quantile(said - said.mean(axis=0), [0.25, 0.75], axis=1) + said.mean(axis=(0, 1))
        for place, value in enumerate(grid):
            for answer, name in enumerate(names):
                low, high = moved[:, place, answer]
                found.append(
                    {"column": column, "answer": name, "value": _text(value), "x": _number(value)}
                    | {"mean": float(said[place, :, answer].mean()), "low": float(low), "high": float(high)}
                )
    return pl.DataFrame(found, infer_schema_length=None)


def _grid(values: Any) -> list[Any]:
    """Quantiles of numbers and dates, from the 2nd to the 98th per cent; the most frequent categories."""
    known = values.dropna()
    if pd.api.types.is_string_dtype(values):
        return known.value_counts().index[:GRID].tolist()
    if known.nunique() <= GRID:
        return sorted(known.unique().tolist())
    points = known.quantile(np.linspace(0.02, 0.98, GRID))
    return list(dict.fromkeys((points.dt.normalize() if _is_date(points) else points).tolist()))


def _number(value: Any) -> float | None:
    if isinstance(value, pd.Timestamp):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


# --- weak spots ------------------------------------------------------------------------------------------------------------


def _weak_spots(
    kind: Kind, model: Model, rows: Rows, section: Tabular, ranked: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Where the model is worst: conditions in words, rows, the loss there and elsewhere with the interval of its excess."""
    frame = kind.predict(model, rows, ROWS, section)
    loss = _losses(kind, frame)
    codes = rows.entity.rank("dense").to_numpy().astype(int)
    half = np.random.default_rng(seed).random(codes.max() + 1)[codes] < 0.5
    if min(half.sum(), (~half).sum()) < 100:
        return []
    table, said = _conditions(rows.features[list(ranked[:SHOWN])])
    smallest = max(20, int(SMALLEST * half.sum()))
    tree: Any = DecisionTreeRegressor(max_depth=3, min_samples_leaf=smallest, max_leaf_nodes=8, random_state=0)
    leaves = tree.fit(table[half], loss[half]).apply(table)
    found = []
    for leaf in np.unique(leaves):
        inside = ~half & (leaves == leaf)
        if inside.sum() < 20 or (others := ~half & (leaves != leaf)).sum() < 20:
            continue
        excess, low, high = _excess(loss, codes, inside, others, seed)
        if low > 0:
            found.append(
                {
                    "where": _path(tree.tree_, int(leaf), said),
                    "rows": int(inside.sum()),
                    "share": float(inside.sum() / (~half).sum()),
                    "loss": float(loss[inside].mean()),
                    "elsewhere": float(loss[others].mean()),
                    "excess": excess,
                    "low": low,
                    "high": high,
                    "measure": "log loss" if kind.name == "classification" else "mean absolute error",
                }
            )
    return sorted(found, key=lambda spot: -spot["excess"])[:SPOTS]


def _losses(kind: Kind, frame: pl.DataFrame) -> np.ndarray:
    """Per row: the absolute error, or minus the logarithm of the probability of what happened."""
    if kind.name == "regression":
        return np.abs((frame["truth"] - frame["prediction"]).to_numpy())
    from evergreen.tasks.problems.classification.kind import arrays

    place, chances, _ = arrays(frame)
    sure = np.where(place >= 0, chances[np.arange(len(place)), place], 0.0)
    return -np.log(np.clip(sure, 1e-4, 1.0))


def _excess(
    loss: np.ndarray, codes: np.ndarray, inside: np.ndarray, others: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """How much larger the mean loss is inside, with its interval over resamples of entities."""
    random = np.random.default_rng(seed)
    sums: list[np.ndarray] = [
        np.bincount(codes[mask], weights, codes.max() + 1) for mask in (inside, others) for weights in (loss[mask], None)
    ]
    present = np.flatnonzero(sums[1] + sums[3])
    drawn = []
    for _ in range(200):
        chosen = present[random.integers(0, len(present), len(present))]
        a, n, b, m = (each[chosen].sum() for each in sums)
        if n and m:
            drawn.append(a / n - b / m)
    low, high = bootstrap.interval(drawn, LEVEL)
    return float(loss[inside].mean() - loss[others].mean()), low, high


def _conditions(features: Any) -> tuple[np.ndarray, list[tuple[str, str | None]]]:
    """Columns that a tree can cut: numbers as they are, one 0/1 column per frequent category; and what each stands for."""
    columns, said = [], []
    for name in features:
        values: Any = features[name]
        if pd.api.types.is_string_dtype(values):
            for category in values.value_counts().index[:10]:
                columns.append((values == category).to_numpy(dtype=float, na_value=0.0))
                said.append((str(name), str(category)))
            continue
        numbers = values.to_numpy(dtype="datetime64[s]").astype(float) if _is_date(values) else values.to_numpy(dtype=float)
        columns.append(np.where(values.isna().to_numpy(), np.nan, numbers))
        said.append((str(name), None))
    return np.column_stack(columns), said


def _is_date(values: Any) -> bool:
    return pd.api.types.is_datetime64_any_dtype(values)


def _path(tree: Any, leaf: int, said: Sequence[tuple[str, str | None]]) -> str:
    """The conditions from the root to a leaf in words; of several cuts of one number, the narrowest."""
    bounds: dict[str, list[float]] = {}
    words: list[str] = []
    node = 0
    while node != leaf:
        column, cut = int(tree.feature[node]), float(tree.threshold[node])
        left = _holds(tree, int(tree.children_left[node]), leaf)
        name, category = said[column]
        if category is not None:
            words.append(f"{name} is {'not ' if left else ''}{category}")
        else:
            low, high = bounds.setdefault(name, [-math.inf, math.inf])
            bounds[name] = [low, min(high, cut)] if left else [max(low, cut), high]
        node = int(tree.children_left[node] if left else tree.children_right[node])
    return " and ".join([*(_between(name, *each) for name, each in bounds.items()), *words]) or "all rows"


def _holds(tree: Any, node: int, leaf: int) -> bool:
    if node == leaf:
        return True
    if tree.children_left[node] < 0:
        return False
    return _holds(tree, int(tree.children_left[node]), leaf) or _holds(tree, int(tree.children_right[node]), leaf)


def _between(name: str, low: float, high: float) -> str:
    if low > -math.inf and high < math.inf:
        return f"{name} above {low:.4g} and up to {high:.4g}"
    return f"{name} up to {high:.4g}" if high < math.inf else f"{name} above {low:.4g}"


# --- what it costs to run --------------------------------------------------------------------------------------------------


def _serving(file: Path, kind: Kind, data: Any, section: Any) -> dict[str, float | None]:
    """Size of the model that serves, seconds to load it, and wall time of an answer to one row and of a batch."""
    started = time.perf_counter()
    model = skops_models.load(file)
    loaded = time.perf_counter() - started
    example = kind.example(data, section)
    ask: Callable[[Any], Any] = getattr(model, "predict_proba", model.predict)
    batch = pd.concat([example] * math.ceil(BATCH / len(example)), ignore_index=True).head(BATCH)
    lists = kind.name == "recommendation"
    return {
        "model_mb": round(file.stat().st_size / 2**20, 3),
        "load_ms": round(1000 * loaded, 1),
        "row_ms": round(1000 * _timed(lambda: ask(example.head(1))), 3),
        "batch_rows": None if lists else len(batch),
        "batch_ms": None if lists else round(1000 * _timed(lambda: ask(batch)), 2),
    }


def _timed(work: Callable[[], Any]) -> float:
    """Median seconds of `work`, repeated for TIMED_SECONDS; the first time does not count."""
    work()
    taken: list[float] = []
    while not taken or (sum(taken) < TIMED_SECONDS and len(taken) < 30):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))
