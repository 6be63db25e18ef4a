"""The saved model: its training rows, and its card."""

import json
import math
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from evergreen.tasks import train
from evergreen.tasks.core.errors import DataError, StepError
from evergreen.tasks.core.paths import Layout, read_json, write_json
from evergreen.tasks.model_files import skops_models
from tests import plain_kind
from tests.plain_kind import HORIZON, Plain

CONFIG = {"model": "ridge", "alpha": 0.1, "intercept": True}


def tuned(layout: Layout) -> None:
    write_json(layout.tuning("pay") / "best.json", {"config": CONFIG})


def test_the_saved_model_is_fitted_without_labels_of_the_last_window(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    tuned(layout)
    result = train.run(params, "pay", layout)
    newest = plain_kind.FIRST + timedelta(days=7 * HORIZON)
    assert result.cutoff == str(newest)
    ((cutoffs, config),) = plain.fitted
    assert config == CONFIG
    assert cutoffs == tuple(plain_kind.FIRST + timedelta(days=place * HORIZON) for place in range(7))
    assert result.rows == 7 * 60


def test_history_days_limits_the_training_rows(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, train={"history_days": 14})
    tuned(layout)
    train.run(params, "pay", layout)
    assert [len(cutoffs) for cutoffs, _ in plain.fitted] == [2]


def test_the_saved_model_predicts_and_its_card_describes_it(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    tuned(layout)
    result = train.run(params, "pay", layout)
    model, card = skops_models.load(Path(result.model)), read_json(Path(result.card))
    assert model.predict([[1.0]])[0] == pytest.approx(3.0, abs=0.2)
    assert (card["problem"], card["kind"], card["config"], card["cutoff"]) == (
        "pay",
        "regression",
        CONFIG,
        result.cutoff,
    )
    assert (len(card["trained_on"]), card["rows"], card["features"]) == (7, 420, ["x"])
    assert card["importance"]["x"] == pytest.approx(3.0, abs=0.2)
    assert [list(row) for row in card["example"]] == [["x"]] * 3


def test_the_same_seed_and_data_give_the_same_file(plain: Plain, tmp_path: Path) -> None:
    cards = []
    for name in ("one", "two"):
        params, layout = plain_kind.project(tmp_path / name)
        tuned(layout)
        train.run(params, "pay", layout)
        cards.append((layout.model("pay") / "model.json").read_bytes())
    assert cards[0] == cards[1]


def test_without_tuning_train_says_which_step_to_run(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path)
    with pytest.raises(StepError, match=r"best.json: is missing\. Run tune first: python -P -m evergreen tune pay"):
        train.run(params, "pay", layout)


def test_too_little_history_is_refused(plain: Plain, tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, plain_kind.rows(cutoffs=2))
    tuned(layout)
    with pytest.raises(DataError, match="2 labelled cutoffs give 1 of 2 windows"):
        train.run(params, "pay", layout)


def test_a_failed_fit_keeps_the_model_before(plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, layout = plain_kind.project(tmp_path)
    tuned(layout)
    before = Path(train.run(params, "pay", layout).card).read_bytes()
    monkeypatch.setattr(skops_models, "save", lambda model, path: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        train.run(params, "pay", layout)
    assert (layout.model("pay") / "model.json").read_bytes() == before
    assert sorted(path.name for path in layout.model("pay").parent.iterdir()) == ["model", "tuning"]


def test_json_takes_numpy_and_missing_numbers() -> None:
    row = [np.float64(1.5), np.int64(2), math.nan, np.array([1.0, np.inf]), "a", None]
    assert json.dumps(train._plain(row), allow_nan=False) == '[1.5, 2, null, [1.0, null], "a", null]'
