"""API keys: a secret is shown once and stored as a hash; a key has scopes, and can be revoked."""

import threading

import pytest
from typer.testing import CliRunner

from evergreen.flows.cli.main import app
from evergreen.serving import keys
from evergreen.serving.keys import Keys, key_id
from evergreen.tasks.core.errors import ParamsError, ProjectError


def test_a_key_matches_only_its_secret_until_it_is_revoked(address):
    known = Keys(address)
    secret, other = known.add("till", ["predict", "events", "predict"]), known.add("desk", ["labels"])
    hashed = known.active_keys()[key_id(secret)]
    assert hashed.key.name == "till"
    assert hashed.key.scopes == {"predict", "events"}
    assert hashed.matches(secret)
    assert not any(hashed.matches(each) for each in (other, secret[:-1], secret + "x", "", key_id(secret), "eg_\udc80"))
    revoked = known.revoke("till")
    assert [key.name for key in (each.key for each in known.active_keys().values())] == ["desk"]
    assert [(each.name, each.revoked) for each in Keys(address).list()] == [("till", revoked.revoked), ("desk", None)]


def test_the_database_does_not_hold_a_secret(tmp_path):
    secret = Keys(f"sqlite:///{tmp_path / 'evergreen.db'}").add("till", ["predict"])
    kept = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert key_id(secret).encode() in kept
    assert secret.rpartition(f"{key_id(secret)}_")[2].encode() not in kept


def test_two_keys_with_the_same_random_part_have_different_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(keys.secrets, "token_urlsafe", lambda size: "x" * size)
    known = Keys(f"sqlite:///{tmp_path / 'evergreen.db'}")
    known.add("one", ["predict"])
    known.add("two", ["predict"])
    assert len({each.digest for each in known.active_keys().values()}) == 2


def test_a_secret_is_compared_in_constant_time(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(keys, "compare_digest", lambda one, two: bool(compared.append(len(one))) or one == two)
    known = Keys(f"sqlite:///{tmp_path / 'evergreen.db'}")
    secret = known.add("till", ["predict"])
    assert known.active_keys()[key_id(secret)].matches(secret)
    assert compared == [32]


@pytest.mark.parametrize(
    ("name", "scopes", "line"),
    [
        ("a b", ["predict"], "'a b': is not a valid key name; use a letter"),
        ("till\n", ["predict"], "is not a valid key name"),
        ("x" * 65, ["predict"], "64 at most"),
        ("till", [], "till: a key needs a scope; name at least one of predict, events, labels, read, admin"),
        ("till", ["all"], "--scope all: unknown scope; take one of predict, events, labels, read, admin"),
    ],
)
def test_an_invalid_name_or_scope_is_named(tmp_path, name, scopes, line):
    with pytest.raises(ParamsError, match=line):
        Keys(f"sqlite:///{tmp_path / 'evergreen.db'}").add(name, scopes)


def test_a_name_has_one_active_key_and_can_be_used_again_after_revocation(address):
    known = Keys(address)
    known.add("till", ["predict"])
    with pytest.raises(ParamsError, match="till: an active key has this name; take another name"):
        known.add("till", ["events"])
    known.revoke("till")
    known.add("till", ["events"])
    assert [each.revoked is None for each in known.list()] == [False, True]
    with pytest.raises(ParamsError, match="desk: no active key has this name; active keys: till"):
        known.revoke("desk")


def test_of_concurrent_additions_of_one_name_one_succeeds(address):
    known, found = Keys(address), list[str]()

    def add() -> None:
        try:
            found.append(known.add("till", ["predict"]))
        except ParamsError:
            found.append("")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(map(bool, found)) == [False, False, False, True]


def test_a_database_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectError, match="the database of keys cannot be used"):
        Keys(f"sqlite:///{tmp_path / 'file' / 'evergreen.db'}")


@pytest.mark.parametrize("text", ["", "eg", "eg_", "abc", "eg__", "EG_12_x", "_12_x"])
def test_a_text_that_is_not_a_secret_has_no_key_id(text):
    assert key_id(text) == ""


def test_the_command_shows_a_secret_once(tmp_path, monkeypatch):
    monkeypatch.delenv("EVERGREEN_DATABASE", raising=False)
    (tmp_path / "params.yaml").write_text("")
    at, runner = ["--root", str(tmp_path)], CliRunner()
    made = runner.invoke(app, ["keys", "add", "till", "--scope", "predict", "--scope", "labels", *at])
    secret = made.stdout.strip()
    active = Keys(f"sqlite:///{tmp_path / 'var' / 'evergreen.db'}").active_keys()
    assert active[key_id(secret)].matches(secret)
    for command in (["list"], ["list", "--json"], ["revoke", "till"], ["list"]):
        done = runner.invoke(app, ["keys", *command, *at])
        assert done.exit_code == 0, done.output
        assert "till" in done.output
        assert secret not in done.output
        assert secret.rpartition(f"{key_id(secret)}_")[2] not in done.output
