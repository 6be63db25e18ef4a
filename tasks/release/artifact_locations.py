"""Locations of files in an embedded MLflow store: recorded relative to the project, resolved against it.

MLflow records absolute paths. An SQLite store in a project gets relative ones instead, so the project can be moved, copied and
mounted elsewhere. MLflow's own tools resolve them against their working directory: run them in the project's folder.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

log = logging.getLogger(__name__)

SCHEME = "sqlite:///"
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Table and column of each location in MLflow's database."""
DEFAULT = "mlruns/0"
"""End of the location that MLflow gives its own experiment, in the working directory of the process that made the store."""
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Locations:
    """The locations of a store below `root`, whose files lie in `artifacts`, a path relative to it."""

    root: Path
    database: Path
    artifacts: Path

    @classmethod
    def of(cls, uri: str, artifacts: str, root: Path) -> "Locations | None":
        """None for a store or a folder of files outside the project: their paths are the machine's, not the project's."""
        if not uri.startswith(SCHEME) or "://" in artifacts or not artifacts:
            return None
        root = root.absolute()
        database, folder = Path(uri.removeprefix(SCHEME)).absolute(), Path(artifacts).absolute()
        if not (database.is_relative_to(root) and folder.is_relative_to(root)):
            return None
        return cls(root, database, folder.relative_to(root))

    def resolve(self, location: str) -> str:
        """The location for this process: absolute."""
        path = local_path(location)
        return location if path is None or path.is_absolute() else (self.root / path).as_uri()

    def make_relative(self) -> int:
        """Rewrite the absolute locations of the project's files, those of an earlier place included. Returns their number.

        A database that cannot be written stays as it is.
        """
        try:
            with closing(sqlite3.connect(self.database, timeout=PATIENCE_SECONDS)) as link, link:
                changes = list(self._changes(link))
                for table, column, old, new in changes:
                    link.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))
        except sqlite3.OperationalError as error:
            log.debug("%s: its locations stay as they are: %s", self.database, error)
            return 0
        return len(changes)

    def _changes(self, link: sqlite3.Connection) -> Iterator[tuple[str, str, str, str]]:
        """Table, column, old and new location."""
        for table, column in COLUMNS:
            found = link.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE '/%' OR {column} LIKE 'file:%'")
            for (old,) in found.fetchall():
                if (new := self._relative(old)) != old:
                    yield table, column, old, new

    def _relative(self, location: str) -> str:
        path = local_path(location)
        if path is None or not path.is_absolute():
            return location
        if path.is_relative_to(self.root):
            return quote(path.relative_to(self.root).as_posix())
        moved = self._moved(path)
        return location if moved is None or (path.exists() and not (self.root / moved).exists()) else quote(moved.as_posix())

    def _moved(self, path: Path) -> Path | None:
        """Where a file of this project lies now that was recorded at another place; None for a file of something else."""
        parts, sought = path.parts, self.artifacts.parts
        for first in range(len(parts) - len(sought), 0, -1):
            if parts[first : first + len(sought)] == sought:
                return Path(*parts[first:])
        return self.artifacts / "0" if path.as_posix().endswith(f"/{DEFAULT}") else None


def local_path(location: str) -> Path | None:
    """The path of a location; None for one that is not in a file system."""
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and not parts.netloc else None
