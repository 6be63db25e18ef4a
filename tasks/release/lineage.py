"""Record outputs of steps with DVC, and trace a model to its code, data and params. The one home of dvc."""

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.scm import SCMError
from ruamel.yaml import YAML

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import LockedError, ProjectError, StorageError
from evergreen.tasks.core.paths import Layout, read_json, writing

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = 60.0
"""Seconds to wait for another `dvc` before giving up. DVC itself gives up after three."""
CHANGED_FILES = 20
"""Most changed files that lineage names."""
DIGEST = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?")
"""A hash of DVC."""
NOTHING_RECORDED = b"schema: '2.0'\nstages: {}\n"
"""dvc.lock before the first stage is recorded."""
NOT_CODE = (":(exclude)dvc.lock", ":(exclude)sources.lock")
"""Files of the commit that follow the data."""
_ONE_AT_A_TIME = threading.RLock()


class Stages:
    """The stages of dvc.yaml, called as DVC calls them: "ingest", "train@redeem".

    Every call opens the repository again (6 ms), so it sees the present files, and holds DVC's own lock meanwhile.
    Raises ProjectError where the folder has no git, no DVC, or no such stage; LockedError where another `dvc` holds the lock;
    StorageError where its cache cannot be written.
    """

    def __init__(self, layout: Layout, patience: float = PATIENCE) -> None:
        self._root, self._lock = layout.root, layout.root / "dvc.lock"
        self._before = layout.var / "dvc.lock.before"
        self._patience = patience
        logging.getLogger("dvc").setLevel(logging.CRITICAL)  # hides its progress bars; errors arrive as exceptions
        self._call(lambda repo: repo.root_dir)

    def fresh(self, stage: str) -> bool:
        """Whether the outputs of `stage` exist and match its present command, dependencies and params.

        A source file that is gone does not count: it cannot be read again, and its snapshot stays valid.
        """
        found = self._call(lambda repo: repo.status(targets=[self._address(stage)]))
        return not found or (stage == "ingest" and all(map(_lost_source, *found.values())))

    def commit(self, stage: str) -> None:
        """Record the present outputs of `stage`, so that DVC considers it up to date.

        Raises ProjectError where an output is missing.
        """

        def save(repo: Repo) -> None:
            if not Path.cwd().is_relative_to(self._root):
                # DVC's run cache finds its stages from the current folder; without it the outputs are recorded all the same
                repo.stage_cache.save = lambda stage: None
            with lock_repo(repo):
                with writing(self._before) as scratch:
                    scratch.write_bytes(self._lock.read_bytes() if self._lock.exists() else NOTHING_RECORDED)
                repo.commit(self._address(stage), force=True)
                self._before.unlink()

        self._call(save)

    def status(self) -> dict[str, Any]:
        """Stage -> its changes, as DVC reports them; empty if everything is up to date."""
        found = self._call(lambda repo: repo.status())
        return {_name(address): changes for address, changes in found.items()}

    def graph(self) -> dict[str, list[str]]:
        """Stage -> the stages whose outputs it reads, sorted; in the order of dvc.yaml."""

        def read(repo: Repo) -> dict[str, list[str]]:
            graph = repo.index.graph
            return {
                _name(each.addressing): sorted(_name(other.addressing) for other in graph.successors(each))
                for each in repo.index.stages
            }

        return self._call(read)

    def _address(self, stage: str) -> str:
        """With the full path: DVC looks for a bare name in the current folder, which need not be the project."""
        return f"{self._root / 'dvc.yaml'}:{stage}"

    def _call(self, question: Callable[[Repo], T]) -> T:
        deadline = time.monotonic() + self._patience
        with _ONE_AT_A_TIME:
            while True:
                try:
                    with Repo(str(self._root)) as repo:
                        if self._before.exists():
                            self._restore_lock(repo)
                        return question(repo)
                except LockError as error:
                    if time.monotonic() >= deadline:
                        raise LockedError(
                            f"{self._root}: another dvc command has held the lock for {self._patience:.0f} s. "
                            "Wait until it ends, then run the same command again."
                        ) from error
                    log.info("dvc: another dvc command holds the lock of this project; waiting")
                except DvcException as error:
                    raise ProjectError(self._explain(error)) from error
                except OSError as error:
                    raise StorageError(
                        f"{error.filename or self._root}: {error.strerror or error}. DVC could not record; free space or allow "
                        "writing there, then run the same command again."
                    ) from error

    def _restore_lock(self, repo: Repo) -> None:
        """Restore dvc.lock as it was before a killed commit: DVC writes the file in place, so half of it may be lost."""
        with lock_repo(repo):  # a commit of another process holds it
            if self._before.exists():
                self._before.replace(self._lock)
                log.warning("recording a stage was interrupted; dvc.lock is restored as it was before")

    def _explain(self, error: DvcException) -> str:
        if isinstance(error, NotDvcRepoError):
            return f"{self._root}: DVC is not set up here; run dvc init"
        if isinstance(error, SCMError) and "not a git repository" in str(error):
            return _no_git(self._root)
        text = " ".join(str(error).split())
        if "dvc.lock" in text:
            advice = "Restore it (git checkout dvc.lock), or remove it: then every stage runs again."
            return f"{self._lock}: {text}. {advice}"
        return f"{self._root / 'dvc.yaml'}: {text}"


