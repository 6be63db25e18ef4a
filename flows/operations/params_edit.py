"""Edits of params.yaml by commands: the project's day, the time budget, the rows of a retraining.

All other characters stay.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import writing

SCALAR = re.compile(r""""[^"]*"|'[^']*'|[^\s#,}]+""")


EMPTY = re.compile(r"{\s*}")


def set_as_of(path: Path, day: date) -> bool:
    """Write `day` as project.as_of of the params.yaml at `path`. Returns whether that changed it.

    Raises ParamsError, and leaves the file as it was, where its text does not allow that.
    """
    return _set(path, ("project", "as_of"), f'"{day}"', lambda params: params.project.as_of == day)


def set_seconds(path: Path, problem: str, seconds: float) -> bool:
    """Write `seconds` as tune.budget_seconds of `problem`; see `set_as_of`."""
    return _set(
        path,
        (problem, "tune", "budget_seconds"),
        f"{seconds:g}",
        lambda params: params.section(problem).tune.budget_seconds == float(f"{seconds:g}"),
    )


def set_value(path: Path, keys: Sequence[str], value: Any) -> bool:
    """Write `value`, which JSON knows, at `keys`, the first of which names a problem; see `set_as_of`."""

    def done(params: Params) -> bool:
        found: Any = params.section(keys[0]).model_dump(mode="json")
        for key in keys[1:]:
            found = found[key]
        return found == value

    return _set(path, keys, json.dumps(value), done)


def _set(path: Path, keys: Sequence[str], value: str, done: Callable[[Params], bool]) -> bool:
    if done(load(path)):
        return False
    with writing(path) as scratch:
        text = path.read_bytes().decode()
        try:
            scratch.write_bytes(_replaced(text, keys, value).encode())
            written = done(load(scratch))
        except (ParamsError, AttributeError, KeyError, TypeError, IndexError, ValueError):
            written = False
        if not written:
            raise ParamsError(f"{path.name}: {'.'.join(keys)} cannot be set here; write {keys[-1]}: {value} into it by hand")
    return True


def _replaced(text: str, keys: Sequence[str], value: str) -> str:
    """`text` with `value` at `keys`; a mapping that is not there comes to be, in one line."""
    around: Any = YAML().load(text)
    lines = text.splitlines(keepends=True)
    for depth, key in enumerate(keys[:-1]):
        if key not in around or not len(around[key]):
            inner = ": {".join(keys[depth + 1 :])
            return _put(lines, around, key, f"{{{inner}: {value}{'}' * (len(keys) - depth - 1)}")
        around = around[key]
    return _put(lines, around, keys[-1], value)


def _put(lines: list[str], around: Any, key: str, value: str) -> str:
    """The text with `key: value` in the mapping `around`, in place of what the key has, or else before its first key."""
    if key in around:
        line, column = around.lc.value(key)
        head, tail = lines[line][:column], lines[line][column:]
        lines[line] = head + value + _after(tail)
    else:
        line, column = around.lc.key(next(iter(around)))
        end = "\r\n" if lines[line].endswith("\r\n") else "\n"
        between = ", " if around.fa.flow_style() else f"{end}{' ' * column}"
        lines[line] = f"{lines[line][:column]}{key}: {value}{between}{lines[line][column:]}"
    return "".join(lines)


def _after(tail: str) -> str:
    """What follows the value that `tail` begins with; a list is one that was written here, as JSON."""
    if tail.startswith("["):
        return tail[json.JSONDecoder().raw_decode(tail)[1] :]
    return (EMPTY if tail.startswith("{") else SCALAR).sub("", tail, count=1)
