"""The models of the search, as estimators that answer on their own: who is asked for -> a ranked list for each.

What a model learned and the histories it reads are apart: histories move on every day, what was learned stays.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import lightgbm
import numpy as np
import pandas as pd
import polars as pl
from sklearn.base import BaseEstimator

from evergreen.model_types import stored_type
from evergreen.tasks.problems.recommender.candidate_generation import BASKETS, LATELY, Candidates, Learned, Settings, order
from evergreen.tasks.problems.recommender.candidate_sources import SOURCES, Decay, popularity
from evergreen.tasks.problems.recommender.online_histories import OnlineHistories, merged
from evergreen.tasks.problems.recommender.ranker_features import FAST, FEATURES, Lines
from evergreen.tasks.problems.recommender.user_histories import Histories, take

NAMES = pd.Series(list(SOURCES)).array
"""Of the sources, as a column has them: to make such a column of text takes longer than to take from one."""


BINNED = 100_000
"""Candidates, drawn at random, whose values decide the bins of the ranker's features."""

Scored = tuple[Candidates, np.ndarray | None]
"""Candidates and the ranker's score of each. None: not computed yet."""


@dataclass(eq=False)
class Ranked:
    """Entries of lists, sorted by user and rank: parallel arrays. `source`: number in SOURCES.

    `item`: column of the catalogue, behind which the items `late` (sorted ids) have theirs, as in Candidates.
    """

    row: np.ndarray
    rank: np.ndarray
    item: np.ndarray
    score: np.ndarray
    source: np.ndarray
    late: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@stored_type
