"""Recording what the steps made with DVC, and where a model comes from. The one home of dvc."""

from typing import Any

from tasks.layout import Layout
from tasks.params import Params


class Stages:
    """The stages of dvc.yaml, named as DVC names them: "ingest", "train@redeem".

    Raises ProjectError where the folder has no git or no DVC, BusyError where another `dvc` holds the lock.
    """

    def __init__(self, layout: Layout) -> None:
        raise NotImplementedError

    def fresh(self, stage: str) -> bool:
        """Whether the outputs of `stage` stand and belong to its present command, dependencies and params."""
        raise NotImplementedError

    def commit(self, stage: str) -> None:
        """Record the outputs of `stage` as they are now, so that DVC has nothing to do for it."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """Stage -> what changed, as DVC says it; empty where nothing is to be done."""
        raise NotImplementedError

    def graph(self) -> dict[str, list[str]]:
        """Stage -> the stages whose outputs it reads, sorted."""
        raise NotImplementedError


def lineage(layout: Layout, params: Params, problem: str) -> dict[str, str]:
    """Where the model of `problem` comes from, as short texts."""
    raise NotImplementedError
