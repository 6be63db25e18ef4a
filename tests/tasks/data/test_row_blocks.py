"""Validation of blocks of any size finds what Great Expectations finds in the whole table, and writes the same bytes."""

import math
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import great_expectations as gx
import polars as pl
import pytest
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.registry import get_expectation_impl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.tasks import validate
from evergreen.tasks.config.params import Rules
from evergreen.tasks.core import memory
from evergreen.tasks.data import column_statistics, row_blocks
from evergreen.tasks.data.great_expectations import silence

COLUMN_RULES: list[dict[str, Any]] = [
    {"type": f"expect_column_{name}", "kwargs": kwargs}
    for name, kwargs in [
        ("values_to_not_be_null", {"column": "n"}),
        ("values_to_not_be_null", {"column": "x", "mostly": 0.5}),
        ("values_to_be_null", {"column": "t"}),
        ("values_to_be_between", {"column": "n", "min_value": 0, "max_value": 2}),
        ("values_to_be_between", {"column": "x", "min_value": 0.5, "strict_min": True, "mostly": 0.4}),
        ("values_to_be_between", {"column": "at", "min_value": "2024-01-03"}),
        ("values_to_be_in_set", {"column": "t", "value_set": ["aa", "b"]}),
        ("values_to_be_in_set", {"column": "ok", "value_set": [True]}),
        ("values_to_not_be_in_set", {"column": "n", "value_set": [1]}),
        ("value_lengths_to_equal", {"column": "t", "value": 2}),
        ("values_to_match_regex", {"column": "t", "regex": "^a"}),
        ("values_to_not_match_regex_list", {"column": "t", "regex_list": ["b", "c"]}),
        ("values_to_be_between", {"column": "n", "min_value": 1, "row_condition": "w > 1", "condition_parser": "pandas"}),
        ("values_to_be_between", {"column": "t", "min_value": 1}),
        ("pair_values_to_be_equal", {"column_A": "n", "column_B": "w"}),
        ("pair_values_a_to_be_greater_than_b", {"column_A": "n", "column_B": "w", "or_equal": True, "mostly": 0.3}),
        ("values_to_be_unique", {"column": "n"}),
        ("values_to_be_unique", {"column": "x", "mostly": 0.2}),
        ("values_to_be_unique", {"column": "t"}),
        ("values_to_be_increasing", {"column": "w"}),
        ("mean_to_be_between", {"column": "n", "min_value": 0}),
        ("mean_to_be_between", {"column": "x", "min_value": 0}),
        ("sum_to_be_between", {"column": "w", "min_value": 0}),
        ("stdev_to_be_between", {"column": "x", "min_value": 0}),
        ("median_to_be_between", {"column": "x", "min_value": 0}),
        ("median_to_be_between", {"column": "w", "min_value": 0}),
        ("min_to_be_between", {"column": "n", "min_value": 0}),
        ("max_to_be_between", {"column": "at", "min_value": "2024-01-01"}),
        (
            "quantile_values_to_be_between",
            {"column": "x", "quantile_ranges": {"quantiles": [0.0, 0.07, 0.5, 0.9], "value_ranges": [[None, 1]] * 4}},
        ),
        ("unique_value_count_to_be_between", {"column": "n", "min_value": 3}),
        ("proportion_of_unique_values_to_be_between", {"column": "t", "min_value": 0.2}),
        ("proportion_of_non_null_values_to_be_between", {"column": "x", "min_value": 0.2}),
        ("distinct_values_to_be_in_set", {"column": "t", "value_set": ["aa", "b", "c"]}),
        ("distinct_values_to_contain_set", {"column": "n", "value_set": [1, 2]}),
        ("most_common_value_to_be_in_set", {"column": "t", "value_set": ["aa"]}),
        ("values_to_be_of_type", {"column": "w", "type_": "int64"}),
    ]
]
TABLE_RULES: list[dict[str, Any]] = [
    {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["n", "t"]}},
    {"type": "expect_multicolumn_sum_to_equal", "kwargs": {"column_list": ["n", "w"], "sum_total": 3}},
    {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 5}},
    {"type": "expect_table_columns_to_match_set", "kwargs": {"column_set": ["n", "w"]}},
    {"type": "expect_column_to_exist", "kwargs": {"column": "t"}},
]
RULES = [
    {**each, "name": f"{place} {each['type']}", "severity": "warning" if place % 3 == 0 else "error"}
    for place, each in enumerate([*COLUMN_RULES, *TABLE_RULES])
]
SCHEMA = {
    "n": pl.Int64,
    "w": pl.Int64,
    "x": pl.Float64,
    "t": pl.String,
    "ok": pl.Boolean,
    "at": pl.Datetime("us"),
}
ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-2, 4)),
        st.integers(0, 4),
        st.one_of(st.none(), st.floats(-4, 4, width=16), st.sampled_from([math.nan, -0.0, 0.0])),
        st.sampled_from([None, "aa", "ab", "b", "c"]),
        st.sampled_from([None, True, False]),
        st.one_of(st.none(), st.integers(1, 9).map(lambda day: datetime(2024, 1, day))),
    ),
    min_size=1,
    max_size=24,
)


