"""The flow's own parts: a step in its own process, branches that do not stop each other, the server, what a person sees."""

import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from evergreen.flows import steps, training
from evergreen.flows.cli import progress
from evergreen.flows.operations import status
from evergreen.flows.prefect_runtime import server
from evergreen.tasks.core.errors import DataError, StepError, UnavailableError
from evergreen.tasks.core.paths import Layout, write_json
from tests import ROOT

STEP = """
import json, os, subprocess, sys, time
step, *rest = sys.argv[1:]
print("redeem: trial 1 of 2", file=sys.stderr, flush=True)
if step == "validate":
    print("error: quantity below 0", file=sys.stderr)
    sys.exit(1)
if step == "tune":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open("pids", "w").write(f"{os.getpid()} {child.pid}")
    time.sleep(60)
if step == "train":
    raise ValueError("a bug")
print(json.dumps({"step": step, "rest": rest}))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder with a space in its name; its steps are those above."""
    (tmp_path / "planted_steps.py").write_text(STEP)
    monkeypatch.setattr(steps, "PROGRAM", "planted_steps")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    root = tmp_path / "a project"
    root.mkdir()
    return root


@pytest.fixture
def lines() -> Iterator[list[tuple[Any, str]]]:
    """(step and problem, message) of what the flow logs."""
    heard: list[tuple[Any, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append((steps.here.get(None), record.getMessage()))
    logger = logging.getLogger("evergreen")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield heard
    logger.removeHandler(handler)
    logger.setLevel(level)


def gone(pid: int) -> bool:
    """Whether the process ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# --- a step -------------------------------------------------------------------------------------------------------------------


def test_a_step_runs_in_its_project_and_gives_its_result_and_its_lines(project: Path, lines: list):
    assert steps.work("features", str(project), "redeem") == {"step": "features", "rest": ["redeem", "--root", str(project)]}
    assert lines == [(("features", "redeem"), said) for said in ("started", "redeem: trial 1 of 2", "done")]


def test_a_step_that_refuses_is_told_in_its_own_words_and_not_tried_again(project: Path):
    with pytest.raises(StepError, match=r"^validate: quantity below 0$") as refused:
        steps.work("validate", str(project))
    assert not steps._may_pass(None, None, SimpleNamespace(result=lambda **_: refused.value))


def test_a_step_that_breaks_names_its_log_and_may_be_tried_again(project: Path):
    with pytest.raises(
        steps.CrashError, match=r"redeem: train: ended with code 1: ValueError: a bug.*train@redeem.log"
    ) as broken:
        steps.work("train", str(project), "redeem")
    assert "Traceback" in (project / "var" / "logs" / "train@redeem.log").read_text()
    assert steps._may_pass(None, None, SimpleNamespace(result=lambda **_: broken.value))


def test_why_a_step_ended_is_said_once_and_never_as_a_traceback(project: Path, lines: list):
    for step in ("validate", "train"):
        with pytest.raises(StepError, match=r"quantity below 0|a bug"):
            steps.work(step, str(project))
    told = [said for _, said in lines]
    assert not [said for said in told if said.startswith(("error:", "Traceback", "ValueError"))]
    assert [said for said in told if "quantity below 0" in said] == ["failed: validate: quantity below 0"]


def test_a_server_that_is_away_is_asked_again(tmp_path: Path):
    away = steps._why(UnavailableError.code, "error: ingest.t: no answer", "ingest", None, tmp_path)
    assert str(away) == "ingest: ingest.t: no answer"
    assert steps._may_pass(None, None, SimpleNamespace(result=lambda **_: away))


def test_what_a_person_must_mend_is_not_tried_again_and_a_lost_connection_is():
    assert not steps._may_pass(None, None, SimpleNamespace(result=lambda **_: DataError("rows")))
    assert steps._may_pass(None, None, SimpleNamespace(result=lambda **_: ConnectionError("gone")))


def test_a_step_that_takes_too_long_is_ended_with_its_children(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(steps.TIMEOUT_SECONDS, "tune", 3.0)
    with pytest.raises(steps.CrashError, match=r"stopped after 3\.0 s"):
        steps.work("tune", str(project), "redeem")
    for pid in map(int, (project / "pids").read_text().split()):
        wait_for(lambda pid=pid: gone(pid))


def test_a_killed_flow_leaves_no_step_behind(project: Path):
    code = f"from evergreen.flows import steps; steps.PROGRAM = 'planted_steps'; steps.work('tune', {str(project)!r}, 'redeem')"
    flow = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: (project / "pids").exists() and len((project / "pids").read_text().split()) == 2, 60)
    flow.kill()
    flow.wait()
    for pid in map(int, (project / "pids").read_text().split()):
        wait_for(lambda pid=pid: gone(pid))


# --- the branches -------------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands in for DVC: which stages are fresh, and what was committed."""

    def __init__(self, fresh: set[str]) -> None:
        self.known, self.committed = fresh, []

    def fresh(self, stage: str) -> bool:
        return stage in self.known

    def commit(self, stage: str) -> None:
        self.committed.append(stage)


class Step:
    """Stands in for a Prefect task."""

    def __init__(self, name: str, answer: Any, ran: list[str]) -> None:
        self.name, self.answer, self.ran = name, answer, ran

    def with_options(self, task_run_name: str) -> "Step":
        return Step(task_run_name, self.answer, self.ran)

    def __call__(self, *given: Any, wait_for: object = None) -> Any:
        self.ran.append(self.name)
        return self.answer(*given) if callable(self.answer) else self.answer


@pytest.fixture
def ended() -> list[tuple[str, bool]]:
    """MLflow's runs that were closed, and whether their training failed."""
    return []


@pytest.fixture
def branches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[tuple[str, bool]]
) -> Callable[..., tuple[training.Branches, list[str]]]:
    def build(fresh: set[str], standing: tuple = (None, False), train: Any = None, **options: bool):
        ran: list[str] = []
        for name in ("gate", "register", "deploy"):
            monkeypatch.setattr(
                steps, name, Step(name, {"gate": {"reason": "better"}, "register": {"version": 3}}.get(name), ran)
            )
        monkeypatch.setattr(steps, "SHARED", {name: Step(name, None, ran) for name in steps.SHARED})
        monkeypatch.setattr(steps, "OWN", {name: Step(name, train if name == "train" else None, ran) for name in steps.OWN})
        monkeypatch.setattr(status, "standing", lambda layout, problem: standing)
        monkeypatch.setattr(training, "load", lambda path: SimpleNamespace(problems={}, ingest={}))
        monkeypatch.setattr(training.pipeline_file, "name_sources", lambda *_: None)
        monkeypatch.setattr(training, "Stages", lambda layout: Recorder(fresh))
        monkeypatch.setattr(steps, "open_run", lambda root, problem: f"run of {problem}")
        monkeypatch.setattr(steps, "close_run", lambda root, run, failed: ended.append((run, failed)))
        return training.Branches(Layout(tmp_path), **{"refresh": False, "deploy": True, **options}, by="ada"), ran

    return build


def test_what_is_fresh_is_skipped_and_what_is_done_is_recorded_at_once(branches: Callable):
    branch, ran = branches({"ingest", "validate", "features@redeem", "tune@redeem"})
    branch.run_shared_steps()
    outcome = branch.train("redeem")
    own = ["train", "evaluate", "diagnose", "explain"]
    assert ran == [f"{step} redeem" for step in (*own, "gate", "register", "deploy")]
    assert branch.stages.committed == [f"{step}@redeem" for step in own]
    assert (outcome.status, outcome.done) == ("done", [*own, "gate", "register", "deploy"])


def test_a_model_without_its_explanation_is_deployed_all_the_same_and_explained_next_time(
    branches: Callable, monkeypatch: pytest.MonkeyPatch
):
    def refuse(step: str, root: str, problem: str) -> None:
        raise StepError("redeem: explain: ended with code 1")

    branch, ran = branches(FRESH - {"explain@redeem"})
    explain = steps.OWN["explain"]
    monkeypatch.setattr(steps, "OWN", {**steps.OWN, "explain": type(explain)("explain", refuse, ran)})
    outcome = branch.train("redeem")
    assert (outcome.error, ran[-1]) == (None, "deploy redeem")
    assert "explain@redeem" not in branch.stages.committed


def test_a_model_that_was_decided_on_before_is_not_judged_again_and_the_log_says_so(
    branches: Callable, caplog: pytest.LogCaptureFixture
):
    branch, ran = branches(FRESH, standing=(3, True))
    with caplog.at_level("INFO", logger=steps.log.name):
        assert branch.train("redeem").done == []
    assert ran == []
    assert [record.message for record in caplog.records].count("unchanged") == len(steps.OWN) + 1


def test_refresh_reads_the_sources_again_and_nothing_else(branches: Callable):
    branch, ran = branches({"ingest", "validate"}, refresh=True)
    branch.run_shared_steps()
    assert ran == ["ingest"]


def test_the_received_purchases_are_read_once(branches: Callable, monkeypatch: pytest.MonkeyPatch):
    branch, _ = branches({"ingest", "validate"})
    read: list[Layout] = []
    monkeypatch.setattr(training.event_snapshots, "update", lambda layout, params: read.append(layout))
    branch.run_shared_steps(read_events=False)
    assert read == []
    branch.run_shared_steps()
    assert read == [branch.layout]


FRESH = {f"{step}@redeem" for step in steps.OWN}


@pytest.mark.parametrize(
    ("standing", "deploy", "ran"),
    [
        ((2, True), True, []),
        ((2, False), True, ["gate redeem", "deploy redeem"]),
        ((2, False), False, []),
        ((None, False), False, ["gate redeem", "register redeem"]),
    ],
    ids=["decided", "killed before it was deployed", "not to be deployed", "not registered"],
)
def test_promotion_does_only_what_is_left_of_it(branches: Callable, standing: tuple, deploy: bool, ran: list[str]):
    branch, did = branches(FRESH, standing, deploy=deploy)
    assert branch.train("redeem").error is None
    assert did == ran


def test_a_branch_that_fails_stops_itself_and_no_other(branches: Callable):
    def refuse(step: str, root: str, problem: str) -> None:
        if problem == "redeem":
            raise StepError("redeem: train: too few rows")

    branch, ran = branches(set(), train=refuse)
    outcomes = training._side_by_side(branch.train, ["redeem", "spend", "segments"])
    assert [(each.problem, each.status) for each in outcomes] == [("redeem", "failed"), ("spend", "done"), ("segments", "done")]
    assert outcomes[0].error == "redeem: train: too few rows"
    assert "evaluate redeem" not in ran
    assert "train@redeem" not in branch.stages.committed


@pytest.mark.parametrize(
    ("fresh", "train", "closed"),
    [
        (FRESH, None, []),
        (FRESH - {"explain@redeem"}, None, []),
        (FRESH - {"train@redeem"}, None, [("run of redeem", False)]),
        (set(), lambda *given: 1 / 0, [("run of redeem", True)]),
    ],
    ids=["all is fresh", "no new model", "a model", "a failure"],
)
def test_a_training_opens_a_run_before_it_fits_a_model_and_closes_it(
    fresh: set[str], train: Any, closed: list, branches: Callable, ended: list
):
    branches(fresh, train=train)[0].train("redeem")
    assert ended == closed


def test_a_bug_in_one_branch_is_told_with_its_problem(branches: Callable):
    branch, _ = branches(set(), train=lambda *given: 1 / 0)
    assert branch.train("redeem").error == "redeem: ZeroDivisionError: division by zero"


def test_after_an_interrupt_no_branch_begins_another_step(branches: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps, "_interrupted", threading.Event())
    branch, ran = branches(set(), train=lambda *given: steps.end_all())
    assert branch.train("redeem").error == "stopped"
    assert ran == ["features redeem", "tune redeem", "train redeem"]


def test_at_most_two_branches_work_at_once_the_first_named_first():
    most, now, began, lock = 0, 0, [], threading.Lock()

    def work(problem: str) -> status.Outcome:
        nonlocal most, now
        with lock:
            now, _ = now + 1, began.append(problem)
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        return status.Outcome(problem)

    assert [each.problem for each in training._side_by_side(work, list("abcd"))] == list("abcd")
    assert (most, began[0]) == (2, "a")


# --- the server ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def answering() -> Iterator[str]:
    """An address at which something says it is healthy."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    listener = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}/api"
    listener.shutdown()
    listener.server_close()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no server, put back at the end."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")})


@pytest.mark.usefixtures("bare")
def test_the_server_that_the_environment_names_is_used_and_left_running(tmp_path: Path, answering: str):
    os.environ["PREFECT_API_URL"] = answering
    with server.running(Layout(tmp_path), pytest.fail) as found:
        found.wait()
    assert found.url == os.environ["PREFECT_API_URL"] == answering


@pytest.mark.usefixtures("bare")
def test_a_server_of_this_project_that_runs_is_used(tmp_path: Path, answering: str):
    write_json(tmp_path / "var" / "prefect" / "server.json", {"url": answering, "pid": 1, "port": 1})
    with server.running(Layout(tmp_path), pytest.fail) as found:
        assert found.url == answering
    assert server.healthy(answering)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"url": "nonsense"}'])
def test_a_note_of_a_server_that_says_nothing_is_no_server(tmp_path: Path, text: str):
    (tmp_path / "server.json").write_text(text)
    assert server._already(tmp_path) is None


def test_a_named_server_that_is_silent_is_an_error_that_says_what_to_do(tmp_path: Path):
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:1/api"
    with (
        server.running(Layout(tmp_path), pytest.fail) as found,
        pytest.raises(StepError, match=r"does not answer\. Start it, or unset PREFECT_API_URL"),
    ):
        found.wait()


@pytest.mark.usefixtures("bare")
def test_an_own_server_that_cannot_start_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    heard: list[str] = []
    (tmp_path / "var" / "prefect" / "prefect.db").mkdir(parents=True)
    start = server.child_process.start
    monkeypatch.setattr(server.child_process, "start", lambda module, *given, **options: start("no_such_module", **options))
    with (
        server.running(Layout(tmp_path), heard.append) as found,
        pytest.raises(StepError, match=r"ended with code .*server.log"),
    ):
        found.wait()
    assert heard == ["starting the local Prefect server (about 5 s)"]
    assert not (tmp_path / "var" / "prefect" / "server.json").exists()


# --- what a person sees -------------------------------------------------------------------------------------------------------


def record(message: str, event: str = "line") -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelno": logging.INFO, "event": event})


def test_off_a_terminal_each_line_says_whose_it_is(capsys: pytest.CaptureFixture):
    progress.Plain(lambda: ("tune", "redeem")).emit(record("redeem: tune: trial 1 of 2"))
    progress.Plain(lambda: ("ingest", None)).emit(record("started", "started"))
    assert capsys.readouterr().err == "[redeem tune] trial 1 of 2\n[ingest] started\n"


def test_off_a_terminal_the_reason_of_a_failure_is_left_to_the_last_line(capsys: pytest.CaptureFixture):
    progress.Plain(lambda: ("ingest", None)).emit(record("failed: ingest: no such file", "failed"))
    assert capsys.readouterr().err == "[ingest] failed\n"


def test_on_a_terminal_each_problem_has_one_row_with_its_step_and_last_line():
    place: list[tuple[str, str | None]] = [("ingest", None)]
    board = progress.Board(lambda: place[0], ["redeem", "spend"])
    board.emit(record("unchanged", "unchanged"))
    place[0] = ("tune", "redeem")
    board.emit(record("started", "started"))
    board.emit(record("redeem: trial 1 of 2"))
    shown = io.StringIO()
    Console(file=shown, width=100).print(board)
    rows = [line.split() for line in shown.getvalue().splitlines()]
    assert rows[0][:3] == ["·", "all", "ingest"]
    assert rows[1][:-2] == ["▸", "redeem", "tune", "trial", "1", "of", "2"]
    assert rows[2] == ["spend"]


def test_the_logs_are_shown_only_while_they_are_asked_for(capsys: pytest.CaptureFixture):
    before = list(logging.getLogger("evergreen").handlers)
    with progress.shown(lambda: ("page", None), []):
        logging.getLogger("evergreen.tasks.release.promotion_gate").info("inside")
    logging.getLogger("evergreen.tasks.release.promotion_gate").warning("outside")
    assert "[page] inside" in capsys.readouterr().err
    assert logging.getLogger("evergreen").handlers == before
