"""Lists as requested: the model's order, then the composition of each list, and an explanation of each item in words.

Histories are online: what `observe` is given counts in the next list. Everything that is requested can be set in params
(see config.params.Lists) and by the request.
"""

import copy
import dataclasses
import zlib
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import Recommend
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.recommender import item_explanations
from evergreen.tasks.problems.recommender.estimators import FirstStage, Recommender
from evergreen.tasks.problems.recommender.interactions import InteractionData
from evergreen.tasks.problems.recommender.item_catalogue import ItemCatalogue, Local
from evergreen.tasks.problems.recommender.list_composition import (
    EMPTY,
    NAMES,
    ComposedList,
    Composer,
    ListSettings,
    OwnItems,
    Pool,
    append_deeper,
    pools_of,
)
from evergreen.tasks.problems.recommender.list_request import Note, RecommendedLists, Request
from evergreen.tasks.problems.recommender.online_histories import OnlineHistories, Session, as_id, merged, typed
from evergreen.tasks.problems.recommender.user_histories import Histories, codes, distinct, take, to_date, to_day

BLOCK = 256
"""Users whose lists are built at a time: bounds memory."""
DEEPER = 8
"""So many times the usual candidates where rules leave too few."""
OPTIONS = ("show", "blend", "diversity", "explore")


