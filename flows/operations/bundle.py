"""Export of a registered version as a bundle: a folder that serves over HTTP without the project or a registry.

It holds the model file, the modules that serving imports (copies, not a second implementation), and the pinned packages.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from evergreen.flows import settings
from evergreen.flows.operations import batch_scoring, bundle_contents
from evergreen.serving.bundle_server import MANIFEST, MODEL
from evergreen.tasks.config.data import SOURCES
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ModelError, ProjectError
from evergreen.tasks.core.paths import Layout, write_json, writing
from evergreen.tasks.data.snapshot import contract
from evergreen.tasks.release import code_closure

if TYPE_CHECKING:
    from evergreen.tasks.release.mlflow_store import Version
    from evergreen.tasks.release.model_registry import Registry

TEMPLATES = code_closure.CODE / "evergreen" / "flows" / "templates" / "bundle"
PORT = 8080
TOLERANCE = 1e-9
"""Largest difference between the predictions of the bundle and of the registered model."""
EXAMPLES = 3
"""Rows, or users, of the example request."""


@dataclass(frozen=True)
class ExportResult:
    problem: str
    version: int
    out: str
    compiled: bool
    packages: int
    """Number of packages in requirements.txt."""
    megabytes: float
    rows: int
    """Rows, or users, that were compared."""
    difference: float
    """Largest difference between the predictions of the bundle and of the registered model."""


def run(layout: Layout, params: Params, problem: str, out: Path, version: int | None) -> ExportResult:
    """Atomically write the bundle of `version`, or of the champion for None, to the folder `out`.

    Before that, the bundle predicts its example request, without access to the project's code. Raises ProjectError if `out` is
    not empty; ModelError if the version cannot be loaded, or the bundle's predictions differ
    from the registered model's.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ProjectError(f"{out}: is not empty; name a new or empty folder")
    chosen = batch_scoring.chosen(layout, problem, version)
    registry = settings.registry(layout)
    found = registry.require(problem, chosen)
    with writing(out) as scratch:
        scratch.mkdir()
        compiled = _write_model(scratch, registry, found)
        (scratch / "params.yaml").write_text("")
        _write_params(scratch, layout, params, problem)
        request = _write_request(scratch, layout, params, found, registry)
        modules = code_closure.closure(bundle_contents.roots(params.kind(problem), compiled))
        code_closure.copy_code(scratch, modules)
        pins = bundle_contents.write_requirements(scratch, layout, modules, compiled)
        _write_templates(scratch, params, found, compiled, len(pins), "--require-hashes " if layout.lock.is_file() else "")
        difference = _compare(scratch, layout, params, found, registry, request)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    rows = len(request.get("rows") or request.get("users") or ())
    return ExportResult(problem, chosen, str(out), compiled, len(pins), round(size, 1), rows, difference)


def _write_model(folder: Path, registry: "Registry", version: "Version") -> bool:
    """The model file and bundle.json, its entry in the registry. Returns whether it is a compiled model."""
    (folder / MODEL).mkdir()
    file = registry.download(version.problem, version.version, folder / MODEL)
    compiled, tagged = file.suffix == ".onnx", ("kind", "model", "metric", "cutoff", "git.commit", "sha256", "verdict.reason")
    described = registry.model_input(version.problem, version.version)
    write_json(
        folder / MANIFEST,
        {
            "problem": version.problem,
            "version": version.version,
            "compiled": compiled,
            "file": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "features": described.features,
            "levels": described.levels,
            "example": _without_nan(described.example),
            "background": _without_nan(described.background),
            "optional": described.optional,
            "tags": {name: version.tags[name] for name in tagged if name in version.tags},
        },
    )
    return compiled


