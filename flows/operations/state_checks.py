"""Checks of a project's state: what cannot be read, is missing or belongs to another user, and the command that mends it."""

import os
import re
import shlex
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

from evergreen.flows import settings
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import database, schema_revision
from evergreen.tasks.core.errors import EvergreenError
from evergreen.tasks.core.paths import Layout, truncated_parquet

PARTS = ("data", "models", "reports", "var", ".dvc")
"""Folders of a project that hold its state."""
FILES = ("params.yaml", "dvc.yaml", "dvc.lock")
DAMAGED = "damaged"
REPAIR = "evergreen doctor --repair"
LOCK_SECONDS = 5.0
"""Longest wait for a database that another process locks."""
MAX_LAG = timedelta(minutes=1)
"""A server writes predictions into the ledger every second."""
SHOWN = 3
"""Most paths that a finding names."""


class Finding(NamedTuple):
    subject: str
    ok: bool
    found: str
    advice: str
    repair: Callable[[], None] | None = None
    """Mends it where nothing can be lost."""


def examine(layout: Layout, params: Params) -> Iterator[Finding]:
    """Every check, in the order in which a person would mend them: what a user may not read is not judged any further."""
    access = check_access(layout)
    yield access
    if not access.ok:
        return
    yield check_privacy(layout)
    databases = check_databases(layout)
    yield databases
    yield check_journal(layout)
    yield check_journal_records(layout)
    yield check_lag(layout)
    yield check_outputs(layout)
    if not databases.ok:
        return
    tables = check_tables(layout)
    yield tables
    if tables.ok:
        for problem in params.problems:
            yield check_champion(layout, problem)
            yield check_alias(layout, problem)


def check_access(layout: Layout) -> Finding:
    """Whether this user may read every file of the state and write in every folder of it."""
    refused = [layout.relative(path) for path in _state(layout) if not _allowed(path)]
    user = f"{os.geteuid()}:{os.getegid()}"
    advice = f"sudo chown -R {user} {shlex.quote(str(layout.root))}"
    return Finding("access", not refused, _listed(refused, "is not open to this user", "all state"), advice)


def check_privacy(layout: Layout) -> Finding:
    """Whether other users of the machine can read keys, predictions and labels."""
    opened = [each for each in _private(layout) if each.stat().st_mode & 0o007]

    def close() -> None:
        for each in opened:
            each.chmod(each.stat().st_mode & 0o700)

    return Finding(
        "privacy", not opened, _listed([*map(str, opened)], "is open to other users", "closed to other users"), REPAIR, close
    )


def _private(layout: Layout) -> Iterator[Path]:
    """The folder of the state, and the SQLite files that lie outside of it."""
    if layout.var.exists():
        yield layout.var
    found = settings.read(layout)
    for address in (found.database, found.mlflow_uri):
        path = Path(address.removeprefix("sqlite:///"))
        if address.startswith("sqlite:///") and path.exists() and not path.is_relative_to(layout.var):
            yield from path.parent.glob(f"{path.name}*")


def check_databases(layout: Layout) -> Finding:
    """Whether the SQLite files of the state are whole."""
    found = {layout.relative(path): _fault_of(path) for path in sorted(layout.var.rglob("*.db"))}
    damaged = [name for name, fault in found.items() if fault == DAMAGED]
    unread = [f"{name} ({fault})" for name, fault in found.items() if fault and fault != DAMAGED]
    if unread and not damaged:
        advice = "free space, allow writing beside it, or end what locks it; then evergreen doctor"
        return Finding("databases", False, _listed(unread, "cannot be read now", ""), advice)
    copy = f"cp -a ORIGINAL/{damaged[0]} {shlex.quote(str(layout.root / damaged[0]))}" if damaged else ""
    return Finding("databases", not damaged, _listed(damaged, "is damaged", "whole"), f"stop what runs here, then {copy}")


def check_tables(layout: Layout) -> Finding:
    """Whether the database answers, with the tables of this version."""
    try:
        settings.deployments(layout)
    except EvergreenError as error:
        return Finding("tables", False, str(error), "mend what the line says")
    return Finding("tables", True, f"revision {schema_revision.NEWEST}", "")


def check_journal(layout: Layout) -> Finding:
    """Whether servers can write predictions, and what they lost or set aside."""
    from evergreen.monitoring.ledger import refused_rows

    folder = settings.spool_folder(layout)
    if not folder.is_dir():
        return Finding("journal", True, "no server has run", "")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        advice = "free space or allow writing there: servers answer, and keep predictions in memory meanwhile"
        return Finding("journal", False, f"{folder}: {error.strerror}", advice)
    if refused := refused_rows.count(folder):
        return Finding("journal", False, f"{refused:,} predictions were refused", f"read {folder / refused_rows.FILE}")
    return Finding("journal", True, "writable", "")


def check_journal_records(layout: Layout) -> Finding:
    """Whether the numbers beside the journal can be read; a power loss may empty them."""
    from evergreen.monitoring.ledger import spool_records

    folder = settings.spool_folder(layout)
    damaged = [layout.relative(path) for path in spool_records.find_damaged(folder)]
    return Finding(
        "journal counts", not damaged, _listed(damaged, "is damaged", "whole"), REPAIR, lambda: spool_records.rebuild(folder)
    )


