"""Registered models, loaded by MLflow's own functions: the input is the csv of training as pandas reads it in many ways."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from evergreen.flows import settings
from evergreen.flows.operations import batch_scoring
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from tests import ROOT
from tests.conftest import MakeOnce
from tests.projects import Deployed
from tests.tasks.logged_model import tables

GERMAN: dict[str, Any] = {"sep": ";"}
CODES = {"zip": str}
TEXTS = {"zip": str, "joined": str}
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "with codes as text": lambda path: pd.read_csv(path, **GERMAN, dtype=CODES),
    "all as text": lambda path: pd.read_csv(path, **GERMAN, dtype=str),
    "with the decimal comma": lambda path: pd.read_csv(path, **GERMAN, dtype=TEXTS, decimal=",", thousands="."),
    "with dates": lambda path: pd.read_csv(path, **GERMAN, dtype=CODES, parse_dates=["joined"], date_format="%d.%m.%Y"),
    "with categories": lambda path: pd.read_csv(path, **GERMAN, dtype={"town": "category", "zip": "category"}),
    "nullable": lambda path: pd.read_csv(path, **GERMAN, dtype=CODES, dtype_backend="numpy_nullable"),
    "arrow": lambda path: pd.read_csv(path, **GERMAN, dtype=CODES, dtype_backend="pyarrow"),
    "converted": lambda path: pd.read_csv(path, **GERMAN, dtype=TEXTS, decimal=",", thousands=".").convert_dtypes(),
    "as objects": lambda path: pd.read_csv(path, **GERMAN, dtype=CODES).astype(object),
    "complete rows": lambda path: pd.read_csv(path, **GERMAN, dtype=CODES).dropna().reset_index(drop=True),
}


@pytest.fixture(scope="module")
def people(make_once: MakeOnce) -> Layout:
    return Layout(make_once("people", tables.lay_trained))


@pytest.fixture
def model(people: Layout, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.read(people).mlflow_uri)
    monkeypatch.chdir(people.root)  # the store of a project names its files relative to it
    return mlflow.pyfunc.load_model("models:/left@champion")


@pytest.fixture(scope="module")
def expected(people: Layout, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What `evergreen score` predicts for the file."""
    out = tmp_path_factory.mktemp("scored") / "out.parquet"
    params = loading.load(people.params)
    batch_scoring.run(people, params, "left", people.root / "people.csv", out, None)
    return pd.read_parquet(out)


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_the_csv_of_training_is_accepted_however_pandas_reads_it(
    read: Callable[[Path], pd.DataFrame], model: Any, people: Layout, expected: pd.DataFrame
):
    frame = read(people.root / "people.csv")
    kept = expected if len(frame) == len(expected) else expected[frame_of(people).notna().all(axis=1)].reset_index(drop=True)
    found = model.predict(frame, params={"output": "all"})
    assert found["prediction"].tolist() == kept["prediction"].tolist()
    np.testing.assert_allclose(found["probability_yes"], kept["probability_yes"], atol=1e-9)


def frame_of(layout: Layout) -> pd.DataFrame:
    return pd.read_csv(layout.root / "people.csv", sep=";", dtype=CODES)


@pytest.mark.slow
def test_the_signature_is_the_data_contract(model: Any):
    inputs = {each.name: (each.type.name, each.required) for each in model.metadata.signature.inputs}
    assert inputs == {
        "age": ("double", True),
        "visits": ("double", False),
        "paid": ("string", False),  # 50,12 in the file
        "member": ("string", True),
        "town": ("string", True),
        "joined": ("string", True),
        "price": ("string", True),
        "zip": ("string", True),
    }
    outputs = [(each.name, each.type.name) for each in model.metadata.signature.outputs]
    assert outputs == [("prediction", "string"), ("probability_no", "double"), ("probability_yes", "double")]


@pytest.mark.slow
def test_a_classifier_gives_labels_probabilities_or_both(model: Any, people: Layout):
    frame = frame_of(people).head(3)
    labels = model.predict(frame)
    chances = model.predict(frame, params={"output": "probabilities"})
    assert set(labels) <= {"yes", "no"}
    assert list(chances) == ["probability_no", "probability_yes"]
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    with pytest.raises(Exception, match="output = odds: must be one of prediction, probabilities, all"):
        model.predict(frame, params={"output": "odds"})


@pytest.mark.slow
def test_an_optional_column_may_be_absent_and_a_required_one_not(model: Any, people: Layout):
    frame = frame_of(people).head(3)
    without = model.predict(frame.drop(columns="visits"), params={"output": "all"})
    empty = model.predict(frame.assign(visits=np.nan), params={"output": "all"})
    pd.testing.assert_frame_equal(without, empty)
    with pytest.raises(MlflowException, match=r"missing inputs.*town"):
        model.predict(frame.drop(columns="town"))


@pytest.mark.slow
def test_a_value_that_its_type_does_not_allow_is_an_error_with_its_row(model: Any, people: Layout):
    frame = frame_of(people).head(3)
    frame.loc[1, "joined"] = "the day after"
    with pytest.raises(Exception, match=r"joined = the day after \(row 1\): not a date\. Mend the value, or give null"):
        model.predict(frame)


@pytest.mark.slow
def test_rows_and_columns_as_objects_are_accepted(model: Any, people: Layout):
    rows = json.loads(frame_of(people).head(2).to_json(orient="records"))
    both = model.predict(rows).tolist()
    assert both == model.predict(frame_of(people).head(2)).tolist()
    assert model.predict(rows[0]).tolist() == both[:1]
    assert model.predict({name: [row[name] for row in rows] for name in rows[0]}).tolist() == both


@pytest.mark.slow
def test_mlflow_evaluates_the_model(model: Any, people: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # MLflow writes artifacts there
    found = mlflow.models.evaluate(
        model, frame_of(people), targets="left", model_type="classifier", evaluator_config={"log_model_explainability": False}
    )
    assert found.metrics["accuracy_score"] > 0.6


def test_a_recommender_answers_lists_for_users_and_for_baskets(deployed: Deployed, tmp_path: Path, monkeypatch: Any):
    layout = deployed(tmp_path / "shop", ("recommend",))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.read(layout).mlflow_uri)
    monkeypatch.chdir(layout.root)
    model = mlflow.pyfunc.load_model("models:/recommend@champion")
    known = settings.registry(layout).load("recommend", 1)
    users = model.input_example
    found = model.predict(users)
    first = known.predict(users)
    assert found["items"].tolist() == [part["product_id"].tolist() for _, part in first.groupby("household_id", sort=False)]
    basket = found["items"][0][:2]
    session = model.predict(pd.DataFrame({"basket": [basket, ",".join(map(str, basket)), None]}), params={"k": 4})
    assert session["items"].map(len).tolist() == [4, 4, 4]
    assert session["items"][0] == session["items"][1]
    assert not set(session["items"][0]) & set(basket)
    with pytest.raises(Exception, match="needs household_id, basket, or both"):
        model.predict(pd.DataFrame({"age": [3]}))


@pytest.mark.slow
def test_a_version_brings_its_own_code_and_leaves_the_installed_package_alone(people: Layout, model: Any):
    home = type(model._model_impl).__module__
    assert home.startswith("evergreen_")
    assert home.endswith(".tasks.logged_model.row_scorer")
    assert sys.modules["evergreen.tasks"].__file__ == str(ROOT / "src" / "evergreen" / "tasks" / "__init__.py")
