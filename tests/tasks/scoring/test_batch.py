"""Batch scoring: every row gets a prediction or a reason, in its place."""

import csv
import dataclasses
import errno
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.flows import settings as addresses
from evergreen.flows.operations import batch_scoring
from evergreen.tasks.config import loading
from evergreen.tasks.core import paths
from evergreen.tasks.core.errors import DataError, EvergreenError, ModelError, ParamsError, SourceError, StorageError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.model_files.onnx_export import compile_model
from evergreen.tasks.model_files.onnx_runtime import Compiled
from evergreen.tasks.scoring import batch, chunks
from evergreen.tasks.scoring.scorer import LedgerFrame, Scorer
from tests import contracts
from tests.contracts import World
from tests.projects import Deployed


def read(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, infer_schema_length=None) if path.suffix == ".csv" else pl.read_parquet(path)


Ask = Callable[..., pl.DataFrame]


def world(folder: Path, problem: str) -> World:
    """The problem's features, also where the project keeps them."""
    made = contracts.build(problem, folder)
    contracts.keep(made.frames, Layout(folder), problem)
    return made


def asking(made: World, problem: str, model: str) -> Ask:
    """Score a frame as the command does, through files."""
    fitted = made.fit(made.defaults(model))

    def ask(frame: pl.DataFrame, name: str = "in.parquet", out: str = "out.parquet") -> pl.DataFrame:
        place, known = made.folder / name, loading.load(made.folder / "params.yaml")
        frame.write_csv(place) if place.suffix == ".csv" else frame.write_parquet(place)
        result = batch.run(Scorer(known, problem, Layout(made.folder), fitted, 3), place, made.folder / out)
        answers = read(Path(result.out))
        assert (result.rows, result.version) == (frame.height, 3)
        assert result.not_scored == (answers["not_scored"].count() if "not_scored" in answers.columns else 0)
        return answers

    return ask


@pytest.fixture(scope="module")
def redeem(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Ask]:
    folder = tmp_path_factory.mktemp("score")
    made = world(folder, "redeem")
    return made, asking(made, "redeem", "logistic")


@pytest.fixture(scope="module")
def newest(redeem: tuple[World, Ask]) -> pl.DataFrame:
    """The newest rows with all their features."""
    return redeem[0].frames["newest"].drop("cutoff", "target")


def test_rows_keep_their_order_and_number_and_a_household_asked_twice_is_scored_twice(redeem, newest):
    ids = newest["household_id"].to_list()[:3]
    answers = redeem[1](pl.DataFrame({"note": list("dcba"), "household_id": [ids[2], ids[0], ids[2], ids[1]]}))
    assert answers.columns == ["note", "household_id", "prediction", "probability_0", "probability_1", "not_scored"]
    assert answers["note"].to_list() == list("dcba")
    assert answers["not_scored"].null_count() == 4
    assert answers["probability_1"][0] == answers["probability_1"][2] != answers["probability_1"][1]


def test_an_entity_is_scored_by_its_newest_features(redeem, newest):
    by_key = redeem[1](newest.select("household_id"))
    by_features = redeem[1](newest.drop("household_id"))
    assert by_key["probability_1"].equals(by_features["probability_1"])


def test_csv_gives_what_parquet_gives(redeem, newest):
    asked = newest.head(20)
    by_csv = redeem[1](asked, "in.csv", "out.csv")
    assert by_csv["probability_1"].to_list() == pytest.approx(redeem[1](asked)["probability_1"].to_list(), abs=1e-12)


def test_a_row_that_cannot_be_scored_has_a_reason_and_affects_no_other(redeem, newest):
    known = newest["household_id"][0]
    answers = redeem[1](pl.DataFrame({"household_id": [10**9, known, None]}))
    assert answers["not_scored"][0].startswith("household_id = 1000000000: no features at ")
    assert answers["not_scored"][2].startswith("household_id = None")
    assert answers["probability_1"].is_null().to_list() == [True, False, True]


def test_an_invalid_number_is_named_and_a_missing_or_unseen_category_is_scored(redeem, newest):
    number = next(name for name, kind in newest.schema.items() if kind == pl.Float64)
    text = next(name for name, kind in newest.schema.items() if kind == pl.String)
    rows = newest.drop("household_id").head(3)
    rows = rows.with_columns(pl.Series(number, ["many", None, "1e999"]), pl.Series(text, ["never seen", None, "never seen"]))
    answers = redeem[1](rows)
    assert answers["not_scored"].to_list() == [
        f"{number} = many: not a finite number",
        None,
        f"{number} = 1e999: not a finite number",
    ]
    assert answers["prediction"].is_null().to_list() == [True, False, True]


