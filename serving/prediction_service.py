"""Requests answered: by the version that the lineup picks, in batches, written down, and now and then looked at again.

Everything here runs in the thread of the event loop, and hands what takes long to threads of its own.
"""

import asyncio
import itertools
import logging
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from evergreen.serving import explanation
from evergreen.serving.batching import Batch
from evergreen.serving.loaded_model import Asked, Lists, Rows, Served, key_of
from evergreen.serving.metrics import Metrics
from evergreen.serving.protocols import Answered
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import EvergreenError, RequestError
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.label_matching import Label, LabelCounts
    from evergreen.monitoring.ledger.predictions import Ledger
    from evergreen.monitoring.ledger.spool import Spool
    from evergreen.serving.deployment_watcher import Lineup, Variant, Watch
    from evergreen.serving.recommender_service import Observed
    from evergreen.tasks.problems.recommender.list_builder import Request

log = logging.getLogger(__name__)
T = TypeVar("T")

FLUSH_SECONDS = 0.05
"""Predictions are written so often where nothing waits for it."""
SECOND = 1.0
COMPARE_SECONDS = 5.0
"""The pipeline answers again so often, all rows drawn meanwhile at once: it costs some 20 ms whatever their number."""
TOLERANCE = 1e-5
"""Largest difference between compiled model and pipeline; of a number above 1, in relation to it."""
MOST_COMPARED = 64
"""Most rows of a version that it answers again at a time."""


class UnknownError(Exception):
    """There is no such problem, version or address; status 404."""


class UnavailableError(Exception):
    """The request is in order, and cannot be answered now; status 503."""


