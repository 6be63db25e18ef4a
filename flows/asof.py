"""The day a project lives on, in params.yaml: one value is replaced, every other character stays."""

import re
from datetime import date
from pathlib import Path

from ruamel.yaml import YAML

from tasks.errors import ParamsError
from tasks.layout import writing
from tasks.params import load

SCALAR = re.compile(r""""[^"]*"|'[^']*'|[^\s#,}]+""")


def set_as_of(path: Path, day: date) -> bool:
    """Write `day` as project.as_of of the params.yaml at `path`. Returns whether that changed it.

    Raises ParamsError, and leaves the file as it was, where its text does not allow that.
    """
    if load(path).project.as_of == day:
        return False
    with writing(path) as scratch:
        scratch.write_text(_replaced(path.read_text(encoding="utf8"), day), encoding="utf8")
        if _day(scratch) != day:
            raise ParamsError(f'{path.name}: project.as_of cannot be set here; write as_of: "{day}" into it by hand')
    return True


def _day(path: Path) -> date | None:
    try:
        return load(path).project.as_of
    except ParamsError:
        return None


def _replaced(text: str, day: date) -> str:
    project = YAML().load(text)["project"]
    lines = text.splitlines(keepends=True)
    if "as_of" in project:
        line, column = project.lc.value("as_of")
        head, tail = lines[line][:column], lines[line][column:]
        lines[line] = f'{head}"{day}"{SCALAR.sub("", tail, count=1)}'
    else:
        line, column = project.lc.key("name")
        between = ", " if project.fa.flow_style() else f"\n{' ' * column}"
        lines[line] = f'{lines[line][:column]}as_of: "{day}"{between}{lines[line][column:]}'
    return "".join(lines)
