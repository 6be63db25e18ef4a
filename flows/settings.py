"""Addresses, from the environment alone: EVERGREEN_MLFLOW_URI and its like. Without them everything lies under var/."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_settings import BaseSettings, SettingsConfigDict

from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.decisions import DecisionLog
    from evergreen.monitoring.ledger.predictions import Ledger
    from evergreen.monitoring.ledger.suggestions import Suggestions
    from evergreen.serving.event_log import EventLog
    from evergreen.serving.keys import Keys
    from evergreen.serving.row_log import RowLog
    from evergreen.tasks.release.deployments import Deployments
    from evergreen.tasks.release.model_registry import Registry
    from evergreen.tasks.release.rollouts import Rollouts


class Settings(BaseSettings):
    """Where state lives that is neither data nor code. Passwords belong in these addresses, never in params.yaml."""

    model_config = SettingsConfigDict(env_prefix="EVERGREEN_", frozen=True, use_attribute_docstrings=True)

    mlflow_uri: str = ""
    """Tracking and registry address of MLflow: sqlite:///FILE, or http://HOST:PORT of a server. "": MLFLOW_TRACKING_URI."""
    artifacts: str = ""
    """Where MLflow keeps files: a folder, or an address such as s3://BUCKET/PATH. A server keeps them itself."""
    webhook: str = ""
    """Address that takes a JSON message (its key `text` says all) on an alarm, a retraining or a failure; "": none."""
    notify_block: str = ""
    """Block of Prefect that takes the same messages, such as sendgrid-email/operations; "": none."""
    database: str = ""
    """SQLAlchemy address of the database of deployments, monitoring runs, predictions, labels, API keys, and purchases since
    the tables were read."""


def read(layout: Layout) -> Settings:
    """The settings of the environment; what it does not name lies under the project's var/."""
    found = Settings()
    tracked = found.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    local = {
        "mlflow_uri": tracked or f"sqlite:///{layout.var / 'mlflow.db'}",
        "artifacts": "" if is_server(tracked) else str(layout.var / "artifacts"),
        "database": f"sqlite:///{layout.var / 'evergreen.db'}",
    }
    return found.model_copy(update={name: value for name, value in local.items() if not getattr(found, name)})


def is_server(uri: str) -> bool:
    """Whether `uri` is that of an MLflow server, which keeps files itself and which projects share."""
    return uri.startswith(("http://", "https://"))


def has_shared_state(layout: Layout) -> bool:
    """Whether the environment names a database and a registry that is no local file, so that no project folder is needed."""
    return bool(Settings().database) and not read(layout).mlflow_uri.startswith("sqlite:///")


def has_registry(layout: Layout) -> bool:
    """Whether the registry is a server, or a file that exists. Imports no MLflow, which takes seconds."""
    uri = read(layout).mlflow_uri
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


_stores: dict[tuple[Any, ...], Any] | None = None
_opening = Lock()
T = TypeVar("T")


def keep_open() -> None:
    """Open each store once from now on: for a process that reads them many times a minute, and does not fork."""
    global _stores  # a property of the process
    _stores = {}


def _opened(store: Callable[..., T], *arguments: Any) -> T:
    if _stores is None:
        return store(*arguments)
    with _opening:
        key = (store, *arguments)
        if key not in _stores:
            _stores[key] = store(*arguments)
        return _stores[key]


def registry(layout: Layout, patient: bool = True) -> "Registry":
    """The registry of models that the settings name. `patient`: see Registry."""
    from evergreen.tasks.release.model_registry import Registry

    found = read(layout)
    project = load(layout.params).project.shared_name if is_server(found.mlflow_uri) else ""
    return _opened(Registry, found.mlflow_uri, found.artifacts, layout.root, project, patient)


def deployments(layout: Layout) -> "Deployments":
    """The deployments that the settings name."""
    from evergreen.tasks.release.deployments import Deployments

    return _opened(Deployments, read(layout).database)


def keys(layout: Layout) -> "Keys":
    """The API keys, which stand beside the deployments."""
    from evergreen.serving.keys import Keys

    return _opened(Keys, read(layout).database)


def rollouts(layout: Layout) -> "Rollouts":
    """The rollouts, which stand beside the deployments."""
    from evergreen.tasks.release.rollouts import Rollouts

    return _opened(Rollouts, read(layout).database)


def events(layout: Layout) -> "EventLog":
    """The log of purchases that the settings name."""
    from evergreen.serving.event_log import EventLog

    return _opened(EventLog, read(layout).database)


def row_log(layout: Layout) -> "RowLog":
    """The log of received rows, which stands beside the purchases."""
    from evergreen.serving.row_log import RowLog

    return _opened(RowLog, read(layout).database)


def ledger(layout: Layout) -> "Ledger":
    """The ledger of predictions that the settings name."""
    from evergreen.monitoring.ledger.predictions import Ledger

    return _opened(Ledger, read(layout).database)


def spool_folder(layout: Layout) -> Path:
    """The folder in which servers of this machine keep predictions until they are in the ledger."""
    return layout.var / "spool"


def decision_log(layout: Layout) -> "DecisionLog":
    """The log of monitoring runs and retrainings that the settings name."""
    from evergreen.monitoring.ledger.decisions import DecisionLog

    return _opened(DecisionLog, read(layout).database)


def suggestions(layout: Layout) -> "Suggestions":
    """The answers to suggested retrainings, which stand beside the decisions."""
    from evergreen.monitoring.ledger.suggestions import Suggestions

    return _opened(Suggestions, read(layout).database)
