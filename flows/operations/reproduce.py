"""Rebuild a registered version from its recorded commit, data hashes in DVC and params.

The search is not repeated, because it may have had a time budget; its chosen configuration is recorded. Features are rebuilt
from the tables if DVC still has these. The model is refitted on the recorded features.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from ruamel.yaml import YAML

import evergreen
from evergreen.flows import settings
from evergreen.flows.operations import batch_scoring
from evergreen.tasks import problems
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import memory
from evergreen.tasks.core.errors import EvergreenError, ModelError
from evergreen.tasks.core.paths import MODEL, Layout, read_json
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import RowKind
from evergreen.tasks.release import lineage

if TYPE_CHECKING:
    from evergreen.tasks.problems.base import Model
    from evergreen.tasks.release.mlflow_store import Version

SAME = 1e-9
"""Largest difference of two predictions that are the same."""
USERS = 200
"""Most users whose lists are compared."""
SHOWN = 12
"""Packages that are named."""


@dataclass(frozen=True)
class Reproduced:
    problem: str
    version: int
    same: bool
    """Whether it was made again and says the same of all rows, to SAME."""
    rows: int
    """Compared; 0: there is nothing to compare."""
    difference: float | None
    """The largest between two predictions (of an amount above 1, in relation to it). None: nothing to compare, or labels or
    lists that differ."""
    commit: str
    differs: tuple[str, ...]
    """What is not as it was, one line each: code, data, params, libraries."""


def run(layout: Layout, params: Params, problem: str, version: int | None) -> Reproduced:
    """Rebuild `version`, or the champion for None, in a scratch folder, and compare it with the registered model.

    `differs` lists unavailable sources, such as a commit unknown to git or data missing in DVC's cache. Raises ModelError for
    an unknown version, ProjectError for a project without git or DVC.
    """
    chosen = batch_scoring.chosen(layout, problem, version)
    registry = settings.registry(layout)
    found = registry.require(problem, chosen)
    params.section(problem)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        scratch = Layout(Path(folder).resolve())
        differs = list(_code(layout, found, scratch))
        differs += _libraries(scratch, found)
        differs += _params(layout, found, scratch)
        lost = list(_data(layout, found, scratch))
        differs += lost
        if lost:
            return Reproduced(problem, chosen, False, 0, None, found.tags.get("git.commit", "none"), tuple(differs))
        differs += _features(layout, found, scratch)
        failure = _step(scratch, "train", problem)
        if failure:
            reasons = (*differs, f"code: the step train fails in the scratch folder: {failure}")
            return Reproduced(problem, chosen, False, 0, None, found.tags.get("git.commit", "none"), reasons)
        rows, difference = _compare(load(scratch.params), problem, scratch, registry.load(problem, chosen))
        same = difference is not None and difference <= SAME
        if not same and not differs:
            differs.append(
                "unknown: code, data, params and libraries are as they were; "
                "look for what depends on time or threads, such as tune.budget_seconds"
            )
    return Reproduced(problem, chosen, same, rows, difference, found.tags.get("git.commit", "none"), tuple(differs))


def _code(layout: Layout, version: "Version", scratch: Layout) -> Iterator[str]:
    """Lay the commit into the scratch folder; what of the code is not as it was."""
    commit = version.tags.get("git.commit", "none")
    if commit == "none":
        yield "code: it was trained before the first commit; the present code is used. Commit the project to git"
    elif not lineage.archive(layout, commit, scratch.root):
        yield f"code: git does not know the commit {commit[:12]} (git fetch --unshallow?); the present code is used"
    if version.tags.get("git.dirty") == "true":
        changed = [each for each in version.tags.get("git.changed", "").split(", ") if each not in ("params.yaml", "")]
        if changed:
            yield f"code: when it was trained, changes were not committed and are lost: {', '.join(changed)}"


def _libraries(scratch: Layout, version: "Version") -> Iterator[str]:
    """Packages of the commit's lock that are installed here in another version, or not at all."""
    then, here = version.tags.get("python", ""), platform.python_version()
    if then.split(".")[:2] != here.split(".")[:2]:
        yield f"libraries: Python {then} then, {here} here"
    if not scratch.lock.is_file():
        return
    pins: dict[str, set[str]] = {}
    for name, pin in re.findall(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", scratch.lock.read_text()):
        pins.setdefault(name, set()).add(pin)
    found = []
    for name, known in pins.items():
        try:
            if (now := installed(name)) not in known:
                found.append(f"{name} {' or '.join(sorted(known))} then, {now} here")
        except PackageNotFoundError:
            continue  # of another system, or of an extra that is not installed
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield f"libraries: {'; '.join(found[:SHOWN])}{more}"


def _params(layout: Layout, version: "Version", scratch: Layout) -> Iterator[str]:
    """Write the params that were recorded over those of the commit; a version without them has those of the commit."""
    yaml = YAML()
    if not scratch.params.is_file():
        scratch.params.write_bytes(layout.params.read_bytes())
    whole: Any = yaml.load(scratch.params)
    recorded = version.tags.get("params")
    if recorded is None:
        yield "params: they were not recorded with the version; those of the commit are used"
        return
    as_of = version.tags.get("as_of", "")
    if re.fullmatch(r"\d{4}-\d\d-\d\d", as_of):
        whole["project"]["as_of"] = as_of
    section = json.loads(recorded)
    if (whole.get("problems") or {}).get(version.problem) is None:
        yield f"params: the commit has no problem {version.problem}; its recorded section stands among the commit's keys"
        whole.setdefault("problems", {})[version.problem] = version.tags["kind"]
    whole[version.problem] = section
    with scratch.params.open("w") as file:
        yaml.dump(whole, file)


def _data(layout: Layout, version: "Version", scratch: Layout) -> Iterator[str]:
    """Lay the features and the search's result as they were recorded; which of them are not to be had."""
    for path in (scratch.features(version.problem), scratch.tuning(version.problem)):
        name = str(path.relative_to(scratch.root))
        digest = version.tags.get(f"dvc.{name}")
        if digest is None:
            yield f"data: {name} was not recorded with the version"
        elif not lineage.restore(layout, digest, path):
            yield f"data: {name} ({digest[:12]}) is not in DVC's cache; dvc fetch brings it where a remote holds it"


def _features(layout: Layout, version: "Version", scratch: Layout) -> Iterator[str]:
    """Build the features again from the recorded tables, and compare with those that were recorded, which stay."""
    problem, digest = version.problem, version.tags.get("dvc.data/tables")
    if digest is None or not lineage.restore(layout, digest, scratch.root / "data" / "tables"):
        yield "data: data/tables as they were are not in DVC's cache, so the features were not built again, only the model"
        return
    known = {path.stem: pl.read_parquet(path) for path in scratch.features(problem).glob("*.parquet")}
    if failure := _step(scratch, "features", problem):
        yield f"code: the step features fails in the scratch folder: {failure}"
    made = {path.stem: pl.read_parquet(path) for path in scratch.features(problem).glob("*.parquet")}
    for name in known.keys() | made.keys():
        if name not in made or name not in known or not known[name].equals(made[name]):
            yield f"data: the features built again from the recorded tables differ from the recorded ones in {name}"
    lineage.restore(layout, version.tags[f"dvc.data/features/{problem}"], scratch.features(problem))


def _step(scratch: Layout, step: str, problem: str) -> str:
    """Run a step by the commit's own code, where the commit holds it; why it failed, or "" where it did not."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
    environment |= learning_limit(scratch.tuning(problem) / "best.json")
    own = scratch.root / "src"
    code = own if (own / "evergreen" / "__main__.py").is_file() else Path(evergreen.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-B", "-P", "-m", "evergreen", step, problem, "--root", str(scratch.root)],
        cwd=scratch.root, env={**environment, "PYTHONPATH": str(code)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1] if done.returncode else ""


def learning_limit(best: Path) -> dict[str, str]:
    """The environment by which a table too large for memory gives the same sample as in the search; empty for other tables."""
    sample = read_json(best).get("sample") if best.exists() else None
    return {memory.LEARNING: f"{sample['limit_mb']}"} if sample else {}


def _compare(params: Params, problem: str, scratch: Layout, registered: "Model") -> tuple[int, float | None]:
    """Number of compared rows and the largest difference of the two predictions; None where labels or lists differ."""
    kind, section = problems.kind(params.kind(problem)), params.section(problem)
    try:
        rebuilt = skops_models.load(scratch.model(problem) / MODEL)
        data = kind.load(scratch.features(problem), section)
        one, two = (_predict(kind, model, data, section) for model in (registered, rebuilt))
    except (EvergreenError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{problem}: the two models cannot be compared by the present code: {error}") from error
    rows = len(next(iter(one.values()), []))
    return rows, _apart(one, two)


def _predict(kind: Any, model: "Model", data: Any, section: Any) -> dict[str, np.ndarray]:
    """Predictions of a model for all its training rows, or lists for the first users."""
    if isinstance(kind, RowKind):
        return kind.predict_rows(model, data.features)
    asked = pl.DataFrame({section.features.user: data.histories.users[:USERS]})
    return {name: column.to_numpy() for name, column in kind.predict_new(model, data, asked, section).to_dict().items()}


def _apart(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float | None:
    if one.keys() != two.keys() or any(len(one[name]) != len(two[name]) for name in one):
        return None
    largest = 0.0
    for name in one:
        first, second = np.asarray(one[name]), np.asarray(two[name])
        if first.dtype.kind != "f":
            if not np.array_equal(first, second):
                return None
            continue
        apart = np.abs(first - second) / np.maximum(1.0, np.abs(first))
        largest = max(largest, float(np.max(np.where(np.isnan(first) & np.isnan(second), 0.0, apart), initial=0.0)))
    return largest
