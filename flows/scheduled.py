"""Batch scoring as a flow of its own, for schedules."""

import logging
from pathlib import Path
from typing import Any

from prefect import flow

from flows import retraining, watching
from flows import scoring as scores
from tasks.errors import BusyError
from tasks.layout import find, locking
from tasks.params import load

log = logging.getLogger(__name__)


@flow(name="scoring", flow_run_name="scoring {problem}", on_failure=[retraining.crashed], on_crashed=[retraining.crashed])
def scoring(root: str, problem: str) -> dict[str, Any]:
    """Answer for everybody by the newest features, made anew unless the project lives on a day of params.yaml or trains now."""
    layout = find(Path(root))
    if load(layout.params).project.as_of is None:
        try:
            with locking(layout.var / "train.lock", "score"):
                watching.refreshing(layout, [problem], None)
        except BusyError as error:
            log.warning("%s: the features stay as they are: %s", problem, error)
    return scores.newest(layout, load(layout.params), problem).model_dump(mode="json")
