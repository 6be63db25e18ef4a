"""Registered models: every candidate with its evidence, by number and by alias. The one home of mlflow.

One run and one model version per candidate, with a child run per trial of the search that found it. Everything goes through a
client with explicit ids, never through MLflow's active run or global addresses, so threads may share a registry.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it while it is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for results

import mlflow.artifacts
import mlflow.models
import pandas as pd
import polars as pl
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from evergreen.tasks.config.params import Params, Section
from evergreen.tasks.core.errors import ModelError, SpaceError, StepError
from evergreen.tasks.core.paths import COMPILED, JUDGED, MODEL, Layout, read_json, write_json
from evergreen.tasks.problems.base import Model

if TYPE_CHECKING:
    from evergreen.tasks.model_files.onnx_runtime import Compiled
    from evergreen.tasks.release.promotion_gate import Verdict

log = logging.getLogger(__name__)

"""Name of the estimator inside a logged model; MLflow's own choice for the format."""
STATES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "killed": "KILLED"}
"""State of a trial -> status of its run."""
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""Package in a model's file -> name to install it by, where the two differ."""
ALWAYS = {"mlflow", "skops", "pandas", "numpy", "sklearn"}
"""Packages that any of our models needs to be read."""
ONE_BATCH = 100
"""Most params or tags that MLflow takes at once."""
_ONE_AT_A_TIME = threading.RLock()


class Version(Section):
    """One registered model of a problem."""

    problem: str
    version: int
    run_id: str
    created: datetime
    """UTC."""
    aliases: tuple[str, ...]
    tags: dict[str, str]
    """Lineage (as `release.lineage.lineage` names it), model, kind, metric (the primary one), candidate and sha256 (content),
    verdict.decision and the other parts of the verdict; compiled (yes, or why not) and the parts of
    model_files.onnx_parity.Parity."""
    metrics: dict[str, float]
    """`roc_auc`, and with _low, _high, _baseline, _gain, _gain_low and _gain_high behind it. Undefined numbers are left out."""


class Described(Section):
    """What a registered model takes."""

    features: dict[str, str]
    """Feature -> its type as MLflow names it: double, string, datetime."""
    example: tuple[dict[str, Any], ...]
    """A few rows of features, as JSON has them."""
    trained: dict[str, str]
    """The version's tags."""


