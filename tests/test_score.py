"""Batch scoring: every row gets its answer or a reason, in its place."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tasks import blocks, params, score
from tasks.errors import DataError, EvergreenError, ModelError, ParamsError, SourceError
from tasks.layout import Layout
from tests import contracts
from tests.contracts import World

Ask = Callable[..., pl.DataFrame]


def world(folder: Path, problem: str) -> World:
    """The problem's features, also where the project keeps them."""
    made = contracts.build(problem, folder)
    Layout(folder).features(problem).parent.mkdir(parents=True, exist_ok=True)
    contracts.write(made.frames, Layout(folder).features(problem))
    return made


def asking(made: World, problem: str, model: str) -> Ask:
    """Score a frame as the command does, through files."""
    fitted = made.fit(made.defaults(model))

    def ask(frame: pl.DataFrame, name: str = "in.parquet", out: str = "out.parquet") -> pl.DataFrame:
        place, known = made.folder / name, params.load(made.folder / "params.yaml")
        frame.write_csv(place) if place.suffix == ".csv" else frame.write_parquet(place)
        result = score.run(score.Scorer(known, problem, Layout(made.folder), fitted, 3), place, made.folder / out)
        answers = blocks.whole(Path(result.out))
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
    rows = redeem[0].frames["rows"]
    return rows.filter(pl.col("cutoff") == rows["cutoff"].max()).drop("cutoff", "target")


def test_rows_keep_their_order_and_number_and_a_household_asked_twice_is_answered_twice(redeem, newest):
    ids = newest["household_id"].to_list()[:3]
    answers = redeem[1](pl.DataFrame({"note": list("dcba"), "household_id": [ids[2], ids[0], ids[2], ids[1]]}))
    assert answers.columns == ["note", "household_id", "prediction", "probability_0", "probability_1", "not_scored"]
    assert answers["note"].to_list() == list("dcba")
    assert answers["not_scored"].null_count() == 4
    assert answers["probability_1"][0] == answers["probability_1"][2] != answers["probability_1"][1]


def test_an_entity_is_answered_as_its_newest_features_are(redeem, newest):
    by_key = redeem[1](newest.select("household_id"))
    by_features = redeem[1](newest.drop("household_id"))
    assert by_key["probability_1"].equals(by_features["probability_1"])


def test_csv_gives_what_parquet_gives(redeem, newest):
    asked = newest.head(20)
    by_csv = redeem[1](asked, "in.csv", "out.csv")
    assert by_csv["probability_1"].to_list() == pytest.approx(redeem[1](asked)["probability_1"].to_list(), abs=1e-12)


def test_a_row_that_cannot_be_scored_says_why_and_harms_no_other(redeem, newest):
    known = newest["household_id"][0]
    answers = redeem[1](pl.DataFrame({"household_id": [10**9, known, None]}))
    assert answers["not_scored"][0].startswith("household_id = 1000000000: no features at ")
    assert answers["not_scored"][2].startswith("household_id = None")
    assert answers["probability_1"].is_null().to_list() == [True, False, True]


def test_a_number_that_is_none_is_told_and_a_missing_or_new_category_is_answered(redeem, newest):
    number = next(name for name, kind in newest.schema.items() if kind == pl.Float64)
    text = next(name for name, kind in newest.schema.items() if kind == pl.String)
    rows = newest.drop("household_id").head(3)
    rows = rows.with_columns(pl.Series(number, ["many", None, "1e999"]), pl.Series(text, ["never seen", None, "never seen"]))
    answers = redeem[1](rows)
    assert answers["not_scored"].to_list() == [
        f"{number} = many: is no finite number",
        None,
        f"{number} = 1e999: is no finite number",
    ]
    assert answers["prediction"].is_null().to_list() == [True, False, True]


def test_a_file_in_which_no_row_can_be_scored_is_answered_with_reasons(redeem):
    answers = redeem[1](pl.DataFrame({"household_id": [-1, -2]}))
    assert answers["prediction"].null_count() == answers["not_scored"].count() == 2


def test_an_empty_file_gives_an_empty_answer(redeem):
    assert redeem[1](pl.DataFrame(schema={"household_id": pl.Int64})).is_empty()


@pytest.mark.parametrize(
    ("frame", "out", "error", "says"),
    [
        ({"basket": [1]}, "out.csv", DataError, r"columns basket: needs household_id, or every feature; \d+ are missing"),
        ({"household_id": [1], "prediction": [1]}, "out.csv", DataError, "column prediction: the answer brings a column"),
        ({"household_id": [1]}, "out.txt", ParamsError, "unknown kind of file; give a name that ends in .parquet or .csv"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_leaves_the_old_file(redeem, frame, out, error, says):
    before = redeem[0].folder / out
    before.write_text("good")
    with pytest.raises(error, match=says):
        redeem[1](pl.DataFrame(frame), out=out)
    assert before.read_text() == "good"


@pytest.mark.parametrize(("name", "says"), [("nowhere.csv", "no such file"), ("rows.xls", "unknown kind"), ("bad.csv", "read")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, says):
    if name == "bad.csv":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=rf"{name}: .*{says}"):
        blocks.whole(tmp_path / name)


def test_a_model_of_other_features_is_named_with_its_version(redeem, newest):
    made, _ = redeem
    stranger = made.kind.fit(
        made.reload({"rows": made.frames["rows"].rename({newest.columns[1]: "gone"})}, "renamed"),
        made.fold.train, made.defaults("logistic"), made.section, 0,
    )  # fmt: skip
    newest.select("household_id").write_csv(made.folder / "ids.csv")
    known, layout = params.load(made.folder / "params.yaml"), Layout(made.folder)
    with pytest.raises(ModelError, match=r"redeem: version 7 cannot score ids.csv: .*gone"):
        score.run(score.Scorer(known, "redeem", layout, stranger, 7), made.folder / "ids.csv", made.folder / "o.csv")


def test_a_recommender_answers_with_lists_from_the_newest_histories(tmp_path):
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
