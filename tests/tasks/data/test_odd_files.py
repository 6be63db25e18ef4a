"""Any bytes in a CSV file and any frame in a Parquet file: `init` reads a table, or one clear line says why not."""

import gzip
import tempfile
import warnings
from datetime import date, timedelta
from pathlib import Path

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.tasks.core.errors import EvergreenError
from evergreen.tasks.data import csv_dialect
from evergreen.tasks.data.readers import read_table
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.schema_inference import InferredSchema, infer_schema

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
CELLS = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "1",
            "0",
            "-1.5",
            "1,5",
            "1.234,50 €",
            "$1,000",
            "(3)",
            "50%",
            "NA",
            "n/a",
            "-",
            "01",
            "2A",
            "yes",
            "true",
            "2024-01-31",
            "31.01.24",
            "20240131",
            "2024-01-01T10:00Z",
            "9999-12-31",
            "1e400",
            "9" * 30,
            "inf",
            '"',
            '""',
            '"a',
            'a"b',
            '"x,y"',
            '"line\nbreak"',
            "\x00",
            "é",
            "€",
            "\ufeff",
            "😀",
            "#",
            "sep=;",
            "\t",
            "a\rb",
            "'",
        ]
    ),
    st.text(max_size=6),
)
LINES = st.lists(st.lists(CELLS, max_size=5), max_size=12)


@st.composite
def files(draw) -> bytes:
    """Lines of odd cells, often repeated so that there are enough rows; with any separator, line end and encoding."""
    separator = draw(st.sampled_from([",", ";", "\t", "|", " ", ""]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n", f"{separator}\n"]))
    head, lines = draw(LINES), draw(LINES) * draw(st.sampled_from([1, 8]))
    if draw(st.booleans()):
        lines = lines if draw(st.booleans()) else []
        head = [["a", "b", "c"], *[draw(st.lists(CELLS, min_size=3, max_size=3)) for _ in range(3)] * 10]
    huge = ["a" * 200_000] if draw(st.integers(0, 9)) == 0 else []
    text = end.join(separator.join(cells) for cells in [*head, *lines, huge])
    encoding = draw(st.sampled_from(["utf8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"]))
    return draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff", b"\n\n", b"\x00"])) + text.encode(encoding, "replace")


VALUES = (
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.booleans(),
    st.dates(),
    st.datetimes(),
    st.times(),
    st.timedeltas(timedelta(days=-9), timedelta(days=9)),
    st.binary(max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
    st.fixed_dictionaries({"x": st.integers(0, 3)}),
    st.none(),
)


@st.composite
def frames(draw) -> pl.DataFrame:
    rows = draw(st.sampled_from([0, 2, 40, 40, 40]))
    names = draw(st.lists(st.text(max_size=4), max_size=4, unique=True))
    columns = []
    for name in names:
        few = draw(st.lists(st.none() | draw(st.sampled_from(VALUES)), min_size=1, max_size=30))
        columns.append(pl.Series(name, (few * rows)[:rows], strict=False))
    return pl.DataFrame(columns)


def read(path: Path, target: bool = True) -> InferredSchema | str:
    """What `init` finds out about a file, or the line that refuses it."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            source = csv_dialect.detect_source(path.name, None, path.parent, path.parent, Path(scratch))
            table = read_table("t", source, path.parent, Path(scratch), infer=True)
            names = table.rows.collect_schema().names()
            return infer_schema(table.rows, InitOptions(target=names[-1] if target else None), date(2026, 1, 1))
        except EvergreenError as refusal:
            said = str(refusal)
    assert len(said.splitlines()) == 1
    return said


@FEW
@given(files(), st.sampled_from(["t.csv", "t.tsv", "t.csv.gz"]), st.booleans())
def test_any_csv_file_is_a_table_or_refused_in_one_line(tmp_path_factory, content: bytes, name: str, target: bool):
    path = tmp_path_factory.mktemp("odd") / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = read(path, target)
    assert isinstance(found, str) or found.rows >= 10


@FEW
@given(frames(), st.booleans())
def test_any_parquet_file_is_a_table_or_refused_in_one_line(tmp_path_factory, frame: pl.DataFrame, target: bool):
    path = tmp_path_factory.mktemp("odd") / "t.parquet"
    frame.write_parquet(path)
    found = read(path, target)
    assert isinstance(found, str) or found.rows == frame.height


@FEW
@given(st.binary(max_size=300), st.sampled_from(["csv", "csv.gz", "parquet", "jsonl", "jsonl.gz"]))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory, content: bytes, ending: str):
    path = tmp_path_factory.mktemp("odd") / f"t.{ending}"
    path.write_bytes(content)
    assert isinstance(read(path), str | InferredSchema)
