import warnings

import numpy as np
import pandas as pd
import pytest

from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.tabular.date_text_encoders import Dates, Words


def moments(*texts):
    return pd.to_datetime(pd.Series(texts))


def test_a_date_gives_its_parts_and_the_days_since_the_earliest():
    table = pd.DataFrame({"paid": moments("2024-02-29", None, "2024-01-01")})
    found = Dates().fit_transform(table)
    np.testing.assert_array_equal(found, [[59, 2024, 2, 29, 3], [np.nan] * 5, [0, 2024, 1, 1, 0]])


def test_hours_are_there_where_times_are():
    assert Dates().fit_transform(pd.DataFrame({"at": moments("2024-01-01 18:30", "2024-01-02 00:00")}))[:, -1].tolist() == [
        18,
        0,
    ]


def test_two_dates_also_give_the_days_between_them_and_each_owns_half():
    table = pd.DataFrame({"asked": moments("2024-01-01", "2024-01-05"), "paid": moments("2024-01-11", "2024-01-04")})
    dates = Dates()
    found = dates.fit_transform(table)
    assert found[:, -1].tolist() == [10, -1]
    assert dates.owners_[-1].tolist() == [0.5, 0.5]
    assert dates.owners_.shape == (found.shape[1], 2)


def test_what_is_earliest_is_learned_and_an_empty_column_is_missing():
    table = pd.DataFrame({"at": moments("2024-01-10", "2024-01-20"), "never": moments(None, None)})
    dates = Dates().fit(table)
    later = dates.transform(pd.DataFrame({"at": moments("2024-01-01"), "never": moments("2024-01-02")}))
    assert later[0, 0] == -9
    assert np.isnan(dates.transform(table)[:, 5:10]).all()


def texts(count=60, seed=0):
    draw = np.random.default_rng(seed)
    kind = draw.integers(0, 2, count)
    words = [["broken screen late", "lovely colour thanks"][each] + f" {draw.choice(['a', 'order'])}" for each in kind]
    return pd.DataFrame({"note": pd.Series(words, dtype="str")}), kind


def test_words_place_texts_that_say_the_same_near_each_other():
    table, kind = texts()
    found = Words(components=2).fit_transform(table)
    places = found[:, 2:]
    own = np.linalg.norm(places[kind == 0] - places[kind == 0].mean(axis=0), axis=1).max()
    other = np.linalg.norm(places[kind == 1] - places[kind == 0].mean(axis=0), axis=1).min()
    assert own < other


def test_texts_without_words_or_missing_have_a_place_too(tmp_path):
    table, _ = texts()
    words = Words().fit(table)
    skops_models.save(words, tmp_path / "words.skops")
    strange = pd.DataFrame({"note": pd.Series([None, "", "never heard of", "?!"], dtype="str")})
    found = words.transform(strange)
    assert np.isfinite(found).all()
    assert found[0].tolist() == [0.0] * found.shape[1]
    np.testing.assert_array_equal(skops_models.load(tmp_path / "words.skops").transform(strange), found)
    assert words.owners_.shape == (found.shape[1], 1)


@pytest.mark.parametrize("column", [["?", "!", "."], ["one", "two", "three"], [None, None, None], ["same", "same", "same"]])
def test_texts_in_which_no_two_words_tell_anything_give_their_length_alone(column):
    table = pd.DataFrame({"note": pd.Series(column, dtype="str")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Words().fit_transform(table).shape == (3, 2)
