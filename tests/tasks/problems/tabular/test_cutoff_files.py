import shutil
import weakref
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.tasks.config.params import Features
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.base import FeatureFolders
from evergreen.tasks.problems.tabular import cutoff_files, entity_partitions
from evergreen.tasks.problems.tabular.point_in_time import list_cutoffs, point_in_time

DAY = date(2024, 1, 1)
TIMES = {"sales": "day", "goods": None, "people": None}
Sale = tuple[int, int, float, str]


def section(**parts) -> Features:
    base = {
        "entity": "person", "horizon_days": 4, "cutoffs": {"first": str(DAY + timedelta(days=5)), "every_days": 3},
        "target": {"table": "sales", "function": "sum", "column": "amount"}, "windows_days": [3, 9],
        "aggregates": [
            {"name": "lines", "table": "sales"},
            {"name": "mean", "table": "sales", "function": "mean", "column": "amount"},
            {"name": "items", "table": "sales", "function": "n_unique", "column": "item"},
            {"name": "dear", "table": "sales", "join": ["goods", "item"], "where": "price > 1"},
            {"name": "last", "table": "sales", "function": "days_since_last", "where": "amount > 2"},
            {"name": "first", "table": "sales", "function": "days_since_first"},
        ],
        "shares": [{"name": "share", "table": "sales", "category": "item", "value": "amount", "top": 2, "window_days": 9}],
        "attributes": [{"table": "people", "columns": ["age"]}],
    }  # fmt: skip
    return Features.model_validate(base | parts)


def tables(sales: list[Sale], prices=(1.0, 2.0, 3.0), ages=(40, 50)) -> dict[str, pl.LazyFrame]:
    frame = pl.DataFrame(sales, schema={"person": int, "number": int, "amount": float, "item": str}, orient="row")
    return {
        "sales": frame.with_columns(day=pl.lit(DAY) + pl.duration(days="number")).drop("number").lazy(),
        "goods": pl.LazyFrame({"item": ["a", "b", "c"], "price": prices}),
        "people": pl.LazyFrame({"person": range(1, len(ages) + 1), "age": ages}),
    }


@dataclass
class Project:
    """One problem's two folders, as the features step keeps them from run to run."""

    root: Path
    runs: int = 0

    def run(self, given: dict[str, pl.LazyFrame], as_of: int, chosen: Features | None = None) -> bytes:
        """The bytes of both files."""
        self.runs += 1
        learned, newest = (self.root / f"{name}{self.runs}" for name in ("learned", "newest"))
        for folder in (learned, newest):
            folder.mkdir()
        folders = FeatureFolders(learned, newest, self.root / f"learned{self.runs - 1}", self.root / "record.json")
        cutoff_files.write(given, TIMES, chosen or section(), DAY + timedelta(days=as_of), folders)
        return b"".join((folder / "rows.parquet").read_bytes() for folder in (learned, newest))

    @property
    def rows(self) -> pl.DataFrame:
        return pl.read_parquet(self.root / f"learned{self.runs}" / "rows.parquet")


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def made(monkeypatch) -> list[list[date]]:
    """The cutoffs whose rows were made, for each run."""
    found: list[list[date]] = []
    each = entity_partitions.each

    def noting(function, shared, *rest):
        found.append(list(shared[-1]))
        return each(function, shared, *rest)

    monkeypatch.setattr(entity_partitions, "each", noting)
    return found


def days(*numbers: int) -> list[date]:
    return [DAY + timedelta(days=number) for number in numbers]


HISTORY: list[Sale] = [(person, number, person + number / 7, "abc"[number % 3]) for number in range(30) for person in (1, 2, 3)]


def until(last: int) -> list[Sale]:
    return [sale for sale in HISTORY if sale[1] <= last]


def test_a_day_later_only_the_rows_of_that_day_are_made(project, made, caplog):
    project.run(tables(until(16)), 16)
    with caplog.at_level("INFO"):
        again = project.run(tables(until(17)), 17)
    assert f"no label is newer than before: models learn from the same rows until {days(18)[0]}" in caplog.messages
    assert made == [days(5, 8, 11, 16), days(17)]
    assert again == Project(fresh(project)).run(tables(until(17)), 17)


def fresh(project: Project) -> Path:
    folder = project.root / "fresh"
    folder.mkdir()
    return folder


