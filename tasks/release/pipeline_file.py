"""The parts of dvc.yaml that follow from params.yaml: source files as dependencies of ingest, and the plots of each problem.

Everything else in the file, comments included, stays as it is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ProjectError, SourceError
from evergreen.tasks.core.paths import Layout, writing
from evergreen.tasks.data import s3_files
from evergreen.tasks.data.source_files import source_files

ABOUT_PLOTS = "\nDrawn by `dvc plots show` and `dvc plots diff` with the templates in .dvc/plots, like the charts of the page."
OUTPUTS = ("data", "models", "reports", "var")
"""Folders of outputs: a dependency on one of them would be a cycle."""


def name_sources(layout: Layout, params: Params) -> bool:
    """Make the source files of params.yaml dependencies of ingest. Returns whether dvc.yaml changed.

    A file or a folder is named by its key in params.yaml and so follows it; a glob by its folder, or by its files where the
    folder holds outputs too. Queries and packages are none: DVC cannot see them change. sources.lock stands for addresses in
    S3 and for what servers received.
    """
    if not (layout.root / "dvc.yaml").is_file():
        return False
    yaml, whole = read(layout)
    stage: Any = whole["stages"].get("ingest") or {}
    before = list(stage.get("deps", ()))
    wanted = list(dict.fromkeys(_dependencies(layout, params)))
    stale = [each for each in before if str(each).startswith("${ingest.") and each not in wanted]
    deps = [each for each in before if each not in stale] + [each for each in wanted if each not in before]
    if not stage or deps == before:
        return False
    if "deps" in stage:
        stage["deps"][:] = [_quoted(each) for each in deps]
    else:
        stage.insert(1, "deps", [_quoted(each) for each in deps])
        stage["deps"] = _flow(stage["deps"])
    if not deps:
        del stage["deps"]
    write(layout, yaml, whole)
    return True


def add_plots(layout: Layout, problem: str, names: Sequence[str], templates: Mapping[str, str]) -> None:
    """List the plots of a problem in dvc.yaml, and lay their templates, file name -> JSON, into .dvc/plots."""
    yaml, whole = read(layout)
    if "plots" not in whole:
        whole["plots"] = []
        whole.yaml_set_comment_before_after_key("plots", before=ABOUT_PLOTS)
    plots = whole["plots"]
    listed = {path for entry in plots for path in ([entry] if isinstance(entry, str) else entry)}
    for name in names:
        if (path := f"reports/{problem}/plots/{name}.csv") not in listed:
            plots.append(CommentedMap({path: _flow(CommentedMap({"template": name, "title": problem}))}))
    write(layout, yaml, whole)
    for name, text in templates.items():
        place = layout.root / ".dvc" / "plots" / name
        if not place.exists():
            with writing(place) as scratch:
                scratch.write_text(text, encoding="utf8")


def _dependencies(layout: Layout, params: Params) -> Iterator[str]:
    if layout.source_lock.is_file():
        yield layout.source_lock.name
    for table, source in params.ingest.items():
        if source.files is None or s3_files.is_s3(source.files[1]):
            continue
        key, pattern = source.files
        if not re.search(r"[*?\[]", pattern):
            simple = re.fullmatch(r"\w+", table) and not _holds_outputs(pattern)
            yield f"${{ingest.{table}.{key}}}" if simple else pattern
            continue
        parts = PurePosixPath(pattern).parts
        fixed = next(place for place, part in enumerate(parts) if re.search(r"[*?\[]", part))
        folder = str(PurePosixPath(*parts[:fixed]))
        if not _holds_outputs(folder):
            yield folder
            continue
        try:
            yield from (layout.relative(each) for each in source_files(table, key, pattern, layout.root))
        except SourceError:
            continue  # ingest says so


def _holds_outputs(path: str) -> bool:
    return path in (".", *OUTPUTS) or set(PurePosixPath(path).parts) == {".."}


def parse(text: str) -> tuple[YAML, Any]:
    """A dvc.yaml for a change that keeps comments and quotes: the writer for `write`, and its content."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml, yaml.load(text)


def read(layout: Layout) -> tuple[YAML, Any]:
    """The project's dvc.yaml, as `parse` returns it. Raises ProjectError where it is no YAML with a mapping of stages."""
    try:
        yaml, whole = parse((layout.root / "dvc.yaml").read_text(encoding="utf8"))
    except MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        fault = str(error.problem).splitlines()[0]
        raise ProjectError(f"dvc.yaml:{where}: {fault}. A key may occur once; indent with spaces.") from None
    except UnicodeDecodeError as error:
        raise ProjectError(f"dvc.yaml: cannot be read: {error}. It must be UTF-8 text.") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("stages"), dict):
        raise ProjectError("dvc.yaml: needs a mapping of stages. Restore it from git, or begin again with evergreen init.")
    return yaml, whole


def write(layout: Layout, yaml: YAML, whole: Any) -> None:
    """Replace dvc.yaml by what `read` returned, as it is now."""
    text = StringIO()
    yaml.dump(whole, text)
    with writing(layout.root / "dvc.yaml") as scratch:
        scratch.write_text(text.getvalue(), encoding="utf8")


def _quoted(text: str) -> str:
    return DoubleQuotedScalarString(text) if re.search(r"[^\w./-]", text) else text


def _flow(value: Any) -> Any:
    """In one line."""
    yaml = YAML()
    text = StringIO()
    yaml.dump(value, text)
    made = yaml.load(text.getvalue())
    made.fa.set_flow_style()
    return made
