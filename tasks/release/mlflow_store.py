"""Runs, models and aliases in MLflow. The one home of mlflow, with mlflow_model.

Everything goes through a client with explicit ids, never through MLflow's active run or global addresses, so threads may
share a store.
"""

import getpass
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it while it is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for results
os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")  # MLflow's client of S3: a store that is gone is noticed sooner
os.environ.setdefault("AWS_RETRY_MODE", "standard")
os.environ.setdefault("AWS_DEFAULTS_MODE", "standard")  # 3 s for a connection

import mlflow.artifacts
import mlflow.models
import requests
import sqlalchemy as sa
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML
from sqlalchemy.exc import SQLAlchemyError

from evergreen.tasks.config.params import Params, Section
from evergreen.tasks.core import new_databases
from evergreen.tasks.core.database import TIMEOUTS, make_file
from evergreen.tasks.core.errors import ModelError, RegistryError, StorageError
from evergreen.tasks.core.paths import make_folder, writing
from evergreen.tasks.logged_model.manifest import MANIFEST, Manifest, Trained
from evergreen.tasks.release.artifact_locations import Locations, local_path
from evergreen.tasks.release.candidate import Candidate, to_text
from evergreen.tasks.release.run_owner import is_alive, owner

log = logging.getLogger(__name__)

