"""What a staged search tries next."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from evergreen.tasks.problems.base import Config, Metric
from evergreen.tasks.search.ensemble import BLEND
from evergreen.tasks.search.staged import Request, StagedSearch
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import Cost, FinishedTrial, paired_gain

AUC = Metric("auc")
STAGES = {"prior": "baseline", "line": "linear", "forest": "trees", "boost": "boosting", BLEND: "ensemble"}
DEFAULTS: dict[str, Config] = {model: {"model": model, "n": 1} for model in STAGES if model != BLEND}
SCORES = {"prior": 0.5, "line": 0.7, "forest": 0.75, "boost": 0.8, BLEND: 0.81}


class Spent(Clock):
    """A clock that stands still."""

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        super().__init__(seconds)
        self.now = spent

    def spent(self) -> float:
        return self.now


def staged(**settings: Any) -> StagedSearch:
    given = {"n_trials": 20, "batch": 4, "searchable": ["line", "forest", "boost"], "stages": STAGES, **settings}
    return StagedSearch(defaults=DEFAULTS, metric=AUC, **given)


def finished(position: int, model: str, score: float, seconds: float = 1.0, state: str = "complete") -> FinishedTrial:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    folds = (score - 0.01, score, score + 0.01) if state == "complete" else ()
    cost = Cost(wall_seconds=seconds)
    return FinishedTrial(position, state, {"model": model, "n": position}, score, 0.0, "", now, now, folds, cost, position)


def named(request: Request) -> str:
    return request["model"] if isinstance(request, dict) else str(request)


def played(stages: StagedSearch, scores: dict[str, float] = SCORES, better: float = 1e-3) -> list[list[str]]:
    """The models of each batch, where each trial of a model is a little better than the one before."""
    done: list[FinishedTrial] = []
    batches: list[list[str]] = []
    while batch := stages.next_batch(done):
        for request in batch:
            model = named(request)
            before = sum(each.model == model for each in done)
            done.append(finished(len(done), model, scores[model] + better * before))
        batches.append([named(request) for request in batch])
    return batches


def test_stages_come_in_order_defaults_first_and_one_blend_at_the_end() -> None:
    batches = played(staged())
    assert batches == [["prior", "line", "line", "line"], ["forest"] * 4, ["boost"] * 4, ["boost"] * 4, ["boost"] * 3, [BLEND]]
    assert [DEFAULTS["prior"], DEFAULTS["line"], "line", "line"] == staged().next_batch([])


def test_a_stage_that_is_far_behind_the_one_before_it_ends_after_its_first_batch() -> None:
    batches = played(staged(n_trials=100), SCORES | {"forest": 0.6})
    assert [batch for batch in batches if "forest" in batch] == [["forest"] * 4]


def test_a_stage_ends_after_three_batches_without_improvement() -> None:
    batches = played(staged(n_trials=1000), better=-1e-3)
    assert [batch for batch in batches if "boost" in batch] == [["boost"] * 4] * 4


@pytest.mark.parametrize("n_trials", [1, 2, 5, 9, 33])
def test_there_are_never_more_trials_than_batch_for_beside_the_defaults(n_trials: int) -> None:
    total = sum(map(len, played(staged(n_trials=n_trials))))
    assert total <= max(n_trials, len(STAGES))


def test_a_model_without_anything_to_choose_is_tried_once() -> None:
    batches = played(staged(searchable=["boost"]))
    assert sum(batch.count("line") for batch in batches) == sum(batch.count("forest") for batch in batches) == 1


def test_nothing_is_blended_where_only_one_model_ended_well() -> None:
    done = [finished(0, "prior", 0.5), finished(1, "line", 0.7), finished(2, "forest", 0.0, state="failed")]
    done += [finished(3, "boost", 0.0, state="failed")]
    assert staged(n_trials=4, searchable=[]).next_batch(done) == []


def test_a_trial_that_cannot_end_in_time_is_not_started() -> None:
    expected = {"line": 1.0, "forest": 100.0, "boost": 2.0}
    done = [finished(place, model, 0.7) for place, model in enumerate(["prior", "line", "line", "line", "boost"])]
    assert {named(each) for each in staged(clock=Spent(60, 15), expected_seconds=expected).next_batch(done)} == {"boost"}
    assert staged(clock=Spent(60, 61), expected_seconds=expected).next_batch(done) in ([], [BLEND])


def test_with_a_time_budget_the_defaults_of_all_stages_come_first_and_boosting_second() -> None:
    expected = {"line": 1.0, "forest": 5.0, "boost": 2.0}
    search = staged(clock=Spent(60, 0), expected_seconds=expected)
    assert [named(each) for each in search.next_batch([])] == ["prior", "line", "boost", "forest"]
    short = staged(clock=Spent(4, 0), expected_seconds=expected)
    assert [named(each) for each in short.next_batch([])] == ["prior", "line", "boost"]


def test_with_a_time_budget_warm_starts_come_before_the_forests() -> None:
    start = {"model": "boost", "n": 99}
    search = staged(clock=Spent(60, 5), warm_starts=[start], expected_seconds=dict.fromkeys(DEFAULTS, 1.0))
    done = [finished(place, model, SCORES[model]) for place, model in enumerate(["prior", "line", "boost"])]
    assert search.next_batch(done) == [start, DEFAULTS["forest"]]


@pytest.mark.parametrize(("seconds", "first"), [(5.0, False), (30.0, True)])
def test_a_network_that_takes_a_large_part_of_the_time_waits_for_the_warm_starts(seconds: float, first: bool) -> None:
    start, network = {"model": "boost", "n": 99}, DEFAULTS["forest"]
    expected = dict.fromkeys(DEFAULTS, 0.1) | {"forest": 2.0}
    search = staged(
        clock=Spent(seconds, 0), stages=STAGES | {"forest": "network"}, warm_starts=[start], expected_seconds=expected
    )
    done = [finished(place, model, SCORES[model], seconds=0.1) for place, model in enumerate(["prior", "line", "boost"])]
    assert search.next_batch(done)[:2] == ([network, start] if first else [start, network])


def test_with_a_time_budget_a_stage_far_behind_a_later_one_is_not_searched() -> None:
    done = [finished(place, model, SCORES[model]) for place, model in enumerate(["prior", "line", "boost", "forest"])]
    assert set(staged(clock=Spent(60, 5)).next_batch(done)) == {"boost"}


def test_with_time_left_the_number_of_trials_is_no_limit() -> None:
    done: Sequence[FinishedTrial] = [finished(place, "boost", 0.7 + place / 1000) for place in range(50)]
    done = [finished(50, "prior", 0.5), finished(51, "line", 0.6), finished(52, "forest", 0.6), *done]
    batch = staged(n_trials=20, clock=Spent(60, 30), searchable=["boost"]).next_batch(done)
    assert batch == ["boost"] * 4


def test_the_time_that_no_stage_uses_goes_to_the_best_one() -> None:
    scores = {"prior": 0.5, "line": 0.9, "forest": 0.6, "boost": 0.7}
    done = [finished(place, model, score) for place, (model, score) in enumerate(scores.items())]
    spent = staged(clock=Spent(60, 30))  # the share of the linear models is over, the other stages are far behind
    assert spent.next_batch(done) == ["line"] * 4
    assert spent.next_batch([*done, *(finished(4 + place, "line", 0.8) for place in range(24))]) == ["line"] * 4
    assert spent.next_batch([*done, *(finished(4 + place, "line", 0.8) for place in range(48))]) == [BLEND]
    assert staged(clock=Spent(60, 60)).next_batch(done) == [BLEND]


def test_warm_starts_follow_the_defaults_of_their_stage() -> None:
    start = {"model": "forest", "n": 99}
    stages = staged(warm_starts=[start])
    done = [finished(place, model, SCORES[model]) for place, model in enumerate(("prior", "line"))]
    batch: list[Request] = []
    while start not in batch:
        batch = stages.next_batch(done)
        assert batch
        done += [finished(len(done) + place, named(each), SCORES[named(each)]) for place, each in enumerate(batch)]
    assert batch.index(start) == batch.index(DEFAULTS["forest"]) + 1


@pytest.mark.parametrize("models", [["boost"], ["forest", "boost"], ["line"], ["prior", "boost"]])
def test_a_search_without_time_for_anything_tries_the_default_of_its_simplest_model(models: list[str]) -> None:
    few = {model: DEFAULTS[model] for model in models}
    slow = dict.fromkeys(models, 60.0)
    search = StagedSearch(few, STAGES, models, AUC, 20, 4, clock=Spent(1.0, spent=1.0), expected_seconds=slow)
    assert played(search) == [[models[0]]]


def test_a_trial_of_fewer_folds_is_compared_on_the_folds_that_both_have() -> None:
    gain, error = paired_gain((0.9, 0.8, 0.7), (0.5,), AUC)
    assert gain == pytest.approx(0.4)
    assert error == 0.0
