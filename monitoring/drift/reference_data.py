"""Reference data of a version: a sample of its training features, predictions and labels, with feature importance.

A reference is stored in var/monitoring/PROBLEM/vN/ and is read without the model. Entities are sampled, each with all its rows.
Each row has its week (the cutoff, or the week of its time), so that differences between weeks do not count as drift.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl

from evergreen.monitoring.drift import comparable_columns, histograms, null_distribution, repeats, week_differences
from evergreen.monitoring.drift.comparable_columns import ITEMS
from evergreen.monitoring.drift.histograms import Bins, Categories, Form, Histogram, Numbers
from evergreen.monitoring.drift.week_differences import MISSING, VALUES
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.tasks import problems
from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Monitor
from evergreen.tasks.config.params import KindName, Params, Role
from evergreen.tasks.core.errors import ProjectError, StepError
from evergreen.tasks.core.paths import Layout, read_json, writing
from evergreen.tasks.problems.base import Model

log = logging.getLogger(__name__)

ENTITY, WEEK = "_entity", "_week"
"""Columns of each part that are not compared; null for a row without entity or week."""
FEWEST_IN_WEEK = 10
"""Fewest rows of a week that counts as a week of its own."""
LISTS = 300
"""Most lists that coverage is computed from, since it grows with their number."""
MANY_WEEKS = 12
"""With so many weeks the reference alone shows how much weeks differ, and windows of production are not needed for it."""
LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 52, math.inf)
"""Weeks since training, rounded up."""
LONG_AGO = -10_000.0
"""Time of a reference whose weeks are not known: related to no other week."""
PartName = Literal["features", "predictions", "labels"]
PARTS: tuple[PartName, ...] = ("features", "predictions", "labels")
Draws = dict[tuple[str, str], np.ndarray]
"""(column, statistic) -> its value in each draw without drift."""


@dataclass(frozen=True, eq=False)
class Part:
    """Features, predictions or labels: rows with ENTITY, WEEK and the columns that are compared."""

    rows: pl.DataFrame
    forms: Mapping[str, Form]
    """Column -> how it is compared."""

    @cached_property
    def entity(self) -> np.ndarray:
        """Code of each row's entity; a row without entity has a code of its own."""
        named = self.rows[ENTITY]
        codes = named.rank("dense").fill_null(0).to_numpy().astype(np.int64)
        alone = named.is_null().to_numpy()
        codes[alone] = int(codes.max(initial=0)) + 1 + np.arange(int(alone.sum()))
        return np.unique(codes, return_inverse=True)[1]

    @cached_property
    def _weeks(self) -> pl.Series:
        """The known weeks with enough rows, ascending."""
        sizes = self.rows[WEEK].drop_nulls().value_counts().filter(pl.col("count") >= FEWEST_IN_WEEK)
        return sizes[WEEK].sort()

    @cached_property
    def week(self) -> np.ndarray:
        """Code of each row's week. Rows of a small week, or of none, are with the next; all are 0 where no week is known."""
        if len(self._weeks) < 2:
            return np.zeros(self.rows.height, dtype=np.int64)
        place = self._weeks.search_sorted(self.rows[WEEK].fill_null(self._weeks[0]), side="left")
        return np.minimum(place.to_numpy().astype(np.int64), len(self._weeks) - 1)

    @cached_property
    def times(self) -> np.ndarray:
        """Of each week, in weeks since 1970; far in the past where it is not known."""
        if not len(self._weeks):
            return np.array([LONG_AGO])
        return self._weeks.cast(pl.Date).to_physical().to_numpy() / 7

    @cached_property
    def weight(self) -> np.ndarray:
        """Of each row: each entity counts once in a week."""
        return null_distribution.blocks(self.entity, self.week)[1].astype(float)

    def chance_of_copy(self, columns: Sequence[str]) -> float:
        """See repeats.chance_of_copy."""
        return repeats.chance_of_copy(self.rows.select(columns), self.entity)

    @cached_property
    def bins(self) -> dict[str, Bins]:
        return {
            name: Numbers.of(self.rows[name]) if form == "number" else Categories.of(self.rows[name], self.entity, self.week)
            for name, form in self.forms.items()
        }

    @cached_property
    def profile(self) -> dict[str, Histogram]:
        return histograms.profile(self.rows, self.bins, self.weight)

    @cached_property
    def weekly(self) -> dict[str, list[Histogram]]:
        """Column -> its histogram in each week."""
        marked = [self.week == each for each in range(len(self.times))]
        weeks = [histograms.profile(self.rows.filter(each), self.bins, self.weight[each]) for each in marked]
        return {name: [each[name] for each in weeks] for name in self.bins}

    def lag(self, time: float | None) -> float:
        """Weeks from the last week to `time`, rounded up to one of LAGS; infinite where either is unknown."""
        if time is None or self.times[0] < 0:
            return math.inf
        return next(each for each in LAGS if time - self.times[-1] <= each)

    def draw(self, size: int, draws: int, seed: int, lag: float = math.inf, past: Sequence["PastPart"] = ()) -> Draws:
        """Each statistic of each column in windows of `size` clusters, `lag` weeks after the last one, without drift.

        `past`: this part in windows of production, whose differences count like those between weeks.
        """
        if not self.rows.height:
            return {}
        by = null_distribution.weights(self.entity, self.week, self.times, size, draws, seed)
        codes = {name: bins.code(self.rows[name]) for name, bins in self.bins.items()}
        moved = week_differences.draw(self.bins, codes, by, past, self.times[-1] + lag, seed)
        found: Draws = {}
        for name, bins in self.bins.items():
            drawn = null_distribution.statistics(bins, codes[name], by, moved.get((name, VALUES)), moved.get((name, MISSING)))
            found |= {(name, statistic): values for statistic, values in drawn.items()}
        if ITEMS in self.rows.columns:
            found["coverage", "items"] = self._cover(size, draws, seed)
        return found

    def lists(self, size: int) -> int:
        """How many lists coverage is counted over, in windows of `size`: no more than half of the smallest week."""
        return max(1, min(LISTS, size, int(np.bincount(self.week).min()) // 2))

    def _cover(self, size: int, draws: int, seed: int) -> np.ndarray:
        """Items in so many lists of one week, none of them twice."""
        random, count = np.random.default_rng([seed, size, 1]), self.lists(size)
        weeks = [np.flatnonzero(self.week == each) for each in range(len(self.times))]
        lists = self.rows[ITEMS]
        return np.array(
            [
                comparable_columns.coverage(lists, random.choice(weeks[random.integers(len(weeks))], count, replace=False))
                for _ in range(draws)
            ]
        )


@dataclass(frozen=True, eq=False)
class PastPart:
    """A part in a past window of production."""

    time: float
    """Of its end, in weeks since 1970."""
    columns: Mapping[str, Histogram]
    calm: frozenset[str]
    """Columns without drift and without fault."""
    faulty: frozenset[str]


class Facts(Section):
    """reference.json: the reference without its rows."""

    problem: str
    version: int
    kind: KindName
    importance: dict[str, float]
    """Feature -> share of the model's importance, 0 to 1; empty where it is unknown."""
    forms: dict[PartName, dict[str, Form]]
    roles: dict[str, Role]
    """Of the features of a plain table."""
    context: dict[str, Any]
    """Facts of training that predictions are compared by; see PredictionType.context."""


@dataclass(frozen=True, eq=False)
class Reference:
    facts: Facts
    parts: Mapping[PartName, Part]
    folder: Path | None = None
    """Where it is stored; None: not stored, and null draws stay in memory."""
    _drawn: dict[tuple[Any, ...], Draws] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return (
            self.parts["features"].rows.height
            if "features" in self.parts
            else max((each.rows.height for each in self.parts.values()), default=0)
        )

    def drawn(
        self,
        name: PartName,
        size: int,
        draws: int,
        seed: int,
        time: float | None = None,
        past: Sequence[PastPart] = (),
    ) -> Draws:
        """Each statistic of a part in windows of about `size` clusters (see null_distribution.rounded) without drift.

        `time`: of the window, in weeks since 1970. Drawn once; again with other `past` windows, which count where the reference
        knows fewer than MANY_WEEKS weeks.
        """
        size, part = null_distribution.rounded(size), self.parts[name]
        lag = part.lag(time)
        if past and len(part.times) < MANY_WEEKS:
            return part.draw(size, draws, seed, lag, past)
        key = (name, size, draws, seed, lag)
        if key not in self._drawn:
            path = self.folder / "null" / f"{name}-{size}-{draws}-{seed}-{lag:g}.npz" if self.folder else None
            self._drawn[key] = _read_or_make(path, lambda: part.draw(size, draws, seed, lag))
        return self._drawn[key]

    def save(self, folder: Path) -> "Reference":
        """Write it to `folder` atomically. Returns the stored one."""
        with writing(folder) as scratch:
            scratch.mkdir(parents=True)
            for name, part in self.parts.items():
                part.rows.write_parquet(scratch / f"{name}.parquet")
            (scratch / "reference.json").write_text(self.facts.model_dump_json(indent=1) + "\n")
        return Reference(self.facts, self.parts, folder)


def _read_or_make(path: Path | None, make: Callable[[], Draws]) -> Draws:
    if path is not None and path.exists():
        try:
            with np.load(path, allow_pickle=False) as kept:
                return {tuple(json.loads(str(name))): row for name, row in zip(kept["names"], kept["values"], strict=True)}  # pyright: ignore[reportReturnType]
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s: is damaged and computed again: %s", path, error)
    found = make()
    if path is not None and found:
        names = np.array([json.dumps(each) for each in found])
        with writing(path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, names=names, values=np.stack(list(found.values())).astype(np.float32))
    return found


def place(layout: Layout, problem: str, version: int) -> Path:
    """Folder of the reference of a version."""
    return layout.var / "monitoring" / problem / f"v{version}"


def load(layout: Layout, problem: str, version: int) -> Reference | None:
    """The reference of a version; None where none was made. Raises ProjectError where it is damaged."""
    folder = place(layout, problem, version)
    if not (folder / "reference.json").exists():
        return None
    try:
        facts = Facts.model_validate(read_json(folder / "reference.json"))
        parts: dict[PartName, Part] = {
            name: Part(pl.read_parquet(folder / f"{name}.parquet"), forms) for name, forms in facts.forms.items()
        }
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise ProjectError(
            f"{folder}: the reference of {problem} v{version} is damaged: {str(error).splitlines()[0]}. "
            "Remove the folder; the next monitoring run builds it again."
        ) from error
    return Reference(facts, parts, folder)


def of(
    problem: str,
    version: int,
    kind: KindName,
    sides: Mapping[PartName, pl.DataFrame],
    *,
    importance: Mapping[str, float] | None = None,
    roles: Mapping[str, Role] | None = None,
    context: Mapping[str, Any] | None = None,
    rows: int = Monitor().reference_rows,
    seed: int = 0,
) -> Reference:
    """A reference of frames with ENTITY, WEEK (either may be all null) and the columns that are compared.

    `importance`, `roles`, `context`: see Facts. `rows`: most rows of each part, sampled by entity.
    """
    parts: dict[PartName, Part] = {}
    for name in PARTS:
        frame = sides.get(name)
        if frame is not None and frame.height and _compared(frame):
            kept = capped(frame, rows, seed)
            parts[name] = Part(kept, {each: comparable_columns.form(kept[each]) for each in _compared(kept)})
    facts = Facts(
        problem=problem,
        version=version,
        kind=kind,
        importance=dict(importance or {}),
        forms={name: dict(part.forms) for name, part in parts.items()},
        roles=dict(roles or {}),
        context=dict(context or {}),
    )
    return Reference(facts, parts)


def of_predicted(
    problem: str,
    version: int,
    kind: KindName,
    learned: Predictions,
    *,
    judged: Predictions | None = None,
    importance: Mapping[str, float] | None = None,
    roles: Mapping[str, Role] | None = None,
    context: Mapping[str, Any] | None = None,
    rows: int = Monitor().reference_rows,
    seed: int = 0,
) -> Reference:
    """A reference of rows in the ledger's format: features and labels of the training rows, predictions of the `judged` rows
    (None: of the training rows).

    Reads the columns entity, cutoff (else at), label and those of the predictions.
    """
    judged, roles, predictions = judged or learned, roles or {}, problems.predictions(kind)
    points = comparable_columns.features(judged.features, roles, moments(judged.rows)) if judged.features.width else None
    context = {**(context or {}), **predictions.context_of_rows(judged.rows, points)}
    sides: dict[PartName, pl.DataFrame] = {
        "predictions": _with_entity_and_week(judged.rows, predictions.comparable(judged.rows, points, context))
    }
    if learned.features.width:
        sides["features"] = _with_entity_and_week(
            learned.rows, comparable_columns.features(learned.features, roles, moments(learned.rows))
        )
    if "label" in learned.rows.columns:
        known = learned.rows.filter(pl.col("label").is_not_null())
        sides["labels"] = _with_entity_and_week(known, predictions.comparable_labels(known["label"]))
    return of(problem, version, kind, sides, importance=importance, roles=roles, context=context, rows=rows, seed=seed)


def moments(rows: pl.DataFrame) -> pl.Series | None:
    """Time of each row: at, else the end of its cutoff; None where neither is known."""
    found = [pl.col(name).cast(pl.Datetime("us")) for name in ("at", "cutoff") if name in rows.columns]
    when = rows.select(pl.coalesce(*found)).to_series() if found else None
    return when if when is not None and when.null_count() < len(when) else None


def _with_entity_and_week(rows: pl.DataFrame, compared: pl.DataFrame) -> pl.DataFrame:
    """`compared` with ENTITY and WEEK of `rows`."""
    if not compared.width:
        return pl.DataFrame()
    entity = rows["entity"] if "entity" in rows.columns else pl.Series([None] * rows.height, dtype=pl.String)
    return compared.select(entity.alias(ENTITY), weeks(rows).alias(WEEK), pl.all())


def weeks(rows: pl.DataFrame) -> pl.Series:
    """Week of each row: the cutoff, else the Monday of the week of `at`; null where neither is known."""
    known = {"cutoff": pl.col("cutoff").cast(pl.Date), "at": pl.col("at").cast(pl.Date).dt.truncate("1w")}
    found = [each for name, each in known.items() if name in rows.columns]
    return rows.select(week=pl.coalesce(*found)).to_series() if found else pl.Series([None] * rows.height, dtype=pl.Date)


def build(
    params: Params,
    problem: str,
    layout: Layout,
    model: Model | None,
    version: int,
    card: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Reference:
    """Build and save the reference of a version, from its training features and its predictions in evaluation.

    `card`: its model.json (None: that of the problem's newest model). `model`: predicts the training rows if the stored
    evaluation is of another version; None: predictions are not compared then. Raises StepError where features are missing.
    """
    section, kind = params.section(problem), params.kind(problem)
    card = card or cast(Mapping[str, Any], read_json(layout.model(problem) / "model.json"))
    seed = params.project.seed if seed is None else seed
    if not layout.features(problem).exists():
        raise StepError(f"{problem}: has no features to be a reference; run evergreen train {problem}")
    importance = weighed(card, layout.report(problem) / "explanation" / "explanation.json")
    predictions, folder = problems.predictions(kind), layout.features(problem)
    context, roles = predictions.context(folder, card), section.features.roles
    rows = predictions.stored_rows(folder, section, card)
    if rows is None:
        learned, judged = _evaluated_alone(problem, layout, card), None
    else:
        learned, judged = _rows(problem, kind, *rows, layout, model, card)
    most = section.monitor.reference_rows
    found = of_predicted(
        problem,
        version,
        kind,
        learned,
        judged=judged,
        importance=importance,
        roles=roles,
        context=context,
        rows=most,
        seed=seed,
    )
    return found.save(place(layout, problem, version))


def _evaluated_alone(problem: str, layout: Layout, card: Mapping[str, Any]) -> Predictions:
    evaluated = _out_of_fold(layout, problem, card)
    if evaluated is None:
        folder = layout.report(problem) / "evaluation"
        raise StepError(
            f"{folder}: holds no predictions of the version judged at {card['cutoff']}; run evergreen train {problem}"
        )
    return Predictions(evaluated, pl.DataFrame())


def _rows(
    problem: str,
    kind: KindName,
    rows: pl.DataFrame,
    features: pl.DataFrame,
    layout: Layout,
    model: Model | None,
    card: Mapping[str, Any],
) -> tuple[Predictions, Predictions | None]:
    """Training rows, and evaluated rows where they are known; else the training rows with predictions of `model`."""
    kept = rows.select("entity", "cutoff", "at", "label").filter(rows["learned"])
    learned = Predictions(kept, features.filter(rows["learned"]))
    evaluated = _out_of_fold(layout, problem, card)
    if evaluated is not None:
        key = ["entity"] if evaluated["cutoff"].null_count() else ["entity", "cutoff"]
        once = rows.with_row_index("place").unique(key, keep="last").select(*key, "at", "place")
        joined = evaluated.join(once, on=key, how="left", maintain_order="left")
        return learned, Predictions(joined.drop("place"), features.select(pl.all().gather(joined["place"])))
    if model is not None:
        predicted = _predicted(problems.kind(kind), model, learned.features)
        learned = Predictions(learned.rows.hstack(predicted), learned.features)
    return learned, None


def _predicted(kind: Any, model: Model, features: pl.DataFrame) -> pl.DataFrame:
    """Predictions of `model` for rows of features."""
    return pl.DataFrame(kind.predict_rows(model, features.to_pandas()))


def _out_of_fold(layout: Layout, problem: str, card: Mapping[str, Any]) -> pl.DataFrame | None:
    """Out-of-fold predictions of the version, in the ledger's format; None where they are of another version."""
    folder = layout.report(problem) / "evaluation"
    if not (folder / "evaluation.json").exists() or not (folder / "predictions.parquet").exists():
        return None
    if str(read_json(folder / "evaluation.json").get("cutoff")) != str(card["cutoff"]):
        return None
    found = pl.read_parquet(folder / "predictions.parquet").rename({"cluster": "prediction"}, strict=False)
    if found.schema["cutoff"] != pl.Date:
        found = found.with_columns(pl.lit(None, pl.Date).alias("cutoff"))
    return found.with_columns(pl.col("entity").cast(pl.String))


def weighed(card: Mapping[str, Any], explanation: Path) -> dict[str, float]:
    """Feature -> share of the importance: the larger of the model's own and of the permutation importance.

    Empty where neither is known."""
    shuffled = {}
    if explanation.exists():
        explained = read_json(explanation)
        shuffled = {each["column"]: each["importance"] or 0.0 for each in explained.get("importance", []) if "column" in each}
    found: dict[str, float] = {}
    for shares in (card.get("importance") or {}, shuffled):
        total = sum(max(each, 0.0) for each in shares.values())
        for name, each in shares.items():
            found[name] = max(found.get(name, 0.0), max(each, 0.0) / total if total > 0 else 0.0)
    return found if any(found.values()) else {}


def _compared(frame: pl.DataFrame) -> list[str]:
    return [name for name in frame.columns if name not in (ENTITY, WEEK, ITEMS)]


def capped(frame: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """At most `rows` rows of `frame` in their order, of entities drawn at random, each with all its rows."""
    if frame.height <= rows:
        return frame
    entity = Part(frame.select(ENTITY, WEEK), {}).entity
    order = np.random.default_rng(seed).permutation(int(entity.max()) + 1)
    sizes = np.bincount(entity)[order]
    kept = np.zeros(len(order), dtype=bool)
    kept[order[np.cumsum(sizes) <= rows]] = True
    if not kept.any():
        return frame.sample(rows, seed=seed)  # one entity alone has more
    return frame.filter(pl.Series(kept[entity]))
