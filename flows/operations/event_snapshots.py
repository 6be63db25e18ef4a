"""Snapshots of the event log, by which training reads the purchases that servers received."""

from evergreen.flows import settings
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data import received_events


def update(layout: Layout, params: Params) -> None:
    """Write the purchases of each recommender where ingest reads them; files of unchanged purchases stay as they are.

    Raises ProjectError if the database cannot be used.
    """
    problems = received_events.recommenders(params)
    if not problems:
        return
    log = settings.events(layout)
    for problem in problems:
        received_events.write_snapshot(layout.events(problem), log.received(problem))
