"""Purchase events: each is stored once or rejected with its reason; lists and scored files use them at once."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from evergreen.flows import settings
from evergreen.flows.cli import events as events_command
from evergreen.flows.operations import batch_scoring, recommend, upgrade
from evergreen.serving import event_log, recommender_service
from evergreen.serving.event_log import Event, EventLog, RejectedEvent
from evergreen.serving.event_validation import EventValidator
from evergreen.serving.recommender_service import OnlineRecommender
from evergreen.tasks.config import loading, params
from evergreen.tasks.core import schema_revision
from evergreen.tasks.core.errors import DataError, ModelError, ParamsError, ProjectError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.recommender.item_explanations import CoPurchases
from evergreen.tasks.problems.recommender.list_request import Request
from tests.contracts import World, build, write

NOW = datetime(2017, 8, 1, 12, tzinfo=UTC)
LAST = date(2017, 7, 23)
TOO_OLD = "is before 2017-01-01, the first day of the purchases in the tables"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The features of the small store where its project keeps them."""
    made = build("recommend", tmp_path_factory.mktemp("events"))
    place = Layout(made.folder).features("recommend")
    place.parent.mkdir(parents=True)
    write(made.frames, place)
    return made


@pytest.fixture(scope="module")
def model(world: World) -> Any:
    return world.fit(world.defaults("frequency"))


@pytest.fixture
def known(world: World) -> params.Params:
    return loading.load(world.folder / "params.yaml")


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(f"sqlite:///{tmp_path / 'var' / 'evergreen.db'}")


@pytest.fixture
def start(world: World, known: params.Params, model: Any, tmp_path: Path) -> Callable[[], OnlineRecommender]:
    """Starts a recommender as another process would: with its own connection to the same log."""
    address = f"sqlite:///{tmp_path / 'live.db'}"
    return lambda: OnlineRecommender(known, "recommend", Layout(world.folder), model, 1, EventLog(address))


def event(number: int, **changed: Any) -> Event:
    return Event(**{**vars(Event(f"e{number}", "7", "1003", "b1", LAST, 1.0, None)), **changed})


def test_an_event_is_stored_once_and_survives_a_restart(address):
    log = EventLog(address)
    first = [event(1), event(2, item="1004"), event(1, item="1005")]
    assert log.append("recommend", first) == [event(1), event(2, item="1004")]
    assert log.append("recommend", [event(2), event(3)], [RejectedEvent({"user": 7}, "because")]) == [event(3)]
    assert log.append("other", [event(1)]) == [event(1)]
    again = EventLog(address)
    found = again.since("recommend")
    assert found.lines.rows() == [("7", "b1", item, LAST) for item in ("1003", "1004", "1003")]
    assert [(each.event, each.reason) for each in again.rejected("recommend", 9)] == [('{"user": 7}', "because")]
    assert again.rejected("other", 9) == []


def test_concurrent_writers_of_the_same_events_store_each_once(address):
    sent = [event(number) for number in range(300)]
    counted: list[int] = []
    writers = [
        threading.Thread(
            target=lambda draw: counted.extend(
                len(EventLog(address).append("recommend", [sent[at] for at in part]))
                for part in np.array_split(draw.permutation(300), 10)
            ),
            args=(np.random.default_rng(seed),),
        )
        for seed in range(3)
    ]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert sum(counted) == 300
    assert EventLog(address).since("recommend").lines.height == 300


def read(log: EventLog, position: str) -> tuple[list[str], str]:
    """The baskets of new lines, and where the reader is then."""
    found = log.since("recommend", position)
    assert not found.withdrawn
    return found.lines["basket"].to_list(), found.position


def test_a_reader_resumes_at_its_position(address):
    log = EventLog(address)
    assert read(log, event_log.START)[0] == []
    log.append("recommend", [event(1, basket="b1"), event(2, basket="b2")])
    found, position = read(log, event_log.START)
    assert found == ["b1", "b2"]
    log.append("other", [event(3, basket="b3")])
    assert read(log, position)[0] == []
    EventLog(address).append("recommend", [event(4, basket="b4")])
    assert read(log, position)[0] == ["b4"]


