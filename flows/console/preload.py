"""What the first view of each kind would wait for: imports, the registry, the first chart."""

import logging
from threading import Timer

from evergreen.flows import settings
from evergreen.flows.console.overview import MOST_ROWS
from evergreen.flows.operations import status
from evergreen.monitoring.report import problem_section
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import EvergreenError
from evergreen.tasks.core.paths import Layout

log = logging.getLogger(__name__)

DELAY_SECONDS = 2.0
"""The overview, which most visits begin with, comes first."""


def begin(layout: Layout) -> None:
    """Preload in a thread of this process, a moment from now."""
    timer = Timer(DELAY_SECONDS, preload, [layout])
    timer.daemon = True
    timer.start()


def preload(layout: Layout) -> None:
    """Read the versions and the months in production of each problem once. What fails here is told by the page itself."""
    try:
        for problem in load(layout.params).problems:
            if settings.has_registry(layout):
                settings.registry(layout).versions(problem)
            problem_section.production(layout, problem, status.production_records(layout, problem, MOST_ROWS))
    except EvergreenError as error:
        log.debug("not preloaded: %s", error)
