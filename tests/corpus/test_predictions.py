"""A row has the same prediction in whatever file it comes, and its columns come back as written."""

import csv
import gzip
import json
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.flows.operations import init_project
from evergreen.tasks import features, ingest, problems, validate
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.onboarding.schema_inference import InitOptions
from evergreen.tasks.scoring import batch
from evergreen.tasks.scoring.scorer import Scorer

ROWS = 300
Row = dict[str, str]


def rows(seed: int, count: int) -> list[Row]:
    draw = np.random.default_rng(seed)
    made = []
    for place in range(count):
        code, flag = draw.choice(["01", "02", "2A"]), draw.choice(["True", "False", "unknown"])
        price, day = draw.integers(100, 900_000) / 100, date(2024, 1 + draw.integers(12), 1 + draw.integers(28))
        left = (code == "01") ^ (flag == "True") ^ (price > 5000) ^ (draw.random() < 0.1)
        made.append(
            {
                "id": f"{place:06}",
                "code": code,
                "flag": flag,
                "version": draw.choice(["1.10", "1.2", "2.0.1"]),
                "shop": str(draw.choice([3067, 4001])),
                "price": f"{price:,.2f} €".translate(str.maketrans(",.", ".,")),
                "paid": f"{day:%d.%m.%y}",
                "left": "yes" if left else "no",
            }
        )
    return made


