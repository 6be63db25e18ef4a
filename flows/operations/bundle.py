"""A registered version as a bundle: a folder that answers over HTTP on a machine that has neither the project nor a registry.

It holds the model's file, the modules of serving and tasks that answering imports (as they are here, no second implementation),
and of requirements.lock the packages that these import, with their hashes.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

import evergreen
from evergreen.flows import settings
from evergreen.flows.operations import batch_scoring
from evergreen.serving.bundle_server import MANIFEST, MODEL
from evergreen.tasks.config.params import SECTIONS, KindName, Params
from evergreen.tasks.core.errors import ModelError, ProjectError
from evergreen.tasks.core.paths import Layout, write_json, writing

if TYPE_CHECKING:
    from evergreen.tasks.release.mlflow_store import Version
    from evergreen.tasks.release.model_registry import Registry

CODE = Path(evergreen.__file__).parents[1]
"""The folder that holds the package evergreen."""
SERVER = ("uvicorn", "uvloop", "httptools")
"""What runs the application."""
TEMPLATES = CODE / "evergreen" / "flows" / "templates" / "bundle"
PORT = 8080
SAME = 1e-9
"""The bundle's answers may differ from the registered model's by so much."""
TRIED = 3
"""Rows, or users, of the example request."""


@dataclass(frozen=True)
class Exported:
    problem: str
    version: int
    out: str
    compiled: bool
    packages: int
    """In requirements.txt."""
    megabytes: float
    rows: int
    """Answered by the bundle and by the registered model, to compare."""
    difference: float
    """The largest between the two."""


def run(layout: Layout, params: Params, problem: str, out: Path, version: int | None) -> Exported:
    """Write the bundle of `version`, or the champion for None, to the folder `out`, whole or not at all.

    It is asked its own example request before it takes its place, with nothing of this project to import, and must answer as
    the registered model does.
    Raises ProjectError where `out` has something in it or requirements.lock is not there, ModelError for a version that cannot
    be had, and where the bundle answers otherwise.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ProjectError(f"{out}: is there already; name a folder that is new or empty")
    if not layout.lock.is_file():
        raise ProjectError(f"{layout.lock}: is not there, so nothing says which packages the bundle needs; run make lock")
    chosen = batch_scoring.chosen(layout, problem, version)
    registry = settings.registry(layout)
    found = registry.require(problem, chosen)
    with writing(out) as scratch:
        scratch.mkdir()
        compiled = _lay_model(scratch, registry, found)
        (scratch / "params.yaml").write_text("")
        _lay_params(scratch, params, problem)
        request = _lay_request(scratch, layout, params, found, registry)
        modules = closure(_roots(params.kind(problem), compiled))
        _lay_code(scratch, modules)
        pins = _lay_requirements(scratch, layout, modules, compiled)
        _lay_templates(scratch, params, found, compiled, len(pins))
        difference = _compare(scratch, layout, params, found, registry, request)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    rows = len(request.get("rows") or request.get("users") or ())
    return Exported(problem, chosen, str(out), compiled, len(pins), round(size, 1), rows, difference)


def _lay_model(folder: Path, registry: "Registry", version: "Version") -> bool:
    """The model's file and what the registry says of the version. Returns whether it is the compiled one."""
    (folder / MODEL).mkdir()
    file = registry.download(version.problem, version.version, folder / MODEL)
    compiled, tagged = file.suffix == ".onnx", ("kind", "model", "metric", "cutoff", "git.commit", "sha256", "verdict.reason")
    described = registry.described(version.problem, version.version)
    write_json(
        folder / MANIFEST,
        {
            "problem": version.problem,
            "version": version.version,
            "compiled": compiled,
            "file": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "features": described.features,
            "example": _known(described.example),
            "tags": {name: version.tags[name] for name in tagged if name in version.tags},
        },
    )
    return compiled


