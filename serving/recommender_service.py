"""Recommendations in process: the champion, the histories as they stand, and every purchase that came since.

What an HTTP service and the command line call. Safe to use from several threads.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from evergreen.serving.event_log import NOTHING, OVERLAP, SCHEMA, EventLog, Refusal
from evergreen.serving.event_validation import Incoming
from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Recommend
from evergreen.tasks.core.errors import ModelError, ParamsError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import Model
from evergreen.tasks.problems.recommender import item_catalogue
from evergreen.tasks.problems.recommender.interactions import Purchases
from evergreen.tasks.problems.recommender.list_builder import Answer, Request, Shop
from evergreen.tasks.problems.recommender.online_histories import as_id

KEPT = 20_000
"""Users whose answers are kept, some three kilobytes each."""
WISHES = 8
"""Answers to other wishes that are kept of each."""

STALE = 1_000
"""Answers at most that wait to be given anew."""
REMEMBERED = 2 * OVERLAP
"""Newest lines that are known to count."""


@dataclass(frozen=True)
class Observed:
    """What became of some events."""

    counted: int
    known: int
    """There already; nothing changed."""
    refused: tuple[Refusal, ...]


def section(params: Params, problem: str) -> Recommend:
    """Of `problem`. Raises ParamsError where it recommends nothing."""
    found = params.section(problem)
    if not isinstance(found, Recommend):
        raise ParamsError(f"{problem}: is a problem of {params.kind(problem)} and has no lists; name one of recommendation")
    return found


def load(params: Params, problem: str, layout: Layout) -> Purchases:
    """The histories as the features step left them. Raises ModelError where it never ran."""
    wanted, folder = section(params, problem), layout.features(problem)
    if not folder.exists():
        raise ModelError(f"{problem}: has no features yet; run evergreen train {problem}")
    return problems.kind("recommendation").load(folder, wanted)


def record(params: Params, problem: str, data: Purchases, log: EventLog, given: Iterable[Mapping[str, Any]]) -> Observed:
    """Write events down, for everybody who reads the log; see serving.event_validation for what they hold."""
    return _record(Incoming(params, problem, data), problem, log, given, None)[0]


def _record(
    incoming: Incoming, problem: str, log: EventLog, given: Iterable[Mapping[str, Any]], now: datetime | None
) -> tuple[Observed, pl.DataFrame]:
    """And the lines that are new."""
    events, refusals = incoming.read(given, now)
    fresh = log.append(problem, events, refusals)
    rows = [(each.user, each.basket, each.item, each.day) for each in fresh]
    return Observed(len(fresh), len(events) - len(fresh), tuple(refusals)), pl.DataFrame(rows, schema=SCHEMA, orient="row")


class Recommendations:
    """Answers of `model`, registered as `version`, for `problem`.

    Raises ModelError where there are no features yet or the model is another one than the project's code makes now.
    """

    def __init__(self, params: Params, problem: str, layout: Layout, model: Model, version: int, log: EventLog) -> None:
        self.problem, self.version = problem, version
        self._layout, self._section, self._log = layout, section(params, problem), log
        data = load(params, problem, layout)
        self._incoming = Incoming(params, problem, data)
        try:
            self._shop = Shop.of(model, data, self._section)
            self._shop.answer(Request(users=tuple(data.histories.users[:1].tolist())))  # what is built once is built now
        except (AttributeError, ValueError) as error:
            raise ModelError(
                f"{problem}: version {version} cannot answer: {error}. Train again, or name a --version."
            ) from error
        self._mark, self._stocked, self._writing = NOTHING, self._stock_stamp(), threading.Lock()
        self._kept: dict[str, dict[Request, Answer]] = {}
        self._stale = deque[Request](maxlen=STALE)
        self._counted: dict[tuple[Any, ...], None] = {}
        self.refresh()

    def answer(self, request: Request) -> Answer:
        """See Shop.answer. What one user was told is told again until he buys: nothing else changes it."""
        if found := self.kept(request):
            return found
        shop, user = self._shop, self._keeper(request)
        answer = shop.answer(request)
        with self._writing:
            if user is not None and shop is self._shop:  # nobody bought meanwhile
                if len(self._kept) >= KEPT:
                    self._kept.clear()
                mine = self._kept.setdefault(user, {})
                if len(mine) >= WISHES:
                    mine.clear()
                mine[request] = answer
        return answer

    def kept(self, request: Request) -> Answer | None:
        """The answer, where it was given before and still holds. Takes microseconds."""
        user = self._keeper(request)
        return None if user is None else self._kept.get(user, {}).get(request)

    def renew(self) -> None:
        """Answer anew what users who bought had asked for: they are likely to ask again."""
        while self._stale:
            self.answer(self._stale.popleft())

    def _keeper(self, request: Request) -> str | None:
        """The one user whose answer may be kept; None for several, and for a basket of this session."""
        alone = len(request.users) == 1 and not request.items
        return str(as_id(request.users[0], self._shop.histories.users)) if alone else None

    def users(self) -> list[Any]:
        """Keys of all that ever bought, up to the last training."""
        return self._shop.data.histories.users.tolist()

    def items(self) -> list[Any]:
        """Keys of what can be recommended."""
        return self._shop.goods.ids[: self._shop.goods.size].tolist()

    def observe(self, given: Iterable[Mapping[str, Any]], now: datetime | None = None) -> Observed:
        """Write purchases down, then let them count: when this returns, they last and the next answer knows them.

        An event holds what serving.event_validation says. One that cannot be counted is kept with its reason and stops no
        other.
        """
        observed, lines = _record(self._incoming, self.problem, self._log, given, now)
        if len(lines):
            with self._writing:
                self._observe(lines)
        return observed

    def refresh(self) -> None:
        """Read what other processes wrote since the last time: events, and the table of stock."""
        with self._writing:
            if self._log.mark(self.problem, self._mark) != self._mark:
                lines, self._mark = self._log.since(self.problem, self._mark)
                self._observe(lines)
            if (stamp := self._stock_stamp()) != self._stocked:
                table = pl.scan_parquet(self._layout.table(str(self._section.features.stock_table)))
                self._shop = self._shop.restocked(item_catalogue.stock(table, self._section.features))
                self._stocked = stamp
                self._kept.clear()

    def _observe(self, lines: pl.DataFrame) -> None:
        """Let lines count that do not yet: the log gives its newest ones again and again."""
        fresh = [line for line in lines.iter_rows() if line not in self._counted]
        if fresh:
            self._shop = self._shop.observe(pl.DataFrame(fresh, schema=SCHEMA, orient="row"))
        for line in fresh:
            self._stale.extend(self._kept.pop(line[0], ()))
        self._counted = dict.fromkeys([*self._counted, *fresh][-REMEMBERED:])

    def _stock_stamp(self) -> int:
        """When the table of stock was last written; 0 where there is none."""
        name = self._section.features.stock_table
        path = self._layout.table(name) if name else None
        return path.stat().st_mtime_ns if path and path.exists() else 0