class Registry:
    """The model registry at `uri` (sqlite:///FILE, or http://HOST:PORT of a server).

    `artifacts`: a folder or an address such as s3://BUCKET/PATH for the files of new problems; "" lets a server choose.
    Raises ModelError, in one line, where MLflow refuses or cannot be reached, and SpaceError where files cannot be written.
    """

    def __init__(self, uri: str, artifacts: str) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # errors arrive as exceptions
        file = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and not file.exists():
            log.info("mlflow: making its database %s, once; this takes a few seconds", file)
        self._uri = uri
        self._artifacts = artifacts if "://" in artifacts or not artifacts else Path(artifacts).absolute().as_uri()
        with _ONE_AT_A_TIME, self._speaking():
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def register(self, params: Params, problem: str, layout: Layout, verdict: "Verdict", lineage: Mapping[str, str]) -> Version:
        """Register the trained model of `problem` with its evidence and the gate's verdict, as `challenger`.

        Idempotent: the same model on the same features is the same version, whose evidence is then brought up to date. A
        registration that was killed leaves no version, or a whole one. The champion stays champion and is no challenger.
        Raises ModelError for a model that holds a type outside skops_models.TRUSTED, StepError where a step did not run before.
        """
        from evergreen.tasks.model_files import skops_models

        _require_steps(layout, problem)
        model = skops_models.load(layout.model(problem) / MODEL)
        card = read_json(layout.model(problem) / "model.json")
        evaluation = read_json(layout.report(problem) / "evaluation" / "evaluation.json")
        candidate = _candidate(layout, problem, lineage)
        tags = _tags(card, evaluation, verdict, lineage) | {"candidate": candidate}
        with _ONE_AT_A_TIME, self._speaking():
            found = self._find(problem, candidate)
            run_id = found.run_id or "" if found else self._begin(params, problem, card)
            with self._ending(run_id):
                self._log(run_id, tags, _metrics(layout.report(problem) / "metrics.json"), _params(params, problem, card))
                self._attach(run_id, layout, problem, verdict, lineage)
                if found is None:
                    self._log_trials(run_id, layout, problem)
                    number = self._publish(run_id, params, problem, model, card, layout, tags, verdict)
                else:
                    number = int(found.version)
                    self._retag(found, tags, verdict)
            if "champion" not in self._aliases(problem).get(number, ()):
                self.set_alias(problem, "challenger", number)
            return self._version(self._client.get_model_version(problem, str(number)), self._aliases(problem))

    def version(self, problem: str, which: int | str) -> Version | None:
        """The version of that number or alias, or None."""
        with self._speaking():
            try:
                if isinstance(which, str):
                    found = self._client.get_model_version_by_alias(problem, which)
                else:
                    found = self._client.get_model_version(problem, str(which))
            except MlflowException as error:
                if _is_absent(error):
                    return None
                raise
            return self._version(found, self._aliases(problem))

    def require(self, problem: str, version: int) -> Version:
        """The version of that number. Raises ModelError, naming those there are, where it is not registered."""
        if found := self.version(problem, version):
            return found
        known = ", ".join(f"v{each.version}" for each in self.versions(problem))
        raise ModelError(f"{problem} v{version}: no such version is registered; known are {known or 'none: train first'}")

    def versions(self, problem: str) -> list[Version]:
        """All versions, oldest first; none for a problem never registered."""
        with self._speaking():
            found = self._client.search_model_versions(f"name = '{problem}'", max_results=10_000)
            aliases = self._aliases(problem) if found else {}
            return sorted((self._version(each, aliases) for each in found), key=lambda each: each.version)

    def load(self, problem: str, version: int, judged: bool = False) -> Model:
        """The fitted estimator, after its file was compared with what was registered and its types with our own list.

        `judged`: the one that was judged in its place, where the version has such a one (see tasks.core.paths.JUDGED).

        Raises ModelError for a version that is not there, a file that changed since, and a type outside skops_models.TRUSTED.
        """
        from evergreen.tasks.model_files import skops_models

        found = self.require(problem, version)
        other = judged and f"sha256.{JUDGED}" in found.tags
        name, tag = (JUDGED, f"sha256.{JUDGED}") if other else (MODEL, "sha256")
        with tempfile.TemporaryDirectory() as folder, self._speaking():
            source = self._client.get_model_version_download_uri(problem, str(version))
            return skops_models.load(self._fetch_as_registered(f"{source}/{name}", folder, found, tag))

    def load_compiled(self, problem: str, version: int) -> "Compiled | None":
        """The compiled model, compared with what was registered; None for a version without one (its tag `compiled` says why).

        Raises ModelError for a version that is not there and for a file that changed since.
        """
        from evergreen.tasks.model_files.onnx_runtime import Compiled

        found = self.require(problem, version)
        if "compiled.sha256" not in found.tags:
            return None
        with tempfile.TemporaryDirectory() as folder, self._speaking():
            source = self._client.get_model_version_download_uri(problem, str(version))
            return Compiled(self._fetch_as_registered(f"{source}/compiled/{COMPILED}", folder, found, "compiled.sha256"))

    def download(self, problem: str, version: int, folder: Path) -> Path:
        """Lay the file that answers into `folder`, the compiled model's where there is one, compared with what was registered.

        Raises what `load_compiled` and `load` raise.
        """

        found = self.require(problem, version)
        compiled = "compiled.sha256" in found.tags
        name, tag = (f"compiled/{COMPILED}", "compiled.sha256") if compiled else (MODEL, "sha256")
        with tempfile.TemporaryDirectory() as scratch, self._speaking():
            source = self._client.get_model_version_download_uri(problem, str(version))
            file = self._fetch_as_registered(f"{source}/{name}", scratch, found, tag)
            return Path(shutil.copy(file, folder / file.name))

    def described(self, problem: str, version: int) -> "Described":
        """What the version takes, and an example of it. Raises ModelError for a version that is not there."""
        found = self.require(problem, version)
        with tempfile.TemporaryDirectory() as folder, self._speaking():
            source = self._client.get_model_version_download_uri(problem, str(version))
            card, example = (
                self._fetch(f"{source}/{name}", folder, f"{problem} v{version}") for name in ("MLmodel", "input_example.json")
            )
            signature = mlflow.models.Model.load(str(card)).signature
            given = read_json(example)
        types = signature.inputs.input_types() if signature else []
        return Described(
            features={name: str(getattr(each, "name", each)) for name, each in zip(given["columns"], types, strict=True)},
            example=tuple(dict(zip(given["columns"], row, strict=True)) for row in given["data"]),
            trained=dict(found.tags),
        )

    def set_alias(self, problem: str, alias: str, version: int) -> None:
        """Let `alias` name `version`, and no other. Raises ModelError for a version that is not there."""
        self.require(problem, version)
        with self._speaking():
            self._client.set_registered_model_alias(problem, alias, str(version))

    def drop_alias(self, problem: str, alias: str) -> None:
        """Let `alias` name nothing; one that names nothing already is fine."""
        with self._speaking():
            self._client.delete_registered_model_alias(problem, alias)

    def finish_dead_runs(self) -> list[str]:
        """Mark runs as killed that stand as running though their process on this machine is gone. Returns their ids."""
        with _ONE_AT_A_TIME, self._speaking():
            experiments = [each.experiment_id for each in self._client.search_experiments(max_results=1000)]
            here = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
            running = self._client.search_runs(experiments, here, max_results=1000) if experiments else []
            dead = [each.info.run_id for each in running if not _lives(each.data.tags.get("process", ""))]
            for run_id in dead:
                self._client.set_terminated(run_id, "KILLED")
            if dead:
                log.info("mlflow: %d runs of processes that are gone are now marked as killed", len(dead))
            return dead

    def _fetch_as_registered(self, source: str, folder: str, version: Version, tag: str) -> Path:
        """The file at `source`. Raises ModelError unless its sha256 is what the version's `tag` says."""
        what = f"{version.problem} v{version.version}"
        file = self._fetch(source, folder, what)
        if _sha256(file) != version.tags.get(tag):
            raise ModelError(
                f"{what}: {source} is not the file that was registered (its sha256 differs). "
                f"Do not use it; roll back to another version, and train again."
            )
        return file

    def _fetch(self, source: str, folder: str, what: str) -> Path:
        try:
            return Path(mlflow.artifacts.download_artifacts(source, dst_path=folder, tracking_uri=self._uri))
        except (OSError, MlflowException) as error:
            raise ModelError(
                f"{what}: {source} cannot be read: {' '.join(str(error).split())[:200]}. Roll back, or train again."
            ) from error

    def _find(self, problem: str, candidate: str) -> ModelVersion | None:
        found = self._client.search_model_versions(f"name = '{problem}' and tags.candidate = '{candidate}'")
        return found[0] if found else None

    def _begin(self, params: Params, problem: str, card: Mapping[str, Any]) -> str:
        name = f"{card['config']['model']} {card['cutoff']}"
        return self._client.create_run(
            self._experiment(f"{params.project.name}/{problem}"), run_name=name, tags=_owner()
        ).info.run_id

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return self._client.create_experiment(name, artifact_location=self._artifacts or None)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _log(self, run_id: str, tags: Mapping[str, str], metrics: Mapping[str, float], params: Mapping[str, str]) -> None:
        now = int(time.time() * 1000)
        given = [Param(key, value) for key, value in params.items()]
        told = [RunTag(key, value) for key, value in tags.items()]
        for first in range(0, max(len(given), len(told)), ONE_BATCH):
            part = slice(first, first + ONE_BATCH)
            self._client.log_batch(run_id, params=given[part], tags=told[part])
        self._client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()])

    def _attach(self, run_id: str, layout: Layout, problem: str, verdict: "Verdict", lineage: Mapping[str, str]) -> None:
        """The files beside the model: evaluation, metrics, plots, diagnosis, explanation, card, costs, lineage, verdict."""
        report = layout.report(problem)
        kept = [report / "evaluation" / "evaluation.json", report / "metrics.json"]
        kept += [path for part in ("plots", "diagnosis", "explanation") for path in sorted((report / part).glob("*"))]
        costs = (path for path in sorted((layout.var / "costs").glob("*.json")) if path.stem.partition("@")[2] in ("", problem))
        with tempfile.TemporaryDirectory() as folder:
            for path, place in [
                *((path, path.relative_to(report)) for path in kept),
                *((path, Path("costs", path.name)) for path in costs),
            ]:
                (Path(folder) / place).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / place).write_bytes(path.read_bytes())
            write_json(Path(folder) / "lineage.json", dict(lineage))
            (Path(folder) / "verdict.json").write_text(verdict.model_dump_json(indent=2) + "\n")
            self._client.log_artifacts(run_id, folder)

    def _log_trials(self, run_id: str, layout: Layout, problem: str) -> None:
        """One child run per trial of the search, with the times at which it ran."""
        parent = {"mlflow.parentRunId": run_id, **_owner()}
        experiment = self._client.get_run(run_id).info.experiment_id
        for trial in pl.read_parquet(layout.tuning(problem) / "trials.parquet").iter_rows(named=True):
            began, ended = _milliseconds(trial["started"]), _milliseconds(trial["ended"] or trial["started"])
            tags = parent | {"state": trial["state"], **({"reason": trial["reason"]} if trial["reason"] else {})}
            child = self._client.create_run(experiment, began, tags, f"trial {trial['number']}").info.run_id
            scores = {name: trial[name] for name in ("score", "std", "seconds") if trial[name] is not None}
            self._client.log_batch(
                child,
                [Metric(name, value, ended, 0) for name, value in scores.items()],
                [Param(name, _text(value)) for name, value in json.loads(trial["config"]).items()],
            )
            self._client.set_terminated(child, STATES[trial["state"]], ended)

    def _publish(
        self,
        run_id: str,
        params: Params,
        problem: str,
        model: Model,
        card: Mapping[str, Any],
        layout: Layout,
        tags: Mapping[str, str],
        verdict: "Verdict",
    ) -> int:
        """Log the model and make it a version. The version appears last, with all of its tags at once."""
        from evergreen.tasks.model_files.onnx_export import attempt

        experiment = self._client.get_run(run_id).info.experiment_id
        logged = self._client.create_logged_model(experiment, name=problem, source_run_id=run_id, model_type=str(card["kind"]))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            _save(model, path, _example(card, layout, problem), logged.artifact_location, run_id, logged.model_id)
            digests = {"sha256": _sha256(path / MODEL)}
            if (judged := layout.model(problem) / JUDGED).exists():
                (path / JUDGED).write_bytes(judged.read_bytes())
                digests[f"sha256.{JUDGED}"] = _sha256(judged)
            compiled = attempt(params, problem, layout, model)
            compiled.write(path / "compiled")
            if compiled.reason:
                log.info("%s: is not compiled: %s", problem, compiled.reason)
            self._client.log_model_artifacts(logged.model_id, str(path))
        self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
        with _unless_there():
            self._client.create_registered_model(
                problem, tags={"project": params.project.name}, description=params.section(problem).question
            )
        made = self._client.create_model_version(
            problem,
            logged.artifact_location,
            run_id,
            {**tags, **digests, **compiled.tags()},
            description=verdict.reason,
            model_id=logged.model_id,
        )
        return int(made.version)

    def _retag(self, found: ModelVersion, tags: Mapping[str, str], verdict: "Verdict") -> None:
        for key, value in tags.items():
            if found.tags.get(key) != value:
                self._client.set_model_version_tag(found.name, found.version, key, value)
        self._client.update_model_version(found.name, found.version, verdict.reason)

    def _aliases(self, problem: str) -> dict[int, list[str]]:
        """Version -> its aliases, sorted."""
        found: dict[int, list[str]] = {}
        for alias, version in sorted(self._client.get_registered_model(problem).aliases.items()):
            found.setdefault(int(version), []).append(alias)
        return found

    def _version(self, found: ModelVersion, aliases: Mapping[int, list[str]]) -> Version:
        metrics: dict[str, float] = {}
        with suppress(MlflowException):  # a run that somebody deleted for good leaves its version without numbers
            metrics = dict(self._client.get_run(found.run_id or "").data.metrics)
        return Version(
            problem=found.name,
            version=int(found.version),
            run_id=found.run_id or "",
            created=datetime.fromtimestamp((found.creation_timestamp or 0) / 1000, UTC),
            aliases=tuple(aliases.get(int(found.version), ())),
            tags=dict(found.tags),
            metrics=metrics,
        )

    @contextmanager
    def _ending(self, run_id: str) -> Iterator[None]:
        """Finish the run as it went; a killed process leaves it to `finish_dead_runs`."""
        try:
            yield
        except BaseException:
            self._client.set_terminated(run_id, "FAILED")
            raise
        self._client.set_terminated(run_id, "FINISHED")

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Say in one line what MLflow and the disk refuse."""
        try:
            yield
        except (MlflowException, SQLAlchemyError) as error:
            text = " ".join(str(error).partition("[SQL:")[0].split())
            raise ModelError(f"MLflow at {_shown(self._uri)}: {text[:300]}. Check the address and the server.") from error
        except OSError as error:
            where = error.filename or _shown(self._uri)
            raise SpaceError(
                f"{where}: {error.strerror or error}. Free space or allow writing there, then try again."
            ) from error


@contextmanager
def _unless_there() -> Iterator[None]:
    """Let what is there already be."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _is_absent(error: MlflowException) -> bool:
    return error.error_code == "RESOURCE_DOES_NOT_EXIST" or "not found" in str(error)