class Recommender(BaseEstimator):
    """What the models share, and the baseline itself: what most users bought lately.

    `novel`: only items that the user never bought. `k`: length of a list; shorter where the catalogue has no more.
    """

    def __init__(
        self,
        user: str = "user",
        item: str = "item",
        k: int = 10,
        novel: bool = False,
        min_users: int = 5,
        popularity_days: int = 56,
    ) -> None:
        self.user = user
        self.item = item
        self.k = k
        self.novel = novel
        self.min_users = min_users
        self.popularity_days = popularity_days

    def learn(self, known: Histories, day: int) -> "Recommender":
        """From the lines up to `day`, which it keeps as the histories it reads."""
        self.catalogue_ = known.catalogue(1)
        self.popular_ = popularity(known, self.catalogue_, day - self.popularity_days + 1, day)
        return self.read(known, day)

    def read(self, histories: Histories | OnlineHistories, day: int) -> Self:
        """Answer from these histories from now on; nothing that was learned changes. `day`: the last one they cover."""
        self.histories_, self.day_ = histories, int(day)
        return self

    def reading(self, histories: Histories | OnlineHistories, day: int) -> Self:
        """A twin that shares what was learned, and what is built of it, and answers from other histories."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)  # copy would save and load it
        return twin.read(histories, day)

    def prepare(self) -> None:
        """Compute beforehand what many lists ask for; twins share it. Without it lists are the same."""

    def knowing(self, table: pl.DataFrame) -> Self:
        """A twin that knows the attributes of items that nobody had bought when the model learned; `table`: see
        item_catalogue.items.
        """
        return self

    def observe(self, events: pd.DataFrame) -> "Recommender":
        """Add newer lines to the histories: the user and item columns, `basket` and `day` (a date).

        Lines known already change nothing. Today becomes the newest day of the lines.
        """
        names = {self.user: "user", "basket": "basket", self.item: "item", "day": "day"}
        frame = pl.DataFrame([pl.Series(name, events[column]) for column, name in names.items()])
        histories = OnlineHistories.of(self.histories_).and_then(frame)
        return self.read(histories, max(self.day_, histories.last_day))

    def predict(self, X: pd.DataFrame) -> pd.DataFrame:
        """One row per user of `X` (in its order, a user asked for twice twice) and rank: user, rank, item, score, source.

        A user without history gets what is popular. Higher scores are better; they compare within one list only.
        """
        asked = X[self.user]
        wanted = known_as(asked.to_numpy(), self.histories_)
        found, place = np.unique(wanted, return_inverse=True)
        lists = self.rank(found, self.k, self.novel)
        starts = np.searchsorted(lists.row, np.arange(len(found) + 1))
        sizes = np.diff(starts)[place]
        first = np.repeat(starts[place] - np.cumsum(sizes) + sizes, sizes)
        entry = first + np.arange(sizes.sum())
        return pd.DataFrame(
            {
                self.user: np.repeat(asked.to_numpy(), sizes),
                "rank": lists.rank[entry] + 1,
                self.item: take(self.catalogue_, lists.item[entry], lists.late),
                "score": lists.score[entry].astype(float),
                "source": NAMES.take(lists.source[entry]),
            }
        )

    def rank(self, positions: np.ndarray, k: int, novel: bool, scored: Scored | None = None) -> Ranked:
        """The lists of the users at `positions` in the histories (-1: without history), `row` counts them.

        `scored`: the candidates of the same positions with their scores; one call serves both kinds of list.
        """
        there = np.flatnonzero(positions >= 0)
        found = self._rank(positions[there], k, novel, scored)
        found.row = there[found.row]
        return self._fill(found, positions, k, novel)

    def everything(self, positions: np.ndarray, novel: bool, times: int = 1) -> Ranked:
        """All that the model has to say of the users at `positions` (each with a history), nothing added.

        `times`: as many times the usual candidates, for whom rules leave too few.
        """
        return self._rank(positions, np.iinfo(np.int64).max, novel, None)

    def _rank(self, positions: np.ndarray, k: int, novel: bool, scored: Scored | None) -> Ranked:
        """Lists for users with a history, possibly short: then what is popular is added."""
        return ranked(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0, int), k)

    def _fill(self, lists: Ranked, positions: np.ndarray, k: int, novel: bool) -> Ranked:
        """Add what is popular where a list is shorter than `k`, below what is there."""
        starts = np.searchsorted(lists.row, np.arange(len(positions) + 1))
        short = np.flatnonzero(np.diff(starts) < k)
        if not len(short):
            return lists
        popular, most = self._by_popularity(), self.popular_.max(initial=0)
        taken = self._bought(short, positions[short]) if novel else {}
        added = []
        for row in short:
            mine = slice(starts[row], starts[row + 1])
            out = np.concatenate([lists.item[mine], taken.get(int(row), np.zeros(0, int))])
            items = popular[: k + len(out)]
            items = items[~np.isin(items, out)][: k - len(lists.item[mine])]
            score = lists.score[mine].min(initial=0) - 1 + self.popular_[items] / (most + 1)
            added.append((np.full(len(items), row), items, score, np.full(len(items), SOURCES.index("popular"))))
        parts = zip((lists.row, lists.item, lists.score, lists.source), *added, strict=True)
        row, item, score, source = (np.concatenate(each) for each in parts)
        return ranked(row, item, score, source, k, lists.late)

    def _by_popularity(self) -> np.ndarray:
        """Columns of the catalogue, what most users bought lately first; sorted once."""
        if self._popular is None or len(self._popular) != len(self.popular_):
            self._popular = np.argsort(-self.popular_, kind="stable")
        return self._popular

    def _bought(self, rows: np.ndarray, positions: np.ndarray) -> dict[int, np.ndarray]:
        """Row -> the columns of the catalogue that the user at its position bought."""
        known = positions >= 0
        bought = Lines.of(self.histories_, positions[known], self.catalogue_, self.day_).counts()
        parts = np.split(bought.indices, bought.indptr[1:-1])
        return {int(row): part for row, part in zip(rows[known], parts, strict=False)}

    def __getstate__(self) -> dict[str, Any]:
        """What is saved: histories with their newest lines in place, and nothing that is built when first asked for."""
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_built", "_asked", "_popular")}
        return {**kept, "histories_": merged(kept["histories_"])} if "histories_" in kept else kept

    def importance(self) -> dict[str, float]:
        """Feature -> share of the gain, largest first; empty without a ranker."""
        return {}

    _popular: np.ndarray | None = None


@stored_type
class RecentPopularity(Recommender):
    """What most users bought in the last days, as many as did best on validation windows."""


@stored_type
class FrequencyRecommender(Recommender):
    """What the user buys anyway, however rare: own purchases with decay; then what is popular.

    A purchase counts half after `half_life_days`, or after `half_life_orders` further orders where that is given.
    """

    def __init__(
        self,
        user: str = "user",
        item: str = "item",
        k: int = 10,
        novel: bool = False,
        min_users: int = 5,
        popularity_days: int = 56,
        half_life_days: float = 90.0,
        half_life_orders: float | None = None,
    ) -> None:
        super().__init__(user, item, k, novel, min_users, popularity_days)
        self.half_life_days = half_life_days
        self.half_life_orders = half_life_orders

    def _rank(self, positions: np.ndarray, k: int, novel: bool, scored: Scored | None) -> Ranked:
        if novel:
            return super()._rank(positions, k, novel, scored)
        decay = Decay(self.half_life_days, getattr(self, "half_life_orders", None))
        lines = Lines.of(self.histories_, positions, self.catalogue_, self.day_, whole=True)
        own, liked = lines.decayed(decay), lines.counts().data > 0  # not what the user rated lowest
        row, item = np.repeat(np.arange(len(positions)), np.diff(own.indptr))[liked], own.indices[liked]
        score = own.data[liked] + self._ties(1e-3, item, lines.late)
        return ranked(row, item, score, np.full(len(row), SOURCES.index("rebuy")), k, lines.late)

    def _ties(self, weight: float, item: np.ndarray, late: np.ndarray) -> np.ndarray:
        """Up to `weight`, by popularity: orders what is else equal."""
        most = max(self.popular_.max(initial=0), 1)
        return weight * take(self.popular_, item, np.zeros(len(late), np.float32)) / most


@stored_type
class FirstStage(FrequencyRecommender):
    """What the first stage learned from the lines up to one day; it proposes candidates and leaves their order open."""

    candidates: int
    learned_: Learned

    @property
    def settings(self) -> Settings:
        """An older model knows fewer of them."""
        given = {name: getattr(self, name) for name in Settings.__dataclass_fields__ if hasattr(self, name)}
        return Settings(**given)

    def take(self, learned: Learned) -> Self:
        """Answer with `learned` from now on."""
        self.learned_, self.catalogue_, self.popular_ = learned, learned.catalogue, learned.popular
        return self

    def prepare(self) -> None:
        if self.learned_.ease is not None:
            self.learned_.ease.prepare()

    def knowing(self, table: pl.DataFrame) -> Self:
        return self.reading(self.histories_, self.day_).take(self.learned_.knowing(table))


@stored_type
class TwoStage(FirstStage):
    """Candidates of all sources, sorted by boosted trees.

    The ranker minimises the cross entropy between the ranking and the purchases of each list (XE-NDCG: Bruch 2021, in LightGBM)
    and sees two lists per user: everything, and only what the user never bought. One ranker so serves both.
    """

    def __init__(
        self,
        user: str = "user",
        item: str = "item",
        k: int = 10,
        novel: bool = False,
        min_users: int = 5,
        popularity_days: int = 56,
        candidates: int = 150,
        half_life_days: float = 90.0,
        ease_penalty: float = 150.0,
        user_neighbours: int = 100,
        ranker_trees: int = 90,
        leaves: int = 31,
        learning_rate: float = 0.08,
        seed: int = 0,
        with_tifu_knn: bool = True,
        with_ease: bool = True,
        with_item_knn: bool = False,
        with_co_visitation: bool = False,
        with_als: bool = False,
        with_segment_popularity: bool = False,
        with_content: bool = False,
        als_factors: int = 64,
        item_neighbours: int = 50,
        max_dense_users: int = 10_000,
        half_life_orders: float | None = None,
        ranker_rows: int = 600_000,
        segment_days: int = LATELY,
        co_visitation_days: int = BASKETS,
        second_half_life_days: float = FAST.days,
        second_half_life_orders: float | None = None,
    ) -> None:
        super().__init__(user, item, k, novel, min_users, popularity_days, half_life_days, half_life_orders)
        self.candidates = candidates
        self.ease_penalty = ease_penalty
        self.user_neighbours = user_neighbours
        self.ranker_trees = ranker_trees
        self.leaves = leaves
        self.learning_rate = learning_rate
        self.seed = seed
        self.with_tifu_knn = with_tifu_knn
        self.with_ease = with_ease
        self.with_item_knn = with_item_knn
        self.with_co_visitation = with_co_visitation
        self.with_als = with_als
        self.with_segment_popularity = with_segment_popularity
        self.with_content = with_content
        self.als_factors = als_factors
        self.item_neighbours = item_neighbours
        self.max_dense_users = max_dense_users
        self.ranker_rows = ranker_rows
        self.segment_days = segment_days
        self.co_visitation_days = co_visitation_days
        self.second_half_life_days = second_half_life_days
        self.second_half_life_orders = second_half_life_orders

    def learn_ranker(self, learned: Learned, examples: Sequence[tuple[Candidates, np.ndarray]]) -> "TwoStage":
        """`examples`: candidates of an earlier day, and whether each was bought in the days after it.

        Lists without a hit teach nothing and are left out. Above `ranker_rows`, some of what was not bought is left out.
        """
        self.take(learned)
        lists = [(found, each) for found, label in examples for each in _lists(found, label)]
        most = _negatives([each for _, each in lists], self.ranker_rows)
        draw = np.random.default_rng(self.seed)
        parts = [(found, *_thinned(each, most, draw)) for found, each in lists]
        data = lightgbm.Dataset(
            [_Rows(found.features, kept) for found, kept, _, _ in parts if len(kept)],
            np.concatenate([label for _, _, label, _ in parts]),
            group=np.concatenate([sizes for _, _, _, sizes in parts]),
            feature_name=list(FEATURES),
            params={"max_bin": 63, "bin_construct_sample_cnt": BINNED, "verbosity": -1, "num_threads": 1},
        )
        self._keep(lightgbm.train(self._ranking(), data, self.ranker_trees))
        return self

    def _ranking(self) -> dict[str, Any]:
        return {
            "objective": "rank_xendcg",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": 100,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "max_bin": 63,
            "seed": self.seed,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def reading(self, histories: Histories | OnlineHistories, day: int) -> Self:
        self._booster()  # one for all twins
        return super().reading(histories, day)

    def propose(self, positions: np.ndarray) -> Candidates:
        """Candidates of the users at `positions`; those without history have none."""
        return self.learned_.propose(self.histories_, positions[positions >= 0], self.day_, self.settings)

    def everything(self, positions: np.ndarray, novel: bool, times: int = 1) -> Ranked:
        settings = dataclasses.replace(self.settings, candidates=times * self.candidates)
        found = self.learned_.propose(self.histories_, positions, self.day_, settings)
        return self._rank(positions, np.iinfo(np.int64).max, novel, (found, None))

    def _rank(self, positions: np.ndarray, k: int, novel: bool, scored: Scored | None) -> Ranked:
        found, scores = scored or (self.propose(positions), None)
        kept = ~found.bought if novel else np.ones(len(found.row), bool)
        table = found.features[kept]
        scores = self._scores(table) if scores is None else scores[kept]
        places = table[:, FEATURES.index(f"{SOURCES[0]}_place") :]
        source = credited(places, found.bought[kept], self.learned_.sources)
        return ranked(found.row[kept], found.item[kept], scores, source, k, found.late)

    def order_by(self, candidates: Candidates) -> np.ndarray:
        """The ranker's score of each candidate; higher is better."""
        return self._scores(candidates.features)

    def _scores(self, table: np.ndarray) -> np.ndarray:
        if not len(table):
            return np.zeros(0)
        booster = self._booster()
        if self._asked is not None:
            table = table[:, self._asked]
        return np.asarray(booster.predict(table, num_threads=1, validate_features=False))

    def importance(self) -> dict[str, float]:
        gain = self._booster().feature_importance("gain")
        share, names = gain / max(gain.sum(), 1e-12), self._booster().feature_name()
        return {names[i]: float(share[i]) for i in np.argsort(-share, kind="stable")}

    def _keep(self, booster: lightgbm.Booster) -> None:
        """The trees are kept as text, which any version of the file format can hold; `_booster` builds them once."""
        self.ranker_ = booster.model_to_string()
        self._built = None

    def _booster(self) -> lightgbm.Booster:
        if self._built is None:
            self._built = lightgbm.Booster(model_str=self.ranker_)
            names = self._built.feature_name()
            self._asked = None if names == list(FEATURES) else np.array([FEATURES.index(name) for name in names])
        return self._built

    _built: lightgbm.Booster | None = None
    _asked: np.ndarray | None = None
    """The columns that the trees of an older model ask for. None: all."""


