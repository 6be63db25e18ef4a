"""`evergreen rollback`: an earlier version becomes champion again."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import Name, me, open_problem, print_json, print_table


def rollback(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
    to: Annotated[int | None, typer.Option(help="Version to return to; default: the previous champion.")] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Make an earlier version champion again; during a rollout, abort it."""
    from evergreen.flows.operations import rollouts

    place, _ = open_problem(root, name)
    decision = rollouts.roll_back(place, name, to, me(), reason)
    if as_json:
        print_json(decision.model_dump(mode="json"))
        return
    now, was = decision.version, decision.previous
    if decision.action == "abort":
        now, was = was, f"{now}, candidate"
    print_table(("problem", "champion", "was", "reason"), [(name, f"v{now}", f"v{was}", decision.reason)])
