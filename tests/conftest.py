"""One thread for each numeric library, as in a step: two halves of the suite run side by side on two cores. And PostgreSQL."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings

from evergreen.tasks.__main__ import THREADS

for name in THREADS:
    os.environ.setdefault(name, "1")

settings.register_profile("evergreen", deadline=None)  # a busy machine is no failure
settings.load_profile("evergreen")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of this run's own, on a socket in a folder of its own; the address of its database."""
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path(shutil.which("pg_ctl") or "").parent]
    programs = next((each for each in found if (each / "initdb").exists()), None)
    if programs is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is not installed; on CI it must be")
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        folder = Path(name)
        root = os.geteuid() == 0
        if root:
            shutil.chown(folder, "postgres")

        def call(program: str, *arguments: str) -> None:
            command = [str(programs / program), *arguments]
            as_user = ["runuser", "-u", "postgres", "--", *command] if root else command
            subprocess.run(as_user, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=60)

        call("initdb", "-D", f"{folder}/data", "-U", "evergreen", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off -c timezone=UTC"
        call("pg_ctl", "-D", f"{folder}/data", "-l", f"{folder}/log", "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://evergreen@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database: in a file, and on a server."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'evergreen.db'}"
        return
    found = request.getfixturevalue("postgres")
    yield found
    engine, tables = sa.create_engine(found), sa.MetaData()
    tables.reflect(engine)
    tables.drop_all(engine)
    engine.dispose()
