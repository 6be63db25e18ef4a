"""Batch scoring: predictions for the rows of a file, or for all entities of the newest features, also into the ledger."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

from evergreen.flows import settings
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ModelError, ParamsError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import Data, Model
from evergreen.tasks.scoring import batch
from evergreen.tasks.scoring.scorer import LedgerFrame, Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lists:
    """How a recommender answers where it is not as in params; None and False: as there."""

    k: int | None = None
    as_of: date | None = None
    novel: bool = False
    explain: bool = False

    def given(self) -> dict[str, Any]:
        """The options that are set."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}


def run(
    layout: Layout,
    params: Params,
    problem: str,
    data: Path,
    out: Path,
    version: int | None,
    lists: Lists = Lists(),
    *,
    ledger: bool = True,
    say: Callable[[str], None] = log.info,
) -> batch.Result:
    """Score `data` into `out` with `version`, or the champion for None. A recommender reads the event log too.

    `ledger`: also write the predictions there. `say`: receives the progress. Raises the errors of scoring.batch, the registry
    and the ledger.
    """
    return file_scorer(layout, params, problem, version, lists, ledger=ledger, say=say)(data, out)


def file_scorer(
    layout: Layout,
    params: Params,
    problem: str,
    version: int | None,
    lists: Lists = Lists(),
    *,
    ledger: bool = True,
    say: Callable[[str], None] = log.info,
) -> Callable[[Path, Path], batch.Result]:
    """What scores a file into another, as `run` does; it loads the model once for several files."""
    made = _scorer(layout, params, problem, version, lists)
    record = _recorder(layout, problem, made.version) if ledger else None
    context = f"{lists.as_of} {settings.events(layout).fingerprint(problem) if made.section.predicts == 'lists' else ''}"
    return partial(batch.run, made, record=record, context=context, say=say)


def newest(
    layout: Layout,
    params: Params,
    problem: str,
    *,
    out: Path | None = None,
    version: int | None = None,
    lists: Lists = Lists(),
    at: datetime | None = None,
    ledger: bool = True,
) -> batch.Result:
    """Score all entities of the newest features with `version`, or the champion for None, into `out`.

    `out`: None: data/scores/PROBLEM.parquet: key, cutoff and prediction per row. `lists.as_of`: last day of the features,
    inclusive. `ledger`: also write the predictions there, at the time `at` (now for None); repeated calls with the same version
    and cutoff write them once. Raises the errors of tasks.scoring.batch, the registry and the ledger.
    """
    made = _scorer(layout, params, problem, version, lists, anybody=True)
    place = out or layout.scores(problem)
    return batch.score_newest(
        made, place, lists.as_of, _recorder(layout, problem, made.version) if ledger else None, at or datetime.now(UTC)
    )


def _scorer(layout: Layout, params: Params, problem: str, version: int | None, lists: Lists, anybody: bool = False) -> Scorer:
    """The scorer of a version, with its compiled model if there is one. `anybody`: score all entities; then an event problem
    takes a day, too."""
    params, moved = _moved(layout, params, problem, lists, anybody)
    model, chosen = champion(layout, problem, version)
    lists_alone = params.section(problem).predicts == "lists"  # they come from live histories
    registry = settings.registry(layout)
    compiled = None if lists_alone else registry.load_compiled(problem, chosen)
    optional = () if lists_alone else registry.model_input(problem, chosen).optional
    return Scorer(params, problem, layout, model, chosen, compiled, optional, moved)


def _recorder(layout: Layout, problem: str, version: int) -> batch.Record:
    """A function that writes predictions to the ledger."""
    ledger = settings.ledger(layout)

    def record(rows: LedgerFrame, at: datetime) -> int:
        common = {"at": at, "key": rows.key, "features": rows.features, "outputs": rows.outputs}
        return sum(ledger.append_frame(problem, version, part, cutoff=cutoff, **common) for cutoff, part in rows.by_cutoff())

    return record


def champion(layout: Layout, problem: str, version: int | None) -> tuple[Model, int]:
    """The model of `version`, or the champion for None, and its number. Raises ModelError where nothing is deployed."""
    number = chosen(layout, problem, version)
    return settings.registry(layout).load(problem, number), number


def chosen(layout: Layout, problem: str, version: int | None) -> int:
    """`version`, or the champion for None. Raises ModelError where nothing is deployed."""
    number = version or settings.deployments(layout).champion(problem)
    if number is None:
        refused = [f"v{each.version}" for each in settings.registry(layout).versions(problem)]
        way = f"the gate promoted none of {', '.join(refused)} (evergreen history {problem} says why); name a --version"
        raise ModelError(f"{problem}: nothing is deployed; {way if refused else f'run evergreen train {problem}'}")
    return number


def _moved(layout: Layout, params: Params, problem: str, lists: Lists, anybody: bool) -> tuple[Params, Callable[[Data], Data]]:
    """The params as `lists` has them, and what brings the histories up to the day."""
    section = params.section(problem)
    if section.predicts == "rows":
        for name in lists.given().keys() - ({"as_of"} if anybody else set()):
            raise ParamsError(f"--{name.replace('_', '-')}: {problem} is a problem of {params.kind(problem)} and has no lists")
        return params, lambda known: known
    if lists.k is not None and lists.k < 1:
        raise ParamsError(f"--k {lists.k}: a list holds at least 1 item")
    from evergreen.tasks.problems.recommender import list_builder

    pipeline = section.pipeline if lists.k is None else section.pipeline.model_copy(update={"k": lists.k})
    wanted: dict[str, Any] = {"explain": lists.explain or section.lists.explain}
    wanted |= {"show": "discover"} if lists.novel else {}
    changed = section.model_copy(update={"pipeline": pipeline, "lists": section.lists.model_copy(update=wanted)})
    newer = settings.events(layout).since(problem).lines
    return (
        params.model_copy(update={"sections": {**params.sections, problem: changed}}),
        partial(list_builder.moved, newer=newer, as_of=lists.as_of),
    )
