"""The server of a bundle: one registered version, served from files, without a project or a registry.

`evergreen export` copies this module and what it imports into the bundle. `python -m evergreen.serving.bundle_server` there
serves with the modules of `evergreen serve`; only the model comes from the bundle's folder. It writes nothing but keys and, for
a recommender, purchase events. There is no `-P`: the bundle's own folder holds the package.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.serving import model_loading
from evergreen.serving.access_control import AccessControl
from evergreen.serving.app import App
from evergreen.serving.keys import Keys
from evergreen.serving.loaded_model import ListModel, LoadedModel, RowModel
from evergreen.serving.metrics import Metrics
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.serving_set import ServingSet
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import log_limits
from evergreen.tasks.core.errors import EvergreenError, ModelError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.tasks.model_files.onnx_runtime import Compiled

MANIFEST = "bundle.json"
"""In the bundle's folder: problem, version, and its registry entry (see BundleFiles)."""
MODEL = "model"
"""Folder of the model's file in the bundle."""
DATABASE = "bundle.db"
"""In the state folder: keys and purchase events."""


@dataclass(frozen=True)
class ModelInput:
    """The inputs of the version, as in the registry."""

    features: Mapping[str, str]
    example: tuple[Mapping[str, Any], ...]
    levels: Mapping[str, Sequence[str]]
    background: tuple[Mapping[str, Any], ...]
    optional: tuple[str, ...]


class BundleFiles:
    """The one version of the bundle in `folder`, with the methods of a registry."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError if the folder is not a bundle."""
        self._folder = folder
        try:
            self._manifest = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / MANIFEST}: cannot be read: {error}. Is this the folder of a bundle?") from error
        self.problem, self.version = str(self._manifest["problem"]), int(self._manifest["version"])

    def model_input(self, _problem: str, _version: int) -> ModelInput:
        manifest = self._manifest
        background = tuple(manifest.get("background", ()))
        optional = tuple(manifest.get("optional", ()))
        return ModelInput(manifest["features"], tuple(manifest["example"]), manifest["levels"], background, optional)

    def load_compiled(self, _problem: str, _version: int) -> "Compiled | None":
        """None if the bundle holds the pipeline."""
        if not self._manifest["compiled"]:
            return None
        from evergreen.tasks.model_files.onnx_runtime import Compiled

        return Compiled(self._file())

    def load(self, _problem: str, _version: int) -> Any:
        """The pipeline. Raises ModelError if the bundle holds only the compiled model."""
        if self._manifest["compiled"]:
            raise ModelError(f"{self.problem} v{self.version}: the bundle holds only the compiled model")
        from evergreen.tasks.model_files import skops_models

        return skops_models.load(self._file())

    def _file(self) -> Path:
        """The model's file. Raises ModelError if its checksum differs from the exported one."""
        file = self._folder / MODEL / self._manifest["file"]
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != self._manifest["sha256"]:
            raise ModelError(f"{file}: is not the exported file (SHA-256 differs); do not use it, copy the bundle again")
        return file


@dataclass(frozen=True)
class FixedServingSet:
    """In place of a DeploymentWatcher: the version never changes."""

    champion: LoadedModel
    errors: Mapping[str, str] = field(default_factory=dict)
    away: Collection[str] = ()
    read_at: datetime | None = None
    unread_since: datetime | None = None

    def serving_set(self, problem: str) -> "ServingSet[LoadedModel] | None":
        return ServingSet(self.champion) if problem == self.champion.problem else None


def load_model(folder: Path, params: Params, state: Path) -> LoadedModel:
    """The bundle's version, loaded and checked on its own example. Raises ModelError if it cannot serve."""
    files, events = BundleFiles(folder), None
    if params.section(files.problem).predicts == "lists":
        from evergreen.serving.event_log import EventLog

        events = EventLog(_address(state))
    found = model_loading.load(params, Layout(folder), files, events, files.problem, files.version)  # pyright: ignore[reportArgumentType]
    found.self_check()
    return found


def application(folder: Path, host: str, state: Path) -> App:
    """The application. Raises ProjectError if other machines can reach `host` and there is no key."""
    params = load(Layout(folder).params)
    access = AccessControl(params.serve, host, Keys(_address(state)))
    watcher = FixedServingSet(load_model(folder, params, state))
    access.start()
    return App(PredictionService(params, watcher, None, None, Metrics()), access)


def _address(state: Path) -> str:
    return f"sqlite:///{state.absolute() / DATABASE}"


def serve(folder: Path, host: str, port: int, state: Path) -> None:
    """Serve until SIGTERM or SIGINT; open requests finish."""
    import uvicorn

    from evergreen.serving import http_protocol

    app = application(folder, host, state)
    uvicorn.Server(http_protocol.configure(app, load(Layout(folder).params).serve, host=host, port=port)).run()


def main() -> None:
    """The command line. Expected errors are one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser("python -m evergreen.serving.bundle_server", description="Serve this bundle over HTTP.")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind; any but loopback needs an API key")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2], help="the bundle")
    parser.add_argument("--state", type=Path, help="folder for keys and purchase events; default: the bundle")
    parser.add_argument("--add-key", metavar="NAME", help="create an API key, print it and exit")
    parser.add_argument(
        "--predict", type=Path, metavar="FILE", help="predict the rows of a JSON file, print the result and exit"
    )
    options = parser.parse_args()
    log_limits.configure(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    state = options.state or options.folder
    try:
        if options.add_key:
            print(Keys(_address(state)).add(options.add_key, ("predict",)))  # noqa: T201  # shown once
        elif options.predict:
            request = json.loads(options.predict.read_text())
            print(json.dumps(_predict(options.folder, state, request), default=str))  # noqa: T201
        else:
            serve(options.folder, options.host, options.port, state)
    except EvergreenError as error:
        sys.exit(f"error: {error}")


def _predict(folder: Path, state: Path, request: Any) -> list[dict[str, Any]]:
    """The outputs for rows of features; for a recommender the lists of the request's users."""
    model = load_model(folder, load(Layout(folder).params), state)
    if isinstance(model, RowModel):
        return model.predict([model.parse(row) for row in request["rows"]])
    from evergreen.tasks.problems.recommender.list_request import Request

    assert isinstance(model, ListModel)
    return model.recommend(Request.read(request))


if __name__ == "__main__":
    main()
