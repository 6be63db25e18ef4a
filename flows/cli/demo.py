"""`evergreen demo`: the worked example, from raw tables to deployed champions and a page."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from evergreen.flows.cli import train
from evergreen.flows.cli.common import INTERRUPTED, find, me, one_thread, say

if TYPE_CHECKING:
    from evergreen.flows.prefect_runtime.server import Server
    from evergreen.tasks.core.paths import Layout


def demo(*, root: Path, as_json: bool) -> None:
    """The whole story: simulate the last weeks, then train, judge and deploy every problem, and write the report page."""
    from evergreen.flows.operations import simulation_state

    place = find(root)
    if names := simulation_state.due(place):
        from evergreen.flows import fork_server
        from evergreen.flows.prefect_runtime import server

        one_thread()
        with server.running(place, say) as prefect, fork_server.running(place.root):  # Prefect reads its address once
            _simulate(place, names, prefect)
            train.run(place, as_json=as_json)
    else:
        train.run(place, as_json=as_json)
    for line in simulation_state.summary_lines(place):
        say(line)
    say(f"The page: {place.page.as_uri()}")


def _simulate(place: "Layout", names: list[str], prefect: "Server") -> None:
    """Simulate the last weeks of `names`, and show the progress."""
    from evergreen.flows import settings, simulation, steps
    from evergreen.flows.cli import progress

    settings.registry(place)  # makes its database while the Prefect server starts

    say(f"simulating the last weeks of {', '.join(names)}; params.yaml is changed meanwhile and restored afterwards")
    try:
        with progress.shown(lambda: steps.here.get(None), names):
            simulation.run(place, names, prefect, me())
    except KeyboardInterrupt:
        say("stopped. Finished weeks stay; the same command resumes.")
        raise typer.Exit(INTERRUPTED) from None
