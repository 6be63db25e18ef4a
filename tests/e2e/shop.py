"""Whole projects on the small store, each in its own git and DVC repository, in a folder with a space in its name."""

import os
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from tests import store

PROBLEMS = ("recommend", "redeem", "spend", "segments")
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "EVERGREEN", "PYTHONDONTWRITE"))},
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    **{
        f"GIT_{who}_{part}": value for who in ("AUTHOR", "COMMITTER") for part, value in (("NAME", "ada"), ("EMAIL", "a@b.org"))
    },
}


class Shop:
    """A project folder and what one does in it."""

    def __init__(self, root: Path, problems: tuple[str, ...] = PROBLEMS) -> None:
        self.root = store.project(root, households=120, weeks=24)
        self._keep(problems)
        for line in ("git init -q", "dvc init -q", "git add -A", "git commit -qm begin"):
            self.run(*line.split())

    def _keep(self, problems: tuple[str, ...]) -> None:
        path, yaml = self.root / "params.yaml", YAML()
        whole = yaml.load(path.read_text())
        for name in set(whole["problems"]) - set(problems):
            del whole["problems"][name], whole[name]
        with path.open("w") as file:
            yaml.dump(whole, file)

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command here; its exit status must be `code`."""
        done = subprocess.run(words, cwd=self.root, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=self.root, env=ENVIRONMENT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
