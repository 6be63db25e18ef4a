"""The newest features of each entity, in memory: for requests that name only the key.

polars is imported where there is a file to read: a bundle has none, and does without.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.tasks.core.errors import RequestError

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)


class Newest:
    """Of the table of features in `file`, its last cutoff; read at once, and again by `refresh`.

    `entity`: the column of the keys. A file that is not there, or without a feature, knows nobody.
    """

    def __init__(self, file: Path, entity: str, features: Iterable[str]) -> None:
        self._file, self._entity, self._features = file, entity, list(features)
        self._stamp = 0
        self._known = _Known(None, {}, None)
        self.refresh()

    def of(self, key: str) -> tuple[Mapping[str, Any], date]:
        """The features of the entity with that key, and the day they were known on. Raises RequestError for an unknown one."""
        known = self._known
        if known.frame is None or known.day is None:
            raise RequestError(self._entity, "no features are known here; give all features of the row")
        if (place := known.places.get(key)) is None:
            raise RequestError(self._entity, f"no features at {known.day}", key)
        return known.frame.row(place, named=True), known.day

    def keys(self) -> list[str]:
        """Of all that are known."""
        return list(self._known.places)

    def refresh(self) -> None:
        """Read the file where it is another one than before."""
        try:
            stamp = self._file.stat().st_mtime_ns
        except OSError as error:
            log.warning("%s: nobody can be looked up: %s", self._file.parent.name, error.strerror)
            return
        if stamp == self._stamp:
            return
        import polars as pl
        from polars.exceptions import PolarsError

        try:
            lines = pl.scan_parquet(self._file)
            newest = lines.filter(pl.col("cutoff") == pl.col("cutoff").max()).collect()
            frame, keys = newest.select(self._features), newest[self._entity].to_list()
        except (OSError, PolarsError) as error:
            log.warning("%s: nobody can be looked up: %s", self._file.parent.name, str(error).splitlines()[0])
            return
        day = newest["cutoff"][0] if newest.height else None
        self._known, self._stamp = _Known(frame, {str(each): place for place, each in enumerate(keys)}, day), stamp


@dataclass(frozen=True)
class _Known:
    frame: "pl.DataFrame | None"
    """None: nobody is known."""
    places: dict[str, int]
    """Key -> row."""
    day: date | None
