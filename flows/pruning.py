"""Pruning as a flow of its own, for schedules."""

import logging
from datetime import UTC, datetime
from typing import Any

from prefect import flow

from evergreen.flows import current_project, retraining
from evergreen.flows.operations import prune
from evergreen.flows.prefect_runtime import runs
from evergreen.tasks.config.loading import load

log = logging.getLogger(__name__)


@flow(
    name="pruning",
    flow_run_name=runs.name,
    retries=3,
    retry_delay_seconds=1_800,
    on_failure=[retraining.notify_crash],
    on_crashed=[retraining.notify_crash],
)
def pruning(root: str) -> list[dict[str, Any]]:
    """Remove what no commit and no version in use needs, as `evergreen prune` does. While a training runs, it waits."""
    layout = current_project.of(root)
    params = load(layout.params)
    runs.begin(params, list(params.problems))
    removals = prune.run(layout, params, datetime.now(UTC))
    for each in removals:
        log.info("%s: %s, %.1f MB: %s", each.what, f"{each.number:,}", each.bytes / 2**20, each.rule)
    return [each._asdict() for each in removals]