def _lay_params(folder: Path, params: Params, problem: str) -> None:
    """Of params.yaml what answering reads: the problem's section, how its tables are written and what holds in them, and serve.

    No address of a database leaves the project.
    """
    section, serve = params.section(problem), params.serve.model_copy(update={"ledger": False, "parity_share": 0.0})
    tables = set(section.features.tables)
    whole = params.model_dump(mode="json", by_alias=True, exclude={"sections"}, exclude_unset=True)
    kept: dict[str, Any] = {"project": whole["project"], "problems": {problem: params.kind(problem)}}
    kept["ingest"] = {
        name: {"csv": f"{name}.csv", **{key: value for key, value in each.items() if key not in PLACES}}
        for name, each in whole["ingest"].items()
        if name in tables
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


PLACES = ("store", "csv", "parquet", "sql", "url")
"""Of a table in params: where it comes from."""


def _lay_request(folder: Path, layout: Layout, params: Params, version: "Version", registry: "Registry") -> dict[str, Any]:
    """request.json, for the server's answers and for a first try. A recommender brings the histories that it reads."""
    section = params.section(version.problem)
    if section.predicts == "lists":
        import polars as pl

        features = layout.features(version.problem)
        if not features.is_dir():
            raise ModelError(f"{version.problem}: has no features yet; run evergreen train {version.problem}")
        shutil.copytree(features, folder / "data" / "features" / version.problem)
        users = pl.scan_parquet(features / "lines.parquet").select(pl.col("user").unique(maintain_order=True)).head(TRIED)
        request: dict[str, Any] = {"users": users.collect()["user"].to_list(), "k": section.pipeline.k}
    else:
        request = {"rows": _known(registry.described(version.problem, version.version).example[:TRIED])}
    write_json(folder / "request.json", request)
    return request


def _known(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`rows` in strict JSON: what is not known is null."""
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


# -- code


def _roots(kind: KindName, compiled: bool) -> list[str]:
    if compiled:
        return ["evergreen.serving.bundle_server"]
    lists = (
        ["evergreen.serving.recommender_service", "evergreen.tasks.problems.recommender.list_builder"]
        if SECTIONS[kind].predicts == "lists"
        else []
    )
    return [
        "evergreen.serving.bundle_server",
        "evergreen.tasks.model_files.skops_models",
        f"evergreen.tasks.problems.{kind}.kind",
        *lists,
    ]


def closure(roots: Iterable[str]) -> dict[str, ast.Module]:
    """Every module of ours that importing `roots` imports, by name; what is imported inside functions is not among them."""
    found: dict[str, ast.Module] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = ast.parse(path.read_text())
        waiting += [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        waiting += [each for each in imported(found[name]) if each.partition(".")[0] == "evergreen"]
    return found


def _file(module: str) -> Path | None:
    path = CODE.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def imported(module: ast.Module) -> list[str]:
    """What a module imports when it is imported itself, as dotted names; names from a module are such names too."""
    found: list[str] = []
    for node in _statements(module.body):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements(node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else [*node.body, *node.orelse])
        elif isinstance(node, ast.Try | ast.With):
            yield from _statements(node.body)


def _lay_code(folder: Path, modules: Iterable[str]) -> None:
    for name in modules:
        path = _file(name)
        assert path is not None
        place = folder / path.relative_to(CODE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


# -- packages


def _lay_requirements(folder: Path, layout: Layout, modules: dict[str, ast.Module], compiled: bool) -> list[str]:
    """requirements.txt: the lock's own lines for what the code and the model import, and for what that needs."""
    known = packages_distributions()
    named = {each.partition(".")[0] for tree in modules.values() for each in imported(tree)} - {
        "evergreen",
        *sys.stdlib_module_names,
    }
    wanted: set[str] = {*SERVER, *(canonicalize_name(each) for name in named for each in known.get(name, ()))}
    if not compiled:
        from evergreen.tasks.release.mlflow_store import requirements

        pinned = requirements(next((folder / MODEL).glob("*.skops")))
        wanted |= {canonicalize_name(Requirement(each).name) for each in pinned} - {"mlflow"}
    blocks = _blocks(layout.lock.read_text())
    needed = sorted(_with_all_they_need(wanted) & blocks.keys())
    head = "# Of requirements.lock of the project: install with  pip install --require-hashes -r requirements.txt\n"
    (folder / "requirements.txt").write_text(head + "".join(blocks[name] for name in needed))
    return needed


def _blocks(lock: str) -> dict[str, str]:
    """Package -> its lines in the lock, without comments: one version, or one for each of some Pythons and systems."""
    lines, found = "".join(line for line in lock.splitlines(keepends=True) if not line.lstrip().startswith("#")), {}
    for each in filter(None, re.split(r"(?m)^(?=[A-Za-z0-9])", lines)):
        name = canonicalize_name(re.split(r"[=\[ ]", each, maxsplit=1)[0])
        found[name] = found.get(name, "") + each
    return found


def _with_all_they_need(names: set[str]) -> set[str]:
    """With the requirements of these packages, of those, and so on, as they are installed here."""
    found: set[str] = set()
    waiting = sorted(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another system
        for each in map(Requirement, needs):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(each.name))
    return found


# -- the rest


def _lay_templates(folder: Path, params: Params, version: "Version", compiled: bool, packages: int) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False, trim_blocks=True)
    lists = params.section(version.problem).predicts == "lists"
    section = params.section(version.problem)
    told = {
        "problem": version.problem,
        "version": version.version,
        "question": section.question,
        "model": version.tags.get("model", ""),
        "cutoff": version.tags.get("cutoff", "none"),
        "compiled": compiled,
        "why": version.tags.get("compiled", "").removeprefix("no: "),
        "lists": lists,
        "packages": packages,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "address": f"/v1/recommend/{version.problem}" if lists else f"/v1/predict/{version.problem}",
        "port": PORT,
    }
    for source in sorted(TEMPLATES.iterdir()):
        (folder / source.name.removeprefix("_")).write_text(pages.get_template(source.name).render(told) + "\n")


def _compare(
    folder: Path, layout: Layout, params: Params, version: "Version", registry: "Registry", request: dict[str, Any]
) -> float:
    """The largest difference of the bundle's answers to `request` from the registered model's.

    Raises ModelError beyond SAME, and where the bundle does not answer.
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
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ModelError(f"{version.problem} v{version.version}: the bundle does not answer its example: {said}")
    model = model_loading.load(params, layout, registry, settings.events(layout), version.problem, version.version)
    if isinstance(model, RowModel):
        expected: Any = model.predict([model.parse(row) for row in request["rows"]])
    else:
        from evergreen.tasks.problems.recommender.list_builder import Request

        assert isinstance(model, ListModel)
        expected = model.recommend(Request.read(request))
    difference = apart(json.loads(done.stdout), json.loads(json.dumps(expected, default=str)))
    if not difference <= SAME:
        raise ModelError(
            f"{version.problem} v{version.version}: the bundle's answers differ from the registered model's by "
            f"{difference:.2g} (at most {SAME:g}); nothing was exported"
        )
    return difference


def apart(one: Any, other: Any) -> float:
    """The largest difference of two values as JSON has them; infinite where anything but a number differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((apart(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(apart, one, other), default=0.0)
    if isinstance(one, float) and isinstance(other, float | int):
        return abs(one - other)
    return 0.0 if one == other else float("inf")