@pytest.mark.postgres
def test_events_that_commit_late_reach_each_reader_once_however_many_come_between(postgres):
    """Transactions that began first and end last, one withdrawn by a rollback; readers look between all commits."""
    log, engine = EventLog(postgres), sa.create_engine(postgres)
    slow = [engine.connect() for _ in range(3)]
    for place, each in enumerate(slow):
        each.execute(event_log.TRANSACTION)
        rows = [
            vars(event(number, basket=f"slow{place}")) for number in range(10_000 * (place + 1), 10_000 * (place + 1) + 700)
        ]
        changed = each.execute(event_log.TRANSACTION).scalar()
        each.execute(
            sa.insert(event_log.EVENTS), [{**row, "problem": "recommend", "recorded": NOW, "changed": changed} for row in rows]
        )
    seen, position = list[str](), event_log.START

    def look() -> None:
        nonlocal position
        found, position = read(log, position)
        seen.extend(found)

    for part in range(4):
        log.append("recommend", [event(number, basket="fast") for number in range(part * 2000, part * 2000 + 2000)])
        look()
        if part < 2:
            slow[1 - part].commit()
            look()
    slow[2].rollback()
    look()
    counts = {basket: seen.count(basket) for basket in set(seen)}
    assert counts == {"fast": 8000, "slow0": 700, "slow1": 700}
    assert log.since("recommend", position).lines.height == 0
    for each in slow:
        each.close()
    engine.dispose()


def test_a_withdrawn_event_stays_withdrawn_when_it_is_sent_again(address):
    log, other = EventLog(address), EventLog(address)
    log.append("recommend", [event(1, basket="b1"), event(2, basket="b2", moment=NOW)])
    assert set(log.received("recommend").select("basket", "moment").rows()) == {("b1", None), ("b2", NOW)}
    position, fingerprint = other.since("recommend").position, other.fingerprint("recommend")
    log.append("other", [event(1)])
    assert other.fingerprint("recommend") == fingerprint
    assert log.withdraw("recommend", ["e1", "e9", "e1"]) == event_log.Withdrawal(1, 0, ("e9",))
    assert log.withdraw("recommend", ["e1"]) == event_log.Withdrawal(0, 1, ())
    assert log.withdraw("other", ["e2"]) == event_log.Withdrawal(0, 0, ("e2",))
    found = other.since("recommend", position)
    assert found.withdrawn
    assert other.fingerprint("recommend") != fingerprint
    assert other.since("recommend").lines["basket"].to_list() == ["b2"] == other.received("recommend")["basket"].to_list()
    assert not other.since("recommend", found.position).withdrawn
    assert log.append("recommend", [event(1)]) == []
    assert other.since("recommend").lines["basket"].to_list() == ["b2"]


def test_a_reader_of_a_restored_database_begins_again(address):
    log = EventLog(address)
    log.append("recommend", [event(1)])
    ahead = "900000:900000:" if address.startswith("postgresql") else "900"
    found = log.since("recommend", ahead)
    assert (found.withdrawn, found.lines.height) == (True, 1)


@pytest.mark.postgres
def test_events_of_a_dump_of_another_server_are_read_once(postgres):
    engine = sa.create_engine(postgres)
    EventLog(postgres).append("recommend", [event(1)])
    with engine.begin() as link:
        link.execute(sa.update(event_log.EVENTS).values(changed=2**40))
    log = EventLog(postgres)
    found, position = read(log, event_log.START)
    assert found == ["b1"]
    assert read(log, position)[0] == []
    engine.dispose()


def test_the_upgrade_gives_a_table_of_an_earlier_version_its_columns(address):
    engine = sa.create_engine(address)
    EventLog(address).append("recommend", [event(1)])
    with engine.begin() as link:
        link.execute(sa.text("DROP INDEX events_by_change"))
        for column in ("changed", "withdrawn"):
            link.execute(sa.text(f"ALTER TABLE events DROP COLUMN {column}"))
        schema_revision.TABLE.drop(link)
    upgrade.run(address)
    log = EventLog(address)
    found, position = read(log, event_log.START)
    log.append("recommend", [event(2, basket="b2")])
    assert (found, read(log, position)[0]) == (["b1"], ["b2"])
    assert log.withdraw("recommend", ["e1"]).withdrawn == 1
    assert sa.inspect(engine).has_index("events", "events_by_change")


@pytest.mark.parametrize("address", ["nonsense", "nosuch://x/y"])
def test_an_invalid_address_is_named(address):
    with pytest.raises(ProjectError, match="the address of the database of events"):
        EventLog(address)


