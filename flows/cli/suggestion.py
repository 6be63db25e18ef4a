"""`evergreen suggestion`: show or answer a suggested retraining."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from evergreen.flows.cli.common import Name, me, open_problem, print_json, say, short

Act = Annotated[
    Literal["status", "approve", "decline", "snooze"],
    typer.Argument(help="status shows the suggestion; the others need --reason."),
]


def suggestion(
    act: Act,
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    days: Annotated[int, typer.Option(min=1, help="With snooze: ask again after so many days.")] = 7,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Show or answer a suggested retraining: status, approve (retrains now), decline, snooze."""
    from evergreen.flows.operations import suggestions

    place, params = open_problem(root, name)
    if act == "status":
        run = suggestions.pending(place, params, name)
        if as_json:
            print_json({"problem": name, "suggestion": run and run.decision.model_dump(mode="json")})
        else:
            say(f"{name}: {short(run.decision.at)}: {run.decision.reason}" if run else f"{name}: no suggestion waits")
        return
    run = suggestions.require(place, params, name)
    answer = suggestions.answer(place, params, name, act, me(), reason, days)
    if act != "approve":
        if as_json:
            print_json(answer.model_dump(mode="json"))
        else:
            later = f"; the next suggestion is shown after {answer.until:%Y-%m-%d}" if answer.until else ""
            say(f"{name}: {act} recorded{later}")
        return
    from evergreen.flows.cli import progress, retrain

    def start() -> object:
        from evergreen.flows import current_project, retraining

        with current_project.calling(place) as here:
            wanted = suggestions.retraining_arguments(params, run, me(), reason)
            return retraining.retraining(here, name, **wanted, return_state=True)

    done = progress.run_flow(place, [name], start, f"stopped. evergreen retrain {name} completes it.")
    retrain.show(name, done, as_json)
