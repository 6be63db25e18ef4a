"""The catalogue of items: category, name, stock, buyers and places, for rules and explanations."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import Interactions, ListRules
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest, require
from evergreen.tasks.problems.recommender.online_histories import as_id
from evergreen.tasks.problems.recommender.user_histories import Histories, codes, distinct, take, to_ids

NONE = pl.DataFrame(schema={"item": pl.String, "category": pl.String, "name": pl.String, "stock": pl.Boolean})
NOWHERE = pl.DataFrame(schema={"user": pl.String, "basket": pl.String, "place": pl.String})
GROUPS = ("group1", "group2")
"""Columns of `items` for features.groups; only those that are given are there."""
ROOM = 4_096
"""Rows for items that nothing is known of yet; doubled when they are used up."""
MASKS = 64
"""So many sets of rules are kept worked out."""


def items(tables: Mapping[str, pl.LazyFrame], section: Interactions) -> pl.DataFrame:
    """One row per item of the table of items not excluded: item, category, name, stock, groups, text, price.

    Unknown values are null.

    Raises ParamsError for a column that is not there, and for one that has no table.
    """
    if section.items is None:
        for key in ("category", "groups", "name", "text", "price", "exclude"):
            if getattr(section, key):
                raise ParamsError(f"features.{key} = {getattr(section, key)}: needs a table of items; give features.items")
    found = NONE if section.items is None else _items(tables[section.items], section)
    return found if section.stock is None else _stocked(found, tables, section)


def matching_items(table: pl.DataFrame, ids: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """`category` and each group -> of each of `ids` the place in `known` (sorted ids) of an item with the same value, or -1."""
    table, asked = table.with_columns(item=_like(table["item"], known)), pl.DataFrame({"item": ids})
    mine, found = asked.join(table, on="item", how="left", maintain_order="left"), dict[str, np.ndarray]()
    for name in ("category", *GROUPS):
        if name not in table.columns:
            found[name] = np.full(len(ids), -1)
            continue
        others = table.filter(pl.col(name).is_in(mine[name].drop_nulls().unique().to_list())).select("item", name).drop_nulls()
        others = others.with_columns(at=pl.Series(codes(to_ids(others["item"]), known), dtype=pl.Int64)).filter(
            pl.col("at") >= 0
        )
        first = others.group_by(name).agg(pl.col("at").min())
        at = mine.select(name).join(first, on=name, how="left", maintain_order="left")["at"]
        found[name] = at.fill_null(-1).to_numpy()
    return found


def places(lines: pl.LazyFrame, section: Interactions) -> pl.DataFrame:
    """user, basket and place, one row per basket of `lines` (the purchases with their own columns)."""
    if section.place is None:
        return NOWHERE
    require(section.place, lines.collect_schema().names(), "features.place")
    chosen = lines.select(user=section.user, basket=section.basket, place=pl.col(section.place).cast(pl.String)).drop_nulls()
    return chosen.unique(["user", "basket"], keep="first", maintain_order=True).collect()


def allowed(items: pl.LazyFrame, section: Interactions) -> pl.LazyFrame:
    """The ids of the items that features.exclude leaves."""
    bad = [pl.col(column).cast(pl.String).is_in(list(values)) for column, values in section.exclude.items()]
    return items.filter(~pl.any_horizontal(bad).fill_null(False)).select(section.item)


def ids(found: pl.DataFrame, known: np.ndarray) -> np.ndarray:
    """The ids of `found`, what `items` makes, as those in `known` are; without those that cannot be one."""
    return to_ids(_like(found["item"], known).drop_nulls())


def whole(found: pl.DataFrame) -> pl.DataFrame:
    """`found` with all the columns of `items`, empty where it was made before they were."""
    missing = [pl.lit(None, kind).alias(name) for name, kind in NONE.schema.items() if name not in found.columns]
    return found.with_columns(missing)


def _items(table: pl.LazyFrame, section: Interactions) -> pl.DataFrame:
    known = table.collect_schema().names()
    for key in ("category", "name", "text", "price"):
        if (column := getattr(section, key)) is not None:
            require(column, known, f"features.{key}")
    for column in section.groups:
        require(column, known, "features.groups")
    for column, values in section.exclude.items():
        require(column, known, "features.exclude")
        table = table.filter(~pl.col(column).cast(pl.String).is_in(list(values)).fill_null(False))
    text = {key: _text(getattr(section, key)) for key in ("category", "name")}
    text |= {name: _text(column) for name, column in zip(GROUPS, section.groups, strict=False)}
    if section.text is not None:
        text["text"] = _text(section.text)
    if section.price is not None:
        if not (kind := table.collect_schema()[section.price]).is_numeric():
            raise ParamsError(
                f"features.price = {section.price}: holds {kind}, not numbers; "
                "declare its type under ingest or name another column"
            )
        text["price"] = pl.col(section.price).cast(pl.Float64)
    chosen = table.select(item=section.item, **text, stock=pl.lit(None, pl.Boolean)).drop_nulls("item")
    return chosen.unique("item", keep="first", maintain_order=True).sort("item").collect()


def _text(column: str | None) -> pl.Expr:
    return pl.lit(None, pl.String) if column is None else pl.col(column).cast(pl.String)


def _stocked(found: pl.DataFrame, tables: Mapping[str, pl.LazyFrame], section: Interactions) -> pl.DataFrame:
    """`found` with its stock; an item that only the table of stock knows comes without category."""
    if (name := section.stock_table or section.items) is None:
        raise ParamsError(f"features.stock = {section.stock}: needs a table; give features.stock_table or features.items")
    table = stock(tables[name], section)
    if not len(found):
        found = found.cast({"item": table.schema["item"]})
    return (
        found.drop("stock").join(table, on="item", how="full" if section.items is None else "left", coalesce=True).sort("item")
    )


def stock(table: pl.LazyFrame, section: Interactions) -> pl.DataFrame:
    """item and stock (whether there is any), one row per item; of several rows one in stock is enough."""
    schema = table.collect_schema()
    for key, column in (("item", section.item), ("stock", str(section.stock))):
        require(column, schema.names(), f"features.{key}")
    value = pl.col(str(section.stock))
    if not (schema[str(section.stock)].is_numeric() or schema[str(section.stock)] == pl.Boolean):
        raise ParamsError(
            f"features.stock = {section.stock}: holds {schema[str(section.stock)]}; it must hold numbers or true and false"
        )
    there = value.cast(pl.Float64) > 0
    return table.drop_nulls(section.item).group_by(item=section.item).agg(stock=there.any()).sort("item").collect()


@dataclass(eq=False)
class ItemCatalogue:
    """Everything that can be recommended: the catalogue of the model, in its order, then other known items, then those that
    nothing was known of before somebody bought them. The first two parts are sorted, and their `ids` never change.

    Other arrays have rows for all three: behind `ids` those of items to come, the same for each.
    """

    ids: np.ndarray
    size: int
    """Of the catalogue."""
    category: np.ndarray
    """Number of the category in `categories`; 0: none."""
    categories: np.ndarray
    """Names, sorted; the first is empty."""
    names: np.ndarray
    """Display name of each; "" where unknown."""
    stock: np.ndarray | None
    """Whether each is there; None: unknown."""
    users: np.ndarray
    """Number of users who bought each."""
    popular: np.ndarray
    """Number of users who bought each lately."""
    late: "Late" = field(default_factory=lambda: Late())
    late_count: int = 0
    """How many of `late` came before this catalogue."""
    unknown_count: int = 0
    """How many of late.unknown did."""
    _masks: dict[ListRules, list[tuple[str, np.ndarray]]] = field(default_factory=dict, init=False, repr=False)
    _orders: dict[str | None, np.ndarray] = field(default_factory=dict, init=False, repr=False)
    _pools: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)
    local: "Local | None" = None

    @classmethod
    def of(cls, catalogue: np.ndarray, histories: Histories, table: pl.DataFrame, first: int) -> "ItemCatalogue":
        """`table`: rows of `items`; `first`: the first day of recent purchases."""
        table = table.with_columns(item=_like(table["item"], catalogue)).drop_nulls("item")
        known = np.union1d(histories.items, to_ids(table["item"]))
        ids = np.concatenate([catalogue, known[codes(known, catalogue) < 0]])
        facts = pl.DataFrame({"item": ids}).join(table, on="item", how="left", maintain_order="left")
        categories = np.concatenate([[""], facts["category"].drop_nulls().unique().sort().to_numpy().astype(str)])
        category = codes(facts["category"].fill_null("").to_numpy().astype(str), categories)
        in_stock = facts["stock"].fill_null(False).to_numpy() if table["stock"].count() else None
        names = facts["name"].fill_null(facts["category"]).fill_null("").to_numpy()
        lately = histories.between(first, np.iinfo(np.int32).max)
        users, popular = (_buyers(each, ids, len(catalogue)) for each in (histories, lately))
        bought = len(catalogue) + np.flatnonzero(users[len(catalogue) :])
        late = Late(bought.tolist(), set(bought.tolist()))
        made = cls(
            ids, len(catalogue), category, categories, names, in_stock, users, popular, late=late, late_count=len(bought)
        )
        return made._with_room(ROOM)

    def _with_room(self, room: int) -> "ItemCatalogue":
        """With rows for as many more items of which nothing is known, but that somebody bought them."""

        def longer(values: np.ndarray, blank: Any) -> np.ndarray:
            return np.append(values, np.full(room, blank, values.dtype))

        return replace(
            self,
            category=longer(self.category, 0),
            names=longer(self.names, ""),
            stock=None if self.stock is None else longer(self.stock, False),
            users=longer(self.users, 1),
            popular=longer(self.popular, 0),
        )

    def __len__(self) -> int:
        """How many items the model can recommend."""
        return self.size + self.late_count

    def including(self, new: Iterable[object]) -> "ItemCatalogue":
        """With the ids `new`, which somebody bought, too. Costs nothing per item of the catalogue."""
        late = self.late
        if len(late.order) > self.late_count:  # another catalogue went on from here
            late = late.first(self.late_count, self.unknown_count)
        new = list(dict.fromkeys(new))
        for each, position in zip(new, self.positions(new).tolist(), strict=True):
            if position < 0:
                position = late.unknown[each] = len(self.ids) + len(late.unknown)
            if position >= self.size:
                late.add(position)
        found = replace(self, late=late, late_count=len(late.order), unknown_count=len(late.unknown))
        if len(self.ids) + found.unknown_count > len(self.category):
            return found._with_room(len(self.category))
        found._masks, found._orders, found._pools = self._masks, self._orders, self._pools
        return found

    def positions(self, asked: list[Any]) -> np.ndarray:
        """Of the items `asked`, -1 for one that is not known."""
        typed = [as_id(each, self.ids.dtype.kind) for each in asked]
        found = np.full(len(typed), -1, np.int64)
        there = np.flatnonzero([each is not None for each in typed])
        if len(there):
            ids = np.array([typed[each] for each in there])
            rare, column = codes(ids, self.ids[self.size :]), codes(ids, self.ids[: self.size])
            found[there] = np.where(column >= 0, column, np.where(rare >= 0, rare + self.size, -1))
        for at in np.flatnonzero(found < 0) if self.unknown_count else ():
            position = self.late.unknown.get(typed[at], -1)
            found[at] = position if position < len(self.ids) + self.unknown_count else -1
        return found

    def ids_of(self, positions: np.ndarray) -> np.ndarray:
        """The ids of the items at `positions`."""
        if positions.max(initial=-1) < len(self.ids):
            return self.ids[positions]
        return take(self.ids, positions, np.array(list(self.late.unknown)))

    def can_show(self, positions: np.ndarray) -> np.ndarray:
        """Which of the items at `positions` the model can recommend: those of the catalogue, and those bought since."""
        outside = [each in self.late.members for each in positions.tolist()]
        return (positions < self.size) | np.array(outside, bool)

    def _late(self) -> np.ndarray:
        return np.array(self.late.order[: self.late_count], np.int64)

    def masks(self, rules: ListRules) -> list[tuple[str, np.ndarray]]:
        """Rule -> which items it allows, for the rules that are the same for every user; those that allow all are left out.

        Raises ParamsError for a category that no item has, and for stock of which nothing is known.
        """
        if rules not in self._masks:
            while len(self._masks) >= MASKS:
                del self._masks[next(iter(self._masks))]
            self._masks[rules] = list(self._made(rules))
        return self._masks[rules]

    def _made(self, rules: ListRules) -> Iterator[tuple[str, np.ndarray]]:
        if rules.in_stock:
            if self.stock is None:
                raise ParamsError("in_stock = true: nothing says what is in stock; name a column in features.stock")
            yield "in_stock", self.stock
        if rules.categories is not None:
            yield "categories", np.isin(self.category, self._codes("categories", rules.categories))
        if rules.exclude_categories:
            yield "exclude_categories", ~np.isin(self.category, self._codes("exclude_categories", rules.exclude_categories))
        if rules.exclude_items:
            found = self.positions(list(rules.exclude_items))
            allowed = np.ones(len(self.category), bool)
            allowed[found[found >= 0]] = False
            yield "exclude_items", allowed

    def _codes(self, key: str, names: tuple[str, ...]) -> list[int]:
        known = self.categories[1:].tolist()
        for name in names:
            if name not in known:
                raise ParamsError(f"{key} = {name}: no such category{nearest(name, known) if known else '; none is known'}")
        return [known.index(name) + 1 for name in names]

    def by_popularity(self, place: str | None) -> np.ndarray:
        """Positions of what can be shown: what most users bought lately at `place`, then in all, first."""
        if self.local is None or place not in self.local.users:
            place = None
        if place not in self._orders:
            popular = self.popular[: self.size].astype(float)
            if place is not None and self.local is not None:
                item, count = self.local.users[place]
                inside = item < self.size
                popular[item[inside]] += count[inside] * (len(popular) and popular.max() + 1)
            self._orders[place] = np.argsort(-popular, kind="stable")
        return np.append(self._orders[place], self._late()) if self.late_count else self._orders[place]

    def pool(self, fewer_than: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the items that fewer users bought, category after category, and where each category begins."""
        if fewer_than not in self._pools:
            chosen = np.flatnonzero(self.users[: len(self.ids)] < fewer_than)
            by = np.argsort(self.category[chosen], kind="stable")
            self._pools[fewer_than] = chosen[by], self._starts(chosen[by])
        chosen, starts = self._pools[fewer_than]
        if not self.late_count:
            return chosen, starts
        if fewer_than <= 1:  # somebody bought these since
            chosen = chosen[~np.isin(chosen, self._late())]
            return chosen, self._starts(chosen)
        unknown = self._late()
        unknown = unknown[unknown >= len(self.ids)]  # without a category, which is the first
        return np.insert(chosen, starts[1], unknown), starts + len(unknown) * (np.arange(len(starts)) > 0)

    def _starts(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.category[positions], np.arange(len(self.categories) + 1))


