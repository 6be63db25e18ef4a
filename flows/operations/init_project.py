"""`evergreen init`: a table becomes a problem of this project, or of a new one. Nothing is written before all is known."""

import logging
import secrets
import string
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import KindName, Params, Source
from evergreen.tasks.core.errors import ParamsError, ProjectError, StorageError
from evergreen.tasks.core.paths import Layout, find, locking, writing
from evergreen.tasks.data import csv_dialect, snapshot
from evergreen.tasks.data.readers import Read, read_table
from evergreen.tasks.onboarding import draft_proof, params_template
from evergreen.tasks.onboarding.odd_values import find_odd_values
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.schema_inference import WHOLE_CLASSES, InferredSchema, infer_schema
from evergreen.tasks.release import lineage, pipeline_file

IGNORED = (
    "/data/raw/",
    "/data/tables/",
    "/data/quarantine/",
    "/data/features/",
    "/data/newest/",
    "/data/scores/",
    "/data/events/",
    "/data/received/",
    "/models/",
    "/reports/",
    "/dvc_plots/",
    "/var/",
)
"""Entries of .gitignore in a new project."""
BEGIN = """\
# All settings. `evergreen params --schema` explains each key; unknown keys are errors.

project:
  name: {name}
  id: {id}
  seed: 0

problems:

# Source of each table.
ingest:

# Rules of each table, in the vocabulary of Great Expectations.
validate:
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    name: str
    root: str
    found: InferredSchema
    made: tuple[str, ...]
    """What a new project got, relative to `root`; params.yaml alone where the project was there."""
    warnings: tuple[str, ...]


def run(name: str, data: str, url: str | None, asked: InitOptions, root: Path, here: Path, today: date) -> Started:
    """Draft the problem `name` from a table and add it to params.yaml.

    `root`: a folder of the project or below it; where no folder upwards has a params.yaml, the new project's. `here`: the
    folder from which `data` is seen. Raises ParamsError for a name that is taken and a column that is not there, SourceError
    where the table cannot be read, DataError where nothing can be learned from it; then nothing is changed.
    """
    layout, params = _project(root)
    params_template.check_name(name, params)
    _refuse_password(url)
    with tempfile.TemporaryDirectory(prefix="evergreen.") as scratch:
        staging = Path(scratch)
        given = csv_dialect.detect_source(data, url, layout.root, here.resolve(), staging)
        table = read_table(name, given, layout.root, staging, infer=True)
        if _is_written_as_classes(table, asked):
            given = given.model_copy(update={"types": {**given.types, str(asked.target): "text"}})
            table = read_table(name, given, layout.root, staging, infer=True)
        found = infer_schema(table.rows, asked, today)
        odd = find_odd_values(name, table.rows)
        warnings = [*_skipped(given), *_outside(given), *table.guesses, *table.notes, *odd, *found.warnings]
        timed = _timed(found, params, layout, warnings)
        parts = params_template.insertions(
            name,
            found.kind,
            params_template.source(found, table.source, timed),
            params_template.rules(found, asked),
            params_template.section(name, found, asked),
        )
        _prove(name, _text(layout, params is None, parts), table.written, staging / "proof")
    made = _add(layout, params is None, parts, name, found.kind)
    return Started(name, str(layout.root), found, tuple(made), tuple(warnings))


def _is_written_as_classes(table: Read, asked: InitOptions) -> bool:
    """Whether the target has few values and a format of numbers, as 0, 1, 2, 3+ have: they keep their names."""
    name = asked.target
    if name not in table.source.number_formats or (asked.kind and problems.predictions(asked.kind).target != "class"):
        return False
    return table.written.select(pl.col(name).n_unique()).collect().item() <= WHOLE_CLASSES


def _skipped(source: Source) -> list[str]:
    if not source.skip_lines:
        return []
    count, verb = ("1 line", "is") if source.skip_lines == 1 else (f"{source.skip_lines} lines", "are")
    return [f"{count} before the column names {verb} skipped"]


def _outside(source: Source) -> list[str]:
    if not source.files or not Path(source.files[1]).is_absolute():
        return []
    return [f"{source.files[1]}: lies outside the project; wherever the project moves, the file must be there"]


def _project(root: Path) -> tuple[Layout, Params | None]:
    """The project around `root` and its params; a new one, without params, where there is none."""
    try:
        layout = find(root)
    except ProjectError:
        layout = Layout(root.resolve())
        if not layout.root.is_dir():
            raise ProjectError(f"{root}: no such folder; make it first, or name another one with --root") from None
        if (taken := layout.root / "dvc.yaml").exists():
            raise ProjectError(f"{taken}: is there without a params.yaml; start in another folder, or move it away") from None
        return layout, None
    return layout, load(layout.params)


def _refuse_password(url: str | None) -> None:
    """params.yaml goes into git: no password in it."""
    if url is None or url.startswith("env:"):
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        secret = make_url(url).password
    except ArgumentError:
        return  # reading the table says what is wrong
    if secret:
        raise ParamsError(
            "--url: contains a password, which must not be stored in params.yaml. Put the URL into an environment variable "
            "(export SHOP_DB=...) and pass --url env:SHOP_DB."
        )


def _timed(found: InferredSchema, params: Params | None, layout: Layout, warnings: list[str]) -> bool:
    """Whether the table's time may also cut it at project.as_of, without moving that day for the other tables."""
    column = found.column(found.time)
    if column is None:
        return False
    newest = column.high.date() if hasattr(column.high, "date") else column.high
    others = params is not None and any(source.time for source in params.ingest.values())
    as_of = params.project.as_of if params else None
    if as_of is None and others and params is not None and snapshot.facts_file(layout).exists():
        as_of = snapshot.resolve_as_of(params, layout)
    if as_of is None and not others:
        return True
    if as_of is not None and newest <= as_of:
        return True
    if found.kind == "recommendation":
        if as_of is not None and params is not None and params.project.as_of is not None:
            warnings.append(f"{column.name}: rows after project.as_of = {as_of} are left out; the newest is of {newest}")
        else:
            warnings.append(f"{column.name}: goes to {newest}; with it the newest known day of all tables moves there")
        return True
    warnings.append(
        f"{column.name}: goes beyond the last known day of this project ({as_of or 'unknown'}); so all rows count as known, "
        "and as_of does not cut this table"
    )
    return False