def _shown(uri: str) -> str:
    """The address without its password."""
    return re.sub(r"//([^:/@]+):[^@/]*@", r"//\1:***@", uri)


def _save(model: Model, path: Path, example: pd.DataFrame, location: str, run_id: str, model_id: str) -> None:
    """Write `model` as an MLflow model folder with its requirements, signature and example."""
    from mlflow import sklearn as flavour

    from evergreen.tasks.model_files import skops_models

    file = path.parent / MODEL
    skops_models.save(model, file)
    flavour.save_model(
        model,
        str(path),
        mlflow_model=mlflow.models.Model(artifact_path=location, run_id=run_id, model_uuid=model_id, model_id=model_id),
        serialization_format="skops",
        skops_trusted_types=list(skops_models.TRUSTED),
        signature=_signature(example, model.predict(example)),
        input_example=example,
        pip_requirements=requirements(file),
    )


def _signature(example: pd.DataFrame, answer: Any) -> mlflow.models.ModelSignature:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*integer column", category=UserWarning)  # such as an id, never missing
        return mlflow.models.infer_signature(example, answer)


def requirements(file: Path) -> list[str]:
    """What must be installed to read the model in `file`, at the versions that made it, such as scikit-learn==1.9.1.

    Evergreen itself, which own estimators need too, is in no index and therefore not among them.
    """
    with zipfile.ZipFile(file) as archive:
        named = re.findall(r'"__module__": "(\w+)', archive.read("schema.json").decode())
    packages = {DISTRIBUTIONS.get(name, name) for name in ({*named} & {"lightgbm", "scipy"}) | ALWAYS}
    return [f"{name}=={installed(name)}" for name in sorted(packages)]