def test_a_database_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectError, match="the database of events cannot be used"):
        EventLog(f"sqlite:///{tmp_path / 'file' / 'evergreen.db'}")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"user": None}, "household_id: is missing; an event needs a user"),
        ({"user": "bob"}, "household_id = bob: is not a valid id; ids look like 1"),
        ({"user": 10**30}, f"household_id = {10**30}: is not a valid id; ids look like 1"),
        ({"item": None}, "product_id: is missing; an event needs an item"),
        ({"item": 424_242}, "product_id = 424242: is neither in products nor among the purchases"),
        ({"item": 900}, "product_id = 900: is neither in products nor among the purchases"),
        ({"quantity": -1}, "quantity = -1: is below 0; a return is not a purchase"),
        ({"quantity": "lots"}, "quantity = lots: is not a finite number"),
        ({"quantity": float("inf")}, "quantity = inf: is not a finite number"),
        ({"time": "2017-08-01T12:06:00+00:00"}, "transaction_timestamp = 2017-08-01T12:06:00+00:00: is in the future"),
        ({"time": "2017-08-02"}, "transaction_timestamp = 2017-08-02: is in the future"),
        ({"time": "yesterday"}, "transaction_timestamp = yesterday: is neither a day (YYYY-MM-DD) nor a time"),
        ({"time": "0001-01-01"}, f"transaction_timestamp = 0001-01-01: {TOO_OLD}"),
        ({"time": "0001-01-01T00:00:00+14:00"}, f"transaction_timestamp = 0001-01-01T00:00:00+14:00: {TOO_OLD}"),
        ({"time": "1970-01-01T00:00:00"}, f"transaction_timestamp = 1970-01-01T00:00:00: {TOO_OLD}"),
        ({"time": "9999-12-31T23:59:59-14:00"}, "transaction_timestamp = 9999-12-31T23:59:59-14:00: is in the future"),
        ({"time": "9999-12-31"}, "transaction_timestamp = 9999-12-31: is in the future"),
        ({"basket": "a\0b"}, "basket = 'a\\x00b': holds NUL or half a character, which a database cannot store"),
        ({"id": "\ud800"}, "id = '\\ud800': holds NUL or half a character, which a database cannot store"),
        ({"user": "a\0"}, "household_id = a\\x00: is not a valid id; ids look like 1"),
        ({"basket": "b" * 300}, "basket = bbbbbbbbbbbbbbbbbbbb…: is longer than 255 characters"),
    ],
)
def test_a_rejected_event_has_its_reason_and_stops_no_other(known, world, given, reason):
    good = {"user": 7, "item": 1003, "basket": "b1", "time": "2017-08-01"}
    accepted, rejected = EventValidator(known, "recommend", world.data).validate([{**good, **given}, good], NOW)
    assert [each.reason for each in rejected] == [reason]
    assert [each.item for each in accepted] == ["1003"]


def test_an_event_is_read_by_the_column_names_of_the_purchases_in_local_time(known, world):
    row = {"household_id": 7.0, "product_id": "1003", "basket_id": 5, "quantity": None, "note": "x"}
    times = [
        "2017-07-30T02:00:00",  # stored in UTC: still the 29th in New York
        datetime(2017, 7, 30, 2),
        datetime(2017, 7, 30, 2, tzinfo=UTC),
        "2017-07-30T02:00:00-04:00",
        date(2017, 7, 30),
        None,
    ]
    accepted, rejected = EventValidator(known, "recommend", world.data).validate(
        [{**row, "transaction_timestamp": at} for at in times], NOW
    )
    assert not rejected
    assert [each.day.day for each in accepted] == [29, 29, 29, 30, 30, 23]
    at = [each.moment and each.moment.isoformat() for each in accepted]
    assert at == [*["2017-07-30T02:00:00+00:00"] * 3, "2017-07-30T06:00:00+00:00", None, NOW.isoformat()]
    assert {(each.user, each.item, each.basket, each.quantity) for each in accepted} == {("7", "1003", "5", 1.0)}
    assert len({each.id for each in accepted}) == 1


def bought_before(recommender: OnlineRecommender, user: int) -> list[int]:
    return recommender.recommend(Request(users=(user,), show="rebuy", k=96, explain=False)).item.tolist()


