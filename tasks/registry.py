"""Registered models: every candidate with its evidence, by number and by alias. The one home of mlflow."""

from datetime import datetime
from typing import TYPE_CHECKING

from tasks.layout import Layout
from tasks.params import Params, Section
from tasks.problems.base import Model

if TYPE_CHECKING:
    from tasks.gate import Verdict


class Version(Section):
    """One registered model of a problem."""

    problem: str
    version: int
    run_id: str
    created: datetime
    aliases: tuple[str, ...]
    tags: dict[str, str]
    metrics: dict[str, float]


class Registry:
    """The model registry at `uri`, its files under `artifacts` (a folder or a store's address)."""

    def __init__(self, uri: str, artifacts: str) -> None:
        raise NotImplementedError

    def register(self, params: Params, problem: str, layout: Layout, verdict: "Verdict", lineage: dict[str, str]) -> Version:
        raise NotImplementedError

    def version(self, problem: str, which: int | str) -> Version | None:
        raise NotImplementedError

    def versions(self, problem: str) -> list[Version]:
        raise NotImplementedError

    def load(self, problem: str, version: int) -> Model:
        raise NotImplementedError

    def set_alias(self, problem: str, alias: str, version: int) -> None:
        raise NotImplementedError

    def drop_alias(self, problem: str, alias: str) -> None:
        raise NotImplementedError

    def finish_dead_runs(self) -> list[str]:
        raise NotImplementedError
