"""The rule that lets a candidate pass, and what it is judged on."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from evergreen.tasks import evaluate, problems, train, tune
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Gate, Params
from evergreen.tasks.core import intervals
from evergreen.tasks.core.errors import DataError, ParamsError, StepError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Metric
from evergreen.tasks.release import promotion_gate
from evergreen.tasks.release.promotion_gate import Verdict
from tests import plain_kind
from tests.monitoring.retraining import test_backtest_lists as turning_shop
from tests.plain_kind import Plain

ACCURACY = Metric("accuracy")
LOSS = Metric("loss", greater_is_better=False)


def rows(values: list[float] | np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"entity": range(len(values)), "value": values}, schema_overrides={"value": pl.Float64})


def mean(frame: pl.DataFrame) -> float:
    return float(np.mean(frame["value"].to_numpy()))


def judged(
    candidate: list[float] | np.ndarray,
    other: list[float] | np.ndarray,
    metric: Metric = ACCURACY,
    score: Callable[[pl.DataFrame], float] = mean,
    **policy: object,
) -> Verdict:
    return promotion_gate.judge(
        rows(candidate), rows(other), score, metric, Gate.model_validate({"resamples": 50, **policy}), "champion v3", seed=1
    )


VALUES = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=intervals.MIN_ENTITIES, max_size=25)
POLICY = st.floats(0, 3)
FEW = settings(max_examples=40, deadline=None)


@FEW
@given(st.lists(st.floats(-5, 5), min_size=intervals.MIN_ENTITIES, max_size=25))
def test_identical_predictions_are_never_better_and_never_worse(values: list[float]) -> None:
    verdict = judged(values, values)
    assert verdict.decision == "not worse"
    assert not verdict.promote


@FEW
@given(VALUES)
def test_swapping_the_two_mirrors_the_gain_and_its_interval(pairs: list[tuple[float, float]]) -> None:
    one, two = [list(side) for side in zip(*pairs, strict=True)]
    there, back = judged(one, two), judged(two, one)
    assert (there.gain, there.low, there.high) == pytest.approx((-back.gain, -back.high, -back.low), abs=1e-9, nan_ok=True)
    if there.decision == "better":
        assert back.decision == "worse"


@FEW
@given(VALUES, POLICY, POLICY)
def test_a_wider_margin_never_makes_a_candidate_better(pairs: list[tuple[float, float]], one: float, two: float) -> None:
    left, right = [list(side) for side in zip(*pairs, strict=True)]
    narrow, wide = (judged(left, right, margin=margin) for margin in sorted((one, two)))
    if narrow.decision != "better":
        assert wide.decision != "better"


@FEW
@given(VALUES, POLICY, POLICY)
def test_a_wider_tolerance_never_refuses_what_a_narrower_one_let_pass(
    pairs: list[tuple[float, float]], one: float, two: float
) -> None:
    left, right = [list(side) for side in zip(*pairs, strict=True)]
    narrow, wide = (judged(left, right, tolerance=each, promote="not worse") for each in sorted((one, two)))
    assert wide.promote >= narrow.promote


@FEW
@given(VALUES)
def test_a_metric_where_small_is_good_turns_the_verdict_around(pairs: list[tuple[float, float]]) -> None:
    one, two = [list(side) for side in zip(*pairs, strict=True)]
    assert judged(one, two, LOSS).gain == judged(two, one, ACCURACY).gain
    assert judged(one, two, LOSS).decision == judged(two, one, ACCURACY).decision


DRAW = np.random.default_rng(0)
NOISE = DRAW.normal(size=300)


def test_a_clearly_better_candidate_is_promoted_and_a_clearly_worse_one_is_not() -> None:
    better, worse = judged(NOISE + 0.5, NOISE + DRAW.normal(0, 0.2, 300)), judged(NOISE - 0.5, NOISE)
    assert (better.decision, better.promote) == ("better", True)
    assert (worse.decision, worse.promote) == ("worse", False)


def test_a_difference_smaller_than_its_noise_cannot_be_told() -> None:
    verdict = judged(NOISE + DRAW.normal(0, 1, 300), NOISE)
    assert verdict.low < 0 < verdict.high
    assert (verdict.decision, verdict.promote) == ("cannot tell", False)


def test_the_same_rows_tell_what_rows_drawn_apart_could_not() -> None:
    verdict = judged(NOISE + 0.02 + DRAW.normal(0, 0.05, 300), NOISE)
    assert verdict.decision == "better"
    assert 1.96 * NOISE.std() / 300**0.5 > 5 * verdict.gain


def test_a_gain_within_the_margin_is_not_worse_and_promotes_only_if_that_is_enough() -> None:
    candidate = NOISE + 0.5
    assert judged(candidate, NOISE, margin=0.6).decision == "not worse"
    kept = judged(candidate, NOISE, margin=0.6)
    assert not kept.promote
    assert re.match(r"not promoted: \w+ \S+ does not beat .* by more than 0\.6: gain 0\.5", kept.reason)
    promoted = judged(candidate, NOISE, margin=0.6, promote="not worse")
    assert promoted.promote
    assert re.match(r"promoted: \w+ \S+ is not worse than .* \(tolerance 0\): gain 0\.5", promoted.reason)


def test_a_loss_within_the_tolerance_is_not_worse() -> None:
    assert judged(NOISE - 0.1, NOISE, tolerance=0.2).decision == "not worse"
    assert judged(NOISE - 0.1, NOISE, tolerance=0.05).decision == "worse"


@pytest.mark.parametrize("bad", ["candidate", "other"])
def test_an_undefined_score_never_promotes(bad: str) -> None:
    values = {"candidate": NOISE + 9, "other": NOISE, bad: np.full(300, np.nan)}
    verdict = judged(values["candidate"], values["other"], promote="not worse")
    assert (verdict.decision, verdict.promote) == ("cannot tell", False)
    assert math.isnan(verdict.gain)


def test_other_rows_are_refused() -> None:
    with pytest.raises(DataError, match="must be about the same rows: 3 against 2 rows"):
        judged([1, 2, 3], [1, 2])


def test_the_reason_says_metric_scores_gain_interval_and_rows() -> None:
    better, unclear = judged(NOISE + 0.5, NOISE, margin=0.01), judged([0.0, 1.0, 1.0] * 3, [1.0, 0.0, 1.0] * 3)
    assert better.reason.startswith("promoted: accuracy 0.4")
    assert "beats champion v3 -0.0" in better.reason
    assert "by more than 0.01: gain 0.500 [0.500, 0.500] at 95% (300 rows of the last window)" in better.reason
    assert unclear.reason.startswith("not promoted: accuracy 0.667 cannot be told from champion v3 0.667: gain 0.000 [")


def test_with_few_entities_the_gate_cannot_tell_and_says_so() -> None:
    verdict = judged([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert (verdict.decision, verdict.promote) == ("cannot tell", False)
    assert verdict.reason.endswith("gain 1.000 (too few entities for an interval: 3) (3 rows of the last window)")


def rmse(frame: pl.DataFrame) -> float:
    return float(np.sqrt(np.mean(frame["value"].to_numpy() ** 2)))


@pytest.mark.parametrize(
    ("candidate", "other", "promoted"),
    [
        ([1.0] * 150 + [1e4], [9.0] * 150 + [1e6], True),
        ([1.0] * 6, [9.0] * 6, True),
        ([1.0] * 5, [9.0] * 5, False),
        ([1.0] * 150 + [5e5], [9.0] * 150 + [1e6], False),
        ([9.0] * 150 + [1e4], [1.0] * 150 + [1e6], False),
    ],
    ids=["huge value", "six entities", "five entities", "half the loss", "worse in most rows"],
)
def test_where_huge_values_leave_no_interval_a_first_model_that_is_far_better_serves(
    candidate: list[float], other: list[float], promoted: bool
) -> None:
    loss = replace(LOSS, scale="positive")
    verdict = judged(candidate, other, loss, rmse)
    assert (verdict.decision, verdict.promote) == ("cannot tell", False)
    policy = Gate.model_validate({"resamples": 400})
    first = promotion_gate.of_first_model(verdict, rows(candidate), rows(other), rmse, loss, policy, seed=1)
    assert first.promote is promoted
    assert ("nothing is deployed yet, and it is better in" in first.reason) is promoted


def area(frame: pl.DataFrame) -> float:
    """ROC AUC; every fourth entity is positive."""
    label = frame["entity"].to_numpy() % 4 == 0
    return float(roc_auc_score(label, frame["value"].to_numpy())) if 0 < label.sum() < len(label) else math.nan


@pytest.mark.parametrize(("entities", "promoted"), [(320, True), (12, False)], ids=["many", "few of a class"])
def test_a_first_model_that_ranks_one_row_wrong_serves(entities: int, promoted: bool) -> None:
    areas = Metric("roc_auc", scale="share")
    right = np.where(np.arange(entities) % 4 == 0, 1.0, 0.0)
    right[5] = 2.0
    constant = np.zeros(entities)
    verdict = judged(right, constant, areas, area, resamples=400)
    assert (verdict.decision, verdict.promote) == ("cannot tell", False)
    policy = Gate.model_validate({"resamples": 400})
    first = promotion_gate.of_first_model(verdict, rows(right), rows(constant), area, areas, policy, seed=1)
    assert first.promote is promoted


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Layout]:
    """A project after evaluate."""
    params, layout = plain_kind.project(tmp_path_factory.mktemp("gate"), tune={"n_trials": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "kind", lambda name: Plain())
        for step in (tune, train, evaluate):
            step.run(params, "pay", layout)
    return params, layout


@pytest.fixture
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "kind", lambda name: Plain())


@pytest.mark.usefixtures("_plain")
def test_the_first_model_is_measured_against_the_baseline(finished: tuple[Params, Layout]) -> None:
    verdict = promotion_gate.run(finished[0], "pay", finished[1], None, None)
    assert (verdict.decision, verdict.against, verdict.rows) == ("better", "baseline mean", 60)
    assert verdict.gain == pytest.approx(verdict.other - verdict.candidate)


def test_a_shop_is_not_left_without_lists_where_nothing_beats_popularity(tmp_path: Path) -> None:
    """What sells most changes each day, so that the chosen model is the baseline."""
    layout = turning_shop.project(tmp_path / "shop", turning_shop.visits())
    known = load(layout.params)
    for step in (train, evaluate):
        step.run(known, turning_shop.PROBLEM, layout)
    verdict = promotion_gate.run(known, turning_shop.PROBLEM, layout, None, None)
    assert (verdict.decision, verdict.gain, verdict.promote) == ("not worse", 0.0, True)
    assert verdict.reason.startswith("promoted: nothing is deployed yet, and lists that are not surely worse than the baseline")
    champion = skops_models.load(layout.model(turning_shop.PROBLEM) / "model.skops")
    assert not promotion_gate.run(known, turning_shop.PROBLEM, layout, champion, 3).promote
    worse = verdict.model_copy(update={"decision": "worse", "promote": False})
    assert worse.of_first() == worse


@pytest.mark.usefixtures("_plain")
def test_the_present_champion_against_itself_stays(finished: tuple[Params, Layout]) -> None:
    champion = skops_models.load(finished[1].model("pay") / "model.skops")
    verdict = promotion_gate.run(finished[0], "pay", finished[1], champion, 3)
    assert (verdict.decision, verdict.promote, verdict.gain, verdict.against) == ("not worse", False, 0.0, "champion v3")


@pytest.mark.usefixtures("_plain")
def test_a_champion_that_cannot_predict_these_rows_stays_and_the_reason_says_so(finished: tuple[Params, Layout]) -> None:
    verdict = promotion_gate.run(finished[0], "pay", finished[1], object(), 2)
    assert (verdict.decision, verdict.promote) == ("cannot tell", False)
    assert "champion v2 cannot predict the 60 rows of the last window (AttributeError" in verdict.reason


@pytest.mark.usefixtures("_plain")
def test_a_champion_that_learned_from_the_window_is_not_judged_on_it(finished: tuple[Params, Layout]) -> None:
    champion = skops_models.load(finished[1].model("pay") / "model.skops")
    cutoff = promotion_gate.last_window(finished[1], "pay", "predictions")["cutoff"][0]
    assert promotion_gate.run(finished[0], "pay", finished[1], champion, 3, cutoff).decision == "not worse"
    verdict = promotion_gate.run(finished[0], "pay", finished[1], champion, 3, cutoff + timedelta(days=1))
    assert (verdict.decision, verdict.promote) == ("cannot tell", False)
    assert f"it learned from days up to {cutoff + timedelta(days=1)}" in verdict.reason


@pytest.mark.usefixtures("_plain")
def test_the_gate_writes_nothing(finished: tuple[Params, Layout]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished[1].root.rglob("*")}
    promotion_gate.run(finished[0], "pay", finished[1], None, None)
    assert {path: path.stat().st_mtime_ns for path in finished[1].root.rglob("*")} == before


@pytest.mark.usefixtures("_plain")
def test_a_metric_that_rows_do_not_give_is_refused(finished: tuple[Params, Layout]) -> None:
    with pytest.raises(ParamsError, match=r"pay.gate.metric = size: cannot be computed from predictions"):
        promotion_gate.run(plain_kind.params(gate={"metric": "size"}), "pay", finished[1], None, None)


@pytest.mark.usefixtures("_plain")
def test_without_an_evaluation_the_gate_says_which_step_to_run(tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    with pytest.raises(
        StepError, match=r"predictions.parquet: is missing\. Run evaluate first: python -P -m evergreen evaluate pay"
    ):
        promotion_gate.run(params, "pay", layout, None, None)
