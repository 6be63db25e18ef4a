"""Access control: keys, hosts and rates; and the depth of JSON, whatever the body holds."""

import logging
import time

import orjson
import pytest
from hypothesis import given, strategies

from evergreen.serving import access_control, rate_limit
from evergreen.serving.access_control import AccessControl, is_loopback
from evergreen.serving.json_depth import MAX_DEPTH, too_deep
from evergreen.serving.keys import SCOPES, Keys
from evergreen.serving.rate_limit import RateLimiter
from evergreen.tasks.config.operations import Serve
from evergreen.tasks.core.errors import ProjectError


@pytest.fixture
def keys(tmp_path) -> Keys:
    return Keys(f"sqlite:///{tmp_path / 'evergreen.db'}")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(rate_limit.time, "monotonic", lambda: now[0])
    return now


def status_and_error(denial: access_control.Denial | None) -> tuple[int, str]:
    assert denial is not None
    return denial.status, orjson.loads(denial.body)["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_a_loopback_address_needs_no_key(keys, host):
    assert AccessControl(Serve(), host, keys).check("admin", {"host": "127.0.0.1:80"}, "127.0.0.1", "/") is None


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.1.2.3", "example.org", "", "127.0.0.1.example.org", "localhost.example.org"]
)
def test_a_server_that_other_machines_reach_does_not_start_without_keys(keys, host):
    assert not is_loopback(host)
    with pytest.raises(
        ProjectError, match=f"other machines can reach {host}, and there is no API key: create one with evergreen keys add"
    ):
        AccessControl(Serve(), host, keys)


def test_while_the_keys_cannot_be_read_a_server_starts_admits_nobody_and_says_that_it_is_not_the_callers_fault(
    keys, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    secret = keys.add("till", ["predict"])
    headers = {"x-api-key": secret}

    def unavailable() -> dict[str, object]:
        raise ProjectError("the database of keys cannot be used")

    with monkeypatch.context() as patched:
        patched.setattr(keys, "active_keys", unavailable)
        access = AccessControl(Serve(), "0.0.0.0", keys)
        denial = access.check("predict", headers, "10.0.0.9", "/")
        assert status_and_error(denial) == (503, "the API keys cannot be read now; try again")
        assert access.visible(headers, ["dear"]) == []
        access._read()
        told = [record.message for record in caplog.records if record.message.startswith("keys: ")]
        assert told == ["keys: the database of keys cannot be used"], "once"
    monkeypatch.setattr(access_control, "RELOAD_SECONDS", 0.01)
    access.start()
    for _ in range(3000):
        if access.check("predict", headers, "10.0.0.9", "/") is None:
            break
        time.sleep(0.01)
    access.stop()
    assert access.check("predict", headers, "10.0.0.9", "/") is None


def test_keys_can_be_required_on_a_loopback_address(keys):
    with pytest.raises(ProjectError, match=r"params.yaml: serve.require_api_key is always, and there is no API key"):
        AccessControl(Serve(require_api_key="always"), "127.0.0.1", keys)
    keys.add("till", ["predict"])
    access = AccessControl(Serve(require_api_key="always"), "127.0.0.1", keys)
    assert status_and_error(access.check("predict", {"host": "shop.example.org"}, "127.0.0.1", "/")) == (
        401,
        "needs an API key: send Authorization: Bearer KEY, or X-API-Key: KEY",
    )


def test_a_key_grants_its_scopes(keys):
    secret = keys.add("till", ["predict", "events"])
    access = AccessControl(Serve(), "0.0.0.0", keys)
    for headers in ({"authorization": f"Bearer {secret}"}, {"authorization": f"bearer  {secret} "}, {"x-api-key": secret}):
        assert access.check("predict", headers, "10.0.0.9", "/") is None
        assert access.check("events", headers, "10.0.0.9", "/") is None
        assert access.check(None, headers, "10.0.0.9", "/metrics") is None
        assert status_and_error(access.check("labels", headers, "10.0.0.9", "/")) == (
            403,
            "the API key till lacks the scope labels",
        )


def test_an_admin_key_grants_everything(keys):
    secret = keys.add("boss", ["admin"])
    access = AccessControl(Serve(), "0.0.0.0", keys)
    assert all(access.check(scope, {"x-api-key": secret}, "10.0.0.9", "/") is None for scope in SCOPES)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic eDp5",
        "Bearer eg_",
        "Bearer eg__",
        "Bearer \udcff",
        "Bearer eg_\x00_\x00",
        "eg_1_2",
        "B" * 99999,
    ],
)
def test_an_invalid_key_is_unauthorized_like_a_missing_one(keys, header):
    keys.add("till", ["predict"])
    access = AccessControl(Serve(), "0.0.0.0", keys)
    denial = access.check("predict", {"authorization": header}, "10.0.0.9", "/")
    assert status_and_error(denial)[0] == 401
    assert denial is not None
    assert ("www-authenticate", "Bearer") in denial.headers


