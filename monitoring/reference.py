"""What production is compared with: a sample of what a version learned from, with its answers, its truths and what it leans on.

A reference stands in var/monitoring/PROBLEM/vN/ and is read without the model. Its rows are drawn by entity, an entity with all
its rows; each row knows its week (the cutoff, or the week of its time), so that what differs between weeks is no drift.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from monitoring import null, sketch
from monitoring.sketch import Bins, Categories, Codes, Form, Numbers, Sketch
from tasks.errors import ProjectError
from tasks.layout import Layout, read_json, writing
from tasks.params import KindName
from tasks.section import Section

log = logging.getLogger(__name__)

ENTITY, WEEK = "_entity", "_week"
"""Columns of every part beside those that are compared; null where a row is about nobody, or of no week."""
FEWEST_IN_WEEK = 10
"""Weeks with fewer rows are too few to say how weeks differ."""
PartName = Literal["features", "answers", "truths"]
PARTS: tuple[PartName, ...] = ("features", "answers", "truths")
Draws = dict[tuple[str, str], np.ndarray]
"""(column, statistic) -> its value in each draw without drift."""


@dataclass(frozen=True, eq=False)
class Part:
    """One side of the problem: rows with ENTITY, WEEK and the columns that are compared."""

    rows: pl.DataFrame
    forms: Mapping[str, Form]
    """Column -> how it is compared."""

    @cached_property
    def entity(self) -> np.ndarray:
        """Code of each row's entity; a row about nobody is one of its own."""
        named = self.rows[ENTITY]
        codes = named.rank("dense").fill_null(0).to_numpy().astype(np.int64)
        alone = named.is_null().to_numpy()
        codes[alone] = int(codes.max(initial=0)) + 1 + np.arange(int(alone.sum()))
        return np.unique(codes, return_inverse=True)[1]

    @cached_property
    def week(self) -> np.ndarray | None:
        """Code of each row's week; None where fewer than two are known. Rows of a small week, or of none, are with the next."""
        sizes = self.rows[WEEK].drop_nulls().value_counts().filter(pl.col("count") >= FEWEST_IN_WEEK)
        if sizes.height < 2:
            return None
        ordered = sizes[WEEK].sort()
        place = ordered.search_sorted(self.rows[WEEK].fill_null(ordered[0]), side="left")
        return np.minimum(place.to_numpy().astype(np.int64), len(ordered) - 1)

    @cached_property
    def bins(self) -> dict[str, Bins]:
        return {
            name: Numbers.of(self.rows[name]) if form == "number" else Categories.of(self.rows[name], self.entity)
            for name, form in self.forms.items()
        }

    @cached_property
    def profile(self) -> dict[str, Sketch]:
        return sketch.profile(self.rows, self.bins)

    def draw(self, size: int, draws: int, seed: int) -> Draws:
        """Each statistic of each column in windows of `size` entities without drift."""
        if not self.rows.height:
            return {}
        by = null.weights(self.entity, self.week, size, draws, seed)
        found = {}
        for name, bins in self.bins.items():
            codes: Codes = bins.code(self.rows[name])
            found |= {(name, statistic): values for statistic, values in null.statistics(bins, codes, by).items()}
        return found


class Facts(Section):
    """What reference.json holds of a reference beside its rows."""

    problem: str
    version: int
    kind: KindName
    importance: dict[str, float]
    """Feature -> share of the model's importance, 0 to 1; empty where it is unknown."""
    forms: dict[PartName, dict[str, Form]]
    answers: dict[str, Any]
    """What it takes to read an answer: see monitoring.answers."""


@dataclass(frozen=True, eq=False)
class Reference:
    facts: Facts
    parts: Mapping[PartName, Part]
    folder: Path | None = None
    """Where it stands; None: nowhere yet, and then null draws are kept in memory alone."""
    _drawn: dict[tuple[PartName, int, int, int], Draws] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return (
            self.parts["features"].rows.height
            if "features" in self.parts
            else max((each.rows.height for each in self.parts.values()), default=0)
        )

    def drawn(self, name: PartName, size: int, draws: int, seed: int) -> Draws:
        """Each statistic of a part in windows of about `size` entities (see null.rounded) without drift; drawn once."""
        size = null.rounded(size)
        key = (name, size, draws, seed)
        if key not in self._drawn:
            path = self.folder / "null" / f"{name}-{size}-{draws}-{seed}.npz" if self.folder else None
            self._drawn[key] = _read_or_make(path, lambda: self.parts[name].draw(size, draws, seed))
        return self._drawn[key]

    def save(self, folder: Path) -> "Reference":
        """Write it to `folder`, whole or not at all. Returns the one that stands there."""
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
            log.warning("%s: is damaged and drawn again: %s", path, error)
    found = make()
    if path is not None and found:
        names = np.array([json.dumps(each) for each in found])
        with writing(path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, names=names, values=np.stack(list(found.values())).astype(np.float32))
    return found


def place(layout: Layout, problem: str, version: int) -> Path:
    """Where the reference of a version stands."""
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
            "Remove the folder; the next look makes it again."
        ) from error
    return Reference(facts, parts, folder)


def of(
    problem: str,
    version: int,
    kind: KindName,
    *,
    features: pl.DataFrame | None = None,
    answers: pl.DataFrame | None = None,
    truths: pl.DataFrame | None = None,
    forms: Mapping[str, Form] | None = None,
    importance: Mapping[str, float] | None = None,
    reads: Mapping[str, Any] | None = None,
    rows: int = 20_000,
    seed: int = 0,
) -> Reference:
    """A reference of frames, each with ENTITY and WEEK (either may be null throughout) beside what is compared.

    `forms`: of columns whose type does not tell. `rows`: most of each part that are kept, by entity. `reads`: Facts.answers.
    """
    given = {"features": features, "answers": answers, "truths": truths}
    parts: dict[PartName, Part] = {}
    for name in PARTS:
        frame = given[name]
        if frame is not None and frame.height:
            kept = capped(frame, rows, seed)
            parts[name] = Part(kept, {each: (forms or {}).get(each) or form(kept[each]) for each in _compared(kept)})
    facts = Facts(
        problem=problem,
        version=version,
        kind=kind,
        importance=dict(importance or {}),
        forms={name: dict(part.forms) for name, part in parts.items()},
        answers=dict(reads or {}),
    )
    return Reference(facts, parts)


def _compared(frame: pl.DataFrame) -> list[str]:
    return [name for name in frame.columns if name not in (ENTITY, WEEK)]


def form(values: pl.Series) -> Form:
    return "number" if values.dtype.is_numeric() or values.dtype.is_temporal() or values.dtype == pl.Boolean else "category"


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


def week_of(day: date) -> date:
    """The Monday of its week."""
    from datetime import timedelta

    return day - timedelta(days=day.weekday())
