"""Scheduled scoring: each run scores what is new, once, and one bad file does not stop the others."""

import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evergreen.flows import scoring, settings
from evergreen.flows.operations import scheduled_scoring
from evergreen.flows.prefect_runtime import deployments
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import ModelError, ParamsError, SourceError, UnavailableError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.scoring import batch
from tests.kills import KilledError
from tests.projects import Deployed
from tests.tasks.problems.tabular.test_tabular_kind import houses

INPUT = {"files": "incoming/**/*.*"}


@pytest.fixture
def layout(deployed: Deployed, tmp_path: Path) -> Layout:
    found = deployed(tmp_path / "mill", ("dear",))
    (found.root / "incoming").mkdir()
    return found


def rows(seed: int, count: int = 10) -> pl.DataFrame:
    return houses(60).slice(seed, count).select("size", "colour", "built").with_columns(code=pl.format("0{}", pl.col("size")))


def schedule(layout: Layout, source: dict[str, Any] | None = None, **more: Any) -> None:
    text = layout.params.read_text().partition("\n  schedule: {timezone: UTC")[0]
    asked = {"score": "0 5 * * *", **({"input": source} if source else {}), **more}
    layout.params.write_text(f"{text}\n  schedule: {{timezone: UTC, {json.dumps(asked)[1:]}\n")


def run(layout: Layout, problem: str = "dear") -> scheduled_scoring.Result:
    return scheduled_scoring.run(layout, loading.load(layout.params), problem)


def logged(layout: Layout) -> int:
    return settings.ledger(layout).read("dear").rows.height


def test_the_second_run_scores_the_new_file_alone(layout: Layout):
    schedule(layout, INPUT)
    rows(0).write_csv(layout.root / "incoming" / "monday.csv")
    first = run(layout)
    assert first.scored == {"monday.csv": "data/scores/dear/monday.csv"}
    before = (layout.root / "data/scores/dear/monday.csv").stat().st_mtime_ns
    (layout.root / "incoming" / "week").mkdir()
    rows(10).write_parquet(layout.root / "incoming" / "week" / "tuesday.parquet")
    second = run(layout)
    assert second.scored == {"week/tuesday.parquet": "data/scores/dear/week/tuesday.parquet"}
    assert (second.known, second.rows) == (1, 10)
    assert (layout.root / "data/scores/dear/monday.csv").stat().st_mtime_ns == before
    answers = pl.read_parquet(layout.root / "data/scores/dear/week/tuesday.parquet")
    assert answers.select("size", "colour", "built", "code").equals(rows(10))
    assert answers["prediction"].null_count() == 0
    assert run(layout).scored == {}
    assert str(layout.root) not in (layout.var / "scheduled_scoring" / "dear" / "files.json").read_text()


def test_the_flow_scores_a_table_and_the_ledger_holds_each_row_once(layout: Layout):
    schedule(layout, INPUT, output="scored")
    rows(0).write_csv(layout.root / "incoming" / "a.csv")
    for expected in ({"a.csv": "scored/a.csv"}, {}):
        assert scoring.scoring.fn(str(layout.root), "dear")["scored"] == expected
    assert logged(layout) == 10


def test_changed_content_is_scored_into_another_file_and_what_was_scored_stays(layout: Layout):
    schedule(layout, INPUT)
    place = layout.root / "incoming" / "today.csv"
    outs = []
    for seed in (0, 10, 20):
        rows(seed).write_csv(place)
        outs += run(layout).scored.values()
    assert [Path(each).name for each in outs] == ["today.csv", "today.2.csv", "today.3.csv"]
    first = pl.read_csv(layout.root / outs[0], infer_schema=False)
    assert first["code"].to_list() == rows(0)["code"].to_list()
    shutil.copy(place, layout.root / "incoming" / "today.2.csv")
    assert [Path(each).name for each in run(layout).scored.values()] == ["today.2.2.csv"]


