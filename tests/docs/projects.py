"""The projects that commands of the documentation run in, and a shell that runs them."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import typer
from ruamel.yaml import YAML

from evergreen.flows.cli.main import app
from evergreen.flows.operations import batch_scoring, init_project
from evergreen.tasks import problems
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.onboarding.options import InitOptions
from tests import ROOT
from tests.projects import deploy, lay_deployed
from tests.serving.server import Server

FLOWS = ("train", "monitor")
"""Commands that need a process of their own: Prefect reads its settings once."""
SMALL = {
    "tune": {"folds": 2, "repeats": 1, "n_trials": 2, "models": ["prior", "logistic"]},
    "evaluate": {"resamples": 50, "diagnose_seconds": 0, "explain_rows": 50},
    "monitor": {"evidently_report": False},
}
"""What makes a training short; every command stays as the page shows it."""
ITEMS = {"1082185": "1000"}
"""An item of the store -> one of the small store."""


def lay_tables(folder: Path) -> None:
    """The files that pages call ../NAME.csv, in `folder`."""
    for path in (ROOT / "docs" / "tutorials").glob("*.csv"):
        shutil.copy(path, folder)
    _write(folder / "households.csv", [["household_id"], *([number] for number in range(1, 21))])
    _write(folder / "sold.csv", [["user", "item"], [1, 1000], [2, 1001]])
    days = [f"2024-{1 + number % 9:02d}-{1 + number % 27:02d}" for number in range(600)]
    lines = [[number % 40, number * 7 % 60, day] for number, day in enumerate(days)]
    _write(folder / "purchases.csv", [["client", "article", "bought"], *lines])


def lay_store(folder: Path) -> None:
    """The small store, two versions of redeem and one of recommend deployed."""
    layout = lay_deployed(folder, ("redeem", "recommend"))
    deploy(layout, "redeem", "prior")


def lay_churn(folder: Path) -> None:
    """The project of the tutorial, with a model that `evergreen score` was called with."""
    folder.mkdir()
    asked = InitOptions("left", None, None, None, (), None, None, None, None)
    init_project.run("churn", str(ROOT / "docs/tutorials/customers.csv"), None, asked, folder, folder, date.today())
    layout, known = Layout(folder), loading.load(folder / "params.yaml")
    kind, section = problems.kind("classification"), known.section("churn")
    tables = {"churn": pl.scan_csv(ROOT / "docs/tutorials/customers.csv")}
    layout.features("churn").mkdir(parents=True)
    for part, frame in kind.build(tables, {"churn": None}, section, date.today()).items():
        frame.write_parquet(layout.features("churn") / f"{part}.parquet")
    deploy(layout, "churn", "logistic")
    batch_scoring.run(layout, known, "churn", ROOT / "docs/tutorials/tomorrow.csv", folder / "scored.csv", None)


def _write(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


class Shell:
    """Runs the lines of a page one after the other, in a folder that they may change."""

    def __init__(self, folder: Path, capsys: Any, monkeypatch: Any) -> None:
        self.folder, self._capsys, self._monkeypatch = folder, capsys, monkeypatch
        self.server: Server | None = None
        self.out = ""
        """What the last command printed."""

    def run(self, line: str) -> None:
        """Raises AssertionError where a command fails."""
        for part in line.split(" && "):
            words = shlex.split(part)
            if words[0] == "cd":
                self.folder = (self.folder / words[1]).resolve()
            elif words[0] == "export":
                name, _, value = words[1].partition("=")
                self._monkeypatch.setenv(name, value)
            elif words[0] == "curl":
                self.out = self._curl(words[1:])
            elif words[0] == "evergreen":
                self.out = self._evergreen(words[1:])
            else:
                self.out = self._call("bash", "-c", part)

    def merge(self, text: str) -> None:
        """Write the keys of a page's YAML into params.yaml, where there is one with these problems."""
        path = self.folder / "params.yaml"
        if not path.exists():
            return
        given, whole = YAML().load(text), YAML().load(path.read_text())
        if set(given) <= {*whole, "serve"}:
            with path.open("w") as file:
                YAML().dump(merged(whole, given), file)

    def stop(self) -> None:
        if self.server:
            self.server.stop()
            self.server = None

    def _evergreen(self, words: list[str]) -> str:
        if words[0] == "serve":
            self.stop()
            self.server = Server(Layout(self.folder))
            return ""
        if words[0] in FLOWS:
            _shorten(self.folder / "params.yaml")
            return self._call(sys.executable, "-m", "evergreen.flows.cli.main", *words)
        with self._monkeypatch.context() as patch:
            patch.chdir(self.folder)
            code = typer.main.get_command(app).main(words, standalone_mode=False)
        assert code in (0, None), words
        return self._capsys.readouterr().out

    def _call(self, *words: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            words, cwd=self.folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def _curl(self, words: list[str]) -> str:
        assert self.server, "no line before this one starts a server"
        body = headers = None
        address = ""
        left = iter(words)
        for word in left:
            if word == "-d":
                body = re.sub("|".join(ITEMS), lambda found: ITEMS[found[0]], next(left))
            elif word == "-H":
                headers = dict([next(left).split(": ")])
            elif word != "-s":
                address = word
        path = re.sub(r"^(http://)?(localhost|127\.0\.0\.1):8080", "", address)
        answer = self.server.client.request("POST" if body else "GET", path, content=body, headers=headers)
        assert answer.status_code == 200, f"{address}: {answer.status_code} {answer.text}"
        return answer.text


def _shorten(path: Path) -> None:
    whole = YAML().load(path.read_text())
    for name in whole["problems"]:
        merged(whole, {name: SMALL})
    with path.open("w") as file:
        YAML().dump(whole, file)


def merged(whole: Any, given: Any) -> Any:
    """`whole`, changed: with the keys of `given` in it, at every depth."""
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(whole.get(key), dict):
            merged(whole[key], value)
        else:
            whole[key] = value
    return whole


def shape(value: Any) -> Any:
    """What a JSON value is made of: its keys, and of a list its first entry."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return None
