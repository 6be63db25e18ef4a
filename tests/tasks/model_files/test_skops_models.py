from importlib import import_module

import numpy as np
import pytest
from lightgbm import LGBMClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.model_files import skops_models


class Intruder(LinearRegression):
    """An estimator that nobody listed."""


def fitted(estimator):
    return estimator.fit(np.arange(8.0).reshape(4, 2), np.array([0, 1, 0, 1]))


def test_a_type_that_is_not_listed_is_not_saved_and_what_was_there_stays(tmp_path):
    path = tmp_path / "model.skops"
    skops_models.save(fitted(LogisticRegression()), path)
    before = path.read_bytes()
    with pytest.raises(ModelError, match=r"model\.skops: holds .*test_skops_models\.Intruder, which is not in TRUSTED"):
        skops_models.save(fitted(Intruder()), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model.skops"]


def test_a_file_that_holds_a_type_not_listed_is_not_loaded(tmp_path):
    path = tmp_path / "model.skops"
    skops_models.io.dump(fitted(Intruder()), path)
    with pytest.raises(ModelError, match=r"holds .*Intruder, which is not in TRUSTED .*Do not load the file"):
        skops_models.load(path)


def test_the_same_model_is_the_same_file_and_loads_unchanged(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    first, second = (make_pipeline(StandardScaler(), LGBMClassifier(n_estimators=3, verbose=-1)) for _ in range(2))
    for number, model in enumerate((first, second)):
        skops_models.save(model.fit(x, x[:, 0] > 0), tmp_path / f"{number}.skops")
    assert (tmp_path / "0.skops").read_bytes() == (tmp_path / "1.skops").read_bytes()
    np.testing.assert_array_equal(skops_models.load(tmp_path / "0.skops").predict_proba(x), first.predict_proba(x))


@pytest.mark.parametrize("content", [b"", b"no model", b"\x80\x04K\x01."])
def test_an_invalid_file_is_refused(tmp_path, content):
    path = tmp_path / "model.skops"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.skops: not a readable model: .*Train it again"):
        skops_models.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model\.skops: not a readable model: .*No such file"):
        skops_models.load(tmp_path / "model.skops")


def test_every_trusted_type_exists():
    for name in skops_models.TRUSTED:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name
