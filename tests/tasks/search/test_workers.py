"""Trials have the same outcome in this process, in two worker processes, and on a Dask cluster of two workers."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evergreen.tasks.core import dask_cluster, library_warnings
from evergreen.tasks.core.errors import UnavailableError
from evergreen.tasks.problems.base import Config
from evergreen.tasks.search import workers
from evergreen.tasks.search.optuna_study import run_search
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import Outcome
from evergreen.tasks.search.workers import OUT_OF_TIME, Workers, available_workers, worker_count
from tests.tasks.search.toy_search import configs, searching


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as found:
        yield found


def where(config: Config, best_scores: Any = None) -> Outcome:
    """The process that it ran in, as a score."""
    time.sleep(0.2)
    return Outcome([float(os.getpid()), float(config["n"])])


def deadly(config: Config, best_scores: Any = None) -> Outcome:
    if config["n"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(5 * (config["n"] == 2))
    return Outcome([1.0])


def loud(config: Config, best_scores: Any = None) -> Outcome:
    for _ in range(5):
        warnings.warn("of a library", UserWarning, stacklevel=1)
    time.sleep(0.2)
    return Outcome([1.0])


def asked(count: int) -> list[Config]:
    return [{"model": "line", "n": place} for place in range(count)]


def test_a_search_finds_the_same_here_in_two_processes_and_on_a_cluster(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run_search(searching(batch_size=3, workers=1), tmp_path / "pay-a.log")
    beside = run_search(searching(batch_size=3, workers=2), tmp_path / "pay-bb.log")
    monkeypatch.setenv(dask_cluster.ADDRESS, cluster.scheduler_address)
    away = run_search(searching(batch_size=3, workers=2), tmp_path / "pay-ccc.log")
    assert len(configs(here)) == 12
    assert configs(here) == configs(beside) == configs(away)
    assert [each.folds for each in here] == [each.folds for each in beside] == [each.folds for each in away]


def test_trials_of_a_batch_run_in_other_processes_and_come_back_in_order() -> None:
    found = list(Workers(2).run(where, asked(4), None))
    assert [outcome.scores[1] for outcome in found] == [0, 1, 2, 3]
    assert os.getpid() not in {outcome.scores[0] for outcome in found}


def test_warnings_of_worker_processes_are_counted_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with library_warnings.counting() as found:
        assert len(list(Workers(2).run(loud, asked(3), None))) == 3
    assert found.lines() == ["Python: UserWarning (15 times): of a library"]
    assert "of a library" not in capfd.readouterr().err


def test_a_cluster_is_used_where_the_environment_names_one(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dask_cluster.ADDRESS, cluster.scheduler_address)
    there = available_workers(4, None, Clock(None))
    processes = {float(nanny.pid) for nanny in cluster.workers.values()}
    found = list(there.run(where, asked(4), None))
    there.close()
    assert {outcome.scores[0] for outcome in found} <= processes


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "WAIT", "0.5s")
    away = Workers(2, address="tcp://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"EVERGREEN_DASK = tcp://127\.0\.0\.1:9: no scheduler answers .*or unset it"):
        list(away.run(where, asked(2), None))


def test_when_the_time_is_over_unfinished_trials_fail_and_finished_ones_count() -> None:
    found = list(Workers(1, Clock(-1.0)).run(where, asked(2), None))
    assert [outcome.reason for outcome in found] == [OUT_OF_TIME, OUT_OF_TIME]
    warm = Workers(2)
    list(warm.run(where, asked(2), None))
    found = list(Workers(2, Clock(2.0)).run(deadly, [{"n": 0}, {"n": 2}, {"n": 2}], None))
    assert [outcome.reason for outcome in found] == [None, OUT_OF_TIME, OUT_OF_TIME]


def test_a_process_that_is_killed_fails_its_trials_and_no_more() -> None:
    found = list(Workers(2).run(deadly, [{"n": 0}, {"n": 1}], None))
    assert "killed, perhaps for lack of memory" in str(found[1].reason)
    assert [each.reason for each in Workers(2).run(where, asked(2), None)] == [None, None]


def test_there_are_never_more_processes_than_trials_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workers.WORKERS, "3")
    assert [worker_count(None, 1), worker_count(None, 2), worker_count(None, 8), worker_count(5, 8)] == [1, 2, 3, 5]
