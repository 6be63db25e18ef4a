"""A run of validation that finds earlier results writes the bytes of a run from nothing, and computes only what is new."""

import math
import random
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from evergreen.tasks import ingest, validate
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import DataError, StorageError
from evergreen.tasks.core.paths import Layout, read_json, write_json
from evergreen.tasks.data import earlier_results

GROUP = 4
"""Rows of a part here."""
SCHEMA = {"id": pl.Int64, "day": pl.Date, "item": pl.String, "count": pl.Int64, "price": pl.Float64, "paid": pl.Float64}
RULES: dict[str, Any] = {
    "max_bad_share": 1,
    "unique": ["id"],
    "references": {"item": {"to": "items.item", "where": "count > 0", "join_columns": ["kind"]}},
    "derived": {"pieces": "CASE WHEN kind = 'loose' THEN NULL ELSE count END"},
    "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "count"}, "severity": "warning"},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "pieces", "max_value": 3}},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "day", "min_value": "2024-01-02"}},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "price", "min_value": 0, "mostly": 0.8}},
        {"type": "expect_column_pair_values_to_be_equal", "severity": "warning",
         "kwargs": {"column_A": "price", "column_B": "paid"}},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "price"}, "severity": "warning"},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "count"}, "severity": "warning"},
        {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["id", "item"]}, "severity": "warning"},
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "price", "min_value": 1}, "severity": "warning"},
        {"type": "expect_column_quantile_values_to_be_between", "severity": "warning",
         "kwargs": {"column": "count", "quantile_ranges": {"quantiles": [0.1, 0.5], "value_ranges": [[0, 1], [0, 1]]}}},
        {"type": "expect_column_distinct_values_to_be_in_set", "severity": "warning",
         "kwargs": {"column": "item", "value_set": ["a"]}},
    ],
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Parts of four rows, blocks of twelve."""
    monkeypatch.setattr(table_parts, "PART_ROWS", GROUP)
    monkeypatch.setattr(validate, "rows_per_block", lambda _: 3 * GROUP)
    return monkeypatch


class Shop:
    """Two tables whose rows and rules change from day to day."""

    def __init__(self, seed: int = 0, rows: int = 26) -> None:
        self.draw = random.Random(seed)
        self.sales = pl.DataFrame([self._row(number) for number in range(rows)], schema=SCHEMA, orient="row")
        self.items = pl.DataFrame({"item": ["a", "b", "c"], "kind": ["box", "loose", None]})
        self.rules: dict[str, Any] = RULES
        self.received = 0

    def _row(self, number: int) -> tuple[Any, ...]:
        price = self.draw.choice([None, math.nan, -0.0, 0.0, 1.5, -1.0, round(self.draw.random(), 2)])
        day = date(2024, 1, 1) + timedelta(days=number // 4)
        count = self.draw.randrange(5)
        return number, day, self.draw.choice("abcd"), count, price, self.draw.choice([price, 2.0])

    def more(self, rows: int | None = None) -> None:
        start, rows = max(self.sales["id"]) + 1, rows or self.draw.randrange(1, 6)
        self._append(pl.DataFrame([self._row(start + each) for each in range(rows)], schema=SCHEMA, orient="row"))

    def copies(self) -> None:
        self._append(self.sales.select(list(SCHEMA)).sample(2, seed=self.draw.randrange(99)))

    def same_key(self) -> None:
        self._append(
            self.sales.select(list(SCHEMA)).sample(1, seed=self.draw.randrange(99)).with_columns(count=pl.lit(4, pl.Int64))
        )

    def _append(self, rows: pl.DataFrame) -> None:
        self.sales = pl.concat([self.sales, rows], how="diagonal")

    def corrected(self) -> None:
        at = pl.int_range(pl.len()) == self.draw.randrange(len(self.sales))
        self.sales = self.sales.with_columns(pl.when(at).then(pl.lit(3.25)).otherwise("price").alias("price"))

    def without_count(self) -> None:
        at = pl.int_range(pl.len()) == self.draw.randrange(len(self.sales))
        self.sales = self.sales.with_columns(pl.when(at).then(None).otherwise("count").alias("count"))

    def deleted(self) -> None:
        self.sales = self.sales.filter(pl.int_range(pl.len()) != self.draw.randrange(len(self.sales)))

    def new_item(self) -> None:
        self.items = pl.concat([self.items, pl.DataFrame({"item": [self.draw.choice("de")], "kind": ["box"]})])

    def other_kind(self) -> None:
        self.items = self.items.with_columns(kind=pl.when(pl.col("item") == "a").then(pl.lit("loose")).otherwise("kind"))

    def new_column(self) -> None:
        self.sales = self.sales.with_columns(pl.int_range(pl.len()).alias(f"c{len(self.sales.columns)}"))

    def other_rule(self) -> None:
        between = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "count", "max_value": 2}}
        self.rules = {**self.rules, "expectations": [*self.rules["expectations"], between]}

    def drops_duplicates(self) -> None:
        self.rules = {**self.rules, "drop_duplicates": not self.rules.get("drop_duplicates")}

    def receives(self) -> None:
        self.received = self.draw.randrange(6)

    def nothing(self) -> None:
        pass

    def read(self, root: Path) -> tuple[Params, Layout]:
        root.mkdir(exist_ok=True)
        self.sales.write_parquet(root / "sales.parquet")
        self.items.write_parquet(root / "items.parquet")
        given = {
            "project": {"name": "shop", "as_of": "2024-12-31"},
            "ingest": {"sales": {"parquet": "sales.parquet", "time": "day"}, "items": {"parquet": "items.parquet"}},
            "validate": {"sales": self.rules, "items": {"unique": ["item"], "max_bad_share": 1}},
            "problems": {},
        }
        params, layout = Params.model_validate(given), Layout(root)
        ingest.run(params, None, layout)
        facts = read_json(path := layout.raw("sales").with_name("sources.json"))
        facts["tables"]["sales"]["received"] = self.received
        write_json(path, facts)
        return params, layout

    def run(self, root: Path) -> dict[str, bytes]:
        """What ingest and validation write there, by path."""
        params, layout = self.read(root)
        validate.run(params, None, layout)
        return written(layout)


def written(layout: Layout) -> dict[str, bytes]:
    folders = layout.table("any").parent, layout.quarantine("any").parent, layout.validation
    files = (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())
    return {layout.relative(path): path.read_bytes() for path in files}


CHANGES = st.sampled_from(
    [
        Shop.more, Shop.more, Shop.copies, Shop.same_key, Shop.corrected, Shop.without_count, Shop.deleted, Shop.new_item,
        Shop.other_kind, Shop.new_column, Shop.other_rule, Shop.drops_duplicates, Shop.receives, Shop.nothing,
    ]
)  # fmt: skip


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate])
@given(st.integers(0, 99), st.lists(st.lists(CHANGES, min_size=1, max_size=2), min_size=2, max_size=3), st.data())
def test_after_any_changes_a_run_writes_the_bytes_of_a_run_from_nothing(small, tmp_path, seed, days, data):
    shop, root = Shop(seed), tmp_path / "kept"
    shutil.rmtree(root, ignore_errors=True)
    for changes in [[Shop.nothing], *days]:
        for change in changes:
            change(shop)
        groups = data.draw(st.integers(1, 4))
        small.setattr(validate, "rows_per_block", lambda _, groups=groups: groups * GROUP)
        seen = shop.run(root)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        assert seen == shop.run(tmp_path / "new"), changes


def judged(shop: Shop, root: Path, caplog: pytest.LogCaptureFixture) -> str:
    """The log of a run."""
    caplog.clear()
    with caplog.at_level("INFO"):
        shop.run(root)
    return caplog.text


def test_of_a_table_that_grew_or_has_a_corrected_row_only_those_blocks_are_judged_again(small, tmp_path, caplog):
    shop = Shop(rows=26)
    assert "as before" not in judged(shop, tmp_path, caplog)
    shop.more(3)
    assert "sales: 24 of 29 rows are as before" in judged(shop, tmp_path, caplog)
    shop.sales = shop.sales.with_columns(price=pl.when(pl.col("id") == 3).then(9.5).otherwise("price"))
    assert "sales: 17 of 29 rows are as before" in judged(shop, tmp_path, caplog)
    small.setattr(validate, "rows_per_block", lambda _: 2 * GROUP)
    shop.more(3)
    assert "sales: 28 of 32 rows are as before" in judged(shop, tmp_path, caplog)


def test_a_new_item_leaves_the_blocks_that_do_not_refer_to_it_as_they_are(small, tmp_path, caplog):
    shop = Shop(rows=24)
    shop.sales = shop.sales.with_columns(item=pl.when(pl.col("id") < 12).then(pl.lit("b")).otherwise(pl.lit("a")))
    judged(shop, tmp_path, caplog)
    shop.items = pl.concat([shop.items, pl.DataFrame({"item": ["z"], "kind": ["box"]})])
    assert "sales: 24 of 24 rows are as before" in judged(shop, tmp_path, caplog)
    shop.other_kind()
    assert "sales: 12 of 24 rows are as before" in judged(shop, tmp_path, caplog)


def test_an_unchanged_table_is_neither_read_nor_judged_again(small, tmp_path, caplog):
    shop = Shop()
    before = shop.run(tmp_path)
    with small.context() as patched:
        for module, name in ((validate, "judge"), (validate, "check_expectations"), (validate, "render_page")):
            patched.delattr(module, name)
        assert shop.run(tmp_path) == before
    shop.more()
    assert "sales: 24 of" in judged(shop, tmp_path, caplog), "a run with nothing new keeps the results of the blocks"


def test_tables_that_were_changed_since_they_were_written_are_written_again(small, tmp_path):
    shop = Shop()
    before = shop.run(tmp_path)
    layout = Layout(tmp_path)
    shutil.copyfile(table_parts.files(layout.table("items"))[0], table_parts.files(layout.table("sales"))[1])
    layout.quarantine("items").unlink()
    assert shop.run(tmp_path) == before


def test_damaged_results_are_computed_again(small, tmp_path):
    shop, folder = Shop(), tmp_path / "var" / "validation"
    shop.run(tmp_path)
    shop.more()
    for number, path in enumerate(sorted(folder.iterdir())):
        content = path.read_bytes()
        flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
        path.unlink()
        if number % 4:
            path.write_bytes((content[:-3], flipped, b"")[number % 4 - 1])
    assert number > 8
    assert shop.run(tmp_path) == shop.run(tmp_path / "new")


def test_a_full_disk_stops_no_run_and_is_said_once(small, tmp_path, caplog):
    shop = Shop()

    def refused(path: Path) -> Any:
        raise StorageError(f"{path.name}: No space left on device.")

    small.setattr(earlier_results, "writing", refused)
    log = judged(shop, tmp_path, caplog)
    assert log.count("validation: the next run will compute again what this one has found") == 1
    assert written(Layout(tmp_path)) == shop.run(tmp_path / "new")


def test_a_run_that_is_stopped_leaves_the_blocks_that_it_judged(small, tmp_path, caplog):
    shop = Shop()

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with small.context() as patched:
        patched.setattr(validate, "split", stopped)
        shop.rules = {**shop.rules, "references": {}, "derived": {}, "expectations": shop.rules["expectations"][:1]}
        params, layout = shop.read(tmp_path)
        alone = params.model_copy(update={"ingest": {"sales": params.ingest["sales"]}})
        with pytest.raises(KeyboardInterrupt):
            validate.run(alone, None, layout)
    assert "sales: 26 of 26 rows are as before" in judged(shop, tmp_path, caplog)
    assert written(Layout(tmp_path)) == shop.run(tmp_path / "new")


def test_a_run_that_finds_too_many_bad_rows_stops_again_with_the_same_words(small, tmp_path):
    shop, words = Shop(), []
    shop.rules = {**shop.rules, "max_bad_share": 0}
    for root in (tmp_path, tmp_path, tmp_path / "new"):
        with pytest.raises(DataError, match=r"raise validate\.sales\.max_bad_share") as stopped:
            shop.run(root)
        words.append((str(stopped.value), (root / "reports" / "validation" / "results.json").read_bytes()))
    assert len(set(words)) == 1


def test_what_no_run_uses_any_more_is_removed(small, tmp_path):
    shop, folder = Shop(), tmp_path / "var" / "validation"
    for _ in range(6):
        shop.corrected()
        shop.run(tmp_path)
    shop.run(tmp_path / "new")
    assert len(list(folder.iterdir())) == len(list((tmp_path / "new" / "var" / "validation").iterdir()))


def test_a_rule_that_reads_the_clock_is_judged_in_each_run(small, tmp_path, caplog):
    shop = Shop()
    shop.rules = {**RULES, "derived": {**RULES["derived"], "late": "day > NOW()"}}
    judged(shop, tmp_path, caplog)
    again = [line for line in judged(shop, tmp_path, caplog).splitlines() if "as before" in line]
    assert ["items: as before" in line for line in again] == [True]
