"""`evergreen retrain`: train and judge a challenger."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evergreen.flows.cli.common import (
    INTERRUPTED,
    Name,
    find,
    me,
    number,
    one_thread,
    print_json,
    print_table,
    read_params,
    say,
)


def retrain(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Train a challenger on the data known now. The gate judges it; the champion serves until the challenger is promoted."""
    from evergreen.flows.cli import progress
    from evergreen.flows.prefect_runtime import server

    place = find(root)
    read_params(place).section(name)
    one_thread()
    with server.running(place, say) as prefect:
        from evergreen.flows import retraining, steps
        from evergreen.flows.prefect_runtime import stale_runs

        prefect.wait()
        try:
            with progress.shown(lambda: steps.here.get(None), [name]):
                state = retraining.retraining(
                    str(place.root), name, reason, by=me(), trigger=retraining.PERSON, return_state=True
                )
        except KeyboardInterrupt:
            say("stopped. The same command resumes.")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            stale_runs.deliver()
        done: Any = state.result(raise_on_failure=False)
    if isinstance(done, BaseException):
        raise done
    if as_json:
        print_json(done)
        return
    version = f"v{done['version']}" if done["version"] else ""
    promoted = {True: "yes", False: "no", None: ""}[done["promoted"]]
    print_table(
        ("problem", "challenger", "promoted", "CPU min", "why"),
        [(name, version, promoted, number(done["cpu_minutes"]), done["outcome"])],
    )
