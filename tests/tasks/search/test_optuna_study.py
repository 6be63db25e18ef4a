"""The trials of a search over a function: their order, their failures, and how an interrupted search resumes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.tasks.config.params import Range
from evergreen.tasks.core.errors import StepError
from evergreen.tasks.problems.base import Config
from evergreen.tasks.search.optuna_study import MAX_CRASHES, run_search
from evergreen.tasks.search.selection import choose
from tests.tasks.search.toy_search import DEFAULTS, SPACE, configs, error, searching


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "pay-0123456789abcdef.log"


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_the_same_seed_tries_the_same_points(method: str, tmp_path: Path) -> None:
    first = run_search(searching(method=method), tmp_path / "pay-a.log")
    second = run_search(searching(method=method), tmp_path / "pay-bb.log")
    assert configs(first) == configs(second)
    assert len({json.dumps(config) for config in configs(first)}) > 6


def test_defaults_come_first_simple_before_complex_and_keep_what_is_not_searched(journal: Path) -> None:
    trials = run_search(searching(), journal)
    assert configs(trials)[:3] == list(DEFAULTS.values())
    lines = [config for config in configs(trials) if config["model"] == "line"]
    assert all(config["fixed"] == "kept" for config in lines)
    assert len(trials) == 12


def test_a_model_without_choices_is_tried_once(journal: Path) -> None:
    trials = run_search(searching(), journal)
    assert sum(config["model"] == "none" for config in configs(trials)) == 1


def test_bayesian_search_ends_nearer_than_the_default(journal: Path) -> None:
    search = searching(n_trials=25)
    best = choose(run_search(search, journal), list(SPACE), search.metric)
    assert best.config["model"] == "line"
    assert best.config["slope"] == pytest.approx(3.1, abs=0.25)
    assert best.std == pytest.approx(0.1)


def test_a_grid_tries_every_point_once_simple_models_first(journal: Path) -> None:
    trials = run_search(searching(method="grid", n_trials=50, grid_points=5), journal)
    assert [config["slope"] for config in configs(trials)[3:] if config["model"] == "line"] == [0.0, 1.0, 3.0, 4.0]
    assert [config["n"] for config in configs(trials)[3:] if config["model"] == "curve"] == [1, 3, 7, 9]
    assert len(trials) == 3 + 4 + 4


def test_a_grid_that_is_cut_short_says_by_how_much(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    trials = run_search(searching(method="grid", n_trials=5, grid_points=5), journal)
    assert len(trials) == 5
    assert "n_trials 5 leaves out 6 of the grid's points" in caplog.text


def test_fewer_trials_than_models_says_which_defaults_are_left_out(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert configs(run_search(searching(n_trials=2), journal)) == [DEFAULTS["none"], DEFAULTS["line"]]
    assert "leaves out the defaults of curve" in caplog.text


def test_a_configuration_is_not_computed_twice(journal: Path) -> None:
    asked: list[str] = []

    def counting(config: Config) -> list[float]:
        asked.append(json.dumps(config))
        return error(config)

    space = {"curve": {"n": Range(low=1, high=3, integer=True)}}
    trials = run_search(searching(counting, space, n_trials=15), journal)
    assert len(trials) == 15
    assert len(asked) == len(set(asked)) < 15


def test_a_trial_that_fails_is_recorded_and_the_search_continues(journal: Path) -> None:
    def fragile(config: Config) -> list[float]:
        if config["model"] == "curve":
            raise ZeroDivisionError("no curve today")
        return error(config)

    trials = run_search(searching(fragile), journal)
    failed = [each for each in trials if each.state == "failed"]
    assert failed
    assert failed[0].reason == "ZeroDivisionError: no curve today"
    assert len(trials) == 12


def test_an_undefined_score_is_a_failure_with_its_reason(journal: Path) -> None:
    trials = run_search(searching(lambda config: [float("nan"), 1.0] if config["model"] == "curve" else error(config)), journal)
    assert {each.reason for each in trials if each.state == "failed"} == {"ValueError: error is undefined on a fold: nan, 1"}


def test_when_every_trial_fails_the_error_says_why(journal: Path) -> None:
    def broken(config: Config) -> list[float]:
        raise RuntimeError("out of paper")

    with pytest.raises(StepError, match=r"all 4 trials failed; the first was none: RuntimeError: out of paper"):
        run_search(searching(broken, n_trials=4), journal)


def test_after_the_timeout_no_trial_starts_but_two_always_end(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    trials = run_search(searching(timeout_seconds=0.0), journal)
    assert [each.state for each in trials] == ["complete", "complete"]
    assert "timeout after 2 trials" in caplog.text


def interrupting(after: int) -> Callable[[Config], list[float]]:
    """Evaluates `after` configurations and is then interrupted; the journal stays as a kill leaves it."""
    calls = iter(range(after))

    def evaluate(config: Config) -> list[float]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return error(config)

    return evaluate


@pytest.mark.parametrize("method", ["tpe", "random", "grid"])
def test_an_interrupted_search_ends_as_if_it_had_not_been(method: str, tmp_path: Path) -> None:
    whole = run_search(searching(method=method), tmp_path / "pay-a.log")
    broken = tmp_path / "pay-bb.log"
    for after in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            run_search(searching(interrupting(after), method=method), broken)
    resumed = run_search(searching(method=method), broken)
    assert configs(resumed) == configs(whole)
    assert len(configs(resumed, "killed")) == 2


@pytest.mark.parametrize("after", [1, 4, 5, 7, 11])
def test_an_interrupted_batch_resumes_with_the_same_trials(after: int, tmp_path: Path) -> None:
    whole = run_search(searching(batch_size=4, workers=1), tmp_path / "pay-a.log")
    broken = tmp_path / "pay-bb.log"
    with pytest.raises(KeyboardInterrupt):
        run_search(searching(interrupting(after), batch_size=4, workers=1), broken)
    resumed = run_search(searching(batch_size=4, workers=1), broken)
    by_position = {each.position: each.config for each in resumed if each.state == "complete"}
    assert by_position == {each.position: each.config for each in whole}
    assert 1 <= len(configs(resumed, "killed")) <= 4


def test_half_a_line_at_the_end_of_the_journal_is_cut_off(journal: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_search(searching(interrupting(4)), journal)
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    assert len(configs(run_search(searching(), journal))) == 12


def test_a_configuration_whose_process_crashes_three_times_is_skipped(journal: Path) -> None:
    for _ in range(MAX_CRASHES):
        with pytest.raises(KeyboardInterrupt):
            run_search(searching(interrupting(0)), journal)
    trials = run_search(searching(), journal)
    assert configs(trials, "killed") == [DEFAULTS["none"]] * MAX_CRASHES
    assert DEFAULTS["none"] not in configs(trials)
    assert len(configs(trials)) == 11


def test_journals_of_what_has_changed_are_removed_and_those_of_other_problems_kept(tmp_path: Path) -> None:
    old, other = tmp_path / "pay-ffffffffffffffff.log", tmp_path / "pay-roll-ffffffffffffffff.log"
    old.touch()
    other.touch()
    run_search(searching(n_trials=3), tmp_path / "pay-0123456789abcdef.log")
    assert not old.exists()
    assert other.exists()
