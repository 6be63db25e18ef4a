"""The first commands that anybody runs: from a file to a model that is served and monitored."""

import pytest

from tests.docs.pages import README, TUTORIAL, blocks


@pytest.mark.slow
def test_the_tutorial_takes_a_file_to_a_model_that_is_served_and_monitored(run_page):
    run_page(TUTORIAL)


def test_the_commands_of_the_readme_are_those_of_the_tutorial():
    shown = {line for block in blocks(TUTORIAL) if block.runs for line in block.commands()}
    first = [line for block in blocks(README) if block.project and block.runs for line in block.commands()]
    assert len(first) >= 6
    assert set(first) <= shown