def write(path: Path, given: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(given[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(given)
    return path


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = tmp_path_factory.mktemp("left")
    write(folder / "left.csv", rows(0, ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(init_project.lineage, "set_up", lambda _layout: [])
        init_project.run("left", "left.csv", None, InitOptions(target="left"), folder, folder, date(2026, 1, 1))
    params, layout = loading.load(folder / "params.yaml"), Layout(folder)
    for step in (ingest, validate):
        step.run(params, None, layout)
    features.run(params, "left", layout)
    kind: Any = problems.kind("classification")
    section = params.section("left")
    data = kind.load(layout.features("left"), section)
    model = kind.fit(data, ["all"], kind.defaults("logistic", section), section, 0)
    return Scorer(params, "left", layout, model, 1)


@pytest.fixture(scope="module")
def asked() -> list[Row]:
    return [{name: value for name, value in row.items() if name != "left"} for row in rows(1, 80)]


def score(scorer: Scorer, path: Path) -> pl.DataFrame:
    out = path.with_name("out.parquet")
    batch.run(scorer, path, out)
    return pl.read_parquet(out)


@pytest.fixture(scope="module")
def expected(scorer: Scorer, asked: list[Row], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    found = score(scorer, write(tmp_path_factory.mktemp("all") / "all.csv", asked))
    assert found["not_scored"].null_count() == len(asked)
    assert found["probability_yes"].n_unique() > 40
    return dict(zip(found["id"], found["probability_yes"], strict=True))


def close(values: Iterable[float]) -> Any:
    """Equal but for the last bits, which depend on the rows that a matrix product takes together."""
    return pytest.approx(list(values), abs=1e-12)


SUBSETS: dict[str, Callable[[Row], bool]] = {
    "without the code 2A": lambda row: row["code"] != "2A",
    "with true and false alone": lambda row: row["flag"] != "unknown",
    "with versions that look like numbers": lambda row: row["version"] != "2.0.1",
    "with one value in each": lambda row: (row["code"], row["flag"], row["version"]) == ("02", "True", "1.2"),
    "of one row": lambda row: row["id"] == "000007",
    "of small prices": lambda row: "." not in row["price"],
}


@pytest.mark.parametrize("name", SUBSETS)
def test_part_of_a_file_has_the_predictions_of_the_whole(scorer, asked, expected, tmp_path: Path, name: str):
    part = [row for row in asked if SUBSETS[name](row)]
    assert part
    found = score(scorer, write(tmp_path / "part.csv", part))
    assert found["probability_yes"].to_list() == close([expected[row["id"]] for row in part])
    assert found.select(list(part[0])).to_dicts() == part


def changed(**makes: Callable[[str], Any]) -> Callable[[Row], dict[str, Any]]:
    return lambda row: {**row, **{name: make(row[name]) for name, make in makes.items()}}


def iso(text: str) -> str:
    day, month, year = text.split(".")
    return f"20{year}-{month}-{day}"


SPELLINGS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "floats where a gap was": changed(shop=lambda text: f"{text}.0"),
    "years of four digits": changed(paid=lambda text: f"{text[:6]}20{text[6:]}"),
    "ISO dates": changed(paid=iso),
    "no currency": changed(price=lambda text: text.removesuffix(" €")),
    "blanks around values": changed(price=lambda text: f" {text} ", paid=lambda text: f"{text} "),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_another_spelling_of_the_same_value_has_the_same_prediction(scorer, asked, expected, tmp_path: Path, name: str):
    given = [SPELLINGS[name](row) for row in asked]
    found = score(scorer, write(tmp_path / "t.csv", given))
    assert found["probability_yes"].to_list() == close(expected.values())
    assert found.select(list(given[0])).to_dicts() == given


def typed(given: list[Row]) -> pl.DataFrame:
    """The rows with the types that a program would give them."""
    amount = pl.col("price").str.strip_suffix(" €").str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    columns = (pl.col("shop").cast(pl.Int64), amount.cast(pl.Float64))
    return pl.DataFrame(given).with_columns(*columns, pl.col("paid").str.to_date("%d.%m.%y"))


def json_lines(path: Path, given: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))


FILES: dict[str, Callable[[Path, list[Row]], Any]] = {
    "t.csv.gz": lambda path, given: path.write_bytes(gzip.compress(write(path.with_name("plain.csv"), given).read_bytes())),
    "t.tsv": lambda path, given: pl.DataFrame(given).write_csv(path, separator="\t"),
    "comma.csv": lambda path, given: pl.DataFrame(given).write_csv(path),
    "latin.csv": lambda path, given: path.write_bytes(
        write(path.with_name("utf8.csv"), given).read_text(encoding="utf-8").encode("cp1252")
    ),
    "old.csv": lambda path, given: path.write_bytes(write(path.with_name("n.csv"), given).read_bytes().replace(b"\r\n", b"\r")),
    "t.jsonl": json_lines,
    "t.parquet": lambda path, given: typed(given).write_parquet(path),
}


@pytest.mark.parametrize("name", FILES)
def test_another_kind_of_file_has_the_same_predictions(scorer, asked, expected, tmp_path: Path, name: str):
    FILES[name](tmp_path / name, asked)
    found = score(scorer, tmp_path / name)
    assert found["probability_yes"].to_list() == close(expected.values())


def test_true_and_false_are_the_words_of_training(scorer, asked, expected, tmp_path: Path):
    given = [row for row in asked if row["flag"] != "unknown"]
    pl.DataFrame(given).with_columns(pl.col("flag") == "True").write_parquet(tmp_path / "t.parquet")
    assert score(scorer, tmp_path / "t.parquet")["probability_yes"].to_list() == close([expected[row["id"]] for row in given])


def test_new_categories_strange_values_and_new_strings_for_missing_are_told_apart(scorer, asked, expected, tmp_path: Path):
    new = [{**asked[0], "code": "09"}, {**asked[1], "price": "n/a"}, {**asked[2], "price": "cheap"}, asked[3]]
    result = batch.run(scorer, write(tmp_path / "t.csv", new), tmp_path / "out.parquet")
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert (result.unseen, result.not_scored) == ({"code": 1}, 1)
    assert found["not_scored"].to_list() == [None, None, "price = cheap: not a finite number", None]
    assert found["probability_yes"][3] == pytest.approx(expected[asked[3]["id"]], abs=1e-12)
