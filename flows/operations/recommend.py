"""Recommendations and purchase events for the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.flows import settings
from evergreen.flows.operations import batch_scoring
from evergreen.serving import recommender_service
from evergreen.serving.event_log import Withdrawal
from evergreen.serving.recommender_service import EventCounts, OnlineRecommender
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.recommender.list_request import Request
from evergreen.tasks.scoring import chunks


@dataclass(frozen=True)
class RecommendedLists:
    version: int
    lists: list[dict[str, Any]]
    """One per user and rank: user, rank, item, score, source, explanation."""
    notes: list[str]


def recommend(layout: Layout, params: Params, problem: str, wanted: Mapping[str, Any], version: int | None) -> RecommendedLists:
    """The lists of the champion, or of `version`. `wanted`: the fields of a Request.

    Raises ParamsError and DataError for an invalid request, ModelError if nothing is deployed.
    """
    section, request = recommender_service.section(params, problem), Request.read(wanted)
    model, chosen = batch_scoring.champion(layout, problem, version)
    lists = OnlineRecommender(params, problem, layout, model, chosen, settings.events(layout)).recommend(request)
    users = pl.Series(section.features.user, list(request.users) or [None], pl.String)
    notes = [str(note) for note in lists.notes]
    if lists.learned > lists.as_of:
        notes.append(
            f"version {chosen} was trained on purchases up to {lists.learned}: it has seen purchases after {lists.as_of}"
        )
    return RecommendedLists(chosen, lists.frame(users, section.features.item, True).to_dicts(), notes)


def record_events(layout: Layout, params: Params, problem: str, data: Path) -> EventCounts:
    """Write the purchase events of `data` (csv or parquet) to the log. Raises SourceError if the file cannot be read."""
    recommender_service.section(params, problem)
    given = chunks.read_all(data)
    return recommender_service.record(
        params, problem, recommender_service.load(params, problem, layout), settings.events(layout), given.iter_rows(named=True)
    )


def withdraw_events(layout: Layout, params: Params, problem: str, ids: Sequence[str]) -> Withdrawal:
    """Withdraw purchase events by id; servers follow within a second or two."""
    recommender_service.section(params, problem)
    return settings.events(layout).withdraw(problem, ids)
