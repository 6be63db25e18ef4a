"""The data of a recommender: all purchases, what is true after a cutoff, and what was made of a cutoff before."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from evergreen.tasks.config.params import Interactions
from evergreen.tasks.core import step_cache
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import require
from evergreen.tasks.problems.recommender import (
    dask_partitions,
    item_catalogue,
    purchase_weights,
    ranker_features,
    received_purchases,
)
from evergreen.tasks.problems.recommender.candidate_generation import Candidates, Learned, Settings
from evergreen.tasks.problems.recommender.decay_choice import Case
from evergreen.tasks.problems.recommender.estimators import Ranked
from evergreen.tasks.problems.recommender.evaluation_windows import CalendarWindows, OwnWindows, Windows
from evergreen.tasks.problems.recommender.ranking_metrics import Items
from evergreen.tasks.problems.recommender.user_histories import Histories, codes, distinct, to_date, to_day

log = logging.getLogger(__name__)

FURTHEST = 99_000
"""Most days back (271 years): older purchases, from damaged dates, count as bought then."""
MAX_SHARED_USERS = 20_000
"""Most users whose candidates are stored and shared between models; for more, they are computed for each model."""
CASES = 1_000
"""Most users of a window by which half-lives are chosen."""
KEPT = 6
"""Number of cutoffs whose results stay in memory (about 100 MB each for 2,000 users)."""


def build(
    tables: Mapping[str, pl.LazyFrame], times: Mapping[str, str | None], section: Interactions, as_of: date
) -> dict[str, pl.DataFrame]:
    """See Recommendation.build. Raises ParamsError for a column that is not there, DataError where no purchase is left."""
    time, events = times[section.table], tables[section.table]
    schema = events.collect_schema()
    for name in ("user", "item", "basket"):
        require(getattr(section, name), schema.names(), f"features.{name}")
    when = _when(schema, time, section)
    sold = _select_events(events, tables, section)
    sequence = {"step": pl.col(str(time)).rank("ordinal")} if section.judge_by == "last_lines" else {}
    value = purchase_weights.value(section, schema)
    read = sold.select(user=section.user, basket=section.basket, item=section.item, when=when, **sequence, **value).collect()
    whole = purchase_weights.weigh(read.drop_nulls([name for name in read.columns if name not in value]), section)
    if whole.height < read.height:
        log.warning("%s: %s lines without user, basket, item or time are left out", section.table, read.height - whole.height)
    weight = [name for name in ("weight",) if name in whole.columns]
    dated = whole.select("user", "basket", "item", *sequence, *weight, day=_day(section, whole["user"].n_unique(), as_of))
    known, as_of = received_purchases.add(dated.filter(pl.col("day") <= as_of), tables, section, as_of)
    lines = known.with_columns(pl.col("day").clip(as_of - timedelta(days=FURTHEST)))
    if lines.is_empty():
        raise DataError(f"{section.table}: no purchase up to {as_of} is left. Look at features.exclude and features.where.")
    return {
        "lines": Histories.of(lines).frame().with_columns(**{name: pl.int_range(pl.len()) for name in sequence}),
        "items": item_catalogue.items(tables, section),
        "places": received_purchases.places(tables, item_catalogue.places(sold, section)),
        "users": _users(tables, section),
        "known": pl.DataFrame({"as_of": [as_of]}),
    }


def _when(schema: pl.Schema, time: str | None, section: Interactions) -> pl.Expr:
    """What puts the lines in order: their day, or the number of their order."""
    if section.order is None:
        if time is None:
            raise ParamsError(
                f"features.table = {section.table}: its source names no time column; give ingest.{section.table}.time, "
                "or name the column that numbers the orders in features.order"
            )
        return pl.col(time).cast(pl.Datetime).dt.date()
    require(section.order, schema.names(), "features.order")
    if time is not None:
        raise ParamsError(
            f"features.order = {section.order}: {section.table} has times too (ingest.{section.table}.time = {time}); "
            "remove one"
        )
    if not schema[section.order].is_numeric():
        raise ParamsError(
            f"features.order = {section.order}: holds {schema[section.order]}, not numbers; "
            f"declare ingest.{section.table}.types: {{{section.order}: integer}} or name another column"
        )
    return pl.col(section.order)


def _day(section: Interactions, users: int, as_of: date) -> pl.Expr:
    """The day of each line. Without dates an order is as many orders back from the newest as came after it, and the newest is
    of the day `as_of`. Counted over the shop, an average user orders once in `days_per_order`.
    """
    if section.order is None:
        return pl.col("when")
    place = pl.col("when").rank("dense").cast(pl.Int64)
    if section.order_scope == "user":
        back = (place.max().over("user") - place.over("user")) * section.days_per_order
    else:
        back = (place.max() - place) * section.days_per_order // users
    return pl.lit(as_of) - pl.duration(days=back.clip(upper_bound=FURTHEST))


def _select_events(events: pl.LazyFrame, tables: Mapping[str, pl.LazyFrame], section: Interactions) -> pl.LazyFrame:
    """The events that match `where` and not `exclude`; with `exclude`, items missing in the table of items are dropped."""
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
    return events.join(item_catalogue.allowed(items, section), on=section.item, how="semi")


def _users(tables: Mapping[str, pl.LazyFrame], section: Interactions) -> pl.DataFrame:
    """user and its attributes; of a user who is there twice the first row counts."""
    found = pl.DataFrame(schema={"user": pl.String})
    for each in section.attributes:
        known = tables[each.table].collect_schema().names()
        for column in (section.user, *each.columns):
            require(column, known, f"features.attributes.{each.table}")
        facts = tables[each.table].select(pl.col(section.user).alias("user"), *each.columns).drop_nulls("user")
        facts = facts.unique("user", keep="first", maintain_order=True).collect()
        found = (
            facts if found.width == 1 else found.join(facts, on="user", how="full", coalesce=True, maintain_order="left_right")
        )
    return found.sort("user")


def load(folder: Path, section: Interactions, unsold: bool = False) -> "InteractionData":
    """`unsold`: whether items that nobody has bought yet count as items too."""
    frames = {path.stem: pl.read_parquet(path) for path in folder.glob("*.parquet")}
    histories = Histories.of(frames["lines"])
    items, as_of = frames["items"], frames["known"].item()
    if unsold:
        histories = histories.with_items(item_catalogue.ids(items, histories.items))
    categories = _categories(histories.items, items, "category")
    groups = [_categories(histories.items, items, name) for name in item_catalogue.GROUPS if name in items.columns]
    return InteractionData(
        histories,
        categories,
        as_of,
        section.horizon_days,
        frames.get("users", pl.DataFrame({"user": []})),
        item_catalogue.whole(items),
        frames.get("places", item_catalogue.NOWHERE),
        np.column_stack(groups) if groups else None,
        section.judge_by,
        section.held_out,
    )


def _categories(items: np.ndarray, known: pl.DataFrame, column: str) -> np.ndarray:
    """A number per item; items without a value in `column` share number 0."""
    asked = pl.DataFrame({"item": items})
    found = asked.join(known.cast({"item": asked["item"].dtype}), on="item", how="left", maintain_order="left")[column]
    names = found.drop_nulls().unique().sort()
    return np.where(found.is_null(), 0, codes(found.fill_null("").to_numpy().astype(str), names.to_numpy().astype(str)) + 1)


@dataclass(eq=False)
class Targets:
    """The items bought in the days after a cutoff."""

    users: np.ndarray
    """Positions of the users."""
    pairs: np.ndarray
    """Sorted keys of (row in `users`, item)."""
    novel: np.ndarray
    """Whether each pair is new to the user."""
    items: int
    known: np.ndarray
    """Sorted keys of (user, item) of all that was bought before."""

    def repeats(self, row: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Whether the user of each row bought the item before."""
        return codes(self.users[row].astype(np.int64) * self.items + item, self.known) >= 0

    def holds(self, row: np.ndarray, item: np.ndarray, novel: bool) -> np.ndarray:
        pairs = self.pairs[self.novel] if novel else self.pairs
        return codes(row.astype(np.int64) * self.items + item, pairs) >= 0

    def entries(self, novel: bool) -> tuple[np.ndarray, np.ndarray]:
        """Row and item of each pair."""
        return np.divmod(self.pairs[self.novel] if novel else self.pairs, self.items)

    def sizes(self, novel: bool) -> np.ndarray:
        """Number of items per user."""
        pairs = self.pairs[self.novel] if novel else self.pairs
        return np.bincount(pairs // self.items, minlength=len(self.users))


@dataclass(eq=False)
class InteractionData:
    histories: Histories
    categories: np.ndarray
    """Number of the category of each of `histories.items`."""
    as_of: date
    horizon_days: int
    attributes: pl.DataFrame
    """user and facts about him that scores are shown by; not every user is there."""
    items_table: pl.DataFrame
    """What item_catalogue.items makes: item, category, name, stock."""
    places: pl.DataFrame
    """What item_catalogue.places makes: user, basket, place."""
    groups: np.ndarray | None = None
    """As `categories`, one column for each of features.groups."""
    judge_by: str = "calendar"
    """See features.judge_by."""
    held_out: int = 1
    _kept: dict[str, dict[Hashable, Any]] = field(default_factory=dict)
    _predictions: WeakKeyDictionary[Any, dict[date, pl.DataFrame]] = field(default_factory=WeakKeyDictionary)
    _scores: WeakKeyDictionary[Any, dict[date, np.ndarray]] = field(default_factory=WeakKeyDictionary)
    _readers: WeakKeyDictionary[Any, dict[date, Any]] = field(default_factory=WeakKeyDictionary)
    _proposed: WeakKeyDictionary[Learned, dict[Hashable, Candidates]] = field(default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        if self.judge_by == "calendar":
            self.windows: Windows = CalendarWindows(self.histories, self.as_of, self.horizon_days)
        else:
            self.windows = OwnWindows(self.histories, self.as_of, self.held_out, self.judge_by == "last_lines")

    @property
    def first(self) -> date:
        return to_date(self.histories.day[0])

    def targets(self, cutoff: date) -> Targets:
        """What `windows` judges by at `cutoff`."""
        return self.once("targets", cutoff, lambda: self._find_targets(cutoff))

    def before(self, cutoff: date) -> Histories:
        """The histories that the lists of `cutoff` are made from: users and items without a line are gone."""
        return self.once("before", cutoff, lambda: self.windows.before(cutoff).compact())

    def _find_targets(self, cutoff: date) -> Targets:
        size = len(self.histories.items)
        after, before = self.windows.after(cutoff), self.windows.before(cutoff)
        if after.weight is not None:  # what the user rated lowest is no success
            after = after.part(after.weight > 0)
        users = distinct(after.user)
        bought = distinct(after.user.astype(np.int64) * size + after.item)
        known = distinct(before.user.astype(np.int64) * size + before.item)
        row = np.searchsorted(users, bought // size)
        return Targets(users, row * size + bought % size, codes(bought, known) < 0, size, known)

    def items(self, cutoff: date) -> Items:
        """What is known of the items at `cutoff`."""
        known = self.windows.before(cutoff)
        return self.once("items", cutoff, lambda: Items.of(known, self.categories))

    def users(self, users: np.ndarray, cutoff: date) -> np.ndarray:
        """users x features.USER at `cutoff`; `users`: positions."""
        none = np.zeros(0, self.histories.items.dtype)
        return ranker_features.of_users(ranker_features.Lines.of(self.windows.before(cutoff), users, none, to_day(cutoff)))

    def attributes_of(self, ids: np.ndarray) -> pl.DataFrame:
        """The attributes of the users `ids`, row by row; null where unknown."""
        asked = pl.DataFrame({"user": ids})
        table = self.attributes.cast({"user": asked["user"].dtype})
        return asked.join(table, on="user", how="left", maintain_order="left")

    def visits(self, users: np.ndarray, cutoff: date) -> np.ndarray:
        """Days with a purchase up to `cutoff`, per user."""
        return self.users(users, cutoff)[:, ranker_features.USER.index("visits")].astype(np.int64)

    def learned(self, day: int, settings: Settings) -> Learned:
        """The first stage, learned from the lines up to `day`."""
        return self.once("learned", (day, settings), lambda: self._learn(day, settings))

    def _learn(self, day: int, settings: Settings) -> Learned:
        known = self.histories.until(day)
        if settings.with_content:
            known = known.with_items(item_catalogue.ids(self.items_table, known.items))
        segment = self.segments(known, day - settings.segment_days + 1) if settings.with_segment_popularity else None
        items = codes(known.items, self.histories.items)
        groups = None if self.groups is None else self.groups[items]
        return Learned.of(known, self.categories[items], day, settings, segment, groups, self.items_table)

    def segments(self, known: Histories, first: int) -> np.ndarray | None:
        """The place where each of `known.users` was most often from the day `first` on; None: places are unknown."""
        return item_catalogue.mostly_at(self.places, known, first)

    def candidates(self, learned: Learned, cutoff: date, settings: Settings) -> Candidates:
        """Candidates at `cutoff` for those users of its targets that have a history."""
        kept = self._proposed.setdefault(learned, {})
        if (cutoff, settings) not in kept:
            own = self._kept.get("learned", {}).get((to_day(cutoff), settings)) is learned
            kept[cutoff, settings] = self._own(cutoff, settings)[0] if own else self._propose(learned, cutoff, settings)
        return kept[cutoff, settings]

    def reader(self, model: Any, cutoff: date) -> Any:
        """The twin of a Recommender that answers from the histories before `cutoff`, and knows what items came since it
        learned; once for each model object and cutoff."""
        kept = self._readers.setdefault(model, {})
        if cutoff not in kept:
            known = self.before(cutoff)
            reader = model.reading(known, to_day(cutoff))
            late = (codes(known.items, model.catalogue_) < 0).any()
            kept[cutoff] = reader.knowing(self.items_table) if late else reader
        return kept[cutoff]

    def scorer(self, model: Any, cutoff: date) -> Any:
        """Whom `scored` takes for a model at `cutoff`: the model itself, or its reader where items came after its training."""
        reader = self.reader(model, cutoff)
        return model if getattr(reader, "learned_", None) is getattr(model, "learned_", None) else reader

    def scored(self, model: Any, cutoff: date) -> tuple[Candidates, np.ndarray]:
        """The `candidates` of a TwoStage, and its ranker's score of each; once for each model object and cutoff."""
        found, kept = self.candidates(model.learned_, cutoff, model.settings), self._scores.setdefault(model, {})
        if cutoff not in kept:
            kept[cutoff] = model.order_by(found)
        return found, kept[cutoff]

    def scored_rows(self, model: Any, cutoff: date, rows: np.ndarray) -> tuple[Candidates, np.ndarray, np.ndarray]:
        """As `labelled`, with the ranker's score of each, from `scored` where that keeps its results. `model`: a TwoStage."""
        there = self.known_rows(cutoff)
        if len(there) > MAX_SHARED_USERS:
            found, label = self.labelled(model.learned_, cutoff, model.settings, rows)
            return found, label, model.order_by(found)
        whole, score = self.scored(model, cutoff)
        place = codes(there[whole.row], rows)
        kept = place >= 0
        found = Candidates(place[kept], whole.item[kept], whole.bought[kept], whole.features[kept], whole.late)
        return found, self._label(found, model.catalogue_, cutoff, rows), score[kept]

    def _propose(self, learned: Learned, cutoff: date, settings: Settings) -> Candidates:
        known = self.before(cutoff)
        users = self.targets(cutoff).users[self.known_rows(cutoff)]
        return dask_partitions.propose(
            learned, known, codes(self.histories.users[users], known.users), to_day(cutoff), settings
        )

    def _own(self, cutoff: date, settings: Settings) -> tuple[Candidates, np.ndarray]:
        """Candidates at `cutoff` of the first stage that learned up to `cutoff`, and its catalogue; shared by the steps.

        That first stage is not kept: nobody else asks for those of past cutoffs, and one takes about 80 MB.
        """

        def make() -> dict[str, np.ndarray]:
            kept = self._kept.get("learned", {}).get((to_day(cutoff), settings))
            learned = self._learn(to_day(cutoff), settings) if kept is None else kept
            return vars(self._propose(learned, cutoff, settings)) | {"catalogue": learned.catalogue}

        found = dict(self.once("own", (cutoff, settings), lambda: step_cache.arrays(f"{cutoff} {settings}", make)))
        catalogue = found.pop("catalogue")
        return Candidates(**found), catalogue

    def examples(self, cutoff: date, settings: Settings, users: int, seed: int) -> tuple[Candidates, np.ndarray]:
        """Candidates at `cutoff` for up to `users` users with a history, and whether each was bought in its window."""
        there, drawn = self.known_rows(cutoff), self.draw(cutoff, users, seed)
        if len(there) > MAX_SHARED_USERS:
            return self.labelled(self.learned(to_day(cutoff), settings), cutoff, settings, drawn)
        found, catalogue = self._own(cutoff, settings)
        if len(drawn) == len(there):
            return found, self._label(found, catalogue, cutoff, there)
        kept = np.isin(there[found.row], drawn)
        found = Candidates(found.row[kept], found.item[kept], found.bought[kept], found.features[kept], found.late)
        return found, self._label(found, catalogue, cutoff, there)

    def draw(self, cutoff: date, users: int, seed: int) -> np.ndarray:
        """Up to `users` rows of the targets of `cutoff` whose user has a history, ascending."""
        there = self.known_rows(cutoff)
        return there[np.sort(np.random.default_rng([seed, to_day(cutoff)]).permutation(len(there))[:users])]

    def labelled(self, learned: Learned, cutoff: date, settings: Settings, rows: np.ndarray) -> tuple[Candidates, np.ndarray]:
        """Candidates for `rows` of the targets of `cutoff`, which their own rows count, and whether each was bought."""
        known = self.before(cutoff)
        positions = codes(self.histories.users[self.targets(cutoff).users[rows]], known.users)
        found = dask_partitions.propose(learned, known, positions, to_day(cutoff), settings)
        return found, self._label(found, learned.catalogue, cutoff, rows)

    def _label(self, found: Candidates, catalogue: np.ndarray, cutoff: date, rows: np.ndarray) -> np.ndarray:
        return self.targets(cutoff).holds(rows[found.row], self.places_of(found, catalogue), False)

    def places_of(self, found: Candidates | Ranked, catalogue: np.ndarray) -> np.ndarray:
        """Places in `histories.items` of the items of `found`."""
        return np.concatenate([codes(ids, self.histories.items) for ids in (catalogue, found.late)])[found.item]

    def known_rows(self, cutoff: date) -> np.ndarray:
        """The rows of the targets of `cutoff` whose user has a history; rows of `candidates` count these."""
        seen = distinct(self.windows.before(cutoff).user)
        return np.flatnonzero(np.isin(self.targets(cutoff).users, seen))

    def stored_predictions(self, model: Any, cutoff: date) -> pl.DataFrame | None:
        """Predictions of this model object at `cutoff`; None where none are stored."""
        return self._predictions.get(model, {}).get(cutoff)

    def store_predictions(self, model: Any, cutoff: date, predictions: pl.DataFrame) -> pl.DataFrame:
        self._predictions.setdefault(model, {})[cutoff] = predictions
        return predictions

    def cases(self, cutoffs: Sequence[date]) -> list[Case]:
        """Of up to CASES users of each of `cutoffs` who have a history."""
        found = []
        for cutoff in cutoffs:
            rows, targets = self.draw(cutoff, CASES, 0), self.targets(cutoff)
            row, item = targets.entries(False)
            at = codes(row, rows)
            pairs = at[at >= 0] * targets.items + item[at >= 0]
            day = to_day(cutoff)
            if len(rows):
                found.append(Case(self.windows.before(cutoff), targets.users[rows], day, pairs))
        return found

    def bought(self, cutoff: date) -> pl.DataFrame:
        """entity and items: what each user of the targets of `cutoff` bought."""
        targets = self.targets(cutoff)
        row, item = targets.entries(False)
        pairs = pl.DataFrame({"entity": self.histories.users[targets.users[row]], "items": self.histories.items[item]})
        return pairs.group_by("entity", maintain_order=True).agg("items")

    def forget(self) -> None:
        """Free what was computed and kept for later calls."""
        for kept in (self._kept, self._predictions, self._scores, self._readers, self._proposed):
            kept.clear()

    def once(self, what: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """`make()`, computed once for each `key`; the last KEPT are kept."""
        kept = self._kept.setdefault(what, {})
        if key not in kept:
            while len(kept) >= KEPT:
                del kept[next(iter(kept))]
            kept[key] = make()
        return kept[key]
