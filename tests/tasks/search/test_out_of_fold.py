"""Out-of-fold predictions that a search keeps."""

from pathlib import Path

from evergreen.tasks.search.out_of_fold import OutOfFoldPredictions
from tests.tasks.search.test_ensemble import finished, noisy


def test_predictions_are_loaded_per_fold_until_they_are_removed(tmp_path: Path) -> None:
    predictions, frames = OutOfFoldPredictions(tmp_path / "kept"), noisy(1.0, rows=5, folds=3)[0]
    predictions.save(4, frames)
    predictions.save(5, frames)
    found = predictions.load(4)
    assert found is not None
    assert all(one.equals(other) for one, other in zip(found, frames, strict=True))
    predictions.keep_only([finished(5, "a", 1.0)])
    assert predictions.load(4) is None
    assert predictions.load(5) is not None
    predictions.clear()
    assert predictions.load(5) is None
