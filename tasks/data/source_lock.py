"""sources.lock: what DVC cannot see of the sources, in a file that ingest depends on.

For each object in S3 its size and ETag, for each snapshot of received rows and purchases its hash. The flows write it before
they ask DVC what is stale, `evergreen refresh` for `dvc repro`. It belongs to a commit like dvc.lock.
"""

import logging
from typing import Any

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.core.paths import Layout, read_json, sha256, write_json
from evergreen.tasks.data import received_events, received_rows, s3_files

log = logging.getLogger(__name__)

Lock = dict[str, dict[str, Any]]
"""received: snapshot, relative to the project -> sha256. s3: table -> address, bytes and ETag of each object."""


def update(params: Params, layout: Layout) -> bool:
    """Write the file, unless it says the same or there is nothing to say. Returns whether it changed.

    A store that does not answer keeps what was known of it; a warning says so.
    """
    path = layout.source_lock
    before: Lock = read_json(path) if path.is_file() else {}
    found: Lock = {"received": _received(params, layout), "s3": _s3(params, before.get("s3", {}))}
    found = {name: each for name, each in found.items() if each}
    if found == before:
        return False
    write_json(path, found)
    return True


def _received(params: Params, layout: Layout) -> dict[str, str]:
    paths = [*received_events.snapshots(params, layout).values(), *received_rows.snapshots(params, layout).values()]
    return {layout.relative(path): sha256(path) for path in sorted(paths)}


def _s3(params: Params, before: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, source in params.ingest.items():
        if source.files is None or not s3_files.is_s3(source.files[1]):
            continue
        try:
            found[name] = s3_files.states(name, *source.files)
        except SourceError as error:
            log.warning("%s sources.lock keeps the last known state of %s.", error, name)
            if name in before:
                found[name] = before[name]
    return found


def report_missing(layout: Layout) -> None:
    """Warn about snapshots of received rows that the file names and that are not here, as in a clone."""
    path = layout.source_lock
    named: dict[str, str] = read_json(path).get("received", {}) if path.is_file() else {}
    if missing := [each for each in named if not (layout.root / each).is_file()]:
        log.warning(
            "ingest: %s: not here, so the tables are read without what servers received; evergreen refresh writes it where "
            "EVERGREEN_DATABASE names the database of events",
            ", ".join(missing),
        )
