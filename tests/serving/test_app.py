"""A running server: the numbers of batch scoring in every protocol, proper errors, and no internal details."""

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from evergreen.flows import settings
from evergreen.serving.parity_check import difference
from evergreen.tasks import problems
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.projects import Deployed
from tests.serving.server import Server, evergreen

pytestmark = pytest.mark.slow

HOUSE = {"size": 100.0, "colour": "red", "built": "1990-05-01"}


@pytest.fixture(scope="module")
def shop(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("serving") / "a shop"
    return deployed(folder, tuple(projects.MODELS), "serve: {default_problem: dear, parity_share: 1.0}\n")


@pytest.fixture(scope="module")
def server(shop: Layout) -> Iterator[Server]:
    found = Server(shop)
    yield found
    assert found.stop() == 0


@pytest.fixture
def client(server: Server) -> httpx.Client:
    return server.client


def rows_of(shop: Layout, problem: str, count: int = 40) -> pl.DataFrame:
    """The features of the newest rows of its training table."""
    known = loading.load(shop.params)
    data = problems.kind(known.kind(problem)).load(shop.features(problem), known.section(problem))
    return pl.read_parquet(shop.features(problem) / "rows.parquet").select(list(data.features)).tail(count)


def batch_scores(shop: Layout, problem: str, asked: pl.DataFrame) -> pl.DataFrame:
    """Their batch scores, by the pipeline."""
    known = loading.load(shop.params)
    kind, section = problems.kind(known.kind(problem)), known.section(problem)
    version = settings.deployments(shop).champion(problem)
    assert version
    model = settings.registry(shop).load(problem, version)
    return kind.predict_new(model, kind.load(shop.newest_rows(problem).parent, section), asked, section)


def as_json(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return json.loads(json.dumps(frame.to_dicts(), default=str))


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        kind = "BYTES" if any(isinstance(each, str) for each in values) else "FP64"
        found.append({"name": name, "datatype": kind, "shape": [len(values)], "data": values})
    return found


@pytest.mark.parametrize("protocol", ["plain", "invocations", "v2"])
@pytest.mark.parametrize("problem", ["redeem", "spend", "dear"])
def test_rows_of_the_training_table_over_http_give_the_batch_scores(problem, protocol, shop, client):
    frame = rows_of(shop, problem)
    rows, expected = as_json(frame), batch_scores(shop, problem, frame)
    if protocol == "plain":
        body = client.post(f"/v1/predict/{problem}", json=rows).json()["predictions"]
        found = {name: [each[name] for each in body] for name in body[0]}
    elif protocol == "invocations":
        found = client.post(f"/v1/models/{problem}/invocations", json={"dataframe_records": rows}).json()
        found["prediction"] = found["predictions"]
    else:
        response = client.post(f"/v2/models/{problem}/infer", json={"inputs": tensors(rows)}).json()
        found = {each["name"]: each["data"] for each in response["outputs"]}
    chances = [name for name in expected.columns if name.startswith("probability_")]
    assert bool(chances) == (problem != "spend")
    for name in chances or ["prediction"]:
        far = np.abs(np.array(found[name]) - expected[name].to_numpy())
        assert (far / np.maximum(1, np.abs(expected[name].to_numpy()))).max() < 1e-5
    if problem != "spend":
        assert list(found["prediction"]) == expected["prediction"].to_list()


def test_a_row_with_only_the_key_is_predicted_from_its_newest_features(shop, client):
    keys = pl.DataFrame({"household_id": [3, 1, 2]})
    expected = batch_scores(shop, "redeem", keys)["probability_1"]
    body = client.post("/v1/predict/redeem", json=keys.to_dicts()).json()["predictions"]
    assert [each["probability_1"] for each in body] == pytest.approx(expected.to_list(), abs=1e-5)
    alone = client.post("/v1/predict/redeem", json={"household_id": 3}).json()
    assert alone["probability_1"] == pytest.approx(expected[0], abs=1e-5)


def test_concurrent_single_rows_get_their_own_predictions_and_share_batches(shop, server, client):
    frame = rows_of(shop, "dear", 64)
    rows, expected = as_json(frame), batch_scores(shop, "dear", frame)["probability_yes"].to_list()

    def ask(place: int) -> float:
        with httpx.Client(base_url=server.url) as own:
            answers = [own.post("/v1/predict/dear", json=rows[place]).json()["probability_yes"] for _ in range(8)]
        assert np.ptp(answers) < 1e-12  # the last digits depend on the batch
        return answers[0]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == pytest.approx(expected, abs=1e-5)
    lone, all_ = await_batches(client)
    assert lone < all_


def await_batches(client: httpx.Client) -> tuple[float, float]:
    """Number of batches with one row, and of all batches, once all are counted."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        text = client.get("/metrics").text
        lone, all_ = (metric(text, f'evergreen_batch_rows_bucket{{le="{edge}",problem="dear"}}') for edge in ("1", "+Inf"))
        if metric(text, 'evergreen_batch_rows_sum{problem="dear"}') >= 64 * 8:
            return lone, all_
        time.sleep(0.2)
    raise AssertionError(text)


def metric(text: str, name: str) -> float:
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {each: value for each, value in row.items() if each != name}


@pytest.mark.parametrize(
    ("row", "field", "value", "rule"),
    [
        (HOUSE | {"hue": "red"}, "hue", "'red'", "unknown column of dear"),
        (without(HOUSE, "size") | {"sise": 3}, "sise", "3", "did you mean size?"),
        (without(HOUSE, "built"), "built", None, "is missing from the row; write null"),
        ({}, "size", None, "is missing from the row, and so are colour, built; write null"),
        (HOUSE | {"size": "100"}, "size", "'100'", "must be a finite number, or null"),
        (HOUSE | {"size": [1]}, "size", "[1]", "must be a finite number, or null"),
        (HOUSE | {"colour": {"a": 1}}, "colour", "{'a': 1}", "must be a text, or null"),
        (HOUSE | {"built": "yesterday"}, "built", "'yesterday'", "must be a date"),
        (HOUSE | {"size": 0}, "size", "0", "must be above 0"),
        (HOUSE | {"colour": "mauve"}, "colour", "'mauve'", "must be one of red, green, blue"),
    ],
)
def test_an_invalid_row_is_rejected_with_field_value_and_rule(row, field, value, rule, client):
    alone = client.post("/v1/predict/dear", json=row)
    several = client.post("/v1/predict/dear", json=[HOUSE, row])
    for response in (alone, several):
        assert response.status_code == 422
        body = response.json()
        assert (body["field"], body["value"]) == (field, value)
        assert rule in body["rule"]
    assert several.json()["row"] == 1


@pytest.mark.parametrize("absent", [("size",), ("colour",), ("size", "colour")], ids=" ".join)
def test_an_optional_column_that_a_row_lacks_is_missing(absent, client, shop):
    """One that training had rows without, as the description says; the ledger keeps it as missing."""
    given = {name: value for name, value in HOUSE.items() if name not in absent}
    same = client.post("/v1/predict/dear", json=HOUSE | dict.fromkeys(absent)).json()
    for body in (given, {"rows": [given]}):
        found = client.post("/v1/predict/dear", json=body)
        assert found.status_code == 200, found.text
        one = found.json().get("predictions", [found.json()])[0]
        assert one["probability_yes"] == same["probability_yes"]
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["DearRow"]["required"] == schemas["DearRecord"]["required"] == ["built"]


def test_rules_that_only_warn_and_unseen_categories_reject_nothing(client, shop):
    assert client.post("/v1/predict/dear", json=HOUSE | {"size": 1000.0}).status_code == 200
    row = as_json(rows_of(shop, "redeem", 1))[0] | {"income": "never seen"}
    assert client.post("/v1/predict/redeem", json=row).status_code == 200


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"household_id": 987654}, "household_id"),
        ({"household_id": [1]}, "household_id"),
        ({"household_id": 1, "spend_14d": 1}, "redemptions_14d"),
    ],
)
def test_an_unknown_key_and_an_incomplete_row_are_rejected(row, field, client):
    response = client.post("/v1/predict/redeem", json=row)
    assert (response.status_code, response.json()["field"]) == (422, field)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "/v1/predict/dear", b"{", 400, "invalid JSON"),
        ("POST", "/v1/predict/dear", b'{"size": NaN}', 400, "invalid JSON"),
        ("POST", "/v1/predict/dear", b"[" * 100 + b"]" * 100, 400, "too deep"),
        ("POST", "/v1/predict/dear", b"x" * 5_000_000, 413, "larger than 4096 KiB"),
        ("POST", "/v1/predict/dear", b'{"rows": [' + b",".join([b"{}"] * 1001) + b"]}", 422, "at most 1000 per request"),
        ("POST", "/v1/predict/unknown", b"{}", 404, "unknown: unknown problem"),
        ("POST", "/v1/models/dear/versions/9/invocations", b'{"instances": []}', 404, "dear v9: is not loaded; loaded: v"),
        ("POST", "/v1/predict/../../etc/passwd", b"{}", 404, "unknown path"),
        ("GET", "/v1/predict/dear", b"", 405, "allows POST"),
        ("GET", "/nowhere", b"", 404, "GET /docs"),
        ("POST", "/v1/predict/segments", b"{}", 503, "segments: no version serves it"),
        ("POST", "/v2/models/dear/infer", b'{"inputs": []}', 400, "needs an object with inputs"),
        ("POST", "/v2/models/recommend/infer", b'{"inputs": []}', 404, "POST /v1/recommend/recommend"),
        ("POST", "/v1/recommend", b'{"k": 0}', 422, "k = 0"),
        ("POST", "/v1/recommend", b'{"k": 100000000}', 422, "at most 1000 items per list (serve.max_k)"),
        ("POST", "/v1/recommend", b'{"users": [' + b"7," * 1000 + b"7]}", 422, "at most 1000 per request (serve.max_rows)"),
        ("POST", "/v1/recommend", b'{"users": [[1]]}', 422, "users = "),
        ("POST", "/v1/labels/dear", b'{"value": 1}', 422, "names no prediction: it needs an id, or an entity and a time"),
        ("POST", "/v1/labels/dear", b'{"value": 1, "id": "x", "at": "noon"}', 422, "at = noon: is neither a day"),
    ],
)
def test_an_error_is_one_line_of_json(method, path, body, status, text, client, shop):
    response = client.request(method, path, content=body)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert text in response.json()["error"]
    assert "\n" not in response.json()["error"]
    for secret in ("Traceback", str(shop.root), "site-packages"):
        assert secret not in response.text


def test_every_response_has_the_security_headers(client):
    for path in ("/health", "/nowhere", "/docs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")


def test_the_contributions_of_the_columns_sum_up_to_the_prediction(client, shop):
    row = as_json(rows_of(shop, "redeem", 1))[0]
    body = client.post("/v1/predict/redeem", params={"explain": "true"}, json=row).json()
    parts = body["explanation"]
    assert sum(each["contribution"] for each in parts) == pytest.approx(body["probability_1"], abs=1e-9)
    assert {each["column"] for each in parts} <= {*row, None}
    assert "explanation" not in client.post("/v1/predict/redeem", json=row).json()


def test_predictions_and_their_labels_reach_the_ledger(client, shop):
    body = client.post("/v1/predict/dear", json=HOUSE).json()
    early = client.post("/v1/labels/dear", json={"id": body["id"], "value": "yes"})
    assert early.json()["matched"] + early.json()["pending"] == 1
    assert client.post("/v1/labels", json={"problem": "dear", "id": body["id"], "value": "yes"}).json()["duplicate"] == 1
    row, features = in_ledger(shop, "dear", body["id"])
    assert (row["version"], row["variant"], row["label"]) == (body["version"], "champion", "yes")
    assert row["probability_yes"] == pytest.approx(body["probability_yes"])
    assert features["colour"] == "red"


def in_ledger(shop: Layout, problem: str, id_: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prediction and its features, once they are there."""
    ledger, end = settings.ledger(shop), time.monotonic() + 20
    while time.monotonic() < end:
        found = ledger.read(problem)
        places = [place for place, each in enumerate(found.rows["id"].to_list()) if each == id_] if found.rows.height else []
        if places:
            return found.rows.row(places[0], named=True), found.features.row(places[0], named=True)
        time.sleep(0.2)
    raise AssertionError(f"{id_} is not in the ledger")


def test_a_purchase_is_accepted_once_and_changes_the_next_list(client):
    wish = {"users": [5], "k": 30, "show": "discover"}
    first = client.post("/v1/recommend", json=wish).json()["lists"][0]
    item = first["items"][0]["item"]
    event = {"id": "till-1", "user": 5, "item": item}
    assert client.post("/v1/events", json=event).json() == {"accepted": 1, "duplicate": 0, "rejected": []}
    assert client.post("/v1/events", json=[event]).json() == {"accepted": 0, "duplicate": 1, "rejected": []}
    after = client.post("/v1/recommend", json=wish).json()["lists"][0]
    assert item not in [each["item"] for each in after["items"]]
    assert after["id"] != first["id"]
    gone = client.post("/v1/events/recommend/withdraw", json={"ids": ["till-1"]})
    assert gone.json() == {"withdrawn": 1, "duplicate": 0, "unknown": []}
    assert client.post("/v1/recommend", json=wish).json()["lists"][0]["items"][0]["item"] == item
    assert client.post("/v1/events", json=event).json()["duplicate"] == 1
    for ids in (["nobody's"], [], "till-1", [1]):
        assert client.post("/v1/events/recommend/withdraw", json={"ids": ids}).status_code in (400, 422)
    rejected = client.post("/v1/events", json={"user": 5, "item": "no such thing"})
    assert (rejected.status_code, rejected.json()["accepted"]) == (422, 0)


def test_a_list_reaches_the_ledger_with_its_items_sources_and_propensities(client, shop):
    body = client.post("/v1/recommend", json={"users": [7], "k": 3, "explore": 0.5}).json()["lists"][0]
    row, _ = in_ledger(shop, "recommend", body["id"])
    assert (row["entity"], row["version"], row["variant"]) == ("7", body["version"], "champion")
    for name in ("item", "score", "source"):
        assert list(row[f"{name}s"]) == [each[name] for each in body["items"]]
    assert list(row["propensities"]) == body["propensities"]
    assert str(row["as_of"]) == body["as_of"]
    plain = client.post("/v1/recommend", json={"users": [7], "k": 3}).json()["lists"][0]
    assert "propensities" not in plain
    assert in_ledger(shop, "recommend", plain["id"])[0]["propensities"] is None


def test_every_example_of_the_openapi_description_works(client):
    described = client.get("/openapi.json").json()
    asked = 0
    for path, methods in described["paths"].items():
        for method, each in methods.items():
            body = each.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in body.get("examples", {"none": {"value": None}}).values():
                fixed = {part["name"]: part["example"] for part in each.get("parameters", ()) if part["in"] == "path"}
                response = client.request(method, path.format(**fixed), json=example["value"])
                assert response.status_code == 200, f"{path}: {response.text}"
                asked += 1
    assert asked > 25
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for outside in ("http://", "https://", "<script", "src="):
        assert outside not in page.text


def test_compiled_model_and_pipeline_are_compared_while_serving(client, server):
    client.post("/v1/predict/dear", json=[HOUSE] * 5)
    end = time.monotonic() + 60
    while metric(text := client.get("/metrics").text, 'evergreen_parity_checks_total{problem="dear"}') < 5:
        assert time.monotonic() < end, text
        time.sleep(0.2)
    assert metric(text, 'evergreen_parity_mismatches_total{problem="dear"}') == 0
    assert metric(text, 'evergreen_model_info{problem="dear",variant="champion",version="1"}') == 1


def test_a_difference_is_relative_above_one_and_ignores_a_class_on_the_threshold():
    assert difference({"prediction": 1, "probability_1": 0.5}, {"prediction": 0, "probability_1": 0.5 + 1e-7}) < 1e-6
    assert difference({"prediction": 1000.0}, {"prediction": 1001.0}) == pytest.approx(1 / 1001)
    assert difference({"prediction": 2}, {"prediction": 3}) == float("inf")


def test_a_new_version_takes_over_and_no_request_fails(client, server, shop):
    answers: list[tuple[int, int]] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url) as own:
            while not over.is_set():
                response = own.post("/v1/predict/spend", json={"household_id": 3})
                answers.append((response.status_code, response.json().get("version", 0)))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        version = projects.deploy(shop, "spend", "ridge", alpha=77.0)
        assert took_over(answers, version)
        settings.deployments(shop).rollback(settings.registry(shop), "spend", 1, "ann", "complaints")
        assert took_over(answers, 1)
    finally:
        over.set()
        asking.join()
    assert {status for status, _ in answers} == {200}
    assert [one for (_, one), (_, two) in pairwise(answers) if one != two] == [1, version]


def took_over(answers: list[tuple[int, int]], version: int) -> bool:
    end = time.monotonic() + 20  # the claim is two seconds; a machine under load gets more
    while time.monotonic() < end:
        if answers and answers[-1][1] == version:
            return True
        time.sleep(0.05)
    return False


class TestProcesses:
    """With a server of their own, which they kill and stop."""

    @pytest.fixture
    def small(self, deployed: Deployed, tmp_path: Path) -> Layout:
        return deployed(tmp_path / "b", ("dear",), "serve: {default_problem: dear, durable: true, parity_share: 0}\n")

    def test_a_killed_worker_is_replaced_and_acknowledged_predictions_are_in_the_ledger(self, small):
        server = Server(small)
        ids = [server.client.post("/v1/predict", json=HOUSE).json()["id"] for _ in range(20)]
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        server.wait_for("a worker exited with code -9 and is replaced")
        while server.workers() in ([], [worker]):
            time.sleep(0.05)
        ids.append(server.client.post("/v1/predict", json=HOUSE).json()["id"])
        assert server.stop() == 0
        with sqlite3.connect(small.var / "evergreen.db") as link:
            assert set(ids) <= {id_ for (id_,) in link.execute("select id from prediction_ids")}

    def test_open_requests_finish_when_the_server_stops(self, small):
        server = Server(small)
        rows = {"rows": [HOUSE] * 1000}
        with ThreadPoolExecutor(8) as pool:
            waits = [pool.submit(httpx.post, f"{server.url}/v1/predict", json=rows, timeout=60) for _ in range(8)]
            while not any(each.done() for each in waits):
                time.sleep(0.001)
            assert server.stop(signal.SIGINT) == 0
            answers = [each.result() for each in waits if each.exception() is None]
        assert answers
        ids = {one["id"] for response in answers for one in response.json()["predictions"]}
        assert len(ids) == 1000 * len(answers)
        with sqlite3.connect(small.var / "evergreen.db") as link:
            assert ids <= {id_ for (id_,) in link.execute("select id from prediction_ids")}

    def test_a_port_in_use_and_a_public_address_without_keys_are_errors_of_one_line(self, small, server):
        port = server.url.rpartition(":")[2]
        for options, body in ((["--port", port], "cannot bind"), (["--host", "0.0.0.0"], "there is no API key")):
            done = evergreen(small, "serve", *options)
            assert done.returncode == 1
            assert body in done.stderr
            assert done.stderr.count("\n") == 1