def test_a_purchase_changes_the_next_list_in_every_process_and_after_a_restart(start, world):
    here, there = start(), start()
    never = sorted(set(here._builder.model.catalogue_.tolist()) - set(bought_before(here, 6)))[:2]
    sent = [{"user": 6, "item": item, "basket": "b9", "time": "2017-07-25"} for item in never]
    assert (found := here.record_events([*sent, sent[0]], NOW)).rejected == ()
    assert (found.accepted, found.duplicate) == (2, 1)
    assert set(never) < set(bought_before(here, 6))
    assert not set(never) & set(bought_before(there, 6))
    there.refresh()
    assert bought_before(there, 6) == bought_before(here, 6) == bought_before(start(), 6)
    assert here.record_events(sent, NOW).duplicate == 2
    assert bought_before(here, 6) == bought_before(there, 6)


def test_an_item_that_nobody_had_bought_is_in_its_buyers_next_list_in_every_process_until_withdrawn(
    world, known, model, tmp_path
):
    """A product of the table of items that no purchase before the training names."""
    frames = {
        **world.frames,
        "items": pl.concat([world.frames["items"], pl.DataFrame({"item": [4999]})], how="diagonal_relaxed"),
    }
    place = Layout(tmp_path).features("recommend")
    place.parent.mkdir(parents=True)
    write(frames, place)

    def start() -> OnlineRecommender:
        return OnlineRecommender(known, "recommend", Layout(tmp_path), model, 1, EventLog(f"sqlite:///{tmp_path / 'live.db'}"))

    here, there = start(), start()
    before = bought_before(here, 6)
    assert here.record_events([{"id": "first", "user": 6, "item": 4999, "time": "2017-07-30"}], NOW).accepted == 1
    there.refresh()
    for each in (here, there, start()):
        assert set(bought_before(each, 6)) == {*before, 4999}
        assert 4999 in each.recommend(Request(users=(6,), k=50)).item.tolist()
        assert 4999 not in each.recommend(Request(users=(7,), k=50)).item.tolist()
    assert here.withdraw_events(["first"]).withdrawn == 1
    there.refresh()
    assert bought_before(here, 6) == bought_before(there, 6) == before


def test_a_withdrawn_purchase_is_as_if_it_had_never_been_in_every_process(start):
    here, there = start(), start()
    before = bought_before(here, 6)
    never = sorted(set(here._builder.model.catalogue_.tolist()) - set(before))[:2]
    sent = [{"id": f"w{item}", "user": 6, "item": item, "basket": "b9", "time": "2017-07-25"} for item in never]
    here.record_events(sent, NOW)
    there.refresh()
    assert here.withdraw_events([f"w{never[0]}"]).withdrawn == 1
    there.refresh()
    for each in (here, there, start()):
        assert set(bought_before(each, 6)) == {*before, never[1]}
    assert here.record_events(sent, NOW).duplicate == 2
    assert here.withdraw_events([f"w{never[1]}"]).withdrawn == 1
    there.refresh()
    for each in (here, there, start()):
        assert bought_before(each, 6) == before


def test_a_list_is_cached_until_its_user_buys_and_equals_a_fresh_list(start, world):
    recommender, other = start(), start()
    users = recommender.users()[:12]
    first = {user: recommender.recommend(Request(users=(user,))) for user in users}
    assert all(recommender.recommend(Request(users=(str(user),))) is not None for user in users)
    assert all(recommender.recommend(Request(users=(user,))) is first[user] for user in users)
    assert recommender.recommend(Request(users=(users[0],), k=2)) is not first[users[0]]
    bought = first[users[0]].item[-1].item()
    other.record_events([{"id": "of another process", "household_id": users[0], "product_id": bought}])
    recommender.refresh()
    assert recommender.recommend(Request(users=(users[0],))) is not first[users[0]]
    assert all(recommender.recommend(Request(users=(user,))) is first[user] for user in users[1:])
    fresh_process = start()
    for user in users:
        kept, fresh = recommender.recommend(Request(users=(user,))), fresh_process.recommend(Request(users=(user,)))
        assert kept.item.tolist() == fresh.item.tolist()
        assert kept.score.tolist() == pytest.approx(fresh.score.tolist())
        assert kept.explanation == fresh.explanation


def test_clients_cannot_fill_the_memory_with_cached_lists(start, monkeypatch):
    monkeypatch.setattr(recommender_service, "CACHED_ITEMS", 100)
    recommender = start()
    for number in range(40):
        recommender.recommend(Request(users=(f"u{number}",), k=5))
        kept = [each for mine in recommender._cache.values() for each in mine.values()]
        assert sum(10 + len(each.item) for each in kept) == recommender._cached_items <= 100
    assert recommender.cached(Request(users=("u39",), k=5))
    long = Request(users=("u" * 2_000,), k=5)
    recommender.recommend(long)
    assert recommender.cached(long) is None


