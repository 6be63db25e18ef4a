"""Whole projects on the small store, each in its own git and DVC repository, in a folder with a space in its name."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ruamel.yaml import YAML

from tests import store

WEEKS = 24
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

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def lay(cls, root: Path, problems: Sequence[str]) -> Self:
        """A new project with `problems`, in a repository of its own."""
        shop = cls(store.project(root, households=120, weeks=WEEKS))
        for line in ("git init -q", "dvc init -q", "git add -A", "git commit -qm begin"):
            shop.run(*line.split())
        shop.keep(problems)
        return shop

    def keep(self, problems: Sequence[str]) -> None:
        """Have these problems alone in params.yaml, of those that were committed."""
        self.run("git", "checkout", "-q", "params.yaml")
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
