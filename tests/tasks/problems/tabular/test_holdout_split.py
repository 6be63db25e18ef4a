import logging
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.problems.tabular import holdout_split
from evergreen.tasks.problems.tabular.holdout_split import ENTITY, FEWEST, TARGET, TEST, parts
from evergreen.tasks.problems.tabular.plain_rows import plain

FIRST = datetime(2024, 1, 1)
MANY = settings(max_examples=25, deadline=None)


def section(tune=None, evaluate=None, train=None, **features):
    given = {"table": "cases", "target": "y", "columns": {"x": "number"}, **features}
    rest = {"tune": tune or {}, "evaluate": evaluate or {}, "train": train or {}}
    return Tabular.model_validate({"question": "Which?", "features": given, **rest})


def cases(count, seed=0, classes=("no", "yes")):
    draw = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "x": draw.normal(size=count),
            "colour": draw.choice(["red", "green"], count),
            "who": [f"customer {each}" for each in draw.integers(0, max(count // 4, 2), count)],
            "at": [FIRST + timedelta(hours=int(each)) for each in draw.integers(0, 24 * 100, count)],
            "y": draw.choice(classes, count),
        }
    )


def split(frame, chosen, stratified=True):
    rows = plain(frame.lazy(), chosen.features, stratified)
    return rows, parts(rows, chosen, stratified)


def each_fold(found):
    """(rows learned from, rows judged) of every fold and test."""
    for fold in (*found.splits.folds, *found.splits.tests):
        yield found.rows(list(fold.train)), found.rows([fold.test])


sizes = st.integers(60, 300)
forms = st.sampled_from([{}, {"entity": "who"}, {"time": "at"}, {"time": "at", "gap_days": 5}, {"test_share": 0.4}])


@MANY
@given(sizes, st.integers(0, 99), forms)
def test_no_row_is_on_two_sides_of_a_split(count, seed, form):
    rows, found = split(cases(count, seed), section(evaluate={"windows": 2}, **form))
    judges = found.rows([fold.test for fold in found.splits.tests])
    for learned, judged in each_fold(found):
        assert learned.any()
        assert judged.any()
        assert not (learned & judged).any()
    for fold in found.splits.folds:
        assert not (found.rows([*fold.train, fold.test]) & judges).any(), "the search sees rows that judge"
    np.testing.assert_array_equal(judges, rows[TEST].to_numpy())


@MANY
@given(sizes, st.integers(0, 99), st.booleans())
def test_the_rows_of_one_entity_stay_together(count, seed, stratified):
    rows, found = split(cases(count, seed), section(entity="who"), stratified)
    who = rows[ENTITY].to_numpy()
    for learned, judged in each_fold(found):
        assert not set(who[learned]) & set(who[judged])


@MANY
@given(st.integers(200, 600), st.integers(0, 99), st.floats(0.1, 0.5))
def test_each_class_gives_its_share_of_the_rows_that_judge(count, seed, share):
    rows, found = split(cases(count, seed, ("a", "b", "b", "c", "c", "c")), section(test_share=share))
    for (_,), group in rows.group_by(TARGET):
        assert group[TEST].sum() == pytest.approx(share * group.height, abs=5 * np.sqrt(share * (1 - share) * group.height))
    for learned, judged in each_fold(found):
        assert set(rows[TARGET].filter(learned)) == set(rows[TARGET].filter(judged)) == {"a", "b", "c"}


KEYS = [{}, {"test_key": ("colour", "x")}, {"test_key": ("at",), "columns": {"colour": "category"}}, {"entity": "who"}]
"""Ways to draw test rows without time: the first columns that distinguish rows, a key of features, of others, an entity."""


def identified(count: int, seed: int = 0) -> pl.DataFrame:
    """Cases with a number of the row, to find it again."""
    return cases(count, seed).with_columns(number=pl.int_range(count))


def test_rows(frame: pl.DataFrame, **form) -> set[int]:
    kept = plain(frame.lazy(), section(**form).features, True)[TEST]
    return set(frame["number"].filter(kept))


test_rows.__test__ = False  # type: ignore[attr-defined]


@MANY
@given(st.integers(200, 400), st.integers(1, 200), st.integers(0, 99), st.sampled_from(KEYS[:3]))
def test_added_rows_leave_all_others_on_their_side(count, more, seed, form):
    whole = identified(count + more, seed)
    before, after = test_rows(whole.head(count), **form), test_rows(whole, **form)
    assert before == {number for number in after if number < count}


@MANY
@given(st.integers(200, 400), st.integers(0, 99), st.sampled_from(KEYS[:3]))
def test_sorted_and_removed_rows_stay_on_their_side(count, seed, form):
    frame = identified(count, seed)
    before = test_rows(frame, **form)
    assert test_rows(frame.sort("colour", "y", "x"), **form) == before
    assert test_rows(frame.sample(fraction=1, shuffle=True, seed=seed), **form) == before
    kept = frame.filter(pl.col("number") % 7 != 0)
    assert test_rows(kept, **form) == {number for number in before if number % 7}


@MANY
@given(st.integers(0, 99), st.sampled_from(KEYS), st.sampled_from(["number", "category"]))
def test_a_new_column_moves_no_row(seed, form, role):
    frame = identified(200, seed)
    wider = frame.select("number", new=pl.int_range(200) * 1.5).join(frame, on="number")
    columns = {**form.get("columns", {"x": "number"}), "new": role}
    assert test_rows(wider, **{**form, "columns": columns}) == test_rows(frame, **form)


@pytest.mark.parametrize("gone", ["colour", "at", "who"])
def test_a_column_that_goes_moves_no_row_unless_it_is_in_the_key(gone):
    frame = identified(200)
    columns = {name: role for name, role in {"x": "number", "colour": "category", "at": "date"}.items() if name != gone}
    whole = {"x": "number", "colour": "category", "at": "date"}
    assert test_rows(frame.drop(gone), columns=columns, test_key=("x",)) == test_rows(frame, columns=whole, test_key=("x",))
    assert test_rows(frame.drop(gone), columns=columns) == test_rows(frame, columns=whole)
    with pytest.raises(ParamsError, match=rf"features\.test_key: cases has no column {gone}"):
        test_rows(frame.drop(gone), columns=columns, test_key=(gone, "x"))


def test_a_label_that_is_corrected_moves_no_row():
    frame = identified(300)
    other = frame.with_columns(y=pl.when(pl.col("number") % 9 == 0).then(pl.lit("yes")).otherwise("y"))
    assert test_rows(other) == test_rows(frame)


@pytest.mark.parametrize("kind", [pl.Int32, pl.Float64, pl.Float32])
def test_a_wider_type_of_a_key_moves_no_row(kind):
    frame = identified(300).with_columns(key=pl.int_range(300))
    assert test_rows(frame.cast({"key": kind}), test_key=("key",)) == test_rows(frame, test_key=("key",))
    days = frame.with_columns(key=pl.date(2024, 1, 1) + pl.duration(days=pl.col("key")))
    moments = days.cast({"key": pl.Datetime("ms")})
    assert test_rows(days, test_key=("key",)) == test_rows(moments, test_key=("key",))


def test_equal_rows_are_never_on_both_sides():
    frame = cases(60)
    rows, _ = split(pl.concat([frame, frame, frame]), section(columns={"x": "number", "colour": "category"}))
    assert rows.group_by("x", "colour", TARGET).agg(pl.col(TEST).n_unique())[TEST].to_list() == [1] * 60


def test_copies_that_are_added_join_the_rows_that_they_repeat():
    frame = cases(200)
    before, _ = split(frame, section())
    after, _ = split(pl.concat([frame, frame.head(50), frame.head(50)]), section())
    expected = [*before[TEST], *before[TEST].head(50), *before[TEST].head(50)]
    assert after[TEST].to_list() == expected


@pytest.mark.parametrize("values", [1, 2, 5])
def test_where_most_rows_are_alike_they_are_spread_over_both_sides(values):
    frame = cases(2_000).with_columns(x=pl.int_range(2_000) % values + 0.0)
    rows, _ = split(frame, section())
    for _, group in rows.group_by(TARGET):
        assert group[TEST].mean() == pytest.approx(0.2, abs=0.1)
    more, _ = split(pl.concat([frame, frame.head(40)]), section())
    assert (rows[TEST] == more[TEST].head(2_000)).all()


@pytest.mark.parametrize("form", KEYS)
def test_the_share_of_test_rows_is_right_over_many_tables(form):
    shares = [plain(cases(200, seed).lazy(), section(**form).features, True)[TEST].mean() for seed in range(60)]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.02)


