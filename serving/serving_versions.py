"""Lookup of the versions that serve: by problem, by version, or chosen for a request."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from evergreen.serving.loaded_model import LoadedModel, RowModel, entity_key
from evergreen.tasks.config.params import Params

if TYPE_CHECKING:
    from evergreen.serving.serving_set import ServingSet, Variant


class NotFoundError(Exception):
    """There is no such problem, version or path; status 404."""


class ServiceUnavailableError(Exception):
    """The request is valid, but cannot be served now; status 503."""


class Watcher(Protocol):
    """A DeploymentWatcher, or the fixed serving set of a bundle."""

    @property
    def errors(self) -> Mapping[str, str]: ...

    @property
    def away(self) -> Collection[str]: ...

    @property
    def read_at(self) -> datetime | None: ...

    @property
    def unread_since(self) -> datetime | None: ...

    def serving_set(self, problem: str) -> "ServingSet[LoadedModel] | None": ...


class ServingVersions:
    """The versions of the problems in `params` that `watcher` keeps in memory."""

    def __init__(self, params: Params, watcher: Watcher) -> None:
        self.params, self.watcher = params, watcher

    def serving_set(self, problem: str) -> "ServingSet[LoadedModel]":
        """Raises NotFoundError for an unknown problem, ServiceUnavailableError if nothing serves it."""
        found = self.watcher.serving_set(problem)
        if found is None:
            if problem not in self.params.problems:
                raise NotFoundError(f"{problem[:64]}: unknown problem; there are {', '.join(self.params.problems)}")
            raise ServiceUnavailableError(f"{problem}: no version serves it; see evergreen status and the server's log")
        return found

    def loaded(self, problem: str) -> "list[tuple[LoadedModel, Variant]]":
        """The champion and the candidate, if there are any."""
        serving = self.watcher.serving_set(problem)
        if serving is None:
            return []
        found: list[tuple[LoadedModel, Variant]] = [(serving.champion, "champion")]
        if serving.candidate:
            found.append((serving.candidate, "shadow" if serving.shadow else "candidate"))
        return found

    def version(self, problem: str, version: int) -> "tuple[LoadedModel, Variant]":
        """Raises NotFoundError if that version is not in memory."""
        self.serving_set(problem)
        for model, variant in self.loaded(problem):
            if model.version == version:
                return model, variant
        loaded = ", ".join(f"v{model.version}" for model, _ in self.loaded(problem))
        raise NotFoundError(f"{problem} v{version}: is not loaded; loaded: {loaded}")

    def all_loaded(self) -> list[LoadedModel]:
        """All versions of all problems."""
        return [model for problem in self.params.problems for model, _ in self.loaded(problem)]


def entity_of(model: LoadedModel, row: Mapping[str, Any]) -> str | None:
    """The key of the entity that a row is about, if the row gives one."""
    name = model.entity if isinstance(model, RowModel) else None
    value = row.get(name) if name else None
    return None if value is None else entity_key(value)
