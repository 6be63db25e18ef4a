"""Small files as people send them, with what `evergreen init` must make of each."""

# ruff: noqa: E501 - one line per file

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROWS = 60


@dataclass(frozen=True)
class Table:
    """One file."""

    write: Callable[[Path], Any]
    """Writes the file at a path."""
    suffix: str = ".csv"
    target: str | None = "y"
    kind: str | None = "classification"
    """None: the file is refused."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Column -> its type in the contract, of some columns."""
    roles: Mapping[str, str | None] = field(default_factory=dict)
    """Column -> its role as a feature, of some columns; None: it is none."""
    first: Mapping[str, Any] = field(default_factory=dict)
    """Column -> its first value in data/raw, of some columns."""
    says: str = ""
    """A regular expression of a warning, or of the error of a refused file."""
    rows: int = ROWS


def y(rows: int = ROWS) -> list[str]:
    return ["yes" if each else "no" for each in np.random.default_rng(0).random(rows) < 0.4]


def noise(rows: int = ROWS) -> list[str]:
    return [f"{each:.3f}" for each in np.random.default_rng(1).normal(size=rows)]


def lines(columns: Mapping[str, list[str]], separator: str = ",", head: str = "", end: str = "\n", tail: str = "") -> str:
    rows = [list(columns), *(list(row) for row in zip(*columns.values(), strict=True))]
    return head + "".join(separator.join(row) + tail + end for row in rows)


def file(text: str, encoding: str = "utf-8") -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(text.encode(encoding))


def column(values: list[str], separator: str = ",", **more: Any) -> str:
    """A file with a column `c`, noise and a target."""
    repeated = [values[place % len(values)] for place in range(ROWS)]
    return lines({"c": repeated, "x": noise(), "y": y()}, separator, **more)


