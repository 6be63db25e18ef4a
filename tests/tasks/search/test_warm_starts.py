"""The best configurations of one search begin the next."""

from dataclasses import replace
from pathlib import Path

import pytest

from evergreen.tasks.search.optuna_study import run_search
from evergreen.tasks.search.warm_starts import warm_starts
from tests.tasks.search.toy_search import DEFAULTS, configs, searching


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "pay-0123456789abcdef.log"


def test_warm_starts_follow_the_defaults(journal: Path) -> None:
    best, gone = {"model": "line", "slope": 3.0}, {"model": "gone"}
    search = searching(n_trials=4, warm_starts=[best, best, DEFAULTS["curve"], gone, {"model": "curve", "n": 99}])
    starts = warm_starts(search)
    assert starts == [{"model": "line", "slope": 3.0, "fixed": "kept"}, {"model": "curve", "n": 9}]
    trials = configs(run_search(replace(search, warm_starts=starts), journal))
    assert trials == [*search.defaults.values(), starts[0]]