def known_as(ids: np.ndarray, histories: Histories | OnlineHistories) -> np.ndarray:
    """Position of each asked user, -1 for an unknown one. Where ids are numbers, 7, 7.0 and "7" are the same user."""
    kind = histories.id_kind
    if ids.dtype.kind == kind == "i":
        return histories.find(ids)
    asked = pl.Series(ids)
    if kind in "iu":
        numbers = asked.cast(pl.Int64, strict=False)
        place = histories.find(numbers.fill_null(-1).to_numpy())
        return np.where(numbers.is_null().to_numpy(), -1, place)
    return histories.find(asked.cast(pl.String).fill_null("").to_numpy().astype(str))


def ranked(
    row: np.ndarray, item: np.ndarray, score: np.ndarray, source: np.ndarray, k: int, late: np.ndarray | None = None
) -> Ranked:
    """The `k` best entries of each row, in order. `late`: ids of the items behind the catalogue."""
    by, rank = order(row, score)
    by, rank = by[rank < k], rank[rank < k]
    return Ranked(row[by], rank, item[by], score[by], source[by], *(() if late is None else (late,)))


class _Rows(lightgbm.Sequence):
    """Some rows of a table, copied part by part: LightGBM keeps a byte of each value, so that no second table is needed."""

    batch_size = 16_384

    def __init__(self, table: np.ndarray, places: np.ndarray) -> None:
        self.table, self.places = table, places

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.table[self.places[index]].astype(np.float64)

    def __len__(self) -> int:
        return len(self.places)


