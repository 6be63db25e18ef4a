"""A registered model in MLflow's own format: any client of MLflow loads it, with the packages and the code that it lists.

The model is a `python_function` with a copy of tasks/logged_model and of what that imports. MLflow's `sklearn` flavor, for the
pipeline as it was fitted, needs an installed Evergreen.
"""

import hashlib
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow.pyfunc as flavour
import polars as pl
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

from evergreen import model_types
from evergreen.tasks.config.data import ColumnType, Source
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import BACKGROUND, JUDGED, LEVELS, MODEL, Layout, sha256
from evergreen.tasks.data.snapshot import contract
from evergreen.tasks.logged_model.frames import admit
from evergreen.tasks.logged_model.manifest import MANIFEST, InputColumn, Manifest, Trained
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.model_files.onnx_export import Attempt
from evergreen.tasks.problems.base import Model
from evergreen.tasks.release import code_closure
from evergreen.tasks.release.candidate import Candidate

LOADER = "tasks.logged_model.loader"
"""Module, in the package, that MLflow loads a model with."""
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""Package that code imports -> name to install it by, where the two differ."""
ALWAYS = ("mlflow", "pandas", "numpy")
"""Packages that any client of a logged model needs."""
CONTRACT_TYPES: Mapping[Trained, ColumnType] = {"number": "number", "date": "datetime", "text": "text"}
"""Type in training -> type in a contract, of columns that no contract lists."""
LABELS = {str: DataType.string, bool: DataType.boolean, int: DataType.long, float: DataType.double}
"""Type of a class -> MLflow's."""


def write(folder: Path, candidate: Candidate, model: Model, compiled: Attempt, identity: Any) -> dict[str, str]:
    """Write `folder`: model, compiled model, categories, code, requirements, signature and example. `identity`: an
    mlflow.models.Model with its ids.

    Returns the tags of the version with the checksums of its files.
    """
    made, scratch = candidate.layout.model(candidate.problem), folder.parent
    skops_models.save(model, scratch / MODEL)
    modules = tuple(code_closure.closure(_roots(scratch / MODEL, candidate, bool(compiled.file))))
    package, code = _copy_code(scratch / "code", modules)
    manifest = describe_input(candidate)
    stated = signature(candidate, manifest, model)
    save: Any = flavour.save_model
    save(
        str(folder),
        loader_module=f"{package}.{LOADER}",
        code_paths=[str(code)],
        mlflow_model=identity,
        signature=stated,
        input_example=admit(candidate.example(), stated.inputs),
        pip_requirements=_requirements(modules, None if compiled.file else scratch / MODEL),
        metadata={"problem": candidate.problem, "kind": candidate.card["kind"], "model": candidate.card["config"]["model"]},
    )
    identity.add_flavor(
        "sklearn",
        pickled_model=MODEL,
        sklearn_version=installed("scikit-learn"),
        serialization_format="skops",
        code=None,
        skops_trusted_types=list(skops_models.TRUSTED),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    shutil.move(scratch / MODEL, folder / MODEL)
    shutil.copyfile(made / LEVELS, folder / LEVELS)
    if (made / BACKGROUND).exists():
        shutil.copyfile(made / BACKGROUND, folder / BACKGROUND)
    tags = {"sha256": sha256(folder / MODEL), f"sha256.{MANIFEST}": sha256(folder / MANIFEST), **compiled.tags()}
    if (made / JUDGED).exists():
        shutil.copyfile(made / JUDGED, folder / JUDGED)
        tags[f"sha256.{JUDGED}"] = sha256(made / JUDGED)
    compiled.write(folder / "compiled")
    identity.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    identity.save(str(folder / "MLmodel"))
    return tags


def read_packages() -> None:
    """Let MLflow read the metadata of all installed packages, which it does once in a process and which takes a second."""
    warn_dependency_requirement_mismatches(["mlflow"])


# -- what goes in and comes out


def describe_input(candidate: Candidate) -> Manifest:
    """The columns of the model as the data contract and training have them."""
    section = candidate.params.section(candidate.problem)
    if section.predicts == "lists":
        given = section.features
        return Manifest(problem=candidate.problem, predicts="lists", user=given.user, item=given.item, k=section.pipeline.k)
    source = _contract(candidate.params, candidate.problem, candidate.layout)
    types, missing = _trained(candidate)
    columns = {
        name: InputColumn(
            type=source.types.get(name, CONTRACT_TYPES[trained]),
            trained=trained,
            required=not missing.get(name, False),
        )
        for name, trained in types.items()
    }
    kept = source.model_copy(update={"types": {name: each.type for name, each in columns.items()}})
    return Manifest(problem=candidate.problem, predicts="rows", columns=columns, contract=kept)


def _contract(params: Params, problem: str, layout: Layout) -> Source:
    """The formats and missing values of the columns of the model, without the place that the table is read from."""
    features = params.section(problem).features
    if features.by_cutoff is not False:
        return Source(parquet="input")
    given, columns = contract(params, features.table, layout), set(features.columns)
    by_column = {
        key: {name: value for name, value in getattr(given, key).items() if name in columns}
        for key in ("types", "number_formats", "date_formats", "missing")
    }
    times = {"time": given.time, "local_timezone": given.local_timezone, "stored_timezone": given.stored_timezone}
    kept = {"null_values": given.null_values, "decimal": given.decimal, "separator": given.separator}
    return Source.model_validate({"parquet": "input", **by_column, **kept, **times})


def _trained(candidate: Candidate) -> tuple[dict[str, Trained], dict[str, bool]]:
    """Column -> its type in training, and whether a row of training lacked it."""
    names, rows = candidate.card["features"], candidate.layout.features(candidate.problem) / "rows.parquet"
    schema: dict[str, pl.DataType] = dict(pl.read_parquet_schema(rows)) if rows.exists() else {}
    example: Any = candidate.example()
    numeric = {name: schema[name].is_numeric() or schema[name] == pl.Boolean for name in names if name in schema}
    types: dict[str, Trained] = {
        name: "date"
        if name in schema and schema[name].is_temporal()
        else "number"
        if numeric.get(name, example[name].dtype.kind in "fiub")
        else "text"
        for name in names
    }
    there = [name for name in names if name in schema]
    if not there:
        return types, {name: bool(example[name].isna().any()) for name in names}
    counts = pl.scan_parquet(rows).select(
        (pl.col(name).is_null() | (pl.col(name).is_nan() if schema[name].is_float() else False)).any() for name in there
    )
    return types, counts.collect().row(0, named=True)


def signature(candidate: Candidate, manifest: Manifest, model: Model) -> ModelSignature:
    """The data contract as MLflow states it: numbers are doubles, which may be missing; everything else is a string.

    A date is a string since MLflow's own reading of text as times guesses the order of day and month. A column is optional if
    training had rows without it.
    """
    if manifest.predicts == "lists":
        return _of_lists(manifest, model)
    inputs = [
        ColSpec(DataType.double if _is_plain_number(name, manifest) else DataType.string, name, column.required)
        for name, column in manifest.columns.items()
    ]
    classes = [getattr(each, "item", lambda each=each: each)() for each in getattr(model, "classes_", ())]
    kind = LABELS.get(type(classes[0]), DataType.string) if classes else DataType.double
    if candidate.card["kind"] == "clustering":
        kind = DataType.long
    outputs = [ColSpec(kind, "prediction"), *(ColSpec(DataType.double, f"probability_{each}", False) for each in classes)]
    params = ParamSchema([ParamSpec("output", DataType.string, "prediction")]) if classes else None
    return ModelSignature(Schema(inputs), Schema(outputs), params)  # pyright: ignore[reportArgumentType]


def _is_plain_number(name: str, manifest: Manifest) -> bool:
    """Whether any reader of the table's file has the column as numbers: no format, unit or word for a missing value."""
    kind, contract = manifest.columns[name].type, manifest.contract
    if name in contract.number_formats or name in contract.missing:
        return False
    return kind == "integer" or (kind == "number" and contract.decimal == ".")


def _of_lists(manifest: Manifest, model: Model) -> ModelSignature:
    from mlflow.types.schema import Array

    users, items = (
        DataType.long if ids.dtype.kind in "iu" else DataType.string for ids in (model.histories_.users, model.catalogue_)
    )
    inputs = [ColSpec(users, manifest.user, False), ColSpec(DataType.string, "basket", False)]
    outputs = [ColSpec(Array(items), "items"), ColSpec(Array(DataType.double), "scores")]
    params = [ParamSpec("k", DataType.long, manifest.k), ParamSpec("novel", DataType.boolean, default=False)]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(params))  # pyright: ignore[reportArgumentType]


