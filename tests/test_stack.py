"""The pinned libraries work together: each is called once, where a wrong neighbour's version would break it."""

import pandas as pd
import pytest

from tests import ROOT


def test_prefect_accepts_what_its_own_client_sends():
    """FastAPI above 0.150 answers a null in a request body with 422."""
    from fastapi import FastAPI
    from fastapi.params import Body
    from fastapi.testclient import TestClient

    app = FastAPI()

    @app.post("/filter")
    def read(limit: int = Body(200, embed=True)) -> int:
        return limit

    assert TestClient(app).post("/filter", json={"limit": None}).json() == 200


def test_sqlalchemy_is_below_what_stops_prefects_scheduler():
    import sqlalchemy

    assert sqlalchemy.__version__.startswith("2.0.")


def test_pandas_is_below_what_breaks_evidently():
    assert pd.__version__.startswith("3.0.")


@pytest.mark.parametrize(
    "library", ["prefect", "dvc", "mlflow", "great_expectations", "optuna", "sklearn", "lightgbm", "skops", "polars"]
)
def test_a_pinned_library_is_installed_at_its_pin(library):
    import re
    from importlib.metadata import version

    name = {"great_expectations": "great-expectations", "sklearn": "scikit-learn"}.get(library, library)
    lock = (ROOT / "requirements.lock").read_text()
    assert re.search(rf"^{name}==([^ ;]+)", lock, re.M).group(1) == version(name)
