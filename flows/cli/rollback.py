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
    from evergreen.flows import settings
    from evergreen.flows.operations import status as results
    from evergreen.tasks.core.paths import locking

    place, _ = open_problem(root, name)
    with locking(place.var / "train.lock", "rollback"):
        decision = settings.rollouts(place).rollback(settings.registry(place), name, to, me(), reason)
        results.page(place)
    if as_json:
        print_json(decision.model_dump(mode="json"))
        return
    now, was = decision.version, decision.previous
    if decision.action == "abort":
        now, was = was, f"{now}, candidate"
    print_table(("problem", "champion", "was", "reason"), [(name, f"v{now}", f"v{was}", decision.reason)])
