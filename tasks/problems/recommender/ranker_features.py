"""What the ranker knows of a candidate: facts of the user, of the item and of the two together, all up to a day.

Facts of items are learned once and kept; facts of users and of pairs come from the histories at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy import sparse

from evergreen.tasks.problems.recommender.candidate_sources import FAR, SOURCES, Decay, decay, popularity
from evergreen.tasks.problems.recommender.online_histories import OnlineHistories
from evergreen.tasks.problems.recommender.user_histories import Histories, Sparse, codes, distinct

USER = ("visits", "visits_28d", "visit_gap", "days_since_visit", "days_known", "lines_per_visit", "repeat_share")
ITEM = (
    *("users_7d", "users_28d", "users_56d", "trend", "users", "lines_per_user", "loyal_share", "days_sold", "category_users"),
    *("users_14d", "new_users_7d", "new_users_28d", "new_users_56d", "kept_share", "kept_share_regulars", "usual_gap"),
    *("share_of_category", "group1_users", "share_of_group1", "group2_users", "share_of_group2"),
)
PAIR = (
    *("decayed_share", "bought", "bought_28d", "rate", "days_since", "days_between", "overdue", "days_since_first"),
    *("category_decayed", "category_share", "category_days_since"),
    *("bought_7d", "bought_14d", "bought_56d", "bought_91d", "decayed_fast", "days_since_second", "days_since_third"),
    *("last_gap", "gap_spread", "visits_since", "rate_since_first", "overdue_for_item"),
    *("category_28d", "category_overdue", "share_in_category"),
    *(
        f"{group}_{fact}"
        for group in ("group1", "group2")
        for fact in ("decayed", "share", "days_since", "28d", "overdue", "share_in")
    ),
)
FEATURES = (*USER, *ITEM, *PAIR, *SOURCES, *(f"{source}_place" for source in SOURCES))
Kind = tuple[np.ndarray, np.ndarray]
"""Numbers of the groups, one of each line inside the catalogue and one of each pair."""
NEVER = 999.0
"""Days since something that never happened."""
FAST = Decay(30.0)
"""A second decay of own purchases, unless another is chosen (decay_choice)."""
PRIOR = 5
"""Prior weight in an item's rebuy share, in buyers."""