def restore(layout: Layout, digest: str, place: Path) -> bool:
    """Copy the file or folder that DVC recorded as `digest` to `place`. False if its cache lacks part of it.

    Raises ProjectError where DVC is not set up.
    """
    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    try:
        with Repo(str(layout.root)) as repo:
            cache = Path(repo.cache.local.path)
    except DvcException as error:
        raise ProjectError(f"{layout.root}: DVC is not set up here, so no data of earlier versions is kept") from error
    kept = cache / digest[:2] / digest[2:]
    if not kept.is_file():
        return False
    files = {"": kept}
    if digest.endswith(".dir"):
        files = {each["relpath"]: cache / each["md5"][:2] / each["md5"][2:] for each in read_json(kept)}
    if not all(path.is_file() for path in files.values()):
        return False
    for name, path in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / name)
    return True


def unreferenced(layout: Layout, recorded: Collection[str]) -> Iterator[Path]:
    """The files in DVC's cache that belong to none of the hashes in `recorded`, in dvc.lock or in dvc.lock of any commit.

    Nothing where the project has no DVC, or keeps its cache elsewhere: others may use that too.
    """
    cache = layout.root / ".dvc" / "cache" / "files" / "md5"
    if not cache.is_dir():
        return
    lock = layout.root / "dvc.lock"
    locks = [lock.read_text() if lock.exists() else "", *_committed_locks(layout.root)]
    used = {*recorded, *(digest for each in locks for digest in DIGEST.findall(each))}
    for digest in [each for each in used if each.endswith(".dir")]:
        listed = cache / digest[:2] / digest[2:]
        used |= {each["md5"] for each in read_json(listed)} if listed.is_file() else set()
    for path in sorted(cache.glob("*/*")):
        if path.parent.name + path.name not in used:
            yield path


def _committed_locks(root: Path) -> Iterator[str]:
    for commit in _ask_git(root, "log", "--all", "--full-history", "--format=%H", "--", "dvc.lock").split():
        yield _ask_git(root, "show", f"{commit}:./dvc.lock", allowed=(0, 128))  # 128: that commit removed it


