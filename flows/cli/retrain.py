"""`evergreen retrain`: train and judge a challenger."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evergreen.flows.cli.common import Name, me, number, open_problem, print_json, print_table


def retrain(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Train a challenger on the data known now. The gate judges it; the champion serves until the challenger is promoted."""
    from evergreen.flows.cli import progress

    place, _ = open_problem(root, name)

    def start() -> Any:
        from evergreen.flows import current_project, retraining

        with current_project.calling(place) as root:
            return retraining.retraining(root, name, reason, by=me(), trigger=retraining.PERSON, return_state=True)

    done = progress.run_flow(place, [name], start, "stopped. The same command resumes.")
    if as_json:
        print_json(done)
        return
    version = f"v{done['version']}" if done["version"] else ""
    promoted = {True: "yes", False: "no", None: ""}[done["promoted"]]
    print_table(
        ("problem", "challenger", "promoted", "CPU min", "why"),
        [(name, version, promoted, number(done["cpu_minutes"]), done["outcome"])],
    )