Examples = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Places and labels of candidates, list after list, and the sizes of the lists."""


def _lists(candidates: Candidates, label: np.ndarray) -> list[Examples]:
    """The lists of everything, and the lists of new items."""
    found = []
    for kept in (np.ones(len(label), bool), ~candidates.bought):
        hits = np.bincount(candidates.row[kept], label[kept], minlength=candidates.row.max(initial=0) + 1)
        kept = kept & (hits[candidates.row] > 0)
        sizes = np.bincount(candidates.row[kept])
        sizes = sizes[sizes > 0]
        found.append((np.flatnonzero(kept), label[kept], sizes))
    return found


def _negatives(lists: Sequence[Examples], rows: int) -> int:
    """How many candidates that were not bought each list may keep, so that all have about `rows`; at least one."""
    found, hits, count = (sum(each) for each in zip(*((len(y), int(y.sum()), len(size)) for _, y, size in lists), strict=True))
    return found if found <= rows else max((rows - hits) // count, 1)


def _thinned(lists: Examples, most: int, draw: np.random.Generator) -> Examples:
    """The same lists with all that was bought, and `most` candidates that were not, drawn at random."""
    place, label, sizes = lists
    row = np.repeat(np.arange(len(sizes)), sizes)
    by, rank = order(row, np.where(label, 1.0, draw.random(len(label))))
    hits = np.bincount(row, label)
    kept = np.sort(by[rank < hits[row[by]] + most])
    return place[kept], label[kept], np.bincount(row[kept])


def credited(places: np.ndarray, bought: np.ndarray, on: Sequence[str]) -> np.ndarray:
    """Who to credit for each candidate: own purchases for what was bought, else which source of `on` places it best.

    `places`: candidates x SOURCES, from 0.
    """
    number = np.array([SOURCES.index(name) for name in on if name != "rebuy"])
    return np.where(bought, 0, number[places[:, number].argmin(axis=1)]) if len(places) else np.zeros(0, int)