def test_a_day_whose_label_completes_a_cutoff_adds_it(project, made):
    project.run(tables(until(17)), 17)
    again = project.run(tables(until(18)), 18)
    assert made == [days(5, 8, 11, 17), days(14, 18)]
    assert again == Project(fresh(project)).run(tables(until(18)), 18)
    file = pq.ParquetFile(project.root / "learned2" / "rows.parquet")
    assert file.num_row_groups == project.rows["cutoff"].n_unique() == 4


@pytest.mark.parametrize(
    ("change", "from_cutoff"),
    [
        (lambda sales: [*sales, (2, 9, 5.0, "a")], 5),  # within the label of the first
        (lambda sales: [*sales, (2, 10, 5.0, "a")], 8),
        (lambda sales: [sale for sale in sales if sale[:2] != (3, 13)], 11),
        (lambda sales: [(1, 2, 9.0, "a") if sale[:2] == (1, 2) else sale for sale in sales], 5),
    ],
)
def test_a_change_in_the_past_makes_anew_what_it_could_touch_and_no_more(project, made, change, from_cutoff):
    project.run(tables(until(20)), 20)
    again = project.run(tables(change(until(20))), 20)
    assert made[1] == [each for each in days(5, 8, 11, 14, 20) if each >= days(from_cutoff)[0] or each == days(20)[0]]
    assert again == Project(fresh(project)).run(tables(change(until(20))), 20)


def test_the_same_events_of_a_day_in_another_order_are_a_change(project, made):
    many = [(1, 4, 0.1, "a"), (1, 4, 0.2, "a"), (1, 4, 0.3, "a"), *until(17)]
    project.run(tables(many), 17)
    again = project.run(tables([*many[2::-1], *many[3:]]), 17)
    assert len(made[1]) == 4
    assert again == Project(fresh(project)).run(tables([*many[2::-1], *many[3:]]), 17)


def test_facts_about_entities_are_those_of_today_without_making_any_row_anew(project, made):
    project.run(tables(until(17)), 17)
    again = project.run(tables(until(17), ages=(41, 50, 60)), 17)
    assert made[1] == days(17)
    assert again == Project(fresh(project)).run(tables(until(17), ages=(41, 50, 60)), 17)
    assert project.rows.filter(person=3)["age"].unique().to_list() == [60]


@pytest.mark.parametrize(
    "changed",
    [
        lambda: (tables(until(17), prices=(1.0, 2.0, 0.5)), section()),
        lambda: (tables(until(17)), section(windows_days=[3, 8])),
        lambda: (tables(until(17)), section(keep=["lines_3d", "age"])),
    ],
)
def test_another_joined_value_or_definition_makes_all_rows_anew(project, made, changed):
    project.run(tables(until(17)), 17)
    given, chosen = changed()
    again = project.run(given, 17, chosen)
    assert made[1] == days(5, 8, 11, 17)
    assert again == Project(fresh(project)).run(given, 17, chosen)


def damage(project: Project) -> None:
    file = project.root / "learned1" / "rows.parquet"
    project_rows = pl.read_parquet(file)
    project_rows.with_columns(pl.col("target") + 1).write_parquet(file)


@pytest.mark.parametrize(
    "lose",
    [
        damage,
        lambda project: (project.root / "learned1" / "rows.parquet").unlink(),
        lambda project: (project.root / "record.json").write_text("{"),
        lambda project: (project.root / "record.json").write_text("[]"),
        lambda project: (project.root / "record.json").write_text('{"keys": {}}'),
    ],
)
def test_rows_that_are_not_what_the_record_says_are_made_anew(project, made, lose):
    whole = project.run(tables(until(17)), 17)
    lose(project)
    assert project.run(tables(until(17)), 17) == whole
    assert made[1] == days(5, 8, 11, 17)


def test_other_code_makes_all_rows_anew(project, made, monkeypatch):
    project.run(tables(until(17)), 17)
    monkeypatch.setattr(cutoff_files.step_cache, "code", lambda: "other")
    project.run(tables(until(17)), 17)
    assert made[1] == days(5, 8, 11, 17)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_any_number_of_parts_gives_the_same_bytes_also_where_one_has_no_entity(project, monkeypatch, number):
    given = [*until(17), (None, 3, 1.0, "a")]
    whole = project.run(tables(given), 17)
    monkeypatch.setattr(entity_partitions, "count", lambda events: number)
    assert Project(fresh(project)).run(tables(given), 17) == whole
    assert project.run(tables(given), 17) == whole


