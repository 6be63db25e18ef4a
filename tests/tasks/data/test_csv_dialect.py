"""The dialect of a file is detected from its content; a file without a table is refused."""

from pathlib import Path

import polars as pl
import pytest

from evergreen.tasks.config.params import Source
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.data import csv_dialect
from evergreen.tasks.data.readers import read_table


def look(root: Path, text: str | bytes, name: str = "t.csv") -> Source:
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    staging = root / "staging"
    staging.mkdir(exist_ok=True)
    return csv_dialect.detect_source(name, None, root, root, staging)


def rows(*lines: str, times: int = 20) -> str:
    head, *body = lines
    return "\n".join([head, *(body * times)]) + "\n"


FILES = {
    "commas": (rows("a,b", "1,x"), {}),
    "semicolons": (rows("a;b", "1;x,y"), {"separator": ";"}),
    "tabs": (rows("a\tb", "1\tx, y; z"), {"separator": "\t"}),
    "bars": (rows("a|b", "1|x"), {"separator": "|"}),
    "one column": (rows("a", "1"), {}),
    "a decimal comma": (rows("a;b", "1,5;x", "2;y"), {"separator": ";", "decimal": ","}),
    "thousands are no decimals": (rows("a;b", "1.5;x,1", "2.25;y"), {"separator": ";"}),
    "latin-1": (rows("a;b", "1;Jos\u00e9").encode("latin-1"), {"separator": ";", "encoding": "latin-1"}),
    "cp1252": (rows("a;b", "1;5 \u20ac").encode("cp1252"), {"separator": ";", "encoding": "cp1252"}),
    "utf-16": (rows("a;b", "1;é").encode("utf-16"), {"separator": ";", "encoding": "utf-16"}),
    "a byte order mark": ("\ufeff" + rows("a,b", "1,é"), {}),
    "a title": ("Sales of May\n\n" + rows("a,b", "1,x"), {"skip_lines": 2}),
    "the line of Excel": ("sep=;\n" + rows("a;b", "1;x"), {"separator": ";", "skip_lines": 1}),
    "comments": ("# made by hand\n" + rows("a,b", "1,x", "# later, too"), {"comment": "#"}),
    "a column named #": (rows("#,b", "1,x"), {}),
    "trailing separators": (rows("a,b", "1,x,"), {"trailing_separator": True}),
    "trailing separators everywhere": (rows("a,b,", "1,x,"), {}),
    "old line ends": (rows("a,b", "1,x").replace("\n", "\r"), {}),
    "blank lines": (rows("a,b", "1,x", ""), {}),
    "line breaks in quotes": (rows("a,b", '1,"x;\ny;"', "2,z"), {}),
    "a quoted comma": (rows("a,b", '1,"x, y, z"', "2,z"), {}),
    "Windows line ends": (rows("a,b", "1,x").replace("\n", "\r\n"), {}),
}


@pytest.mark.parametrize(("text", "wanted"), FILES.values(), ids=FILES.keys())
def test_the_dialect_of_a_file_is_detected(tmp_path: Path, text, wanted):
    found = look(tmp_path, text)
    assert found == Source(csv="t.csv", **wanted)
    assert len(read_table("t", found, tmp_path, tmp_path / "staging").rows.collect()) >= 20


REFUSED = {
    "empty": ("", "t.csv: is empty; its first line must contain the column names"),
    "names alone": ("a,b\n", "t.csv: has a header line but no rows"),
    "no names": (
        rows("1,2", "3,4"),
        r"t.csv: its first line contains numbers \(1, 2\) instead of column names; add a header line",
    ),
    "a name twice": (rows("a,b,a", "1,2,3"), "t.csv: two columns are named a; rename one"),
    "a column without a name": (rows("a,,c", "1,2,3"), "t.csv: column 2 of 3 has no name"),
    "the names again": (rows("a,b", "1,2") + rows("a,b", "1,2"), "t.csv: row 21 repeats the column names"),
}


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_without_a_table_is_refused(tmp_path: Path, text, says):
    with pytest.raises(SourceError, match=says):
        look(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tt.csv", "tt.csv: no such file; there are t.csv in"),
        ("in/t.csv", "in/t.csv: no such file; the folder .* does not exist"),
        ("t.docx", "t.docx: unknown file type; Evergreen reads .csv, .tsv"),
        ("folder", "folder: is a folder; name one file"),
    ],
)
def test_a_file_that_is_not_there_or_not_read_is_named(tmp_path: Path, name: str, says: str):
    look(tmp_path, rows("a,b", "1,2"))
    (tmp_path / "t.docx").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=says):
        csv_dialect.detect_source(name, None, tmp_path, tmp_path, tmp_path)


def test_a_path_in_the_project_is_relative_to_it_and_another_is_whole(tmp_path: Path):
    (tmp_path / "p").mkdir()
    for place in (tmp_path / "p", tmp_path):
        pl.DataFrame({"a": [1]}).write_parquet(place / "t.parquet")
    assert csv_dialect.detect_source("t.parquet", None, tmp_path / "p", tmp_path / "p", tmp_path).parquet == "t.parquet"
    assert csv_dialect.detect_source("t.parquet", None, tmp_path / "p", tmp_path, tmp_path).parquet == str(
        tmp_path / "t.parquet"
    )
