"""The console with odd names, odd values, forms sent twice, broken files and more than one process."""

import html
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import httpx
import polars as pl
import pytest

from evergreen.flows import settings
from evergreen.flows.console import commands
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core import database
from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.flows.console import operated
from tests.flows.console.operated import open_console, post, token

ODD = ("a/b", "a b", "ü'\"", "<b>bold</b>", "100%", "a?b#c", "../x", "a//b", "&amp;", "日本")
"""Ids and entities that a table may hold."""


@pytest.fixture(scope="module")
def odd(made: Layout) -> None:
    """Predictions whose ids and entities are ODD."""
    frame = pl.DataFrame({"id": ODD, "entity": ODD, "size": 20.0, "colour": "red", "built": "2001-05-04"})
    frame = frame.with_columns(prediction=pl.lit("yes"), probability_no=pl.lit(0.3), probability_yes=pl.lit(0.7))
    settings.ledger(made).append_frame(
        "dear", 1, frame, at=operated.NOW - timedelta(days=2), key="entity", id="id", features=("size", "colour", "built"),
        outputs=("prediction", "probability_no", "probability_yes"),
    )  # fmt: skip


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("name", ODD)
def test_a_prediction_of_any_id_and_entity_is_found_and_shown_as_text(reader: httpx.Client, name: str):
    found = reader.get("/problems/dear/find", params={"entity": name})
    assert found.status_code == 200
    assert "<b>bold" not in found.text
    one = reader.get("/problems/dear/find", params={"id": name})
    assert one.status_code == 200, one.text[-300:]
    assert "<b>bold" not in one.text
    (address,) = {each for each in _links(found.text) if "/predictions/" in each}
    assert reader.get(address).status_code == 200


def _links(text: str) -> list[str]:
    return [html.unescape(each) for each in re.findall(r'href="([^"]+)"', text)]


@pytest.mark.parametrize(
    "address",
    [
        "/problems/dear/compare?a=²", "/problems/dear/compare?a=-1", "/problems/dear/compare?a=" + "9" * 5_000,
        "/problems/dear/find?day=0001-01-01", "/problems/dear/find?day=9999-12-31", "/problems/dear/find?day=2026-W01",
        "/problems/dear/find?entity=%00", "/problems/dear/find?id=%00", "/problems/dear/find?entity=" + "e" * 5_000,
        "/problems/dear/history?at=0001-01-01", "/problems/dear/history?at=9999-12-31",
        "/problems/dear/history?at=0001-01-01T00:00%2B14:00", "/problems/dear/try?version=²",
        "/problems/dear/try?entity=%00", "/problems/dear/try?id=none", "/problems/%00", "/problems/dear/predictions/%00",
        "/reports/%00", "/reports/dear", "/problems/recommend/try?users=%00&k=²", "/problems/recommend/try?k=nan&diversity=nan",
    ],
)  # fmt: skip
def test_no_address_is_a_fault_of_the_console(reader: httpx.Client, address: str):
    assert reader.get(address).status_code in (200, 404, 422)


ACTIONS = {
    "suggestion": {"action": "decline"},
    "rollout": {"action": "pause"},
    "rollback": {"to": "1"},
    "retrain": {"action": "start"},
}


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("given", ["", "wrong", "ü", "\x00"])
def test_no_action_is_taken_without_the_token(reader: httpx.Client, path: str, given: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commands, "start", lambda *given: pytest.fail("it was started"))
    reader.get("/")
    page = reader.post(f"/problems/dear/{path}", data={"token": given, "reason": "x", **ACTIONS[path]})
    assert page.status_code == 403


def test_a_reader_is_refused_every_action(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commands, "start", lambda *given: pytest.fail("it was started"))
    secret = settings.keys(layout).add("look", ["read"])
    operated.begin_rollout(layout)
    with open_console(layout, "0.0.0.0") as client:
        client.post("/sign-in", data={"token": token(client, "/sign-in"), "key": secret})
        for path, form in ACTIONS.items():
            page = client.post(f"/problems/dear/{path}", data={"token": token(client, "/"), "reason": "x", **form})
            assert page.status_code == 403
            assert "which allows no action" in page.text
    stands = settings.rollouts(layout).current("dear")
    assert stands is not None
    assert stands.state == "running"


def test_a_session_that_has_expired_leads_to_the_sign_in_and_does_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    from evergreen.flows.console import app

    secret = settings.keys(layout).add("ops", ["admin"])
    operated.begin_rollout(layout)
    monkeypatch.setattr(app, "SESSION_SECONDS", 1)
    with open_console(layout, "0.0.0.0") as client:
        client.post("/sign-in", data={"token": token(client, "/sign-in"), "key": secret})
        form = {"token": token(client), "action": "abort", "reason": "x"}
        cookie = f"{app.COOKIE}={client.cookies[app.COOKIE]}"
        time.sleep(2.1)
        page = client.post("/problems/dear/rollout", data=form, headers={"cookie": cookie})
        assert page.url.path == "/sign-in"
    assert settings.rollouts(layout).current("dear")


