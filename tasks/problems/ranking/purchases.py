"""The data of a recommender: all purchases, what is true after a cutoff, and what was made of a cutoff before."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from tasks.errors import DataError, ParamsError
from tasks.params import Interactions, require
from tasks.problems.ranking import features
from tasks.problems.ranking.candidates import Candidates, Learned, Settings
from tasks.problems.ranking.histories import Histories, codes, distinct, to_date, to_day

KEPT = 6
"""Results of so many cutoffs are kept in memory (about 100 MB each for 2,000 users)."""


def build(
    tables: Mapping[str, pl.LazyFrame], times: Mapping[str, str | None], section: Interactions, as_of: date
) -> dict[str, pl.DataFrame]:
    """See Recommendation.build. Raises ParamsError for a column that is not there, DataError where no purchase is left."""
    time = times[section.table]
    if time is None:
        raise ParamsError(
            f"features.table = {section.table}: its source names no time column; give ingest.{section.table}.time"
        )
    events = tables[section.table]
    for name in ("user", "item", "basket"):
        require(getattr(section, name), events.collect_schema().names(), f"features.{name}")
    goods = _goods(events, tables, section)
    lines = (
        goods.select(user=section.user, basket=section.basket, item=section.item, day=pl.col(time).cast(pl.Datetime).dt.date())
        .drop_nulls()
        .filter(pl.col("day") <= as_of)
        .collect()
    )
    if lines.is_empty():
        raise DataError(f"{section.table}: no purchase up to {as_of} is left. Look at features.exclude and features.where.")
    known = pl.DataFrame({"as_of": [as_of]})
    return {"lines": Histories.of(lines).frame(), "items": _items(tables, section), "known": known}


def _goods(events: pl.LazyFrame, tables: Mapping[str, pl.LazyFrame], section: Interactions) -> pl.LazyFrame:
    """The events that `where` and `exclude` leave. What the table of items does not know is not known to be goods."""
    if section.where is not None:
        try:
            events = events.filter(pl.sql_expr(section.where))
            events.collect_schema()
        except PolarsError as error:
            raise ParamsError(f"features.where = {section.where}: is no condition on {section.table}: {error}") from None
    if section.items is None or not section.exclude:
        return events
    items = tables[section.items]
    for column in section.exclude:
        require(column, items.collect_schema().names(), "features.exclude")
    bad = [pl.col(column).cast(pl.String).is_in(list(values)) for column, values in section.exclude.items()]
    goods = items.filter(~pl.any_horizontal(bad).fill_null(False)).select(section.item)
    return events.join(goods, on=section.item, how="semi")


def _items(tables: Mapping[str, pl.LazyFrame], section: Interactions) -> pl.DataFrame:
    if section.items is None or section.category is None:
        return pl.DataFrame(schema={"item": pl.String, "category": pl.String})
    items = tables[section.items]
    require(section.category, items.collect_schema().names(), "features.category")
    chosen = items.select(item=section.item, category=pl.col(section.category).cast(pl.String))
    return chosen.unique("item", keep="first", maintain_order=True).sort("item").collect()


def load(folder: Path, section: Interactions) -> "Purchases":
    frames = {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("lines", "items", "known")}
    histories = Histories.of(frames["lines"])
    return Purchases(histories, _categories(histories.items, frames["items"]), frames["known"].item(), section.horizon_days)


def _categories(items: np.ndarray, known: pl.DataFrame) -> np.ndarray:
    """A number per item; items without a category share number 0."""
    asked = pl.DataFrame({"item": items})
    found = asked.join(known.cast({"item": asked["item"].dtype}), on="item", how="left", maintain_order="left")["category"]
    names = found.drop_nulls().unique().sort()
    return np.where(found.is_null(), 0, codes(found.fill_null("").to_numpy().astype(str), names.to_numpy().astype(str)) + 1)


@dataclass(eq=False)
class Truth:
    """What was bought in a window. `users`: positions of its users; `pairs`: sorted keys of (row in `users`, item)."""

    users: np.ndarray
    pairs: np.ndarray
    novel: np.ndarray
    """Whether each pair is new to the user."""
    items: int

    def holds(self, row: np.ndarray, item: np.ndarray, novel: bool) -> np.ndarray:
        pairs = self.pairs[self.novel] if novel else self.pairs
        return codes(row.astype(np.int64) * self.items + item, pairs) >= 0

    def sizes(self, novel: bool) -> np.ndarray:
        """Number of items per user."""
        pairs = self.pairs[self.novel] if novel else self.pairs
        return np.bincount(pairs // self.items, minlength=len(self.users))


@dataclass(eq=False)
class Purchases:
    histories: Histories
    categories: np.ndarray
    """Number of the category of each of `histories.items`."""
    as_of: date
    horizon_days: int
    _kept: dict[str, dict[Hashable, Any]] = field(default_factory=dict)
    _answers: WeakKeyDictionary[Any, dict[date, pl.DataFrame]] = field(default_factory=WeakKeyDictionary)
    _proposed: WeakKeyDictionary[Learned, dict[Hashable, Candidates]] = field(default_factory=WeakKeyDictionary)

    @property
    def first(self) -> date:
        return to_date(self.histories.day[0])

    def truth(self, cutoff: date) -> Truth:
        """What is bought in the days 1 to `horizon_days` after `cutoff`."""
        return self._once("truth", cutoff, lambda: self._find_truth(cutoff))

    def _find_truth(self, cutoff: date) -> Truth:
        day, size = to_day(cutoff), len(self.histories.items)
        after = self.histories.between(day + 1, day + self.horizon_days)
        before = self.histories.until_positions(day)
        users = distinct(after.user)
        bought = distinct(after.user.astype(np.int64) * size + after.item)
        known = distinct(before.user.astype(np.int64) * size + before.item)
        row = np.searchsorted(users, bought // size)
        return Truth(users, row * size + bought % size, codes(bought, known) < 0, size)

    def users(self, users: np.ndarray, cutoff: date) -> np.ndarray:
        """users x features.USER at `cutoff`; `users`: positions."""
        none = np.zeros(0, self.histories.items.dtype)
        return features.of_users(features.Lines.of(self.histories, users, none, to_day(cutoff)))

    def visits(self, users: np.ndarray, cutoff: date) -> np.ndarray:
        """Days with a purchase up to `cutoff`, per user."""
        return self.users(users, cutoff)[:, features.USER.index("visits")].astype(np.int64)

    def learned(self, day: int, settings: Settings) -> Learned:
        """The first stage, learned from the lines up to `day`."""
        return self._once("learned", (day, settings), lambda: self._learn(day, settings))

    def _learn(self, day: int, settings: Settings) -> Learned:
        known = self.histories.until(day)
        return Learned.of(known, self.categories[codes(known.items, self.histories.items)], day, settings)

    def candidates(self, learned: Learned, cutoff: date, settings: Settings) -> Candidates:
        """Candidates at `cutoff` for those users of its truth that have a history."""
        kept = self._proposed.setdefault(learned, {})
        if (cutoff, settings) not in kept:
            known = self.histories.until(to_day(cutoff))
            users = self.truth(cutoff).users[self.known_rows(cutoff)]
            positions = codes(self.histories.users[users], known.users)
            kept[cutoff, settings] = learned.propose(known, positions, to_day(cutoff), settings)
        return kept[cutoff, settings]

    def examples(self, cutoff: date, settings: Settings, users: int, seed: int) -> tuple[Candidates, np.ndarray]:
        """Candidates at `cutoff` for up to `users` users with a history, and whether each was bought in its window."""
        learned, truth = self.learned(to_day(cutoff), settings), self.truth(cutoff)
        found, there = self.candidates(learned, cutoff, settings), self.known_rows(cutoff)
        column = codes(learned.catalogue, self.histories.items)
        label = truth.holds(there[found.row], column[found.item], False)
        drawn = np.random.default_rng([seed, to_day(cutoff)]).permutation(len(there))[:users]
        kept = np.isin(found.row, drawn)
        return Candidates(found.row[kept], found.item[kept], found.bought[kept], found.features[kept]), label[kept]

    def known_rows(self, cutoff: date) -> np.ndarray:
        """The rows of the truth of `cutoff` whose user has a history; rows of `candidates` count these."""
        seen = distinct(self.histories.until_positions(to_day(cutoff)).user)
        return np.flatnonzero(np.isin(self.truth(cutoff).users, seen))

    def answer(self, model: Any, cutoff: date) -> pl.DataFrame | None:
        """What `keep` was given for the same model object and cutoff."""
        return self._answers.get(model, {}).get(cutoff)

    def keep(self, model: Any, cutoff: date, answer: pl.DataFrame) -> pl.DataFrame:
        self._answers.setdefault(model, {})[cutoff] = answer
        return answer

    def _once(self, what: str, key: Hashable, make: Callable[[], Any]) -> Any:
        kept = self._kept.setdefault(what, {})
        if key not in kept:
            while len(kept) >= KEPT:
                del kept[next(iter(kept))]
            kept[key] = make()
        return kept[key]
