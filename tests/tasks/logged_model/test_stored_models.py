"""Models as earlier code logged them, one file each: MLflow still loads them, with the code that they bring."""

import json
import zipfile
from pathlib import Path

import mlflow
import pytest

STORED = sorted((Path(__file__).parent / "stored").glob("*.zip"))


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_a_model_of_the_past_still_predicts_its_example(file: Path, tmp_path: Path):
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path)
    model = mlflow.pyfunc.load_model(str(tmp_path))
    example = model.input_example
    assert example is not None
    assert len(model.predict(example)) == len(json.loads((tmp_path / "input_example.json").read_text())["data"]) > 0


def test_there_is_one_of_each_form():
    assert {file.stem for file in STORED} >= {"dear", "spend", "recommend"}
