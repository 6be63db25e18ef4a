"""Clients that people have work unchanged: MLflow's, tritonclient, and one that openapi-python-client generates."""

import importlib
import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import tritonclient.http as triton
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from tritonclient.utils import InferenceServerException

from tests.projects import Deployed
from tests.serving.live import Live, serving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*'epoch' date formatting")]

FRAME = pd.DataFrame(
    {
        "size": [100.0, np.nan, 55.5, 70.0],
        "colour": ["red", None, "blue", "green"],
        "built": pd.to_datetime(["1990-05-01", "2001-12-31", None, "2010-06-15"]),
    }
)
ROWS = [
    {"size": 100.0, "colour": "red", "built": "1990-05-01"},
    {"size": None, "colour": None, "built": "2001-12-31"},
    {"size": 55.5, "colour": "blue", "built": None},
    {"size": 70.0, "colour": "green", "built": "2010-06-15"},
]


@pytest.fixture(scope="module")
def live(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("clients") / "shop"
    with serving(deployed(folder, ("dear", "redeem", "spend", "recommend"), "serve: {default_problem: dear}\n")) as found:
        yield found


@pytest.fixture(scope="module")
def expected(live: Live) -> list[dict[str, Any]]:
    """The predictions for ROWS, in the plain protocol."""
    return live.client.post("/v1/predict/dear", json=ROWS).json()["predictions"]


def probabilities(expected: list[dict[str, Any]]) -> list[float]:
    return [each["probability_yes"] for each in expected]


@pytest.fixture(scope="module")
def described(live: Live) -> dict[str, Any]:
    return live.client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def package(described: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the generated package, which can be imported."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(described))
    (folder / "config.yaml").write_text("post_hooks: []\n")
    command = [str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--path", "openapi.json"]
    done = subprocess.run(
        [*command, "--meta", "none", "--config", "config.yaml", "--output-path", "generated_shop_client"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    warned = re.findall(r"^WARNING .*\n\n(.*)$", done.stdout + done.stderr, re.M)
    assert set(warned) <= {"Unsupported content type text/csv"}  # of the two types of that body it takes JSON
    sys.path.insert(0, str(folder))
    yield "generated_shop_client"
    sys.path.remove(str(folder))


class TestMlflow:
    @pytest.fixture
    def client(self, live: Live) -> ScoringServerClient:
        return ScoringServerClient("127.0.0.1", live.port)

    def test_the_server_answers_its_questions_about_itself(self, client: ScoringServerClient):
        client.wait_server_ready(timeout=5)
        assert re.fullmatch(r"\d+\.\d+.*", client.get_version())

    @pytest.mark.parametrize(
        "data",
        [
            FRAME,
            FRAME.assign(colour=FRAME["colour"].astype("category")),
            FRAME.convert_dtypes(convert_integer=False, convert_floating=False),
            FRAME[["built", "size", "colour"]],
            FRAME.to_numpy(),
            FRAME.to_dict("records"),
            json.dumps({"dataframe_records": json.loads(FRAME.to_json(orient="records", date_format="epoch"))}),
            json.dumps({"dataframe_split": json.loads(FRAME.to_json(orient="split", date_format="epoch"))}),
            json.dumps({"instances": ROWS}),
            json.dumps({"inputs": {name: [row[name] for row in ROWS] for name in FRAME}}),
        ],
        ids=[
            "frame", "categories", "nullable", "order", "array", "records", "to_json records", "to_json split", "instances",
            "inputs",
        ],
    )  # fmt: skip
    def test_every_form_that_the_client_sends_is_answered_alike(self, data: Any, client: ScoringServerClient, expected):
        found = client.invoke(data)
        assert found.get_predictions()[0].tolist() == [each["prediction"] for each in expected]
        assert found["probability_yes"] == pytest.approx(probabilities(expected), abs=1e-12)
        assert "ignored_columns" not in found

    @pytest.mark.parametrize("frame", [FRAME, FRAME.assign(size=FRAME["size"].map("{:.3f}".format))], ids=["plain", "as text"])
    def test_a_frame_as_csv_is_answered_alike(self, frame: pd.DataFrame, live: Live, expected):
        for text in (frame.to_csv(index=False), frame.to_csv(index=False, quoting=1, lineterminator="\r\n")):
            found = requests.post(f"{live.url}/invocations", data=text, headers={"Content-Type": "text/csv"}, timeout=30).json()
            assert found["probability_yes"] == pytest.approx(probabilities(expected), abs=1e-12)

    def test_a_superfluous_column_is_ignored_and_named(self, client: ScoringServerClient, live: Live, expected):
        found = client.invoke(FRAME.assign(owner="ada", row=1))
        assert found["probability_yes"] == pytest.approx(probabilities(expected), abs=1e-12)
        assert found["ignored_columns"] == ["owner", "row"]
        indexed = requests.post(
            f"{live.url}/invocations", data=FRAME.to_csv(), headers={"Content-Type": "text/csv; charset=utf-8"}, timeout=30
        )
        assert indexed.json()["ignored_columns"] == [""]

    def test_a_setting_refuses_superfluous_columns(self, client: ScoringServerClient, live: Live, monkeypatch):
        params = live.app.service.params
        strict = params.model_copy(update={"serve": params.serve.model_copy(update={"unknown_columns": "refuse"})})
        monkeypatch.setattr(live.app.service, "params", strict)
        with pytest.raises(Exception, match=r"error code 422, .*owner = 'ada': unknown column of dear"):
            client.invoke(FRAME.assign(owner="ada"))

    def test_params_choose_and_unknown_ones_are_named(self, client: ScoringServerClient):
        found = client.invoke(FRAME, params={"explain": True, "temperature": 0.5})
        assert [each[0].keys() for each in found["explanations"]] == [{"column", "value", "contribution"}] * 4
        assert found["ignored_params"] == ["temperature"]
        assert "explanations" not in client.invoke(FRAME, params={"explain": False})

    @pytest.mark.parametrize("csv", [False, True], ids=["json", "csv"])
    def test_an_optional_column_may_be_left_out(self, csv: bool, client: ScoringServerClient, live: Live):
        """One that training had rows without; every value of it is missing then."""
        same, less = client.invoke(FRAME.assign(colour=None)), FRAME.drop(columns="colour")
        headers = {"Content-Type": "text/csv"}
        found: Any = (
            requests.post(f"{live.url}/invocations", data=less.to_csv(index=False), headers=headers, timeout=30).json()
            if csv
            else client.invoke(less)
        )
        assert found["probability_yes"] == pytest.approx(same["probability_yes"], abs=1e-12)

    def test_an_empty_frame_has_no_predictions(self, client: ScoringServerClient, live: Live):
        assert client.invoke(FRAME.head(0))["predictions"] == []
        text = FRAME.head(0).to_csv(index=False)
        found = requests.post(f"{live.url}/invocations", data=text, headers={"Content-Type": "text/csv"}, timeout=30)
        assert found.json()["predictions"] == []

    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            (FRAME.drop(columns=["size", "built"]), "422.*built: is missing from the row"),
            (FRAME.assign(size="big"), "422.*size = 'big': must be a finite number"),
            (FRAME.assign(built=1e300), "422.*built = 1e.300: must be a date"),
            (pd.DataFrame([[1, 2]], columns=["size", "size"]), "400.*duplicate column"),
        ],
        ids=["missing column", "type", "date", "duplicate"],
    )
    def test_an_invalid_frame_is_an_error_with_the_reason(self, frame: pd.DataFrame, reason: str, client: ScoringServerClient):
        with pytest.raises(Exception, match=reason):
            client.invoke(frame)


class TestTriton:
    @pytest.fixture
    def client(self, live: Live) -> Iterator[triton.InferenceServerClient]:
        with triton.InferenceServerClient(f"127.0.0.1:{live.port}") as found:
            yield found

    @staticmethod
    def tensors(binary: bool, rows: list[dict[str, Any]] = ROWS, missing: Any = None) -> list[triton.InferInput]:
        columns = {
            "size": np.array([np.nan if row["size"] is None else row["size"] for row in rows], dtype=np.float64),
            "colour": np.array([row["colour"] or missing for row in rows], dtype=object),
            "built": np.array([row["built"] or missing for row in rows], dtype=object),
        }
        found = []
        for name, values in columns.items():
            found.append(triton.InferInput(name, [len(rows)], "FP64" if name == "size" else "BYTES"))
            found[-1].set_data_from_numpy(values, binary_data=binary)
        return found

    def test_the_server_answers_its_questions_about_itself(self, client: triton.InferenceServerClient):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("dear")
        assert client.is_model_ready("dear", "1")
        assert not client.is_model_ready("dear", "99")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
        found = client.get_model_metadata("dear")
        assert {each["name"]: each["datatype"] for each in found["inputs"]} == {
            "size": "FP64",
            "colour": "BYTES",
            "built": "BYTES",
        }
        assert found["outputs"][0]["parameters"] == {"classes": ["no", "yes"]}
        assert client.get_model_metadata("dear", "1") == found

    @pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    @pytest.mark.parametrize("missing", [None, "", np.nan, pd.NaT, pd.NA], ids=str)
    def test_rows_are_answered_alike_however_they_are_sent(
        self, missing: Any, binary: bool, compression: str | None, client: triton.InferenceServerClient, expected
    ):
        many = 40  # long enough for a compressed response
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("prediction", "probability_yes")]
        found = client.infer(
            "dear", self.tensors(binary, ROWS * many, missing), outputs=outputs,
            request_compression_algorithm=compression, response_compression_algorithm=compression,
        )  # fmt: skip
        assert found.as_numpy("probability_yes") == pytest.approx(probabilities(expected) * many, abs=1e-12)
        labels = [each.decode() if isinstance(each, bytes) else each for each in found.as_numpy("prediction")]
        assert labels == [each["prediction"] for each in expected] * many

    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    def test_class_count_asks_for_the_most_probable_classes(self, binary: bool, client: triton.InferenceServerClient, expected):
        outputs = [triton.InferRequestedOutput("prediction", binary_data=binary, class_count=1)]
        found = client.infer("dear", self.tensors(True), outputs=outputs, model_version="1").as_numpy("prediction")
        assert found.shape == (4, 1)
        for cell, each in zip(found[:, 0], expected, strict=True):
            probability, place, name = (cell.decode() if isinstance(cell, bytes) else cell).split(":")
            best = max(("no", "yes"), key=lambda label: each[f"probability_{label}"])
            assert (name, place) == (best, str(["no", "yes"].index(best)))
            assert float(probability) == pytest.approx(each[f"probability_{best}"], abs=1e-6)

    def test_an_input_that_the_metadata_call_optional_may_be_left_out(self, client: triton.InferenceServerClient, live: Live):
        inputs = client.get_model_metadata("dear")["inputs"]
        optional = [each["name"] for each in inputs if each.get("parameters", {}).get("optional")]
        assert optional == ["size", "colour"]
        nulls = [row | dict.fromkeys(optional) for row in ROWS]
        found = client.infer("dear", self.tensors(True)[-1:]).as_numpy("probability_yes")
        same = live.client.post("/v1/predict/dear", json=nulls).json()["predictions"]
        assert found == pytest.approx(probabilities(same), abs=1e-12)

    def test_what_does_not_fit_is_an_error_with_the_reason(self, client: triton.InferenceServerClient, live: Live):
        tensors = self.tensors(True)
        with pytest.raises(InferenceServerException, match="built: is missing from the row"):
            client.infer("dear", tensors[:-1])
        with pytest.raises(InferenceServerException, match="outputs = 'odds': must be among prediction"):
            client.infer("dear", tensors, outputs=[triton.InferRequestedOutput("odds")])
        with pytest.raises(InferenceServerException, match="unknown: unknown problem"):
            client.infer("unknown", tensors)
        wide = triton.InferInput("size", [4], "INT64")
        wide.set_data_from_numpy(np.array([1, 2, 3, 2**62]), binary_data=False)
        assert len(client.infer("dear", [wide, *tensors[1:]]).as_numpy("prediction")) == 4
        given = {"name": "size", "shape": [1], "datatype": "INT16", "data": [70_000]}
        reply = live.client.post("/v2/models/dear/infer", json={"inputs": [given]})
        assert (reply.status_code, reply.json()["field"]) == (422, "size")
        assert "must be whole numbers from -32768 to 32767 (datatype INT16), or null" in reply.json()["rule"]


class TestGenerated:
    def test_operation_ids_are_unique_and_each_address_of_the_server_has_one(self, described: dict[str, Any], live: Live):
        ids = [each["operationId"] for methods in described["paths"].values() for each in methods.values()]
        assert len(ids) == len(set(ids))
        undescribed = set(live.app.routes) - {path.replace("/versions/{version}", "") for path in described["paths"]}
        assert {path for path in undescribed if "segments" not in path and not path.startswith("/v2/models/recommend")} <= {
            "/v1/predict/recommend",  # a recommender's rows are for MLflow's protocol
            "/v1/labels",
        }

    def test_a_generated_client_calls_every_address(self, described: dict[str, Any], package: str, live: Live):
        client = importlib.import_module(f"{package}.client").Client(base_url=live.url, raise_on_unexpected_status=True)
        called = 0
        for methods in described["paths"].values():
            for operation in methods.values():
                function = imported(package, operation)
                hints = typing.get_type_hints(function)
                fixed = {each["name"]: each["example"] for each in operation.get("parameters", ()) if each["in"] == "path"}
                content = operation.get("requestBody", {}).get("content", {}).get("application/json")
                examples = content["examples"].values() if content else ()
                bodies = [{"body": typed(each["value"], hints["body"])} for each in examples] if content else [{}]
                for body in bodies:
                    reply = function(**fixed, **body, client=client)
                    assert reply.status_code == 200, (operation["operationId"], reply.content)
                    assert type(reply.parsed).__name__ != "Error"
                    if hasattr(reply.parsed, "to_dict"):
                        assert reply.parsed.to_dict() == json.loads(reply.content), operation["operationId"]
                    called += 1
        assert called > 60

    def test_an_invalid_row_is_a_typed_error(self, package: str, live: Live):
        models = importlib.import_module(f"{package}.models")
        client = importlib.import_module(f"{package}.client").Client(base_url=live.url)
        function = importlib.import_module(f"{package}.api.rows.predict_dear").sync
        found = function(client=client, body=models.DearRow(size=-3.0, colour="red", built="1990-05-01"))
        assert isinstance(found, models.Error)
        assert (found.field, found.value, found.rule) == ("size", "-3.0", "must be above 0")
        with pytest.raises(TypeError, match="'built'"):
            models.DearRow(size=3.0)  # the features are required, but those that training had rows without
        assert function(client=client, body=models.DearRow(built="1990-05-01")).prediction in ("yes", "no")


def imported(package: str, operation: dict[str, Any]) -> Any:
    """The generated function of an operation; the generator spells the tag in its own way."""
    (path,) = Path(importlib.import_module(f"{package}.api").__file__ or "").parent.glob(f"*/{operation['operationId']}.py")
    return importlib.import_module(f"{package}.api.{path.parent.name}.{path.stem}").sync_detailed


def typed(value: Any, hint: Any) -> Any:
    """A JSON value as the generated types have it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(found for part in typing.get_args(hint) if (found := typed(value, part)) is not None)
    if typing.get_origin(hint) is list:
        return [typed(each, typing.get_args(hint)[0]) for each in value] if isinstance(value, list) else None
    try:
        found = hint.from_dict(value)
        return found if found.to_dict() == value else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
