"""The console over HTTP: its pages, its actions and who may take them."""

import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import httpx
import polars as pl
import pytest

from bench.statistics.off_policy import shop
from evergreen.flows import running_steps, settings
from evergreen.flows.console import app, commands
from evergreen.flows.operations import retention, suggestions
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.report import formatting
from evergreen.monitoring.rollout.off_policy import estimate
from evergreen.serving.event_log import RejectedEvent
from evergreen.tasks import problems
from evergreen.tasks.config import loading
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core.errors import ModelError, ParamsError, ProjectError
from evergreen.tasks.core.paths import Layout, write_json
from evergreen.tasks.release.model_registry import Registry
from evergreen.tasks.release.promotion_gate import Verdict
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX
from tests import projects
from tests.flows.console import operated
from tests.flows.console.operated import open_console, post, token

PAGES = (
    "/", "/data", "/problems/dear", "/problems/dear/evaluation", "/problems/dear/history", "/problems/dear/try",
    "/problems/dear/find", "/problems/dear/find?entity=street+3", "/problems/dear/predictions/house-5",
    "/problems/dear/compare", "/problems/recommend", "/problems/recommend/try", "/problems/recommend/history",
)  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_complete_and_asks_no_other_host(reader: httpx.Client, path: str):
    page = reader.get(path)
    assert page.status_code == 200
    assert page.text.rstrip().endswith("</html>")
    assert not re.findall(r"(?:src|href|action)=\"(?:https?:)?//", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/problems/none", "none: no problem of this name"),
        ("/nowhere", "/nowhere: no page has this address"),
        ("/problems/dear/predictions/none", "dear: no prediction has the id none"),
        ("/reports/../params.yaml", "no page has this address"),
        ("/reports/%2e%2e/params.yaml", "no such file"),
        ("/reports/none.html", "reports/none.html: no such file"),
    ],
)
def test_what_is_not_there_is_a_page_that_says_so(reader: httpx.Client, path: str, line: str):
    page = reader.get(path)
    assert page.status_code == 404
    assert line in page.text


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/problems/dear/history?at=yesterday", "is neither a day nor a time"),
        ("/problems/dear/find?day=31.12.2026", "is no day"),
        ("/problems/dear/compare?a=99", "no registered version"),
        ("/problems/dear/try?version=two", "must be a whole number"),
    ],
)
def test_a_wrong_value_in_an_address_is_named_with_its_rule(reader: httpx.Client, path: str, line: str):
    page = reader.get(path)
    assert page.status_code == 422
    assert line in page.text


def test_a_trial_predicts_explains_and_says_how_a_change_moved_it(reader: httpx.Client, made: Layout):
    form = {"token": token(reader), "f.size": "30", "f.colour": "red", "f.built": "2001-05-04"}
    first = reader.post("/problems/dear/try", data=form, headers={"hx-request": "true"})
    assert first.status_code == 200
    assert "Prediction of v1" in first.text
    assert "mean prediction of the background rows" in first.text
    before = re.search(r'data-before="([^"]+)"', first.text)
    assert before
    second = reader.post("/problems/dear/try", data=form | {"f.size": "3", "before": before[1]}, headers={"hx-request": "true"})
    assert "Moved by" in second.text
    assert settings.ledger(made).latest("dear") == operated.NOW - timedelta(days=1)  # nothing was recorded


def test_a_trial_with_an_impossible_value_says_which_and_why(reader: httpx.Client):
    form = {"token": token(reader), "f.size": "-3", "f.colour": "red", "f.built": "2001-05-04"}
    page = reader.post("/problems/dear/try", data=form, headers={"hx-request": "true"})
    assert page.status_code == 200
    assert "Not predicted." in page.text
    assert "size = -3" in page.text


