"""Retention: old predictions become cohorts, and old Evidently reports are removed."""

import logging
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Ledger

log = logging.getLogger(__name__)

KEPT_REPORTS = 12
"""Evidently reports kept per problem, 4 MB each."""


def keep_ledger(params: Params, problem: str, ledger: "Ledger", day: date) -> None:
    """The upkeep of a day: old blocks are merged, cohorts that changed are scored, and predictions that are older than
    monitor.retention_days at `day` are deleted; their cohorts stay."""
    from evergreen.monitoring.performance.measurement import cohort_scorer

    section = params.section(problem)
    scorer = cohort_scorer(problems.predictions(params.kind(problem)), section, params.project.seed)
    ledger.tidy(problem, day)
    ledger.cohorts(problem, scorer)
    if deleted := ledger.compact(problem, first_kept(params, problem, day), scorer):
        days = section.monitor.retention_days
        log.info("%s: %s predictions older than %d days were deleted; their cohorts stay", problem, f"{deleted:,}", days)


def first_kept(params: Params, problem: str, day: date) -> date:
    """The first day whose predictions are kept at `day`."""
    return day - timedelta(days=params.section(problem).monitor.retention_days)


def remove_old_reports(folder: Path) -> None:
    for old in sorted(folder.glob("*.html"))[:-KEPT_REPORTS]:
        old.unlink()
