"""Formulas and copies of a target: which are found, and what chance gives."""

import numpy as np
import pytest

from evergreen.tasks.problems.tabular.leak_rule import find_formula, relation

ROWS = 400


def numbers(seed: int = 0, columns: str = "abcdef") -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.gamma(3, 10, ROWS).round(2) + 0.01 for name in columns}


FORMULAS = {
    "a + b + c": lambda x: x["a"] + x["b"] + x["c"],
    "a - b": lambda x: x["a"] - x["b"],
    "average of a, b, c": lambda x: ((x["a"] + x["b"] + x["c"]) / 3).round(1),
    "0.3 * a + 0.7 * b": lambda x: 0.3 * x["a"] + 0.7 * x["b"],
    "-a - b": lambda x: -x["a"] - x["b"],
    "a * b": lambda x: x["a"] * x["b"],
    "a / b": lambda x: (x["a"] / x["b"]).round(3),
    "100 * a / b": lambda x: (100 * x["a"] / x["b"]).round(1),
    "a / b^2": lambda x: x["a"] / x["b"] ** 2,
    "a / (a + b)": lambda x: x["a"] / (x["a"] + x["b"]),
    "(a + b) / c": lambda x: (x["a"] + x["b"]) / x["c"],
}


@pytest.mark.parametrize(("text", "make"), FORMULAS.items(), ids=FORMULAS)
def test_a_formula_is_found_and_written(text, make):
    x = numbers()
    found = find_formula(x, make(x))
    assert found is not None
    assert found.text == text
    assert set(found.columns) == {name for name in x if name in text.replace("average of", "")}


def test_a_formula_is_found_though_some_values_are_missing():
    x = numbers()
    y = x["a"] + x["b"]
    x["a"][::20] = np.nan
    found = find_formula(x, y)
    assert found is not None
    assert found.text == "a + b"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_predicted_with_an_error_has_no_formula(seed):
    x, draw = numbers(seed), np.random.default_rng(seed)
    assert find_formula(x, x["a"] + x["b"] + draw.normal(0, 3, ROWS)) is None
    assert find_formula(x, x["a"] / x["b"] * draw.lognormal(0, 0.1, ROWS)) is None
    assert find_formula(x, draw.normal(size=ROWS)) is None
    assert find_formula(x, 2 * x["a"]) is None, "one column is no formula"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (np.log, "copy"),
        (lambda y: np.log(y).round(2), "copy"),
        (lambda y: -5 * y + 3, "copy"),
        (lambda y: y // 100, "band"),
        (lambda y: (y > 200).astype(float), "band"),
        (lambda y: np.abs(y - 200), None),
        (lambda y: y + np.random.default_rng(1).normal(0, 5, len(y)), None),
    ],
)
def test_copies_and_bands_of_a_number_are_told_from_other_columns(make, expected):
    y = np.random.default_rng(0).gamma(3, 100, ROWS).round(2) + 1
    assert relation(make(y), y, True) == expected


def test_a_code_of_a_count_is_a_copy_and_a_name_of_each_row_is_not():
    draw = np.random.default_rng(0)
    count = draw.integers(0, 9, ROWS).astype(float)
    codes = np.array([4, 8, 1, 0, 6, 2, 3, 7, 5])[count.astype(int)].astype(float)
    assert relation(codes, count, False) == "copy"
    assert relation(np.arange(ROWS), draw.normal(size=ROWS), False) is None
    assert relation(draw.permutation(ROWS), np.arange(ROWS) + 0.5, True) is None


def test_categories_of_noise_are_no_band():
    draw = np.random.default_rng(0)
    for levels in (2, 3, 10, 100):
        assert relation(draw.integers(0, levels, ROWS), draw.normal(size=ROWS), False) is None
