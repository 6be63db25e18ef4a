"""The stage, on the plain kind."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evergreen.tasks import tune
from evergreen.tasks.core.errors import LockedError, ParamsError
from evergreen.tasks.core.paths import locking, read_json
from tests import ROOT, plain_kind
from tests.plain_kind import Plain


def test_tuning_never_touches_a_label_of_a_test_window(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    tune.run(params, "pay", layout)
    first_test = plain_kind.FIRST + timedelta(days=6 * plain_kind.HORIZON)
    touched = {day for cutoffs, _ in plain.fitted for day in cutoffs} | set(plain.predicted)
    assert touched
    assert max(touched) <= first_test - timedelta(days=plain_kind.HORIZON)


def test_every_fold_is_fitted_on_labels_complete_at_its_own_cutoff(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, train={"history_days": 14})
    tune.run(params, "pay", layout)
    for (cutoffs, _), test in zip(plain.fitted, plain.predicted, strict=True):
        assert max(cutoffs) <= test - timedelta(days=plain_kind.HORIZON)
        assert len(cutoffs) == 2


def test_the_results_say_what_was_found_and_the_journal_is_gone(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    result = tune.run(params, "pay", layout)
    best, trials = read_json(layout.tuning("pay") / "best.json"), pl.read_parquet(layout.tuning("pay") / "trials.parquet")
    known = [
        "model",
        "config",
        "metric",
        "score",
        "std",
        "method",
        "trials",
        "seconds",
        "models",
        "chosen",
        "search_gain",
        "cost",
    ]
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
    configs = [config for _, config in plain.fitted]
    assert configs[0]["alpha"] == 10.0
    assert all(config["model"] == "ridge" and 1 <= config["alpha"] <= 10 and config["intercept"] for config in configs)


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


def test_two_processes_cannot_tune_the_same_problem_at_once(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    with (
        locking(layout.var / "tuning" / "pay.lock", "pay: tune"),
        pytest.raises(LockedError, match=f"pay: tune: process {os.getpid()} holds the lock"),
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


def test_a_search_that_was_killed_resumes(plain: Plain, tmp_path: Path) -> None:
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


def test_a_trial_that_is_clearly_behind_is_pruned_and_never_chosen(plain: Plain, tmp_path: Path) -> None:
    space = {"ridge": {"alpha": {"values": [1.0, 1e6]}, "intercept": {"values": [True]}}}
    given = {"folds": 4, "prune": True, "method": "grid", "models": ["ridge"], "space": space, "n_trials": 2}
    params, layout = plain_kind.project(tmp_path, plain_kind.rows(cutoffs=14), tune=given)
    tune.run(params, "pay", layout)
    trials = pl.read_parquet(layout.tuning("pay") / "trials.parquet")
    assert trials["state"].to_list() == ["complete", "pruned"]
    assert trials["folds"].list.len().to_list() == [4, 1]
    assert trials["score"][1] is None


def test_every_trial_has_its_cost(plain: Plain, tmp_path: Path) -> None:
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