STATES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "killed": "KILLED"}
"""State of a trial -> status of its run."""
MLFLOW_TYPES: Mapping[Trained, str] = {"number": "double", "text": "string", "date": "datetime"}
"""Type in training -> MLflow's name of it."""
WAIT_SECONDS = 20.0
"""How long a server may take to respond, such as one that is being restarted."""
ANSWER_SECONDS = 5.0
DATABASES = "postgresql"
"""Scheme of the addresses of databases that stand in the place of a server."""
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Limits of MLflow's own client, unless the environment has others: its own are seven attempts, 4 minutes in all."""
BATCH = 100
"""Most params or tags that MLflow takes at once."""
Write = Callable[[Path, mlflow.models.Model], Mapping[str, str]]
"""Writes the folder of a model with its ids in MLflow, and returns further tags of the version."""


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


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in such a block: MLflow makes and migrates its tables without a lock."""
    import fcntl

    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def _make_database(file: Path) -> None:
    """Have MLflow make its tables beside `file`, which appears with all of them: MLflow refuses a database with some."""
    with writing(file) as scratch:
        make_file(str(scratch))
        MlflowClient(tracking_uri=f"sqlite:///{scratch}", registry_uri=f"sqlite:///{scratch}")


def _await_server(uri: str, seconds: float) -> None:
    """Return once an MLflow server, or a database in its place, responds. MLflow itself would try for minutes, without a word.

    Raises RegistryError where it does not within `seconds`.
    """
    end, said = time.monotonic() + seconds, not seconds
    while (why := _silence(uri)) is not None:
        if time.monotonic() >= end:
            raise RegistryError(f"MLflow at {_without_password(uri)}: {why}. Check the address and the server.")
        if not said:
            log.warning("MLflow at %s: %s; trying for %.0f s", _without_password(uri), why, seconds)
            said = True
        time.sleep(1)


def _silence(uri: str) -> str | None:
    """Why a server does not respond; None where it does, be it with an error."""
    if uri.startswith(DATABASES):
        return _silence_of_database(uri)
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS)
    except requests.exceptions.SSLError:
        return None  # MLflow has settings for that, and its own words
    except requests.ConnectionError:
        return "nothing listens there, or the network does not lead there"
    except requests.Timeout:
        return f"does not respond within {ANSWER_SECONDS:.0f} s"
    except requests.RequestException as error:
        return str(error)
    return None


def _silence_of_database(uri: str) -> str | None:
    """Why a database takes no connection. MLflow tries for minutes."""
    try:
        engine = sa.create_engine(uri, connect_args={"connect_timeout": round(ANSWER_SECONDS)})
        engine.connect().close()
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        return str(error).splitlines()[0]
    return None


def _bounded(uri: str) -> str:
    """The address with limits for a PostgreSQL server that falls silent, unless it has its own."""
    if not uri.startswith(DATABASES):
        return uri
    url = sa.make_url(uri)
    limits = {name: str(value) for name, value in TIMEOUTS.items() if name not in url.query}
    return url.update_query_dict(limits).render_as_string(hide_password=False)


def _is_of_s3(error: Exception) -> bool:
    """Whether the client of an S3-compatible store raised it. It is not imported: other stores do not need it."""
    return type(error).__module__.startswith(("boto3.", "botocore."))


class MlflowStore:
    """Runs, models and aliases at `uri` (sqlite:///FILE, or http://HOST:PORT of a server).

    `artifacts`: a folder or an address such as s3://BUCKET/PATH for the files of new problems; "" lets a server choose.
    `root`: the project; an SQLite store in it records its files relative to it. `project`: its name, in a store that projects
    share, with its id: a problem is registered as PROJECT.PROBLEM there. `patient`: wait for a server that does not answer yet;
    else the store is made without it, and each call asks it first, once.
    """

    def __init__(self, uri: str, artifacts: str, root: Path, project: str = "", patient: bool = True) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # errors arrive as exceptions
        file = Path(uri.removeprefix("sqlite:///"))
        self.uri, self._bounded, self._root = uri, _bounded(uri), root.absolute()
        self._artifacts = artifacts if "://" in artifacts or not artifacts else Path(artifacts).absolute().as_uri()
        self._prefix = f"{project}." if project else ""
        self._locations = Locations.of(uri, artifacts, root)
        self._patient = patient
        for name, value in ({} if patient else IMPATIENT).items():
            os.environ.setdefault(name, value)
        self._opened: MlflowClient | None = None
        with self.errors():
            if not uri.startswith("sqlite:///"):
                if patient and uri.startswith(("http", DATABASES)):
                    _await_server(uri, WAIT_SECONDS)
                if patient:
                    _ = self._client  # opens it, with its errors
                return
            make_folder(file.parent)
            with _alone_in(file.parent):
                new = self._locations is not None and not file.exists() and not new_databases.copy("mlflow", file)
                if not file.exists():
                    log.info("mlflow: creating its database %s, once; this takes a few seconds", file.name)
                    _make_database(file)
                _ = self._client
                self._make_relative()
                if new:
                    new_databases.keep("mlflow", file)

    @property
    def _client(self) -> MlflowClient:
        if not self._patient and self.uri.startswith(("http", DATABASES)):
            _await_server(self.uri, 0)
        if self._opened is None:
            self._opened = MlflowClient(tracking_uri=self._bounded, registry_uri=self._bounded)
        return self._opened

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise ModelError or StorageError, in one line, where MLflow or the disk refuses."""
        try:
            yield
        except (MlflowException, SQLAlchemyError) as error:
            text = " ".join(str(error).partition("[SQL:")[0].split())
            away = getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE" or text.startswith("API request to ")
            raise (RegistryError if away else ModelError)(
                f"MLflow at {_without_password(self.uri)}: {text[:300]}. Check the address and the server."
            ) from error
        except OSError as error:
            where = error.filename or _without_password(self.uri)
            raise StorageError(
                f"{where}: {error.strerror or error}. Free space or allow writing there, then try again."
            ) from error
        except Exception as error:
            if not _is_of_s3(error):
                raise
            text = " ".join(str(error).split())
            raise RegistryError(
                f"MLflow's files: {text[:300]}. Check EVERGREEN_ARTIFACTS, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY."
            ) from error

    # -- versions and aliases

    def version(self, problem: str, which: int | str) -> Version | None:
        """The version of that number or alias, or None."""
        try:
            if isinstance(which, str):
                found = self._client.get_model_version_by_alias(self._name(problem), which)
            else:
                found = self._client.get_model_version(self._name(problem), str(which))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" or "not found" in str(error):
                return None
            raise
        return self._read(found, self._aliases(problem))

    def versions(self, problem: str, digest: str | None = None) -> list[Version]:
        """All versions, or those of the candidate with that digest, oldest first; none for a problem never registered."""
        wanted = f"name = '{self._name(problem)}'" + (f" and tags.candidate = '{digest}'" if digest else "")
        found = self._client.search_model_versions(wanted, max_results=10_000)
        aliases = self._aliases(problem) if found else {}
        return sorted((self._read(each, aliases) for each in found), key=lambda each: each.version)

    def names(self) -> list[str]:
        """Of all registered models, also those of other projects."""
        return [each.name for each in self._client.search_registered_models(max_results=1000)]

    @property
    def is_shared(self) -> bool:
        """Whether other machines read it."""
        return not self.uri.startswith("sqlite:///")

    def set_alias(self, problem: str, alias: str, version: int) -> None:
        self._client.set_registered_model_alias(self._name(problem), alias, str(version))

    def drop_alias(self, problem: str, alias: str) -> None:
        try:
            self._client.delete_registered_model_alias(self._name(problem), alias)
        except MlflowException as error:  # the registered model was deleted in the UI
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def update(self, version: Version, tags: Mapping[str, str], description: str) -> None:
        for key, value in tags.items():
            if version.tags.get(key) != value:
                self._client.set_model_version_tag(self._name(version.problem), str(version.version), key, value)
        self._client.update_model_version(self._name(version.problem), str(version.version), description)

    def download(self, problem: str, version: int, name: str, folder: str) -> Path:
        """The file `name` of a version, laid into `folder`. Raises ModelError where it cannot be read."""
        source = f"{self._resolve(self._client.get_model_version_download_uri(self._name(problem), str(version)))}/{name}"
        try:
            return Path(mlflow.artifacts.download_artifacts(source, dst_path=folder, tracking_uri=self._bounded))
        except Exception as error:
            if not isinstance(error, OSError | MlflowException) and not _is_of_s3(error):
                raise
            text = " ".join(str(error).split())[:200]
            kind = ModelError if isinstance(error, OSError) else RegistryError
            advice = "Check AWS_ENDPOINT_URL and the keys, roll back" if source.startswith("s3://") else "Roll back"
            raise kind(f"{problem} v{version}: cannot read {source}: {text}. {advice}, or train again.") from error

    def folder(self, problem: str, version: int) -> Path | None:
        """The folder of a version's files; None where they are not in a folder of this machine."""
        return local_path(self._resolve(self._client.get_model_version_download_uri(self._name(problem), str(version))))

    def _name(self, problem: str) -> str:
        """Of the registered model."""
        return f"{self._prefix}{problem}"

    # -- runs

    def begin_run(self, candidate: Candidate) -> str:
        """A run that began with the first step of the training, for a model that was trained without `open_run`."""
        began = candidate.began()
        start = _milliseconds(began) if began else None
        return self._create_run(candidate.params, candidate.problem, candidate.name(), start)

    def open_run(self, params: Params, problem: str) -> str:
        """A run that begins now and is RUNNING until its training ends."""
        return self._create_run(params, problem, f"training {problem}", None)

    def _create_run(self, params: Params, problem: str, name: str, start: int | None) -> str:
        """MLFLOW_EXPERIMENT_NAME names its experiment."""
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"{params.project.name}/{problem}"
        tags = {**owner(), **_source(problem)}
        return self._client.create_run(self._experiment(experiment), start, tags, name).info.run_id

    def name_run(self, run_id: str, candidate: Candidate) -> None:
        self._client.update_run(run_id, name=candidate.name())

    def is_running(self, run_id: str) -> bool:
        """False also for a run that was deleted."""
        try:
            info = self._client.get_run(run_id).info
        except MlflowException:
            return False
        return info.status == "RUNNING" and info.lifecycle_stage == "active"

    def end_run(self, run_id: str, status: str) -> None:
        self._client.set_terminated(run_id, status)

    def discard_run(self, run_id: str) -> None:
        """Delete the run of a training that made nothing new."""
        self._client.set_terminated(run_id, "FINISHED")
        self._client.delete_run(run_id)

    def usable_run(self, version: Version, candidate: Candidate) -> tuple[str, bool]:
        """The run of a version, restored if it was deleted; a new one where it is gone. And whether it is new."""
        try:
            info = self._client.get_run(version.run_id).info
        except MlflowException:
            return self.begin_run(candidate), True
        if info.lifecycle_stage == "deleted":
            self._client.restore_run(version.run_id)
        return version.run_id, False

    @contextmanager
    def run(self, run_id: str) -> Iterator[None]:
        """End the run as FINISHED or FAILED. After a kill it stays RUNNING until `mark_stale_runs_killed`."""
        try:
            yield
        except BaseException:
            self._client.set_terminated(run_id, "FAILED")
            raise
        self._client.set_terminated(run_id, "FINISHED")

    def run_page(self, run_id: str) -> str:
        """Where a person reads a run: its address on a server, or the command that shows the file's runs."""
        if not self.uri.startswith("http"):
            return f"`{run_id}`, shown by `mlflow ui --backend-store-uri {self._uri_for_people()}`"
        with self.errors():
            experiment = self._client.get_run(run_id).info.experiment_id
        return f"{_without_password(self.uri)}/#/experiments/{experiment}/runs/{run_id}"

    def _uri_for_people(self) -> str:
        """The address; of a file in the project relative to it."""
        file = Path(self.uri.removeprefix("sqlite:///"))
        inside = self.uri.startswith("sqlite:///") and file.is_relative_to(self._root)
        return f"sqlite:///{file.relative_to(self._root)}" if inside else _without_password(self.uri)

    def log(self, run_id: str, candidate: Candidate) -> None:
        """Write tags, metrics, params and files to the run; what is there already is replaced.

        MLflow lets no param change: where other params gave the same model, the run keeps the first ones, and its files and
        tags have the newest.
        """
        now, logged = int(time.time() * 1000), self._client.get_run(run_id).data.params
        params = [Param(key, value) for key, value in candidate.config().items() if key not in logged]
        tags = [RunTag(key, value) for key, value in candidate.tags().items()]
        for first in range(0, max(len(params), len(tags)), BATCH):
            part = slice(first, first + BATCH)
            self._client.log_batch(run_id, params=params[part], tags=tags[part])
        self._client.set_tag(run_id, "mlflow.note.content", candidate.note())
        self._client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in candidate.metrics().items()])
        with tempfile.TemporaryDirectory() as folder:
            candidate.write_files(Path(folder))
            self._upload(folder, str(self._client.get_run(run_id).info.artifact_uri))

    def log_figures(self, run_id: str, folder: Path) -> None:
        """Copy the files in `folder` to the folder figures of the run's files."""
        self._upload(str(folder), f"{self._client.get_run(run_id).info.artifact_uri}/figures")

    def log_datasets(self, run_id: str, candidate: Candidate) -> None:
        """Name the tables and features that the model learned from, with the digests that DVC has."""
        used = [InputTag("mlflow.data.context", "training")]
        inputs = [
            DatasetInput(Dataset(name, digest[:36], "local", json.dumps({"uri": path})), used)
            for name, digest, path in candidate.datasets()
        ]
        if inputs:
            self._client.log_inputs(run_id, inputs)

    def log_trials(self, run_id: str, candidate: Candidate) -> None:
        """Write one child run per trial of the search, with its own start and end."""
        parent = {"mlflow.parentRunId": run_id, **owner()}
        experiment = self._client.get_run(run_id).info.experiment_id
        for trial in candidate.trials():
            began, ended = _milliseconds(trial["started"]), _milliseconds(trial["ended"] or trial["started"])
            tags = parent | {"state": trial["state"], **({"reason": trial["reason"]} if trial["reason"] else {})}
            child = self._client.create_run(experiment, began, tags, f"trial {trial['number']}").info.run_id
            scores = {name: trial[name] for name in ("score", "std", "seconds") if trial[name] is not None}
            if "score" in scores:
                scores[candidate.metric] = scores["score"]
            self._client.log_batch(
                child,
                [Metric(name, value, ended, 0) for name, value in scores.items()],
                [Param(name, to_text(value)) for name, value in json.loads(trial["config"]).items()],
            )
            self._client.set_terminated(child, STATES[trial["state"]], ended)

    def mark_stale_runs_killed(self, host: str) -> list[str]:
        """Mark RUNNING runs of `host`, this machine, as KILLED if their process is gone. Returns their ids."""
        experiments = [each.experiment_id for each in self._client.search_experiments(max_results=1000)]
        here = f"attributes.status = 'RUNNING' and tags.host = '{host}'"
        running = self._client.search_runs(experiments, here, max_results=1000) if experiments else []
        stale = [each.info.run_id for each in running if not is_alive(each.data.tags)]
        for run_id in stale:
            self._client.set_terminated(run_id, "KILLED")
        return stale

    # -- models

    def publish(self, run_id: str, candidate: Candidate, write: Write) -> None:
        """Publish a version with the files that `write` writes. It appears last, whole, with all of its tags."""
        problem, experiment = candidate.problem, self._client.get_run(run_id).info.experiment_id
        logged = self._client.create_logged_model(
            experiment,
            name=problem,
            source_run_id=run_id,
            params=candidate.config(),
            tags={"project": candidate.params.project.name},
            model_type=str(candidate.card["kind"]),
        )
        identity = mlflow.models.Model(
            artifact_path=logged.artifact_location, run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id
        )
        with tempfile.TemporaryDirectory() as scratch:
            tags = {**candidate.tags(), **write(Path(scratch) / "model", identity)}
            self._upload(str(Path(scratch) / "model"), logged.artifact_location)
        self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
        now = int(time.time() * 1000)
        metrics = [
            Metric(key, value, now, 0, model_id=logged.model_id, run_id=run_id) for key, value in candidate.metrics().items()
        ]
        self._client.log_batch(run_id, metrics=metrics)
        self._ensure_registered(candidate)
        reason = candidate.verdict.reason
        self._client.create_model_version(
            self._name(problem), logged.artifact_location, run_id, tags, description=reason, model_id=logged.model_id
        )

    def _ensure_registered(self, candidate: Candidate) -> None:
        project, question = candidate.params.project.name, candidate.params.section(candidate.problem).question
        try:
            self._client.create_registered_model(self._name(candidate.problem), tags={"project": project}, description=question)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            made = self._client.create_experiment(name, artifact_location=self._artifacts or None)
            self._make_relative()
            return made
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return found.experiment_id

    # -- files

    def _upload(self, folder: str, location: str) -> None:
        get_artifact_repository(self._resolve(location), tracking_uri=self._bounded).log_artifacts(folder)

    def _resolve(self, location: str) -> str:
        return self._locations.resolve(location) if self._locations else location

    def _make_relative(self) -> None:
        if self._locations:
            self._locations.make_relative()

    def _aliases(self, problem: str) -> dict[int, list[str]]:
        """Version -> its aliases, sorted."""
        found: dict[int, list[str]] = {}
        for alias, version in sorted(self._client.get_registered_model(self._name(problem)).aliases.items()):
            found.setdefault(int(version), []).append(alias)
        return found

    def _read(self, found: ModelVersion, aliases: Mapping[int, list[str]]) -> Version:
        metrics: dict[str, float] = {}
        with suppress(MlflowException):  # its run may have been deleted for good
            metrics = dict(self._client.get_run(found.run_id or "").data.metrics)
        return Version(
            problem=found.name.removeprefix(self._prefix),
            version=int(found.version),
            run_id=found.run_id or "",
            created=datetime.fromtimestamp((found.creation_timestamp or 0) / 1000, UTC),
            aliases=tuple(aliases.get(int(found.version), ())),
            tags=dict(found.tags),
            metrics=metrics,
        )


