"""Files that the steps left, read for the page: one that is missing or damaged is left out."""

import logging
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.core.errors import ProjectError
from evergreen.tasks.core.paths import read_json

log = logging.getLogger(__name__)


def read(path: Path) -> Any:
    """The JSON at `path`; None where there is none or it is damaged."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ProjectError) as error:
        log.warning("page: %s cannot be read, so the page leaves it out: %s", path, error)
        return None


def read_csv(path: Path) -> pl.DataFrame | None:
    """The table at `path`; None where it cannot be read."""
    try:
        return pl.read_csv(path, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        log.warning("page: %s cannot be read, so the page leaves it out: %s", path, error)
        return None
