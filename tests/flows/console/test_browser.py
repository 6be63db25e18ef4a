"""The console in a real browser: each view in light and dark, wide and narrow, and each action by its buttons."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from evergreen.flows import settings
from evergreen.flows.console import commands
from evergreen.monitoring.ledger.decisions import RetrainingRecord
from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.flows.console import operated
from tests.projects import Deployed

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VIEWS = (
    "/", "/problems/dear", "/problems/dear/evaluation", "/problems/dear/try", "/problems/recommend/try",
    "/problems/dear/find?entity=street+3", "/problems/dear/predictions/house-5?explain",
    "/problems/dear/compare?rows=1&whole=1", "/problems/dear/history", "/data",
)  # fmt: skip
FRAMES = {"iframes": False}
"""Of axe: a report inside a frame is another tool's page."""
WAIT_MS = 15_000
"""Most milliseconds until a page shows the effect of an action: the browser handles events on its own time."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, deployed: Deployed) -> Layout:
    layout = operated.lay(tmp_path_factory.mktemp("operated"), deployed)
    operated.begin_rollout(layout)
    return layout


@pytest.fixture
def layout(made: Layout, tmp_path: Path) -> Layout:
    return projects.copy(made, tmp_path / "project")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is not installed; on CI it must be")
        pytest.skip("Chromium is not installed")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


SCREENS = pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])


@contextmanager
def opened(browser: Browser, layout: Layout, width: int = 1300, scheme: str = "light") -> Iterator[Page]:
    """A page of the console; an error of a script fails the test."""
    errors: list[str] = []
    with operated.running(layout) as url:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, base_url=url)  # type: ignore[arg-type]
        page = context.new_page()
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        context.close()
    assert errors == []


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark"), (1300, "dark"), (390, "light")])
def test_every_view_is_accessible_and_fits_the_screen(browser: Browser, made: Layout, width: int, scheme: str):
    axe = Axe()
    with opened(browser, made, width, scheme) as page:
        for path in VIEWS:
            page.goto(path)
            found = axe.run(page, options=FRAMES).response["violations"]
            assert [(path, each["id"], each["nodes"][0]["html"]) for each in found] == []
            assert page.evaluate("document.documentElement.scrollWidth") == width, path


NARROW = {
    "/problems/dear/history": "history", "/problems/dear/find?entity=street+3": "predictions",
    "/problems/dear/compare?rows=1&whole=1": "disagreements",
}  # fmt: skip


@pytest.mark.parametrize("path", NARROW)
def test_a_phone_shows_each_line_of_a_long_table_whole(browser: Browser, made: Layout, path: str):
    with opened(browser, made, 390) as page:
        page.goto(path)
        table = page.locator(f"table[data-table='{NARROW[path]}']")
        shown, whole = table.locator("xpath=..").evaluate("box => [box.clientWidth, box.scrollWidth]")
    assert whole == shown


def test_a_phone_shows_a_prediction_right_below_a_form_of_many_columns(browser: Browser, tmp_path: Path):
    with opened(browser, operated.lay_wide(tmp_path, [f"column {place}" for place in range(70)]), 390) as page:
        page.goto("/problems/wide/try")
        page.click("button:text('Predict')")
        page.wait_for_selector("text=Prediction of v1")
        assert page.locator("#trial").evaluate("each => each.offsetTop") < 1_500


def test_the_overview_shows_what_happens_without_a_reload(browser: Browser, layout: Layout):
    with opened(browser, layout) as page:
        page.goto("/")
        assert "suggests a retraining" in page.inner_text("main")
        settings.rollouts(layout).pause("dear", "bob", "wait")
        page.wait_for_selector("text=paused", timeout=15_000)


def test_a_page_of_a_console_that_has_ended_says_that_it_is_old(browser: Browser, made: Layout):
    context = browser.new_context()
    page = context.new_page()
    with operated.running(made) as url:
        page.goto(url)
        page.locator("main a:text('try it')").first.focus()
        with page.expect_response(f"{url}/"):  # drawn anew
            pass
        expect(page.locator("main a:text('try it')").first).to_be_focused()
        expect(page.locator("#lost")).to_be_hidden()
    expect(page.locator("#lost")).to_be_visible()
    context.close()


def test_the_rows_that_both_versions_predict_follow_their_page(browser: Browser, layout: Layout):
    with opened(browser, layout) as page:
        page.goto("/problems/dear/compare")
        page.check("text=predict the newest rows with both")
        page.click("button:text('Compare')")
        page.wait_for_selector("text=Where they disagree most", timeout=60_000)
        before = page.inner_text("text=Predicted at")
        page.wait_for_timeout(1_000)
        page.click("text=Predict again")
        expect(page.locator("text=Predicted at")).not_to_have_text(before)


@SCREENS
def test_a_person_tries_a_value_and_sees_the_prediction_move(browser: Browser, made: Layout, width: int, scheme: str):
    with opened(browser, made, width, scheme) as page:
        page.goto("/problems/dear/try?id=house-5")
        page.click("button:text('Predict')")
        page.wait_for_selector("text=Prediction of v1")
        size = page.locator("input[name='f.size']")
        size.fill("49")
        size.dispatch_event("change")
        page.wait_for_selector("text=Moved by")
        size.fill("-1")
        size.dispatch_event("change")
        page.wait_for_selector("text=Not predicted.")
        page.fill("input[type=search]", "colo")
        expect(page.locator("#fields label:visible")).to_have_count(1)


@SCREENS
def test_a_person_answers_a_suggestion_and_steers_a_rollout(browser: Browser, layout: Layout, width: int, scheme: str):
    with opened(browser, layout, width, scheme) as page:
        page.goto("/problems/dear")
        suggestion = page.locator("section", has_text="A retraining is suggested")
        suggestion.locator("input[name=reason]").fill("the holidays")
        _send(page, suggestion.locator("button:text('Decline')"))
        expect(page.locator("text=A retraining is suggested")).to_have_count(0)
        for act, state in (("Pause", "paused"), ("Resume", "running")):
            rollout = page.locator("section", has_text="Rollout in progress")
            rollout.locator("input[name=reason]").fill("because")
            _send(page, rollout.locator(f"button:text('{act}')"))
            stands = settings.rollouts(layout).current("dear")
            assert stands
            assert stands.state == state
        rollout = page.locator("section", has_text="Rollout in progress")
        rollout.locator("button:text('Promote')").click()
        expect(rollout.locator("input[name=reason]:invalid")).to_be_focused()  # the browser asks for a reason first
        assert settings.rollouts(layout).current("dear")
        rollout.locator("input[name=reason]").fill("it is better")
        rollout.locator("button:text('Promote')").click()
        page.wait_for_selector("text=v2 is champion")
        back = page.locator("form", has_text="Make an earlier version champion again")
        back.locator("input[name=reason]").fill("complaints")
        back.locator("button:text('Roll back')").click()
        page.wait_for_selector("text=v1 is champion")
        page.goto("/problems/dear/history")
        assert "complaints" in page.inner_text("main")


@SCREENS
def test_a_person_snoozes_approves_retrains_and_cancels(
    browser: Browser, layout: Layout, monkeypatch: pytest.MonkeyPatch, width: int, scheme: str
):
    begun: list[list[str]] = []
    start = commands.start

    def stand_in(layout: Layout, problem: str, by: str, arguments: Sequence[str]) -> None:
        """Another command of the same kind: a real retraining takes a minute."""
        begun.append([by, *arguments])
        start(layout, problem, by, ["rollout", "status", problem])

    monkeypatch.setattr(commands, "start", stand_in)
    with opened(browser, layout, width, scheme) as page:
        page.goto("/problems/dear")
        _press(page, "A retraining is suggested", "Retrain now", "go on")
        assert begun == [["ann", "suggestion", "approve", "dear", "--reason=go on"]]
        page.goto("/")
        page.wait_for_selector("text=rollout dear done by ann", timeout=60_000)
        page.goto("/problems/dear")
        page.locator("section", has_text="A retraining is suggested").locator("input[name=days]").fill("3")
        _press(page, "A retraining is suggested", "Snooze", "after the fair")
        expect(page.locator("text=A retraining is suggested")).to_have_count(0)
        _press(page, "Retrain on the data known now", "Retrain now", "new prices")
        assert begun[-1] == ["ann", "retrain", "dear", "--reason=new prices"]
        now = datetime.now(UTC)
        record = RetrainingRecord(
            id="1", problem="dear", at=now, as_of=None, trigger="person", reason="new prices", by="ann", started=now
        )
        settings.decision_log(layout).claim(record)
        page.goto("/problems/dear")
        _press(page, "Cancel the retraining of", "Cancel it", "too early")
        assert begun[-1] == ["ann", "retrain", "dear", "--cancel", "--reason=too early"]
        page.goto("/problems/dear/history")
        assert "after the fair" in page.inner_text("main")


def _press(page: Page, within: str, button: str, reason: str) -> None:
    form = page.locator("form", has_text=within) if within[0] in "RC" else page.locator("section", has_text=within)
    form.locator("input[name=reason]").fill(reason)
    _send(page, form.locator(f"button:text('{button}')"))


def _send(page: Page, button: Locator) -> None:
    """Press it and wait for the page that answers: a click returns before the old page is gone."""
    with page.expect_navigation():
        button.click()


def test_a_table_sorts_filters_and_downloads_what_it_shows(browser: Browser, made: Layout):
    with opened(browser, made) as page:
        page.goto("/problems/dear/find?entity=street+3")
        page.click("th button:text('id')")
        expect(page.locator("th[aria-sort=ascending]")).to_have_text("id")
        ids = page.locator("tbody tr td:nth-child(2)")
        first = ids.all_inner_texts()
        page.click("th button:text('id')")
        expect(ids).to_have_text(first[::-1])
        page.fill("[aria-label='filter the table predictions']", "house-31")
        with page.expect_download() as download:
            page.click("text=csv")
        lines = Path(download.value.path()).read_text().splitlines()
        assert lines[0].startswith("when (UTC),id,entity")
        assert [line.split(",")[1] for line in lines[1:]] == ["house-31"]


def test_a_chart_shows_values_and_is_enlarged_by_keyboard(browser: Browser, made: Layout):
    with opened(browser, made) as page:
        page.goto("/problems/dear/evaluation")
        page.locator("figure [data-values]").first.hover()
        expect(page.locator(".tip")).to_contain_text("predicted probability")
        page.focus("figure button")
        page.keyboard.press("Enter")
        dialog = page.locator("dialog.enlarged")
        before = dialog.locator("svg").get_attribute("viewBox")
        dialog.locator("button:text('Closer')").click()
        assert before
        expect(dialog.locator("svg")).not_to_have_attribute("viewBox", before)
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)  # its close event runs after the key's


def test_the_timeline_is_scrubbed_by_its_slider(browser: Browser, made: Layout):
    with opened(browser, made) as page:
        page.goto("/problems/dear/history")
        day = page.locator("input[name=at]")
        day.fill("2001-01-01")
        page.wait_for_selector("text=No version was champion at the end of 1 January 2001")


def test_keys_sign_in_to_what_their_scope_allows(browser: Browser, layout: Layout):
    secret = settings.keys(layout).add("desk", ["read"])
    with operated.running(layout, "0.0.0.0") as url:
        page = browser.new_page(base_url=url)
        page.goto("/problems/dear")
        page.fill("input[name=key]", secret)
        page.keyboard.press("Enter")
        page.wait_for_selector("text=desk (read only)")
        assert page.url.endswith("/problems/dear")
        expect(page.locator("button:text('Retrain now')")).to_have_count(0)
        page.click("text=Sign out")
        page.wait_for_selector("text=API key")
        page.close()