def whole_table(table: pl.DataFrame) -> list[tuple[Any, ...]]:
    """What the library itself finds: whether it passes, which rows fail, what was observed; None where it cannot tell."""
    silence()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("p").add_dataframe_asset("a")
    batch = asset.add_batch_definition_whole_dataframe("w").get_batch({"dataframe": table.to_pandas()})
    suite = gx.ExpectationSuite(name="s", expectations=[])
    for number, each in enumerate(RULES):
        kwargs = dict(each["kwargs"])
        if kwargs.get("column") == "at":
            kwargs["min_value"] = datetime.fromisoformat(kwargs["min_value"])
        suite.expectations.append(get_expectation_impl(each["type"])(**kwargs, meta={"number": number}))
    results = batch.validate(suite, result_format={"result_format": "COMPLETE"}).results
    found: list[Any] = [None] * len(RULES)
    for each in sorted(results, key=lambda result: result.expectation_config.meta["number"]):
        number, rows = each.expectation_config.meta["number"], each.result.get("unexpected_index_list")
        if each.result or RULES[number]["type"] == "expect_column_to_exist":
            failing = None if rows is None else sorted(rows)
            found[number] = each.success, failing, each.result.get("observed_value")
    return found


def rules(**given: Any) -> Rules:
    return Rules.model_validate({"max_bad_share": 1, "expectations": RULES, **given})


def in_blocks(table: pl.DataFrame, rows: int, given: Rules, monkeypatch: pytest.MonkeyPatch) -> validate.Checked:
    with monkeypatch.context() as patched:
        patched.setattr(validate, "rows_per_block", lambda _: rows)
        patched.setattr(row_blocks, "BYTES_PER_KEY", memory.limit() // (3 * rows))
        return validate.check("t", table, given)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, set, tuple)):
        return len(one) == len(two) and all(map(same, sorted(one, key=str), sorted(two, key=str)))
    if isinstance(one, float) and not isinstance(two, str):
        return (math.isnan(one) and math.isnan(two)) or one == pytest.approx(two, rel=1e-14)
    return one == two or str(one) == str(two)


def drawn(seed: int, count: int) -> pl.DataFrame:
    draw = random.Random(seed)
    days = [None, *(datetime(2024, 1, day) for day in range(1, 9))]
    numbers = [None, math.nan, -0.0, 0.0, 0.1, 0.2, 0.3, 1e9, -1e-9]
    return pl.DataFrame(
        {
            "n": [draw.choice([None, *range(-2, 5)]) for _ in range(count)],
            "w": [draw.randrange(5) for _ in range(count)],
            "x": [draw.choice(numbers) if draw.random() < 0.6 else draw.gauss(0, 1) for _ in range(count)],
            "t": [draw.choice([None, "aa", "ab", "b", "c"]) for _ in range(count)],
            "ok": [draw.choice([None, True, False]) for _ in range(count)],
            "at": [draw.choice(days) for _ in range(count)],
        },
        schema=SCHEMA,
    )


def test_blocks_of_any_size_find_what_the_library_finds_in_the_whole_table(monkeypatch, tmp_path):
    table = drawn(seed=1, count=30)
    expected, seen = whole_table(table), in_blocks(table, 100, rules(), monkeypatch)
    for rule, outcome, (number, wanted) in zip(RULES, seen.outcomes[1:], enumerate(expected), strict=True):
        assert (outcome.problem is None) == (wanted is not None), rule
        if wanted is None:
            continue
        passed, failing, observed = wanted
        assert outcome.passed == passed, rule
        assert outcome.failed == (None if failing is None else len(failing)), rule
        assert failing is not None or same(observed, outcome.observed), (rule, observed, outcome.observed)
        if failing and not passed and rule["severity"] == "error":
            named = seen.quarantined.filter(pl.col("_rule").str.split("; ").list.contains(f"{rule['name']}"))
            assert named.drop("_rule").equals(table[failing]), number
    again = in_blocks(table, 11, rules(), monkeypatch)
    assert again.outcomes == seen.outcomes
    assert again.quarantined.equals(seen.quarantined)
    assert again.kept.equals(seen.kept)
    assert written(again, tmp_path) == written(seen, tmp_path)
    for one, two in zip(again.docs.results, seen.docs.results, strict=True):
        assert same(one.to_json_dict()["result"], two.to_json_dict()["result"]), one