def test_rejected_events_are_stored(start, known, tmp_path):
    here = start()
    found = here.record_events([{"user": 6, "item": 1, "basket": "b9"}, {"user": 6, "item": 1003, "quantity": -3}], NOW)
    assert found.accepted == 0
    kept = EventLog(f"sqlite:///{tmp_path / 'live.db'}").rejected("recommend", 9)
    assert [(json.loads(each.event)["item"], each.reason) for each in kept] == [
        (each.event["item"], each.reason) for each in found.rejected
    ]
    assert EventLog(f"sqlite:///{tmp_path / 'live.db'}").rejected("recommend", 1) == kept[-1:]


def test_a_started_recommender_has_built_what_explanations_need(start, monkeypatch):
    recommender = start()
    monkeypatch.setattr(CoPurchases, "of", lambda histories, catalogue: pytest.fail("is built with a list"))
    assert recommender.recommend(Request.read({"users": [6], "show": "discover"})).explanation


def test_a_changed_stock_table_is_reloaded(world, known, model, tmp_path):
    layout = Layout(world.folder)
    features = world.section.features.model_copy(update={"stock": "left", "stock_table": "shelf"})
    section = world.section.model_copy(update={"features": features})
    stocked = known.model_copy(update={"sections": {**known.sections, "recommend": section}})
    recommender = OnlineRecommender(stocked, "recommend", layout, model, 1, EventLog(f"sqlite:///{tmp_path / 'x.db'}"))
    layout.table("shelf").parent.mkdir(parents=True, exist_ok=True)
    for left in ([0, 3], [3, 0]):
        pl.DataFrame({"product_id": [1000, 1001], "left": left}).write_parquet(layout.table("shelf"))
        recommender.refresh()
        found = recommender.recommend(Request.read({"users": [6], "rules": {"in_stock": True}}))
        assert found.item.tolist() == [1001 if left[1] else 1000]


def test_a_model_that_does_not_fit_the_code_is_named_with_its_version(known, world, model, log):
    broken = model.reading(model.histories_, model.day_)
    del broken.half_life_days
    with pytest.raises(ModelError, match=r"recommend: version 7 cannot recommend: .*half_life_days.*Train again, or name"):
        OnlineRecommender(known, "recommend", Layout(world.folder), broken, 7, log)


def test_a_problem_without_lists_or_without_features_is_named(known, model, tmp_path):
    with pytest.raises(ParamsError, match="spend: is a regression problem and has no lists; name a recommendation problem"):
        recommender_service.section(known, "spend")
    with pytest.raises(ModelError, match="recommend: has no features yet; run evergreen train recommend"):
        recommender_service.load(known, "recommend", Layout(tmp_path))


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch, world: World, model: Any, tmp_path: Path) -> Layout:
    """A project whose champion is the model, with its own event log."""
    monkeypatch.setattr(batch_scoring, "champion", lambda layout, problem, version: (model, version or 4))
    monkeypatch.setenv("EVERGREEN_DATABASE", f"sqlite:///{tmp_path / 'own.db'}")
    return Layout(world.folder)


def scored(layout: Layout, known: params.Params, folder: Path, households: list[Any], **options: Any) -> pl.DataFrame:
    pl.DataFrame({"household_id": households}).write_csv(folder / "in.csv")
    batch_scoring.run(
        layout, known, "recommend", folder / "in.csv", folder / "out.parquet", None, batch_scoring.Lists(**options)
    )
    return pl.read_parquet(folder / "out.parquet")


def test_a_scored_file_has_a_row_per_household_and_rank_in_the_given_order(deployed, known, tmp_path):
    found = scored(deployed, known, tmp_path, [9, 4, 9, 123_456], k=3)
    assert found.columns == ["household_id", "rank", "product_id", "score", "source"]
    assert found["household_id"].to_list() == ["9"] * 3 + ["4"] * 3 + ["9"] * 3 + ["123456"] * 3
    assert found["rank"].to_list() == [1, 2, 3] * 4
    assert found[:3].equals(found[6:9])
    explanations = scored(deployed, known, tmp_path, [9], k=3, explain=True)["explanation"].to_list()
    assert all(reason.startswith("bought ") for reason in explanations)
    assert scored(deployed, known, tmp_path, [9], k=1000).height == 96