def test_a_wrong_secret_with_a_known_id_is_denied_like_an_unknown_key(keys):
    secret = keys.add("till", ["predict"])
    access = AccessControl(Serve(), "0.0.0.0", keys)
    false = [secret[:-1], secret[:-1] + ("a" if secret[-1] != "a" else "b"), "eg_000000000000_" + "x" * 43]
    answers = {status_and_error(access.check("predict", {"x-api-key": each}, "10.0.0.9", "/")) for each in false}
    assert answers == {(401, "the API key is unknown or revoked")}


def test_revoked_and_new_keys_take_effect_while_the_server_runs(keys, monkeypatch):
    monkeypatch.setattr(access_control, "RELOAD_SECONDS", 0.01)
    secret = keys.add("till", ["predict"])
    access = AccessControl(Serve(), "0.0.0.0", keys)
    access.start()
    try:
        keys.revoke("till")
        again = keys.add("till", ["predict"])
        while access.check("predict", {"x-api-key": again}, "10.0.0.9", "/") is not None:
            time.sleep(0.01)
        assert status_and_error(access.check("predict", {"x-api-key": secret}, "10.0.0.9", "/"))[0] == 401
    finally:
        access.stop()


def test_keys_are_reloaded_often_enough_to_reject_a_revoked_one_within_two_seconds():
    assert 2 * access_control.RELOAD_SECONDS <= 2


def test_an_unavailable_database_leaves_the_keys_active(keys, monkeypatch, caplog):
    monkeypatch.setattr(access_control, "RELOAD_SECONDS", 0.001)
    secret = keys.add("till", ["predict"])
    access = AccessControl(Serve(), "0.0.0.0", keys)
    monkeypatch.setattr(keys, "active_keys", lambda: (_ for _ in ()).throw(ProjectError("the database of keys cannot be used")))
    access.start()
    try:
        while "cannot be used" not in caplog.text:
            time.sleep(0.001)
        assert access.check("predict", {"x-api-key": secret}, "10.0.0.9", "/") is None
    finally:
        access.stop()


@pytest.mark.parametrize(
    ("headers", "line"),
    [
        ({"host": "evil.example.org"}, "only host names of this machine"),
        ({"host": "127.0.0.1.example.org:8000"}, "only host names of this machine"),
        ({"host": "localhost:8000", "origin": "https://evil.example.org"}, "pages of other origins"),
        ({"host": "localhost:8000", "origin": "http://localhost:9999"}, "pages of other origins"),
        ({"host": "localhost:8000", "origin": "null"}, "pages of other origins"),
        ({"origin": "http://evil.example.org"}, "pages of other origins"),
        ({"host": ""}, "only host names of this machine"),
    ],
)
def test_without_keys_pages_of_other_origins_are_denied(keys, headers, line):
    status, error = status_and_error(AccessControl(Serve(), "127.0.0.1", keys).check("predict", headers, "127.0.0.1", "/"))
    assert status == 403
    assert line in error
    assert "serve.require_api_key" in error


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "localhost:8000", "[::1]:8000", "[::1]", None])
def test_without_keys_local_programs_and_the_servers_own_page_are_admitted(keys, host):
    access = AccessControl(Serve(), "127.0.0.1", keys)
    headers = {} if host is None else {"host": host, "origin": f"http://{host}"}
    assert access.check("predict", headers, "127.0.0.1", "/") is None
    assert access.check("predict", headers, "127.0.0.1", "/") is None


