"""Recommendation lists over HTTP: version chosen per user, cached, written to the spool, shadowed; and purchase events."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from evergreen.serving.background_work import BackgroundWork
from evergreen.serving.loaded_model import ListModel, LoadedModel, entity_key
from evergreen.serving.metrics import Metrics
from evergreen.serving.prediction_writer import PredictionWriter
from evergreen.serving.protocols import RowPrediction
from evergreen.serving.serving_versions import NotFoundError, ServiceUnavailableError, ServingVersions
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import EvergreenError, RequestError
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX

if TYPE_CHECKING:
    from evergreen.serving.event_log import Withdrawal
    from evergreen.serving.recommender_service import EventCounts, OnlineRecommender
    from evergreen.serving.serving_set import ServingSet, Variant
    from evergreen.tasks.problems.recommender.list_request import Request

    Serving = ServingSet[LoadedModel]

log = logging.getLogger(__name__)
USERS_PER_TURN = 16
"""Lists that are made in one go: then it is the next caller's turn."""
T = TypeVar("T")


class ListPredictor:
    """Recommends with the versions that serve."""

    def __init__(
        self, params: Params, versions: ServingVersions, writer: PredictionWriter, metrics: Metrics, background: BackgroundWork
    ) -> None:
        self._params, self._policy, self._versions, self._writer = params, params.serve, versions, writer
        self._metrics, self._background = metrics, background

    async def recommend(self, problem: str, request: "Request", version: int | None = None) -> list[dict[str, Any]]:
        """One list per user of the request: id, version, variant, and what ListModel.recommend gives."""
        serving = self._versions.serving_set(problem)
        users = list(request.users) or [None]
        self._check_size(request.k)
        self._check_users(users, request.k or self._k(problem))
        ids = [self._writer.new_id() for _ in users]
        entities = [None if each is None else entity_key(each) for each in users]
        if version is not None:
            chosen = [self._versions.version(problem, version)] * len(users)
        else:
            chosen = [serving.choose(entity, id_) for entity, id_ in zip(entities, ids, strict=True)]
        found: list[Any] = [None] * len(users)
        for model, variant in dict.fromkeys(chosen):
            places = [place for place, each in enumerate(chosen) if each == (model, variant)]
            part = request.model_copy(update={"users": tuple(users[place] for place in places)})
            lists, used, used_variant = await self._recommend(serving, model, variant, part)
            for place, one in zip(places, lists, strict=True):
                found[place] = {"id": ids[place], "version": used.version, "variant": used_variant, **one}
                self._record(ids[place], used, used_variant, entities[place], request, one)
        if serving.candidate is not None and version is None:
            if serving.shadow:
                self._background.start(self._shadow(serving, request, entities, ids))
            if serving.counts.probes.due():
                self._background.start(self._probe(serving, request))
        await self._writer.until_durable()
        return found

    def _check_size(self, k: int | None) -> None:
        if k is not None and k > self._policy.max_k:
            raise RequestError("k", f"at most {self._policy.max_k} items per list (serve.max_k)", k)

    def _k(self, problem: str) -> int:
        """The length of a list that asks for none."""
        section = self._params.section(problem)
        return section.pipeline.k if section.predicts == "lists" else 1

    def _record(
        self, id_: str, model: LoadedModel, variant: "Variant", entity: str | None, request: "Request", one: Mapping[str, Any]
    ) -> None:
        """Write a list; its cutoff is the day that it was asked for, or that params fix; else it has none."""
        cutoff = request.as_of or (one["as_of"] if self._params.project.as_of else None)
        self._writer.write_list(id_, model, variant, entity, request, one, cutoff)

    def _check_users(self, users: Sequence[Any], k: int) -> None:
        if len(users) > self._policy.max_rows:
            raise RequestError("users", f"at most {self._policy.max_rows} per request (serve.max_rows)", len(users))
        if len(users) * k > self._policy.max_items:
            raise RequestError("users", f"users times k: at most {self._policy.max_items} (serve.max_items)", len(users) * k)
        for user in users:
            if user is not None and not isinstance(user, str | int | float):
                raise RequestError("users", "must be user ids: texts or numbers", user)

    async def _recommend(
        self, serving: "Serving", model: LoadedModel, variant: "Variant", request: "Request"
    ) -> "tuple[list[dict[str, Any]], ListModel, Variant]":
        """The lists, and the version that made them: if a candidate fails, the champion recommends."""
        if not isinstance(model, ListModel):
            raise NotFoundError(f"{model.problem}: has no lists; POST rows to /v1/predict/{model.problem}")
        try:
            lists = model.cached(request)
            if lists is None:
                lists = await self._in_turns(model, request)
        except EvergreenError:
            raise  # the request is invalid
        except Exception as error:
            serving.record(variant, True)
            self._metrics.failures[model.problem, model.version, variant] += 1
            if model is serving.champion:
                raise ServiceUnavailableError(f"{model.problem}: v{model.version} failed to recommend") from error
            log.warning("%s v%d: failed to recommend; the champion did instead: %r", model.problem, model.version, error)
            return await self._recommend(serving, serving.champion, "champion", request)
        serving.record(variant)
        self._metrics.rows[model.problem, model.version, variant] += len(lists)
        return lists, model, variant

    async def _in_turns(self, model: ListModel, request: "Request") -> list[dict[str, Any]]:
        """The lists of a request, some users at a time."""
        users, found = request.users, list[dict[str, Any]]()
        for first in range(0, max(1, len(users)), USERS_PER_TURN):
            part = request.model_copy(update={"users": users[first : first + USERS_PER_TURN]})
            found += await self._background.lists.run(model.recommend, part)
        return found

    async def _probe(self, serving: "Serving", request: "Request") -> None:
        """Time both versions on the same request, without their caches."""
        pair = serving.champion, serving.candidate
        calls = [partial(each.recommender.build, request) for each in pair if isinstance(each, ListModel)]
        with suppress(Exception):  # a request that fails is counted where it is answered
            await self._background.lists.run(serving.counts.probes.measure, *calls)

    async def _shadow(self, serving: "Serving", request: "Request", entities: Sequence[str | None], ids: Sequence[str]) -> None:
        """Without exploration, whose draws would be those of the champion: see monitoring.rollout.off_policy."""
        model, request = serving.candidate, request.model_copy(update={"explore": 0.0})
        assert isinstance(model, ListModel)
        failed = True
        try:
            lists = await self._in_turns(model, request)
            failed = False
            for id_, entity, one in zip(ids, entities, lists, strict=True):
                self._record(id_ + SHADOW_SUFFIX, model, "shadow", entity, request, one)
        except Exception as error:  # noqa: BLE001 - a shadow must not affect the response
            log.warning("%s v%d: the shadow failed to recommend: %r", model.problem, model.version, error)
        serving.record("shadow", failed)

    async def predict_rows(
        self, problem: str, champion: ListModel, rows: Sequence[Mapping[str, Any]], version: int | None, explain: bool
    ) -> list[RowPrediction]:
        """Lists for rows that name a user, for protocols that know only rows."""
        from evergreen.tasks.problems.recommender.list_request import Request

        for row in rows:
            for name in row:
                if name != champion.user:
                    rule = f"a row of {problem} has only {champion.user}; /v1/recommend takes more"
                    raise RequestError(name, rule, row[name])
        users = tuple(row.get(champion.user) for row in rows)
        if not users:
            return []
        lists = await self.recommend(problem, Request.read({"users": users, "explain": explain}), version)
        predictions = []
        for each in lists:
            items = each["items"]
            output = {"prediction": [one["item"] for one in items], "scores": [one["score"] for one in items]}
            reasons = [{"item": one["item"], "explanation": one["explanation"]} for one in items] if explain else None
            predictions.append(RowPrediction(each["id"], each["version"], each["variant"], output, reasons))
        return predictions

    async def record_events(self, problem: str, events: Sequence[Mapping[str, Any]]) -> "EventCounts":
        """Store purchase events; once this returns they are durable, and the next list of each version uses them."""
        return await self._change_events(problem, lambda recommender: recommender.record_events(events))

    async def withdraw_events(self, problem: str, ids: Sequence[str]) -> "Withdrawal":
        """Withdraw purchase events by id; once this returns, the next list of each version is as if they had never been."""
        return await self._change_events(problem, lambda recommender: recommender.withdraw_events(ids))

    async def _change_events(self, problem: str, change: "Callable[[OnlineRecommender], T]") -> T:
        serving = self._versions.serving_set(problem)
        champion = serving.champion
        if not isinstance(champion, ListModel):
            raise NotFoundError(f"{problem}: takes no events; recommenders and problems with answers.features: fresh do")
        database = self._background.database
        found = await self._background.run(database, change, champion.recommender)
        if isinstance(serving.candidate, ListModel):
            await self._background.run(database, serving.candidate.recommender.refresh)
        self._background.start(self._background.lists.run(champion.recommender.refill_cache))
        return found
