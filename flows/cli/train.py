"""`evergreen train`: the training flow."""

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evergreen.flows.cli.common import (
    INTERRUPTED,
    Names,
    find,
    me,
    one_thread,
    print_json,
    read_params,
    say,
)
from evergreen.flows.cli.status import print_champions
from evergreen.tasks.core.errors import ParamsError

if TYPE_CHECKING:
    from evergreen.flows.operations.status import Outcome
    from evergreen.tasks.core.paths import Layout


def train(
    names: Names = None,
    as_of: Annotated[
        str | None,
        typer.Option(help="Use data up to that day (YYYY-MM-DD): sets project.as_of in params.yaml, where DVC sees it."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Seconds from this command to the deployed model: sets NAME.tune.budget_seconds in params.yaml. With several "
            "problems: for the search, refit and evaluation of each.",
        ),
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Read databases again; changed files are noticed anyway.")] = False,
    no_deploy: Annotated[bool, typer.Option("--no-deploy", help="Register the models without deploying them.")] = False,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Train, judge, register and deploy. Fresh steps are skipped; an interrupted run resumes."""
    run(find(root), names or (), as_json=as_json, as_of=as_of, seconds=seconds, refresh=refresh, deploy=not no_deploy)


def run(
    place: "Layout",
    names: Sequence[str] = (),
    *,
    as_json: bool,
    as_of: str | None = None,
    seconds: float | None = None,
    refresh: bool = False,
    deploy: bool = True,
) -> None:
    """Train `names`, or all problems, and print the result. Raises typer.Exit where a branch failed."""
    from evergreen.flows.operations import event_snapshots
    from evergreen.flows.operations import status as results
    from evergreen.tasks.core.paths import locking
    from evergreen.tasks.data import snapshot
    from evergreen.tasks.search import time_budget

    began = time.time() - time.process_time()  # the imports of the command count
    params = read_params(place)
    problems = list(dict.fromkeys(names or params.problems))
    for name in problems:
        params.section(name)
    one_thread()
    if len(problems) > 1:
        os.environ.setdefault("EVERGREEN_WORKERS", "1")  # the branches share the cores
    with locking(place.var / "train.lock", "train"):
        if as_of:
            _set_as_of(place, as_of)
        if seconds:
            _set_seconds(place, problems, seconds)
        event_snapshots.update(place, params)
        refresh = refresh or snapshot.sources_changed(params, place)
        if not refresh and results.nothing_to_do(place, problems, deploy):
            outcomes = [results.Outcome(problem) for problem in problems]
        else:
            with time_budget.counting_from(began) if len(problems) == 1 else nullcontext():
                outcomes = _flow(place, problems, refresh, deploy)
        rows = {row.problem: row for row in results.rows(place, problems)}
    _report(outcomes, rows, place, as_json)


def _flow(place: "Layout", problems: list[str], refresh: bool, deploy: bool) -> "list[Outcome]":
    """Run the training flow and show it. The servers start first: prefect is imported while they do."""
    from evergreen.flows import fork_server
    from evergreen.flows.cli import progress
    from evergreen.flows.prefect_runtime import server

    with server.running(place, say) as prefect, fork_server.running(place.root):
        from evergreen.flows import steps, training

        try:
            with progress.shown(lambda: steps.here.get(None), problems):
                return training.run(place, problems, prefect, refresh=refresh, deploy=deploy, by=me())
        except KeyboardInterrupt:
            say("stopped. Finished steps stay; the same command resumes.")
            raise typer.Exit(INTERRUPTED) from None


def _report(outcomes: "Sequence[Outcome]", rows: dict[str, Any], place: "Layout", as_json: bool) -> None:
    failed = [each.error for each in outcomes if each.error]
    if as_json:
        results = {
            each.problem: {**dataclasses.asdict(each), "status": each.status, **dataclasses.asdict(rows[each.problem])}
            for each in outcomes
        }
        print_json({"ok": not failed, "page": str(place.page), "problems": results})
    else:
        print_champions(rows.values())
        if all(each.status == "unchanged" for each in outcomes):
            say("Nothing to do: everything is up to date. --refresh reads the sources again.")
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    if failed:
        raise typer.Exit(1)


def _set_as_of(place: "Layout", text: str) -> None:
    """Write project.as_of and say so: DVC and every step read it from params.yaml alone."""
    from evergreen.flows.operations.params_edit import set_as_of

    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ParamsError(f"--as-of {text}: not a day; write it as YYYY-MM-DD") from None
    before = read_params(place).project.as_of
    if day > date.today():
        raise ParamsError(f"--as-of {text}: lies after today, {date.today()}; name a day that has passed")
    if set_as_of(place.params, day):
        say(f"params.yaml: project.as_of = {day} (was {before or 'the newest day in the data'})")


def _set_seconds(place: "Layout", problems: Sequence[str], seconds: float) -> None:
    """Write tune.budget_seconds of `problems` and say so."""
    from evergreen.flows.operations.params_edit import set_seconds

    for name in problems:
        if set_seconds(place.params, name, seconds):
            say(f"params.yaml: {name}.tune.budget_seconds = {seconds:g}")
