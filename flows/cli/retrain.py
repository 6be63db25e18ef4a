"""`evergreen retrain`: train and judge a challenger, or cancel that."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evergreen.flows.cli.common import Name, me, number, open_problem, print_json, print_table, say
from evergreen.tasks.core.errors import ParamsError, ProjectError

if TYPE_CHECKING:
    from evergreen.tasks.core.paths import Layout


def retrain(
    name: Name,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the history.", show_default=False)] = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel the retraining that runs, waits or was killed; it stays cancelled.")
    ] = False,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Train a challenger on the data known now. The gate judges it; the champion serves until the challenger is promoted."""
    from evergreen.flows.cli import progress

    place, _ = open_problem(root, name)
    if cancel:
        _cancel(place, name, f"{me()}: {reason}" if reason else me(), as_json)
        return
    if not reason:
        raise ParamsError("--reason: missing; say why, for the history")

    def start() -> Any:
        from evergreen.flows import current_project, retraining

        with current_project.calling(place) as root:
            return retraining.retraining(root, name, reason, by=me(), trigger=retraining.PERSON, return_state=True)

    done = progress.run_flow(place, [name], start, "stopped. The same command resumes.")
    show(name, done, as_json)


def show(name: str, done: dict[str, Any], as_json: bool) -> None:
    """Print the outcome of a retraining, as its flow returns it."""
    if as_json:
        print_json(done)
        return
    version = f"v{done['version']}" if done["version"] else ""
    promoted = {True: "yes", False: "no", None: ""}[done["promoted"]]
    print_table(
        ("problem", "challenger", "promoted", "CPU min", "why"),
        [(name, version, promoted, number(done["cpu_minutes"]), done["outcome"])],
    )


def _cancel(place: "Layout", name: str, by: str, as_json: bool) -> None:
    """Cancel the unfinished retrainings of a problem, and their runs on a Prefect server. Raises ProjectError without any.

    `by`: stands in the history, with the reason where there is one.
    """
    from evergreen.flows import settings
    from evergreen.flows.prefect_runtime import server

    decisions, runs = settings.decision_log(place), 0
    records = decisions.unfinished([name])
    for each in records:
        decisions.cancel(each, by)
    if url := server.address(place):
        os.environ["PREFECT_API_URL"] = url  # Prefect reads it when it is first imported
        from evergreen.flows.prefect_runtime import cancellation

        runs = cancellation.cancel_runs(place, name)
    if not records and not runs:
        raise ProjectError(f"{name}: nothing to cancel: no retraining runs, waits or was left unfinished")
    if as_json:
        print_json({"problem": name, "retrainings": [each.id for each in records], "runs": runs})
        return
    for each in records:
        say(f"{name}: cancelled: the retraining of {each.started:%Y-%m-%d %H:%M}, by {each.by}: {each.reason}")
    if runs:
        say(f"{name}: cancelled: {runs} run{'s' if runs > 1 else ''} on {url}")
