"""A recommender asked from the command line, and told of new purchases."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.flows import settings
from evergreen.flows.operations import batch_scoring
from evergreen.serving import recommender_service
from evergreen.serving.recommender_service import Observed, Recommendations
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.recommender.list_builder import Request
from evergreen.tasks.scoring import chunks


@dataclass(frozen=True)
class Found:
    version: int
    lists: list[dict[str, Any]]
    """One per user and rank: user, rank, item, score, source, explanation."""
    notes: list[str]


def ask(layout: Layout, params: Params, problem: str, wanted: Mapping[str, Any], version: int | None) -> Found:
    """What the champion, or `version`, recommends. `wanted`: the fields of a Request.

    Raises ParamsError and DataError for a wish that is none, ModelError where nothing is deployed.
    """
    section, request = recommender_service.section(params, problem), Request.read(wanted)
    model, chosen = batch_scoring.champion(layout, problem, version)
    answer = Recommendations(params, problem, layout, model, chosen, settings.events(layout)).answer(request)
    users = pl.Series(section.features.user, list(request.users) or [None], pl.String)
    notes = [str(note) for note in answer.notes]
    if answer.learned > answer.as_of:
        notes.append(f"version {chosen} learned from purchases up to {answer.learned}: it knows what came after {answer.as_of}")
    return Found(chosen, answer.frame(users, section.features.item, True).to_dicts(), notes)


def observe(layout: Layout, params: Params, problem: str, data: Path) -> Observed:
    """Write the purchases in `data` (csv or parquet) down. Raises SourceError where it cannot be read."""
    recommender_service.section(params, problem)
    given = chunks.whole(data)
    return recommender_service.record(
        params, problem, recommender_service.load(params, problem, layout), settings.events(layout), given.iter_rows(named=True)
    )
