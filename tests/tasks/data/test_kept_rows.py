"""An ingest that finds rows of earlier ones writes the bytes of a run from nothing, and reads new and changed files alone."""

import json
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from evergreen.tasks import ingest
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import SourceError, StorageError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data import earlier_results, kept_rows, source_files

TYPES = {"id": "integer", "name": "text", "price": "number", "day": "date"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four rows."""
    monkeypatch.setattr(table_parts, "PART_ROWS", 4)


class Days:
    """A folder of daily files that change."""

    def __init__(self, kind: str = "csv", types: dict[str, str] | None = TYPES, seed: int = 0) -> None:
        self.kind, self.draw, self.next = kind, random.Random(seed), 0
        self.types = types if kind == "csv" else None
        self.files: dict[str, list[dict[str, Any]]] = {}
        self.as_of = "2024-12-31"
        for _ in range(3):
            self.new_day()

    def rows(self, count: int) -> list[dict[str, Any]]:
        day = date(2024, 1, 1) + timedelta(self.next)
        names = ["ann", "bob", None]
        pick = self.draw.choice
        return [
            {"id": self.draw.randrange(99), "name": pick(names), "price": pick([1.5, 2.25]), "day": str(day)}
            for _ in range(count)
        ]

    def new_day(self) -> None:
        self.next += 1
        self.files[f"{self.next:03d}"] = self.rows(self.draw.randrange(1, 9))

    def edited(self) -> None:
        self.files[self.draw.choice(sorted(self.files))][0]["id"] = 1000 + self.draw.randrange(99)

    def grown(self) -> None:
        self.files[self.draw.choice(sorted(self.files))] += self.rows(2)

    def removed(self) -> None:
        if len(self.files) > 1:
            del self.files[self.draw.choice(sorted(self.files))]

    def between(self) -> None:
        self.files[f"{self.draw.choice(sorted(self.files))}b"] = self.rows(3)

    def whole_prices(self) -> None:
        self.new_day()
        for row in self.files[max(self.files)]:
            row["price"] = 3

    def unreadable(self) -> None:
        self.new_day()
        self.files[max(self.files)][0]["price"] = "?"

    def earlier_as_of(self) -> None:
        self.as_of = str(date(2024, 1, 1) + timedelta(max(1, self.next - 1)))

    def nothing(self) -> None:
        pass

    def write(self, root: Path) -> Path:
        """The files that changed, and all others with another time of change."""
        folder = root / "in"
        folder.mkdir(parents=True, exist_ok=True)
        names = {f"{name}.{self.kind}": rows for name, rows in self.files.items()}
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()
        for place, (name, rows) in enumerate(sorted(names.items())):
            _write_rows(rows, folder / name)
            os.utime(folder / name, (10**9 + self.draw.randrange(9), 10**9 - place))
        return folder

    def ingest(self, root: Path) -> dict[str, bytes]:
        self.write(root)
        source = {self.kind: "in", **({"types": self.types} if self.types else {})}
        if self.kind == "csv":
            source |= {"time": "day", "max_unreadable": 0.9}
        return read(root, source, self.as_of)


def _write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    if path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps({key: each for key, each in row.items() if each is not None}) + "\n" for row in rows)
        )
        return
    frame = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)


def read(root: Path, source: dict[str, Any], as_of: str = "2024-12-31") -> dict[str, bytes]:
    """What a run writes to data/raw."""
    given = {"project": {"name": "test", "as_of": as_of}, "ingest": {"t": source}, "problems": {}}
    ingest.run(Params.model_validate(given), None, Layout(root))
    raw = root / "data" / "raw"
    return {str(path.relative_to(raw)): path.read_bytes() for path in sorted(raw.rglob("*")) if path.is_file()}


CHANGES = st.sampled_from(
    [
        Days.new_day, Days.new_day, Days.edited, Days.grown, Days.removed, Days.between, Days.whole_prices, Days.unreadable,
        Days.earlier_as_of, Days.nothing,
    ]
)  # fmt: skip


@pytest.mark.parametrize(("kind", "types"), [("csv", TYPES), ("csv", None), ("jsonl", None), ("parquet", None)])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate])
@given(st.integers(0, 99), st.lists(st.lists(CHANGES, max_size=2), min_size=2, max_size=4))
def test_after_any_changes_of_the_files_a_run_writes_the_bytes_of_a_run_from_nothing(tmp_path, kind, types, seed, days):
    files, root = Days(kind, types, seed), tmp_path / "kept"
    shutil.rmtree(root, ignore_errors=True)
    for changes in [[], *days]:
        for change in changes:
            if not (change is Days.unreadable and kind != "csv"):
                change(files)
        seen = files.ingest(root)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        assert seen == files.ingest(tmp_path / "new"), changes


def told(files: Days, root: Path, caplog: pytest.LogCaptureFixture) -> str:
    """The log of a run."""
    caplog.clear()
    with caplog.at_level("INFO"):
        files.ingest(root)
    return caplog.text


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_of_files_that_are_there_already_none_is_opened(tmp_path, monkeypatch, caplog, kind):
    files, opened = Days(kind), list[str]()
    scan: Callable[..., Any] = kept_rows.scan_files

    def watched(name: str, source: Any, chosen: Any, staging: Path) -> Any:
        opened.extend(each.name for each in chosen)
        return scan(name, source, chosen, staging)

    monkeypatch.setattr(kept_rows, "scan_files", watched)
    files.ingest(tmp_path)
    opened.clear()
    assert "no file has changed" in told(files, tmp_path, caplog)
    assert not opened
    files.new_day()
    assert "t: 3 of 4 files have not changed" in told(files, tmp_path, caplog)
    assert opened == [f"004.{kind}"]


def test_a_file_whose_size_and_times_stay_is_not_even_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "RESOLUTION_NS", 0)
    files = Days()
    files.write(tmp_path)
    source = {"csv": "in", "types": TYPES}
    before = read(tmp_path, source)
    monkeypatch.setattr(kept_rows, "sha256", None)
    assert read(tmp_path, source) == before


def test_parts_before_the_new_rows_stay_the_same_files(tmp_path):
    files, raw = Days(), tmp_path / "data" / "raw" / "t.parquet"
    files.ingest(tmp_path)
    before = {path.name: path.stat().st_ino for path in table_parts.files(raw)}
    files.new_day()
    files.ingest(tmp_path)
    same = [path.name for path in table_parts.files(raw) if path.stat().st_ino == before.get(path.name)]
    assert same == list(before)[: sum(map(len, list(files.files.values())[:3])) // 4]


@pytest.mark.parametrize(
    ("types", "change", "why"),
    [
        (None, Days.new_day, "the types of id, name, price follow from all values|the types of id, name, price, day follow"),
        (TYPES, Days.unreadable, "a value of a new file does not fit its type"),
    ],
)
def test_why_every_file_is_read_again_is_said(tmp_path, caplog, types, change, why):
    files = Days(types=types)
    files.ingest(tmp_path)
    change(files)
    log = told(files, tmp_path, caplog)
    assert any(f"every file is read again: {each}" in log for each in why.split("|"))
    files.new_day()
    if change is Days.unreadable:
        assert "every file is read again: a value of an earlier file does not fit its type" in told(files, tmp_path, caplog)


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("csv", b"id,price\n1,2\n", r"ingest\.t: in/002\.csv has no column name"),
        ("csv", b"id,name,price,day,more\n1,a,2,2024-01-01,x\n", r"in/002\.csv has a column more, which in/001\.csv has not"),
        ("csv", b"", r"in/002\.csv is empty"),
        ("csv", b"id,name,price,day\n1,a,2,2024-01-01,9,9\n", r"002\.csv: line 2 has 6 fields, the header 4"),
        ("parquet", b"PAR1 nothing", r"002\.parquet: "),
        ("jsonl", b'{"id": 1}\n{"id"\n', r"002\.jsonl: "),
    ],
)  # fmt: skip
def test_a_broken_file_in_the_middle_is_named_and_the_last_tables_stay(tmp_path, kind, content, said):
    files = Days(kind)
    before = files.ingest(tmp_path)
    folder, source = tmp_path / "in", {kind: "in", **({"types": TYPES} if kind == "csv" else {})}
    (folder / f"002.{kind}").write_bytes(content)
    with pytest.raises(SourceError, match=said) as raised:
        read(tmp_path, source)
    assert "\n" not in str(raised.value)
    raw = tmp_path / "data" / "raw"
    assert {str(path.relative_to(raw)): path.read_bytes() for path in sorted(raw.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(("module", "function"), [(table_parts, "write"), (kept_rows, "put")])
def test_a_run_that_is_stopped_is_followed_by_one_with_the_bytes_of_a_run_from_nothing(tmp_path, monkeypatch, module, function):
    files = Days()
    files.ingest(tmp_path)
    files.new_day()
    files.edited()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, function, stopped)
        with pytest.raises(KeyboardInterrupt):
            files.ingest(tmp_path)
    assert files.ingest(tmp_path) == files.ingest(tmp_path / "new")


def test_two_runs_at_once_follow_each_other(tmp_path):
    files = Days()
    files.write(tmp_path)
    source = {"csv": "in", "types": TYPES}
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: read(tmp_path, source), range(4)))
    assert runs == [read(tmp_path, source)] * 4


def test_a_project_that_was_moved_keeps_its_rows(tmp_path, caplog):
    files = Days()
    before = files.ingest(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    files.new_day()
    assert "3 of 4 files have not changed" in told(files, tmp_path / "b", caplog)
    del files.files[max(files.files)]
    assert files.ingest(tmp_path / "b") == before


@pytest.mark.parametrize("harm", ["changed", "gone", "one file"])
def test_tables_that_something_else_wrote_are_not_taken_for_those_of_the_files(tmp_path, harm):
    files = Days()
    before = files.ingest(tmp_path)
    raw = Layout(tmp_path).raw("t")
    first, second = table_parts.files(raw)[:2]
    if harm == "changed":
        shutil.copyfile(second, first)
    elif harm == "gone":
        first.unlink()
    else:
        rows = pl.read_parquet(raw)
        shutil.rmtree(raw)
        rows.write_parquet(raw)
    assert files.ingest(tmp_path) == before


def test_a_full_disk_for_what_is_kept_stops_no_run(tmp_path, monkeypatch, caplog):
    def refused(path: Path) -> Any:
        raise StorageError(f"{path.name}: No space left on device.")

    files = Days()
    monkeypatch.setattr(earlier_results, "writing", refused)
    assert "ingest: the next run will compute again" in told(files, tmp_path, caplog)
    files.new_day()
    assert files.ingest(tmp_path) == files.ingest(tmp_path / "new")