def test_a_file_without_a_row_that_can_be_scored_has_reasons(redeem):
    answers = redeem[1](pl.DataFrame({"household_id": [-1, -2]}))
    assert answers["prediction"].null_count() == answers["not_scored"].count() == 2


def test_an_empty_file_gives_an_empty_file(redeem):
    assert redeem[1](pl.DataFrame(schema={"household_id": pl.Int64})).is_empty()


@pytest.mark.parametrize(
    ("frame", "out", "error", "says"),
    [
        ({"basket": [1]}, "out.csv", DataError, r"columns basket: needs household_id, or every feature; \d+ are missing"),
        ({"household_id": [1], "prediction": [1]}, "out.csv", DataError, "column prediction: the answer brings a column"),
        ({"household_id": [1]}, "out.txt", ParamsError, "unknown kind of file; give a name that ends in .parquet or .csv"),
    ],
)
def test_invalid_columns_are_refused_and_the_old_file_stays(redeem, frame, out, error, says):
    before = redeem[0].folder / out
    before.write_text("good")
    with pytest.raises(error, match=says):
        redeem[1](pl.DataFrame(frame), out=out)
    assert before.read_text() == "good"


@pytest.mark.parametrize(("name", "says"), [("nowhere.csv", "no such file"), ("rows.doc", "unknown kind"), ("bad.csv", "read")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, says):
    if name == "bad.csv":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=rf"{name}: .*{says}"):
        chunks.read_all(tmp_path / name)


def test_a_model_of_other_features_is_named_with_its_version(redeem, newest):
    made, _ = redeem
    other = made.kind.fit(
        made.reload({"rows": made.frames["rows"].rename({newest.columns[1]: "gone"})}, "renamed"),
        made.fold.train, made.defaults("logistic"), made.section, 0,
    )  # fmt: skip
    newest.select("household_id").write_csv(made.folder / "ids.csv")
    known, layout = loading.load(made.folder / "params.yaml"), Layout(made.folder)
    with pytest.raises(ModelError, match=r"redeem: version 7 cannot score ids.csv: .*gone"):
        batch.run(Scorer(known, "redeem", layout, other, 7), made.folder / "ids.csv", made.folder / "o.csv")


def test_a_recommender_scores_with_lists_from_the_newest_histories(tmp_path):
    made = world(tmp_path, "recommend")
    ask = asking(made, "recommend", "frequency")
    users = made.frames["lines"]["user"].unique().sort().to_list()
    k = made.section.pipeline.k
    answers = ask(pl.DataFrame({"household_id": [users[1], 10**9, users[0], users[1]]}), "in.csv", "out.csv")
    assert answers.columns == ["household_id", "rank", "product_id", "score", "source"]
    assert answers["household_id"].to_list() == [users[1]] * k + [10**9] * k + [users[0]] * k + [users[1]] * k
    assert answers["rank"].to_list() == list(range(1, k + 1)) * 4
    assert set(answers["source"][k : 2 * k]) == {"popular"}
    assert answers[:k].drop("household_id").equals(answers[3 * k :].drop("household_id"))
    with pytest.raises(EvergreenError, match="needs household_id, whom to recommend to"):
        ask(pl.DataFrame({"product_id": [1]}))


# -- files of many rows


def many(newest: pl.DataFrame, times: int) -> pl.DataFrame:
    """The features of all households, again and again, each row with its number."""
    rows = pl.concat([newest.drop("household_id")] * times)
    return pl.DataFrame({"number": range(rows.height)}).hstack(rows)