@dataclass(eq=False)
class Lines:
    """The lines of some users, user after user, each from the first to the last day.

    `row` counts those users, `column` the catalogue and `late` behind it (below 0: outside), `ago` days before now.
    """

    row: np.ndarray
    column: np.ndarray
    ago: np.ndarray
    rows: int
    columns: int
    weight: np.ndarray | None = None
    """Of each line; None: 1 each."""
    late: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Sorted ids of the items outside the catalogue that have a column."""
    _visits: np.ndarray | None = field(default=None, init=False, repr=False)
    _bought: "tuple[np.ndarray, np.ndarray, np.ndarray, Groups] | None" = field(default=None, init=False, repr=False)

    @classmethod
    def of(
        cls, histories: Histories | OnlineHistories, positions: np.ndarray, catalogue: np.ndarray, day: int, whole: bool = False
    ) -> "Lines":
        """`positions`: users, as positions in `histories.users`. `whole`: items outside the catalogue have columns too."""
        row, column, when, weight, late = histories.lines(positions, catalogue)
        if whole and len(late):
            column = np.where(column < 0, len(catalogue) - 1 - column, column)
        late = late if whole else late[:0]
        kept = when <= day
        ago, weight = (day - when[kept]).astype(np.float32), None if weight is None else weight[kept]
        return cls(row[kept], column[kept], ago, len(positions), len(catalogue) + len(late), weight, late)

    def counts(self) -> Sparse:
        """Users x catalogue: the sum of the lines' weights, without weights their number."""
        pairs = self.bought()[3]
        return self._matrix(pairs.size if self.weight is None else pairs.sums(self.weights()))

    def weights(self) -> np.ndarray:
        """Of each of the lines of `bought`; lines without weights weigh 1."""
        inside = self.column >= 0
        return np.ones(inside.sum(), np.float32) if self.weight is None else self.weight[inside]

    def _matrix(self, values: np.ndarray) -> Sparse:
        """`values`: one per user and item bought."""
        key, columns = self.bought()[3].key, max(self.columns, 1)
        starts = np.searchsorted(key, np.arange(self.rows + 1) * columns)
        return sparse.csr_array((values.astype(np.float32), key % columns, starts), shape=(self.rows, self.columns))

    def bought(self) -> "tuple[np.ndarray, np.ndarray, np.ndarray, Groups]":
        """row, column and ago of the lines inside the catalogue; and those lines by row * columns + column."""
        if self._bought is None:
            inside = self.column >= 0
            row, column, ago = self.row[inside].astype(np.int64), self.column[inside], self.ago[inside]
            self._bought = row, column, ago, Groups.of(row * self.columns + column, ago)
        return self._bought

    def visits(self) -> np.ndarray:
        """row * FAR + days before now of each day with a purchase; sorted."""
        if self._visits is None:
            self._visits = distinct(self.row.astype(np.int64) * FAR + self.ago.astype(np.int64))
        return self._visits

    def visits_within(self, row: np.ndarray, days: np.ndarray) -> np.ndarray:
        """Days with a purchase in so many days up to now."""
        first = row.astype(np.int64) * FAR
        return np.searchsorted(self.visits(), first + days.astype(np.int64)) - np.searchsorted(self.visits(), first)

    def decayed(self, by: Decay) -> Sparse:
        """Users x catalogue: purchases, each counting less the longer ago it is."""
        row, _, ago, pairs = self.bought()
        worth = by.weigh(row, ago.astype(np.int64))
        return self._matrix(pairs.sums(worth if self.weight is None else worth * self.weights()))


