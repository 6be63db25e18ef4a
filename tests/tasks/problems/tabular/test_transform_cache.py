"""What the search of a plain table shares and leaves out: matrices of a fold, rows of a large table, rows of an outer fold."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.preprocessing import StandardScaler

from evergreen.tasks import problems
from evergreen.tasks.problems.tabular.holdout_split import ALONE
from evergreen.tasks.problems.tabular.row_subset import subset
from evergreen.tasks.problems.tabular.subsample import FEWEST_PER_CLASS, sample, thin, without
from evergreen.tasks.problems.tabular.transform_cache import Matrices, Once, once, reusing
from tests.tasks.problems.tabular.test_tabular_kind import houses, loaded, section


class Counting(StandardScaler):
    """Counts how often it learns."""

    learned = 0

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "Counting":
        type(self).learned += 1
        return super().fit(X, y)


@pytest.fixture
def frame() -> pd.DataFrame:
    Counting.learned = 0
    return pd.DataFrame({"x": np.arange(100.0), "y": np.arange(100.0) ** 2})


def test_the_same_steps_learn_once_from_the_same_rows_and_anew_from_others(frame: pd.DataFrame) -> None:
    first, second = frame.iloc[:60], frame.iloc[40:]
    with reusing(Matrices(10)):
        one, two, three = (once(Counting()) for _ in range(3))
        matrix = one.fit_transform(first)
        assert two.fit_transform(first.copy()) is matrix
        assert one.transform(second) is two.transform(second)
        three.fit(second)
    assert Counting.learned == 2
    assert np.allclose(matrix, StandardScaler().fit_transform(first))


def test_other_settings_and_other_targets_learn_anew(frame: pd.DataFrame) -> None:
    with reusing(Matrices(10)):
        Once(Counting()).fit(frame, np.zeros(100))
        Once(Counting()).fit(frame, np.ones(100))
        Once(Counting(with_mean=False)).fit(frame, np.zeros(100))
    assert Counting.learned == 3


def test_what_is_shared_cannot_be_changed(frame: pd.DataFrame) -> None:
    with reusing(Matrices(10)), pytest.raises(ValueError, match="read-only"):
        Once(StandardScaler()).fit_transform(frame)[0, 0] = 1.0


def test_outside_of_a_search_steps_are_themselves(frame: pd.DataFrame) -> None:
    steps = StandardScaler()
    assert once(steps) is steps


def test_the_oldest_matrices_go_first_and_what_is_too_large_is_not_kept() -> None:
    kept = Matrices(1)
    for place in range(4):
        kept.put(str(place), place, 2**19)
        kept.get("0")
    assert [kept.get(str(place)) for place in range(4)] == [0, None, None, 3]
    kept.put("large", 1, 2**20)
    assert kept.get("large") is None


@pytest.mark.parametrize("name", ["logistic", "lightgbm"])
def test_a_model_says_the_same_with_shared_matrices_and_without(name: str, tmp_path: Path) -> None:
    kind, chosen = problems.kind("classification"), section("dear")
    data = loaded(tmp_path, kind, chosen, houses())
    fold, config = kind.splits(data, chosen).folds[0], kind.defaults(name, chosen)

    def said() -> pl.DataFrame:
        return kind.predict(kind.fit(data, fold.train, config, chosen, 0), data, fold.test, chosen)

    plain = said()
    with reusing(Matrices(100)):
        assert said().equals(plain)
        assert said().equals(plain)


def test_a_thinned_table_keeps_its_rare_class_and_no_row_of_the_test(tmp_path: Path) -> None:
    kind, chosen = problems.kind("classification"), section("class")
    data = loaded(tmp_path, kind, chosen, houses(3000))
    few = thin(data, 500, 0)
    counts = dict(few.target.value_counts().iter_rows())
    before = dict(data.at(["rest"]).target.value_counts().iter_rows())
    assert 500 <= len(few) <= 500 + FEWEST_PER_CLASS * len(before)
    assert all(counts[label] >= min(FEWEST_PER_CLASS, count) for label, count in before.items())
    assert not few.parts.masks[ALONE].any()
    assert list(few.features.index) == sorted(few.features.index)
    assert thin(data, 500, 0).entity.equals(few.entity)
    fold = kind.splits(few, chosen).folds[0]
    assert kind.rows(few, fold.train) + len(few.at([fold.test])) == len(few)


def test_a_part_of_a_table_with_time_keeps_the_time_of_each_row(tmp_path: Path) -> None:
    kind, chosen = problems.kind("regression"), section("price", features={"time": "built"})
    data = loaded(tmp_path, kind, chosen, houses(1200).sample(fraction=1.0, shuffle=True, seed=1))
    time = dict(zip(data.entity, data.time, strict=True))
    few = thin(data, 500, 0)
    assert len(few) < len(data)
    parts = [few.at(fold.train) for fold in kind.splits(few, chosen).folds]
    drawn = subset(data, np.array([7, 3, 3, 900]))
    for part in (*parts, drawn, drawn.at(["rows"])):
        assert len(part) == len(part.time) == len(part.features) > 0
        assert [time[each] for each in part.entity] == part.time.to_list()
    assert drawn.entity.to_list() == data.entity[[7, 3, 3, 900]].to_list()


def test_of_a_large_table_the_search_reads_a_part_with_its_rare_class(tmp_path: Path) -> None:
    kind, chosen = problems.kind("classification"), section("class")
    loaded(tmp_path, kind, chosen, houses(3000))
    assert sample(tmp_path, 3000, 0.2, 0, tmp_path / "part") == tmp_path
    assert sample(tmp_path, 400, 0.2, 0, tmp_path / "part") == tmp_path / "part"
    whole, part = (pl.read_parquet(folder / "rows.parquet") for folder in (tmp_path, tmp_path / "part"))
    assert 500 <= part.height <= 500 + 7 * FEWEST_PER_CLASS
    assert part["_entity"].is_sorted()
    assert part.join(whole, on=whole.columns, how="semi", nulls_equal=True).height == part.height
    counts, before = (dict(frame["_target"].value_counts().iter_rows()) for frame in (part, whole))
    assert all(counts[label] >= min(FEWEST_PER_CLASS, count) for label, count in before.items())
    assert kind.splits(kind.load(tmp_path / "part", chosen), chosen).folds


def test_a_table_that_is_small_enough_or_none_stays_as_it_is(tmp_path: Path) -> None:
    kind, chosen = problems.kind("classification"), section("dear")
    data = loaded(tmp_path, kind, chosen, houses())
    assert thin(data, 10_000, 0) is data
    assert thin("no table", 5, 0) == "no table"


def test_inner_folds_know_nothing_of_the_rows_that_judge_the_outer_one(tmp_path: Path) -> None:
    kind, chosen = problems.kind("classification"), section("dear")
    data = loaded(tmp_path, kind, chosen, houses(1200))
    folds = kind.splits(data, chosen).folds
    held = set(data.at([folds[1].test]).entity)
    inner, found = without(data, folds, 1)
    assert [fold.test for fold in found] == [folds[0].test, folds[2].test]
    for fold in found:
        learned, judged = set(inner.at(fold.train).entity), set(inner.at([fold.test]).entity)
        assert not (learned | judged) & held
        assert not learned & judged
        assert learned | judged | held == set(data.at(["rest"]).entity)


def test_in_time_the_inner_folds_are_those_before_the_outer_one(tmp_path: Path) -> None:
    kind = problems.kind("classification")
    chosen = section("dear", {"size": "number", "colour": "category"}, features={"time": "built"})
    data = loaded(tmp_path, kind, chosen, houses(1200))
    folds = kind.splits(data, chosen).folds
    assert without(data, folds, 2) == (data, folds[:2])