def test_a_form_that_is_sent_twice_acts_once(layout: Layout):
    operated.begin_rollout(layout)
    with open_console(layout) as client:
        form = {"token": token(client), "action": "promote", "reason": "better"}
        for _ in range(2):  # a promotion that was made is the answer to the same call
            assert client.post("/problems/dear/rollout", data=form).status_code == 200
        back = {"token": form["token"], "to": "1", "reason": "complaints"}
        for _ in range(2):
            assert client.post("/problems/dear/rollback", data=back).status_code == 200
        decline = {"token": form["token"], "action": "decline", "reason": "no"}
        assert client.post("/problems/dear/suggestion", data=decline).status_code == 200
        again = client.post("/problems/dear/suggestion", data=decline)
        assert again.status_code == 422
        assert "no suggestion waits for an answer" in again.text
    actions = [each.action for each in settings.deployments(layout).history("dear")]
    assert (actions.count("promote"), actions.count("rollback"), actions[-1]) == (1, 1, "rollback")


@pytest.mark.parametrize("path", ["suggestion", "retrain"])
def test_a_retraining_that_runs_is_not_started_again(layout: Layout, path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commands, "PROGRAM", ["-c", "import time; time.sleep(60)"])
    form = {"action": "approve" if path == "suggestion" else "start", "reason": "go on"}
    with open_console(layout) as client:
        assert post(client, f"/problems/dear/{path}", **form).status_code == 200
        again = post(client, f"/problems/dear/{path}", **form)
    running = [each for each in commands.recent(layout) if each.state == "runs"]
    for each in running:
        os.kill(each.pid, signal.SIGKILL)
    assert again.status_code == 422
    assert "still runs" in again.text
    assert len(running) == 1


def test_params_that_break_while_the_console_runs_are_named_and_everything_else_goes_on(layout: Layout):
    good = layout.params.read_text()
    with open_console(layout) as client:
        assert client.get("/").status_code == 200
        layout.params.write_text(good.replace("project:", "projekt:", 1))
        page = client.get("/problems/dear")
        assert page.status_code == 422
        assert "projekt" in page.text
        layout.params.write_text(good)
        assert client.get("/problems/dear").status_code == 200


def test_a_reason_is_one_line_of_printable_text(layout: Layout):
    operated.begin_rollout(layout)
    with open_console(layout) as client:
        page = post(client, "/problems/dear/rollout", action="pause", reason="--why=<b>\x00\n‮ ü")
        assert page.status_code == 200
        assert "<b>\x00" not in page.text
    stands = settings.rollouts(layout).current("dear")
    assert stands is not None
    assert stands.reason == "--why=<b> ü"


def test_two_consoles_of_a_project_share_sessions_and_see_each_others_actions(layout: Layout):
    secret = settings.keys(layout).add("ops", ["admin"])
    operated.begin_rollout(layout)
    with open_console(layout, "0.0.0.0") as one, operated.running(layout, "0.0.0.0") as other:
        one.post("/sign-in", data={"token": token(one, "/sign-in"), "key": secret})
        form = {"token": token(one), "action": "abort", "reason": "errors"}
        with httpx.Client(base_url=other, follow_redirects=True, cookies=dict(one.cookies)) as two:
            assert two.post("/problems/dear/rollout", data=form).status_code == 200
        assert "Rollout in progress" not in one.get("/problems/dear").text
    assert settings.rollouts(layout).current("dear") is None


STALE = (
    ("rollout", {"action": "promote"}, "the one of v3 is in progress now"),
    ("suggestion", {"action": "decline"}, "a newer suggestion"),
    ("retrain", {"action": "cancel"}, "that retraining has ended"),
)


