"""The model that train saved, as evaluate and explain load it."""

from pathlib import Path

from evergreen.tasks.core.errors import StepError
from evergreen.tasks.core.paths import JUDGED, MODEL, read_json
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Config, Fold, Model


def load_evaluated_model(folder: Path, problem: str, last: Fold) -> tuple[Model, Config]:
    """The model to evaluate, which knows no row of the test window `last`, and its configuration.

    Raises StepError where there is no model, or where it was trained for another test window than `last`.
    """
    path = folder / "model.json"
    if not path.exists():
        raise StepError(f"{path}: is missing. Run train first: python -P -m evergreen train {problem}")
    card = read_json(path)
    if card["cutoff"] != str(last.test) or card["trained_on"] != [str(part) for part in last.train]:
        raise StepError(
            f"{path}: was trained for the test window after {card['cutoff']}, and the last one now is after {last.test} "
            f"(or its training rows changed). Train again: python -P -m evergreen train {problem}"
        )
    evaluated = folder / JUDGED
    return skops_models.load(evaluated if evaluated.exists() else folder / MODEL), card["config"]