def input_columns(file: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Column -> its type in training, as MLflow names it, and the optional columns; none for a recommender. `file`: the
    manifest of a version, or its MLmodel where it has none.

    Read as YAML: MLflow's own reader imports pandas, which a server of compiled models works without.
    """
    if file.name == MANIFEST:
        columns = Manifest.model_validate_json(file.read_text()).columns
        optional = tuple(name for name, column in columns.items() if not column.required)
        return {name: MLFLOW_TYPES[column.trained] for name, column in columns.items()}, optional
    signature = YAML(typ="safe").load(file).get("signature")
    inputs = json.loads(signature["inputs"]) if signature else []
    optional = tuple(str(each["name"]) for each in inputs if each.get("required") is False)
    return {str(each["name"]): str(each["type"]) for each in inputs}, optional


def _without_password(uri: str) -> str:
    return re.sub(r"//([^:/@]+):[^@/]*@", r"//\1:***@", uri)


def _source(problem: str) -> dict[str, str]:
    """Tags of a run that MLflow's pages show as its user and its source."""
    with suppress(OSError, KeyError, ImportError):  # a user without a name, as in a container
        return {
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": f"evergreen train {problem}",
            "mlflow.source.type": "LOCAL",
        }
    return {"mlflow.source.name": f"evergreen train {problem}", "mlflow.source.type": "LOCAL"}


def _milliseconds(moment: datetime) -> int:
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
