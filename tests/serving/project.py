"""A small project with deployed versions, and its server, for tests over HTTP.

Beside the small store's problems there is `dear`: houses, a plain table with rules in params.yaml.
"""

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from evergreen.flows import settings
from evergreen.tasks import problems
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout, write_json
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.release.promotion_gate import Verdict
from evergreen.tasks.train import describe
from tests import ROOT, store
from tests.contracts import localised
from tests.tasks.problems.tabular import test_tabular_kind

BEGAN = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
MODELS = {"redeem": "logistic", "spend": "ridge", "recommend": "frequency", "dear": "logistic"}
HOUSES = """
dear:
  question: Is this house dear?
  features: {table: houses, target: dear, columns: {size: number, colour: category, built: date}}
  tune: {method: random, n_trials: 2}
"""
RULES = """  houses:
    expectations:
      - {type: expect_column_values_to_be_between, kwargs: {column: size, min_value: 0, strict_min: true}}
      - {type: expect_column_values_to_be_in_set, kwargs: {column: colour, value_set: [red, green, blue]}}
      - {type: expect_column_values_to_be_between, kwargs: {column: size, max_value: 50}, severity: warning}
"""


def project(folder: Path, names: Sequence[str] = tuple(MODELS), serve: str = "") -> Layout:
    """A project in `folder` with one deployed version of each of `names`. `serve`: that section of params.yaml."""
    store.project(folder, households=80, weeks=20)
    text = (folder / "params.yaml").read_text()
    text = text.replace("problems:\n", "problems:\n  dear: classification\n", 1)
    text = text.replace("ingest:\n", "ingest:\n  houses: {parquet: data-in/houses.parquet}\n", 1)
    text = text.replace("validate:\n", f"validate:\n{RULES}", 1)
    (folder / "params.yaml").write_text(f"{text}\n{HOUSES}\n{serve}")
    test_tabular_kind.houses(300).write_parquet(folder / "data-in" / "houses.parquet")
    layout, known = Layout(folder), loading.load(folder / "params.yaml")
    tables = {
        table: localised(pl.scan_parquet(folder / "data-in" / f"{table}.parquet"), known, table) for table in known.ingest
    }
    times = {table: source.time for table, source in known.ingest.items()}
    assert known.project.as_of
    for name in names:
        frames = problems.kind(known.kind(name)).build(tables, times, known.section(name), known.project.as_of)
        layout.features(name).mkdir(parents=True)
        for part, frame in frames.items():
            frame.write_parquet(layout.features(name) / f"{part}.parquet")
        deploy(layout, name, MODELS[name])
    return layout


def deploy(layout: Layout, problem: str, name: str, **changed: Any) -> int:
    """Fit, register and deploy the model `name` with its defaults updated by `changed`. Returns its version."""
    version = register(layout, problem, name, **changed)
    settings.deployments(layout).deploy(settings.registry(layout), problem, version, verdict(), "ann")
    return version


def register(layout: Layout, problem: str, name: str, **changed: Any) -> int:
    known = loading.load(layout.params)
    kind, section = problems.kind(known.kind(problem)), known.section(problem)
    data = kind.load(layout.features(problem), section)
    fold = kind.splits(data, section).tests[-1]
    config = {**kind.defaults(name, section), **changed}
    model = kind.fit(data, fold.train, config, section, 7)
    card = describe(kind, model, data, fold, kind.rows(data, fold.train), config, section)
    skops_models.save(model, layout.model(problem) / "model.skops")
    write_json(layout.model(problem) / "model.json", json.loads(json.dumps({"problem": problem, **card}, default=str)))
    trial = {"number": 0, "state": "complete", "model": name, "config": "{}", "score": 0.8, "std": None, "reason": ""}
    times = {"started": BEGAN, "ended": BEGAN + timedelta(seconds=30), "seconds": 30.0}
    layout.tuning(problem).mkdir(parents=True, exist_ok=True)
    pl.DataFrame([{**trial, **times}], schema_overrides={"std": pl.Float64}).write_parquet(
        layout.tuning(problem) / "trials.parquet"
    )
    write_json(layout.report(problem) / "metrics.json", {kind.metrics[0].name: {"score": 0.9, "low": 0.8, "high": 0.95}})
    write_json(layout.report(problem) / "evaluation" / "evaluation.json", {"primary": kind.metrics[0].name})
    made = settings.registry(layout).register(known, problem, layout, verdict(), {"git.commit": "c0ffee"})
    return made.version


def verdict() -> Verdict:
    numbers = {"candidate": 0.9, "other": 0.7, "gain": 0.2, "low": 0.1, "high": 0.3}
    return Verdict(
        decision="better", promote=True, reason="better by far", metric="m", rows=99, against="baseline prior", **numbers
    )


def evergreen(layout: Layout, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project."""
    command = [sys.executable, "-m", "evergreen.flows.cli.main", *words, "--root", str(layout.root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


class Server:
    """`evergreen serve` on a free loopback port. Its output is in `lines`."""

    def __init__(
        self,
        layout: Layout,
        *options: str,
        seconds: float = 120,
        command: Sequence[str] = (sys.executable, "-m", "evergreen.flows.cli.main"),
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`seconds`: how long it may take to start. `env`: None: this process's, without Evergreen's addresses."""
        environment = env or {name: value for name, value in os.environ.items() if not name.startswith("EVERGREEN")}
        self.process = subprocess.Popen(
            [*command, "serve", "--port", "0", "--root", str(layout.root), *options],
            cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        atexit.register(self.process.kill)  # if a test fails before `stop`; workers end with it
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"Serving at (http://[^\s,]+)", seconds)
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """The first group of the first line that matches."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found[1] if found.groups() else found[0]
            assert self.process.poll() is None, "\n".join(self.lines)
            time.sleep(0.05)
        raise AssertionError("\n".join(self.lines))

    def workers(self) -> list[int]:
        """Their process ids."""
        listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 2) for line in listed.splitlines()]
        return [
            int(pid)
            for pid, parent, args in lines
            if int(parent) == self.process.pid and "evergreen.flows.operations.http_server" in args
        ]

    def stop(self, signal_: int = signal.SIGTERM) -> int:
        """Stop it. Returns its exit status."""
        self.process.send_signal(signal_)
        code = self.process.wait(60)
        self._reader.join(10)
        self.client.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