@dataclass(eq=False)
class Late:
    """Items outside the catalogue that somebody bought, as they came: their positions in ItemCatalogue.

    Catalogues that follow one another share one and add to it; each counts its own first ones.
    """

    order: list[int] = field(default_factory=list)
    members: set[int] = field(default_factory=set)
    unknown: dict[object, int] = field(default_factory=dict)
    """Id -> position of those that nothing was known of."""

    def add(self, position: int) -> None:
        if position not in self.members:
            self.members.add(position)
            self.order.append(position)

    def first(self, count: int, unknown: int) -> "Late":
        """With the first ones alone."""
        order = self.order[:count]
        return Late(order, set(order), dict(list(self.unknown.items())[:unknown]))


def mostly_at(places: pl.DataFrame, histories: Histories, since: int) -> np.ndarray | None:
    """Number of the place with most baskets of each of histories.users from the day `since` on, -1 for none; None: no places.

    `places`: what `places` makes.
    """
    if places.is_empty():
        return None
    late = histories.between(since, np.iinfo(np.int32).max).frame().select("user", "basket").unique()
    keys = [pl.col(name).cast(pl.String) for name in ("user", "basket")]
    counts = late.with_columns(keys).join(places.with_columns(keys), on=["user", "basket"]).group_by("user", "place").len()
    first = counts.sort("user", "len", "place", descending=[False, True, False]).unique(
        "user", keep="first", maintain_order=True
    )
    number = first.with_columns(number=pl.col("place").rank("dense").cast(pl.Int64) - 1).select("user", "number")
    asked = pl.DataFrame({"user": pl.Series(histories.users).cast(pl.String)})
    return asked.join(number, on="user", how="left", maintain_order="left")["number"].fill_null(-1).to_numpy()


