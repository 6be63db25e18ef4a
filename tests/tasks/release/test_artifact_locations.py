"""An embedded MLflow store names its files relative to the project, wherever it was made."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from evergreen.tasks.release.artifact_locations import COLUMNS, Locations


def lay(root: Path, locations: Iterable[str]) -> Locations:
    """A store that holds `locations` in every column, and the locations that it has for a project in `root`."""
    (root / "var" / "artifacts").mkdir(parents=True)
    with closing(sqlite3.connect(root / "var" / "mlflow.db")) as link, link:
        for table in dict.fromkeys(table for table, _ in COLUMNS):
            link.execute(f"CREATE TABLE {table} ({', '.join(column for each, column in COLUMNS if each == table)})")
            width = ", ".join("?" for each, _ in COLUMNS if each == table)
            for location in locations:
                link.execute(f"INSERT INTO {table} VALUES ({width})", [location] * (width.count("?")))
    found = Locations.of(f"sqlite:///{root / 'var' / 'mlflow.db'}", str(root / "var" / "artifacts"), root)
    assert found
    return found


def held(locations: Locations) -> list[set[str]]:
    with closing(sqlite3.connect(locations.database)) as link:
        return [{str(each) for (each,) in link.execute(f"SELECT {column} FROM {table}")} for table, column in COLUMNS]


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [
        ("file:///home/ada/old%20shop/var/artifacts/a1/artifacts", "var/artifacts/a1/artifacts"),
        ("/home/ada/shop/var/artifacts", "var/artifacts"),
        ("/srv/var/artifacts/shop/var/artifacts/models/m-1", "var/artifacts/models/m-1"),
        ("/anywhere/mlruns/0", "var/artifacts/0"),
        ("s3://bucket/var/artifacts/a1", "s3://bucket/var/artifacts/a1"),
        ("mlflow-artifacts:/1/a1", "mlflow-artifacts:/1/a1"),
        ("models:/m-1", "models:/m-1"),
        ("/srv/runs/of/another/tool", "/srv/runs/of/another/tool"),
        ("var/artifacts/a1", "var/artifacts/a1"),
    ],
)
def test_locations_of_the_project_become_relative_and_others_stay(tmp_path: Path, recorded: str, wanted: str):
    found = lay(tmp_path / "my shop", [recorded])
    assert found.make_relative() == (0 if recorded == wanted else len(COLUMNS))
    assert held(found) == [{wanted}] * len(COLUMNS)
    assert found.make_relative() == 0


def test_the_location_of_a_project_in_a_folder_with_a_space_is_relative_and_resolves_to_the_folder(tmp_path: Path):
    root = tmp_path / "50% off" / "my shop"
    found = lay(root, [(root / "var" / "artifacts" / "a 1").as_uri()])
    found.make_relative()
    assert held(found) == [{"var/artifacts/a%201"}] * len(COLUMNS)
    assert found.resolve("var/artifacts/a%201") == (root / "var" / "artifacts" / "a 1").as_uri()
    assert found.resolve("s3://bucket/a") == "s3://bucket/a"


def test_files_that_lie_outside_the_project_still_are_left_where_they_are(tmp_path: Path):
    elsewhere = tmp_path / "share" / "var" / "artifacts" / "a1"
    elsewhere.mkdir(parents=True)
    found = lay(tmp_path / "shop", [str(elsewhere)])
    found.make_relative()
    assert held(found) == [{str(elsewhere)}] * len(COLUMNS)


def test_a_copy_uses_its_own_files_although_the_original_is_still_there(tmp_path: Path):
    original, copy = (tmp_path / name / "var" / "artifacts" / "a1" for name in ("shop", "copy"))
    original.mkdir(parents=True)
    found = lay(tmp_path / "copy", [original.as_uri()])
    copy.mkdir()
    found.make_relative()
    assert held(found) == [{"var/artifacts/a1"}] * len(COLUMNS)


def test_a_store_or_folder_outside_the_project_is_not_touched(tmp_path: Path):
    inside, outside = str(tmp_path / "shop" / "var" / "artifacts"), str(tmp_path / "elsewhere")
    database = f"sqlite:///{tmp_path}/shop/var/mlflow.db"
    for uri, artifacts in (
        ("http://127.0.0.1:5000", inside),
        (f"sqlite:///{tmp_path}/mlflow.db", inside),
        (database, outside),
        (database, "s3://bucket/files"),
        (database, ""),
    ):
        assert Locations.of(uri, artifacts, tmp_path / "shop") is None
