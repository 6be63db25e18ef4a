"""`python -m bench.write_faults`: each verb that writes, with a full disk or a kill at its n-th write.

    python -m bench.write_faults                          every verb, ten places for each fault
    python -m bench.write_faults --places 40 score labels more, and only these
    python -m bench.write_faults --postgres score labels  with decisions, ledger and keys in PostgreSQL, whose own writes go on

A project in a temporary folder, with registry, ledger and caches of its own, is copied for each trial (see tests.write_faults
for the faults). The verb must end with one line, or without an error; then no file may be taken for whole that is not, and the
same command must succeed and leave what an undisturbed run leaves. Needs a C compiler.
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from evergreen.flows import settings
from evergreen.flows.fork_server import LIBRARIES as FORKED
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core.paths import Layout, truncated_parquet
from tests import projects
from tests.e2e.shop import ENVIRONMENT
from tests.flows.console import operated
from tests.postgres import Postgres
from tests.tasks.problems.tabular import test_tabular_kind
from tests.write_faults import MODES, Ended, Fault, WriteFaults

ROWS, SHOP = "redeem", "recommend"
CANARY = Rollout(strategy="canary", steps=(0.5,), step_minutes=600, timeout_hours=100)
LIBRARIES = (
    "evergreen.tasks.release.mlflow_store", "evergreen.tasks.release.lineage", "evergreen.monitoring.ledger.predictions",
    "evergreen.flows.operations.batch_scoring", "evergreen.flows.monitoring", "evergreen.monitoring.report.page",
    "evergreen.flows.training", *FORKED,
)  # fmt: skip
"""What commands import: forks have it at once."""
log = logging.getLogger("bench")


CTRL_C = (0, 1, 130)
"""Exit statuses of a command that serves."""


@dataclass(frozen=True)
class Case:
    """A command, and the commands that come before it and are not disturbed."""

    words: Sequence[str]
    base: str = "deployed"
    is_step: bool = False
    before: Sequence["Case"] = ()
    results: Sequence[str] = ()
    """Tables that the command writes, below the project's folder."""
    until: str = ""
    """What a command prints that serves until Ctrl-C."""
    codes: Sequence[int] = (0,)
    """Exit statuses without a fault."""


def _step(*words: str) -> Case:
    return Case(words, "deployed", True)


def _steps(problem: str) -> dict[str, Case]:
    """Each step, after those before it."""
    every = [_step("ingest"), _step("validate")]
    every += [_step(step, problem) for step in ("features", "tune", "train", "evaluate", "diagnose", "explain")]
    return {f"step {each.words[0]}": Case(each.words, "deployed", True, every[:place]) for place, each in enumerate(every)}


TRAINED = Case(("train", "--seconds", "4"), "initialised")
SCORED = Case(("score", ROWS))
CASES: dict[str, Case] = {
    "score": Case(("score", ROWS), results=("data/scores/redeem.parquet",)),
    "score file": Case(("score", ROWS, "--data", "rows.parquet", "--out", "out.parquet"), results=("out.parquet",)),
    "score lists": Case(("score", SHOP), results=("data/scores/recommend.parquet",)),
    "labels": Case(("labels", ROWS, "--data", "labels.csv"), before=(SCORED,)),
    "events": Case(("events", SHOP, "--data", "purchases.csv")),
    "withdraw": Case(("events", SHOP, "--withdraw", "e1"), before=(Case(("events", SHOP, "--data", "purchases.csv")),)),
    "monitor": Case(("monitor", ROWS), before=(_step("ingest"), _step("validate"), SCORED)),
    "rollback": Case(("rollback", ROWS, "--reason", "a fault")),
    "rollout promote": Case(("rollout", "promote", ROWS, "--reason", "good"), "rollout"),
    "rollout abort": Case(("rollout", "abort", ROWS, "--reason", "bad"), "rollout"),
    "prune": Case(("prune",), before=(SCORED,)),
    "report": Case(("report",), results=("reports/index.html",)),
    "keys add": Case(("keys", "add", "ann", "--scope", "predict")),
    "export": Case(("export", ROWS, "--out", "bundle")),
    "status": Case(("status",)),
    "serve": Case(("serve", "--port", "0", "--workers", "1"), until="Ctrl-C to stop", codes=CTRL_C),
    "serve new": Case(("serve", "--port", "0", "--workers", "2"), "unserved", until="Ctrl-C to stop", codes=CTRL_C),
    "console": Case(("console", "--port", "0"), until="Ctrl-C to stop", codes=CTRL_C),
    "schedule": Case(("schedule",), until="Ctrl-C to stop", codes=CTRL_C),
    "suggestion": Case(("suggestion", "snooze", "dear", "--reason", "not now"), "operated"),
    "backtest": Case(("backtest", "spend", "--policy", "never"), "trained"),
    "reproduce": Case(("reproduce", "dear"), "initialised", before=(TRAINED,), codes=(0, 1)),
    "doctor": Case(("doctor", "--repair"), codes=(0, 1)),
    "init": Case(("init", "dear", "--data", "houses.csv", "--target", "dear"), "table"),
    **_steps(ROWS),
    "train": TRAINED,
    "retrain": Case(("retrain", "dear", "--reason", "new rows"), "initialised", before=(TRAINED,)),
}


