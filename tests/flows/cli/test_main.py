"""The command line: cheap to start, one clear line on what a person can mend, nothing but JSON where JSON is asked for."""

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from evergreen.flows import settings
from evergreen.flows.cli import main
from evergreen.flows.operations import doctor, params_edit, status
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import EvergreenError, ParamsError
from evergreen.tasks.core.paths import Layout, locking
from evergreen.tasks.release.deployments import Deployment
from evergreen.tasks.release.mlflow_store import Version
from tests import ROOT
from tests.monitoring.report.test_production_section import monitored

HEAVY = (
    "prefect",
    "mlflow",
    "dvc",
    "great_expectations",
    "sklearn",
    "polars",
    "pandas",
    "numpy",
    "optuna",
    "lightgbm",
    "vl_convert",
)
SMALL = """\
# what a person wrote
project: {name: shop, as_of: "2017-03-01"}   # the day
ingest:
  sales: {csv: sales.csv, time: day}
problems: {spend: regression}
spend:
  question: How much?
  features:
    entity: household
    horizon_days: 28
    cutoffs: {first: "2017-01-01", every_days: 7}
    target: {table: sales, function: sum, column: value}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(SMALL)
    return tmp_path


def evergreen(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "evergreen.flows.cli.main", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of `evergreen words`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["evergreen", *words])
    with pytest.raises(SystemExit, match=r"\d") as ended:
        main.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]], ids=["help", "train"])
def test_help_imports_no_heavy_library(words: list[str]):
    code = f"""
