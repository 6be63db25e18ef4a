"""Registered models: every candidate with its evidence, by number and by alias.

One run and one model version per candidate, with a child run per trial of the search that found it. A file is compared with
what was registered before it is opened.
"""

import logging
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evergreen.tasks.config.params import Params, Section
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.core.paths import BACKGROUND, COMPILED, JUDGED, LEVELS, MODEL, Layout, read_json, sha256
from evergreen.tasks.logged_model.manifest import MANIFEST
from evergreen.tasks.problems.base import Model
from evergreen.tasks.release import serving_files
from evergreen.tasks.release.candidate import Candidate
from evergreen.tasks.release.mlflow_store import MlflowStore, Version, input_columns

if TYPE_CHECKING:
    from evergreen.tasks.model_files.onnx_runtime import Compiled
    from evergreen.tasks.release.promotion_gate import Verdict

log = logging.getLogger(__name__)

_LOCK = threading.RLock()


class ModelInput(Section):
    """What a registered model takes."""

    features: dict[str, str]
    """Feature -> its type as MLflow names it: double, string, datetime."""
    example: tuple[dict[str, Any], ...]
    """A few rows of features, as JSON has them."""
    levels: dict[str, list[str]]
    """Category -> its values in training."""
    background: tuple[dict[str, Any], ...] = ()
    """Training rows that contributions start from."""
    optional: tuple[str, ...] = ()
    """Features that a row may lack: training had rows without them."""