@dataclass(eq=False)
class ListBuilder:
    """A model, the histories that it reads and the item catalogue. Nothing of it changes: `observe` gives a new one."""

    model: Recommender
    catalogue: ItemCatalogue
    section: Recommend
    data: InteractionData
    learned: int
    """The last day that the model learned from."""
    _earlier: dict[date, "ListBuilder"] = field(default_factory=dict, init=False, repr=False)
    _co_purchases: item_explanations.CoPurchases | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, model: Recommender, data: InteractionData, section: Recommend) -> "ListBuilder":
        """Reads the histories of `data` up to its day. `learned`: the day up to which `model` reads when it comes."""
        model.prepare()
        return cls._at(model, data, section, data.histories, to_day(data.as_of), int(model.day_))

    @classmethod
    def _at(
        cls, model: Recommender, data: InteractionData, section: Recommend, histories: Histories, day: int, learned: int
    ) -> "ListBuilder":
        first = day - model.popularity_days + 1
        model = model.reading(histories, day).knowing(data.items_table)
        catalogue = ItemCatalogue.of(model.catalogue_, histories, data.items_table, first)
        if len(data.places):
            catalogue.local = Local.of(catalogue, histories.between(first, day).frame(), data.places)
        return cls(model, catalogue, section, data, learned)

    def prepare(self) -> None:
        """Build what is else built with the first lists that ask for it: the first one of a server would wait for it."""
        self.histories.newest(np.zeros(0, np.int64))
        self._co_purchases = self.co_purchases

    @property
    def day(self) -> int:
        """The newest day that counts, but for users who are ahead."""
        return self.model.day_

    @property
    def histories(self) -> Histories | OnlineHistories:
        return self.model.histories_

    def observe(self, lines: pl.DataFrame) -> "ListBuilder":
        """With newer lines: user, basket, item and day (a date). What is there already changes nothing.

        A line of a later day makes it that day for its user alone. Raises DataError for an id that cannot be one. Costs nothing
        per item of the catalogue and per line that is there, until online_histories.NEWER lines are merged.
        """
        histories, twin = OnlineHistories.of(self.histories).and_then(lines), copy.copy(self)
        twin.model, twin._earlier = self.model.reading(histories, self.day), {}
        items = [as_id(each, self.catalogue.ids) for each in lines["item"].to_list()]
        late = [
            each
            for each, place in zip(items, self.catalogue.positions(items).tolist(), strict=True)
            if place < 0 or place >= self.catalogue.size
        ]
        if late:
            twin.catalogue = self.catalogue.including(late)
        return twin

    def restocked(self, stock: pl.DataFrame) -> "ListBuilder":
        """With another table of stock (see item_catalogue.stock)."""
        data = dataclasses.replace(
            self.data, items_table=self.data.items_table.drop("stock").join(stock, on="item", how="left")
        )
        return self._at(self.model, data, self.section, merged(self.histories), self.day, self.learned)

    def as_of(self, day: date | None) -> "ListBuilder":
        """As on that day. Raises DataError for one before the first purchase."""
        if day is None or to_day(day) == self.day:
            return self
        if day not in self._earlier:
            past = moved(dataclasses.replace(self.data, histories=merged(self.histories)), _NO_LINES, day)
            self._earlier.clear()
            self._earlier[day] = self._at(self.model, past, self.section, past.histories, to_day(day), self.learned)
        return self._earlier[day]

    def recommend(self, request: Request) -> RecommendedLists:
        """The lists of the users asked for, in their order.

        A list is as long as asked for whenever enough items are allowed; where not, a note says which rule cost how many.
        Raises DataError for a day before all histories, ParamsError for a category that is none and a stock that is unknown.
        """
        here = self.as_of(request.as_of)
        return here._recommend(request, here._settings(request))

    def _settings(self, request: Request) -> ListSettings:
        given = {name: getattr(request, name) for name in OPTIONS if getattr(request, name) is not None}
        ruled = {name: getattr(request.rules, name) for name in request.rules.model_fields_set}
        lists = self.section.lists.model_copy(update={**given, "rules": self.section.lists.rules.model_copy(update=ruled)})
        session, promoted = (self.catalogue.positions(list(ids)) for ids in (request.items, lists.rules.promote))
        return ListSettings(
            k=request.k or self.section.pipeline.k,
            lists=lists,
            masks=self.catalogue.masks(lists.rules),
            promoted=np.array(list(dict.fromkeys(promoted[promoted >= 0].tolist())), np.int64),
            place=None if request.place is None else str(request.place),
            session=distinct(session[session >= 0]),
            seed=zlib.crc32(repr(request.items).encode()),
            explain=request.explain,
        )

    def _recommend(self, request: Request, settings: ListSettings) -> RecommendedLists:
        asked = list(request.users) or [None]
        users = self.histories
        keys = [as_id(each, users.id_kind) for each in asked]
        known = np.array([key for key in keys if key is not None])  # of its own width: text is not cut to fit
        at = np.full(len(keys), -1, np.int64)
        at[[number for number, key in enumerate(keys) if key is not None]] = users.find(known) if len(known) else []
        found, place = np.unique(at, return_inverse=True)
        days, there = np.full(len(found), self.day), found >= 0
        days[there] = np.maximum(users.newest(found[there]), self.day)  # a user who bought later is ahead
        lists, basket = dict[int, ComposedList](), settings.session[self.catalogue.can_show(settings.session)]
        basket = self.catalogue.ids_of(basket)
        for day in distinct(days).tolist():
            some = found[days == day]
            reader, positions = self.model if day == self.day else self.model.reading(self.histories, day), some
            if len(basket):
                reader = self.model.reading(Session.on(self.histories, int(some[0]), basket, day), day)
                positions = np.zeros(1, np.int64)
            for first in range(0, len(some), BLOCK):
                part = slice(first, first + BLOCK)
                made = self._block(reader, positions[part], some[part], settings)
                lists.update(zip(some[part].tolist(), made, strict=True))
        return self._joined(asked, [lists[each] for each in found[place].tolist()], settings)

    def _block(
        self, reader: Recommender, positions: np.ndarray, users: np.ndarray, settings: ListSettings
    ) -> "list[ComposedList]":
        """One list for each of `positions` in what `reader` reads. `users`: positions in the histories, or -1: anonymous."""
        composer, there = Composer(self.catalogue, settings, self.day), np.flatnonzero(positions >= 0)
        owns = self._owned(reader, positions, users, there, settings)
        pools = self._pools(reader, positions, there, settings.novel) if len(there) else [EMPTY] * len(owns)
        lists = [composer.compose(own, pools[row]) for row, own in enumerate(owns)]
        short = np.array([row for row in there if len(lists[row].item) < settings.k], np.int64)
        if len(short) and isinstance(reader, FirstStage):
            for first in range(0, len(short), BLOCK // DEEPER):
                some = short[first : first + BLOCK // DEEPER]
                deep = self._pools(reader, positions, some, settings.novel, DEEPER)
                for row in some:
                    pools[row] = append_deeper(pools[row], deep[row])
                    lists[row] = composer.compose(owns[row], pools[row])
        for row, own in enumerate(owns):
            if len(lists[row].item) < settings.k:
                pool = composer.fill(pools[row])
                lists[row] = composer.compose(own, pool)
            if len(lists[row].item) < settings.k:
                lists[row].costs = composer.rule_costs(own, len(lists[row].item))
            self._explain(lists[row], own, settings)
        return lists

    def _pools(self, reader: Recommender, positions: np.ndarray, rows: np.ndarray, novel: bool, times: int = 1) -> list[Pool]:
        """All that the model has to say of the users in `rows` of `positions`, empty for others."""
        found = reader.everything(positions[rows], novel, times)
        if len(found.late):
            found.item = take(np.arange(self.catalogue.size), found.item, self.catalogue.positions(found.late.tolist()))
        return pools_of(found, rows, len(positions))

    def _owned(
        self, reader: Recommender, positions: np.ndarray, users: np.ndarray, there: np.ndarray, settings: ListSettings
    ) -> list[OwnItems]:
        row, column, day, _, late = reader.histories_.lines(positions[there], self.model.catalogue_)
        if len(late):
            column = np.where(column < 0, self.catalogue.positions(late.tolist())[np.maximum(-1 - column, 0)], column)
        kept = (column >= 0) & (day <= reader.day_)
        starts = np.zeros(len(positions) + 1, np.int64)
        starts[1:] = np.cumsum(np.bincount(there[row[kept]], minlength=len(positions)))
        column, ago, found = column[kept], reader.day_ - day[kept], []
        ids = iter(self.histories.ids(users[users >= 0]))
        for number, user in enumerate(users.tolist()):
            mine = slice(starts[number], starts[number + 1])
            found.append(OwnItems(next(ids) if user >= 0 else None, column[mine], ago[mine], distinct(column[mine])))
        return found

    def _explain(self, found: "ComposedList", own: OwnItems, settings: ListSettings) -> None:
        if not settings.explain:
            return
        new = codes(found.item, own.bought) < 0
        partner = self._partners(found.item[new], own) if new.any() and len(own.bought) else {}
        unit, days = ("order", self.section.features.days_per_order) if self.section.features.order else ("day", 1)
        for item, source, fresh in zip(found.item.tolist(), found.source.tolist(), new.tolist(), strict=True):
            if fresh:
                found.explanation.append(item_explanations.new(self.catalogue, item, NAMES[source], partner.get(item)))
            else:
                mine = own.ago[own.column == item]
                found.explanation.append(item_explanations.rebuy(len(mine), int(mine.min()) // days, unit))

    def _partners(self, new: np.ndarray, own: OwnItems) -> dict[int, int]:
        """New item -> the user's own item with enough common buyers."""
        new = new[new < self.catalogue.size]
        if not len(new):
            return {}
        count = np.bincount(np.searchsorted(own.bought, own.column))
        most = own.bought[np.argsort(-count, kind="stable")[: item_explanations.OWN]]
        if not len(most := most[most < self.catalogue.size]):
            return {}
        partner, common = self.co_purchases.partners(most, new)
        enough = common >= item_explanations.ENOUGH
        return dict(zip(new[enough].tolist(), partner[enough].tolist(), strict=True))

    @property
    def co_purchases(self) -> item_explanations.CoPurchases:
        """Buyers of each item; computed once."""
        if self._co_purchases is None:
            self._co_purchases = item_explanations.CoPurchases.of(
                OnlineHistories.of(self.histories).base, self.model.catalogue_
            )
        return self._co_purchases

    def _joined(self, asked: list[Any], lists: "list[ComposedList]", settings: ListSettings) -> RecommendedLists:
        sizes = np.array([len(each.item) for each in lists], np.int64)
        item, score, source = (np.concatenate([getattr(each, name) for each in lists]) for name in ("item", "score", "source"))
        row, chances = (
            np.repeat(np.arange(len(lists)), sizes),
            [each.propensity for each in lists if each.propensity is not None],
        )
        return RecommendedLists(
            row=row,
            rank=np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1,
            item=self.catalogue.ids_of(item),
            score=score,
            source=[NAMES[each] for each in source.tolist()],
            explanation=[reason for each in lists for reason in each.explanation],
            notes=tuple(
                Note(row, asked[row], settings.k, len(each.item), len(self.catalogue), each.costs)
                for row, each in enumerate(lists)
                if each.costs is not None
            ),
            as_of=to_date(self.day),
            learned=to_date(self.learned),
            propensity=np.concatenate(chances) if len(chances) == len(lists) else None,
        )


_NO_LINES = pl.DataFrame()


def moved(data: InteractionData, newer: pl.DataFrame, as_of: date | None) -> InteractionData:
    """`data` with newer lines (user, basket, item, day), and as it was known on the day `as_of`; None: with all of them."""
    histories = data.histories.and_then(typed(newer, data.histories)) if len(newer) else data.histories
    if as_of is None:
        return dataclasses.replace(data, histories=histories)
    if not len(histories) or to_day(as_of) < histories.day[0]:
        first = to_date(histories.day[0]) if len(histories) else "none"
        raise DataError(f"as_of = {as_of}: lies before the first purchase ({first}); name a later day")
    return dataclasses.replace(data, histories=histories.until(to_day(as_of)), as_of=as_of)