@pytest.mark.parametrize(("path", "form", "refusal"), STALE, ids=[each[0] for each in STALE])
def test_an_action_concerns_what_its_visitor_read_and_nothing_newer(
    layout: Layout, path: str, form: dict[str, str], refusal: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(commands, "start", lambda *given: pytest.fail("it was started"))
    log, rollouts = settings.decision_log(layout), settings.rollouts(layout)
    operated.begin_rollout(layout)
    with open_console(layout) as client:
        page = client.get("/problems/dear").text
        read = re.findall(r'action="/problems/dear/(\w+)".*?name="of" value="([^"]+)"', page, re.DOTALL)
        given = dict(read) | {"retrain": "1"}
        rollouts.begin("dear", 3, Rollout(strategy="canary"), "ann", "newer", {})
        operated.suggest(layout, operated.NOW + timedelta(hours=1))
        answer = post(client, f"/problems/dear/{path}", reason="better", of=given[path], **form)
    assert answer.status_code == 422
    assert refusal in answer.text
    state = rollouts.current("dear")
    assert state is not None
    assert (state.candidate, state.state) == (3, "running")
    assert log.runs("dear")


def test_two_consoles_that_start_the_same_at_one_instant_start_it_once(layout: Layout):
    program = (
        "import sys, pathlib; from evergreen.flows.console import commands; from evergreen.tasks.core.paths import Layout\n"
        "commands.PROGRAM = ['-c', 'import time; time.sleep(60)']\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "commands.start_once(Layout(pathlib.Path(sys.argv[1])), 'dear', 'ann', ['retrain', 'dear'])"
    )
    given = [sys.executable, "-c", program, str(layout.root)]
    both = [subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    for each in both:
        assert each.stdout
        assert each.stdout.readline() == b"ready\n"
    for each in both:
        assert each.stdin
        each.stdin.write(b"go\n")
        each.stdin.flush()
    errors = [each.communicate(timeout=60)[1].decode() for each in both]
    running = [each for each in commands.recent(layout) if each.state == "runs"]
    for each in running:
        os.kill(each.pid, signal.SIGKILL)
    assert len(running) == 1
    assert sum("still runs; wait for its end" in each for each in errors) == 3


VIEWS = (
    "/", "/data", "/problems/dear", "/problems/dear/evaluation", "/problems/dear/try", "/problems/recommend/try",
    "/problems/dear/find?entity=street+3", "/problems/dear/find?day={day}", "/problems/dear/predictions/house-3?explain",
    "/problems/dear/compare?a=1&b=2&rows=1&whole=1", "/problems/recommend/compare?rows=1&whole=1", "/problems/dear/history",
)  # fmt: skip


def addresses() -> list[str]:
    return [each.format(day=f"{operated.NOW - timedelta(days=1):%Y-%m-%d}") for each in VIEWS]


@pytest.mark.postgres
def test_every_view_and_action_works_with_the_ledger_on_a_server(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EVERGREEN_DATABASE", postgres)
    layout = operated.lay(tmp_path, projects.lay_deployed)
    operated.begin_rollout(layout)
    operated.add_lists(layout)
    with open_console(layout) as client:
        for each in addresses():
            page = client.get(each)
            assert page.status_code == 200, (each, page.text[-500:])
        assert "street 3" in client.get("/problems/dear/predictions/house-3").text
        assert post(client, "/problems/dear/suggestion", action="decline", reason="no").status_code == 200
        for act in ("pause", "resume", "promote"):
            assert post(client, "/problems/dear/rollout", action=act, reason=act).status_code == 200
        assert post(client, "/problems/dear/rollback", to="1", reason="complaints").status_code == 200
    assert not (layout.var / "evergreen.db").exists()


def test_pages_answer_while_a_writer_holds_the_database(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "BUSY_MILLISECONDS", 200)  # what waits for the writer fails
    operated.begin_rollout(layout)
    with open_console(layout) as client:
        for each in addresses():
            client.get(each)  # makes the tables that are missing
        writer = sqlite3.connect(layout.var / "evergreen.db", isolation_level=None)
        writer.execute("BEGIN EXCLUSIVE")
        for each in addresses():
            page = client.get(each)
            assert page.status_code == 200, (each, page.text[-900:])
        refused = post(client, "/problems/dear/rollout", action="pause", reason="wait")
        assert refused.status_code == 422
        assert "database is locked" in refused.text
        writer.execute("ROLLBACK")
        writer.close()
        assert post(client, "/problems/dear/rollout", action="pause", reason="wait").status_code == 200


def test_a_project_that_was_moved_is_operated_at_its_new_place(layout: Layout, tmp_path: Path):
    moved = Layout(tmp_path / "elsewhere" / "ümläut & co")
    with open_console(layout) as client:
        assert client.get("/problems/dear").status_code == 200
        moved.root.parent.mkdir()
        shutil.move(layout.root, moved.root)
        for each in addresses():
            page = client.get(each)
            assert page.status_code == 422, (each, page.status_code)
            assert "params.yaml" in page.text
    assert not layout.root.exists()
    with open_console(moved) as client:
        for each in addresses():
            assert client.get(each).status_code == 200, each


COLUMNS = ("token", "version", "before", "f.size", "of", " ", "a=b&c", "<b>bold</b>", "ü\"'", "日本", "x" * 300)


def test_a_form_of_500_columns_with_odd_names_predicts(tmp_path: Path):
    layout = operated.lay_wide(tmp_path, [*COLUMNS, *(f"column {place}" for place in range(500 - len(COLUMNS)))])
    with open_console(layout) as client:
        page = client.get("/problems/wide/try")
        assert page.status_code == 200, page.text[-500:]
        assert "<b>bold" not in page.text
        fields = dict(re.findall(r'name="(f\.[^"]*)" value="([^"]*)"', page.text))
        assert len(fields) == 500
        form = {html.unescape(name): html.unescape(value) for name, value in fields.items()}
        answer = client.post("/problems/wide/try", data={"token": token(client, "/problems/wide/try"), **form})
        assert "Prediction of v1" in answer.text
        assert client.get("/problems/wide/find?entity=e1").status_code == 200
        one = client.get("/problems/wide/predictions/w-1?explain")
        assert one.status_code == 200
        assert "Computed now" in one.text
