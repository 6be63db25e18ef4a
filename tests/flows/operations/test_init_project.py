"""`evergreen init`: from a file to a problem that trains and scores, in a folder that was empty or a project that was there."""

import json
import sqlite3
from contextlib import nullcontext
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer
import yaml

from evergreen.flows.cli import main
from evergreen.flows.operations import init_project
from evergreen.tasks.config import loading, params
from evergreen.tasks.core.errors import DataError, EvergreenError, ParamsError, ProjectError, SourceError, StorageError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.scoring import batch
from evergreen.tasks.scoring.scorer import Scorer
from tests import ROOT

TODAY = date(2026, 1, 1)


def customers(rows: int = 300) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    spend = draw.gamma(2, 50, rows).round(2)
    return pl.DataFrame(
        {
            "customer_id": [f"c{place}" for place in range(rows)],
            "plan": draw.choice(["basic", "plus"], rows),
            "spend": spend,
            "left": np.where(spend + draw.normal(0, 30, rows) < 60, "yes", "no"),
        }
    )


def start(root: Path, data: str = "t.csv", name: str = "left", **asked) -> init_project.Started:
    url = asked.pop("url", None)
    return init_project.run(name, data, url, InitOptions(**asked), root, root, TODAY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    customers().write_csv(tmp_path / "t.csv")
    return tmp_path


# A new project


def test_an_empty_folder_becomes_a_project_that_says_what_it_got(folder: Path):
    started = start(folder, target="left")
    assert set(started.made) == {"dvc.yaml", ".gitignore", ".git", ".dvc", ".dvcignore", "params.yaml"}
    known = loading.load(folder / "params.yaml")
    assert known.problems == {"left": "classification"}
    assert known.section("left").features == params.Table(
        table="left", target="left", positive_class="yes", entity="customer_id", columns={"plan": "category", "spend": "number"}
    )


def test_a_git_repository_around_the_folder_is_used_and_its_gitignore_kept(folder: Path, tmp_path_factory):
    from evergreen.tasks.release.lineage import _ask_git

    _ask_git(folder, "init", "--quiet")
    place = folder / "models of ours"
    place.mkdir()
    (place / ".gitignore").write_text("mine")
    started = start(place, "../t.csv", target="left")
    assert ".git" not in started.made
    assert (place / ".gitignore").read_text().splitlines()[0] == "mine"
    assert loading.load(place / "params.yaml").ingest["left"].csv == str(folder / "t.csv")
    assert any("t.csv: lies outside the project" in each for each in started.warnings)


def test_the_stages_of_a_new_project_are_those_of_this_one_without_its_code():
    """The one copy that there is: after a change of dvc.yaml, change flows/templates/dvc.yaml alike."""
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    whole.pop("plots")
    for stage in whole["stages"].values():
        stage = stage.get("do", stage)
        stage["deps"] = [path for path in stage.get("deps", []) if not path.startswith(("tasks/", "src/"))]
        if not stage["deps"]:
            del stage["deps"]
    assert yaml.safe_load((ROOT / "flows" / "templates" / "dvc.yaml").read_text()) == whole


def test_a_folder_with_stages_and_no_params_is_left_alone(folder: Path):
    (folder / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(ProjectError, match=r"dvc.yaml: is there without a params.yaml; start in another folder"):
        start(folder, target="left")
    assert sorted(each.name for each in folder.iterdir()) == ["dvc.yaml", "t.csv"]


def test_what_is_drafted_is_read_validated_and_made_into_features(folder: Path):
    from evergreen.tasks import features, ingest, validate

    start(folder, target="left")
    known, layout = loading.load(folder / "params.yaml"), Layout(folder)
    ingest.run(known, None, layout)
    assert validate.run(known, None, layout).tables["left"].kept == 300
    assert features.run(known, "left", layout).rows == {"rows": 300}


def test_test_rows_stay_when_the_file_changes(tmp_path: Path):
    """A new column, a column less, other rows, another order: a row that trained never judges, and the other way round."""
    from evergreen.tasks import features, ingest, validate

    rows = customers().drop("customer_id").with_columns(visits=pl.int_range(300) % 7)
    rows.write_csv(tmp_path / "t.csv")
    start(tmp_path, target="left")
    known, layout = loading.load(tmp_path / "params.yaml"), Layout(tmp_path)
    assert known.section("left").features.test_key == ("spend",)  # type: ignore[union-attr]

    def judges(frame: pl.DataFrame) -> set[float]:
        frame.write_csv(tmp_path / "t.csv")
        for step in (ingest, validate):
            step.run(known, None, layout)
        features.run(known, "left", layout)
        built = pl.read_parquet(layout.features("left") / "rows.parquet")
        return set(built.filter("_test")["spend"])

    before, more = judges(rows), rows.with_columns(pl.col("spend") + 0.001)
    assert 30 < len(before) < 90
    assert judges(rows.select(pl.lit("web").alias("channel"), *rows.columns)) == before
    assert judges(rows.sort("left", "plan")) == before
    assert judges(pl.concat([rows, more])) & set(rows["spend"]) == before
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text("\n".join(line for line in text.splitlines() if "visits" not in line))
    known = loading.load(tmp_path / "params.yaml")
    assert judges(rows.drop("visits")) == before


# A project that is there


def test_a_second_problem_joins_and_every_byte_that_was_there_stays(folder: Path):
    start(folder, target="left")
    before = (folder / "params.yaml").read_bytes()
    assert start(folder, name="worth", target="spend").made == ("params.yaml",)
    known = loading.load(folder / "params.yaml")
    assert known.problems == {"left": "classification", "worth": "regression"}
    lines = iter((folder / "params.yaml").read_bytes().splitlines())
    assert all(line in lines for line in before.splitlines())


@pytest.mark.parametrize("part", ["add_plots", "name_sources"])
def test_a_full_disk_at_dvc_yaml_leaves_a_problem_that_is_whole_or_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    start(folder, target="left")

    def full(*_: object) -> None:
        raise StorageError("dvc.yaml: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(init_project.pipeline_file, part, full)
        with nullcontext() if part == "name_sources" else pytest.raises(StorageError, match="No space left"):
            start(folder, name="worth", target="spend")
    if part == "add_plots":
        start(folder, name="worth", target="spend")
    assert loading.load(folder / "params.yaml").problems == {"left": "classification", "worth": "regression"}
    assert "reports/worth/plots" in (folder / "dvc.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "asked", "error", "says"),
    [
        ("left", {"target": "left"}, ParamsError, "left: is already a problem in params.yaml; nothing was changed"),
        ("ingest", {"target": "left"}, ParamsError, "ingest: is a reserved name"),
        ("3rd", {"target": "left"}, ParamsError, "'3rd': invalid name: a name starts with a letter"),
        ("b", {"target": "lfet"}, ParamsError, "--target lfet: the table has no such column; did you mean left?"),
        ("b", {"target": "left", "drop": ("left",)}, ParamsError, "--drop left: is also the target"),
        ("b", {"target": "left", "time": "plan"}, ParamsError, r"--time plan: contains no dates or times \(2 categories\)"),
        ("b", {"target": "left", "kind": "regression"}, DataError, "--target left: contains text .* Use --kind classification"),
        ("b", {"kind": "regression"}, ParamsError, "regression needs --target COL"),
        ("b", {"user": "customer_id"}, ParamsError, "recommendation needs --user COL and --item COL"),
        (
            "b",
            {"target": "customer_id"},
            DataError,
            "--target customer_id: 300 distinct values in 300 rows are too many classes",
        ),
    ],
)
def test_what_cannot_be_drafted_changes_nothing(folder: Path, name: str, asked: dict, error: type[EvergreenError], says: str):
    start(folder, target="left")
    before = {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    with pytest.raises(error, match=says):
        start(folder, name=name, **asked)
    assert {path: path.read_bytes() for path in folder.glob("*") if path.is_file()} == before


# Times of a table among those of others


def timed(folder: Path, name: str, first: date) -> None:
    rows = customers().with_columns(joined=pl.Series([first + timedelta(place) for place in range(300)]))
    rows.write_parquet(folder / f"{name}.parquet")


def test_a_tables_time_cuts_it_at_as_of_unless_that_moves_the_day_of_others(tmp_path: Path):
    timed(tmp_path, "a", date(2020, 1, 1))
    timed(tmp_path, "b", date(2024, 1, 1))
    assert not any("as_of" in each for each in start(tmp_path, "a.parquet", "a", target="left").warnings)
    said = start(tmp_path, "b.parquet", "b", target="left").warnings
    assert (
        "joined: goes beyond the last known day of this project (unknown); so all rows count as known, and as_of does not cut"
        in said[-1]
    )
    known = loading.load(tmp_path / "params.yaml")
    assert [known.ingest[name].time for name in "ab"] == ["joined", None]
    assert [known.section(name).features.time for name in "ab"] == ["joined", "joined"]  # type: ignore[union-attr]


# Purchases


def purchases(rows: int = 600) -> pl.DataFrame:
    draw = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "client": draw.integers(1, 40, rows),
            "article": draw.integers(1, 60, rows),
            "bought": pl.Series([date(2024, 1, 1) + timedelta(int(day)) for day in draw.integers(0, 200, rows)]),
            "visit": draw.integers(1, 9, rows),
        }
    )


def test_user_and_item_make_a_recommendation_by_the_one_column_of_dates(tmp_path: Path):
    purchases().write_csv(tmp_path / "sales.csv")
    start(tmp_path, "sales.csv", "next", user="client", item="article")
    known = loading.load(tmp_path / "params.yaml")
    features = known.section("next").features
    assert isinstance(features, params.Interactions)
    assert (features.user, features.item, features.basket) == ("client", "article", "bought")
    assert known.ingest["next"].time == "bought"


def test_the_table_of_a_recommendation_says_who_and_what(tmp_path: Path, capsys):
    purchases().write_csv(tmp_path / "sales.csv")
    data = str(tmp_path / "sales.csv")
    out, _ = run(capsys, "init", "next", "--data", data, "--user", "client", "--item", "article", "--root", str(tmp_path))
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["client", "user"], ["article", "item"], ["bought", "time"]]


def test_orders_without_dates_make_a_recommendation_too(tmp_path: Path):
    purchases().drop("bought").write_csv(tmp_path / "sales.csv")
    with pytest.raises(ParamsError, match=r"recommendation needs --time COL .* or --order COL .*; date columns are none"):
        start(tmp_path, "sales.csv", "next", user="client", item="article")
    start(tmp_path, "sales.csv", "next", user="client", item="article", order="visit")
    features = loading.load(tmp_path / "params.yaml").section("next").features
    assert isinstance(features, params.Interactions)
    assert (features.order, features.basket) == ("visit", "visit")


# Queries


def test_a_query_is_a_table_like_any_other(tmp_path: Path):
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        customers().to_pandas().to_sql("customers", connection, index=False)
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    start(tmp_path, "SELECT * FROM customers", target="left", url=url)
    source = loading.load(tmp_path / "params.yaml").ingest["left"]
    assert (source.sql, source.url) == ("SELECT * FROM customers", url)


def test_a_password_never_comes_into_params(tmp_path: Path):
    with pytest.raises(ParamsError, match=r"--url: contains a password, .* pass --url env:SHOP_DB") as refused:
        start(tmp_path, "SELECT 1", target="a", url="postgresql+psycopg://ann:hunter2@db/shop")
    assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "params.yaml").exists()


