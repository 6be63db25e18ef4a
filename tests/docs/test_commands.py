"""Every command that a page shows works, in the order of the page. Training, and what follows it: see test_tutorial."""

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, README, TUTORIAL, blocks

pytestmark = pytest.mark.slow
RUNNING = [page for page in PAGES if any(block.runs and block.project for block in blocks(page))]


@pytest.mark.parametrize("page", [page for page in RUNNING if page not in (README, TUTORIAL)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_order(page: Path, run_page):
    run_page(page)