def scorer(made: World, model: str, compiled: Compiled | None = None) -> Scorer:
    known = loading.load(made.folder / "params.yaml")
    return Scorer(known, "redeem", Layout(made.folder), made.fit(made.defaults(model)), 3, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("workers", [1, 2])
def test_chunks_give_what_the_whole_file_gives_with_any_number_of_processes(redeem, newest, suffix, workers):
    made, one = redeem[0], scorer(redeem[0], "logistic")
    asked, place = many(newest, 2), made.folder / f"many.{suffix}"
    asked.write_csv(place) if suffix == "csv" else asked.write_parquet(place)
    out, whole = made.folder / f"chunks.{suffix}", made.folder / f"whole.{suffix}"
    result = batch.run(one, place, out, rows=100, workers=workers)
    assert batch.run(one, place, whole).rows == result.rows == asked.height > 300
    assert chunks.read_all(out).equals(chunks.read_all(whole))
    assert not list((made.folder / "var" / "scoring").rglob("*.parquet"))


def test_a_chunk_without_a_prediction_has_the_columns_of_the_others(redeem, newest):
    made, one = redeem[0], scorer(redeem[0], "logistic")
    ids = [-1] * 5 + newest["household_id"].to_list()[:5] + [-2] * 5
    pl.DataFrame({"household_id": ids}).write_csv(made.folder / "gaps.csv")
    result = batch.run(one, made.folder / "gaps.csv", made.folder / "gaps.parquet", rows=5)
    answers = pl.read_parquet(made.folder / "gaps.parquet")
    assert (result.rows, result.not_scored) == (15, 10)
    assert answers["household_id"].to_list() == [str(each) for each in ids]
    assert answers["probability_1"].is_null().to_list() == [True] * 5 + [False] * 5 + [True] * 5
    assert answers.schema["prediction"] == pl.Int64


def test_the_columns_of_a_csv_file_come_back_as_they_were_written(redeem, newest):
    made, one = redeem[0], scorer(redeem[0], "logistic")
    ids = [f"{each:06}" for each in newest["household_id"].to_list()[:6]]
    notes = ["1", "1e5", "False", "02", "", 'a "quoted"\nline']
    pl.DataFrame({"household_id": ids, "note": notes}).write_csv(made.folder / "late.csv")
    batch.run(one, made.folder / "late.csv", made.folder / "late.parquet", rows=2)
    answers = pl.read_parquet(made.folder / "late.parquet")
    assert answers["note"].to_list() == notes
    assert answers["household_id"].to_list() == ids
    assert answers["not_scored"].null_count() == 6


def test_an_interrupted_run_resumes_with_its_finished_chunks_and_records_one_moment(redeem, newest, monkeypatch):
    made, one, recorded = redeem[0], scorer(redeem[0], "logistic"), []

    def record(found: LedgerFrame, at: datetime) -> int:
        recorded.append((at, found))
        return found.frame.height

    many(newest, 1).write_parquet(made.folder / "killed.parquet")
    do, place, out = batch._Work.score, made.folder / "killed.parquet", made.folder / "killed-out.parquet"

    def dies_at_third(work: batch._Work, number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt
        do(work, number)

    monkeypatch.setattr(batch._Work, "score", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        batch.run(one, place, out, rows=50, workers=1, record=record)
    assert not out.exists()
    assert recorded == []
    monkeypatch.setattr(batch._Work, "score", do)
    result = batch.run(one, place, out, rows=50, workers=1, record=record)
    assert (result.resumed, result.rows, result.logged) == (2, newest.height, newest.height)
    assert len({at for at, _ in recorded}) == 1
    assert {found.features for _, found in recorded} == {tuple(newest.drop("household_id").columns)}
    assert (
        pl.concat([found.frame for _, found in recorded])["prediction"].to_list()
        == pl.read_parquet(out)["prediction"].to_list()
    )
    newest_row = many(newest, 1).head(1)
    newest_row.write_parquet(place)
    assert batch.run(one, place, out, rows=50).resumed == 0


@pytest.mark.parametrize("rows", [None, 50])
def test_predictions_recorded_before_a_full_disk_are_recorded_at_the_same_moment_again(redeem, newest, monkeypatch, rows):
    """The ledger takes the same prediction of the same moment once."""
    made, one, moments = redeem[0], scorer(redeem[0], "logistic"), list[datetime]()
    out, replace = made.folder / f"full-out-{rows}.parquet", paths._replace

    def record(found: LedgerFrame, at: datetime) -> int:
        moments.append(at)
        return found.frame.height

    def full(new: Path, path: Path) -> None:
        if path == out:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(new, path)

    many(newest, 1).write_parquet(made.folder / "full.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(paths, "_replace", full)
        with pytest.raises(StorageError, match="No space left"):
            batch.run(one, made.folder / "full.parquet", out, rows=rows, record=record)
    assert not out.exists()
    batch.run(one, made.folder / "full.parquet", out, rows=rows, record=record)
    assert len(set(moments)) == 1
    assert out.exists()
    batch.run(one, made.folder / "full.parquet", out, rows=rows, record=record)
    assert len(set(moments)) == 2, "another scoring of the same file"


def test_the_compiled_model_scores_as_the_pipeline_does(redeem, newest):
    made, one = redeem[0], scorer(redeem[0], "logistic")
    compiled = Compiled(compile_model(one.model, one.data.features))
    newest.head(50).write_parquet(made.folder / "few.parquet")
    answers = []
    for each in (one, dataclasses.replace(one, compiled=compiled)):
        batch.run(each, made.folder / "few.parquet", made.folder / "few-out.parquet")
        answers.append(pl.read_parquet(made.folder / "few-out.parquet"))
    assert answers[0]["prediction"].equals(answers[1]["prediction"])
    assert answers[0]["probability_1"].to_list() == pytest.approx(answers[1]["probability_1"].to_list(), abs=1e-9)


def test_every_entity_is_scored_by_the_newest_features_up_to_a_day(redeem, newest):
    made, one, recorded = redeem[0], scorer(redeem[0], "logistic"), []
    days = list(one.cutoffs)

    def record(found: LedgerFrame, at: datetime) -> int:
        recorded.extend(found.by_cutoff())
        return found.frame.height

    out = made.folder / "scores" / "redeem.parquet"
    now = batch.score_newest(one, out, None, record, datetime.now(UTC))
    assert (now.cutoff, now.rows, now.logged) == (days[-1], newest.height, newest.height)
    assert pl.read_parquet(out)["household_id"].to_list() == newest["household_id"].to_list()
    before = batch.score_newest(one, out, days[-1] - timedelta(days=1), record, datetime.now(UTC))
    assert [cutoff for cutoff, _ in recorded] == [days[-1], before.cutoff]
    assert before.cutoff == days[-2]
    rows = made.data.at([days[-2]])
    assert pl.read_parquet(out)["probability_1"].to_list() == pytest.approx(one.model.predict_proba(rows.features)[:, 1])
    with pytest.raises(DataError, match=r"--as-of 2000-01-01: lies before the first cutoff"):
        batch.score_newest(one, out, date(2000, 1, 1), record, datetime.now(UTC))


@given(st.lists(st.lists(st.text('a,"\n\r é', max_size=4), min_size=2, max_size=2), min_size=1, max_size=30), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_chunks_of_a_csv_file_hold_its_rows_with_any_quoting(rows, size):
    with TemporaryDirectory() as folder:
        place = Path(folder) / "t.csv"
        with place.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["x", "y"], *rows])
        parts = chunks.open_file(place, Path(folder), rows=size)
        assert pl.concat([parts.read(span) for span in parts.spans]).equals(chunks.read_all(place))
        assert len(parts.spans) >= -(-len(rows) // size)


# -- files without optional columns


@pytest.fixture(scope="module")
def dear(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return deployed(tmp_path_factory.mktemp("optional") / "shop", ("dear",))


def score(layout: Layout, frame: pl.DataFrame) -> tuple[batch.Result, pl.DataFrame]:
    data, out = layout.root / "asked.parquet", layout.root / "scored.parquet"
    frame.write_parquet(data)
    return batch_scoring.run(layout, loading.load(layout.params), "dear", data, out, None), pl.read_parquet(out)


@pytest.mark.slow
def test_an_optional_column_that_a_file_lacks_is_missing_in_every_row_and_named(dear, caplog):
    houses = pl.read_parquet(dear.root / "data-in" / "houses.parquet").select("size", "colour", "built")
    result, found = score(dear, houses.drop("size", "colour"))
    assert (result.absent, result.not_scored) == (("size", "colour"), 0)
    assert "size: asked.parquet has no such column; its value counts as missing in all 300 rows" in caplog.text
    empty, same = score(dear, houses.with_columns(size=pl.lit(None, pl.Float64), colour=pl.lit(None, pl.String)))
    assert (empty.absent, same.columns) == ((), ["size", "colour", *found.columns])
    assert found["probability_yes"].to_list() == same["probability_yes"].to_list()
    kept = addresses.ledger(dear).read("dear").features
    assert set(kept.columns) == {"size", "colour", "built"}


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "missing"), [(["size", "colour"], "1 is missing .built."), ([], "3 are missing")])
def test_a_required_column_that_a_file_lacks_is_an_error_by_name(columns, missing, dear):
    houses = pl.read_parquet(dear.root / "data-in" / "houses.parquet").select(*columns, "note")
    with pytest.raises(DataError, match=missing):
        score(dear, houses)
