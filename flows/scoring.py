"""Batch scoring as a flow of its own, for schedules."""

import logging
from typing import Any

from prefect import flow

from evergreen.flows import current_project, monitoring, retraining
from evergreen.flows.operations import batch_scoring, scheduled_scoring
from evergreen.flows.prefect_runtime import runs
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import LockedError
from evergreen.tasks.core.paths import locking

log = logging.getLogger(__name__)


@flow(
    name="scoring",
    flow_run_name=runs.name,
    on_failure=[retraining.notify_crash],
    on_crashed=[retraining.notify_crash],
)
def scoring(root: str, problem: str) -> dict[str, Any]:
    """Score what is new in schedule.input, or without one all entities of the newest features.

    A problem made from events gets its features rebuilt first, unless params fix the day or a training runs.
    """
    layout = current_project.of(root)
    runs.begin(load(layout.params), [problem])
    params = load(layout.params)
    section = params.section(problem)
    if section.features.by_cutoff is False:
        return scheduled_scoring.run(layout, params, problem).model_dump(mode="json")
    if params.project.as_of is None:
        try:
            with locking(layout.var / "train.lock", "score"):
                monitoring.refresh_features(layout, [problem], None)
        except LockedError as error:
            log.warning("%s: the features stay as they are: %s", problem, error)
    params = load(layout.params)
    if section.schedule.input:
        return scheduled_scoring.run(layout, params, problem).model_dump(mode="json")
    return batch_scoring.newest(layout, params, problem).model_dump(mode="json")
