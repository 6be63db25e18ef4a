"""The search, over a function and over the plain kind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evergreen.tasks import problems, tune
from evergreen.tasks.config.params import Range, Tune
from evergreen.tasks.core.errors import BusyError, ParamsError, StepError
from evergreen.tasks.core.paths import locking, read_json
from evergreen.tasks.problems.base import Config, Metric
from evergreen.tasks.search.trials import Cost, Outcome, Tried, hopeless
from evergreen.tasks.tune import Search
from tests import ROOT, plain_kind
from tests.plain_kind import Plain

SPACE = {"none": {}, "line": {"slope": Range(low=0.0, high=4.0)}, "curve": {"n": Range(low=1, high=9, integer=True)}}
DEFAULTS: dict[str, Config] = {
    "none": {"model": "none"},
    "line": {"model": "line", "slope": 2.0, "fixed": "kept"},
    "curve": {"model": "curve", "n": 5},
}


def error(config: Config) -> list[float]:
    """Two folds; best at slope 3.1."""
    if config["model"] == "line":
        distance = abs(config["slope"] - 3.1)
        return [distance, distance + 0.2]
    return [9.0, 9.0] if config["model"] == "none" else [5.0 + config["n"], 6.0]


def judging(evaluate: Callable[[Config], list[float]]) -> Callable[[Config, Any], Outcome]:
    def judge(config: Config, bar: Any = None) -> Outcome:
        try:
            return Outcome(evaluate(config))
        except Exception as error:  # noqa: BLE001
            return Outcome((), f"{type(error).__name__}: {error}")

    return judge


def searching(evaluate: Callable[[Config], list[float]] = error, space: tune.Space | None = None, **settings: Any) -> Search:
    settings = {"method": "tpe", "n_trials": 12, "batch": 1, "choose": "best", **settings}
    metric = Metric("error", greater_is_better=False)
    space = space or SPACE
    defaults = {model: tune._within(DEFAULTS[model], space[model]) for model in space}
    return Search("pay", space, defaults, Tune.model_validate(settings), metric, 7, judging(evaluate))


def configs(tried: list[Tried], state: str = "complete") -> list[Config]:
    return [each.config for each in tried if each.state == state]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    kind = Plain()
    monkeypatch.setattr(problems, "kind", lambda name: kind)
    return kind


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "pay-0123456789abcdef.log"


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_the_same_seed_tries_the_same_points(method: str, tmp_path: Path) -> None:
    first = tune.find(searching(method=method), tmp_path / "pay-a.log")
    second = tune.find(searching(method=method), tmp_path / "pay-bb.log")
    assert configs(first) == configs(second)
    assert len({json.dumps(config) for config in configs(first)}) > 6


def test_defaults_come_first_simple_before_complex_and_keep_what_is_not_searched(journal: Path) -> None:
    tried = tune.find(searching(), journal)
    assert configs(tried)[:3] == list(DEFAULTS.values())
    lines = [config for config in configs(tried) if config["model"] == "line"]
    assert all(config["fixed"] == "kept" for config in lines)
    assert len(tried) == 12


def test_a_model_without_choices_is_tried_once(journal: Path) -> None:
    tried = tune.find(searching(), journal)
    assert sum(config["model"] == "none" for config in configs(tried)) == 1


def test_bayesian_search_ends_nearer_than_the_default(journal: Path) -> None:
    search = searching(n_trials=25)
    best = tune.choose(tune.find(search, journal), list(SPACE), search.metric)
    assert best.config["model"] == "line"
    assert best.config["slope"] == pytest.approx(3.1, abs=0.25)
    assert best.std == pytest.approx(0.1)


def test_a_grid_tries_every_point_once_simple_models_first(journal: Path) -> None:
    tried = tune.find(searching(method="grid", n_trials=50, grid_points=5), journal)
    assert [config["slope"] for config in configs(tried)[3:] if config["model"] == "line"] == [0.0, 1.0, 3.0, 4.0]
    assert [config["n"] for config in configs(tried)[3:] if config["model"] == "curve"] == [1, 3, 7, 9]
    assert len(tried) == 3 + 4 + 4


def test_a_grid_that_is_cut_short_says_by_how_much(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    tried = tune.find(searching(method="grid", n_trials=5, grid_points=5), journal)
    assert len(tried) == 5
    assert "n_trials 5 leaves out 6 of the grid's points" in caplog.text


def test_points_of_a_logarithmic_interval_are_evenly_spaced_on_its_scale() -> None:
    assert tune._points(Range(low=0.01, high=100, log=True), 3) == pytest.approx([0.01, 1.0, 100])
    assert tune._points(Range(low=1, high=3, integer=True), 9) == [1, 2, 3]


def test_fewer_trials_than_models_says_which_defaults_are_left_out(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert configs(tune.find(searching(n_trials=2), journal)) == [DEFAULTS["none"], DEFAULTS["line"]]
    assert "leaves out the defaults of curve" in caplog.text


def test_a_search_begins_where_the_last_one_ended_right_after_the_defaults(journal: Path) -> None:
    best, gone = {"model": "line", "slope": 3.0}, {"model": "gone"}
    search = searching(n_trials=4, start=[best, best, DEFAULTS["curve"], gone, {"model": "curve", "n": 99}])
    starts = tune._starts(search)
    assert starts == [{"model": "line", "slope": 3.0, "fixed": "kept"}, {"model": "curve", "n": 9}]
    tried = configs(tune.find(replace(search, starts=starts), journal))
    assert tried == [*search.defaults.values(), starts[0]]


def test_a_configuration_is_not_computed_twice(journal: Path) -> None:
    asked: list[str] = []

    def counting(config: Config) -> list[float]:
        asked.append(json.dumps(config))
        return error(config)

    space = {"curve": {"n": Range(low=1, high=3, integer=True)}}
    tried = tune.find(searching(counting, space, n_trials=15), journal)
    assert len(tried) == 15
    assert len(asked) == len(set(asked)) < 15


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(journal: Path) -> None:
    def fragile(config: Config) -> list[float]:
        if config["model"] == "curve":
            raise ZeroDivisionError("no curve today")
        return error(config)

    tried = tune.find(searching(fragile), journal)
    failed = [each for each in tried if each.state == "failed"]
    assert failed
    assert failed[0].reason == "ZeroDivisionError: no curve today"
    assert len(tried) == 12


def test_an_undefined_score_is_a_failure_with_its_reason(journal: Path) -> None:
    tried = tune.find(searching(lambda config: [float("nan"), 1.0] if config["model"] == "curve" else error(config)), journal)
    assert {each.reason for each in tried if each.state == "failed"} == {"ValueError: error is undefined on a fold: nan, 1"}


def test_when_every_trial_fails_the_error_says_why(journal: Path) -> None:
    def broken(config: Config) -> list[float]:
        raise RuntimeError("out of paper")

    with pytest.raises(StepError, match=r"none of 4 trials ended well; the first was none: RuntimeError: out of paper"):
        tune.find(searching(broken, n_trials=4), journal)


def test_after_the_timeout_no_trial_starts_but_two_always_end(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    tried = tune.find(searching(timeout_seconds=0.0), journal)
    assert [each.state for each in tried] == ["complete", "complete"]
    assert "are over after 2 trials" in caplog.text


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
    whole = tune.find(searching(method=method), tmp_path / "pay-a.log")
    broken = tmp_path / "pay-bb.log"
    for after in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            tune.find(searching(interrupting(after), method=method), broken)
    resumed = tune.find(searching(method=method), broken)
    assert configs(resumed) == configs(whole)
    assert len(configs(resumed, "killed")) == 2


@pytest.mark.parametrize("after", [1, 4, 5, 7, 11])
def test_a_batch_that_was_interrupted_is_ended_as_it_was_begun(after: int, tmp_path: Path) -> None:
    whole = tune.find(searching(batch=4, workers=1), tmp_path / "pay-a.log")
    broken = tmp_path / "pay-bb.log"
    with pytest.raises(KeyboardInterrupt):
        tune.find(searching(interrupting(after), batch=4, workers=1), broken)
    resumed = tune.find(searching(batch=4, workers=1), broken)
    by_position = {each.position: each.config for each in resumed if each.state == "complete"}
    assert by_position == {each.position: each.config for each in whole}
    assert 1 <= len(configs(resumed, "killed")) <= 4


def test_half_a_line_at_the_end_of_the_journal_is_cut_off(journal: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune.find(searching(interrupting(4)), journal)
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    assert len(configs(tune.find(searching(), journal))) == 12


def test_a_point_that_was_killed_three_times_is_given_up(journal: Path) -> None:
    for _ in range(tune.KILLS):
        with pytest.raises(KeyboardInterrupt):
            tune.find(searching(interrupting(0)), journal)
    tried = tune.find(searching(), journal)
    assert configs(tried, "killed") == [DEFAULTS["none"]] * tune.KILLS
    assert DEFAULTS["none"] not in configs(tried)
    assert len(configs(tried)) == 11


def tried(number: int, model: str, score: float, state: str = "complete") -> Tried:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    return Tried(number, state, {"model": model}, score, 0.0, "", now, now + timedelta(seconds=1))


def test_within_a_tie_the_simpler_model_wins_and_then_the_earlier_trial() -> None:
    found = [tried(0, "curve", 0.5), tried(1, "line", 0.5 + 1e-10), tried(2, "line", 0.5), tried(3, "none", 0.4)]
    assert tune.choose(found, ["none", "line", "curve"], Metric("auc")).number == 1
    assert tune.choose(found, ["none", "line", "curve"], Metric("loss", greater_is_better=False)).number == 3


STAGED = {"none": "baseline", "line": "linear", "curve": "boosting"}
AUC = Metric("auc")


def folded(number: int, model: str, *folds: float, latency_ms: float = 1.0) -> Tried:
    cost = Cost(latency_ms=latency_ms, model_mb=1.0, fit_seconds=1.0, cpu_seconds=2.0)
    return replace(tried(number, model, sum(folds) / len(folds)), folds=folds, cost=cost)


def test_the_simplest_stage_within_one_standard_error_wins() -> None:
    curve, line = folded(0, "curve", 0.80, 0.84, 0.82), folded(1, "line", 0.81, 0.82, 0.82)
    assert tune.choose([curve, line], list(STAGED), AUC).number == 0
    assert tune.choose([curve, line], list(STAGED), AUC, STAGED).number == 1
    clear = folded(1, "line", 0.79, 0.83, 0.81)
    assert tune.choose([curve, clear], list(STAGED), AUC, STAGED).number == 0


def test_where_nothing_beats_it_the_baseline_wins() -> None:
    found = [folded(0, "none", 0.5, 0.5, 0.5), folded(1, "line", 0.47, 0.54, 0.5), folded(2, "curve", 0.5, 0.49, 0.53)]
    assert tune.choose(found, list(STAGED), AUC, STAGED).number == 0


def test_a_model_beyond_the_limits_of_cost_is_not_chosen_and_without_any_left_the_baseline_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = [folded(0, "none", 0.5), folded(1, "line", 0.7, latency_ms=3.0), folded(2, "curve", 0.9, latency_ms=30.0)]
    assert tune.pick(searching(max_latency_ms=10.0), found).number in (0, 1)
    low = [replace(each, score=-each.score) for each in found]  # searching() minimises
    assert tune.pick(searching(), low).number == 2
    assert tune.pick(searching(max_latency_ms=10.0), low).number == 1
    assert tune.pick(searching(max_model_mb=0.5), low).number == 0
    assert "no model keeps to tune.max_latency_ms, max_model_mb and max_train_seconds" in caplog.text


def test_the_front_holds_what_nothing_beats_in_both_score_and_latency() -> None:
    found = [
        folded(0, "none", 0.5, latency_ms=0.1),
        folded(1, "line", 0.7, latency_ms=1.0),
        folded(2, "curve", 0.69, latency_ms=5.0),
        folded(3, "curve", 0.8, latency_ms=9.0),
    ]
    assert tune.front(found, AUC) == {0, 1, 3}


def test_what_the_search_bought_is_its_gain_over_the_best_default_and_its_time() -> None:
    found = [
        replace(folded(0, "none", 9.0), config=DEFAULTS["none"]),
        replace(folded(1, "line", 1.2), config=DEFAULTS["line"]),
        replace(folded(2, "line", 0.2), config={**DEFAULTS["line"], "slope": 3.1}),
    ]
    assert tune.bought(searching(), found, found[2]) == {
        "over": "defaults of line",
        "default": 1.2,
        "gain": pytest.approx(1.0),
        "cpu_seconds": 2.0,
    }


def test_trials_that_failed_are_never_chosen() -> None:
    found = [tried(0, "none", float("nan"), "failed"), tried(1, "line", 0.1)]
    assert tune.choose(found, ["none", "line"], Metric("auc")).number == 1


def test_tuning_never_touches_a_label_of_a_test_window(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    tune.run(params, "pay", layout)
    first_test = plain_kind.FIRST + timedelta(days=6 * plain_kind.HORIZON)
    touched = {day for cutoffs, _ in plain.fitted for day in cutoffs} | set(plain.predicted)
    assert touched
    assert max(touched) <= first_test - timedelta(days=plain_kind.HORIZON)


def test_every_fold_learns_only_from_labels_complete_at_its_own_cutoff(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, train={"history_days": 14})
    tune.run(params, "pay", layout)
    for (cutoffs, _), judged in zip(plain.fitted, plain.predicted, strict=True):
        assert max(cutoffs) <= judged - timedelta(days=plain_kind.HORIZON)
        assert len(cutoffs) == 2


def test_the_results_say_what_was_found_and_the_journal_is_gone(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    result = tune.run(params, "pay", layout)
    best, trials = read_json(layout.tuning("pay") / "best.json"), pl.read_parquet(layout.tuning("pay") / "trials.parquet")
    known = ["model", "config", "metric", "score", "std", "method", "trials", "seconds", "models", "chosen", "bought", "cost"]
    assert list(best) == known
    assert best["model"] in ("ridge", "steep")
    assert best["score"] == trials["score"].min() == result.score < best["models"]["mean"]
    assert json.loads(trials.filter(pl.col("score") == best["score"])["config"][0])["model"] == best["model"]
    assert trials.schema["started"] == pl.Datetime("us", "UTC")
    assert trials.height == result.n_trials == best["trials"] == 8
    assert list((layout.var / "tuning").glob("*.log")) == []


def test_a_metric_of_the_model_as_a_whole_can_be_optimised(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, tune={"metric": "size"})
    assert tune.run(params, "pay", layout).model == "mean"


def test_models_and_ranges_of_params_take_the_place_of_the_kinds_own(plain: Plain, tmp_path: Path) -> None:
    space = {"ridge": {"alpha": {"low": 1.0, "high": 10.0}, "intercept": {"values": [True]}}}
    params, layout = plain_kind.project(tmp_path, tune={"models": ["ridge"], "space": space})
    tune.run(params, "pay", layout)
    tried = [config for _, config in plain.fitted]
    assert tried[0]["alpha"] == 10.0
    assert all(config["model"] == "ridge" and 1 <= config["alpha"] <= 10 and config["intercept"] for config in tried)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["rigde"]}, "pay.tune.models: rigde: unknown model; did you mean ridge"),
        ({"space": {"stepe": {}}}, "pay.tune.space: stepe: unknown model; did you mean steep"),
        ({"space": {"ridge": {"alhpa": {"values": [1]}}}}, "ridge.alhpa: unknown hyper-parameter; did you mean alpha"),
        ({"space": {"ridge": {"alpha": {"values": [[1]]}}}}, "ridge.alpha: values must be one or more numbers"),
        ({"space": {"ridge": {"alpha": {"low": 0, "high": 1, "log": True}}}}, "alpha: low 0 must be above 0"),
        ({"metric": "rsme"}, "pay.tune.metric = rsme: unknown metric; did you mean rmse"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_right_one(
    settings: dict[str, Any], message: str, plain: Plain, tmp_path: Path
) -> None:
    params, layout = plain_kind.project(tmp_path, tune=settings)
    with pytest.raises(ParamsError, match=message):
        tune.run(params, "pay", layout)


def test_a_range_stays_whole_where_the_hyper_parameter_is() -> None:
    kept = tune._override({"n": Range(low=2, high=4)}, {"n": 3}, "key")
    assert kept["n"].integer


def test_changed_data_or_settings_start_anew_and_more_trials_do_not(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    first = tune.fingerprint(params, "pay", layout)
    more = plain_kind.params(tune={"n_trials": 99, "timeout_seconds": 5.0})
    assert tune.fingerprint(more, "pay", layout) == first
    assert tune.fingerprint(plain_kind.params(train={"history_days": 9}), "pay", layout) != first
    plain_kind.project(tmp_path, plain_kind.rows(slope=2.0))
    assert tune.fingerprint(params, "pay", layout) != first


def test_journals_of_what_has_changed_are_removed_and_those_of_other_problems_kept(tmp_path: Path) -> None:
    old, other = tmp_path / "pay-ffffffffffffffff.log", tmp_path / "pay-roll-ffffffffffffffff.log"
    old.touch()
    other.touch()
    tune.find(searching(n_trials=3), tmp_path / "pay-0123456789abcdef.log")
    assert not old.exists()
    assert other.exists()


def test_two_processes_cannot_tune_the_same_problem_at_once(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    with (
        locking(layout.var / "tuning" / "pay.lock", "pay: tune"),
        pytest.raises(BusyError, match=f"pay: tune: process {os.getpid()} is at it"),
    ):
        tune.run(params, "pay", layout)
    assert tune.run(params, "pay", layout).n_trials == 8


KILLED = """
import os, signal, sys
from pathlib import Path
from evergreen.tasks import problems, tune
from tests import plain_kind