def test_a_query_without_a_url_is_refused(tmp_path: Path):
    with pytest.raises(SourceError, match=r"--data is a query; name its database: --url"):
        start(tmp_path, "select * from t", target="a")


# The command, and the way back


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """What `evergreen words` prints on stdout and stderr; it must end well."""
    assert typer.main.get_command(main.app).main(list(words), standalone_mode=False) in (0, None)
    return tuple(capsys.readouterr())


def test_the_command_tells_columns_reasons_and_what_comes_next(folder: Path, capsys):
    out, err = run(capsys, "init", "left", "--data", str(folder / "t.csv"), "--target", "left", "--root", str(folder))
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["customer_id", "entity"], ["plan", "category"], ["spend", "number"], ["left", "target"],
    ]  # fmt: skip
    assert "kind: classification (left has 2 categories)" in err
    assert "then: evergreen train left --seconds 60" in err


def test_as_json_it_tells_the_same_and_nothing_else(folder: Path, capsys):
    words = ("init", "left", "--data", str(folder / "t.csv"), "--target", "left", "--root", str(folder), "--json")
    out, _ = run(capsys, *words)
    told = json.loads(out)
    assert (told["kind"], told["positive_class"], told["entity"]) == ("classification", "yes", "customer_id")
    assert {each["name"]: each["role"] for each in told["columns"]}["spend"] == "number"