def frame(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame({**columns, "x": np.random.default_rng(1).normal(size=ROWS), "y": y()})


def parquet(**columns: Any) -> Callable[[Path], Any]:
    return lambda path: frame(**columns).write_parquet(path)


def many(make: Callable[[int], str]) -> list[str]:
    return [make(place) for place in range(ROWS)]


DAYS = [date(2024, 1, 1) + timedelta(place) for place in range(ROWS)]
NUMBERS = [str(place % 17 + 20) for place in range(ROWS)]
PLAIN = {"c": NUMBERS, "x": noise(), "y": y()}
INTEGER = {"types": {"c": "integer"}, "roles": {"c": "number"}, "first": {"c": 20}}


def excel(path: Path) -> None:
    import zipfile

    rows = "".join(
        f'<row r="{place}">'
        + "".join(
            f'<c r="{letter}{place}" t="inlineStr"><is><t>{value}</t></is></c>'
            if not value.replace(".", "").replace("-", "").isdigit()
            else f'<c r="{letter}{place}"><v>{value}</v></c>'
            for letter, value in zip("ABC", row, strict=True)
        )
        + "</row>"
        for place, row in enumerate([list(PLAIN), *zip(*PLAIN.values(), strict=True)], 1)
    )
    main, office = "http://schemas.openxmlformats.org/spreadsheetml/2006/main", "http://schemas.openxmlformats.org"
    relations = f"{office}/officeDocument/2006/relationships"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{office}/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/><Override PartName="/xl/workbook.xml" '
        'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{office}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{relations}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets><sheet name="May" sheetId="1" r:id="r1"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{office}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{relations}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w") as book:
        for name, text in parts.items():
            book.writestr(name, text)


def json_lines(path: Path, rows: list[dict[str, Any]] | None = None) -> None:
    given = rows or [dict(zip(PLAIN, row, strict=True)) for row in zip(*PLAIN.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in given))


TABLES: dict[str, Table] = {
    # files
    "plain": Table(file(lines(PLAIN)), **INTEGER),
    "tsv": Table(file(lines(PLAIN, "\t")), ".tsv", **INTEGER),
    "gzip": Table(lambda path: path.write_bytes(gzip.compress(lines(PLAIN).encode())), ".csv.gz", **INTEGER),
    "json lines": Table(json_lines, ".jsonl", **INTEGER),
    "json lines of mixed types": Table(
        lambda path: json_lines(path, [{"c": "01" if place % 2 else 7, "x": place / 7, "y": each} for place, each in enumerate(y())]),
        ".jsonl", types={"c": "text"}, roles={"c": "category"}, first={"c": "7"},
    ),
    "workbook": Table(excel, ".xlsx", roles={"c": "number"}, first={"c": 20}),
    "parquet": Table(parquet(c=[int(each) for each in NUMBERS]), ".parquet", roles={"c": "number"}, first={"c": 20}),
    "parquet with NaN": Table(
        parquet(c=[float("nan") if place % 9 == 8 else place / 3 for place in range(ROWS)]), ".parquet", roles={"c": "number"},
        first={"c": 0.0},
    ),
    "parquet with a zone": Table(
        lambda path: frame(c=[datetime(2024, 1, 1, place % 24) for place in range(ROWS)])
        .with_columns(pl.col("c").dt.replace_time_zone("Europe/Berlin")).write_parquet(path),
        ".parquet", roles={"c": "date"}, first={"c": datetime(2023, 12, 31, 23)},
    ),
    "parquet of texts": Table(parquet(c=many(lambda place: f"{place},5 kg")), ".parquet", types={"c": "number"}, first={"c": 0.5}),
    "parquet of categories": Table(
        lambda path: frame(c=["red", "blue"] * 30).with_columns(pl.col("c").cast(pl.Categorical)).write_parquet(path), ".parquet",
        roles={"c": "category"}, first={"c": "red"},
    ),
    # dialects
    "semicolons": Table(file(lines(PLAIN, ";")), **INTEGER),
    "bars": Table(file(lines(PLAIN, "|")), **INTEGER),
    "old line ends": Table(file(lines(PLAIN, end="\r")), **INTEGER),
    "Windows line ends": Table(file(lines(PLAIN, end="\r\n")), **INTEGER),
    "blank lines": Table(file(lines(PLAIN, end="\n\n")), **INTEGER),
    "a blank line at the end": Table(file(lines(PLAIN) + "\n\n"), **INTEGER),
    "a title": Table(file(lines(PLAIN, head="Customers of May\n\n")), says="2 lines before the column names are skipped", **INTEGER),
    "the line of Excel": Table(file(lines(PLAIN, ";", head="sep=;\n")), says="1 line before the column names is", **INTEGER),
    "a comment": Table(file(lines(PLAIN, head="# exported by hand\n")), **INTEGER),
    "trailing separators": Table(file(lines(PLAIN, tail=",").replace("y,\n", "y\n", 1)), **INTEGER),
    "trailing separators in the header too": Table(file(lines(PLAIN, tail=",")), **INTEGER),
    "a byte order mark": Table(file("\ufeff" + lines(PLAIN)), **INTEGER),
    "utf-16": Table(file(lines({**PLAIN, "é": ["ü", "ö"] * 30}), "utf-16"), roles={"é": "category"}, **{k: v for k, v in INTEGER.items() if k != "roles"}),
    "cp1252": Table(file(lines({**PLAIN, "city": ["Köln", "5 €"] * 30}), "cp1252"), first={"city": "Köln"}),
    "quoted names": Table(file(lines({'"c"': NUMBERS, '"a, b"': noise(), "y": y()})), roles={"a, b": "number"}, **{k: v for k, v in INTEGER.items() if k != "roles"}),
    "line breaks in values": Table(file(lines({"c": NUMBERS, "note": ['"a\n\nb"', "c"] * 30, "x": noise(), "y": y()})), first={"note": "a\n\nb"}),
    "mixed encodings": Table(
        lambda path: path.write_bytes(lines(PLAIN).encode() + "7,é,no\n".encode() + "8,é,no\n".encode("latin-1")), kind=None,
        says="line 63 is not UTF-8; 1 other line is. The file mixes encodings",
    ),
    "no names": Table(file(lines({"1": NUMBERS, "2.5": noise()})), target=None, kind=None, says="contains numbers .* instead of column names"),
    "names alone": Table(file("c,x,y\n"), kind=None, says="has a header line but no rows"),
    "nothing": Table(file(""), kind=None, says="is empty"),
    "a name twice": Table(file(lines(PLAIN).replace("c,x,y", "c,c,y")), kind=None, says="two columns are named c"),
    "ragged": Table(file(lines(PLAIN) + "1,2,3,4,5\n"), kind=None, says="line 62 has 5 fields, the header 3"),
    "a damaged gzip file": Table(lambda path: path.write_bytes(b"\x1f\x8b no more"), ".csv.gz", kind=None, says="gzip|cannot be read"),
    "a damaged parquet file": Table(lambda path: path.write_bytes(b"PAR1 no more"), ".parquet", kind=None, says="cannot be read"),
    "json that is none": Table(lambda path: path.write_text("{'a': 1}\n"), ".jsonl", kind=None, says="line 1: invalid JSON"),
    # values
    "money": Table(file(column(['"$1,234.50"', "$3"])), types={"c": "number"}, roles={"c": "number"}, first={"c": 1234.5}),
    "money as the target": Table(
        file(lines({"x": noise(), "y": many(lambda place: f'"{place * 1000 + 5:,}.50 €"')})), kind="regression", types={"y": "number"},
        first={"y": 5.5},
    ),
    "decimal commas": Table(file(column(["1,5", "2,25"], ";")), types={"c": "number"}, first={"c": 1.5}),
    "a dirty token": Table(
        file(lines({**PLAIN, "c": [*NUMBERS[:-1], "see note"]})), types={"c": "integer"}, roles={"c": "number"}, first={"c": 20},
        says="c: has type integer but for 'see note'",
    ),
    "a footer": Table(file(lines({**PLAIN, "c": [*NUMBERS[:-1], "Total: 59"]})), types={"c": "integer"}, says="'Total: 59'"),
    "a footer of sums": Table(
        file(lines({**PLAIN, "c": [*NUMBERS, str(sum(map(int, NUMBERS)))], "x": [*noise(), ""], "y": [*y(), ""]})), rows=ROWS + 1, **INTEGER,
        says="the last row holds the sum of the rows before it in c",
    ),
    "a sentinel": Table(file(lines({**PLAIN, "c": [*NUMBERS[:-4], *["-999"] * 4]})), types={"c": "integer"}, says="c: 4 rows hold -999"),
    "integers beyond 64 bits": Table(
        file(lines({**PLAIN, "c": many(lambda place: str(10**20 + place))})), types={"c": "text"}, says="beyond 64 bits are kept as text",
    ),
    "days as integers": Table(file(lines({**PLAIN, "c": [f"{day:%Y%m%d}" for day in DAYS]})), types={"c": "date"}, first={"c": DAYS[0]}),
    "months": Table(file(column(["2024-01", "2024-02"])), types={"c": "date"}, first={"c": date(2024, 1, 1)}),
    "milliseconds": Table(
        file(lines({**PLAIN, "c": many(lambda place: str(1_700_000_000_000 + 60_000 * place))})), types={"c": "datetime"},
        first={"c": datetime(2023, 11, 14, 22, 13, 20)},
    ),
    "Excel days": Table(
        file(lines({"order_date": many(lambda place: str(45000 + place)), "x": noise(), "y": y()})), types={"order_date": "date"},
        first={"order_date": date(2023, 3, 15)},
    ),
    "two formats of dates": Table(file(column(["2024-01-31", "28.02.2024"])), types={"c": "date"}, first={"c": date(2024, 1, 31)}),
    "contradicting dates": Table(file(column(["13/01/2024", "01/13/2024"])), types={"c": "text"}, says="contradict each other"),
    "ambiguous dates": Table(file(column(["01/02/2024", "03/04/2024"])), types={"c": "date"}, says="%d/%m/%Y fits as well"),
    "for ever": Table(
        file(lines({**PLAIN, "c": [*(str(day) for day in DAYS[:-1]), "9999-12-31"]})), types={"c": "date"}, says="c: 1 row holds 9999-12-31",
    ),
    "two-digit years": Table(file(column(["31.01.24", "01.02.23"])), types={"c": "date"}, first={"c": date(2024, 1, 31)}),
    "zoned times": Table(file(column(["2024-01-01T10:00:00Z", "2024-01-02T10:00:00Z"])), types={"c": "datetime"}),
    "several zones": Table(
        file(column(["2024-01-01T10:00:00+01:00", "2024-07-01T10:00:00+02:00"])), types={"c": "datetime"},
        first={"c": datetime(2024, 1, 1, 9)},
    ),
    "codes": Table(file(column(["01", "02", "2A"])), types={"c": "text"}, roles={"c": "category"}, first={"c": "01"}),
    "flags beside a word": Table(file(column(["True", "False", "unknown"])), types={"c": "text"}, roles={"c": "category"}),
    "versions": Table(file(column(["1.10", "1.2", "2.0.1"])), types={"c": "text"}, roles={"c": "category"}, first={"c": "1.10"}),
    "whole floats": Table(file(column(["3067.0", "12.0", ""])), types={"c": "integer"}, roles={"c": "number"}, first={"c": 3067}),
    "NA among words": Table(file(column(["red", "NA"])), types={"c": "text"}, first={"c": "red"}),
    "classes 1.0, 2.0 and 3.0": Table(
        file(lines({"x": noise(), "y": many(lambda place: f"{place % 3 + 1}.0")})), types={"y": "integer"}, first={"y": 1},
    ),
    "classes that differ by case": Table(file(lines({"x": noise(), "y": ["yes", "Yes", "no"] * 20})), kind=None, says="classes differ by blanks or case alone"),
}  # fmt: skip
"""Name -> file."""