class Registry:
    """The model registry at `uri` (sqlite:///FILE, or http://HOST:PORT of a server).

    `artifacts`: a folder or an address such as s3://BUCKET/PATH for the files of new problems; "" lets a server choose.
    `root`: the project, which may be moved: an SQLite store in it records its files relative to it.
    `project`: its name, where projects share the registry: a problem is the registered model PROJECT.PROBLEM there.
    `patient`: wait for a server that does not answer yet; else it may come later (see MlflowStore).
    Raises ModelError, in one line, where MLflow refuses, RegistryError where it cannot be reached, and StorageError where files
    cannot be written.
    """

    def __init__(self, uri: str, artifacts: str, root: Path, project: str = "", patient: bool = True) -> None:
        with _LOCK:
            self._store = MlflowStore(uri, artifacts, root, project, patient)

    def open_run(self, params: Params, problem: str) -> str:
        """The id of a run that is RUNNING while the problem trains; `register` or `close_run` ends it."""
        with _LOCK, self._store.errors():
            return self._store.open_run(params, problem)

    def close_run(self, run_id: str, status: Literal["FAILED", "KILLED"] | None) -> None:
        """End an open run; None deletes it, since its training made nothing new. One that has ended stays as it is."""
        with _LOCK, self._store.errors():
            if not self._store.is_running(run_id):
                return
            if status:
                self._store.end_run(run_id, status)
            else:
                self._store.discard_run(run_id)

    def register(
        self,
        params: Params,
        problem: str,
        layout: Layout,
        verdict: "Verdict",
        lineage: Mapping[str, str],
        opened: str | None = None,
    ) -> Version:
        """Register the trained model of `problem` with its evidence and the gate's verdict, as `challenger`.

        Idempotent: the same model on the same features is the same version, and its evidence is updated; a version with lost
        or changed files is registered again under a new number. A killed
        registration leaves a whole version or none. The champion stays champion and does not become challenger.
        `opened`: the run of `open_run`; it becomes that of a new version, and is deleted where the version is known.
        Raises ModelError for a model that holds a type outside skops_models.TRUSTED, StepError where a step did not run before.
        """
        from evergreen.tasks.model_files import skops_models

        candidate = Candidate(params, problem, layout, verdict, lineage)
        candidate.require_steps()
        model = skops_models.load(candidate.file)
        with _LOCK, self._store.errors():
            known = self._store.versions(problem, candidate.digest)
            found = next((each for each in known if self.damage(problem, each.version) is None), None)
            run_id, new = self._store.usable_run(found, candidate) if found else (self._opened(opened, candidate), True)
            with self._store.run(run_id) if new else nullcontext():  # a run that ended keeps its duration
                self._store.log(run_id, candidate)
                if found is None:
                    self._store.log_datasets(run_id, candidate)
                    self._store.log_trials(run_id, candidate)
                    self._publish(run_id, candidate, model)
                else:
                    self._store.update(found, candidate.tags(), verdict.reason)
            if opened and run_id != opened:
                self.close_run(opened, None)
            made = found or self._store.versions(problem, candidate.digest)[-1]
            if "champion" not in made.aliases:
                self._store.set_alias(problem, "challenger", made.version)
            return self.require(problem, made.version)

    def log_figures(self, problem: str, version: int, folder: Path) -> None:
        """Copy the pictures in `folder` to the run of a version. Raises ModelError for an unknown version."""
        run_id = self.require(problem, version).run_id
        with self._store.errors():
            self._store.log_figures(run_id, folder)

    def version(self, problem: str, which: int | str) -> Version | None:
        """The version of that number or alias, or None."""
        with self._store.errors():
            return self._store.version(problem, which)

    def require(self, problem: str, version: int) -> Version:
        """The version of that number. Raises ModelError, naming those there are, where it is not registered."""
        if found := self.version(problem, version):
            return found
        known = ", ".join(f"v{each.version}" for each in self.versions(problem))
        raise ModelError(f"{problem} v{version}: no such version is registered; known are {known or 'none: train first'}")

    def versions(self, problem: str) -> list[Version]:
        """All versions, oldest first; none for a problem never registered."""
        with self._store.errors():
            return self._store.versions(problem)

    def damage(self, problem: str, version: int) -> str | None:
        """Why the files of a version in a folder of this machine cannot be used; None if they can.

        A file server is not asked: it may be away for a moment.
        """
        found = self.version(problem, version)
        if found is None:
            return "it is not in the registry; somebody may have deleted it there"
        with self._store.errors():
            folder = self._store.folder(problem, version)
        if folder is None:
            return None
        hashes = {MODEL: "sha256", JUDGED: f"sha256.{JUDGED}", f"compiled/{COMPILED}": "compiled.sha256"}
        try:
            for name in ("MLmodel", LEVELS):
                (folder / name).read_bytes()
            for name, tag in hashes.items():
                if tag in found.tags and sha256(folder / name) != found.tags[tag]:
                    return f"{folder / name} is not the file that was registered"
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return None

    def load(self, problem: str, version: int, judged: bool = False) -> Model:
        """The fitted estimator, after its file was compared with what was registered and its types with our own list.

        `judged`: the one that was judged in its place, where the version has such a one (see tasks.core.paths.JUDGED).

        Raises ModelError for an unknown version, a file that changed since, and a type outside skops_models.TRUSTED.
        """
        from evergreen.tasks.model_files import skops_models

        found = self.require(problem, version)
        other = judged and f"sha256.{JUDGED}" in found.tags
        name, tag = (JUDGED, f"sha256.{JUDGED}") if other else (MODEL, "sha256")
        with tempfile.TemporaryDirectory() as folder, self._store.errors():
            return skops_models.load(self._verified(found, name, tag, folder))

    def load_compiled(self, problem: str, version: int) -> "Compiled | None":
        """The compiled model, compared with what was registered; None for a version without one (its tag `compiled` says why).

        Raises ModelError for an unknown version and for a file that changed since.
        """
        from evergreen.tasks.model_files.onnx_runtime import Compiled

        found = self.require(problem, version)
        if "compiled.sha256" not in found.tags:
            return None
        with tempfile.TemporaryDirectory() as folder, self._store.errors():
            return Compiled(self._verified(found, f"compiled/{COMPILED}", "compiled.sha256", folder))

    def download(self, problem: str, version: int, folder: Path) -> Path:
        """Copy the file that serves into `folder`: the compiled model, or the pipeline where there is none.

        Raises what `load_compiled` and `load` raise.
        """
        found = self.require(problem, version)
        compiled = "compiled.sha256" in found.tags
        name, tag = (f"compiled/{COMPILED}", "compiled.sha256") if compiled else (MODEL, "sha256")
        with tempfile.TemporaryDirectory() as scratch, self._store.errors():
            file = self._verified(found, name, tag, scratch)
            return Path(shutil.copy(file, folder / file.name))

    def serving_files(self, problem: str, version: int, folder: Path, only: str = "") -> dict[str, Path]:
        """Path in the project -> a copy in `folder`, of each file that a server without the project needs; `only`: of this one.

        Raises ModelError for a version without them, and for a file that is not the one that was registered.
        """
        found = self.require(problem, version)
        if serving_files.TAG not in found.tags:
            raise ModelError(
                f"{problem} v{version}: is registered without the files that a server without a project folder needs. Register "
                f"it in a registry that is no local file: evergreen train {problem}"
            )
        with self._store.errors():
            listed: dict[str, str] = read_json(self._verified(found, serving_files.LIST, serving_files.TAG, str(folder)))
            digests = {name: digest for name, digest in listed.items() if only in ("", name)}
            copies = {
                name: self._store.download(problem, version, f"{serving_files.FOLDER}/{name}", str(folder)) for name in digests
            }
        for name, digest in digests.items():
            if sha256(copies[name]) != digest or ".." in Path(name).parts or Path(name).is_absolute():
                raise ModelError(_changed(found, name))
        return copies

    def names(self) -> list[str]:
        """All registered models of the store, by their full names."""
        with self._store.errors():
            return self._store.names()

    def model_input(self, problem: str, version: int) -> ModelInput:
        """What the version takes, with an example. Raises ModelError for an unknown version."""
        found = self.require(problem, version)
        described = MANIFEST if f"sha256.{MANIFEST}" in found.tags else "MLmodel"
        with tempfile.TemporaryDirectory() as folder, self._store.errors():
            names = ("input_example.json", LEVELS, described)
            example, levels, file = (self._store.download(problem, version, name, folder) for name in names)
            (types, optional), given = input_columns(file), read_json(example)
            known = read_json(levels)
            background = self._background(problem, version, folder)
        return ModelInput(
            features=types,
            example=tuple(dict(zip(given["columns"], row, strict=True)) for row in given["data"]),
            levels=known,
            background=background,
            optional=optional,
        )

    def _background(self, problem: str, version: int, folder: str) -> tuple[dict[str, Any], ...]:
        """Empty for a version that was registered without."""
        try:
            return tuple(read_json(self._store.download(problem, version, BACKGROUND, folder)))
        except ModelError:
            return ()

    def run_page(self, version: Version) -> str:
        """Where a person reads the run of a version; see MlflowStore.run_page. Raises ModelError where the run is gone."""
        return self._store.run_page(version.run_id)

    def set_alias(self, problem: str, alias: str, version: int) -> None:
        """Move `alias` to `version`. Raises ModelError for an unknown version."""
        self.require(problem, version)
        with self._store.errors():
            self._store.set_alias(problem, alias, version)

    def drop_alias(self, problem: str, alias: str) -> None:
        """Remove `alias`; idempotent."""
        with self._store.errors():
            self._store.drop_alias(problem, alias)

    def mark_stale_runs_killed(self) -> list[str]:
        """Mark running runs as killed if their process, on this machine, is gone. Returns their ids."""
        with _LOCK, self._store.errors():
            stale = self._store.mark_stale_runs_killed(socket.gethostname())
        if stale:
            log.info("mlflow: marked %d runs as killed, since their processes are gone", len(stale))
        return stale

    def _opened(self, run_id: str | None, candidate: Candidate) -> str:
        """The open run under the name of the candidate; a new one where it has ended, as before a second attempt."""
        if run_id is None or not self._store.is_running(run_id):
            return self._store.begin_run(candidate)
        self._store.name_run(run_id, candidate)
        return run_id

    def _publish(self, run_id: str, candidate: Candidate, model: Model) -> None:
        from evergreen.tasks.model_files.onnx_export import attempt
        from evergreen.tasks.release import mlflow_model

        compiled = attempt(candidate.params, candidate.problem, candidate.layout, model)
        if compiled.reason:
            log.info("%s: not compiled: %s", candidate.problem, compiled.reason)

        def write(folder: Path, identity: Any) -> dict[str, str]:
            tags = mlflow_model.write(folder, candidate, model, compiled, identity)
            if self._store.is_shared:
                tags |= serving_files.write(folder, candidate.params, candidate.problem, candidate.layout)
            return tags

        self._store.publish(run_id, candidate, write)

    def _verified(self, version: Version, name: str, tag: str, folder: str) -> Path:
        """The file `name` of `version`, laid into `folder`. Raises ModelError unless its sha256 equals the version's `tag`."""
        file = self._store.download(version.problem, version.version, name, folder)
        if sha256(file) != version.tags.get(tag):
            raise ModelError(_changed(version, name))
        return file


def _changed(version: Version, name: str) -> str:
    return (
        f"{version.problem} v{version.version}: {name} is not the file that was registered (its sha256 differs). "
        f"Do not use it; roll back to another version, and train again."
    )