def _deployed(folder: Path) -> None:
    layout = projects.lay_deployed(folder, (ROWS, SHOP))
    projects.deploy(layout, ROWS, "logistic", C=0.1)
    projects.register(layout, ROWS, "logistic", C=0.01)
    lines = pl.read_parquet(layout.features(SHOP) / "lines.parquet").head(40)
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    lines.select(
        pl.format("e{}", pl.int_range(pl.len())).alias("id"), pl.col("user").alias("household_id"),
        pl.col("item").alias("product_id"), pl.lit("b1").alias("basket_id"), pl.lit(moment).alias("transaction_timestamp"),
    ).write_csv(folder / "purchases.csv")  # fmt: skip
    rows = pl.read_parquet(layout.features(ROWS) / "rows.parquet").filter(pl.col("cutoff") == pl.col("cutoff").max())
    rows.drop("cutoff", "target", "label", strict=False).write_parquet(folder / "rows.parquet")
    rows.select("household_id", "cutoff", pl.int_range(pl.len()).mod(2).alias("label")).write_csv(folder / "labels.csv")


def _rollout(folder: Path) -> None:
    _deployed(folder)
    settings.rollouts(Layout(folder)).begin(ROWS, 3, CANARY, "bench", "bench")


def _unserved(folder: Path) -> None:
    """Deployed, and a ledger without tables: nothing was ever served."""
    _deployed(folder)
    layout = Layout(folder)
    with closing(sqlite3.connect(layout.var / "evergreen.db")) as link:
        for (name,) in link.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if name not in ("deployments", "sqlite_sequence"):
                link.execute(f'DROP TABLE "{name}"')


def _operated(folder: Path) -> None:
    """With a suggestion that waits for an answer."""
    operated.lay(folder, projects.lay_deployed)


def _trained(folder: Path) -> None:
    projects.lay_trained(folder)


def _table(folder: Path) -> None:
    folder.mkdir(parents=True)
    test_tabular_kind.houses(300).write_csv(folder / "houses.csv")


class Server:
    """A PostgreSQL server with one database for the trial, `work`, and a copy of it for each state to come back to."""

    def __init__(self, folder: Path) -> None:
        self._postgres = Postgres(folder)
        self._postgres.start()
        self.address = self._postgres.address.replace("/postgres?", "/work?")
        self._engine = sa.create_engine(self._postgres.address, isolation_level="AUTOCOMMIT")
        self.copy("work", "template0")

    def copy(self, name: str, source: str) -> None:
        """Make the database `name` what `source` is."""
        with self._engine.connect() as link:
            link.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            link.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {source}"))

    def counts(self) -> dict[str, int]:
        """Table -> rows."""
        engine = sa.create_engine(self.address, poolclass=sa.NullPool)
        with engine.connect() as link:
            names = sorted(sa.inspect(link).get_table_names())
            return {name: link.execute(sa.text(f'SELECT count(*) FROM "{name}"')).scalar_one() for name in names}

    def stop(self) -> None:
        self._engine.dispose()
        self._postgres.stop()


