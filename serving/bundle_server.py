"""The server of a bundle: one registered version that answers from files, on a machine that has no project and no registry.

`evergreen export` lays this module and what it needs into the bundle. `python -m evergreen.serving.bundle_server` there
answers over HTTP with
the same modules that `evergreen serve` has; only what would come from the registry comes from the bundle's folder, and nothing
is written down but keys and, for a recommender, purchases.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.serving import loaded_model
from evergreen.serving.access_control import Guard
from evergreen.serving.app import App
from evergreen.serving.deployment_watcher import Lineup
from evergreen.serving.keys import Keys
from evergreen.serving.metrics import Metrics
from evergreen.serving.prediction_service import Answering
from evergreen.tasks.config.params import Params, load
from evergreen.tasks.core.errors import EvergreenError, ModelError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.tasks.model_files.onnx_runtime import Compiled

CARD = "bundle.json"
"""In the bundle's folder: problem, version, and what the registry says of it (see Files)."""
MODEL = "model"
"""Folder of the model's file, in the bundle's."""
DATABASE = "bundle.db"
"""In the folder of state: keys and purchases."""


@dataclass(frozen=True)
class Described:
    """What the version takes, as the registry describes it."""

    features: Mapping[str, str]
    example: tuple[Mapping[str, Any], ...]
    trained: Mapping[str, str]


class Files:
    """What a registry says of the one version of a bundle, read from its `folder`."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError where the folder is no bundle."""
        self._folder = folder
        try:
            self._card = json.loads((folder / CARD).read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / CARD}: cannot be read: {error}. Is this the folder of a bundle?") from error
        self.problem, self.version = str(self._card["problem"]), int(self._card["version"])

    def described(self, _problem: str, _version: int) -> Described:
        card = self._card
        return Described(card["features"], tuple(card["example"]), card["tags"])

    def load_compiled(self, _problem: str, _version: int) -> "Compiled | None":
        """None where the bundle holds the pipeline itself."""
        if not self._card["compiled"]:
            return None
        from evergreen.tasks.model_files.onnx_runtime import Compiled

        return Compiled(self._file())

    def load(self, _problem: str, _version: int) -> Any:
        """The pipeline. Raises ModelError where the bundle holds the compiled model alone."""
        if self._card["compiled"]:
            raise ModelError(f"{self.problem} v{self.version}: the bundle holds its compiled model alone")
        from evergreen.tasks.model_files import skops_models

        return skops_models.load(self._file())

    def _file(self) -> Path:
        """The model's file. Raises ModelError where it is not what was exported."""
        file = self._folder / MODEL / self._card["file"]
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != self._card["sha256"]:
            raise ModelError(f"{file}: is not the file that was exported; do not use it, and copy the bundle again")
        return file


@dataclass(frozen=True)
class Alone:
    """The lineup of a server whose version never changes."""

    champion: loaded_model.Served
    troubles: tuple[str, ...] = ()

    def lineup(self, problem: str) -> "Lineup[loaded_model.Served] | None":
        return Lineup(self.champion) if problem == self.champion.problem else None


def version(folder: Path, params: Params, state: Path) -> loaded_model.Served:
    """The bundle's version, loaded and checked on its own example. Raises ModelError where it cannot answer."""
    files, events = Files(folder), None
    if params.kind(files.problem) == "recommendation":
        from evergreen.serving.event_log import EventLog

        events = EventLog(_address(state))
    found = loaded_model.load(params, Layout(folder), files, events, files.problem, files.version)  # pyright: ignore[reportArgumentType]
    found.check()
    return found


def application(folder: Path, host: str, state: Path) -> App:
    """The application. Raises ProjectError where `host` is reached from elsewhere and there is no key."""
    params = load(Layout(folder).params)
    guard = Guard(params.serve, host, Keys(_address(state)))
    watch: Any = Alone(version(folder, params, state))
    guard.start()
    return App(Answering(params, watch, None, None, Metrics()), watch, guard)


def _address(state: Path) -> str:
    return f"sqlite:///{state.absolute() / DATABASE}"


def serve(folder: Path, host: str, port: int, state: Path) -> None:
    """Answer until SIGTERM or SIGINT; what is under way is finished then."""
    import uvicorn

    app = application(folder, host, state)
    uvicorn.run(app, host=host, port=port, ws="none", lifespan="on", access_log=False, server_header=False, proxy_headers=False)


def main() -> None:
    """The command line. Expected errors are one line on stderr and exit status 1."""
    given = argparse.ArgumentParser(
        "python -m evergreen.serving.bundle_server", description="Answer over HTTP from the files of this bundle."
    )
    given.add_argument("--host", default="127.0.0.1", help="address to bind; other than this machine's own needs a key")
    given.add_argument("--port", type=int, default=8080)
    given.add_argument("--folder", type=Path, default=Path(__file__).parents[2], help="the bundle")
    given.add_argument("--state", type=Path, help="folder of what is written: keys, purchases; the bundle's own without")
    given.add_argument("--add-key", metavar="NAME", help="make a key that may ask, print it and end")
    given.add_argument("--answer", type=Path, metavar="FILE", help="answer the rows of a JSON file, print them and end")
    found = given.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    state = found.state or found.folder
    try:
        if found.add_key:
            print(Keys(_address(state)).add(found.add_key, ("predict",)))  # noqa: T201  # shown once
        elif found.answer:
            print(json.dumps(_answers(found.folder, state, json.loads(found.answer.read_text())), default=str))  # noqa: T201
        else:
            serve(found.folder, found.host, found.port, state)
    except EvergreenError as error:
        sys.exit(f"error: {error}")


def _answers(folder: Path, state: Path, asked: Any) -> list[dict[str, Any]]:
    """The answers to rows of features; of a recommender the lists of a request's users."""
    one = version(folder, load(Layout(folder).params), state)
    if isinstance(one, loaded_model.Rows):
        return one.answer([one.read(row) for row in asked["rows"]])
    from evergreen.tasks.problems.recommender.list_builder import Request

    assert isinstance(one, loaded_model.Lists)
    return one.lists(Request.read(asked))


if __name__ == "__main__":
    main()