def test_a_scored_file_uses_events_and_leaves_them_out_as_of_an_earlier_day(deployed, known, world, tmp_path, caplog):
    before = set(scored(deployed, known, tmp_path, [6], k=96).filter(pl.col("source") == "rebuy")["product_id"])
    never = sorted(set(range(1000, 1096)) - before)[0]
    (tmp_path / "sold.csv").write_text(
        f"household_id,product_id,basket_id,transaction_timestamp,event_id\n6,{never},b1,{LAST}T12:00:00,e1\n6,5,b1,,e2\n"
    )
    counts = recommend.record_events(deployed, known, "recommend", tmp_path / "sold.csv")
    assert (counts.accepted, len(counts.rejected)) == (1, 1)
    after = scored(deployed, known, tmp_path, [6], k=96)
    assert never in set(after.filter(pl.col("source") == "rebuy")["product_id"])
    assert not caplog.messages
    earlier = scored(deployed, known, tmp_path, [6], k=96, as_of=date(2017, 4, 2))
    own = world.frames["lines"].filter((pl.col("user") == 6) & (pl.col("day") <= date(2017, 4, 2)))["item"].unique()
    assert set(earlier.filter(pl.col("source") == "rebuy")["product_id"]) == set(own)
    assert "lists as of 2017-04-02 know of what came later" in caplog.messages[0]
    novel = scored(deployed, known, tmp_path, [6], k=96, novel=True)
    assert set(novel["product_id"]) == set(range(1000, 1096)) - before - {never}


def test_the_command_withdraws_by_id_and_names_what_is_unknown(deployed, known, tmp_path, capsys):
    (tmp_path / "sold.csv").write_text(f"user,item,basket,time,id\n6,1003,b1,{LAST},e1\n6,1004,b1,{LAST},e2\n")
    root = deployed.root
    events_command.events("recommend", tmp_path / "sold.csv", root=root, as_json=False)
    events_command.events("recommend", withdraw=["e1", "e2"], root=root, as_json=True)
    assert '"withdrawn": 2' in capsys.readouterr().out
    with pytest.raises(DataError, match="recommend: no event has the id e9; the others are withdrawn"):
        events_command.events("recommend", withdraw=["e1", "e9"], root=root, as_json=False)
    with pytest.raises(ParamsError, match="needs either --data FILE or --withdraw ID"):
        events_command.events("recommend", tmp_path / "sold.csv", ["e1"], root=root, as_json=False)
    assert settings.events(deployed).since("recommend").lines.height == 0


def test_a_file_without_users_gives_an_empty_file_with_the_same_columns(deployed, known, tmp_path):
    (tmp_path / "none.csv").write_text("household_id\n")
    batch_scoring.run(deployed, known, "recommend", tmp_path / "none.csv", tmp_path / "out.csv", None)
    assert (tmp_path / "out.csv").read_text() == "household_id,rank,product_id,score,source\n"


@pytest.mark.parametrize(
    ("problem", "options", "says"),
    [
        ("recommend", {"k": 0}, "--k 0: a list holds at least 1 item"),
        ("spend", {"k": 3}, "--k: spend is a problem of regression and has no lists"),
        ("spend", {"as_of": LAST}, "--as-of: spend is a problem of regression and has no lists"),
    ],
)
def test_an_option_that_does_not_apply_is_an_error(deployed, known, tmp_path, problem, options, says):
    with pytest.raises(ParamsError, match=says):
        batch_scoring.run(
            deployed, known, problem, tmp_path / "in.csv", tmp_path / "o.csv", None, batch_scoring.Lists(**options)
        )


def test_the_command_returns_lists_with_explanations_and_notes(deployed, known):
    found = recommend.recommend(deployed, known, "recommend", {"users": ["9"], "k": 2, "show": "rebuy"}, None)
    assert (found.version, found.notes) == (4, [])
    assert [(row["household_id"], row["rank"], row["source"]) for row in found.lists] == [("9", 1, "rebuy"), ("9", 2, "rebuy")]
    assert found.lists[0]["explanation"].startswith("bought ")
    anonymous = recommend.recommend(deployed, known, "recommend", {"k": 100, "as_of": date(2017, 4, 2)}, 2)
    assert anonymous.lists[0]["household_id"] is None
    assert anonymous.notes[0].startswith("an anonymous user: 96 of 100 asked for")
    assert anonymous.notes[1].startswith("version 2 was trained on purchases up to ")
