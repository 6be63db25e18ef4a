"""The newest features of each entity, in memory: for requests that name only the key."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from tasks.errors import RequestError


class Newest:
    """Of the table of features in `file`, its last cutoff. Read at the first question, and again when the file changes."""

    def __init__(self, file: Path, features: Sequence[str]) -> None:
        self._file, self._features = file, list(features)
        self._stamp: int | None = None
        self._frame, self._places, self._day = pl.DataFrame(), dict[str, int](), date.min

    def of(self, entity: str, key: Any) -> tuple[Mapping[str, Any], date]:
        """The features of the entity with that key, and the day they were known on. Raises RequestError for an unknown one.

        `entity`: the column of the keys.
        """
        if self._stamp is None:
            self.refresh(entity)
        place = self._places.get(str(int(key)) if isinstance(key, float) and key.is_integer() else str(key))
        if place is None:
            raise RequestError(entity, f"no features at {self._day}", key)
        return self._frame.row(place, named=True), self._day

    def refresh(self, entity: str) -> None:
        """Read the file where it is another one than before. Raises RequestError where there is none."""
        try:
            stamp = self._file.stat().st_mtime_ns
        except OSError:
            raise RequestError(entity, "no features are known here; give all features of the row") from None
        if stamp == self._stamp:
            return
        lines = pl.scan_parquet(self._file)
        newest = lines.filter(pl.col("cutoff") == pl.col("cutoff").max()).collect()
        self._frame = newest.select(self._features)
        self._places = {str(each): place for place, each in enumerate(newest[entity].to_list())}
        self._day = newest["cutoff"][0] if newest.height else date.min
        self._stamp = stamp
