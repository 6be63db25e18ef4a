"""What a project no longer needs, by stated rules: found first, then removed.

A version is in use while it is or was a champion, takes part in a rollout, has predictions in the ledger, or is younger than
`monitor.retention_days`. Everything that serves, is rolled back to or reproduced belongs to a version in use.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from evergreen.flows import settings
from evergreen.flows.operations import retention
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout, locking
from evergreen.tasks.release import lineage
from evergreen.tasks.release.deployments import MOVES
from evergreen.tasks.release.mlflow_store import Version

UNUSED_DAYS = 30
"""Results of backtests and interrupted scorings are kept so long after they were last written."""
YOUNG = timedelta(days=1)
"""Files of DVC's cache that are younger may be of a run that records them in a moment."""
RUN = re.compile(r"(?m)^run_id: (\w+)")


class Removal(NamedTuple):
    """What one rule removes, or removed."""

    what: str
    number: int
    """Of files and folders, or of predictions."""
    bytes: int
    rule: str


class Part(NamedTuple):
    """Files and folders that one rule removes."""

    what: str
    rule: str
    paths: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for path in self.paths for file in (path, *path.rglob("*")) if file.is_file())


def run(layout: Layout, params: Params, now: datetime, dry_run: bool = False) -> list[Removal]:
    """Remove what each rule finds at `now`, or with `dry_run` only count it; a removal and a training exclude each other.

    Raises LockedError while a training, a monitoring run that reads the sources, or another removal runs.
    """
    with nullcontext() if dry_run else locking(layout.var / "train.lock", "prune"):
        ledger, day = settings.ledger(layout), now.date()
        found = [(part, Removal(part.what, len(part.paths), part.bytes, part.rule)) for part in find(layout, params, now)]
        old = [ledger.expired(problem, retention.first_kept(params, problem, day)) for problem in params.problems]
        rows = Removal(
            "predictions", sum(rows for rows, _ in old), sum(size for _, size in old), "older than monitor.retention_days"
        )
        if dry_run:
            return [*(each for _, each in found), rows]
        for part, _ in found:
            remove(part)
        for problem in params.problems:
            retention.keep_ledger(params, problem, ledger, day)
        freed = Removal("ledger", 0, ledger.shrink(), "space of its file that was free")
        return [*(each for _, each in found), rows, freed]


def find(layout: Layout, params: Params, now: datetime) -> list[Part]:
    """What can be removed at `now`, a part per rule."""
    used, unused = list[Version](), list[Version]()
    for problem in params.problems:
        one, two = _divide(layout, params, problem, now)
        used += one
        unused += two
    old = now - timedelta(days=UNUSED_DAYS)
    written = [path for name in ("backtest", "scoring") for path in sorted((layout.var / name).glob("*"))]
    return [
        Part("DVC's cache", "data of no commit, of no version in use and not of the present", tuple(_data(layout, used, now))),
        Part("models", "model files of versions not in use; their reports stay", tuple(_models(layout, unused))),
        Part("reference data", "of versions not in use", tuple(_references(layout, unused))),
        Part(
            "results",
            f"of backtests and scorings, unused for {UNUSED_DAYS} days",
            tuple(p for p in written if _newest(p) < old),
        ),
    ]


def remove(part: Part) -> None:
    for path in part.paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _divide(layout: Layout, params: Params, problem: str, now: datetime) -> tuple[list[Version], list[Version]]:
    """The versions in use, and the others."""
    champions = {each.version for each in settings.deployments(layout).history(problem) if each.action in MOVES}
    rollout = settings.rollouts(layout).current(problem)
    named = champions | ({rollout.champion, rollout.candidate} if rollout else set[int]())
    named |= settings.ledger(layout).versions(problem)
    oldest = now - timedelta(days=params.section(problem).monitor.retention_days)
    used, unused = list[Version](), list[Version]()
    for each in settings.registry(layout).versions(problem):
        (used if each.version in named or each.aliases or each.created > oldest else unused).append(each)
    return used, unused


def _data(layout: Layout, used: list[Version], now: datetime) -> Iterator[Path]:
    recorded = {digest for each in used for name, digest in each.tags.items() if name.startswith("dvc.")}
    before = (now - YOUNG).timestamp()
    for path in lineage.unreferenced(layout, recorded):
        if path.stat().st_mtime < before:
            yield path


def _models(layout: Layout, unused: list[Version]) -> Iterator[Path]:
    runs = {each.run_id for each in unused}
    for path in sorted((layout.var / "artifacts" / "models").glob("*")):
        description = path / "artifacts" / "MLmodel"
        found = RUN.search(description.read_text()) if description.is_file() else None
        if found and found[1] in runs:
            yield path


def _references(layout: Layout, unused: list[Version]) -> Iterator[Path]:
    for each in unused:
        path = layout.var / "monitoring" / each.problem / f"v{each.version}"
        if path.is_dir():
            yield path


def _newest(path: Path) -> datetime:
    """When something in it was last written."""
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in (path, *path.rglob("*"))), UTC)