def written(seen: validate.Checked, folder: Path) -> bytes:
    seen.quarantined.write_parquet(folder / "q.parquet")
    return (folder / "q.parquet").read_bytes()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.integers(1, 8), st.booleans(), st.sampled_from([("n",), ("n", "x"), ("t", "ok", "at")]))
def test_keys_references_and_duplicates_are_judged_across_blocks(monkeypatch, rows, size, drop, unique):
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    known = {"keys": pl.DataFrame({"k": [1, 2], "name": ["one", "two"]})}
    reference = {"n": {"to": "keys.k", "where": "w > 1", "join_columns": ["name"]}}
    derived = {"long": "CASE WHEN name = 'two' THEN x ELSE w END"}
    given = Rules.model_validate(
        {"max_bad_share": 1, "drop_duplicates": drop, "unique": unique, "references": reference, "derived": derived}
    )
    seen = validate.check("t", table, given, "at", known)
    with monkeypatch.context() as patched:
        patched.setattr(validate, "rows_per_block", lambda _: size)
        patched.setattr(row_blocks, "BYTES_PER_KEY", memory.limit() // (3 * size))
        again = validate.check("t", table, given, "at", known)
    assert (again.outcomes, again.counts) == (seen.outcomes, seen.counts)
    assert again.quarantined.equals(seen.quarantined)
    assert again.kept.equals(seen.kept)
    assert seen.counts.duplicates == (len(table) - table.n_unique() if drop else 0)
    assert not seen.kept.select(unique).is_duplicated().any()


def test_an_expression_on_other_rows_is_computed_on_all_of_them_and_said(monkeypatch, caplog):
    table = pl.DataFrame({"a": [1, 2, 3, 10]})
    rule = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "above", "max_value": 2}}
    given = Rules.model_validate({"max_bad_share": 1, "derived": {"above": "a - AVG(a)"}, "expectations": [rule]})
    monkeypatch.setattr(validate, "rows_per_block", lambda _: 2)
    with caplog.at_level("INFO"):
        seen = validate.check("t", table, given)
    assert seen.kept["a"].to_list() == [1, 2, 3]
    assert "validate: t: validate.t.derived.above looks at other rows, so all 4 rows are in memory at once" in caplog.text


def test_blocks_follow_from_the_memory_that_one_may_take(monkeypatch):
    monkeypatch.setenv("EVERGREEN_MEMORY_MB", "200")
    small = row_blocks.rows_per_block(20)
    monkeypatch.setenv("EVERGREEN_MEMORY_MB", "2000")
    assert small % row_blocks.GRAIN == 0
    assert 8 * small < row_blocks.rows_per_block(20) < 12 * small
    monkeypatch.setenv("EVERGREEN_MEMORY_MB", "1")
    assert row_blocks.rows_per_block(20) == row_blocks.GRAIN


@pytest.mark.parametrize("kind", [pl.Float64, pl.Int64, pl.UInt64, pl.Int8])
def test_order_statistics_are_those_of_the_sorted_values(kind):
    lowest, highest = (0, 200) if kind == pl.UInt64 else (-100, 100)
    values = pl.Series("v", [(place * 37) % (highest - lowest) + lowest for place in range(300)]).cast(kind, strict=False)
    values = pl.concat([values, pl.Series("v", [2**63 + 5, 2**64 - 1], dtype=kind)]) if kind == pl.UInt64 else values
    view = row_blocks.RowBlocks(values.to_frame().lazy(), len(values), 100, scan=70)
    ranks = [0, 1, 57, 58, 150, len(values) - 1]
    assert column_statistics.order_statistics(view, "v", ranks) == [values.sort()[rank] for rank in ranks]


def test_equal_rows_come_together_and_in_order_from_files_that_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(row_blocks, "BYTES_PER_KEY", memory.limit() // 100)
    table = pl.DataFrame({"a": [1.5, -0.0, None, float("nan")] * 75, "b": [*"xyz"] * 100})
    view = row_blocks.RowBlocks(table.lazy(), 300, 100, scratch=tmp_path)
    parts = list(view.equals(["a", "b"]))
    groups = [set(part.select("a", "b").fill_nan(7).rows()) for part in parts]
    assert len(parts) > 1
    assert sum(map(len, groups)) == len(set.union(*groups)) == 12
    assert all(part[row_blocks.ROW].is_sorted() for part in parts)
    assert pl.concat(parts).sort(row_blocks.ROW).select("a", "b").equals(table)
    assert list(tmp_path.iterdir()) == []
