"""Snapshots of the logs of events, by which training reads the purchases and the rows of tables that servers received."""

import polars as pl

from evergreen.flows import settings
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data import received_events, received_rows, source_lock
from evergreen.tasks.release import pipeline_file


def update(layout: Layout, params: Params) -> bool:
    """Write the purchases of each recommender, and the received rows of each table, where ingest reads them; files of
    unchanged ones stay as they are. sources.lock tells DVC of them, and of the sources in S3; returns whether it changed.

    Raises ProjectError if the database cannot be used.
    """
    if lists := received_events.recommenders(params):
        log = settings.events(layout)
        for problem in lists:
            received_events.write_snapshot(layout.events(problem), log.received(problem))
    if tables := received_rows.entities(params):
        rows = settings.row_log(layout).of_problems(received_rows.problems(params))
        for table in tables:
            received_rows.write_snapshot(layout.received(table), rows.filter(pl.col("table") == table).drop("table"))
    changed = source_lock.update(params, layout)
    if changed:
        pipeline_file.name_sources(layout, params)
    return changed
