"""A plain table is read block by block, and its test rows are those that one look at the whole table draws."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from evergreen.tasks.config.params import Table
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.tabular import plain_rows, row_draws
from evergreen.tasks.problems.tabular.holdout_split import ENTITY, FEWEST, TARGET, TEST, TIME
from evergreen.tasks.problems.tabular.row_draws import ENTITIES, FEWEST_ENTITIES, LOT
from evergreen.tasks.problems.tabular.row_hashes import hash_rows

MANY = settings(max_examples=15, deadline=None)
COLUMNS = {"x": "number", "colour": "category", "since": "date", "gap": "number", "flag": "number"}
FORMS = [
    {},
    {"entity": "who"},
    {"entity": "few"},
    {"entity": "one"},
    {"test_key": ("few",)},
    {"test_key": ("colour", "since")},
    {"time": "at"},
    {"target": "amount"},
    {"target": "flagged", "entity": "who"},
    {"target": None, "entity": "who"},
    {"target": None, "test_key": ("few",)},
]


def section(**features) -> Table:
    return Table.model_validate({"table": "cases", "target": "y", "columns": COLUMNS, **features})


def cases(count: int, seed: int, rare: float = 0.3) -> pl.DataFrame:
    """Of class yes there is a share `rare`; few of the rows have no target; gap is missing in whole stretches of the table."""
    draw = np.random.default_rng(seed)
    at = [datetime(2024, 1, 1) + timedelta(hours=int(each)) for each in draw.integers(0, 500, count)]
    frame = pl.DataFrame(
        {
            "x": draw.choice([0.0, -0.0, 1.5, 2.5, 3.5], count),
            "colour": draw.choice(["red", "green", None], count).tolist(),
            "since": pl.Series(at).cast(pl.Date),
            "gap": draw.normal(size=count),
            "flag": draw.random(count) < 0.5,
            "flagged": draw.random(count) < rare,
            "who": draw.integers(0, max(count // 4, 2), count),
            "few": draw.integers(0, 3, count),
            "one": ["the only one"] * count,
            "at": at,
            "amount": draw.normal(size=count).round(1),
            "y": np.where(draw.random(count) < rare, "yes", "no"),
        }
    )
    stretch = pl.int_range(pl.len()) // 40 % 2 == 0
    return frame.with_columns(
        gap=pl.when(stretch).then(None).otherwise(pl.col("gap")),
        y=pl.when(pl.int_range(pl.len()) % 17 == 5).then(None).otherwise(pl.col("y")),
    )


def drawn_at_once(frame: pl.DataFrame, chosen: Table, by_class: bool) -> np.ndarray:
    """The rule of the documentation, with all rows in memory; for sections with an entity or a test key."""
    target = frame[chosen.target] if chosen.target else pl.Series([0.0] * frame.height)
    if chosen.entity:
        draws = hash_rows(frame.select(chosen.entity))
    else:
        content = pl.DataFrame({"key": hash_rows(frame.select(chosen.test_key or [])), "target": target})
        lots = content.select("key", lot=pl.int_range(pl.len()).over("key", "target") // LOT)
        draws = np.where(lots["lot"] == 0, lots["key"], hash_rows(lots.cast(pl.String)))
    whole = np.unique(draws)
    test = set(whole[whole < chosen.test_share * 2.0**64].tolist())
    if chosen.entity:
        test |= set(whole[: min(FEWEST_ENTITIES, len(whole) // 2)].tolist())
    classes = target.rank("dense").to_numpy() if by_class else np.zeros(len(draws))
    for each in np.unique(classes):
        mine = np.unique(draws[classes == each]).tolist()
        least = max(1, int(ENTITIES * chosen.test_share * len(mine))) if chosen.entity else 1
        if len(mine) > 1 and len(test & set(mine)) < least:
            test |= set(mine[:least])
        elif set(mine) <= test:
            test -= set(mine[-1:])
    return np.isin(draws, np.array(sorted(test), dtype=np.uint64))


def in_small_pieces(monkeypatch, rows: int, at_a_time: int, row_bytes: int = 2**14) -> None:
    """Blocks of so many rows, numbers so many at a time, and a range of draws for each few rows."""
    monkeypatch.setattr(plain_rows, "ROWS", rows)
    monkeypatch.setattr(row_draws, "AT_A_TIME", at_a_time)
    monkeypatch.setattr(row_draws, "ROW_BYTES", row_bytes)
    monkeypatch.setenv("EVERGREEN_MEMORY_MB", "1")


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("order", [None, "y", "at", "x"])
def test_the_file_is_the_same_to_the_bit_for_any_number_of_blocks(form, order, tmp_path, monkeypatch):
    frame = cases(400, 3) if order is None else cases(400, 3).sort(order)
    chosen = section(**form)
    by_class = chosen.target in ("y", "flagged")
    whole = plain_rows.plain(frame.lazy(), chosen, by_class)
    for rows, at_a_time in ((128, 64), (32, 50)):
        in_small_pieces(monkeypatch, rows, at_a_time)
        plain_rows.write(frame.lazy(), chosen, by_class, tmp_path / "rows.parquet")
        assert_frame_equal(pl.read_parquet(tmp_path / "rows.parquet"), whole, check_exact=True)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_bytes_of_the_file_do_not_depend_on_the_memory(form, tmp_path, monkeypatch):
    frame, written = cases(300, 1), []
    monkeypatch.setattr(plain_rows, "ROWS", 64)
    for limit, row_bytes in (("1000", 100), ("1", 2**15), ("1", 2**17)):
        monkeypatch.setattr(row_draws, "ROW_BYTES", row_bytes)
        monkeypatch.setenv("EVERGREEN_MEMORY_MB", limit)
        plain_rows.write(frame.lazy(), section(**form), "amount" not in form.values(), tmp_path / "rows.parquet")
        written.append((tmp_path / "rows.parquet").read_bytes())
    assert written[0] == written[1] == written[2]


@MANY
@given(
    st.integers(20, 300),
    st.integers(0, 99),
    st.sampled_from([0.3, 0.02, 0.0]),
    st.sampled_from([{"entity": "who"}, {"entity": "few"}, {"test_key": ("few",)}, {"test_key": ("colour", "since")}]),
    st.sampled_from([0.2, 0.01, 0.6, 0.95]),
    st.booleans(),
)
def test_rows_are_drawn_as_with_all_of_them_in_memory(count, seed, rare, form, share, by_class):
    frame, chosen = cases(count, seed, rare), section(**form, test_share=share)
    with pytest.MonkeyPatch.context() as patch:
        in_small_pieces(patch, 128, 100)
        found = plain_rows.plain(frame.lazy(), chosen, by_class)
    expected = drawn_at_once(frame.filter(pl.col("y").is_not_null()), chosen, by_class)
    np.testing.assert_array_equal(found[TEST].to_numpy(), expected)


@pytest.mark.parametrize("share", [0.2, 0.37, 0.9])
@pytest.mark.parametrize("count", [11, 64, 333])
def test_the_newest_rows_are_those_from_the_quantile_on(count, share, monkeypatch):
    frame = cases(count, count)
    in_small_pieces(monkeypatch, 32, 10)
    found = plain_rows.plain(frame.lazy(), section(time="at", test_share=share), True)
    first = found[TIME].quantile(1 - share, "higher")
    assert found[TEST].to_list() == (found[TIME] >= first).to_list()


def test_moments_before_1970_are_older_than_those_after():
    frame = cases(40, 0).with_columns(at=pl.datetime(1969, 12, 1) + pl.duration(days=2 * pl.int_range(40)))
    found = plain_rows.plain(frame.lazy(), section(time="at"), True)
    assert found.filter(TEST)[TIME].min() > found.filter(~pl.col(TEST))[TIME].max()


def test_rows_that_share_a_draw_take_no_more_memory_than_others(monkeypatch):
    in_small_pieces(monkeypatch, 128, 32, 2**20 // 64)
    with row_draws.Scratch(None) as scratch:
        draws = scratch.numbers([np.zeros(1_000), np.arange(200)])
        frames = [frame.height for same in row_draws._by_range(draws, draws, scratch) for frame in same]
    assert sum(frames) == 1_200
    assert max(frames) <= 64 + 32


def test_a_share_of_one_key_is_counted_over_all_blocks(monkeypatch):
    frame = cases(600, 2).with_columns(y=pl.lit("no"))
    in_small_pieces(monkeypatch, 64, 32, 2**20 // 64)
    found = plain_rows.plain(frame.lazy(), section(test_key=("one",)), True)
    assert found[TEST].mean() == pytest.approx(0.2, abs=0.1)
    np.testing.assert_array_equal(found[TEST].to_numpy(), drawn_at_once(frame, section(test_key=("one",)), True))


@pytest.mark.parametrize("entity", [None, "who"])
def test_a_class_of_which_one_block_has_all_rows_gives_test_rows(entity, monkeypatch):
    frame = cases(500, 4).with_columns(y=pl.when(pl.int_range(500) >= 480).then(pl.lit("yes")).otherwise(pl.lit("no")))
    in_small_pieces(monkeypatch, 64, 40)
    found = plain_rows.plain(frame.lazy(), section(entity=entity), True)
    for (_,), rows in found.group_by(TARGET):
        assert 0 < rows[TEST].sum() < rows.height


def test_rows_without_entity_are_numbered_over_all_blocks(monkeypatch):
    monkeypatch.setattr(plain_rows, "ROWS", 32)
    found = plain_rows.plain(cases(200, 0).lazy(), section(), True)
    assert found[ENTITY].to_list() == list(range(found.height))


def test_the_first_columns_that_tell_rows_apart_are_the_key_for_any_number_of_parts(monkeypatch):
    frame = pl.DataFrame({"a": [0.0, -0.0, None, float("nan")] * 50, "b": [*range(199), 198], "c": ["x", None] * 100})
    frame = frame.with_columns(y=pl.lit("no"))
    in_small_pieces(monkeypatch, 64, 32)
    for names in (["a", "b", "c"], ["a", "c"], ["c", "a"], ["b", "a"]):
        roles = {name: "category" if name == "c" else "number" for name in names}
        key = plain_rows._Cases(frame.lazy(), section(columns=roles), True)._key()
        assert [each.meta.output_name() for each in key] == row_draws.distinguishing(frame, names)


@pytest.mark.parametrize("missing", ["all", "no rows"])
def test_a_table_that_validation_left_empty_is_refused(missing):
    frame = cases(50, 0).with_columns(y=pl.lit(None, pl.String)) if missing == "all" else cases(50, 0).head(0)
    with pytest.raises(DataError, match=rf"cases: 0 rows with a target; at least {FEWEST} are needed"):
        plain_rows.plain(frame.lazy(), section(), True)