def _add(layout: Layout, new: bool, parts: Sequence[params_template.Insertion], name: str, kind: KindName) -> list[str]:
    with locking(layout.var / "train.lock", "init"):
        text = _text(layout, new, parts) if new else ""
        made = _make(layout) if new else ["params.yaml"]
        in_pipeline = (layout.root / "dvc.yaml").is_file()
        if in_pipeline:
            _add_plots(layout, name, kind)
        if new:
            made += _file(layout.params, text)
        else:
            params_template.write(layout.params, parts)
        if in_pipeline:
            _name_sources(layout)
    return made


def _add_plots(layout: Layout, name: str, kind: KindName) -> None:
    """Enter the plots of the problem into dvc.yaml, before params.yaml: once it has the problem, `init` refuses."""
    from evergreen.monitoring.report import dvc_templates, plots

    own = plots.OF_KIND[kind]
    pipeline_file.add_plots(layout, name, list(own), dvc_templates.templates(own))


def _name_sources(layout: Layout) -> None:
    """Enter the problem's source files into dvc.yaml, as each training does too."""
    try:
        pipeline_file.name_sources(layout, load(layout.params))
    except StorageError as error:
        log.warning("the problem is in params.yaml; its files are not in dvc.yaml yet, evergreen train enters them: %s", error)


def _text(layout: Layout, new: bool, parts: Sequence[params_template.Insertion]) -> str:
    """params.yaml with the new problem."""
    begin = BEGIN.format(name=params_template.scalar(layout.root.name or "project"), id=_draw_id())
    return params_template.insert(begin if new else layout.params.read_bytes().decode("utf8"), parts)


def _draw_id() -> str:
    """Eight letters: no reader of YAML takes them for a number."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(8))


def _prove(name: str, text: str, written: pl.LazyFrame, folder: Path) -> None:
    folder.mkdir()
    path = folder / "params.yaml"
    path.write_bytes(text.encode("utf8"))
    draft_proof.prove(load(path), name, written, folder)


def _make(layout: Layout) -> list[str]:
    """The files around params.yaml, which comes last: only with it is the folder a project."""
    root = layout.root
    made = [
        *_file(root / "dvc.yaml", files("evergreen.flows").joinpath("templates/dvc.yaml").read_text(encoding="utf8")),
        *([".gitignore"] if ignore(root) else []),
    ]
    made += lineage.set_up(layout)
    return [*made, *_lines(root / ".dvcignore", ("__pycache__",))]


def ignore(root: Path, dry_run: bool = False) -> list[str]:
    """Add the entries of IGNORED to .gitignore that are neither there nor below an entry; returns them.

    `dry_run`: only returns them.
    """
    path = root / ".gitignore"
    known = [line.strip().strip("/") for line in path.read_text(encoding="utf8").splitlines()] if path.exists() else []
    lacking = [each for each in IGNORED if not any(f"{each.strip('/')}/".startswith(f"{line}/") for line in known if line)]
    _lines(path, [] if dry_run else lacking)
    return lacking


def _file(path: Path, text: str) -> list[str]:
    with writing(path) as scratch:
        scratch.write_text(text, encoding="utf8")
    return [path.name]


def _lines(path: Path, lines: Sequence[str]) -> list[str]:
    """Add the lines that the file lacks."""
    before = path.read_text(encoding="utf8") if path.exists() else ""
    lacking = [line for line in lines if line not in before.splitlines()]
    if not lacking:
        return []
    end = "\n" if before and not before.endswith("\n") else ""
    return _file(path, before + end + "".join(f"{line}\n" for line in lacking))
