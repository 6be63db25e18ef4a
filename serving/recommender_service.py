"""A recommender in process: a registered model, the users' histories, and every purchase event since.

The HTTP service and the command line use it. Safe to use from several threads.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import polars as pl

from evergreen.serving.event_log import START, EventCounts, EventLog, Withdrawal
from evergreen.serving.event_validation import EventValidator
from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Recommend
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import ModelError, ParamsError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import Model
from evergreen.tasks.problems.recommender import item_catalogue
from evergreen.tasks.problems.recommender.interactions import InteractionData
from evergreen.tasks.problems.recommender.list_builder import ListBuilder
from evergreen.tasks.problems.recommender.list_request import RecommendedLists, Request
from evergreen.tasks.problems.recommender.online_histories import as_id

CACHED_ITEMS = 200_000
"""Items in all cached lists together, with explanations about 300 bytes each. A list counts LIST_COST more."""
LIST_COST = 10
LONGEST_REQUEST = 1_000
"""Characters of a request that is cached, at most: a client chooses its users' ids and its rules."""
CACHED_REQUESTS = 8
"""Different requests cached per user."""
REFILL_QUEUE = 1_000
"""Largest number of evicted requests that wait to be cached again."""


def section(params: Params, problem: str) -> Recommend:
    """The section of a recommendation problem. Raises ParamsError for another kind of problem."""
    found = params.section(problem)
    if found.predicts == "rows":
        raise ParamsError(f"{problem}: is a {params.kind(problem)} problem and has no lists; name a recommendation problem")
    return found


def load(params: Params, problem: str, layout: Layout) -> InteractionData:
    """The histories that the features step wrote. Raises ModelError if it never ran."""
    wanted, folder = section(params, problem), layout.features(problem)
    if not folder.exists():
        raise ModelError(f"{problem}: has no features yet; run evergreen train {problem}")
    return problems.kind(params.kind(problem)).load(folder, wanted)


def record(
    params: Params, problem: str, data: InteractionData, log: EventLog, given: Iterable[Mapping[str, Any]]
) -> EventCounts:
    """Write events to the log, for every reader; event_validation describes an event."""
    return _record(EventValidator(params, problem, data), problem, log, given, None)


def _record(
    validator: EventValidator, problem: str, log: EventLog, given: Iterable[Mapping[str, Any]], now: datetime | None
) -> EventCounts:
    events, rejected = validator.validate(given, now)
    new = len(log.append(problem, events, rejected))
    return EventCounts(new, len(events) - new, tuple(rejected))


