"""Keys: a secret is shown once, kept as what cannot be turned back, opens for what it is for, and ends when it is revoked."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from evergreen.flows.cli.main import app
from evergreen.serving import keys
from evergreen.serving.keys import Keys, id_of
from evergreen.tasks.core.errors import ParamsError, ProjectError


@pytest.fixture(params=["file", pytest.param("server", marks=pytest.mark.postgres)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"sqlite:///{tmp_path / 'evergreen.db'}"
        return
    address = request.getfixturevalue("postgres")
    yield address
    engine = sa.create_engine(address)
    keys.TABLE.metadata.drop_all(engine)
    engine.dispose()


def test_a_key_opens_for_its_secret_alone_until_it_is_revoked(address):
    known = Keys(address)
    secret, other = known.add("till", ["predict", "events", "predict"]), known.add("desk", ["labels"])
    lock = known.locks()[id_of(secret)]
    assert lock.key.name == "till"
    assert lock.key.scopes == {"predict", "events"}
    assert lock.opens(secret)
    assert not any(lock.opens(each) for each in (other, secret[:-1], secret + "x", "", id_of(secret), "eg_\udc80"))
    revoked = known.revoke("till")
    assert [key.name for key in (each.key for each in known.locks().values())] == ["desk"]
    assert [(each.name, each.revoked) for each in Keys(address).list()] == [("till", revoked.revoked), ("desk", None)]


def test_nothing_of_a_secret_can_be_read_from_the_database(tmp_path):
    secret = Keys(f"sqlite:///{tmp_path / 'evergreen.db'}").add("till", ["predict"])
    kept = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert id_of(secret).encode() in kept
    assert secret.rpartition(f"{id_of(secret)}_")[2].encode() not in kept


def test_two_keys_of_the_same_random_part_would_be_kept_differently(tmp_path, monkeypatch):
    monkeypatch.setattr(keys.secrets, "token_urlsafe", lambda size: "x" * size)
    known = Keys(f"sqlite:///{tmp_path / 'evergreen.db'}")
    known.add("one", ["predict"])
    known.add("two", ["predict"])
    assert len({each.digest for each in known.locks().values()}) == 2


def test_a_secret_is_compared_in_constant_time(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(keys, "compare_digest", lambda one, two: bool(compared.append(len(one))) or one == two)
    known = Keys(f"sqlite:///{tmp_path / 'evergreen.db'}")
    secret = known.add("till", ["predict"])
    assert known.locks()[id_of(secret)].opens(secret)
    assert compared == [32]


@pytest.mark.parametrize(
    ("name", "scopes", "line"),
    [
        ("a b", ["predict"], "'a b': is no name for a key; use a letter"),
        ("till\n", ["predict"], "is no name for a key"),
        ("x" * 65, ["predict"], "64 at most"),
        ("till", [], "till: a key needs a scope; name at least one of predict, events, labels, admin"),
        ("till", ["all"], "--scope all: is none; take one of predict, events, labels, admin"),
    ],
)
def test_a_name_or_scope_that_will_not_do_is_named(tmp_path, name, scopes, line):
    with pytest.raises(ParamsError, match=line):
        Keys(f"sqlite:///{tmp_path / 'evergreen.db'}").add(name, scopes)


def test_a_name_has_one_good_key_and_may_be_used_again_after_it(address):
    known = Keys(address)
    known.add("till", ["predict"])
    with pytest.raises(ParamsError, match="till: is the name of a good key already; take another name"):
        known.add("till", ["events"])
    known.revoke("till")
    known.add("till", ["events"])
    assert [each.revoked is None for each in known.list()] == [False, True]
    with pytest.raises(ParamsError, match="desk: no good key has that name; there are till"):
        known.revoke("desk")


def test_of_two_that_add_the_same_name_at_once_one_gets_a_key(address):
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
def test_a_text_that_is_no_secret_finds_no_key(text):
    assert id_of(text) == ""


def test_the_command_shows_a_secret_once(tmp_path, monkeypatch):
    monkeypatch.delenv("EVERGREEN_DATABASE", raising=False)
    (tmp_path / "params.yaml").write_text("")
    at, runner = ["--root", str(tmp_path)], CliRunner()
    made = runner.invoke(app, ["keys", "add", "till", "--scope", "predict", "--scope", "labels", *at])
    secret = made.stdout.strip()
    locks = Keys(f"sqlite:///{tmp_path / 'var' / 'evergreen.db'}").locks()
    assert locks[id_of(secret)].opens(secret)
    for command in (["list"], ["list", "--json"], ["revoke", "till"], ["list"]):
        done = runner.invoke(app, ["keys", *command, *at])
        assert done.exit_code == 0, done.output
        assert "till" in done.output
        assert secret not in done.output
        assert secret.rpartition("_")[2] not in done.output
