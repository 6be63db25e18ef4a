"""Parts on a cluster: a worker that dies is replaced, the scheduler's death is one line, and so is a part that ends workers."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evergreen.tasks.core import dask_cluster
from evergreen.tasks.core.errors import UnavailableError
from evergreen.tasks.search.workers import Workers

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as found:
        yield found


def squared(folder: Path, number: int) -> int:
    """`number` squared; 3 kills its worker the first time, 99 each time."""
    if number == 99 or (number == 3 and not (folder / "killed").exists()):
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def slow(first: Any, second: Any) -> Any:
    time.sleep(30)
    return first, second


def test_a_part_whose_worker_dies_is_computed_again(cluster: Any, tmp_path: Path):
    found = dask_cluster.each(cluster.scheduler_address, squared, tmp_path, [(number,) for number in range(6)])
    assert list(found) == [0, 1, 4, 9, 16, 25]
    assert (tmp_path / "killed").exists()


def test_a_part_that_ends_several_workers_is_one_line(cluster: Any, tmp_path: Path):
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 1))
    with pytest.raises(UnavailableError, match=r"part 1 of 1 ended \d workers, perhaps for lack of memory.*_MEMORY_MB"):
        list(dask_cluster.each(cluster.scheduler_address, squared, tmp_path, [(99,)]))


def test_a_cluster_without_workers_is_one_line_at_the_start_and_while_parts_are_made(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(dask_cluster, "WORKER_SECONDS", 0.5)
    found = dask_cluster.each(cluster.scheduler_address, squared, Path(), [(2,), (4,), (60,)])
    assert next(found) == 4
    begun = dask_cluster.each(cluster.scheduler_address, slow, None, [(1,)])
    threading.Timer(1.0, cluster.scale, [0]).start()
    for unfinished in (begun, dask_cluster.each(cluster.scheduler_address, squared, Path(), [(2,)])):
        with pytest.raises(
            UnavailableError, match=r"EVERGREEN_DASK = .*: has had no worker for 0 s\. Start dask worker tcp://.*, or unset it"
        ):
            list(unfinished)
    assert caplog.text.count("has no worker; waits for one for 0 s") == 2


def told(shared: str, number: int) -> str:
    time.sleep(0.02)
    return f"{shared} {number}"


def test_two_runs_on_one_cluster_at_once_get_their_own_results(cluster: Any):
    def run(name: str) -> list[str]:
        return list(dask_cluster.each(cluster.scheduler_address, told, name, [(number,) for number in range(20)]))

    names = ("north", "south")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, names))
    assert found == [[f"{name} {number}" for number in range(20)] for name in names]


@pytest.mark.parametrize("work", ["parts", "trials"])
def test_a_lost_scheduler_is_one_line(work: str, cluster: Any, caplog: pytest.LogCaptureFixture):
    threading.Timer(1.0, cluster.close).start()
    found = {
        "parts": dask_cluster.each(cluster.scheduler_address, slow, None, [(1,), (2,)]),
        "trials": Workers(2, address=cluster.scheduler_address).run(slow, [1, 2], None),
    }[work]
    with pytest.raises(UnavailableError, match=r"EVERGREEN_DASK = .*: the scheduler was lost .*run the same command again"):
        list(found)
    assert "Traceback" not in caplog.text


def test_the_environment_names_the_scheduler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(dask_cluster.ADDRESS, "")
    assert dask_cluster.address() is None
    monkeypatch.setenv(dask_cluster.ADDRESS, "tcp://127.0.0.1:9")
    assert dask_cluster.address() == "tcp://127.0.0.1:9"
