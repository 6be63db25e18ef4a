"""Threads and order of the suite, the projects that tests share, PostgreSQL and S3.

Each numeric library has one thread, as in a step: two halves of the suite run side by side on two cores.
"""

import fcntl
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from hypothesis import settings

from evergreen.tasks.__main__ import THREADS
from evergreen.tasks.core.paths import Layout
from tests import postgres as postgres_server

if TYPE_CHECKING:
    from tests.projects import Deployed

for name in THREADS:
    os.environ.setdefault(name, "1")

settings.register_profile("evergreen", deadline=None)  # a busy machine is no failure
settings.load_profile("evergreen")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests run first, so that the two workers end at about the same time. A worker takes a file at a time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def new_process() -> Iterator[None]:
    """What a server or a step says to its process once ends with the test that ran it in this one."""
    yield
    if database := sys.modules.get("evergreen.tasks.core.database"):
        database._impatient.clear()
    if time_budget := sys.modules.get("evergreen.tasks.search.time_budget"):
        time_budget._begun.clear()


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """(name, work) -> a folder that `work` fills, once in the run for all workers. Tests read it, or copy it."""
    own = tmp_path_factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, work: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name} done"
        with (base / f"{name} lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # a test that was interrupted may have left half of it
                work(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def deployed(make_once: MakeOnce) -> "Deployed":
    """Copies of a project with deployed versions; see there."""
    from tests import projects  # here: a test that needs no project does not pay for the imports

    def copy(folder: Path, names: tuple[str, ...], serve: str = "") -> Layout:
        made = make_once(f"deployed {' '.join(names)}", lambda place: projects.lay_deployed(place, names))
        layout = projects.copy(Layout(made), folder)
        with layout.params.open("a") as file:
            file.write(f"\n{serve}")
        return layout

    return copy


@pytest.fixture(scope="session")
def trained(make_once: MakeOnce) -> Layout:
    """The project of `lay_trained`. Tests leave it as it is."""
    from tests import projects

    return Layout(make_once("trained", projects.lay_trained))


@pytest.fixture(scope="session")
def database_server() -> Iterator[str]:
    """A PostgreSQL server of this run's own, on a socket in a folder of its own; the address of its first database."""
    if postgres_server.programs() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is not installed; on CI it must be")
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        server = postgres_server.Postgres(Path(name))
        server.start()
        try:
            yield server.address
        finally:
            server.stop()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The endpoint of a store with one bucket, which the environment names."""
    from tests import s3 as store

    with store.running() as endpoint:
        for name, value in store.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        yield endpoint


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database: in a file, and on a server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'evergreen.db'}"
    return request.getfixturevalue("postgres")


@pytest.fixture
def postgres(database_server: str) -> Iterator[str]:
    """The address of a new PostgreSQL database: what an earlier test left, or left running, does not reach it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    server = sa.create_engine(database_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as link:
        link.exec_driver_sql(f"CREATE DATABASE {name}")
    yield database_server.replace("/postgres?", f"/{name}?")
    with server.connect() as link:
        link.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
