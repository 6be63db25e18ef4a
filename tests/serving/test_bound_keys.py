"""A key that is bound to problems: it uses these alone, and learns nothing about the others, whatever it asks."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from evergreen.flows.cli.main import app as command
from evergreen.flows.operations import upgrade
from evergreen.serving.access_control import AccessControl
from evergreen.serving.app import App
from evergreen.serving.feature import Feature
from evergreen.serving.keys import Keys
from evergreen.serving.loaded_model import ListModel, RowModel
from evergreen.serving.metrics import Metrics
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.serving_set import ServingSet
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import schema_revision
from evergreen.tasks.core.errors import ParamsError

PARAMS = Path(__file__).parents[2] / "params.yaml"
OWN, OTHER, LISTS, ABSENT = "redeem", "lapse", "recommend", "weather"
SCOPES = ("predict", "events", "labels")


def rows_model(problem: str, version: int) -> RowModel:
    row = {"baskets": 12}
    return RowModel(
        problem, version, "regression", [Feature("baskets", "number")], [row], lambda rows: [{"prediction": 1.0}] * len(rows)
    )


def params(default: str | None = None) -> Params:
    known = loading.load(PARAMS)
    sections = {OWN: known.section("redeem"), OTHER: known.section("redeem"), LISTS: known.section("recommend")}
    kinds = {OWN: "classification", OTHER: "classification", LISTS: "recommendation"}
    serve = known.serve.model_copy(update={"default_problem": default})
    return known.model_copy(update={"problems": kinds, "sections": sections, "serve": serve})


class Client:
    """Asks an application in this process. Each problem has a version; that of OTHER is 77, and LISTS has an error.

    `lost`: a problem with an error and without a version. `only`: the problems that it serves.
    """

    def __init__(self, keys: Keys, default: str | None = None, lost: str | None = None, only: Sequence[str] = ()) -> None:
        recommender: Any = SimpleNamespace(problem=LISTS, version=88, users=lambda: [1], items=lambda: [2])
        lists = ListModel(recommender, "product_id", "household_id")
        sets: dict[str, Any] = {
            OWN: ServingSet(rows_model(OWN, 3)),
            OTHER: ServingSet(rows_model(OTHER, 77)),
            LISTS: ServingSet(lists),
        }
        known = params(default).narrow(only)
        errors = {each: "cannot load" for each in (LISTS, lost) if each in known.problems}
        watcher: Any = SimpleNamespace(
            serving_set={**sets, lost: None}.get, errors=errors, away=(), read_at=None, unread_since=None
        )
        self._app = App(
            PredictionService(known, watcher, None, None, Metrics()), AccessControl(known.serve, "0.0.0.0", keys), required=only
        )

    def ask(self, method: str, path: str, secret: str | None, body: Any = None) -> tuple[int, bytes]:
        headers = [] if secret is None else [(b"x-api-key", secret.encode())]
        scope = {
            "type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "client": ("10.0.0.9", 1)
        }  # fmt: skip
        found: dict[str, Any] = {}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": orjson.dumps(body), "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            found.update(message)

        asyncio.run(self._app(scope, receive, send))  # type: ignore[arg-type]
        return found["status"], found["body"]


@pytest.fixture
def keys(tmp_path) -> Keys:
    return Keys(f"sqlite:///{tmp_path / 'evergreen.db'}")


@pytest.fixture
def bound(keys) -> str:
    return keys.add("till", SCOPES, [OWN])


def addresses(problem: str) -> list[tuple[str, str, Any]]:
    """Every address that names a problem, in each protocol; and one that is no address."""
    return [
        ("POST", f"/v1/predict/{problem}", {"baskets": 1}),
        ("GET", f"/v1/predict/{problem}", None),
        ("POST", f"/v1/predict/{problem}", {"rows": [{"baskets": 1}], "explain": True}),
        ("POST", f"/v1/models/{problem}/invocations", {"dataframe_records": [{"baskets": 1}]}),
        ("POST", f"/v1/models/{problem}/versions/77/invocations", {"dataframe_records": [{"baskets": 1}]}),
        ("GET", f"/v2/models/{problem}", None),
        ("GET", f"/v2/models/{problem}/versions/77", None),
        ("GET", f"/v2/models/{problem}/ready", None),
        ("GET", f"/v2/models/{problem}/versions/77/ready", None),
        ("POST", f"/v2/models/{problem}/infer", {"inputs": []}),
        ("POST", f"/v2/models/{problem}/versions/77/infer", {"inputs": []}),
        ("POST", f"/v1/recommend/{problem}", {"users": [1]}),
        ("POST", f"/v1/events/{problem}", {"id": "1", "user": 1, "item": 2}),
        ("POST", f"/v1/events/{problem}/withdraw", {"ids": ["1"]}),
        ("POST", f"/v1/labels/{problem}", {"id": "1", "value": 1}),
        ("POST", "/v1/labels", {"problem": problem, "id": "1", "value": 1}),
        ("POST", f"/v1/labels/{OWN}", {"problem": problem, "id": "1", "value": 1}),
        ("DELETE", f"/v2/models/{problem}/anything", None),
    ]


@pytest.mark.parametrize("index", range(len(addresses(""))))
def test_other_problems_are_refused_like_those_that_do_not_exist(keys, bound, index):
    client = Client(keys)
    asked = [addresses(problem)[index] for problem in (OTHER, LISTS, ABSENT)]
    answers = {client.ask(method, path, bound, body) for method, path, body in asked}
    error = f"the API key till is for {OWN} alone; name such a problem in the path, or take another key"
    assert answers == {(403, orjson.dumps({"error": error}))}


@pytest.mark.parametrize(("method", "path", "body"), addresses(OWN))
def test_its_own_problem_is_answered_as_with_any_key(keys, bound, method, path, body):
    free = keys.add("desk", SCOPES)
    client = Client(keys)
    status, answer = client.ask(method, path, bound, body)
    assert status != 403
    assert status == client.ask(method, path, free, body)[0]
    assert not any(word in answer for word in (OTHER.encode(), LISTS.encode()))


@pytest.mark.parametrize("path", ["/v1/predict", "/invocations", "/v1/recommend", "/v1/events", "/v1/labels", "/nothing"])
def test_an_address_without_a_problem_does_not_show_whether_another_is_the_default(keys, bound, path):
    answers = {Client(keys, default).ask("POST", path, bound, {"id": "1", "value": 1}) for default in (None, OTHER)}
    assert [status for status, _ in answers] == [403]
    assert Client(keys, OWN).ask("POST", "/v1/predict", bound, {"baskets": 1})[0] == 200


@pytest.mark.parametrize(
    "path", ["/ready", "/v2/health/ready", "/openapi.json", "/docs", "/v2", "/version", "/health", "/metrics"]
)
def test_addresses_of_the_server_show_a_bound_key_its_own_problem_alone(keys, bound, path):
    status, body = Client(keys).ask("GET", path, bound)
    assert status == (403 if path == "/metrics" else 200)
    assert not any(word in body for word in (OTHER.encode(), LISTS.encode(), b"77", b"88"))


def test_ready_shows_versions_by_key_and_to_others_only_whether_it_is(keys, bound):
    free = keys.add("desk", ["labels"])
    client = Client(keys)
    own = {OWN: {"champion": 3}}
    shown = {
        secret: orjson.loads(client.ask("GET", "/ready", secret)[1]) for secret in (None, "eg_x_y", bound[:-1], bound, free)
    }
    assert [shown[each] for each in (None, "eg_x_y", bound[:-1])] == [{"ready": True, "problems": {}}] * 3
    assert shown[bound] == {"ready": True, "problems": own}
    assert shown[free]["problems"] == {**own, OTHER: {"champion": 77}, LISTS: {"champion": 88}}
    assert set(shown[free]["errors"]) == {LISTS}


def test_a_server_of_some_problems_is_ready_once_each_of_them_has_a_version(keys):
    free = keys.add("desk", ["labels"])

    def ready(**given: Any) -> tuple[int, Any]:
        status, body = Client(keys, **given).ask("GET", "/ready", free)
        return status, orjson.loads(body)

    assert ready(only=[OWN], lost=OTHER) == (200, {"ready": True, "problems": {OWN: {"champion": 3}}})
    status, found = ready(only=[OWN, OTHER], lost=OTHER)
    assert (status, found["ready"], set(found["errors"])) == (503, False, {OTHER})
    assert ready(lost=OTHER)[0] == 200, "the server of all problems serves what it can"
    asking = keys.add("all", ["predict"])
    narrow = Client(keys, only=[OWN, OTHER], lost=OTHER)
    assert narrow.ask("GET", "/v2/health/ready", None)[0] == 503
    assert narrow.ask("POST", f"/v1/predict/{LISTS}", asking, {"baskets": 1})[0] == 404


def test_without_a_key_no_path_shows_whether_a_problem_exists(keys, bound):
    client = Client(keys)
    for method, path in [
        ("POST", "/v1/predict/{}"),
        ("GET", "/v1/predict/{}"),
        ("GET", "/v2/models/{}/versions/77"),
        ("GET", "/{}"),
    ]:
        for secret in (None, bound[:-1]):
            answers = {client.ask(method, path.format(problem), secret) for problem in (OWN, OTHER, ABSENT)}
            assert [status for status, _ in answers] == [401]


def test_a_key_without_binding_has_all_problems_and_plain_errors(keys):
    secret = keys.add("desk", SCOPES)
    client = Client(keys)
    assert client.ask("POST", f"/v1/predict/{OTHER}", secret, {"baskets": 1})[0] == 200
    assert client.ask("POST", f"/v1/predict/{ABSENT}", secret) == (404, b'{"error":"weather: unknown problem"}')
    assert client.ask("GET", f"/v1/predict/{OTHER}", secret)[0] == 405


def test_admin_cannot_be_bound(keys):
    with pytest.raises(ParamsError, match=r"boss: admin covers all problems, .*; leave out --problem"):
        keys.add("boss", ["admin"], [OWN])
    assert keys.list() == []


def test_the_upgrade_gives_keys_of_an_earlier_version_all_problems(tmp_path):
    address = f"sqlite:///{tmp_path / 'evergreen.db'}"
    secret = Keys(address).add("till", ["predict"])
    engine = sa.create_engine(address)
    with engine.begin() as link:
        link.execute(sa.text("ALTER TABLE api_keys DROP COLUMN problems"))
        schema_revision.TABLE.drop(link)
    engine.dispose()
    upgrade.run(address)
    keys = Keys(address)
    assert [each.problems for each in keys.list()] == [frozenset()]
    assert Client(keys).ask("POST", f"/v1/predict/{OTHER}", secret, {"baskets": 1})[0] == 200
    keys.add("desk", ["predict"], [OTHER, OWN, OTHER])
    assert [each.problems for each in Keys(address).list()] == [frozenset(), {OWN, OTHER}]


def test_the_command_binds_a_key_and_lists_its_problems(tmp_path, monkeypatch):
    monkeypatch.delenv("EVERGREEN_DATABASE", raising=False)
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    at, runner = ["--root", str(tmp_path)], CliRunner()
    add = ["keys", "add", "till", "--scope", "predict", "--problem"]
    wrong = runner.invoke(command, [*add, "redem", *at])
    assert isinstance(wrong.exception, ParamsError)
    assert "redem: no such problem in params.yaml" in str(wrong.exception)
    made = runner.invoke(command, [*add, "redeem", "--problem", "recommend", "--json", *at])
    assert orjson.loads(made.stdout)["problems"] == ["recommend", "redeem"]
    runner.invoke(command, ["keys", "add", "desk", "--scope", "labels", *at])
    shown = runner.invoke(command, ["keys", "list", *at]).stdout
    assert "recommend, redeem" in shown
    assert "all" in shown
    listed = orjson.loads(runner.invoke(command, ["keys", "list", "--json", *at]).stdout)["keys"]
    assert [each["problems"] for each in listed] == [["recommend", "redeem"], []]