@MANY
@given(st.integers(200, 400), st.integers(1, 200), st.integers(0, 99))
def test_added_rows_move_few_entities(count, more, seed):
    whole = identified(count + more, seed)
    before, after = test_rows(whole.head(count), entity="who"), test_rows(whole, entity="who")
    assert len(before ^ {number for number in after if number < count}) <= 0.1 * count


def test_few_entities_give_one_to_each_side_at_least():
    for count in (2, 3, 5):
        frame = cases(60).with_columns(who=pl.int_range(60) % count, y=pl.lit("no"))
        for first in range(20):
            rows = plain(frame.with_columns(pl.col("who") + 100 * first).lazy(), section(entity="who").features, False)
            assert 0 < rows[TEST].sum() < 60


@pytest.mark.parametrize(("entities", "least"), [(51, 10), (20, 10), (15, 7)])
def test_few_entities_give_enough_to_judge_by(entities, least):
    frame = cases(600).with_columns(who=pl.int_range(600) % entities, y=pl.lit("no"))
    for first in range(20):
        rows = plain(frame.with_columns(pl.col("who") + 100 * first).lazy(), section(entity="who").features, False)
        assert least <= rows.filter(TEST)[ENTITY].n_unique() < entities - least + 1


@MANY
@given(st.integers(100, 400), st.integers(0, 99), st.integers(0, 8))
def test_what_judges_is_later_than_what_was_learned_by_the_gap_at_least(count, seed, gap):
    frame = cases(count, seed)
    rows, found = split(frame, section(time="at", gap_days=gap, tune={"folds": 2}, evaluate={"windows": 2}))
    at = rows["_time"].to_numpy()
    for learned, judged in each_fold(found):
        assert at[judged].min() - at[learned].max() > np.timedelta64(gap, "D")
    firsts = [at[judged].min() for _, judged in each_fold(found)]
    assert firsts == sorted(firsts), "the newest window judges last"