def _example(card: Mapping[str, Any], layout: Layout, problem: str) -> pd.DataFrame:
    """The example of model.json as the model takes it. A column without any value says nothing of its type; the features do."""
    frame = pd.DataFrame(card["example"], columns=card["features"])
    rows = layout.features(problem) / "rows.parquet"
    known = pl.read_parquet_schema(rows) if rows.exists() else {}
    for name in card["features"]:
        if frame[name].isna().to_numpy().all():
            frame[name] = frame[name].astype("str" if known.get(name) == pl.String else "float64")
    return frame


def _require_steps(layout: Layout, problem: str) -> None:
    report, model = layout.report(problem), layout.model(problem)
    trials = layout.tuning(problem) / "trials.parquet"
    for path in (
        trials,
        model / MODEL,
        model / "model.json",
        report / "metrics.json",
        report / "evaluation" / "evaluation.json",
    ):
        if not path.exists():
            raise StepError(f"{path}: is missing. Tune, train and evaluate come before: evergreen train {problem}")


def _candidate(layout: Layout, problem: str, lineage: Mapping[str, str]) -> str:
    """Tells candidates apart by content: the model's file and the features it learned from."""
    return hashlib.sha256(
        f"{_sha256(layout.model(problem) / MODEL)} {lineage.get(f'dvc.data/features/{problem}')}".encode()
    ).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tags(
    card: Mapping[str, Any], evaluation: Mapping[str, Any], verdict: "Verdict", lineage: Mapping[str, str]
) -> dict[str, str]:
    own = {"model": card["config"]["model"], "kind": card["kind"], "metric": evaluation["primary"]}
    judged = {f"verdict.{key}": _text(value) for key, value in verdict.model_dump().items()}
    commit = {"mlflow.source.git.commit": lineage["git.commit"]} if lineage.get("git.commit") else {}
    return {key: str(value) for key, value in {**lineage, **commit, **own, **judged}.items() if value != ""}