class OnlineRecommender:
    """Recommends with `model`, registered as `version` of `problem`, and histories that follow the event log.

    Raises ModelError if there are no features yet, or if the model does not fit the project's code.
    """

    def __init__(self, params: Params, problem: str, layout: Layout, model: Model, version: int, log: EventLog) -> None:
        self.problem, self.version = problem, version
        self._layout, self._section, self._log = layout, section(params, problem), log
        data = load(params, problem, layout)
        self._validator = EventValidator(params, problem, data)
        try:
            self._builder = ListBuilder.of(model, data, self._section)
            self._builder.prepare()
            self._builder.recommend(Request(users=tuple(data.histories.users[:1].tolist())))  # fails here, not in a request
        except (AttributeError, ValueError) as error:
            raise ModelError(
                f"{problem}: version {version} cannot recommend: {error}. Train again, or name another --version."
            ) from error
        self._position, self._stock_read, self._updating = START, self._stock_time(), threading.Lock()
        self._cache: dict[str, dict[Request, RecommendedLists]] = {}
        self._cached_items = 0
        self._evicted = deque[Request](maxlen=REFILL_QUEUE)
        self._without_events = self._builder
        self.refresh()

    def recommend(self, request: Request) -> RecommendedLists:
        """See ListBuilder.recommend. Caches the lists of one user until that user buys: nothing else changes them."""
        if found := self.cached(request):
            return found
        builder, user = self._builder, self._cache_key(request)
        lists = builder.recommend(request)
        with self._updating:
            if user is not None and builder is self._builder:  # no purchase arrived meanwhile
                self._keep(user, request, lists)
        return lists

    def _keep(self, user: str, request: Request, lists: RecommendedLists) -> None:
        cost = LIST_COST + len(lists.item)
        if cost > CACHED_ITEMS or len(request.model_dump_json(exclude_defaults=True)) > LONGEST_REQUEST:
            return
        if self._cached_items + cost > CACHED_ITEMS:
            self._clear_cache()
        if len(self._cache.get(user, {})) >= CACHED_REQUESTS:
            self._evict(user)
        self._cache.setdefault(user, {})[request] = lists
        self._cached_items += cost

    def _evict(self, user: str) -> Iterable[Request]:
        """The requests of a user whose lists are cached no more."""
        mine = self._cache.pop(user, {})
        self._cached_items -= sum(LIST_COST + len(each.item) for each in mine.values())
        return mine

    def _clear_cache(self) -> None:
        self._cache.clear()
        self._cached_items = 0

    def build(self, request: Request) -> RecommendedLists:
        """The same, neither from the cache nor kept in it."""
        return self._builder.recommend(request)

    def cached(self, request: Request) -> RecommendedLists | None:
        """The cached lists, if there is one. Takes microseconds."""
        user = self._cache_key(request)
        return None if user is None else self._cache.get(user, {}).get(request)

    def refill_cache(self) -> None:
        """Answer the requests that purchases evicted from the cache: their users are likely to ask again."""
        while self._evicted:
            self.recommend(self._evicted.popleft())

    def _cache_key(self, request: Request) -> str | None:
        """The user of a request that can be cached; None for several users or with a session basket."""
        single = len(request.users) == 1 and not request.items
        return str(as_id(request.users[0], self._builder.histories.id_kind)) if single else None

    def users(self) -> list[Any]:
        """Ids of all users with purchases up to the last training."""
        return self._builder.data.histories.users.tolist()

    def items(self) -> list[Any]:
        """Ids of the items that can be recommended."""
        return self._builder.catalogue.ids[: self._builder.catalogue.size].tolist()

    def record_events(self, given: Iterable[Mapping[str, Any]], now: datetime | None = None) -> EventCounts:
        """Write purchase events to the log, then update the histories: the next list uses them.

        event_validation describes an event. A rejected event is stored with its reason and stops no other.
        """
        counts = _record(self._validator, self.problem, self._log, given, now)
        if counts.accepted:
            self.refresh()
        return counts

    def withdraw_events(self, ids: Sequence[str]) -> Withdrawal:
        """Withdraw events by id: the next list is as if they had never been. One that is sent again stays withdrawn."""
        found = self._log.withdraw(self.problem, ids)
        self.refresh()
        return found

    def refresh(self) -> None:
        """Read the events and the stock table that other processes wrote since the last call."""
        with self._updating:
            changes = self._log.since(self.problem, self._position)
            if changes.withdrawn:
                changes = self._log.since(self.problem)
                self._builder = self._without_events
                self._clear_cache()
            self._add(changes.lines)
            self._position = changes.position
            if (written := self._stock_time()) != self._stock_read:
                table = table_parts.scan(self._layout.table(str(self._section.features.stock_table)))
                stock = item_catalogue.stock(table, self._section.features)
                self._builder, self._without_events = self._builder.restocked(stock), self._without_events.restocked(stock)
                self._stock_read = written
                self._clear_cache()

    def _add(self, lines: pl.DataFrame) -> None:
        """Add lines to the histories, and drop the cached lists of their users."""
        if lines.height:
            self._builder = self._builder.observe(lines)
        for user in lines["user"].unique():
            self._evicted.extend(self._evict(user))

    def _stock_time(self) -> int:
        """Modification time of the stock table in nanoseconds; 0 without one."""
        name = self._section.features.stock_table
        path = self._layout.table(name) if name else None
        return path.stat().st_mtime_ns if path and path.exists() else 0