class Killed(plain_kind.Plain):
    def fit(self, *given):
        if len(self.fitted) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(*given)

kind = Killed()
problems.kind = lambda name: kind
params, layout = plain_kind.project(Path(sys.argv[1]))
tune.run(params, "pay", layout)
"""


def test_a_search_that_was_killed_goes_on_where_it_was(plain: Plain, tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False, timeout=60)
    assert dead.returncode == -signal.SIGKILL
    params, layout = plain_kind.project(tmp_path)
    assert not layout.tuning("pay").exists()
    result = tune.run(params, "pay", layout)
    trials = pl.read_parquet(result.trials)
    assert trials["state"].to_list() == ["complete"] * 4 + ["killed"] + ["complete"] * 4
    assert trials["ended"].null_count() == 1
    again = [config for _, config in plain.fitted]
    assert len(again) == 2 * 4
    other = plain_kind.project(tmp_path / "other")
    assert tune.run(params, "pay", other[1]).score == result.score


def test_trials_start_now_in_utc(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    started = pl.read_parquet(tune.run(params, "pay", layout).trials)["started"][0]
    assert abs(datetime.now(UTC) - started) < timedelta(minutes=5)


def test_a_trial_is_hopeless_when_it_is_behind_on_each_fold_by_more_than_folds_differ() -> None:
    bar = [0.80, 0.81, 0.82]
    assert hopeless([0.70], bar, AUC)
    assert not hopeless([0.79], bar, AUC)
    assert not hopeless([0.70, 0.815], bar, AUC)


def test_a_hopeless_trial_is_pruned_and_never_chosen(plain: Plain, tmp_path: Path) -> None:
    space = {"ridge": {"alpha": {"values": [1.0, 1e6]}, "intercept": {"values": [True]}}}
    given = {"folds": 4, "prune": True, "method": "grid", "models": ["ridge"], "space": space, "n_trials": 2}
    params, layout = plain_kind.project(tmp_path, plain_kind.rows(cutoffs=14), tune=given)
    tune.run(params, "pay", layout)
    trials = pl.read_parquet(layout.tuning("pay") / "trials.parquet")
    assert trials["state"].to_list() == ["complete", "pruned"]
    assert trials["folds"].list.len().to_list() == [4, 1]
    assert trials["score"][1] is None


def test_every_trial_says_what_it_cost(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    tune.run(params, "pay", layout)
    trials = pl.read_parquet(layout.tuning("pay") / "trials.parquet")
    assert (trials["cpu_seconds"] > 0).all()
    assert (trials["peak_mb"] > 10).all()
    assert (trials["model_mb"] > 0).all()
    assert trials["latency_ms"].null_count() == trials.height, "this kind does not answer row by row"


def test_nested_folds_say_how_much_of_the_score_is_optimism(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, plain_kind.rows(cutoffs=10), tune={"nested": True, "folds": 3})
    tune.run(params, "pay", layout)
    nested = read_json(layout.tuning("pay") / "best.json")["nested"]
    assert len(nested["folds"]) == len(nested["models"]) == 2, "the first fold in time has none before it"
    assert nested["optimism"] == pytest.approx(nested["score"] - nested["tuned"])
    assert list((layout.var / "tuning").glob("*.log")) == []


def test_nested_needs_two_folds(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, tune={"nested": True, "folds": 1})
    with pytest.raises(ParamsError, match=r"pay\.tune\.nested: needs tune\.folds of 2 or more"):
        tune.run(params, "pay", layout)


def test_without_time_for_a_trial_the_best_of_what_was_probed_is_chosen() -> None:
    probes = {"none": Outcome([9.0]), "line": Outcome([0.3]), "curve": Outcome([5.0])}
    search, only = replace(searching(), probes=probes), [folded(0, "none", 9.0, 9.0)]
    found = [*only, *tune._probed(search, only)]
    assert [each.model for each in found] == ["none", "line", "curve"]
    assert tune.pick(search, found).config == DEFAULTS["line"]
    assert tune._probed(search, [*only, folded(1, "line", 1.0, 1.0)]) == []