def of_items(
    histories: Histories, catalogue: np.ndarray, category: np.ndarray, day: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """catalogue x ITEM at `day`. `category`: number of each item's category; `groups`: as that, up to two columns."""
    weekly, biweekly, monthly, recent = (popularity(histories, catalogue, day - days + 1, day) for days in (7, 14, 28, 56))
    size, known = len(catalogue), histories.until_positions(day)
    column = known.columns(catalogue)[known.item]
    inside = np.flatnonzero(column >= 0)
    pairs = Groups.of(known.user[inside].astype(np.int64) * size + column[inside], (day - known.day[inside]).astype(np.float32))
    item, ago = pairs.key % max(size, 1), pairs.ago

    def count(what: np.ndarray | None = None, of: np.ndarray = item) -> np.ndarray:
        return np.bincount(of, what, minlength=size)

    users, first = np.maximum(count(), 1), pairs.oldest()
    fresh = [count(first < days) for days in (7, 28, 56)]
    sold = np.full(size, -1.0)
    np.maximum.at(sold, item, first)
    before, lately = pairs.sums((ago >= 28) & (ago < 84)) > 0, pairs.sums(ago < 28) > 0
    regular = before & (pairs.sums(ago >= 28) > 1)
    kept = [_shrunk(count(some & lately), count(some)) for some in (before, regular)]
    gap, of = pairs.gaps(), np.repeat(item, pairs.size)
    usual = count(gap, of) / np.maximum(count(gap > 0, of), 1)
    lines = count(pairs.size)
    aisle, *others = (np.bincount(each, recent)[each] if size else recent for each in (category, *_columns(groups)))
    of_groups = [each for users in others for each in (users, recent / np.maximum(users, 1))]
    of_groups += [np.zeros(size)] * (4 - len(of_groups))
    return np.column_stack(
        [
            *(weekly, monthly, recent, (2 * monthly + 1) / (recent + 1), users, lines / users, count(pairs.size > 1) / users),
            *(np.maximum(sold, 0), aisle, biweekly, *fresh, *kept, usual, recent / np.maximum(aisle, 1)),
            *of_groups,
        ]
    )


def _shrunk(hits: np.ndarray, cases: np.ndarray) -> np.ndarray:
    """hits / cases, the nearer to that of all together the fewer the cases."""
    usual = hits.sum() / max(cases.sum(), 1)
    return (hits + PRIOR * usual) / (cases + PRIOR)


def of_users(lines: Lines) -> np.ndarray:
    """users x USER; visits are days with a purchase."""
    visit = lines.visits()
    row, ago = visit // FAR, (visit % FAR).astype(float)
    visits = np.bincount(row, minlength=lines.rows)
    lately = np.bincount(row, ago < 28, minlength=lines.rows)
    last, first = _extremes(row, ago, lines.rows)
    inside, _, _, pairs = lines.bought()
    count = np.bincount(inside, minlength=lines.rows)
    items = np.bincount(pairs.key // max(lines.columns, 1), minlength=lines.rows)
    gap = (first - last) / np.maximum(visits - 1, 1)
    return np.column_stack([visits, lately, gap, last, first, count / np.maximum(visits, 1), 1 - items / np.maximum(count, 1)])


def _extremes(group: np.ndarray, ago: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest `ago` per group; NEVER for an empty one."""
    least, most = np.full(groups, NEVER), np.full(groups, -1.0)
    np.minimum.at(least, group, ago)
    np.maximum.at(most, group, ago)
    return least, np.where(most < 0, NEVER, most)


def of_pairs(
    lines: Lines,
    user: np.ndarray,
    item: np.ndarray,
    kinds: Sequence[Kind],
    half_life: float,
    visits: np.ndarray,
    usual_gap: np.ndarray | None = None,
    fast: Decay = FAST,
) -> np.ndarray:
    """pairs x PAIR of the parallel `user` (row in `lines`) and `item` (column of the catalogue).

    `visits`: per user. `usual_gap`: days between two purchases, per pair; None: unknown. `kinds`: of the category, and of up to
    two groups. `half_life`: in days; `fast`: another decay, of `decayed_fast`.
    """
    row, _, ago, pairs = lines.bought()
    weight = decay(ago, half_life)
    mine = np.maximum(np.bincount(row, weight, minlength=lines.rows), 1e-9)[user]
    user = user.astype(np.int64)
    lately = [ago < days for days in (28, 7, 14, 56, 91)]
    facts = [pairs.size, pairs.squares(), *pairs.sums(np.column_stack([weight, fast.weigh(row, ago), *lately])).T]
    days = [pairs.oldest(), *(pairs.newest(place) for place in (1, 2, 3))]
    found = pairs.at(user * lines.columns + item, facts, days)
    bought, squares, decayed, quick, *within, first, last, second, third = found.T
    gaps = np.maximum(bought - 1, 1)
    between = np.where(bought > 1, (first - last) / gaps, NEVER)
    spread = np.sqrt(np.maximum(squares / gaps - between**2, 0)) * (bought > 1)
    since, known = (lines.visits_within(user, np.where(bought > 0, ago, FAR - 1)) for ago in (last, first))
    usual = np.zeros(len(user)) if usual_gap is None else usual_gap
    sums = np.column_stack([weight, lately[0]])
    aisle, *others = (_of_group(*each, row, ago, sums, user) for each in kinds)
    of_groups = [fact for each in others for fact in _shares(each, mine, decayed)]
    of_groups += [np.zeros(len(user))] * (12 - len(of_groups))
    in_aisle = _shares(aisle, mine, decayed)
    return np.column_stack(
        [
            *(decayed / mine, bought, within[0], bought / np.maximum(visits[user], 1)),
            *(last, between, last / np.maximum(between, 1), first, *in_aisle[:3]),
            *(*within[1:], quick, second, third, np.where(bought > 1, second - last, NEVER), spread, since),
            *(bought / (known + 1), np.where(bought > 0, last / np.maximum(usual, 1), NEVER)),
            *(*in_aisle[3:], *of_groups),
        ]
    )


def _columns(groups: np.ndarray | None) -> list[np.ndarray]:
    return [] if groups is None else list(groups.T)


def _of_group(
    group: np.ndarray,
    asked: np.ndarray,
    row: np.ndarray,
    ago: np.ndarray,
    sums: np.ndarray,
    user: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the user of each pair bought of the item's group: decayed, days since the last, within 28 days, overdue.

    `group`: of each line; `asked`: of each pair; `sums`: lines x 2, what is summed up per group.
    """
    count = max(int(group.max(initial=0)), int(asked.max(initial=0))) + 1
    found = Groups.of(row * count + group, ago)
    facts = found.at(user * count + asked, [found.size, *found.sums(sums).T], [found.oldest(), found.newest(1)])
    bought, decayed, lately, first, last = facts.T
    gap = np.where(bought > 1, (first - last) / np.maximum(bought - 1, 1), NEVER)
    return decayed, last, lately, last / np.maximum(gap, 1)


def _shares(
    group: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], mine: np.ndarray, decayed: np.ndarray
) -> tuple[np.ndarray, ...]:
    """decayed, share of all of the user's, days_since, 28d, overdue, share of the item in the group."""
    whole, last, lately, overdue = group
    return whole, whole / mine, last, lately, overdue, decayed / np.maximum(whole, 1e-9)


@dataclass(eq=False)
class Groups:
    """Lines of the same key side by side. `key`: sorted, each once; `ago`, in `order`: per line, as they were given.

    Within a group the order stays, from the first to the last day.
    """

    key: np.ndarray
    start: np.ndarray
    size: np.ndarray
    order: np.ndarray
    ago: np.ndarray
    """As given."""

    @classmethod
    def of(cls, key: np.ndarray, ago: np.ndarray) -> "Groups":
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        start = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(key) else np.zeros(0, np.int64)
        return cls(ordered[start], start, np.concatenate([start[1:], [len(key)]])[: len(start)] - start, order, ago)

    def at(self, key: np.ndarray, sums: Sequence[np.ndarray], days: Sequence[np.ndarray]) -> np.ndarray:
        """keys x (sums, days): values of the groups of these keys; where there is none 0, and NEVER among the days."""
        missing = np.repeat([0.0, NEVER], [len(sums), len(days)])
        return np.vstack([np.column_stack([*sums, *days]), missing])[codes(key, self.key)]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Of `values`, one per line as given, or one row per line."""
        ordered = values[self.order].astype(np.float64)
        return np.add.reduceat(ordered, self.start, axis=0) if len(self.start) else ordered

    def oldest(self) -> np.ndarray:
        return self.ago[self.order[self.start]]

    def newest(self, place: int) -> np.ndarray:
        """Days since the newest (1), the second newest (2) … line; NEVER where there are fewer."""
        last = self.start + self.size - place
        return np.where(self.size >= place, self.ago[self.order[np.maximum(last, 0)]], NEVER)

    def gaps(self) -> np.ndarray:
        """Days since the line before of the same group, 0 for the first; lines side by side."""
        ordered = self.ago[self.order]
        gap = np.concatenate([ordered[:1], ordered[:-1]]) - ordered
        gap[self.start] = 0
        return gap

    def squares(self) -> np.ndarray:
        """Sum of the squared gaps."""
        gap = self.gaps().astype(np.float64)
        return np.add.reduceat(gap * gap, self.start) if len(self.start) else gap


@cache
def of_one_purchase() -> np.ndarray:
    """The facts, as of_items has them, of an item without category that one user bought once, today."""
    none = np.zeros(1, np.int64)
    zero = none.astype(np.int32)
    bought = Histories(none, none, zero, zero, none, zero)
    return of_items(bought, none, none, 0)[0]