def test_a_purchase_in_the_basket_changes_the_list(reader: httpx.Client):
    lists: list[list[str]] = []
    for _ in range(2):
        form = {"token": token(reader), "users": "", "items": lists[0][0] if lists else "", "k": "5"}
        page = reader.post("/problems/recommend/try", data=form, headers={"hx-request": "true"})
        assert "The list of v1" in page.text
        lists.append(re.findall(r'<th scope="row">([^<]+)</th>', page.text))
    assert len(lists[0]) == len(lists[1]) == 5
    assert lists[0][0] not in lists[1]  # what is in the basket is not recommended


def test_a_prediction_is_found_by_entity_and_shown_with_label_run_and_contributions(reader: httpx.Client):
    found = reader.get("/problems/dear/find?entity=street+3").text
    assert ">house-3<" in found
    assert ">house-4<" not in found
    one = reader.get("/problems/dear/predictions/house-3?explain").text
    assert "The monitoring run of" in one
    assert "not known yet" not in one
    assert "Computed now, with v1" in one
    assert reader.get("/problems/dear/find?id=house-3").url.path == "/problems/dear/predictions/house-3"


def test_two_versions_are_compared_on_the_same_rows_with_intervals(reader: httpx.Client):
    page = reader.get("/problems/dear/compare?a=1&b=2&rows=1&whole=1").text
    assert "60 rows of the ledger, the newest with a label" in page
    assert "gain of v2" in page
    assert "Where they disagree most" in page


def test_the_ladders_of_two_searches_stand_side_by_side(layout: Layout):
    rungs = [
        {"model": model, "score": score, "low": score - 0.1, "high": score + 0.1}
        for model, score in (("prior", 0.5), ("logistic", 0.75))
    ]
    write_json(layout.tuning("dear") / "best.json", {"ladder": rungs})
    version = projects.register(layout, "dear", "logistic", C=0.123)
    with open_console(layout) as client:
        page = client.get(f"/problems/dear/compare?a=1&b={version}").text
    found = re.search(r'data-table="ladder".*?</table>', page, re.DOTALL)
    assert found
    for expected in ("prior", "0.500 [0.400, 0.600]", "0.750 [0.650, 0.850]", formatting.MISSING):
        assert expected in found[0], found[0]
    assert "ladder" not in page[: found.start()].split('data-table="figures"')[1].split("</table>")[0]


