"""Model files name our types by one public path, whatever module defines them."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.base import clone

from evergreen import model_types
from evergreen.model_types import HOMES, stored_type
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.tabular.preprocessing import FrequencyEncoder, SignedLog
from tests import ROOT

COLUMN = np.array([["a"], ["b"], ["a"]])


def run(code: str, folder: Path) -> str:
    """What `code` prints in a process of its own, which imports from `folder` too."""
    paths = f"import sys; sys.path[:0] = [{str(ROOT / 'src')!r}, {str(folder)!r}]\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", HOMES)
def test_a_stored_type_is_defined_at_its_home_and_bears_the_public_path(name):
    found = getattr(model_types, name)
    assert found.__module__ == "evergreen.model_types"
    assert found is getattr(sys.modules[HOMES[name]], name)


def test_the_trusted_types_of_ours_are_those_of_the_public_path():
    ours = {name for name in skops_models.TRUSTED if name.startswith("evergreen.")}
    assert ours == {f"evergreen.model_types.{name}" for name in HOMES}


def test_importing_the_public_path_imports_no_library(tmp_path):
    code = "before = set(sys.modules); import evergreen.model_types; print(*set(sys.modules) - before)"
    packages = {name.partition(".")[0] for name in run(code, tmp_path).split()}
    assert packages - sys.stdlib_module_names == {"evergreen"}


def test_a_model_loads_after_its_class_has_moved(tmp_path):
    skops_models.save(SignedLog().fit(np.ones((2, 3))), tmp_path / "model.skops")
    (tmp_path / "moved.py").write_text(
        "from sklearn.base import BaseEstimator, TransformerMixin\n"
        "from evergreen.model_types import stored_type\n"
        "@stored_type\n"
        "class SignedLog(TransformerMixin, BaseEstimator): ...\n"
    )
    code = f"""
from pathlib import Path
from evergreen import model_types
old = model_types.HOMES["SignedLog"]
model_types.HOMES["SignedLog"] = "moved"
from evergreen.tasks.model_files import skops_models
model = skops_models.load(Path({str(tmp_path / "model.skops")!r}))
import moved
print(type(model) is moved.SignedLog, model.columns_, old in sys.modules)
"""
    assert run(code, tmp_path) == "True 3 False"


def test_a_stored_type_is_pickled_and_cloned():
    encoder = FrequencyEncoder().fit(COLUMN)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).transform(COLUMN), encoder.transform(COLUMN))  # noqa: S301
    assert type(clone(encoder)) is FrequencyEncoder


def test_a_stored_type_passes_between_processes():
    model, found = Parallel(n_jobs=2, backend="loky")(
        [delayed(FrequencyEncoder().fit)(COLUMN), delayed(FrequencyEncoder().fit_transform)(COLUMN)]
    )
    assert isinstance(model, FrequencyEncoder)
    np.testing.assert_array_equal(model.transform(COLUMN), found)


def test_a_type_that_homes_does_not_list_under_its_module_is_refused():
    class Segmenter: ...

    with pytest.raises(
        TypeError, match=r"test_model_types\.Segmenter: HOMES .* has evergreen.tasks.problems.clustering.kind; write"
    ):
        stored_type(Segmenter)

    def new() -> None: ...

    with pytest.raises(TypeError, match=r"test_model_types\.new: HOMES .* has no such name; write"):
        stored_type(new)


def test_a_name_that_is_not_listed_is_not_found():
    with pytest.raises(AttributeError, match=r"module evergreen\.model_types has no attribute Frequency"):
        _ = model_types.Frequency