@dataclass(eq=False)
class Local:
    """What is popular where: place -> positions of items in ItemCatalogue, and users who bought each there lately."""

    users: dict[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, catalogue: ItemCatalogue, lines: pl.DataFrame, places: pl.DataFrame) -> "Local":
        """`lines`: the late purchases, in the columns of Histories.of; `places`: what `places` makes."""
        keys = [pl.col(name).cast(pl.String) for name in ("user", "basket")]
        at = lines.with_columns(keys).join(places.with_columns(keys), on=["user", "basket"])
        counts = at.group_by("place", "item").agg(pl.col("user").n_unique().alias("users")).sort("place", "item")
        counts = counts.with_columns(at=pl.Series(catalogue.positions(counts["item"].to_list())))
        parts = counts.partition_by("place", as_dict=True)
        return cls({str(place): (part["at"].to_numpy(), part["users"].to_numpy()) for (place,), part in parts.items()})


def _like(ids: pl.Series, known: np.ndarray) -> pl.Series:
    return ids.cast(pl.Int64 if known.dtype.kind in "iu" else pl.String, strict=False)


def _buyers(histories: Histories, ids: np.ndarray, size: int) -> np.ndarray:
    """Number of users per entry of `ids`: the sorted catalogue of `size`, and the sorted rest."""
    pairs = distinct(histories.user.astype(np.int64) * max(len(histories.items), 1) + histories.item)
    count = np.bincount(pairs % max(len(histories.items), 1), minlength=len(histories.items))
    found = [codes(part, histories.items) for part in (ids[:size], ids[size:])]
    at = np.concatenate(found)
    return np.where(at >= 0, count[at] if len(count) else 0, 0)