class Bench:
    """One folder: `base` holds the projects, `work` the copy of a trial (projects, caches and temporary files)."""

    def __init__(self, folder: Path, server: Server | None = None) -> None:
        """`server`: holds decisions, ledger and keys; None: an SQLite file of the project does."""
        self._folder, self.work, self._server = folder, folder / "work", server
        (folder / "tools").mkdir()
        self._clear()
        places = {"XDG_CACHE_HOME": "cache", "TMPDIR": "tmp", "PREFECT_HOME": "prefect"}
        environment = {**ENVIRONMENT, **{name: str(self.work / part) for name, part in places.items()}}
        environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "180"  # it shares the machine with other work
        if server:
            environment["EVERGREEN_DATABASE"] = os.environ["EVERGREEN_DATABASE"] = server.address
        self._faults = WriteFaults(folder / "tools", self.work, environment, LIBRARIES)

    def lay(self, name: str, case: Case) -> None:
        """Prepare the state that trials of a case begin with."""
        base = self._folder / "base" / case.base
        if not base.exists():
            self._clear()
            if self._server:
                self._server.copy("work", "template0")
            maker = multiprocessing.get_context("spawn").Process(target=BASES[case.base], args=(self.work / "project",))
            maker.start()  # a process of its own: MLflow keeps the files of an address open
            maker.join()
            if maker.exitcode:
                raise RuntimeError(f"{case.base}: no project")
            if case.base == "initialised":
                self._undisturbed(CASES["init"])
            base.parent.mkdir(exist_ok=True)
            self._keep(base)
        self._restore(base)
        for each in case.before:
            self._undisturbed(each)
        shutil.rmtree(self._folder / "start", ignore_errors=True)
        self._keep(self._folder / "start")

    def begin(self) -> None:
        self._restore(self._folder / "start")

    def _clear(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        for part in ("cache", "tmp", "prefect"):
            (self.work / part).mkdir(parents=True)

    def _keep(self, base: Path) -> None:
        shutil.copytree(self.work, base, symlinks=True)
        if self._server:
            self._server.copy(base.name, "work")

    def _restore(self, base: Path) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(base, self.work, symlinks=True)
        if self._server:
            self._server.copy("work", base.name)

    def _counts(self) -> dict[str, int]:
        return self._server.counts() if self._server else dict(_counts(self.work / "project" / "var" / "evergreen.db"))

    def _undisturbed(self, case: Case) -> Ended:
        ended = self.run(case)
        if ended.code not in case.codes:
            raise RuntimeError(f"{' '.join(case.words)}: exit status {ended.code} without a fault\n{ended.stderr[-3000:]}")
        return ended

    def run(self, case: Case, number: int = 0, fault: Fault = "full") -> Ended:
        project = self.work / "project"
        return self._faults.run(case.words, number, fault, cwd=project, step=case.is_step, until=case.until)

    def close(self) -> None:
        self._faults.close()

    def undisturbed(self, case: Case) -> tuple[int, dict[str, Any]]:
        """The number of writes of a case, and what it leaves."""
        self.begin()
        ended = self._undisturbed(case)
        return ended.calls, self.state(case)

    def state(self, case: Case) -> dict[str, Any]:
        """Rows of each table of the database, tables of results, and files that a killed process left."""
        project = self.work / "project"
        found: dict[str, Any] = dict(self._counts())
        for name in case.results:
            path = project / name
            found[name] = _content(path) if path.exists() else None
        found["left"] = sorted(str(path.relative_to(project)) for path in project.rglob(".*.*.[0-9]*.*") if path.is_dir())
        found["files"] = sorted(_files(project))
        return found

    def has_done(self, expected: Mapping[str, Any]) -> bool:
        """Whether the database holds what an undisturbed run leaves in it."""
        found = self._counts()
        return all(expected[table] == count for table, count in found.items())

    def damage(self) -> str | None:
        """A file that looks whole and is not; None without one."""
        layout = Layout(self.work / "project")
        if broken := truncated_parquet(layout):
            return f"truncated: {broken}"
        for part in ("data", "models", "reports", "var/costs", "params.yaml"):
            for path in sorted((layout.root / part).rglob("*.json")):
                try:
                    json.loads(path.read_text())
                except ValueError as error:
                    return f"{path}: {error}"
        return None


def _content(path: Path) -> Any:
    """What a table holds; the size of another file is not compared, as it may hold moments."""
    if path.suffix != ".parquet":
        return True
    frame = pl.read_parquet(path)
    return frame.drop("id", "at", strict=False).write_json()


def _files(project: Path) -> Iterator[str]:
    """Names of results, without those that hold random parts or moments."""
    for part in ("data", "models", "reports", "bundle"):
        for path in (project / part).rglob("*"):
            if path.is_file():
                yield str(path.relative_to(project))


def _counts(database: Path) -> Iterator[tuple[str, int]]:
    if not database.exists():
        return
    with closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        for name in names:
            if not name.startswith("sqlite_"):
                yield name, connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]


