"""Warnings of libraries are counted while a step runs, and logged once each."""

import logging
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from evergreen.tasks.core import library_warnings
from evergreen.tasks.core.library_warnings import counting, logging_once


@pytest.fixture(autouse=True)
def default_filters():
    """The filters of a fresh Python, not those of pytest."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def unconverged(times: int) -> None:
    draw = np.random.default_rng(0)
    X = draw.normal(size=(60, 4))
    for place in range(times):
        LogisticRegression(max_iter=1 + place % 2).fit(X, X[:, 0] + draw.normal(size=60) > 0)


def test_a_warning_that_comes_often_is_logged_once_with_its_count(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    with caplog.at_level(logging.WARNING, "evergreen"), logging_once("left: tune"):
        unconverged(20)
        for _ in range(3):
            np.log(np.zeros(1) - 1)
    assert capsys.readouterr().err == ""
    lines = [each.getMessage() for each in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("left: tune: sklearn: ConvergenceWarning (20 times): lbfgs failed to converge")
    assert "RuntimeWarning (3 times): invalid value encountered in log" in lines[1]


def test_warnings_are_logged_though_the_step_fails(caplog: pytest.LogCaptureFixture):
    def failing() -> None:
        with logging_once("t"):
            warnings.warn("one\ntwo", UserWarning, stacklevel=1)
            raise ZeroDivisionError("division")

    with caplog.at_level(logging.WARNING, "evergreen"), pytest.raises(ZeroDivisionError, match="division"):
        failing()
    assert [each.getMessage() for each in caplog.records] == ["t: Python: UserWarning: one"]


def test_texts_that_differ_in_numbers_are_one_kind_and_other_categories_are_not():
    with counting() as found:
        for text, category in (("got 3 of 1.5e-3", UserWarning), ("got 41 of 7", UserWarning), ("got 1 of 2", RuntimeWarning)):
            warnings.warn(text, category, stacklevel=1)
    assert found.lines() == ["Python: UserWarning (2 times): got 3 of 1.5e-3", "Python: RuntimeWarning: got 1 of 2"]


def test_a_filter_that_makes_errors_of_warnings_goes_first():
    warnings.simplefilter("error", ConvergenceWarning)
    with counting(), pytest.raises(ConvergenceWarning, match="failed to converge"):
        unconverged(1)


def test_counts_of_another_process_are_added():
    with counting() as other:
        warnings.warn("one", UserWarning, stacklevel=1)
    with counting() as found:
        warnings.warn("one", UserWarning, stacklevel=1)
        library_warnings.add(other)
        library_warnings.add(None)
    assert found.lines() == ["Python: UserWarning (2 times): one"]
