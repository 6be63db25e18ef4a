"""A request answered: the model's order, then rules, blend, diversity and exploration, and the reason of each item in words.

Histories are live: what `observe` is given counts in the next answer. Everything that is asked for can be set in params
(see params.Lists) and by the request.
"""

import copy
import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, ValidationError, model_validator

from evergreen.tasks.config.params import Fraction, ListRules, Lists, Recommend, Section
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.recommender import item_explanations
from evergreen.tasks.problems.recommender.candidate_sources import SOURCES
from evergreen.tasks.problems.recommender.estimators import Ranked, Recommender, TwoStage
from evergreen.tasks.problems.recommender.interactions import Purchases
from evergreen.tasks.problems.recommender.item_catalogue import Goods, Local
from evergreen.tasks.problems.recommender.online_histories import Live, Session, as_id, merged, typed
from evergreen.tasks.problems.recommender.reranking import Want, choose, drawn_places, places
from evergreen.tasks.problems.recommender.user_histories import Histories, codes, distinct, to_date, to_day

BLOCK = 256
"""Users answered at a time: bounds memory."""
DEEPER = 8
"""So many times the usual candidates where rules leave too few."""
NAMES = (*SOURCES, "promoted", "explore")
"""Of the sources of an item in a list."""
POPULAR, PROMOTED, EXPLORE = (NAMES.index(name) for name in ("popular", "promoted", "explore"))
OPTIONS = ("show", "blend", "diversity", "explore")


class Request(Section):
    """Whom to recommend what to."""

    users: tuple[Any, ...] = ()
    """Keys of the users; one that is there twice is answered twice, an unknown one with what is popular. None: one stranger."""
    items: tuple[Any, ...] = ()
    """What lies in the basket of this session, of one user at most; counts as bought, and is not recommended."""
    place: int | str | None = None
    """Where: a value of features.place."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Length of a list. null: as in params, pipeline.k."""
    show: Annotated[str, Field(pattern="^(all|rebuy|discover|blend)$")] | None = None
    """all, rebuy, discover or blend. null: as in params; so for all below."""
    blend: Fraction | None = None
    """blend: share of places for new items."""
    diversity: Fraction | None = None
    """0 to 1."""
    explore: Fraction | None = None
    """Share of places for new products."""
    rules: ListRules = ListRules()
    """The rules that are named here take the place of those in params."""
    as_of: date | None = None
    """Answer as on that day: with histories up to it. null: the newest."""
    explain: bool = True
    """Whether each item comes with its explanation."""

    @model_validator(mode="after")
    def one_basket(self) -> "Request":
        if self.items and len(self.users) > 1:
            raise ValueError("items belong to one user; ask for each user alone")
        return self

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Request":
        """From plain values. Raises DataError, in one line, for a value that breaks a rule."""
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                known = (ListRules if key.startswith("rules.") else cls).model_fields
                raise DataError(
                    f"request: {key} = {str(first['input'])[:60]}: unknown request field{nearest(str(first['loc'][-1]), known)}"
                ) from None
            rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must")
            shown = f"{key} = {str(first['input'])[:60]}: " if key else ""
            raise DataError(f"request: {shown}{rule}") from None


@dataclass(frozen=True)
class Note:
    """Why a list is shorter than asked for. `row`: of the request's users."""

    row: int
    user: Any
    asked: int
    found: int
    of: int
    """Items of the catalogue."""
    costs: Mapping[str, int]
    """Rule -> how many of these it left out, of those that the rules before it allowed."""

    def __str__(self) -> str:
        whom = "a stranger" if self.user is None else str(self.user)
        left_out = ", ".join(f"{rule} leaves out {count:,}" for rule, count in self.costs.items() if count)
        return f"{whom}: {self.found:,} of {self.asked:,} asked for; of {self.of:,} items {left_out or 'there are no more'}"