def test_files_that_cannot_be_read_are_named_and_set_aside_until_they_change(layout: Layout):
    schedule(layout, INPUT)
    folder = layout.root / "incoming"
    (folder / "a_damaged.parquet").write_bytes(b"PAR1 and no more")
    (folder / "b_empty.csv").write_text("")
    (folder / "c_other.csv").write_text("weight,height\n1,2\n")
    (folder / "d_picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.csv").write_text("half of a fi")
    rows(0).write_csv(folder / "e_good.csv")
    found = run(layout)
    assert list(found.scored) == ["e_good.csv"]
    assert set(found.set_aside) == {"a_damaged.parquet", "b_empty.csv", "c_other.csv", "d_picture.png"}
    assert "size" in found.set_aside["c_other.csv"]
    assert set(run(layout).set_aside) == set(found.set_aside)
    rows(10).write_csv(folder / "c_other.csv")
    again = run(layout)
    assert list(again.scored) == ["c_other.csv"]
    assert len(again.set_aside) == 3


def test_a_killed_run_scores_again_what_it_had_not_finished(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    schedule(layout, INPUT)
    for name in "abc":
        rows(0).write_csv(layout.root / "incoming" / f"{name}.csv")
    real, asked = batch.run, []

    def killed(scorer: Any, data: Path, out: Path, **more: Any) -> batch.Result:
        asked.append(data.name)
        if data.name == "b.csv" and asked.count("b.csv") == 1:
            raise KilledError
        return real(scorer, data, out, **more)

    monkeypatch.setattr(batch, "run", killed)
    with pytest.raises(KilledError):
        run(layout)
    found = run(layout)
    assert asked == ["a.csv", "b.csv", "b.csv", "c.csv"]
    assert set(found.scored) == {"b.csv", "c.csv"}
    assert sorted(each.name for each in (layout.root / "data/scores/dear").iterdir()) == ["a.csv", "b.csv", "c.csv"]


def test_predictions_in_the_folder_of_the_inputs_are_no_inputs(layout: Layout):
    schedule(layout, {"files": "incoming/**/*.csv"}, output="incoming/scored")
    rows(0).write_csv(layout.root / "incoming" / "a.csv")
    assert list(run(layout).scored) == ["a.csv"]
    assert run(layout).scored == {}


def test_a_project_that_was_moved_knows_what_it_scored(layout: Layout):
    schedule(layout, INPUT)
    rows(0).write_csv(layout.root / "incoming" / "a.csv")
    run(layout)
    moved = Layout(Path(shutil.move(layout.root, layout.root.with_name("moved"))))
    assert run(moved).known == 1


@pytest.fixture
def database(layout: Layout) -> Iterator[sqlite3.Connection]:
    with sqlite3.connect(layout.root / "shop.db") as found:
        found.execute("create table houses (id text, size real, colour text, built text)")
        yield found
    found.close()


def insert(database: sqlite3.Connection, first: int, count: int) -> None:
    known = rows(first, count).select("size", "colour", pl.col("built").cast(pl.String))
    database.executemany(
        "insert into houses values (?, ?, ?, ?)", [(f"0{first + i}", *row) for i, row in enumerate(known.rows())]
    )
    database.commit()


def test_rows_of_a_query_are_scored_once_by_their_key(layout: Layout, database: sqlite3.Connection):
    address = f"sqlite:///{layout.root / 'shop.db'}"
    schedule(layout, {"sql": "select * from houses", "url": address, "key": "id"})
    assert run(layout).scored == {}
    insert(database, 0, 5)
    first = run(layout)
    insert(database, 5, 3)
    second = run(layout)
    assert (first.rows, second.rows, second.known) == (5, 3, 5)
    answers = [pl.read_parquet(layout.root / each.scored["query"]) for each in (first, second)]
    assert answers[1]["id"].to_list() == ["05", "06", "07"]
    assert answers[0]["prediction"].null_count() == 0
    assert run(layout).scored == {}
    assert logged(layout) == 8


def test_rows_of_a_query_without_a_key_are_all_scored_in_each_run(layout: Layout, database: sqlite3.Connection):
    schedule(layout, {"sql": "select * from houses", "url": f"sqlite:///{layout.root / 'shop.db'}"})
    insert(database, 0, 5)
    assert run(layout).scored == {"query": "data/scores/dear/dear.parquet"}
    insert(database, 5, 3)
    assert run(layout).rows == 8
    assert pl.read_parquet(layout.root / "data/scores/dear/dear.parquet").height == 8


def test_a_killed_query_is_scored_again_into_the_same_file(
    layout: Layout, database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
):
    schedule(layout, {"sql": "select * from houses", "url": f"sqlite:///{layout.root / 'shop.db'}", "key": "id"})
    insert(database, 0, 5)

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(scheduled_scoring._Run, "_remember", killed)
        with pytest.raises(KilledError):
            run(layout)
    insert(database, 5, 3)
    first, second = run(layout), run(layout)
    assert (first.rows, second.rows) == (5, 3)
    assert len(list((layout.root / "data/scores/dear").iterdir())) == 2


@pytest.mark.parametrize(
    ("source", "error", "rule"),
    [
        ({"sql": "select * from houses", "key": "no"}, ParamsError, r"dear\.schedule\.input\.key = no: .* no such column"),
        ({"sql": "select * from barns"}, SourceError, "no such table: barns"),
    ],
)
def test_a_query_that_cannot_be_scored_says_why(
    layout: Layout, database: sqlite3.Connection, source: dict[str, str], error: type[Exception], rule: str
):
    insert(database, 0, 5)
    schedule(layout, {**source, "url": f"sqlite:///{layout.root / 'shop.db'}"})
    with pytest.raises(error, match=rule):
        run(layout)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_the_file_at_an_address_is_scored_when_its_content_changes(layout: Layout, tmp_path: Path):
    (tmp_path / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        schedule(layout, {"address": f"http://127.0.0.1:{server.server_port}/houses.csv?day=1"})
        with pytest.raises(UnavailableError, match=r"input\.address: 127\.0\.0\.1 does not give houses\.csv: 404"):
            run(layout)
        outs = []
        for seed in (0, 0, 10):
            rows(seed).write_csv(tmp_path / "web" / "houses.csv")
            outs.append(run(layout).scored)
    finally:
        server.shutdown()
        server.server_close()
    assert outs == [
        {"houses.csv": "data/scores/dear/houses.csv"},
        {},
        {"houses.csv": "data/scores/dear/houses.2.csv"},
    ]


def test_a_table_without_an_input_is_told_before_anything_is_scheduled(layout: Layout):
    schedule(layout)
    with pytest.raises(ParamsError, match=r"dear\.schedule\.score: a plain table needs schedule\.input"):
        deployments.check(loading.load(layout.params))
    with pytest.raises(ParamsError, match=r"dear\.schedule\.score: a plain table needs schedule\.input"):
        scoring.scoring.fn(str(layout.root), "dear")


def test_nothing_is_set_aside_where_nothing_is_deployed(layout: Layout):
    schedule(layout, INPUT)
    rows(0).write_csv(layout.root / "incoming" / "a.csv")
    (layout.var / "evergreen.db").unlink()
    with pytest.raises(ModelError, match="nothing is deployed"):
        run(layout)
    assert not (layout.var / "scheduled_scoring" / "dear" / "files.json").exists()


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ({}, "needs exactly one of files, address, sql; has none"),
        ({"files": "a", "sql": "b", "url": "c"}, "has files, sql"),
        ({"sql": "select 1"}, "sql and url go together"),
        ({"files": "a", "key": "id"}, "key belongs to sql"),
        ({"address": "ftp://host/a.csv"}, "begins with none of http://"),
    ],
)
def test_an_input_that_is_none_is_told_by_params(layout: Layout, source: dict[str, str], rule: str):
    schedule(layout, source or {"key": "id"})
    with pytest.raises(ParamsError, match=rule):
        loading.load(layout.params)