def _write_params(folder: Path, layout: Layout, params: Params, problem: str) -> None:
    """The part of params.yaml that serving reads: the problem's section, its tables with their expectations, and serve.

    No database address leaves the project.
    """
    section, serve = params.section(problem), params.serve.model_copy(update={"ledger": False, "parity_share": 0.0})
    tables = set(section.features.tables)
    whole = params.model_dump(mode="json", by_alias=True, exclude={"sections"}, exclude_unset=True)
    kept: dict[str, Any] = {"project": whole["project"], "problems": {problem: params.kind(problem)}}
    read = {name: contract(params, name, layout) for name in params.ingest if name in tables}
    kept["ingest"] = {
        name: {"csv": f"{name}.csv", **source.model_dump(mode="json", exclude={*PLACES}, exclude_unset=True)}
        for name, source in read.items()
    }
    kept["validate"] = {
        name: {"expectations": each.get("expectations", [])}
        for name, each in whole.get("validate", {}).items()
        if name in tables
    }
    kept["serve"] = serve.model_dump(mode="json", exclude_defaults=True)
    kept[problem] = section.model_dump(mode="json", exclude_unset=True)
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(json.loads(json.dumps(kept, default=str)), file)


PLACES = (*SOURCES, "url", "sheet")
"""Keys of a table in params that say where it is read from."""


def _write_request(folder: Path, layout: Layout, params: Params, version: "Version", registry: "Registry") -> dict[str, Any]:
    """request.json: an example for the comparison and for a first try. A recommender also gets its histories."""
    section = params.section(version.problem)
    if section.predicts == "lists":
        import polars as pl

        features = layout.features(version.problem)
        if not features.is_dir():
            raise ModelError(f"{version.problem}: has no features yet; run evergreen train {version.problem}")
        shutil.copytree(features, folder / "data" / "features" / version.problem)
        users = pl.scan_parquet(features / "lines.parquet").select(pl.col("user").unique(maintain_order=True)).head(EXAMPLES)
        request: dict[str, Any] = {"users": users.collect()["user"].to_list(), "k": section.pipeline.k}
    else:
        request = {"rows": _without_nan(registry.model_input(version.problem, version.version).example[:EXAMPLES])}
    write_json(folder / "request.json", request)
    return request


def _without_nan(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with None for NaN, which strict JSON does not have."""
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def _write_templates(folder: Path, params: Params, version: "Version", compiled: bool, packages: int, pip_options: str) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False, trim_blocks=True)
    lists = params.section(version.problem).predicts == "lists"
    section = params.section(version.problem)
    values = {
        "problem": version.problem,
        "version": version.version,
        "question": section.question,
        "model": version.tags.get("model", ""),
        "cutoff": version.tags.get("cutoff", "none"),
        "compiled": compiled,
        "why": version.tags.get("compiled", "").removeprefix("no: "),
        "lists": lists,
        "packages": packages,
        "pip_options": pip_options,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "address": f"/v1/recommend/{version.problem}" if lists else f"/v1/predict/{version.problem}",
        "port": PORT,
    }
    for source in sorted(TEMPLATES.iterdir()):
        (folder / source.name.removeprefix("_")).write_text(pages.get_template(source.name).render(values) + "\n")


def _compare(
    folder: Path, layout: Layout, params: Params, version: "Version", registry: "Registry", request: dict[str, Any]
) -> float:
    """The largest difference between the predictions of the bundle and of the registered model for `request`.

    Raises ModelError beyond TOLERANCE, and if the bundle fails.
    """
    from evergreen.serving import model_loading
    from evergreen.serving.loaded_model import ListModel, RowModel

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EVERGREEN"))}
    with tempfile.TemporaryDirectory() as state:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "evergreen.serving.bundle_server", "--predict", "request.json", "--state", state],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(f"{version.problem} v{version.version}: the bundle failed to predict its example: {reason}")
    model = model_loading.load(params, layout, registry, settings.events(layout), version.problem, version.version)
    if isinstance(model, RowModel):
        expected: Any = model.predict([model.parse(row) for row in request["rows"]])
    else:
        from evergreen.tasks.problems.recommender.list_request import Request

        assert isinstance(model, ListModel)
        expected = model.recommend(Request.read(request))
    difference = largest_difference(json.loads(done.stdout), json.loads(json.dumps(expected, default=str)))
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{version.problem} v{version.version}: the bundle's predictions differ from the registered model's by "
            f"{difference:.2g} (at most {TOLERANCE:g}); nothing was exported"
        )
    return difference


def largest_difference(one: Any, other: Any) -> float:
    """The largest difference between two JSON values; infinite if anything but a number differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((largest_difference(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(largest_difference, one, other), default=0.0)
    if isinstance(one, float) and isinstance(other, float | int):
        return abs(one - other)
    return 0.0 if one == other else float("inf")