def test_rows_are_scored_as_their_table_is_written_and_bad_ones_say_why(tmp_path: Path):
    """Semicolons, decimal commas, month before day, NA: tomorrow's rows look like yesterday's."""
    from evergreen.tasks import features, ingest, problems, validate

    rows = customers().with_columns(seen=pl.Series([date(2024, 1, 1) + timedelta(place % 300) for place in range(300)]))
    comma = pl.col("spend").cast(pl.String).str.replace(".", ",", literal=True)
    text = rows.select("plan", pl.col("seen").dt.to_string("%m/%d/%Y"), comma, "left").write_csv(separator=";")
    (tmp_path / "t.csv").write_bytes(text.replace("basic", "bäsic").encode("latin-1"))
    start(tmp_path, target="left")
    known, layout = loading.load(tmp_path / "params.yaml"), Layout(tmp_path)
    for step in (ingest, validate):
        step.run(known, None, layout)
    features.run(known, "left", layout)
    kind, section = problems.kind("classification"), known.section("left")
    data = kind.load(layout.features("left"), section)
    model = kind.fit(data, kind.splits(data, section).tests[0].train, kind.defaults("logistic", section), section, 0)
    asked = (
        "plan;seen;spend\nbäsic;12/31/2024;10,5\nnever seen;01/02/2024;250\nplus;31/12/2024;3\nplus;01/02/2024;much\nplus;;\n"
    )
    (tmp_path / "new.csv").write_bytes(asked.encode("latin-1"))
    result = batch.run(Scorer(known, "left", layout, model, 1), tmp_path / "new.csv", tmp_path / "out.csv")
    answers = pl.read_csv(tmp_path / "out.csv")
    assert (result.rows, result.not_scored) == (5, 2)
    assert answers["plan"].to_list() == ["bäsic", "never seen", "plus", "plus", "plus"]
    assert answers["not_scored"].to_list() == [
        None, None, "seen = 31/12/2024: not a date", "spend = much: not a finite number", None,
    ]  # fmt: skip
    assert answers["prediction"].to_list()[:2] == ["yes", "no"]


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [(["0", "1", "2", "3+"], None, True), (["0", "1", "2", "3+"], "regression", False), (["5 %", "10 %"], None, True),
     ([f"{each} %" for each in range(30)], None, False)],
    ids=["open end", "asked for a number", "percent", "many amounts"],
)  # fmt: skip
def test_a_target_of_few_values_keeps_their_names(tmp_path: Path, values: list[str], kind: str | None, classes: bool):
    customers().with_columns(kids=pl.Series([values[each % len(values)] for each in range(300)])).write_csv(tmp_path / "t.csv")
    found = start(tmp_path, target="kids", kind=kind).found
    assert found.kind == ("classification" if classes else "regression")
    assert ("kids: text" in (tmp_path / "params.yaml").read_text()) is classes
