"""Partitions of users, here or on a Dask cluster of two workers, give what all users at once give: the same to the bit."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.core import dask_cluster
from evergreen.tasks.core.errors import UnavailableError
from evergreen.tasks.problems.recommender import dask_partitions, interactions
from evergreen.tasks.problems.recommender.candidate_generation import BLOCK, Candidates
from evergreen.tasks.problems.recommender.user_histories import to_day
from tests import store
from tests.contracts import World, build

pytestmark = pytest.mark.slow

ARRAYS = ("row", "item", "bought", "features")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Enough households for three partitions of one block."""
    with pytest.MonkeyPatch.context() as patch:
        make = store.make
        patch.setattr(store, "make", lambda folder, households, weeks, seed: make(folder, 2 * BLOCK + 8, weeks, seed))
        return build("recommend", tmp_path_factory.mktemp("partitions"))


@pytest.fixture(scope="module")
def model(world: World) -> Any:
    return world.fit(world.defaults("two_stage"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as found:
        yield found


def known(world: World, model: Any) -> tuple[Any, ...]:
    histories = world.data.histories.until(to_day(world.fold.test))
    return model.learned_, histories, np.arange(len(histories.users)), to_day(world.fold.test), model.settings


def same(one: Candidates, other: Candidates) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in ARRAYS)


def executed(cluster: Any) -> list[int]:
    """Number of tasks that each worker has done."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        return list(client.run(lambda dask_worker: dask_worker.state.executed_count).values())


def test_candidates_of_partitions_are_those_of_all_users_at_once(world, model, monkeypatch):
    learned, *rest = known(world, model)
    whole = learned.propose(*rest)
    monkeypatch.setattr(dask_partitions, "PARTITION", BLOCK)
    parts = dask_partitions.propose(learned, *rest)
    assert len(np.unique(parts.row)) == len(rest[1]) > 2 * BLOCK
    assert same(parts, whole)


def test_a_cluster_gives_the_same_candidates_lists_scores_and_ranker_to_the_bit(world, model, cluster, monkeypatch):
    monkeypatch.setattr(dask_partitions, "PARTITION", BLOCK)
    monkeypatch.setattr(interactions, "MAX_SHARED_USERS", 0)
    here = answers(world, model)
    monkeypatch.setenv(dask_cluster.ADDRESS, cluster.scheduler_address)
    before = executed(cluster)
    there = answers(world, model)
    assert all(now > then for now, then in zip(executed(cluster), before, strict=True))
    assert same(here[0], there[0])
    assert here[1].equals(there[1])
    assert world.fit(world.defaults("two_stage"), fresh(world)).ranker_ == model.ranker_


def answers(world: World, model: Any) -> tuple[Candidates, pl.DataFrame]:
    return dask_partitions.propose(*known(world, model)), world.predict(model, fresh(world))


def fresh(world: World) -> Any:
    """The same data, with nothing kept of what was made of it."""
    return world.kind.load(world.folder / "features", world.section)


def test_large_shops_are_ranked_without_keeping_candidates_and_get_the_same_lists(world, model, monkeypatch):
    kept = world.predict(model)
    monkeypatch.setattr(interactions, "MAX_SHARED_USERS", 0)
    monkeypatch.setattr(dask_partitions, "PARTITION", BLOCK)
    data = fresh(world)
    assert world.predict(model, data).equals(kept)
    assert not data._proposed


def test_the_ranker_of_a_large_shop_learns_from_drawn_users_alone_and_from_the_same_ones(world, monkeypatch):
    config, few = world.defaults("two_stage"), world.section.pipeline.model_copy(update={"ranker_users": 100})
    section = world.section.model_copy(update={"pipeline": few})
    one = world.kind.fit(fresh(world), world.fold.train, config, section, 7)
    monkeypatch.setattr(interactions, "MAX_SHARED_USERS", 0)
    assert world.kind.fit(fresh(world), world.fold.train, config, section, 7).ranker_ == one.ranker_


def test_a_scheduler_that_does_not_answer_is_named(world, model, monkeypatch):
    monkeypatch.setattr(dask_partitions, "PARTITION", BLOCK)
    monkeypatch.setattr(dask_cluster, "WAIT", "1s")
    monkeypatch.setenv(dask_cluster.ADDRESS, "tcp://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"EVERGREEN_DASK = tcp://127\.0\.0\.1:9: no scheduler answers .*or unset it"):
        dask_partitions.propose(*known(world, model))
