"""The guard: who may come in, from where, how often; and that it looks at nothing that a request could make it stumble over."""

import logging
import time

import orjson
import pytest
from hypothesis import given, strategies

from evergreen.serving import access_control
from evergreen.serving.access_control import DEEPEST, Guard, Rate, is_loopback, too_deep
from evergreen.serving.keys import SCOPES, Keys
from evergreen.tasks.config.operations import Serve
from evergreen.tasks.core.errors import ProjectError


@pytest.fixture
def keys(tmp_path) -> Keys:
    return Keys(f"sqlite:///{tmp_path / 'evergreen.db'}")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(access_control.time, "monotonic", lambda: now[0])
    return now


def said(refusal: access_control.Refusal | None) -> tuple[int, str]:
    assert refusal is not None
    return refusal.status, orjson.loads(refusal.body)["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_on_an_address_of_this_machine_no_key_is_needed(keys, host):
    assert Guard(Serve(), host, keys).admit("admin", {"host": "127.0.0.1:80"}, "127.0.0.1", "/") is None


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.1.2.3", "example.org", "", "127.0.0.1.example.org", "localhost.example.org"]
)
def test_where_others_reach_it_a_server_without_keys_does_not_start(keys, host):
    assert not is_loopback(host)
    with pytest.raises(
        ProjectError, match=f"{host} can be reached from other machines, and there is no key: evergreen keys add"
    ):
        Guard(Serve(), host, keys)


def test_keys_can_be_needed_here_too(keys):
    with pytest.raises(ProjectError, match=r"params.yaml: serve.keys is always, and there is no key"):
        Guard(Serve(keys="always"), "127.0.0.1", keys)
    keys.add("till", ["predict"])
    guarded = Guard(Serve(keys="always"), "127.0.0.1", keys)
    assert said(guarded.admit("predict", {"host": "shop.example.org"}, "127.0.0.1", "/")) == (
        401,
        "a key is needed: send Authorization: Bearer KEY, or X-API-Key: KEY",
    )


def test_a_key_opens_what_it_is_for(keys):
    secret = keys.add("till", ["predict", "events"])
    guarded = Guard(Serve(), "0.0.0.0", keys)
    for headers in ({"authorization": f"Bearer {secret}"}, {"authorization": f"bearer  {secret} "}, {"x-api-key": secret}):
        assert guarded.admit("predict", headers, "10.0.0.9", "/") is None
        assert guarded.admit("events", headers, "10.0.0.9", "/") is None
        assert guarded.admit(None, headers, "10.0.0.9", "/metrics") is None
        assert said(guarded.admit("labels", headers, "10.0.0.9", "/")) == (
            403,
            "the key till is not for this; it lacks the scope labels",
        )


def test_a_key_of_admin_opens_everything(keys):
    secret = keys.add("boss", ["admin"])
    guarded = Guard(Serve(), "0.0.0.0", keys)
    assert all(guarded.admit(scope, {"x-api-key": secret}, "10.0.0.9", "/") is None for scope in SCOPES)


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
def test_what_is_no_key_is_refused_with_the_same_words_as_none(keys, header):
    keys.add("till", ["predict"])
    guarded = Guard(Serve(), "0.0.0.0", keys)
    refusal = guarded.admit("predict", {"authorization": header}, "10.0.0.9", "/")
    assert said(refusal)[0] == 401
    assert refusal is not None
    assert ("www-authenticate", "Bearer") in refusal.headers


def test_a_false_secret_of_a_true_id_is_refused_like_an_unknown_one(keys):
    secret = keys.add("till", ["predict"])
    guarded = Guard(Serve(), "0.0.0.0", keys)
    false = [secret[:-1], secret[:-1] + ("a" if secret[-1] != "a" else "b"), "eg_000000000000_" + "x" * 43]
    answers = {said(guarded.admit("predict", {"x-api-key": each}, "10.0.0.9", "/")) for each in false}
    assert answers == {(401, "the key is not known, or was revoked")}


def test_a_revoked_key_stops_and_a_new_one_works_while_the_server_runs(keys, monkeypatch):
    monkeypatch.setattr(access_control, "LOOK_SECONDS", 0.01)
    secret = keys.add("till", ["predict"])
    guarded = Guard(Serve(), "0.0.0.0", keys)
    guarded.start()
    try:
        keys.revoke("till")
        again = keys.add("till", ["predict"])
        while guarded.admit("predict", {"x-api-key": again}, "10.0.0.9", "/") is not None:
            time.sleep(0.01)
        assert said(guarded.admit("predict", {"x-api-key": secret}, "10.0.0.9", "/"))[0] == 401
    finally:
        guarded.stop()


def test_keys_are_looked_at_often_enough_that_a_revoked_one_stops_within_two_seconds():
    assert 2 * access_control.LOOK_SECONDS <= 2


def test_a_database_that_is_away_ends_neither_the_server_nor_its_keys(keys, monkeypatch, caplog):
    monkeypatch.setattr(access_control, "LOOK_SECONDS", 0.001)
    secret = keys.add("till", ["predict"])
    guarded = Guard(Serve(), "0.0.0.0", keys)
    monkeypatch.setattr(keys, "locks", lambda: (_ for _ in ()).throw(ProjectError("the database of keys cannot be used")))
    guarded.start()
    try:
        while "cannot be used" not in caplog.text:
            time.sleep(0.001)
        assert guarded.admit("predict", {"x-api-key": secret}, "10.0.0.9", "/") is None
    finally:
        guarded.stop()


