"""A recommender asked from the command line, and told of new purchases."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from flows import scoring, settings
from serving import recommending
from serving.recommending import Observed, Recommendations
from tasks import blocks
from tasks.layout import Layout
from tasks.params import Params
from tasks.problems.ranking.answering import Request


@dataclass(frozen=True)
class Found:
    version: int
    lists: list[dict[str, Any]]
    """One per user and rank: user, rank, item, score, source, because."""
    notes: list[str]


def ask(layout: Layout, params: Params, problem: str, wanted: Mapping[str, Any], version: int | None) -> Found:
    """What the champion, or `version`, recommends. `wanted`: the fields of a Request.

    Raises ParamsError and DataError for a wish that is none, ModelError where nothing is deployed.
    """
    section, request = recommending.section(params, problem), Request.read(wanted)
    model, chosen = scoring.champion(layout, problem, version)
    answer = Recommendations(params, problem, layout, model, chosen, settings.events(layout)).answer(request)
    users = pl.Series(section.features.user, list(request.users) or [None], pl.String)
    notes = [str(note) for note in answer.notes]
    if answer.learned > answer.as_of:
        notes.append(f"version {chosen} learned from purchases up to {answer.learned}: it knows what came after {answer.as_of}")
    return Found(chosen, answer.frame(users, section.features.item, True).to_dicts(), notes)


def observe(layout: Layout, params: Params, problem: str, data: Path) -> Observed:
    """Write the purchases in `data` (csv or parquet) down. Raises SourceError where it cannot be read."""
    recommending.section(params, problem)
    given = blocks.whole(data)
    return recommending.record(
        params, problem, recommending.load(params, problem, layout), settings.events(layout), given.iter_rows(named=True)
    )