def archive(layout: Layout, commit: str, place: Path) -> bool:
    """Extract the project at `commit` into the folder `place`, links included. False if git does not know the commit.

    Raises ProjectError where the project is not under git.
    """
    inside = _ask_git(layout.root, "rev-parse", "--show-prefix").strip()
    if not _ask_git(layout.root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", allowed=(0, 1, 128)).strip():
        return False
    file = place / "commit.tar"
    _ask_git(layout.root, "archive", "--format=tar", "-o", str(file), f"{commit}:{inside}")
    with tarfile.open(file) as tar:
        tar.extractall(place, filter="data")
    file.unlink()
    return True


def set_up(layout: Layout) -> list[str]:
    """Initialise git and DVC in a folder, where they are not yet. Returns what was created.

    Raises ProjectError where git is not installed, or git or DVC refuses.
    """
    root, made = layout.root, []
    if _ask_git(root, "rev-parse", "--show-toplevel", allowed=(0, 128), anywhere=True) == "":
        _ask_git(root, "init", "--quiet")
        made.append(".git")
    if not (root / ".dvc").is_dir():
        top = Path(_ask_git(root, "rev-parse", "--show-toplevel").strip())
        logging.getLogger("dvc").setLevel(logging.CRITICAL)
        try:
            with Repo.init(str(root), subdir=top.resolve() != root.resolve()) as repo:
                changing: Any = repo.config.edit()
                with changing as config:
                    config["core"]["analytics"] = False
        except DvcException as error:
            raise ProjectError(f"{root}: dvc init failed: {' '.join(str(error).split())}") from error
        made.append(".dvc")
    return made


def _lost_source(change: Any) -> bool:
    if not isinstance(change, dict) or len(change) != 1:
        return False
    found = list(change.get("changed deps", {}).values())
    return bool(found) and all(each == "deleted" for each in found)


def _name(address: str) -> str:
    """`../shop/dvc.yaml:train@redeem` -> `train@redeem`."""
    return address.rpartition(":")[2]


def lineage(layout: Layout, params: Params, problem: str) -> dict[str, str]:
    """The origin of the model of `problem`, as short texts.

    git.commit ("none" before the first one), git.dirty (true, false; dvc.lock and sources.lock do not count), git.changed (up
    to 20 files), dvc.PATH (DVC's hash of each recorded output that belongs to the problem), params (its section, JSON), cutoff
    (or the name of the last test window), begins and as_of (ISO dates, inclusive), requirements.lock (sha256),
    cpu_seconds.STEP, peak_mb.STEP, python.
    Raises ProjectError where the folder is not under git.
    """
    model = layout.model(problem) / "model.json"
    card = read_json(model) if model.exists() else {}
    return {
        **_git(layout.root),
        **{f"dvc.{path}": digest for path, digest in _outputs(layout, problem)},
        "params": json.dumps(params.section(problem).model_dump(mode="json"), sort_keys=True),
        **{name: str(card.get(name) or "none") for name in ("cutoff", "begins")},
        "as_of": str(params.project.as_of or "newest day in the data"),
        "requirements.lock": hashlib.sha256(layout.lock.read_bytes()).hexdigest() if layout.lock.exists() else "none",
        **dict(_costs(layout, problem)),
        "python": platform.python_version(),
    }


def _git(root: Path) -> dict[str, str]:
    head = _ask_git(root, "rev-parse", "--verify", "--quiet", "HEAD", allowed=(0, 1)).strip()
    listed = _ask_git(root, "status", "--porcelain", "--no-renames", "-z", "--", ".", *NOT_CODE)
    changed = [entry[3:] for entry in listed.split("\0") if entry]
    more = f" and {len(changed) - CHANGED_FILES} more" if len(changed) > CHANGED_FILES else ""
    return {
        "git.commit": head or "none",
        "git.dirty": str(bool(changed)).lower(),
        "git.changed": ", ".join(changed[:CHANGED_FILES]) + more,
    }


def _ask_git(root: Path, *words: str, allowed: tuple[int, ...] = (0,), anywhere: bool = False) -> str:
    """The output of git. Raises ProjectError where it is missing or fails, or outside a repository, unless `anywhere`."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise ProjectError("git is not installed or not on PATH; install it, then run the same command again") from None
    if "not a git repository" in done.stderr and not anywhere:
        raise ProjectError(_no_git(root))
    if done.returncode not in allowed:
        raise ProjectError(f"{root}: git {words[0]} failed: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout


def _no_git(root: Path) -> str:
    return f"{root}: not a git repository, so neither code nor data can be recorded; run git init"


def _outputs(layout: Layout, problem: str) -> Iterator[tuple[str, str]]:
    """Path and hash of the recorded outputs of the shared stages and of this problem's, in the order of dvc.lock."""
    path = layout.root / "dvc.lock"
    stages = (YAML(typ="safe").load(path) or {}).get("stages", {}) if path.exists() else {}
    for name, stage in stages.items():
        _, branch, owner = name.partition("@")
        if not branch or owner == problem:
            yield from ((out["path"], str(out.get("md5") or out.get("etag") or "none")) for out in stage.get("outs", ()))


def _costs(layout: Layout, problem: str) -> Iterator[tuple[str, str]]:
    """CPU seconds and peak memory of the last run of each step for this problem."""
    for path in sorted((layout.var / "costs").glob("*.json")):
        step, branch, owner = path.stem.partition("@")
        if not branch or owner == problem:
            cost = read_json(path)
            yield f"cpu_seconds.{step}", str(cost["cpu_seconds"])
            yield f"peak_mb.{step}", str(cost["peak_mb"])
