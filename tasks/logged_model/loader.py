"""The entry point for MLflow: `_load_pyfunc` loads the model of a folder.

A logged model has a copy of this package under a name of its own, so that several versions load side by side, and beside an
installed Evergreen.
"""

import io
import sys
import zipfile
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from evergreen.tasks.core.paths import COMPILED, MODEL
from evergreen.tasks.logged_model.frames import admit
from evergreen.tasks.logged_model.manifest import MANIFEST, Manifest
from evergreen.tasks.logged_model.row_scorer import RowScorer

STORED = "evergreen"
"""The package in the names of the types that a model's file holds."""
PACKAGE = __name__.partition(".")[0]


def _load_pyfunc(path: str) -> Any:
    """The model in the folder `path`, with a method `predict`. MLflow calls it."""
    folder = Path(path)
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    _admit_frames()
    if (folder / "compiled" / COMPILED).is_file():
        from evergreen.tasks.model_files.onnx_runtime import Compiled

        compiled = Compiled(folder / "compiled" / COMPILED)
        return RowScorer(folder, manifest, lambda features: compiled.predict_columns(features, len(features)))
    model = _load_pipeline(folder / MODEL)
    if manifest.predicts == "lists":
        from evergreen.tasks.logged_model.list_scorer import ListScorer

        return ListScorer(manifest, model)
    from evergreen.tasks.logged_model.row_scorer import predict_with_pipeline

    return RowScorer(folder, manifest, predict_with_pipeline(model))


def _load_pipeline(file: Path) -> Any:
    """The model of a skops file; its types come from this package."""
    from evergreen.tasks.model_files import skops_models

    if PACKAGE == STORED:
        return skops_models.load(file)
    with TemporaryDirectory() as scratch:
        renamed = Path(scratch) / file.name
        renamed.write_bytes(_renamed(file.read_bytes()))
        return skops_models.load(renamed)


def _renamed(archive: bytes) -> bytes:
    """A skops file with the modules of Evergreen under the name of this package."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as given, zipfile.ZipFile(made, "w") as changed:
        for name in given.namelist():
            content = given.read(name)
            if name == "schema.json":
                content = content.replace(f'"{STORED}.'.encode(), f'"{PACKAGE}.'.encode())
            changed.writestr(name, content)
    return made.getvalue()


def _admit_frames() -> None:
    """Let MLflow's check of an input accept for these models what `admit` converts without loss.

    Its check of types comes before any code of a model and cannot be set. Where MLflow has no such function any more, its own
    rule applies.
    """
    host: Any = sys.modules.get("mlflow.pyfunc")
    check = getattr(host, "_validate_prediction_input", None)
    if check is None or __name__ in getattr(check, "admitting", ()):
        return

    @wraps(check)
    def validate(data: Any, params: Any, input_schema: Any, params_schema: Any, flavor: Any = None) -> Any:
        if flavor == __name__ and input_schema is not None:
            data = _as_frame(data)
            data = admit(data, input_schema) if isinstance(data, pd.DataFrame) else data
        return check(data, params, input_schema, params_schema, flavor)

    validate.admitting = {__name__, *getattr(check, "admitting", ())}  # pyright: ignore[reportAttributeAccessIssue]
    host._validate_prediction_input = validate


def _as_frame(data: Any) -> Any:
    """Rows given as objects, one as an object, or columns as lists, as a frame; anything else as it is."""
    if isinstance(data, dict) and all(
        not isinstance(value, list | tuple) and not hasattr(value, "shape") for value in data.values()
    ):
        return pd.DataFrame([data])
    if isinstance(data, dict) and all(isinstance(value, list) for value in data.values()):
        return pd.DataFrame(data)
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        return pd.DataFrame(data)
    return data