BASES: dict[str, Callable[[Path], None]] = {
    "deployed": _deployed, "rollout": _rollout, "table": _table, "initialised": _table, "unserved": _unserved,
    "operated": _operated, "trained": _trained,
}  # fmt: skip


def places(calls: int, count: int) -> list[int]:
    """Numbers of writes to try: the first and the last ones, and others in between."""
    between = np.linspace(1, calls, max(count, 2)).round().astype(int).tolist()
    return sorted({1, *between, calls} if calls else set())


def sweep(bench: Bench, name: str, case: Case, count: int, faults: Sequence[Fault]) -> list[str]:
    """Try one case; returns what went wrong."""
    bench.lay(name, case)
    calls, expected = bench.undisturbed(case)
    wrong: list[str] = []
    tried = ended_well = 0
    for fault in faults:
        for number in places(calls, count):
            bench.begin()
            ended = bench.run(case, number, fault)
            tried += 1
            ended_well += ended.code in case.codes
            where = f"{name}: {fault} at write {number} of {calls} ({ended.place.replace(str(bench.work), '')})"
            if fault == "full" and not _is_clear(ended, case):
                wrong.append(f"{where}: exit status {ended.code}: {ended.stderr[-700:]}")
            if damage := bench.damage():
                wrong.append(f"{where}: {damage}")
            again = bench.run(case)
            if again.code not in case.codes and not (
                again.is_clear and bench.has_done(expected)
            ):  # refused, as the first run had done its work
                wrong.append(f"{where}: the second run: exit status {again.code}: {again.stderr[-700:]}")
            elif again.code in case.codes and (state := bench.state(case)) != expected:
                wrong.append(f"{where} (exit status {ended.code}): after the second run: {_difference(expected, state)}")
    log.info("| %s | %d | %d | %d | %d |", name, calls, tried, ended_well, len(wrong))
    return wrong


def _is_clear(ended: Ended, case: Case) -> bool:
    """Whether it ended well (a server by Ctrl-C), with one line that says what is wrong, or with findings, as a doctor."""
    expected = ended.code in case.codes and (ended.code != 1 or bool(ended.stdout.strip()))
    return ended.is_clear or (expected and "Traceback" not in ended.stderr)


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    parts = []
    for key in sorted({*expected, *found}):
        one, other = expected.get(key), found.get(key)
        if one != other and isinstance(one, list) and isinstance(other, list):
            parts.append(f"{key}: missing {sorted({*one} - {*other})[:5]}, more {sorted({*other} - {*one})[:5]}")
        elif one != other:
            parts.append(f"{key}: {str(other)[:80]} instead of {str(one)[:80]}")
    return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verbs", nargs="*", metavar="VERB", choices=[*CASES, []], help=f"of {', '.join(CASES)}")
    parser.add_argument("--places", type=int, default=10, help="writes of a verb at which each fault happens")
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--fault", choices=[*MODES], action="append", help="default: both")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    log.setLevel(logging.INFO)
    for name in [each for each in os.environ if each.startswith(("EVERGREEN_", "PREFECT_"))]:
        del os.environ[name]
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="evergreen-writes-") as folder, ExitStack() as stack:
        server = None
        if options.postgres:
            server = Server(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg", dir="/tmp"))))
            stack.callback(server.stop)
        bench = Bench(Path(folder).resolve(), server)
        log.info("| verb | writes | trials | ended without an error | wrong |\n| --- | --- | --- | --- | --- |")
        for name in options.verbs or CASES:
            try:
                found = sweep(bench, name, CASES[name], options.places, options.fault or list(MODES))
            except RuntimeError as error:
                found = [str(error)]
            for each in found:
                log.info("%s", each)
            wrong += found
        bench.close()
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
