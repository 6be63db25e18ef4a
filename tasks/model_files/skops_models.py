"""Fitted models on disk: skops files, no pickle. The types that may be loaded are listed here, not read from the file."""

import json
import zipfile
from pathlib import Path
from typing import Any

from skops import io
from skops.io.exceptions import UntrustedTypesFoundException

from evergreen import model_types
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.core.paths import writing

TRUSTED = (
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRanker",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "scipy.sparse._csr.csr_array",
    "sklearn.feature_selection._univariate_selection.f_classif",
    "sklearn.feature_selection._univariate_selection.f_regression",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.tree._tree.Tree",
    *(f"{model_types.__name__}.{name}" for name in model_types.HOMES),
)
"""Types a model may hold beyond those of scikit-learn and NumPy that skops trusts itself: by full name."""


def save(model: Any, path: Path) -> None:
    """Write a fitted estimator to `path`, atomically. Raises ModelError for a type that `load` would refuse."""
    with writing(path) as scratch:
        io.dump(model, scratch)
        _check(scratch, path)
        _normalise(scratch)


def load(path: Path) -> Any:
    """Read a fitted estimator.

    Raises ModelError for a missing or invalid file, and for one that holds a type outside TRUSTED.
    """
    _check(path, path)
    return io.load(path, trusted=list(TRUSTED))


def _normalise(file: Path) -> None:
    """Make the same model the same bytes, so that DVC recognises it: skops writes times and memory addresses.

    Each address becomes a number, in the order of first mention.
    """
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    numbers: dict[str, int] = {}

    def renumber(node: dict[str, Any]) -> dict[str, Any]:
        if "__id__" in node:
            node["__id__"] = numbers.setdefault(str(node["__id__"]), len(numbers) + 1)
        if isinstance(name := node.get("file"), str) and name in parts:
            address, dot, suffix = name.partition(".")
            node["file"] = f"{numbers.setdefault(address, len(numbers) + 1)}{dot}{suffix}"
            renamed[node["file"]] = parts[name]
        return node

    renamed: dict[str, bytes] = {}
    schema = json.loads(parts["schema.json"], object_hook=renumber)
    renamed["schema.json"] = json.dumps(schema, indent=2).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in renamed.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def _check(file: Path, shown: Path) -> None:
    """Raise ModelError for an invalid `file`, named `shown`, before anything in it is built."""
    try:
        untrusted = sorted(set(io.get_untrusted_types(file=file)) - set(TRUSTED))
    except (OSError, KeyError, zipfile.BadZipFile, UntrustedTypesFoundException) as error:
        raise ModelError(f"{shown}: not a readable model: {error}. Train it again.") from error
    if untrusted:
        raise ModelError(
            f"{shown}: holds {', '.join(untrusted)}, which is not in TRUSTED of tasks/model_files/skops_models.py. "
            "Do not load the file if you did not make it; add a type of your own to HOMES of evergreen.model_types."
        )