@pytest.mark.parametrize(
    ("headers", "line"),
    [
        ({"host": "evil.example.org"}, "names of this machine alone"),
        ({"host": "127.0.0.1.example.org:8000"}, "names of this machine alone"),
        ({"host": "localhost:8000", "origin": "https://evil.example.org"}, "pages from elsewhere"),
        ({"host": "localhost:8000", "origin": "http://localhost:9999"}, "pages from elsewhere"),
        ({"host": "localhost:8000", "origin": "null"}, "pages from elsewhere"),
        ({"origin": "http://evil.example.org"}, "pages from elsewhere"),
        ({"host": ""}, "names of this machine alone"),
    ],
)
def test_without_keys_no_page_from_elsewhere_speaks_to_the_server(keys, headers, line):
    status, told = said(Guard(Serve(), "127.0.0.1", keys).admit("predict", headers, "127.0.0.1", "/"))
    assert status == 403
    assert line in told
    assert "serve.keys" in told


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "localhost:8000", "[::1]:8000", "[::1]", None])
def test_without_keys_programs_and_the_servers_own_page_do(keys, host):
    guarded = Guard(Serve(), "127.0.0.1", keys)
    headers = {} if host is None else {"host": host, "origin": f"http://{host}"}
    assert guarded.admit("predict", headers, "127.0.0.1", "/") is None
    assert guarded.admit("predict", headers, "127.0.0.1", "/") is None


def test_a_caller_has_a_second_worth_of_requests_and_then_so_many_per_second(keys, clock):
    guarded = Guard(Serve(rate_per_second=5), "127.0.0.1", keys)

    def admitted(client: str) -> int:
        return sum(guarded.admit("predict", {}, client, "/") is None for _ in range(20))

    assert admitted("127.0.0.1") == 5
    assert admitted("127.0.0.2") == 5
    clock[0] += 0.41
    assert admitted("127.0.0.1") == 2
    clock[0] += 3600
    assert admitted("127.0.0.1") == 5
    refusal = guarded.admit("predict", {}, "127.0.0.1", "/")
    assert said(refusal) == (429, "too many requests; serve.rate_per_second is the limit")
    assert refusal is not None
    assert refusal.headers == (("retry-after", "1"),)


def test_a_key_has_its_own_rate_wherever_it_comes_from_and_guessers_take_none_of_it(keys, clock):
    secret = keys.add("till", ["predict"])
    guarded = Guard(Serve(rate_per_second=3), "0.0.0.0", keys)
    guesses = [guarded.admit("predict", {"x-api-key": "eg_x_y"}, "10.0.0.9", "/") for _ in range(5)]
    assert [said(each)[0] for each in guesses] == [401, 401, 401, 429, 429]
    answers = [guarded.admit("predict", {"x-api-key": secret}, f"10.0.0.{last}", "/") for last in (9, 8, 7, 6)]
    assert [each and each.status for each in answers] == [None, None, None, 429]


def test_less_than_one_request_a_second_can_be_the_limit(clock):
    rate = Rate(0.1)
    assert rate.wait("a") == 0
    assert rate.wait("a") == 10
    clock[0] += 10
    assert rate.wait("a") == 0


def test_one_network_of_ipv6_is_one_caller(clock):
    rate = Rate(1)
    assert rate.wait("2001:db8::1") == 0
    assert rate.wait("2001:db8::ffff:2%eth0") == 1
    assert rate.wait("2001:db8:0:1::1") == 0
    assert rate.wait("::ffff:10.0.0.1") == 0
    assert rate.wait("10.0.0.1") == 1


def test_callers_that_are_quiet_are_forgotten(clock, monkeypatch):
    monkeypatch.setattr(access_control, "FEW", 100)
    rate = Rate(1)
    for caller in range(1000):
        assert rate.wait(f"10.0.0.{caller}") == 0
        clock[0] += 0.1
    assert len(rate._full) < 250
    assert rate.wait("10.0.0.999") > 0


def test_refusals_are_told_once_a_second_without_the_key_and_without_breaking_the_log(keys, clock, caplog):
    secret = keys.add("till", ["predict"])
    guarded = Guard(Serve(), "0.0.0.0", keys)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            guarded.admit("labels", {"x-api-key": secret}, "10.0.0.9", "/v1/labels\r\nfalse line " + "x" * 999)
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]
    assert len(caplog.messages[0]) < 300
    assert "refused 403 from 10.0.0.9" in caplog.messages[0]
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


@given(VALUES, strategies.integers(0, 2 * DEEPEST), strategies.booleans())
def test_depth_is_what_a_parser_finds_whatever_the_strings_hold(value, around, mapped):
    for _ in range(around):
        value = {'[{"\\': value, "x": "]}"} if mapped else ["]", value, "\\"]
    assert too_deep(orjson.dumps(value)) == (depth(value) > DEEPEST)


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
def test_the_depth_of_what_is_no_json_is_found_in_one_pass(body, deep):
    """With a look that grows with the square of the length this would take an hour."""
    assert too_deep(body) == deep
