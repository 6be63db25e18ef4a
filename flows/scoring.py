"""Batch scoring: the champion's answer to each row of a file, or a list to each of its users."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from flows import settings
from tasks import score
from tasks.errors import ModelError, ParamsError
from tasks.layout import Layout
from tasks.params import Params, Recommend
from tasks.problems.base import Data, Model


@dataclass(frozen=True)
class Lists:
    """How a recommender answers where it is not as in params; None and False: as there."""

    k: int | None = None
    as_of: date | None = None
    novel: bool = False
    because: bool = False

    def given(self) -> dict[str, Any]:
        """The options that say something."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}


def run(
    layout: Layout, params: Params, problem: str, data: Path, out: Path, version: int | None, lists: Lists = Lists()
) -> score.Result:
    """Score `data` into `out` with `version`, or the champion for None. Raises what tasks.score and the registry raise.

    A recommender reads the purchases of the event log too.
    """
    params, moved = _moved(layout, params, problem, lists)
    model, chosen = champion(layout, problem, version)
    return score.run(params, problem, layout, model, chosen, data, out, moved)


def champion(layout: Layout, problem: str, version: int | None) -> tuple[Model, int]:
    """The model of `version`, or the champion for None, and its number. Raises ModelError where nothing is deployed."""
    chosen = version or settings.deployments(layout).champion(problem)
    registry = settings.registry(layout)
    if chosen is None:
        refused = [f"v{each.version}" for each in registry.versions(problem)]
        way = f"the gate promoted none of {', '.join(refused)} (evergreen history {problem} says why); name a --version"
        raise ModelError(f"{problem}: nothing is deployed; {way if refused else f'run evergreen train {problem}'}")
    return registry.load(problem, chosen), chosen


def _moved(layout: Layout, params: Params, problem: str, lists: Lists) -> tuple[Params, Callable[[Data], Data]]:
    """The params as `lists` has them, and what brings the histories up to the day."""
    section = params.section(problem)
    if not isinstance(section, Recommend):
        for name in lists.given():
            raise ParamsError(f"--{name.replace('_', '-')}: {problem} is a problem of {params.kind(problem)} and has no lists")
        return params, lambda known: known
    if lists.k is not None and lists.k < 1:
        raise ParamsError(f"--k {lists.k}: a list holds at least 1 item")
    from tasks.problems.ranking import answering

    pipeline = section.pipeline if lists.k is None else section.pipeline.model_copy(update={"k": lists.k})
    wanted: dict[str, Any] = {"because": lists.because or section.answers.because}
    wanted |= {"show": "new"} if lists.novel else {}
    changed = section.model_copy(update={"pipeline": pipeline, "answers": section.answers.model_copy(update=wanted)})
    newer = settings.events(layout).since(problem)[0]
    return (
        params.model_copy(update={"sections": {**params.sections, problem: changed}}),
        partial(answering.moved, newer=newer, as_of=lists.as_of),
    )