@dataclass(frozen=True, eq=False)
class Answer:
    """The lists, one entry per user asked for and rank: parallel sequences."""

    row: np.ndarray
    """Which of the users asked for."""
    rank: np.ndarray
    """From 1."""
    item: np.ndarray
    score: np.ndarray
    """Higher is better within one list; NaN where no model was asked: promoted and explored items."""
    source: list[str]
    explanation: list[str]
    """Why the item is in the list, in words; empty unless the request says `explain`."""
    notes: tuple[Note, ...]
    as_of: date
    """The last day of the histories that count."""
    learned: date
    """The last day that the model learned from; after `as_of`, it knows what came later."""

    def frame(self, users: pl.Series, item: str, explain: bool) -> pl.DataFrame:
        """user (named and typed as `users`, one per list), rank, item, score and source; with `explain` also explanation."""
        columns = {"rank": self.rank, item: self.item, "score": self.score, "source": self.source}
        found = pl.DataFrame({users.name: users.gather(self.row), **columns}).with_columns(pl.col("score").fill_nan(None))
        return found.with_columns(pl.Series("explanation", self.explanation, pl.String)) if explain else found


@dataclass(frozen=True, eq=False)
class _Wish:
    """A request with every value that it leaves to params."""

    k: int
    answers: Lists
    masks: list[tuple[str, np.ndarray]]
    promoted: np.ndarray
    place: str | None
    session: np.ndarray
    """Positions of the items in the basket."""
    seed: int
    explain: bool

    @property
    def rules(self) -> ListRules:
        return self.answers.rules

    @property
    def novel(self) -> bool:
        return self.answers.show == "discover"


@dataclass(eq=False)
class _Own:
    """What one user bought: column of the catalogue and days ago of each line, and each such item once, sorted."""

    user: Any
    column: np.ndarray
    ago: np.ndarray
    bought: np.ndarray
    rare: np.ndarray
    """Positions of the bought items that are not in the catalogue; looked up for exploration alone."""


@dataclass(eq=False)
class _Pool:
    """Items that may be in one list, best first: parallel arrays of positions in Goods, scores and sources."""

    item: np.ndarray
    score: np.ndarray
    source: np.ndarray

    def and_then(self, item: np.ndarray, score: np.ndarray, source: int) -> "_Pool":
        """With those of `item` that are not there yet."""
        fresh = codes(item, distinct(self.item)) < 0
        more = (item[fresh], score[fresh], np.full(fresh.sum(), source))
        return _Pool(*(np.concatenate(pair) for pair in zip((self.item, self.score, self.source), more, strict=True)))

    def where(self, kept: np.ndarray) -> "_Pool":
        return _Pool(self.item[kept], self.score[kept], self.source[kept])