@pytest.mark.parametrize("name", ["part", "source", "digest", "len"])
def test_a_column_may_be_called_like_something_of_ours(project, monkeypatch, name):
    given = tables(until(17))
    given["sales"] = given["sales"].with_columns((pl.col("amount") * 2).alias(name))
    chosen = section(aggregates=[{"name": "own", "table": "sales", "function": "sum", "column": name}])
    whole = project.run(given, 17, chosen)
    assert project.rows["own_9d"].sum() > 0
    monkeypatch.setattr(entity_partitions, "count", lambda events: 5)
    assert Project(fresh(project)).run(given, 17, chosen) == whole


def test_several_parts_read_their_own_events_alone_and_leave_nothing_behind(project, monkeypatch):
    read: list[int] = []
    rows_of = cutoff_files.point_in_time.rows_of

    def noting(shared, part=None):
        known = shared[0].of(part)
        read.append(known.tables["sales"].select(pl.len()).collect().item())
        return rows_of(shared, part)

    monkeypatch.setattr(entity_partitions, "count", lambda events: 5)
    monkeypatch.setattr(cutoff_files.point_in_time, "rows_of", noting)
    project.run(tables(until(17)), 17)
    assert len(read) == 5
    assert sum(read) == len(until(17))
    assert sorted(path.name for path in project.root.rglob("*") if path.is_file()) == [
        "record.json",
        "rows.parquet",
        "rows.parquet",
    ]


def test_a_refusal_leaves_the_earlier_rows_and_their_record(project):
    whole, record = project.run(tables(until(17)), 17), (project.root / "record.json").read_text()
    with pytest.raises(DataError, match=r"target: sum of sales is 0 on all 9 labelled rows, so there is nothing to learn"):
        project.run(tables([(*sale[:2], 0.0, sale[3]) for sale in until(17)]), 17)
    for name in ("learned2", "newest2"):
        shutil.rmtree(project.root / name)
    project.runs = 1
    assert (project.root / "record.json").read_text() == record
    assert project.run(tables(until(17)), 17) == whole


@st.composite
def stories(draw) -> list[tuple[list[Sale], int]]:
    """Days of a shop, each with the tables as they were then: what happened is added, and sometimes corrected."""
    sale = st.tuples(st.integers(1, 4), st.integers(0, 24), st.floats(0.125, 9, width=32), st.sampled_from("abc"))
    sales, told = draw(st.lists(sale, min_size=20, max_size=60)), []
    last = draw(st.integers(12, 16))
    for _ in range(draw(st.integers(2, 4))):
        known = [(1, 0, 1.0, "a"), (2, 1, 2.0, "b"), (1, 11, 3.0, "c"), *(each for each in sales if each[1] <= last)]
        told.append((known, last))
        last += draw(st.integers(-1, 4))
        if draw(st.booleans()):
            sales = sales[1:]
    return told


@settings(max_examples=25, deadline=None)
@given(stories())
def test_however_a_shop_went_on_the_rows_are_those_of_a_run_from_nothing(tmp_path_factory, story):
    kept = Project(tmp_path_factory.mktemp("kept"))
    for sales, last in story:
        whole = Project(tmp_path_factory.mktemp("whole"))
        assert kept.run(tables(sales), last) == whole.run(tables(sales), last)
    at = DAY + timedelta(days=story[-1][1])
    expected = point_in_time(tables(story[-1][0]), TIMES, section(), at)
    assert kept.rows.equals(expected.filter(pl.col("cutoff") < at))
    assert kept.rows["cutoff"].unique().sort().to_list() == list_cutoffs(section(), at)[:-1]


def test_the_rows_of_a_cutoff_are_let_go_before_those_of_the_next_but_one_are_made(tmp_path):
    made = list[weakref.ref[pl.DataFrame]]()

    def pieces():
        for day in range(8):
            assert sum(each() is not None for each in made) <= 3  # the first, which gives the schema, and the last
            rows = pl.DataFrame({"cutoff": [DAY + timedelta(days=day)], "target": [float(day)]})
            made.append(weakref.ref(rows))
            yield rows

    found = cutoff_files._write(pieces(), tmp_path / "rows.parquet")
    assert (found.rows, found.least, found.most) == (8, 0, 7)
    assert pq.read_metadata(tmp_path / "rows.parquet").num_row_groups == 8