def test_a_small_table_is_cross_validated_more_than_once_with_other_folds():
    _, found = split(cases(100), section(tune={"folds": 4}))
    assert len(found.splits.folds) == 4 * holdout_split.REPEATS
    masks = {found.rows([fold.test]).tobytes() for fold in found.splits.folds}
    assert len(masks) == 4 * holdout_split.REPEATS
    _, once = split(cases(holdout_split.SMALL), section(tune={"folds": 4}))
    assert len(once.splits.folds) == 4


def test_each_row_that_does_not_judge_is_held_out_once_per_cross_validation():
    rows, found = split(cases(120), section(tune={"folds": 3, "repeats": 2}))
    times = sum(found.rows([fold.test]).astype(int) for fold in found.splits.folds)
    np.testing.assert_array_equal(times, np.where(rows[TEST].to_numpy(), 0, 2))


def test_the_model_that_serves_learns_from_all_rows_unless_params_say_no():
    _, found = split(cases(100), section())
    assert found.splits.refit is not None
    assert found.rows(list(found.splits.refit)).all()
    _, kept = split(cases(100), section(train={"refit": False}))
    assert kept.splits.refit is None


def test_rows_without_a_target_are_left_out_and_told(caplog):
    frame = cases(50).with_columns(y=pl.when(pl.int_range(50) < 7).then(None).otherwise(pl.col("y")))
    with caplog.at_level(logging.INFO):
        rows = plain(frame.lazy(), section().features, True)
    assert rows.height == 43
    assert "cases: 7 of 50 rows have no y and are left out" in caplog.text


def test_a_class_with_one_row_is_learned_from_and_does_not_judge():
    frame = cases(100).with_columns(y=pl.when(pl.int_range(100) == 3).then(pl.lit("rare")).otherwise(pl.col("y")))
    rows, found = split(frame, section())
    assert rows.filter(pl.col(TARGET) == "rare")[TEST].to_list() == [False]
    assert len(found.splits.folds) > 0


@pytest.mark.parametrize("count", [0, 1, 3, FEWEST - 1])
def test_a_tiny_table_is_refused_with_what_it_takes(count):
    with pytest.raises(DataError, match=rf"cases: {count} rows with a target; at least {FEWEST} are needed"):
        plain(cases(20).head(count).lazy(), section().features, True)


def test_the_smallest_table_can_be_split():
    _, found = split(cases(FEWEST), section(), stratified=False)
    assert all(learned.any() and judged.any() for learned, judged in each_fold(found))


def test_fewer_entities_than_folds_are_refused():
    frame = cases(40).with_columns(who=pl.Series(["a", "b"] * 20))
    with pytest.raises(DataError, match=r"rows to learn from cannot be split into tune\.folds = 3 parts; give fewer folds"):
        split(frame, section(entity="who"))


def test_too_short_a_time_for_the_windows_is_refused_with_what_to_change():
    with pytest.raises(DataError, match=r"do not give \d+ windows in time with rows 90 days before each; give fewer"):
        split(cases(200), section(time="at", gap_days=90))


def test_rows_without_time_are_refused_where_time_orders_them():
    frame = cases(100).with_columns(at=pl.when(pl.int_range(100) < 5).then(None).otherwise(pl.col("at")))
    with pytest.raises(DataError, match=r"features\.time: 5 rows have no time"):
        split(frame, section(time="at"))


def test_rows_about_nobody_are_refused_where_there_are_entities():
    frame = cases(100).with_columns(who=pl.when(pl.int_range(100) < 2).then(None).otherwise(pl.col("who")))
    with pytest.raises(DataError, match=r"cases: who: 2 rows do not say whom they are about"):
        split(frame, section(entity="who"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"target": "yy"}, r"features\.target: cases has no column yy; did you mean y\?"),
        (
            {"columns": {"colours": "category"}},
            r"columns\.colours: cases has no column colours; did you mean colour\?",
        ),
        (
            {"columns": {"colour": "number"}},
            r"columns\.colour = number: cases\.colour holds String.*call it category",
        ),
        ({"columns": {"colour": "date"}}, r"features\.columns\.colour: cases\.colour holds String and no dates"),
        ({"time": "x"}, r"x: cases\.x holds Float64 and no dates"),
    ],
)
def test_a_column_that_is_not_what_the_section_says_is_refused(wrong, says):
    with pytest.raises(ParamsError, match=says):
        plain(cases(50).lazy(), section(**wrong).features, True)