def test_a_caller_has_a_burst_of_one_second_and_then_the_rate(keys, clock):
    access = AccessControl(Serve(rate_limit_per_second=5), "127.0.0.1", keys)

    def admitted(client: str) -> int:
        return sum(access.check("predict", {}, client, "/") is None for _ in range(20))

    assert admitted("127.0.0.1") == 5
    assert admitted("127.0.0.2") == 5
    clock[0] += 0.41
    assert admitted("127.0.0.1") == 2
    clock[0] += 3600
    assert admitted("127.0.0.1") == 5
    denial = access.check("predict", {}, "127.0.0.1", "/")
    assert status_and_error(denial) == (429, "too many requests; serve.rate_limit_per_second is the limit")
    assert denial is not None
    assert denial.headers == (("retry-after", "1"),)


def test_a_key_has_its_own_rate_from_any_address_and_guesses_use_none_of_it(keys, clock):
    secret = keys.add("till", ["predict"])
    access = AccessControl(Serve(rate_limit_per_second=3), "0.0.0.0", keys)
    guesses = [access.check("predict", {"x-api-key": "eg_x_y"}, "10.0.0.9", "/") for _ in range(5)]
    assert [status_and_error(each)[0] for each in guesses] == [401, 401, 401, 429, 429]
    answers = [access.check("predict", {"x-api-key": secret}, f"10.0.0.{last}", "/") for last in (9, 8, 7, 6)]
    assert [each and each.status for each in answers] == [None, None, None, 429]


def test_the_limit_can_be_below_one_request_per_second(clock):
    rate = RateLimiter(0.1)
    assert rate.wait("a") == 0
    assert rate.wait("a") == 10
    clock[0] += 10
    assert rate.wait("a") == 0


def test_an_ipv6_network_of_64_bits_is_one_caller(clock):
    rate = RateLimiter(1)
    assert rate.wait("2001:db8::1") == 0
    assert rate.wait("2001:db8::ffff:2%eth0") == 1
    assert rate.wait("2001:db8:0:1::1") == 0
    assert rate.wait("::ffff:10.0.0.1") == 0
    assert rate.wait("10.0.0.1") == 1


def test_idle_callers_are_dropped(clock, monkeypatch):
    monkeypatch.setattr(rate_limit, "CALLERS", 100)
    rate = RateLimiter(1)
    for caller in range(1000):
        assert rate.wait(f"10.0.0.{caller}") == 0
        clock[0] += 0.1
    assert len(rate._full) < 250
    assert rate.wait("10.0.0.999") > 0


def test_denials_are_logged_once_a_second_without_the_key_or_line_breaks(keys, clock, caplog):
    secret = keys.add("till", ["predict"])
    access = AccessControl(Serve(), "0.0.0.0", keys)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            access.check("labels", {"x-api-key": secret}, "10.0.0.9", "/v1/labels\r\nfalse line " + "x" * 999)
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]
    assert len(caplog.messages[0]) < 300
    assert "denied 403 to 10.0.0.9" in caplog.messages[0]
    assert secret not in caplog.messages[0]


VALUES = strategies.recursive(
    strategies.none() | strategies.floats(allow_nan=False) | strategies.text(alphabet='[]{}"\\a\n', max_size=8),
    lambda inner: (
        strategies.lists(inner, max_size=4) | strategies.dictionaries(strategies.text('[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=60,
)


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(VALUES, strategies.integers(0, 2 * MAX_DEPTH), strategies.booleans())
def test_depth_equals_the_parsed_depth_whatever_the_strings_hold(value, around, mapped):
    for _ in range(around):
        value = {'[{"\\': value, "x": "]}"} if mapped else ["]", value, "\\"]
    assert too_deep(orjson.dumps(value)) == (depth(value) > MAX_DEPTH)


@pytest.mark.parametrize(
    ("body", "deep"),
    [
        (b"[" * 10**6, True),
        (b'["' * 10**6, True),
        (b"[" * 99 + b'"\\' * 10**6, True),
        (b"[}" * 10**6, False),
        (b'[{"a":' * 10**6, True),
        (b"[]" * 10**6, False),
        (b"\xff[" * 99, True),
    ],
)
def test_the_depth_of_invalid_json_takes_linear_time(body, deep):
    """With quadratic time this would take an hour."""
    assert too_deep(body) == deep