import sys
sys.argv = ["evergreen", *{words!r}]
from evergreen.flows.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("HEAVY", sorted(set(sys.modules) & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_outside_a_project_a_command_says_so_in_one_line(tmp_path: Path):
    done = evergreen("status", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no params.yaml here or in any folder above" in done.stderr


def test_a_wrong_problem_gets_the_nearest_right_name(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert run_main(monkeypatch, "train", "spent", "--root", str(shop)) == 1
    assert capsys.readouterr().err == "error: spent: no such problem in params.yaml; did you mean spend?\n"


def test_debug_shows_where_an_expected_error_came_from(shop: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["evergreen", "train", "spent", "--debug", "--root", str(shop)])
    with pytest.raises(EvergreenError, match="did you mean spend"):
        main.main()


def test_a_second_training_names_the_process_that_holds_the_lock(shop: Path):
    with locking(Layout(shop).var / "train.lock", "train"):
        done = evergreen("train", cwd=shop)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"process {os.getpid()} holds the lock" in done.stderr


@pytest.mark.parametrize(("file", "named"), [("/var/x.db", "/var/x.db"), (None, "the project's folder or /")])
def test_a_disk_that_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, file: str | None, named: str
):
    def full() -> None:
        raise OSError(28, "No space left on device", file)

    monkeypatch.setattr(main, "app", full)
    with pytest.raises(SystemExit, match="1"):
        main.main()
    line = capsys.readouterr().err
    assert line.startswith(f"error: {named}")
    assert ": No space left on device. Free space" in line


def test_params_prints_one_json_object_with_the_defaults(shop: Path):
    done = evergreen("params", "--json", cwd=shop)
    assert json.loads(done.stdout)["spend"]["tune"]["n_trials"] == load(shop / "params.yaml").section("spend").tune.n_trials


def test_the_schema_is_json_and_explains_its_keys(tmp_path: Path):
    done = evergreen("params", "--schema", cwd=tmp_path)
    assert "seed" in json.loads(done.stdout)["$defs"]["Project"]["properties"]


# --- the day a project lives on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('project: {name: shop, as_of: "2017-03-01"}   # the day', 'project: {name: shop, as_of: "2017-02-05"}   # the day'),
        ("project:\n  name: shop\n  as_of: '2017-03-01'  # why\n", 'project:\n  name: shop\n  as_of: "2017-02-05"  # why\n'),
        ("project:\n  as_of: null # newest\n  name: shop\n", 'project:\n  as_of: "2017-02-05" # newest\n  name: shop\n'),
        ("project:\n  name: shop\n  seed: 1\n", 'project:\n  as_of: "2017-02-05"\n  name: shop\n  seed: 1\n'),
        ("project: {name: shop}", 'project: {as_of: "2017-02-05", name: shop}'),
    ],
)
def test_setting_the_day_changes_that_value_and_no_other_character(shop: Path, before: str, after: str):
    path, head = shop / "params.yaml", 'project: {name: shop, as_of: "2017-03-01"}   # the day'
    path.write_text(SMALL.replace(head, before))
    assert params_edit.set_as_of(path, date(2017, 2, 5))
    assert path.read_text() == SMALL.replace(head, after)
    assert not params_edit.set_as_of(path, date(2017, 2, 5)), "the same day again is no change"


def test_a_params_file_whose_day_cannot_be_replaced_stays_as_it_was(shop: Path):
    text = SMALL.replace('as_of: "2017-03-01"', 'as_of: &day "2017-03-01"')
    (shop / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match="by hand"):
        params_edit.set_as_of(shop / "params.yaml", date(2017, 2, 5))
    assert (shop / "params.yaml").read_text() == text


SPENDS = """{project}
ingest: {{sales: {{parquet: s.parquet}}}}   # a comment
problems: {{pay: regression}}
pay:
  question: "How much?"   # why
  features: {{entity: who, horizon_days: 7, cutoffs: {{first: "2017-01-01", every_days: 7}}}}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  tune: {n_trials: 5}  # few", "  tune: {budget_seconds: 60, n_trials: 5}  # few"),
        ("  tune: {n_trials: 5, budget_seconds: 5}  # few", "  tune: {n_trials: 5, budget_seconds: 60}  # few"),
        ("  tune:\n    n_trials: 5 # few\n", "  tune:\n    budget_seconds: 60\n    n_trials: 5 # few\n"),
        ("  tune:\n    budget_seconds: null # few", "  tune:\n    budget_seconds: 60 # few"),
        ("  tune: {}  # none", "  tune: {budget_seconds: 60}  # none"),
    ],
)
def test_setting_the_seconds_changes_that_value_and_no_other_character(tmp_path: Path, before: str, after: str):
    path, head = tmp_path / "params.yaml", SPENDS.format(project="project: {name: shop}")
    path.write_bytes((head + before).encode())
    assert params_edit.set_seconds(path, "pay", 60.0)
    assert path.read_bytes().decode() == head + after
    assert not params_edit.set_seconds(path, "pay", 60.0), "the same again is no change"


def test_seconds_of_a_problem_without_tune_stand_before_its_first_key_whatever_ends_the_lines(tmp_path: Path):
    path, text = tmp_path / "params.yaml", SPENDS.format(project="project: {name: shop}").replace("\n", "\r\n")
    path.write_bytes(text.encode())
    params_edit.set_seconds(path, "pay", 7.5)
    written = "pay:\r\n  tune: {budget_seconds: 7.5}\r\n  question"
    assert path.read_bytes().decode() == text.replace("pay:\r\n  question", written)


def test_seconds_that_cannot_be_set_leave_the_file_as_it_was(tmp_path: Path):
    path = tmp_path / "params.yaml"
    text = SPENDS.format(project="project: {name: shop}") + "  tune: {budget_seconds: &few 5}\n"
    path.write_text(text)
    with pytest.raises(ParamsError, match=r"pay\.tune\.budget_seconds cannot be set here; write budget_seconds: 60"):
        params_edit.set_seconds(path, "pay", 60.0)
    assert path.read_text() == text


def test_a_day_that_is_none_is_refused_before_anything_is_written(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert run_main(monkeypatch, "train", "--as-of", "2017-02-30", "--root", str(shop)) == 1
    assert "--as-of 2017-02-30: not a day" in capsys.readouterr().err
    assert run_main(monkeypatch, "train", "--as-of", "2999-01-01", "--root", str(shop)) == 1
    assert "--as-of 2999-01-01: lies after today" in capsys.readouterr().err
    assert (shop / "params.yaml").read_text() == SMALL


# --- what a project has to show -----------------------------------------------------------------------------------------------


class Models:
    """Two versions of one problem."""

    def version(self, problem: str, which: int) -> Version:
        return next(each for each in self.versions(problem) if each.version == which)

    def versions(self, problem: str) -> list[Version]:
        return [
            Version(
                problem=problem,
                version=number,
                run_id="r",
                created=datetime(2017, 5, number, tzinfo=UTC),
                aliases=("champion",) if number == 1 else ("challenger",),
                tags={"model": "ridge", "metric": "rmse"},
                metrics={"rmse": 90.0 + number, "rmse_low": 80.0, "rmse_high": float("nan"), "rmse_baseline": 120.0},
            )
            for number in (1, 2)
        ]


class Decisions:
    """Version 1 was deployed, version 2 refused."""

    def history(self, problem: str, at: datetime | None = None) -> list[Deployment]:
        told: list[tuple[int, Literal["deploy", "refuse"], str]] = [
            (1, "deploy", "beats the baseline"),
            (2, "refuse", "cannot be told from champion v1"),
        ]
        every = [
            Deployment(
                problem=problem, version=version, action=action, by="ada", at=datetime(2017, 5, version, 8, tzinfo=UTC),
                reason=reason, evidence={"decision": "better"}, previous=None,
            )
            for version, action, reason in told
        ]  # fmt: skip
        return [each for each in every if at is None or each.at <= at][::-1]

    def champion(self, problem: str, at: datetime | None = None) -> int | None:
        return 1 if self.history(problem, at) else None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "registry", lambda layout: Models())
    monkeypatch.setattr(settings, "deployments", lambda layout: Decisions())


@pytest.mark.usefixtures("world")
def test_status_tells_the_champion_its_numbers_and_why_the_newest_was_refused(shop: Path):
    [row] = status.rows(Layout(shop), ["spend"])
    assert (row.version, row.model, row.score, row.low, row.baseline) == (1, "ridge", 91.0, 80.0, 120.0)
    assert (row.since, row.by) == (datetime(2017, 5, 1, 8, tzinfo=UTC), "ada")
    assert row.verdict == "cannot be told from champion v1"


@pytest.mark.usefixtures("world")
def test_status_tells_the_realised_scores_of_the_champion_alone(shop: Path, monkeypatch: pytest.MonkeyPatch):
    run = monitored("2017-12-24", False, False)
    for version, told in ((1, "roc_auc 0.87 [0.85, 0.89] up to 2017-11-26; expected roc_auc 0.9 [0.88, 0.92]"), (2, None)):
        decision = run.model_copy(update={"window": run.window.model_copy(update={"version": version})})
        log = SimpleNamespace(runs=lambda problem, last, decision=decision: [SimpleNamespace(decision=decision)])
        monkeypatch.setattr(settings, "decision_log", lambda layout, log=log: log)
        assert status.rows(Layout(shop), ["spend"])[0].realised == told


@pytest.mark.usefixtures("world")
def test_json_on_stdout_is_one_object_and_knows_no_nan(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "argv", ["evergreen", "status", "--json", "--root", str(shop)])
    with pytest.raises(SystemExit, match="0"):
        main.main()
    told = json.loads(capsys.readouterr().out)
    assert told["spend"]["version"] == 1
    assert told["spend"]["high"] is None


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("at", "champion"), [("2017-05-01", "champion v1 at"), ("2017-05-01T07:00", "champion none at")])
def test_history_answers_who_was_champion_at_a_moment_a_day_counts_to_its_end(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, at: str, champion: str
):
    run_main(monkeypatch, "history", "spend", "--at", at, "--root", str(shop))
    told = capsys.readouterr()
    assert champion in told.err
    assert "refuse" not in told.out


@pytest.mark.usefixtures("world")
def test_what_was_decided_stays_known_when_the_problem_is_gone_from_params(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (shop / "params.yaml").write_text(SMALL.replace("spend", "lapse"))
    run_main(monkeypatch, "history", "spend", "--root", str(shop))
    assert "champion v1" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["tomorrow", "2017-13-01", "0001-01-01T00:00+23:00"])
def test_a_moment_that_is_none_is_refused_in_one_line(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, moment: str
):
    assert run_main(monkeypatch, "history", "spend", "--at", moment, "--root", str(shop)) == 1
    assert capsys.readouterr().err.startswith(f"error: --at {moment}: is neither a day")


def test_addresses_come_from_the_environment_and_else_lie_under_var(shop: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERGREEN_MLFLOW_URI", "http://mlflow:5000")
    found = settings.read(Layout(shop))
    assert found.mlflow_uri == "http://mlflow:5000"
    assert found.database == f"sqlite:///{shop}/var/evergreen.db"


# --- doctor -------------------------------------------------------------------------------------------------------------------


def test_doctor_says_what_a_bare_folder_lacks(shop: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERGREEN_DATABASE", "postgresql://ada:secret@127.0.0.1:1/none")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setattr(doctor, "_mlflow", lambda layout: doctor.Finding("mlflow", True, "", ""))
    found = {each.subject: each for each in doctor.examine(shop)}
    assert not found["dvc"].ok
    assert "dvc init" in found["dvc"].advice
    assert not found["prefect"].ok
    assert not found["deployments"].ok
    assert "secret" not in found["deployments"].found
    assert found["libraries"].ok


def test_doctor_outside_a_project_reports_the_machine_and_fails(tmp_path: Path):
    found = doctor.examine(tmp_path)
    assert [each.subject for each in found if not each.ok] == ["project"]
