"""A table in parts: the same rows are the same files, wherever they come from, and a longer table keeps its earlier ones."""

import os
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import DataError

PART = 5


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_parts, "PART_ROWS", PART)


def table(rows: int) -> pl.DataFrame:
    place = range(rows)
    return pl.DataFrame(
        {
            "id": place,
            "name": [None if each % 7 == 3 else f"n{each % 4}" for each in place],
            "price": [None if each % 5 == 1 else each / 8 for each in place],
            "day": [date(2024, 1, 1) + timedelta(each % 9) for each in place],
            "tags": [None if each % 3 else [each, each + 1] for each in place],
        },
        schema={"id": pl.Int64, "name": pl.String, "price": pl.Float64, "day": pl.Date, "tags": pl.List(pl.Int64)},
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in table_parts.files(folder)}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 9))
def test_the_bytes_of_the_parts_follow_from_the_rows_alone(small, tmp_path_factory, sizes, group):
    folder, rows = tmp_path_factory.mktemp("parts"), table(sum(sizes))
    rows.write_parquet(folder / "whole.parquet", row_group_size=group)
    for place, size in enumerate(sizes):
        rows.slice(sum(sizes[:place]), size).write_parquet(folder / f"source{place}.parquet", compression="lz4")
    table_parts.write(pl.scan_parquet(folder / "whole.parquet"), folder / "a")
    table_parts.write(
        pl.concat([pl.scan_parquet(folder / f"source{place}.parquet") for place in range(len(sizes))]), folder / "b"
    )
    table_parts.write(table_parts.scan(folder / "a"), folder / "c")
    assert content(folder / "a") == content(folder / "b") == content(folder / "c")
    assert table_parts.scan(folder / "a").collect().equals(rows)
    assert len(content(folder / "a")) == max(1, -(-len(rows) // PART))


@pytest.mark.parametrize("rows", [10, 13])
def test_a_table_that_grew_keeps_its_full_parts(small, tmp_path, rows):
    for name, count in (("before", rows), ("after", rows + 9)):
        table(count).write_parquet(tmp_path / f"{name}.parquet")
        table_parts.write(pl.scan_parquet(tmp_path / f"{name}.parquet"), tmp_path / name)
    before, after = content(tmp_path / "before"), content(tmp_path / "after")
    assert list(after) == [table_parts.name(number) for number in range(len(after))]
    assert [before[name] == after[name] for name in list(before)[: rows // PART]] == [True, True]
    table_parts.write(pl.scan_parquet(tmp_path / "after.parquet").slice(10), tmp_path / "rest", first=2)
    rest = {path.name: path.read_bytes() for path in (tmp_path / "rest").iterdir()}
    assert rest == {name: each for name, each in after.items() if name >= table_parts.name(2)}


def test_a_part_that_is_missing_before_another_one_is_named(small, tmp_path):
    table_parts.write(table(13).lazy(), tmp_path / "t.parquet")
    (tmp_path / "t.parquet" / table_parts.name(1)).unlink()
    assert table_parts.digests(tmp_path / "t.parquet") == []
    with pytest.raises(DataError, match=r"t\.parquet/000001\.parquet: is missing\. Read the tables again"):
        table_parts.scan(tmp_path / "t.parquet")


def test_a_table_of_an_earlier_version_is_one_file(small, tmp_path):
    path = tmp_path / "t.parquet"
    table(7).write_parquet(path)
    assert table_parts.is_there(path)
    assert table_parts.scan(path).collect().equals(table(7))
    assert table_parts.rows(path) == 7
    table_parts.keep_all(path, tmp_path / "copy.parquet")
    assert (tmp_path / "copy.parquet").read_bytes() == path.read_bytes()


def test_a_part_is_kept_as_the_same_file_or_a_copy(tmp_path, monkeypatch):
    (tmp_path / "part").write_bytes(b"rows")
    table_parts.keep(tmp_path / "part", tmp_path / "same")
    assert (tmp_path / "same").samefile(tmp_path / "part")

    def refused(*_: object, **__: object) -> None:
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    table_parts.keep(tmp_path / "part", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"rows"
    assert not (tmp_path / "copy").samefile(tmp_path / "part")
