"""The configuration that a search selected, as the later steps read it from best.json."""

from pathlib import Path
from typing import Any

from evergreen.tasks.core.errors import StepError
from evergreen.tasks.core.paths import read_json
from evergreen.tasks.problems.base import Config


def load_best_config(folder: Path, problem: str) -> Config:
    """The selected configuration. Raises StepError where there is none."""
    path = folder / "best.json"
    if not path.exists():
        raise StepError(f"{path}: is missing. Run tune first: python -P -m evergreen tune {problem}")
    return read_json(path)["config"]


def summarise_search(folder: Path) -> dict[str, Any]:
    """What model.json and evaluation.json repeat of a search: metric, score, and the results of nested cross-validation."""
    summary = read_json(folder / "best.json")
    return {name: summary[name] for name in ("metric", "score", "std", "nested", "search_gain") if name in summary}