class Answering:
    """What a worker does with requests. `journal`: None where predictions are not kept; `ledger`: takes late truths."""

    def __init__(
        self,
        params: Params,
        watch: "Watch[Served]",
        journal: "Spool | None",
        ledger: "Ledger | None",
        metrics: Metrics,
    ) -> None:
        self.params, self.metrics = params, metrics
        self._watch, self._journal, self._ledger, self._policy = watch, journal, ledger, params.serve
        self._stem, self._numbers = f"{secrets.token_hex(8)}-", itertools.count()
        self._models = ThreadPoolExecutor(1, "model")
        self._lists = ThreadPoolExecutor(1, "lists")
        self._others = ThreadPoolExecutor(2, "other")
        self._databases = ThreadPoolExecutor(4, "database")
        self._disk = ThreadPoolExecutor(1, "journal")
        self._unsafe: list[asyncio.Future[None]] = []
        self._flushing = False
        self._compared: list[tuple[Rows, Asked, Mapping[str, Any]]] = []
        self._share = params.serve.parity_share
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- rows ---------------------------------------------------------------------------------------------------------------

    async def row(self, problem: str, row: Mapping[str, Any], written: Any = None) -> Answered:
        """The answer to one row. `written`: the row as it came, where it may be written down so.

        Raises RequestError for a row that breaks a rule, UnavailableError where nothing answers.
        """
        lineup = self.lineup(problem)
        champion = lineup.champion
        if not isinstance(champion, Rows):
            return (await self.rows(problem, [row]))[0]
        id_ = self._stem + format(next(self._numbers), "x")
        if lineup.candidate is None:
            served, variant = champion, "champion"
        else:
            served, variant = lineup.pick(_entity(champion, row), id_)
            assert isinstance(served, Rows)
        served, variant, asked = _read_by(lineup, served, variant, row)
        said, served, variant = await self._said(lineup, served, variant, asked, row)
        if self._journal:
            features = written if written is not None and asked.features is row else asked.features
            self._put(id_, served, variant, asked.entity, features, said, asked.cutoff)
            if self._policy.durable:
                await self._safe()
        if served.compiled and self._share and random.random() < self._share:
            self._compared.append((served, asked, said))
        if lineup.shadow and lineup.candidate:
            self._aside(self._shadow(lineup, problem, row, id_))
        return Answered(id_, served.version, variant, said)

    async def rows(
        self, problem: str, rows: Sequence[Mapping[str, Any]], version: int | None = None, explain: bool = False
    ) -> list[Answered]:
        """The answers to `rows`, in their order; of the `version` named, which must be loaded, or of the one picked for each.

        Raises RequestError, which names the row, for the first that breaks a rule, and then answers none.
        """
        lineup = self.lineup(problem)
        if len(rows) > self._policy.max_rows:
            raise RequestError("rows", f"at most {self._policy.max_rows} at once (serve.max_rows)", len(rows))
        if isinstance(lineup.champion, Lists):
            return await self._rows_of_lists(problem, lineup, rows, version, explain)
        picked = [self._picked(problem, lineup, row, version) for row in rows]
        asked = list[Asked]()
        for place, (id_, served, variant) in enumerate(picked):
            served, variant, one = _read_of(lineup, served, variant, rows, place, version)
            picked[place] = id_, served, variant
            asked.append(one)
        if len(rows) <= self._policy.batch_rows:
            pairs = zip(picked, asked, rows, strict=True)
            found = await asyncio.gather(
                *(self._said(lineup, served, variant, one, row) for (_, served, variant), one, row in pairs)
            )
        else:
            found = await self._many(lineup, picked, asked, rows)
        answers = []
        for (id_, _, _), one, (said, served, variant) in zip(picked, asked, found, strict=True):
            self._put(id_, served, variant, one.entity, one.features, said, one.cutoff)
            if served.compiled and self._share and random.random() < self._share:
                self._compared.append((served, one, said))
            why = await self._apart(explanation.contributions, served, one) if explain else None
            answers.append(Answered(id_, served.version, variant, said, why))
        if lineup.shadow and lineup.candidate and version is None:
            for (id_, _, _), row in zip(picked, rows, strict=True):
                self._aside(self._shadow(lineup, problem, row, id_))
        await self._safe()
        return answers

    def lineup(self, problem: str) -> "Lineup[Served]":
        """Raises UnknownError for a problem that is none, UnavailableError where nothing is deployed."""
        found = self._watch.lineup(problem)
        if found is None:
            if problem not in self.params.problems:
                raise UnknownError(f"{problem[:64]}: no such problem; there are {', '.join(self.params.problems)}")
            raise UnavailableError(f"{problem}: no version answers; evergreen status and the server's log say why")
        return found

    def loaded(self, problem: str) -> "list[tuple[Served, Variant]]":
        """The versions in memory."""
        lineup = self._watch.lineup(problem)
        if lineup is None:
            return []
        found: list[tuple[Served, Variant]] = [(lineup.champion, "champion")]
        if lineup.candidate:
            found.append((lineup.candidate, "shadow" if lineup.shadow else "candidate"))
        return found

    def version(self, problem: str, version: int) -> "tuple[Served, Variant]":
        """Raises UnknownError where that version is not in memory."""
        self.lineup(problem)
        for served, variant in self.loaded(problem):
            if served.version == version:
                return served, variant
        there = ", ".join(f"v{served.version}" for served, _ in self.loaded(problem))
        raise UnknownError(f"{problem} v{version}: is not loaded; loaded are {there}")

    def _picked(
        self, problem: str, lineup: "Lineup[Served]", row: Mapping[str, Any], version: int | None
    ) -> "tuple[str, Rows, Variant]":
        id_ = self._new_id()
        if version is not None:
            served, variant = self.version(problem, version)
        else:
            served, variant = lineup.pick(_entity(lineup.champion, row), id_)
        assert isinstance(served, Rows)
        return id_, served, variant

    async def _said(
        self, lineup: "Lineup[Served]", served: Rows, variant: "Variant", asked: Asked, row: Mapping[str, Any]
    ) -> "tuple[Mapping[str, Any], Rows, Variant]":
        """What is said, and by whom: a candidate that fails leaves the request to the champion."""
        begun = time.perf_counter()
        try:
            said = await self._batch(served).ask(asked)
            _require_sound(said)
        except Exception as error:
            lineup.note(variant, time.perf_counter() - begun, True)
            self.metrics.failures[served.problem, served.version, variant] += 1
            champion = lineup.champion
            if served is champion or not isinstance(champion, Rows):
                raise UnavailableError(f"{served.problem}: v{served.version} gave no answer") from error
            log.warning("%s v%d: gave no answer, and the champion did: %r", served.problem, served.version, error)
            return await self._said(lineup, champion, "champion", champion.read(row), row)
        lineup.note(variant, time.perf_counter() - begun)
        self.metrics.rows[served.problem, served.version, variant] += 1
        return said, served, variant

    async def _many(
        self,
        lineup: "Lineup[Served]",
        picked: "Sequence[tuple[str, Rows, Variant]]",
        asked: Sequence[Asked],
        rows: Sequence[Mapping[str, Any]],
    ) -> "list[tuple[Mapping[str, Any], Rows, Variant]]":
        """Many rows of one request, apart from the loop, so that others need not wait for them."""
        found: list[Any] = [None] * len(asked)
        for served in {served for _, served, _ in picked}:
            places = [place for place, each in enumerate(picked) if each[1] is served]
            begun = time.perf_counter()
            try:
                answers = await self._apart(served.answer, [asked[place] for place in places])
                for said in answers:
                    _require_sound(said)
            except Exception:  # noqa: BLE001 - each row is asked alone then
                answers = []
            if not answers:
                for place in places:
                    found[place] = await self._said(lineup, served, picked[place][2], asked[place], rows[place])
                continue
            each = (time.perf_counter() - begun) / len(places)
            for place, said in zip(places, answers, strict=True):
                variant = picked[place][2]
                lineup.note(variant, each)
                self.metrics.rows[served.problem, served.version, variant] += 1
                found[place] = (said, served, variant)
            self.metrics.batch(served.problem, len(places))
        return found

    def _batch(self, served: Rows) -> "Batch[Asked]":
        if served.batch is None:
            policy = self._policy
            aside = None if served.compiled else self._models
            served.batch = Batch(served.answer, policy.batch_rows, policy.batch_wait_ms / 1000, aside)
        return served.batch

    async def _shadow(self, lineup: "Lineup[Served]", problem: str, row: Mapping[str, Any], id_: str) -> None:
        """What the candidate would have said, for the ledger alone. `id_`: of the champion's answer."""
        served = lineup.candidate
        assert isinstance(served, Rows)
        begun, failed = time.perf_counter(), True
        try:
            asked = served.read(row)
            said = await self._batch(served).ask(asked)
            _require_sound(said)
            failed = False
            self._put(id_ + SHADOW_SUFFIX, served, "shadow", asked.entity, asked.features, said, asked.cutoff)
            self.metrics.rows[problem, served.version, "shadow"] += 1
        except Exception as error:  # noqa: BLE001 - it is the shadow's own affair
            self.metrics.failures[problem, served.version, "shadow"] += 1
            log.warning("%s v%d: as a shadow gave no answer: %r", problem, served.version, error)
        lineup.note("shadow", time.perf_counter() - begun, failed)

    # --- lists --------------------------------------------------------------------------------------------------------------

    async def recommend(self, problem: str, request: "Request", version: int | None = None) -> list[dict[str, Any]]:
        """A list for each user of the request: id, version, variant, user, items (item, score, source, explanation), notes."""
        lineup = self.lineup(problem)
        users = list(request.users) or [None]
        if len(users) > self._policy.max_rows:
            raise RequestError("users", f"at most {self._policy.max_rows} at once (serve.max_rows)", len(users))
        for user in users:
            if user is not None and not isinstance(user, str | int | float):
                raise RequestError("users", "must be texts or numbers, the keys of users", user)
        ids = [self._new_id() for _ in users]
        entities = [None if each is None else key_of(each) for each in users]
        if version is not None:
            chosen = [self.version(problem, version)] * len(users)
        else:
            chosen = [lineup.pick(entity, id_) for entity, id_ in zip(entities, ids, strict=True)]
        found: list[Any] = [None] * len(users)
        for served, variant in dict.fromkeys(chosen):
            places = [place for place, each in enumerate(chosen) if each == (served, variant)]
            part = request.model_copy(update={"users": tuple(users[place] for place in places)})
            lists, who, how = await self._listed(lineup, served, variant, part)
            for place, one in zip(places, lists, strict=True):
                found[place] = {"id": ids[place], "version": who.version, "variant": how, **one}
                self._put_list(ids[place], who, how, entities[place], request, one)
        if lineup.shadow and lineup.candidate and version is None:
            self._aside(self._shadow_lists(lineup, request, entities, ids))
        await self._safe()
        return found

    async def _listed(
        self, lineup: "Lineup[Served]", served: Served, variant: "Variant", request: "Request"
    ) -> "tuple[list[dict[str, Any]], Lists, Variant]":
        if not isinstance(served, Lists):
            raise UnknownError(f"{served.problem}: gives no lists; POST rows to /v1/predict/{served.problem}")
        begun = time.perf_counter()
        try:
            lists = served.kept(request)
            if lists is None:
                lists = await asyncio.get_running_loop().run_in_executor(self._lists, served.lists, request)
        except EvergreenError:
            raise  # what the request asks for cannot be
        except Exception as error:
            lineup.note(variant, time.perf_counter() - begun, True)
            self.metrics.failures[served.problem, served.version, variant] += 1
            if served is lineup.champion:
                raise UnavailableError(f"{served.problem}: v{served.version} gave no answer") from error
            log.warning("%s v%d: gave no answer, and the champion did: %r", served.problem, served.version, error)
            return await self._listed(lineup, lineup.champion, "champion", request)
        lineup.note(variant, time.perf_counter() - begun)
        self.metrics.rows[served.problem, served.version, variant] += len(lists)
        return lists, served, variant

    async def _shadow_lists(
        self, lineup: "Lineup[Served]", request: "Request", entities: Sequence[str | None], ids: Sequence[str]
    ) -> None:
        served = lineup.candidate
        assert isinstance(served, Lists)
        begun, failed = time.perf_counter(), True
        try:
            lists = await asyncio.get_running_loop().run_in_executor(self._lists, served.lists, request)
            failed = False
            for id_, entity, one in zip(ids, entities, lists, strict=True):
                self._put_list(id_ + SHADOW_SUFFIX, served, "shadow", entity, request, one)
        except Exception as error:  # noqa: BLE001 - it is the shadow's own affair
            log.warning("%s v%d: as a shadow gave no answer: %r", served.problem, served.version, error)
        lineup.note("shadow", time.perf_counter() - begun, failed)

    async def _rows_of_lists(
        self, problem: str, lineup: "Lineup[Served]", rows: Sequence[Mapping[str, Any]], version: int | None, explain: bool
    ) -> list[Answered]:
        """A row names a user, and nothing else: for protocols that know rows alone."""
        from evergreen.tasks.problems.recommender.list_builder import Request

        champion = lineup.champion
        assert isinstance(champion, Lists)
        for row in rows:
            for name in row:
                if name != champion.user:
                    raise RequestError(
                        name, f"a row of {problem} names {champion.user} alone; /v1/recommend takes more", row[name]
                    )
        users = tuple(row.get(champion.user) for row in rows)
        if not users:
            return []
        lists = await self.recommend(problem, Request.read({"users": users, "explain": explain}), version)
        answers = []
        for each in lists:
            said = {"prediction": [one["item"] for one in each["items"]], "scores": [one["score"] for one in each["items"]]}
            why = [{"item": one["item"], "explanation": one["explanation"]} for one in each["items"]] if explain else None
            answers.append(Answered(each["id"], each["version"], each["variant"], said, why))
        return answers

    async def observe(self, problem: str, events: Sequence[Mapping[str, Any]]) -> "Observed":
        """Purchases: when this returns they last, and count in the next list of each version."""
        lineup = self.lineup(problem)
        champion = lineup.champion
        if not isinstance(champion, Lists):
            raise UnknownError(f"{problem}: gives no lists, and takes no purchases")
        observed = await self._in_database(champion.recommendations.observe, events)
        if isinstance(lineup.candidate, Lists):
            await self._in_database(lineup.candidate.recommendations.refresh)
        asyncio.get_running_loop().run_in_executor(self._lists, champion.recommendations.renew)
        return observed

    # --- truths -------------------------------------------------------------------------------------------------------------

    async def label(self, problem: str, labels: Sequence["Label"]) -> "LabelCounts":
        """Late labels: when this returns they are stored."""
        if problem not in self.params.problems:
            raise UnknownError(f"{problem[:64]}: no such problem; there are {', '.join(self.params.problems)}")
        if self._ledger is None:
            raise UnavailableError("serve.ledger is false: no predictions are kept, so labels match nothing")
        return await self._in_database(self._ledger.add_labels, problem, labels)

    # --- what is written ----------------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        return self._stem + format(next(self._numbers), "x")

    def _put(
        self,
        id_: str,
        served: Served,
        variant: "Variant",
        entity: str | None,
        features: Any,
        said: Mapping[str, Any],
        cutoff: date | None = None,
    ) -> None:
        if self._journal:
            self._journal.put(id_, served.problem, served.version, variant, datetime.now(UTC), entity, features, said, cutoff)

    def _put_list(
        self, id_: str, served: Lists, variant: "Variant", entity: str | None, request: "Request", one: Mapping[str, Any]
    ) -> None:
        asked = request.model_dump(mode="json", exclude={"users", "explain"}, exclude_defaults=True)
        said = {"items": [each["item"] for each in one["items"]], "scores": [each["score"] for each in one["items"]]}
        self._put(id_, served, variant, entity, asked, said, one["as_of"])

    async def _safe(self) -> None:
        """Return when what was put is on disk, where that is asked for: all that wait are written together."""
        if self._journal is None or not self._policy.durable:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._unsafe.append(future)
        if not self._flushing:
            self._flushing = True
            self._aside(self._make_safe(loop))
        await future

    async def _make_safe(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._journal
        try:
            while self._unsafe:
                part, self._unsafe = self._unsafe, []
                trouble: Exception | None = None
                try:
                    await loop.run_in_executor(self._disk, self._journal.flush)
                except EvergreenError as error:
                    log.error("%s", error)
                    trouble = UnavailableError("the prediction cannot be written down, and serve.durable asks for that")
                for each in part:
                    if not each.done():
                        each.set_exception(trouble) if trouble else each.set_result(None)
        finally:
            self._flushing = False

    # --- beside the requests ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Write and look regularly from now on. Call it in the event loop."""
        self._aside(self._regularly(FLUSH_SECONDS, self._flush))
        self._aside(self._regularly(SECOND, self._refresh))
        self._aside(self._regularly(COMPARE_SECONDS, self._compare))

    async def end(self) -> None:
        """Write what waits; when this returns nothing is left to lose."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._journal:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._journal.close)
        self._collect()
        self.metrics.save()
        for each in (self._models, self._lists, self._others, self._databases, self._disk):
            each.shutdown(wait=False, cancel_futures=True)

    async def _regularly(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except EvergreenError as error:
                log.error("%s", error)
            except Exception:
                log.exception("%s failed", getattr(work, "__name__", work))

    async def _flush(self) -> None:
        if self._journal and not self._policy.durable:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._journal.flush)

    async def _refresh(self) -> None:
        self._collect()
        self.metrics.save()
        for served in self._everyone():
            if isinstance(served, Lists):
                await self._in_database(served.recommendations.refresh)
            elif isinstance(served, Rows) and served.newest:
                await self._in_database(served.newest.refresh)

    def _collect(self) -> None:
        """Take the sizes of batches into the metrics."""
        for served in self._everyone():
            if isinstance(served, Rows) and served.batch:
                for size, times in served.batch.sizes.items():
                    self.metrics.batch(served.problem, size, times)
                served.batch.sizes.clear()

    def _everyone(self) -> list[Served]:
        return [served for problem in self.params.problems for served, _ in self.loaded(problem)]

    async def _compare(self) -> None:
        """Let pipelines answer what was drawn since the last time."""
        drawn, self._compared = self._compared, []
        for served in {served for served, _, _ in drawn}:
            mine = [(asked, said) for each, asked, said in drawn if each is served][:MOST_COMPARED]
            again = await self._apart(served.answer_by_pipeline, [asked for asked, _ in mine])
            for (_, said), other in zip(mine, again, strict=True):
                far = difference(said, other)
                self.metrics.compared(served.problem, far, TOLERANCE)
                if far > TOLERANCE:
                    log.error("%s v%d: compiled model and pipeline differ by %.2g", served.problem, served.version, far)

    async def _apart(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._others, work, *given)

    async def _in_database(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._databases, work, *given)

    def _aside(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> float:
    """Largest between the numbers of two answers; of a number above 1, in relation to it; infinite where a group differs.

    A class that differs where the probabilities do not lies on the threshold and is no difference.
    """
    names = [name for name in one if name != "prediction"] or ["prediction"]
    found = 0.0
    for name in names:
        first, second = one[name], two[name]
        if isinstance(first, float) or isinstance(second, float):
            found = max(found, abs(first - second) / max(1.0, abs(second)))
        elif first != second:
            return math.inf
    return found


def _entity(served: Served, row: Mapping[str, Any]) -> str | None:
    name = served.entity if isinstance(served, Rows) else None
    value = row.get(name) if name else None
    return None if value is None else key_of(value)


def _read_by(
    lineup: "Lineup[Served]", served: Rows, variant: "Variant", row: Mapping[str, Any]
) -> "tuple[Rows, Variant, Asked]":
    """The row as the version picked takes it. Where a candidate does not take it and the champion does, the champion's it is.

    Raises RequestError for a row that is at fault itself.
    """
    try:
        return served, variant, served.read(row)
    except RequestError:
        champion = lineup.champion
        if served is champion or not isinstance(champion, Rows):
            raise
        asked = champion.read(row)
        lineup.note(variant, 0.0, True)
        return champion, "champion", asked


def _read_of(
    lineup: "Lineup[Served]",
    served: Rows,
    variant: "Variant",
    rows: Sequence[Mapping[str, Any]],
    place: int,
    version: int | None,
) -> "tuple[Rows, Variant, Asked]":
    """One of several rows; a `version` that was named answers itself."""
    try:
        if version is not None:
            return served, variant, served.read(rows[place])
        return _read_by(lineup, served, variant, rows[place])
    except RequestError as error:
        error.row = place
        raise


def _require_sound(said: Mapping[str, Any]) -> None:
    for value in said.values():
        if type(value) is float and not math.isfinite(value):
            raise ValueError("an answer is not a finite number")
