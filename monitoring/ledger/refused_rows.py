"""Rows that cannot be stored: set aside in a file with their reason, so that they stop no other row.

The file holds one JSON object per row: `reason`, `at` (seconds since 1970, UTC) and `row`, as text where JSON cannot hold it.
The file stops growing at MAX_BYTES; rows beyond are counted only.
"""

import fcntl
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson
from polars.exceptions import PolarsError

from evergreen.tasks.core.errors import RefusedValueError

log = logging.getLogger(__name__)

FILE = "refused.ndjson"
COUNT = "refused"
MAX_BYTES = 64 * 2**20
MAX_ROW_CHARACTERS = 20_000
OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
LOGGED = 3
"""Refusals of one call that are logged one by one; the rest as a number."""
UNSTORABLE = (RefusedValueError, TypeError, ValueError, OverflowError, PolarsError)
"""Errors for which a value is the cause. Others (no database, no disk) concern all rows and are raised."""
T = TypeVar("T")


def store_each(rows: Sequence[T], store: Callable[[Sequence[T]], int], folder: Path) -> int:
    """`store` all rows together; where one cannot be stored, halve until it is alone, and set it aside in `folder`.

    Returns the sum of what `store` returned.
    """
    try:
        return store(rows) if rows else 0
    except UNSTORABLE as error:
        if len(rows) == 1:
            set_aside(folder, [(rows[0], error)])
            return 0
    middle = len(rows) // 2
    return store_each(rows[:middle], store, folder) + store_each(rows[middle:], store, folder)


def set_aside(folder: Path, refused: Sequence[tuple[Any, Exception]]) -> None:
    """Append rows with their errors to the file of `folder`, and count them."""
    for row, error in refused[:LOGGED]:
        log.warning("a prediction cannot be stored and is set aside in %s: %s (%.200r)", folder / FILE, _reason(error), row)
    if len(refused) > LOGGED:
        log.warning("%d more predictions are set aside there", len(refused) - LOGGED)
    with (folder / FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.tell() < MAX_BYTES:
            file.write(b"".join(_line(row, error) for row, error in refused))
        scratch = folder / f"{COUNT}.new"
        scratch.write_text(str(count(folder) + len(refused)))
        scratch.replace(folder / COUNT)


def count(folder: Path) -> int:
    """Rows that were ever set aside in `folder`; a damaged count is replaced by the number of lines."""
    with suppress(FileNotFoundError):
        try:
            return int((folder / COUNT).read_text())
        except ValueError:
            return (folder / FILE).read_bytes().count(b"\n")
    return 0


def _line(row: Any, error: Exception) -> bytes:
    found = {"reason": _reason(error), "at": time.time()}
    try:
        return orjson.dumps(found | {"row": row}, default=repr, option=OPTIONS)
    except (TypeError, ValueError):
        shown = repr(row)[:MAX_ROW_CHARACTERS].encode("utf-8", "backslashreplace").decode()
        return orjson.dumps(found | {"row": shown}, option=OPTIONS)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].encode("utf-8", "backslashreplace").decode()