# -- code and packages


def _roots(file: Path, candidate: Candidate, compiled: bool) -> list[str]:
    """The modules that a logged model imports: its loader and, without a compiled model, those of the types in its file."""
    found = [f"evergreen.{LOADER}"]
    if compiled:
        return found
    with zipfile.ZipFile(file) as archive:
        schema = archive.read("schema.json").decode()
    found += ["evergreen.tasks.model_files.skops_models", "evergreen.model_types"]
    found += sorted({home for name, home in model_types.HOMES.items() if f'"{name}"' in schema})
    if candidate.params.section(candidate.problem).predicts == "lists":
        found.append("evergreen.tasks.logged_model.list_scorer")
    return found


def _copy_code(folder: Path, modules: tuple[str, ...]) -> tuple[str, Path]:
    """Copy the modules to `folder`, as a package whose name depends on its content. Returns the name, and its folder."""
    package, files = _renamed_code(modules)
    for place, text in files.items():
        path = folder / package / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package, folder / package


@cache
def _renamed_code(modules: tuple[str, ...]) -> tuple[str, dict[Path, str]]:
    """The name of the package, and file -> its text, which imports from that package."""
    files = code_closure.files(modules)
    root = code_closure.CODE / "evergreen"
    texts = {path.relative_to(root): path.read_text() for path in sorted(files)}
    digest = hashlib.sha256(json.dumps({str(path): text for path, text in texts.items()}).encode()).hexdigest()
    package = f"evergreen_{digest[:12]}"
    name = re.compile(r"\bevergreen(?=\.(?:tasks|model_types)\b|\s+import\b)")
    return package, {path: name.sub(package, text) for path, text in texts.items()}


def _requirements(modules: Sequence[str], file: Path | None) -> list[str]:
    """The packages of the code and, unless it is None, of the model in `file`, as installed, such as scikit-learn==1.9.1."""
    named = {name.partition(".")[0] for tree in code_closure.closure(modules).values() for name in code_closure.imported(tree)}
    named -= {"evergreen", *sys.stdlib_module_names}
    return _pinned({*named, *ALWAYS, *(_packages(file) if file else ())})


def requirements(file: Path) -> list[str]:
    """The packages that read the model in `file`, at the versions that wrote it."""
    return _pinned({*_packages(file), *ALWAYS})


def _packages(file: Path) -> set[str]:
    """The packages of the types in a skops file."""
    with zipfile.ZipFile(file) as archive:
        named = re.findall(r'"__module__": "(\w+)', archive.read("schema.json").decode())
    return {"skops", "sklearn"} | ({*named} & {"lightgbm", "scipy"})


def _pinned(packages: set[str]) -> list[str]:
    names = sorted(DISTRIBUTIONS.get(name, name) for name in packages)
    return [f"{name}=={installed(name)}" for name in names]