def _metrics(path: Path) -> dict[str, float]:
    """Of {metric: {score, low, ...}}: metric -> score, metric_low -> low and so on; what is not a number is left out."""
    flat = {
        _key(name if part == "score" else f"{name}_{part}"): value
        for name, parts in read_json(path).items()
        for part, value in parts.items()
    }
    return {name: float(value) for name, value in flat.items() if value is not None and math.isfinite(value)}


def _params(params: Params, problem: str, card: Mapping[str, Any]) -> dict[str, str]:
    """The chosen configuration under its own names, the problem's section under dotted ones."""
    section = dict(_flat("", params.section(problem).model_dump(mode="json")))
    return {_key(name): _text(value) for name, value in {**section, **card["config"], "seed": params.project.seed}.items()}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    else:
        yield prefix, value


def _key(name: str) -> str:
    """`name` in the letters that MLflow takes: ndcg@10 becomes ndcg_10."""
    return re.sub(r"[^\w./: -]", "_", name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _milliseconds(moment: datetime) -> int:
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _owner() -> dict[str, str]:
    """Tags by which a run of a dead process is known: machine, and process with the time it began."""
    return {"host": socket.gethostname(), "process": f"{os.getpid()} {_born(os.getpid())}"}


def _lives(process: str) -> bool:
    """Whether the process noted by `_owner` still is; a number that another process has by now does not count."""
    pid, _, born = process.partition(" ")
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(int(pid)) == born


def _born(pid: int) -> str:
    """When the process began, in the system's ticks; "" where /proc does not tell."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
