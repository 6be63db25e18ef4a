"""A PostgreSQL server in a folder of its own, on a socket there, which can be stopped and started again."""

import os
import shutil
import subprocess
from pathlib import Path


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path(shutil.which("pg_ctl") or "").parent]
    return next((each for each in found if (each / "initdb").exists()), None)


class Postgres:
    """`folder`: empty, with a path of at most 90 characters. As root, the server runs as the user postgres."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"postgresql+psycopg://evergreen@/postgres?host={folder}"
        """SQLAlchemy address of its database."""
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        self._call("initdb", "-D", "data", "-U", "evergreen", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' -c fsync=off -c timezone=UTC"
        self._call("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")

    def stop(self) -> None:
        """At once, as in a crash: connections end, and the next start recovers what was committed."""
        self._call("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def _call(self, program: str, *arguments: str) -> None:
        found = programs()
        assert found, "PostgreSQL is not installed"
        command = [str(found / program), *arguments]
        as_user = ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command
        subprocess.run(as_user, check=True, cwd=self._folder, stdout=subprocess.DEVNULL, timeout=60)