def test_a_comparison_shows_its_page_at_once_and_predicts_once_for_it(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    from evergreen.flows.console import compare

    predicted: list[tuple[int, int]] = []
    predict = compare._predict

    def counted(visit: Any, problem: str, first: int, second: int) -> Any:
        predicted.append((first, second))
        return predict(visit, problem, first, second)

    monkeypatch.setattr(compare, "_predict", counted)
    address, part = "/problems/dear/compare?a=1&b=2&rows=1", {"hx-request": "true"}
    with open_console(layout) as client:
        page = client.get(address).text
        assert "Both versions predict now" in page
        assert (predicted, "Where they disagree most" in page) == ([], False)
        both = client.get(address, headers=part).text
        assert "Where they disagree most" in both
        assert "<html" not in both
        again = client.get(address).text
        assert "Where they disagree most" in again
        assert 'hx-trigger="load"' not in again
        client.get("/problems/dear/compare?a=2&b=1&rows=1", headers=part)
        assert predicted == [(1, 2), (2, 1)]
        client.get(f"{address}&anew=1", headers=part)
    assert predicted == [(1, 2), (2, 1), (1, 2)]


def test_a_gain_of_the_predicted_class_has_no_interval_where_few_rows_changed_class():
    from evergreen.flows.console import equal_rows

    kind: Any = problems.predictions("classification")
    place = pl.int_range(200, eager=True)
    frame = pl.DataFrame({"entity": place, "label": (place % 3 == 0).replace_strict({True: "yes", False: "no"})})
    chance = (place % 10) / 10 + 0.03 * (place % 3 == 0)
    section: Any = SimpleNamespace(evaluate=SimpleNamespace(confidence=0.95))

    def gains(moved: int) -> dict[str, str]:
        both = (chance, chance + 0.2 * (place % 10 == 4) * (place < 10 * moved))
        one, two = (frame.with_columns(probability_no=1 - each, probability_yes=each, threshold=pl.lit(0.5)) for each in both)
        return {each.name: each.interval.why for each in equal_rows.measure_gains(kind, section, one, two, 0)}

    few, many = gains(5), gains(20)
    assert few["accuracy"] == "too few entities with another predicted class: 5 of at least 10"
    assert few["brier"] == many["accuracy"] == ""


def test_two_versions_of_a_recommender_are_compared_by_the_overlap_of_their_lists(reader: httpx.Client):
    page = reader.get("/problems/recommend/compare?a=1&b=2&rows=1&whole=1").text
    assert re.search(r"rank-biased overlap of the lists 0\.\d+ \[0\.\d+, 0\.\d+\] \(\d+ lists of \d+ users\)", page)
    rows = re.findall(r'<th scope="row" class="break">([^<]+)</th><td class="num">([0-9.]+)</td>', page)
    assert [float(each) for _, each in rows] == sorted(float(each) for _, each in rows)
    assert f"/problems/recommend/try?version=2&amp;users={rows[0][0]}" in page


def test_a_version_of_a_recommender_has_the_same_lists_as_itself(made: Layout):
    from evergreen.flows.console import equal_lists, templates, trial
    from evergreen.flows.console.sign_in import Visitor
    from evergreen.flows.console.visits import Visit

    model: Any = trial.loaded(made, "recommend", 1)
    visit = Visit(made, loading.load(made.params), Visitor("ann", True), {}, {}, {}, "/", False, "", templates.environment())
    found = equal_lists.compare(visit, "recommend", model, model)
    assert found is not None
    assert (found.overlap.mean, found.same, found.least) == (pytest.approx(1), found.overlap.users, [])


def test_a_rollout_of_a_recommender_shows_its_losses_and_weeks_per_version(layout: Layout):
    operated.begin_rollout(layout, "recommend")
    operated.add_lists(layout)
    retention.keep_ledger(loading.load(layout.params), "recommend", settings.ledger(layout), operated.NOW.date())
    with open_console(layout) as client:
        page = client.get("/problems/recommend").text
        weeks = client.get("/problems/recommend/compare?a=1&b=2").text
        now = client.get("/").text
    assert "mean loss, 1 − NDCG" in page
    assert page.count("30 users") == now.count("30 users") == 2
    assert re.search(r"[0-9.]+ h left", now)
    assert "e-value" in now
    assert "Realised, as counted by the last monitoring run" in page
    assert "In production, week by week" in weeks
    assert re.findall(r'<td>v(\d)</td>.*?class="interval">([0-9.]+)', weeks) == [("2", "1.0"), ("1", "0.82")]


def test_what_lists_that_nobody_saw_would_have_earned_is_shown_for_a_shadow_and_for_the_gate(layout: Layout):
    pairs = shop(1, users=200).pairs
    found = estimate(pairs)
    assert found is not None
    ledger, names = settings.ledger(layout), [f"list-{row}" for row in range(pairs.height)]
    verdict = Verdict(
        decision="better", promote=True, reason="promoted: ndcg", metric="ndcg", candidate=0.2, other=0.1, gain=0.1, low=0.0,
        high=0.2, rows=9, against="champion v1",
    ).with_off_policy(found)  # fmt: skip
    policy = Rollout(strategy="shadow")
    settings.rollouts(layout).begin("recommend", 2, policy, "ann", verdict.reason, verdict.model_dump())
    served = pairs.select("entity", "items", "propensities").with_columns(id=pl.Series(names))
    shadows = pairs.select("entity", items="wanted").with_columns(id=pl.Series(names) + SHADOW_SUFFIX)
    for version, frame, variant in ((1, served, "champion"), (2, shadows, "shadow")):
        outputs = [name for name in ("items", "propensities") if name in frame.columns]
        ledger.append_frame(
            "recommend", version, frame, at=datetime.now(UTC), key="entity", id="id", features=(), outputs=outputs,
            variant=cast(Any, variant),
        )  # fmt: skip
    ledger.add_labels("recommend", [Label(items, id=id_) for id_, items in zip(names, pairs["label"].to_list(), strict=True)])
    with open_console(layout) as client:
        page = client.get("/problems/recommend").text
    assert page.count('data-table="unseen"') == page.count(f"From {found.lists} served lists of 200 users") == 2
    assert "What the lists of v2 would have earned" in page
    assert "gain over the champion&#39;s lists" in page
    assert "gain over the served lists" in page
    assert page.count("doubly robust") == 2


def test_the_champion_of_a_past_moment_is_told(reader: httpx.Client):
    before = reader.get("/problems/dear/history?at=2001-01-01").text
    assert "No version was champion at the end of 1 January 2001" in before


def test_rejected_labels_and_purchases_are_shown_with_the_rule_that_they_broke(layout: Layout):
    from evergreen.monitoring.ledger import labels
    from evergreen.tasks import problems

    labels.write(settings.ledger(layout), "dear", problems.predictions("classification"), [{"id": "house-1"}])
    settings.events(layout).append("recommend", [], [RejectedEvent({"item": "<b>7"}, "quantity = -3: must be above 0")])
    with open_console(layout) as client:
        page = client.get("/data").text
    assert "Rejected labels of dear" in page
    assert "house-1" in page
    assert "Rejected purchases of recommend" in page
    assert "quantity = -3: must be above 0" in page
    assert "&lt;b&gt;7" in page


def test_a_suggestion_that_is_declined_is_gone_and_stands_in_the_history(layout: Layout):
    with open_console(layout) as client:
        assert "A retraining is suggested" in client.get("/problems/dear").text
        page = post(client, "/problems/dear/suggestion", action="decline", reason="the holidays")
        assert page.status_code == 200
        assert "A retraining is suggested" not in page.text
        assert "the holidays" in client.get("/problems/dear/history").text
    assert suggestions.pending(layout, loading.load(layout.params), "dear") is None


def test_a_snoozed_suggestion_hides_later_ones_until_its_day(layout: Layout):
    params = loading.load(layout.params)
    with pytest.raises(ParamsError, match="days = 0: must be from 1 to 365"):
        suggestions.answer(layout, params, "dear", "snooze", "ann", "later")
    suggestions.answer(layout, params, "dear", "snooze", "ann", "later", days=3)
    operated.suggest(layout, operated.NOW + timedelta(days=1))
    assert suggestions.pending(layout, params, "dear") is None
    with pytest.raises(ProjectError, match="dear: no suggestion waits for an answer"):
        suggestions.answer(layout, params, "dear", "decline", "ann", "no")


def test_an_approved_suggestion_starts_the_retraining_on_behalf_of_the_visitor(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    begun = []
    monkeypatch.setattr(commands, "start", lambda layout, problem, by, arguments: begun.append((problem, by, arguments)))
    with open_console(layout) as client:
        post(client, "/problems/dear/suggestion", action="approve", reason="go on")
    assert begun == [("dear", "ann", ["suggestion", "approve", "dear", "--reason=go on"])]


def test_a_rollout_is_paused_resumed_aborted_and_promoted_with_reasons(layout: Layout):
    operated.begin_rollout(layout)
    rollouts = settings.rollouts(layout)
    with open_console(layout) as client:
        assert "Rollout in progress" in client.get("/problems/dear").text
        post(client, "/problems/dear/rollout", action="pause", reason="wait for the labels")
        stands = rollouts.current("dear")
        assert stands is not None
        assert (stands.state, stands.by, stands.reason) == ("paused", "ann", "wait for the labels")
        post(client, "/problems/dear/rollout", action="resume", reason="they came")
        post(client, "/problems/dear/rollout", action="promote", reason="it is better")
    assert rollouts.current("dear") is None
    assert rollouts.deployments.champion("dear") == 2
    assert rollouts.deployments.history("dear")[-1].by == "ann"


def test_a_rollback_from_the_console_is_that_of_the_command_line(layout: Layout):
    operated.begin_rollout(layout)
    with open_console(layout) as client:
        post(client, "/problems/dear/rollout", action="promote", reason="it is better")
        post(client, "/problems/dear/rollback", to="1", reason="complaints")
    newest = settings.deployments(layout).history("dear")[-1]
    assert (newest.action, newest.version, newest.by, newest.reason) == ("rollback", 1, "ann", "complaints")


@pytest.mark.parametrize("form", [{"action": "pause", "reason": " "}, {"action": "stop", "reason": "x"}])
def test_an_action_without_a_reason_or_of_another_name_is_refused(layout: Layout, form: dict[str, str]):
    operated.begin_rollout(layout)
    with open_console(layout) as client:
        page = post(client, "/problems/dear/rollout", **form)
    assert page.status_code == 422
    stands = settings.rollouts(layout).current("dear")
    assert stands
    assert stands.state == "running"


def test_a_form_without_the_token_of_its_session_does_nothing(layout: Layout):
    operated.begin_rollout(layout)
    with open_console(layout) as client:
        for given in ({}, {"token": "guessed"}):
            client.get("/")
            page = client.post("/problems/dear/rollout", data={"action": "abort", "reason": "x", **given})
            assert page.status_code == 403
            assert "This form has expired" in page.text
    assert settings.rollouts(layout).current("dear")


def test_pages_of_other_origins_are_refused(reader: httpx.Client):
    assert reader.get("/", headers={"origin": "http://evil.example"}).status_code == 403
    assert reader.get("/", headers={"host": "evil.example"}).status_code == 403


def test_other_machines_need_a_key_with_a_scope_of_the_console(layout: Layout):
    with pytest.raises(ProjectError, match="there is no API key"):
        app.build(layout, "0.0.0.0", "ann")
    keys = settings.keys(layout)
    secrets = {scope: keys.add(scope, [scope]) for scope in ("predict", "read", "admin")}
    with open_console(layout, "0.0.0.0") as client:
        page = client.get("/problems/dear")
        assert page.url.path == "/sign-in"
        assert "dear" not in page.text.replace('value="/problems/dear"', "")
        wrong = client.post("/sign-in", data={"token": token(client, "/sign-in"), "key": "eg_none_none"})
        assert wrong.status_code == 401
        lacking = client.post("/sign-in", data={"token": token(client, "/sign-in"), "key": secrets["predict"]})
        assert "has neither the scope admin nor the scope read" in lacking.text
        client.post("/sign-in", data={"token": token(client, "/sign-in"), "key": secrets["read"]})
        page = client.get("/problems/dear")
        assert "read (read only)" in page.text
        assert 'name="reason"' not in page.text
        form = {"token": token(client, "/"), "action": "start", "reason": "x"}
        refused = client.post("/problems/dear/retrain", data=form)
        assert refused.status_code == 403
        assert "which allows no action" in refused.text
        client.post("/sign-out", data={"token": token(client, "/")})
        client.post("/sign-in", data={"token": token(client, "/sign-in"), "key": secrets["admin"]})
        assert 'name="reason"' in client.get("/problems/dear").text
        keys.revoke("admin")
        assert client.get("/problems/dear").url.path == "/sign-in"


def test_a_key_bound_to_a_problem_sees_that_problem_alone(layout: Layout):
    secret = settings.keys(layout).add("shop", ["read"], ["recommend"])
    with open_console(layout, "0.0.0.0") as client:
        client.post("/sign-in", data={"token": token(client, "/sign-in"), "key": secret})
        assert "dear" not in client.get("/").text
        assert client.get("/problems/dear").status_code == 404
        assert client.get("/reports/dear/metrics.json").status_code == 404
        assert client.get("/reports/recommend/metrics.json").status_code == 200


def test_sign_in_leads_to_pages_of_the_console_alone(layout: Layout):
    secret = settings.keys(layout).add("ops", ["admin"])
    with open_console(layout, "0.0.0.0") as client:
        for to in ("//evil.example/", "https://evil.example/", "/\\evil.example"):
            form = {"token": token(client, "/sign-in"), "key": secret, "to": to}
            assert client.post("/sign-in", data=form, follow_redirects=False).headers["location"] == "/"
            client.post("/sign-out", data={"token": token(client, "/")})


def test_a_form_that_is_too_large_is_refused(reader: httpx.Client):
    page = reader.post("/problems/dear/try", content=b"f.size=" + b"1" * 300_000)
    assert page.status_code == 413


def test_a_started_command_is_shown_with_its_output_and_its_end(layout: Layout):
    commands.start(layout, "dear", "ann", ["rollout", "status", "dear"])
    end = time.monotonic() + 60
    while (found := commands.recent(layout))[0].code is None and time.monotonic() < end:
        time.sleep(0.1)
    (each,) = found
    assert (each.verb, each.problem, each.by, each.state) == ("rollout", "dear", "ann", "done")
    assert any("no rollout in progress" in line for line in each.lines)


def test_a_running_step_is_shown_with_its_progress_until_it_ends(layout: Layout):
    log = layout.var / "logs" / "tune@dear.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("trial 3 of 12: tree roc_auc 0.8\n")
    with running_steps.marking(layout, "tune", "dear"), open_console(layout) as client:
        (step,) = running_steps.read(layout)
        assert step.percent == 25.0
        assert '<progress value="25.0"' in client.get("/").text
    assert running_steps.read(layout) == []


def test_the_progress_of_a_step_with_a_time_limit_is_that_of_its_time(layout: Layout):
    log = layout.var / "logs" / "tune@dear.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with running_steps.marking(layout, "tune", "dear"):
        mark = layout.var / "running" / "tune@dear.json"
        begun = datetime.now(UTC) - timedelta(seconds=300)
        mark.write_text(json.dumps({**json.loads(mark.read_text()), "since": f"{begun}"}))
        log.write_text("dear: trial 7: tree roc_auc 0.8 (best 0.9, 100 s left)\n")
        (step,) = running_steps.read(layout)
    assert step.percent == pytest.approx(75, abs=5)


def test_a_refused_trial_is_a_part_of_the_page_without_another_title(reader: httpx.Client):
    form = {"token": token(reader), "version": "99"}
    part = reader.post("/problems/dear/try", data=form, headers={"hx-request": "true"})
    assert part.status_code == 422
    assert part.text.count("This did not work") == 1


def test_a_running_step_links_to_its_prefect_run_where_the_server_has_an_address(
    reader: httpx.Client, made: Layout, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PREFECT_API_URL", "https://ann:secret@prefect.example/api")
    with running_steps.marking(made, "tune", "dear", "0a1b"):
        page = reader.get("/").text
    assert '<a href="https://prefect.example/runs/flow-run/0a1b"' in page
    assert "secret" not in page


def test_the_console_loads_beforehand_what_the_first_views_wait_for(made: Layout):
    program = (
        "import pathlib, sys; from evergreen.flows.console import app, preload\n"
        "from evergreen.tasks.core.paths import Layout; layout = Layout(pathlib.Path(sys.argv[1]))\n"
        "app.build(layout, '127.0.0.1', 'ann'); assert 'mlflow' not in sys.modules\n"
        "preload.preload(layout); assert 'mlflow' in sys.modules\n"
        "layout.params.write_text('projekt: {}'); preload.preload(layout)"
    )
    kept = made.params.read_text()
    try:
        subprocess.run([sys.executable, "-c", program, str(made.root)], check=True)
    finally:
        made.params.write_text(kept)


def test_versions_whose_mlflow_run_is_gone_are_compared_all_the_same(reader: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    def lose(*_: object) -> str:
        raise ModelError("no such run")

    monkeypatch.setattr(Registry, "run_page", lose)
    page = reader.get("/problems/dear/compare")
    assert page.status_code == 200
    assert "MLflow has no run of it at the moment" in page.text


def test_a_step_of_a_process_that_is_gone_is_not_shown(layout: Layout):
    folder = layout.var / "running"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tune@dear.json").write_text(
        '{"step": "tune", "problem": "dear", "pid": 4194304, "since": "2026-01-01T00:00:00"}'
    )
    assert running_steps.read(layout) == []