@dataclass(eq=False)
class Shop:
    """A model, the histories that it reads and the goods that there are. Nothing of it changes: `observe` gives a new one."""

    model: Recommender
    goods: Goods
    section: Recommend
    data: Purchases
    learned: int
    """The last day that the model learned from."""
    ahead: Mapping[Any, int] = field(default_factory=dict)
    """User -> the day of the newest line, where it is later than that of the histories: for each of these it is later."""
    _earlier: dict[date, "Shop"] = field(default_factory=dict, init=False, repr=False)
    _together: item_explanations.Together | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, model: Recommender, data: Purchases, section: Recommend) -> "Shop":
        """Reads the histories of `data` up to its day. `learned`: the day up to which `model` reads when it comes."""
        return cls._at(model, data, section, data.histories, to_day(data.as_of), int(model.day_))

    @classmethod
    def _at(
        cls, model: Recommender, data: Purchases, section: Recommend, histories: Histories, day: int, learned: int
    ) -> "Shop":
        first = day - section.pipeline.popularity_days + 1
        goods = Goods.of(model.catalogue_, histories, data.goods, first)
        if len(data.places):
            goods.local = Local.of(goods, histories.between(first, day).frame(), data.places)
        later = histories.between(day + 1, np.iinfo(np.int32).max)
        ahead = dict(zip(histories.users[later.user].tolist(), later.day.tolist(), strict=True))
        return cls(model.reading(histories, day), goods, section, data, learned, ahead)

    @property
    def day(self) -> int:
        """The newest day that counts, but for users who are ahead."""
        return self.model.day_

    @property
    def histories(self) -> Histories | Live:
        return self.model.histories_

    def observe(self, lines: pl.DataFrame) -> "Shop":
        """With newer lines: user, basket, item and day (a date). What is there already changes nothing.

        A line of a later day makes it that day for its user alone. Raises DataError for an id that cannot be one.
        """
        histories, twin, ahead = Live.of(self.histories).and_then(lines), copy.copy(self), dict(self.ahead)
        for user, day in zip(lines["user"].to_list(), lines["day"].to_list(), strict=True):
            if to_day(day) > self.day:
                key = as_id(user, histories.users)
                ahead[key] = max(to_day(day), ahead.get(key, self.day))
        twin.model, twin.ahead, twin._earlier = self.model.reading(histories, self.day), ahead, {}
        return twin

    def restocked(self, stock: pl.DataFrame) -> "Shop":
        """With another table of stock (see goods.stock)."""
        data = dataclasses.replace(self.data, goods=self.data.goods.drop("stock").join(stock, on="item", how="left"))
        return self._at(self.model, data, self.section, merged(self.histories), self.day, self.learned)

    def as_of(self, day: date | None) -> "Shop":
        """As on that day. Raises DataError for one before the first purchase."""
        if day is None or to_day(day) == self.day:
            return self
        if day not in self._earlier:
            past = moved(dataclasses.replace(self.data, histories=merged(self.histories)), _NO_LINES, day)
            self._earlier.clear()
            self._earlier[day] = self._at(self.model, past, self.section, past.histories, to_day(day), self.learned)
        return self._earlier[day]

    def answer(self, request: Request) -> Answer:
        """The lists of the users asked for, in their order.

        A list is as long as asked for whenever enough items are allowed; where not, a note says which rule cost how many.
        Raises DataError for a day before all histories, ParamsError for a category that is none and a stock that is unknown.
        """
        here = self.as_of(request.as_of)
        return here._answer(request, here._wish(request))

    def _wish(self, request: Request) -> _Wish:
        given = {name: getattr(request, name) for name in OPTIONS if getattr(request, name) is not None}
        ruled = {name: getattr(request.rules, name) for name in request.rules.model_fields_set}
        answers = self.section.lists.model_copy(update={**given, "rules": self.section.lists.rules.model_copy(update=ruled)})
        session, promoted = (self.goods.positions(list(ids)) for ids in (request.items, answers.rules.promote))
        return _Wish(
            k=request.k or self.section.pipeline.k,
            answers=answers,
            masks=self.goods.masks(answers.rules),
            promoted=np.array(list(dict.fromkeys(promoted[promoted >= 0].tolist())), np.int64),
            place=None if request.place is None else str(request.place),
            session=distinct(session[session >= 0]),
            seed=zlib.crc32(repr(request.items).encode()),
            explain=request.explain,
        )

    def _answer(self, request: Request, wish: _Wish) -> Answer:
        asked = list(request.users) or [None]
        users = self.histories.users
        keys = [as_id(each, users) for each in asked]
        known = np.array([key for key in keys if key is not None])  # of its own width: text is not cut to fit
        at = np.full(len(keys), -1, np.int64)
        at[[number for number, key in enumerate(keys) if key is not None]] = codes(known, users) if len(known) else []
        found, place = np.unique(at, return_inverse=True)
        days = np.array([self.ahead.get(users[each].item(), self.day) if each >= 0 else self.day for each in found])
        lists, basket = dict[int, _List](), self.goods.ids[wish.session[wish.session < self.goods.size]]
        for day in distinct(days).tolist():
            some = found[days == day]
            reader, positions = self.model if day == self.day else self.model.reading(self.histories, day), some
            if len(basket):
                reader = self.model.reading(Session.on(self.histories, int(some[0]), basket, day), day)
                positions = np.zeros(1, np.int64)
            for first in range(0, len(some), BLOCK):
                part = slice(first, first + BLOCK)
                made = self._block(reader, positions[part], some[part], wish)
                lists.update(zip(some[part].tolist(), made, strict=True))
        return self._joined(asked, [lists[each] for each in found[place].tolist()], wish)

    def _block(self, reader: Recommender, positions: np.ndarray, users: np.ndarray, wish: _Wish) -> "list[_List]":
        """One list for each of `positions` in what `reader` reads. `users`: positions in the histories, -1 for a stranger."""
        there = np.flatnonzero(positions >= 0)
        owns = self._owned(reader, positions, users, there, wish)
        pools = (
            _pools(reader.everything(positions[there], wish.novel), there, len(positions))
            if len(there)
            else [_EMPTY] * len(owns)
        )
        lists = [self._list(own, pools[row], wish) for row, own in enumerate(owns)]
        short = np.array([row for row in there if len(lists[row].item) < wish.k], np.int64)
        if len(short) and isinstance(reader, TwoStage):
            for first in range(0, len(short), BLOCK // DEEPER):
                some = short[first : first + BLOCK // DEEPER]
                deep = _pools(reader.everything(positions[some], wish.novel, DEEPER), some, len(positions))
                for row in some:
                    pools[row] = _under(pools[row], deep[row])
                    lists[row] = self._list(owns[row], pools[row], wish)
        for row, own in enumerate(owns):
            if len(lists[row].item) < wish.k:
                pool = self._filled(pools[row], wish)
                lists[row] = self._list(own, pool, wish)
            if len(lists[row].item) < wish.k:
                lists[row].costs = self._costs(own, wish, len(lists[row].item))
            self._explain(lists[row], own, wish)
        return lists

    def _owned(
        self, reader: Recommender, positions: np.ndarray, users: np.ndarray, there: np.ndarray, wish: _Wish
    ) -> list[_Own]:
        catalogue, size = self.model.catalogue_, len(positions)
        parts = []
        for ids in (catalogue, self.goods.rare) if wish.answers.explore and len(self.goods.rare) else (catalogue,):
            row, column, day = reader.histories_.lines(positions[there], ids)
            kept = (column >= 0) & (day <= reader.day_)
            starts = np.zeros(size + 1, np.int64)
            starts[1:] = np.cumsum(np.bincount(there[row[kept]], minlength=size))
            parts.append((starts, column[kept], reader.day_ - day[kept]))
        found = []
        for row, user in enumerate(users.tolist()):
            mine = [slice(starts[row], starts[row + 1]) for starts, _, _ in parts]
            column, ago = parts[0][1][mine[0]], parts[0][2][mine[0]]
            rare = parts[1][1][mine[1]] + self.goods.size if len(parts) > 1 else _NONE
            found.append(_Own(self.histories.users[user] if user >= 0 else None, column, ago, distinct(column), rare))
        return found

    def _allowed(self, item: np.ndarray, own: _Own, wish: _Wish) -> list[tuple[str, np.ndarray]]:
        """Rule -> which of `item` (positions in Goods) it allows; those that allow all are left out."""
        rules, found = wish.rules, [(name, mask[item]) for name, mask in wish.masks]
        if wish.answers.show == "discover":
            found.append(("show = discover", codes(item, own.bought) < 0))
        if wish.answers.show == "rebuy":
            found.append(("show = rebuy", codes(item, own.bought) >= 0))
        for days, wanted, name in (
            (rules.bought_within_days, True, "bought_within_days"),
            (rules.not_bought_within_days, False, "not_bought_within_days"),
        ):
            if days is not None:
                lately = distinct(own.column[own.ago < days])
                found.append((name, (codes(item, lately) >= 0) == wanted))
        if len(wish.session):
            found.append(("the basket", codes(item, wish.session) < 0))
        return found

    def _list(self, own: _Own, pool: _Pool, wish: _Wish) -> "_List":
        """The best of `pool` as wishes and rules have it."""
        answers, rules = wish.answers, wish.rules
        if len(wish.promoted) and rules.promote_share:
            pool = pool.and_then(wish.promoted, np.full(len(wish.promoted), np.nan), PROMOTED)
        explored = self._explored(own, pool, wish)
        if explored is not None and len(explored[0]):
            pool = pool.and_then(explored[0], np.full(len(explored[0]), np.nan), EXPLORE)
        if masks := self._allowed(pool.item, own, wish):
            pool = pool.where(np.logical_and.reduce([mask for _, mask in masks]))
        wants, held = list[Want](), None
        if explored is not None:
            held = pool.source == EXPLORE
            wants.append((held, explored[1]))
        if len(wish.promoted) and rules.promote_share:
            wants.append((codes(pool.item, np.sort(wish.promoted)) >= 0, places(rules.promote_share, wish.k)))
        if rules.discover_share or answers.show == "blend":
            new = codes(pool.item, own.bought) < 0
            if rules.discover_share:
                wants.append((new, places(rules.discover_share, wish.k)))
            if answers.show == "blend":
                due = places(answers.blend, wish.k, nearest=True)
                wants += [(new, due), (~new, [place + 1 - count for place, count in enumerate(due)])]
        kind = self.goods.category[pool.item] if rules.max_per_category or answers.diversity else pool.item
        chosen = choose(kind, wish.k, rules.max_per_category, answers.diversity, wants, held)
        return _List(pool.item[chosen], pool.score[chosen], pool.source[chosen])

    def _explored(self, own: _Own, pool: _Pool, wish: _Wish) -> tuple[np.ndarray, list[int]] | None:
        """New products for this user on this day, and how many of the first n places are theirs. None: no exploration."""
        if not wish.answers.explore or wish.answers.show == "rebuy":
            return None
        draw = np.random.default_rng([zlib.crc32(str(own.user).encode()), wish.seed, max(self.day, 0)])
        due = drawn_places(wish.answers.explore, wish.k, draw.random())
        items, starts = self.goods.pool(wish.answers.explore_users)
        if not due[-1] or not len(items):
            return _NONE, due
        mine = np.concatenate([pool.item[: wish.k], own.bought, own.rare])
        tried = _drawn(draw, items, starts, self.goods.category[own.column], 8 * due[-1] + 8)
        tried = tried[codes(tried, distinct(mine)) < 0]
        if masks := self._allowed(tried, own, wish):
            tried = tried[np.logical_and.reduce([mask for _, mask in masks])]
        return tried[: due[-1]], due

    def _filled(self, pool: _Pool, wish: _Wish) -> _Pool:
        """`pool`, then the rest of the catalogue, what is popular first."""
        order = self.goods.by_popularity(wish.place)
        share = self.goods.popular[order] / (self.goods.popular.max(initial=0) + 1)
        below = np.nanmin(pool.score, initial=0) - 1
        return pool.and_then(order, below + np.minimum.accumulate(share) if len(share) else share, POPULAR)

    def _costs(self, own: _Own, wish: _Wish, found: int) -> dict[str, int]:
        """Rule -> how many items of the catalogue it leaves out of those that the rules before it allow."""
        left, costs = np.ones(self.goods.size, bool), {}
        for name, allowed in self._allowed(np.arange(self.goods.size), own, wish):
            costs[name] = costs.get(name, 0) + int((left & ~allowed).sum())
            left &= allowed
        if wish.rules.max_per_category is not None:
            costs["max_per_category"] = int(left.sum()) - found
        return costs

    def _explain(self, found: "_List", own: _Own, wish: _Wish) -> None:
        if not wish.explain:
            return
        new = codes(found.item, own.bought) < 0
        partner = self._partners(found.item[new], own) if new.any() and len(own.bought) else {}
        unit, days = ("order", self.section.features.days_per_order) if self.section.features.order else ("day", 1)
        for item, source, fresh in zip(found.item.tolist(), found.source.tolist(), new.tolist(), strict=True):
            if fresh:
                found.explanation.append(item_explanations.new(self.goods, item, NAMES[source], partner.get(item)))
            else:
                mine = own.ago[own.column == item]
                found.explanation.append(item_explanations.again(len(mine), int(mine.min()) // days, unit))

    def _partners(self, new: np.ndarray, own: _Own) -> dict[int, int]:
        """New item -> the item of the user's own that goes with it, where enough others bought both."""
        new = new[new < self.goods.size]
        if not len(new):
            return {}
        count = np.bincount(np.searchsorted(own.bought, own.column))
        most = own.bought[np.argsort(-count, kind="stable")[: item_explanations.OWN]]
        partner, common = self.together.partners(most, new)
        enough = common >= item_explanations.ENOUGH
        return dict(zip(new[enough].tolist(), partner[enough].tolist(), strict=True))

    @property
    def together(self) -> item_explanations.Together:
        """Who bought what, by item: made once, as things were then."""
        if self._together is None:
            self._together = item_explanations.Together.of(Live.of(self.histories).base, self.model.catalogue_)
        return self._together

    def _joined(self, asked: list[Any], lists: "list[_List]", wish: _Wish) -> Answer:
        sizes = np.array([len(each.item) for each in lists], np.int64)
        item, score, source = (np.concatenate([getattr(each, name) for each in lists]) for name in ("item", "score", "source"))
        row = np.repeat(np.arange(len(lists)), sizes)
        return Answer(
            row=row,
            rank=np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1,
            item=self.goods.ids[item],
            score=score,
            source=[NAMES[each] for each in source.tolist()],
            explanation=[reason for each in lists for reason in each.explanation],
            notes=tuple(
                Note(row, asked[row], wish.k, len(each.item), self.goods.size, each.costs)
                for row, each in enumerate(lists)
                if each.costs is not None
            ),
            as_of=to_date(self.day),
            learned=to_date(self.learned),
        )


@dataclass(eq=False)
class _List:
    item: np.ndarray
    score: np.ndarray
    source: np.ndarray
    explanation: list[str] = field(default_factory=list)
    costs: dict[str, int] | None = None
    """Set where the list is shorter than asked for."""


_NONE = np.zeros(0, np.int64)
_NO_LINES = pl.DataFrame()
_EMPTY = _Pool(_NONE, np.zeros(0), _NONE)


def _pools(lists: Ranked, rows: np.ndarray, size: int) -> list[_Pool]:
    """One of each of `size` users. `lists.row` counts `rows`."""
    starts = np.searchsorted(lists.row, np.arange(len(rows) + 1))
    found = [_EMPTY] * size
    for number, row in enumerate(rows.tolist()):
        mine = slice(starts[number], starts[number + 1])
        found[row] = _Pool(lists.item[mine], lists.score[mine].astype(float), lists.source[mine])
    return found


def _under(pool: _Pool, deep: _Pool) -> _Pool:
    """`pool`, and below it what else is in `deep`, in its order."""
    fresh = codes(deep.item, distinct(pool.item)) < 0
    lift = min(pool.score.min(initial=np.inf) - deep.score[fresh].max(initial=-np.inf), 0.0)
    parts = zip((pool.item, pool.score, pool.source), (deep.item, deep.score + lift, deep.source), strict=True)
    return _Pool(*(np.concatenate([ours, theirs[fresh]]) for ours, theirs in parts))


def moved(data: Purchases, newer: pl.DataFrame, as_of: date | None) -> Purchases:
    """`data` with newer lines (user, basket, item, day), and as it was known on the day `as_of`; None: with all of them."""
    histories = data.histories.and_then(typed(newer, data.histories)) if len(newer) else data.histories
    if as_of is None:
        return dataclasses.replace(data, histories=histories)
    if not len(histories) or to_day(as_of) < histories.day[0]:
        first = to_date(histories.day[0]) if len(histories) else "none"
        raise DataError(f"as_of = {as_of}: lies before the first purchase ({first}); name a later day")
    return dataclasses.replace(data, histories=histories.until(to_day(as_of)), as_of=as_of)


def _drawn(draw: np.random.Generator, items: np.ndarray, starts: np.ndarray, mine: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of `items` (category after category from `starts`), each once: a category as often as it is in `mine`."""
    sizes = np.diff(starts)
    weight = np.bincount(mine, minlength=len(sizes)) * (sizes > 0)
    if not weight.any():
        return items[draw.permutation(len(items))[:count]]
    sums = np.cumsum(weight)
    kind = np.searchsorted(sums, draw.integers(0, sums[-1], count), side="right")
    tried = items[starts[kind] + (draw.random(count) * sizes[kind]).astype(np.int64)]
    return np.array(list(dict.fromkeys(tried.tolist())), np.int64)