def check_lag(layout: Layout) -> Finding:
    """Whether the predictions of servers reach the ledger."""
    from evergreen.monitoring.ledger import spool_records

    lag = spool_records.find_lag(settings.spool_folder(layout))
    if lag is None or datetime.now(UTC) - lag.oldest < MAX_LAG:
        return Finding("journal lag", True, "none", "")
    found = f"{lag.bytes / 2**20:.1f} MB of predictions since {lag.oldest:%Y-%m-%d %H:%M} UTC are not in the ledger"
    return Finding("journal lag", False, found, "look for `cannot be drained` in the server's log, or run evergreen monitor")


def check_outputs(layout: Layout) -> Finding:
    """Whether the recorded outputs of the steps are there, and their tables whole."""
    lock = layout.root / "dvc.lock"
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {}) if lock.exists() else {}
    outs = [out["path"] for stage in stages.values() for out in stage.get("outs", ())]
    lost = [path for path in outs if not (layout.root / path).exists()]
    if not lost and (half := truncated_parquet(layout)):
        lost = [layout.relative(half)]
    return Finding("outputs", not lost, _listed(lost, "is missing or cut short", f"{len(outs)} of steps"), "evergreen train")


def check_champion(layout: Layout, problem: str) -> Finding:
    """Whether the champion of a problem is recorded, registered and readable."""
    subject = f"champion {problem}"
    try:
        number = settings.deployments(layout).champion(problem)
        alias = settings.registry(layout).version(problem, "champion") if settings.has_registry(layout) else None
        if number is None and alias is None:
            return Finding(subject, True, "none yet", "")
        if number is None and alias is not None:
            copy = f"cp -a ORIGINAL/var/evergreen.db* {shlex.quote(str(layout.var))}/"
            return Finding(subject, False, f"v{alias.version} is registered, and no decision is recorded", copy)
        assert number is not None
        if not settings.has_registry(layout) or settings.registry(layout).version(problem, number) is None:
            return Finding(subject, False, f"v{number} is not in MLflow's store", f"evergreen train {problem}")
        if replaced := settings.deployments(layout).replaced(settings.registry(layout), problem):
            advice = f"copy var/mlflow.db and var/artifacts from the backup of var/evergreen.db, or evergreen train {problem}"
            return Finding(subject, False, replaced, advice)
        damage = settings.registry(layout).damage(problem, number)
    except EvergreenError as error:
        return Finding(subject, False, str(error), "mend what the line says")
    return Finding(subject, damage is None, damage or f"v{number} is readable", f"evergreen train {problem}")


def check_alias(layout: Layout, problem: str) -> Finding:
    """Whether MLflow's alias `champion` stands at the version that serves. One of both may come from an older backup."""
    subject = f"alias {problem}"
    try:
        decisions = settings.deployments(layout)
        number = decisions.champion(problem)
        if number is None or not settings.has_registry(layout):
            return Finding(subject, True, "none yet", "")
        registry = settings.registry(layout)
        if registry.version(problem, number) is None:
            return Finding(subject, True, "stays: see the champion", "")
        named = registry.version(problem, "champion")
    except EvergreenError as error:
        return Finding(subject, False, str(error), "mend what the line says")
    if named is not None and named.version == number:
        return Finding(subject, True, f"v{number}", "")
    found = f"MLflow says {f'v{named.version}' if named else 'none'}, and v{number} serves by the record"
    return Finding(subject, False, found, REPAIR, lambda: decisions.update_alias(registry, problem))


def _state(layout: Layout) -> Iterator[Path]:
    yield from (path for name in FILES if (path := layout.root / name).exists())
    for part in PARTS:
        top = layout.root / part
        if top.exists():
            yield top
            for folder, folders, files in os.walk(top, followlinks=True):
                yield from (Path(folder) / name for name in (*folders, *files))


def _allowed(path: Path) -> bool:
    if path.is_symlink() and not path.exists():
        return True  # it holds nothing
    if path.is_dir():
        return os.access(path, os.R_OK | os.W_OK | os.X_OK)
    return os.access(path, os.R_OK | os.W_OK if path.suffix == ".db" else os.R_OK)


def _fault_of(path: Path) -> str | None:
    """What is wrong with an SQLite file: DAMAGED, or why it cannot be read now (a full disk, a lock); None: nothing."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        return _check(address)
    except sqlite3.OperationalError as error:
        if not database.is_at_rest(path):
            return str(error)
    with suppress(sqlite3.OperationalError):
        return _check(f"{address}&immutable=1")  # SQLite then makes no files beside it
    return DAMAGED


def _check(address: str) -> str | None:
    """Raises sqlite3.OperationalError for a file that cannot be read."""
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS)) as link:
            return None if link.execute("PRAGMA quick_check(1)").fetchone() == ("ok",) else DAMAGED
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        return DAMAGED


def _listed(paths: list[str], what: str, otherwise: str) -> str:
    if not paths:
        return otherwise
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    verb = what if len(paths) == 1 else re.sub("^is ", "are ", what)
    return f"{', '.join(paths[:SHOWN])}{more} {verb}"
