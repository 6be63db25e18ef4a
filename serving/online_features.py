"""The newest features of each entity, in memory: for requests that give only the entity's key.

polars is imported only if there is a file to read: a bundle has neither.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evergreen.tasks.core.errors import RequestError

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)


FeatureRow = tuple[Mapping[str, Any], date]
"""The features of an entity, and their cutoff."""


class OnlineFeatures:
    """The rows of the last cutoff in the feature table that `file` names. Read at once, and again by `refresh` if it changed.

    `entity`: the key column. If the file or one of `features` is missing, every lookup fails.
    """

    fresh: ClassVar[Literal[False]] = False

    def __init__(self, file: Callable[[], Path], entity: str, features: Iterable[str]) -> None:
        self._file, self._entity, self._features = file, entity, list(features)
        self._read: tuple[Path, int] | None = None
        self._table = _Table(None, {}, None)
        self.refresh()

    def lookup(self, key: str) -> FeatureRow:
        """The features of an entity and their cutoff. Raises RequestError for an unknown key."""
        table = self._table
        if table.frame is None or table.cutoff is None:
            raise RequestError(self._entity, "there is no feature table here; give all features of the row")
        if (place := table.places.get(key)) is None:
            raise RequestError(self._entity, f"no features at {table.cutoff}", key)
        return table.frame.row(place, named=True), table.cutoff

    def keys(self) -> list[str]:
        """All known keys."""
        return list(self._table.places)

    def refresh(self) -> None:
        """Read the file again if it changed."""
        file = self._file()
        try:
            found = file, file.stat().st_mtime_ns
        except OSError as error:
            log.warning("%s: no features to look up: %s", file.parent.name, error.strerror)
            return
        if found == self._read:
            return
        import polars as pl
        from polars.exceptions import PolarsError

        try:
            rows = pl.scan_parquet(file)
            newest = rows.filter(pl.col("cutoff") == pl.col("cutoff").max()).collect()
            frame, keys = newest.select(self._features), newest[self._entity].to_list()
        except (OSError, PolarsError) as error:
            log.warning("%s: no features to look up: %s", file.parent.name, str(error).splitlines()[0])
            return
        cutoff = newest["cutoff"][0] if newest.height else None
        self._table = _Table(frame, {str(each): place for place, each in enumerate(keys)}, cutoff)
        self._read = found


@dataclass(frozen=True)
class _Table:
    frame: "pl.DataFrame | None"
    """One row per entity; None: nothing was read."""
    places: dict[str, int]
    """Key -> row number."""
    cutoff: date | None
