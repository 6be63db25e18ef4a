"""Every step ends well on a plain table of any shape: from `init` to the page, each chart and section drawn.

A table from which nothing can be learned is refused in one line. One model is fitted, without a search.
"""

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from evergreen.flows.operations import init_project
from evergreen.monitoring.report import page
from evergreen.tasks.__main__ import STEPS
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import DataError, StepError
from evergreen.tasks.core.paths import Layout, read_json
from evergreen.tasks.onboarding.options import InitOptions

pytestmark = pytest.mark.slow

ROWS = 100
WORDS = ("red", "blue", "slow", "fast", "good", "bad", "very", "thing", "house", "garden")
Column = list[Any]
Draw = np.random.Generator


def category(draw: Draw) -> Column:
    return [("a", "b", "c", "d")[each] for each in draw.integers(0, 4, ROWS)]


def flag(draw: Draw) -> Column:
    return [("true", "false")[each] for each in draw.integers(0, 2, ROWS)]


def bit(draw: Draw) -> Column:
    return draw.integers(0, 2, ROWS).tolist()


def number(draw: Draw) -> Column:
    return draw.normal(0, 1, ROWS).round(4).tolist()


def wide_number(draw: Draw) -> Column:
    return [f"{sign}e{power}" for sign, power in zip(draw.choice((-1, 1, 2), ROWS), draw.integers(-200, 30, ROWS), strict=True)]


def huge_number(draw: Draw) -> Column:
    return [1e300 * each if place % 9 == 0 else each for place, each in enumerate(number(draw))]


def count(draw: Draw) -> Column:
    return draw.poisson(3, ROWS).tolist()


def day(draw: Draw) -> Column:
    return [str(date(2024, 1, 1) + timedelta(days=int(each))) for each in draw.integers(0, 400, ROWS)]


def text(draw: Draw) -> Column:
    return [f"{' '.join(draw.choice(WORDS, 8))} {place}" for place in range(ROWS)]


def day_or_text(draw: Draw) -> Column:
    return [one if place % 2 else other for place, (one, other) in enumerate(zip(day(draw), text(draw), strict=True))]


def constant(draw: Draw) -> Column:
    return ["same"] * ROWS


def missing(draw: Draw) -> Column:
    return [None] * ROWS


def identifier(draw: Draw) -> Column:
    return [f"u{place}" for place in range(ROWS)]


def sparse(make: Callable[[Draw], Column]) -> Callable[[Draw], Column]:
    return lambda draw: [each if draw.random() < 0.3 else None for each in make(draw)]


KINDS = (category, flag, bit, number, wide_number, huge_number, count, day, text, day_or_text, constant, missing, identifier)
FEATURES = [*KINDS, *map(sparse, (category, flag, number, day))]


def effect(column: Column) -> np.ndarray:
    """A number per row that a model could learn from the column."""
    ranks = pl.Series([None if each is None else str(each) for each in column], dtype=pl.String).rank("dense")
    values = ranks.fill_null(0).to_numpy().astype(float)
    return (values - values.mean()) / (values.std() or 1.0)


def two_classes(draw: Draw, column: Column) -> Column:
    return np.where(2 * effect(column) + draw.normal(0, 0.5, ROWS) > 0, "yes", "no").tolist()


def three_classes(draw: Draw, column: Column) -> Column:
    places = np.digitize(effect(column) + draw.normal(0, 0.5, ROWS), (-0.5, 0.5))
    return [("low", "middle", "high")[each] for each in places]


def one_row_of_a_class(draw: Draw, column: Column) -> Column:
    return ["rare", *two_classes(draw, column)[1:]]


def few_of_a_class(draw: Draw, column: Column) -> Column:
    return ["yes" if place % 17 == 3 else "no" for place in range(ROWS)]


def sorted_classes(draw: Draw, column: Column) -> Column:
    return sorted(two_classes(draw, column))


def amount(draw: Draw, column: Column) -> Column:
    return (3 * effect(column) + draw.normal(0, 1, ROWS)).round(3).tolist()


def nearly_constant_amount(draw: Draw, column: Column) -> Column:
    return [0.0] * (ROWS - 5) + [1.5, 2.5, 7.0, 9.0, 9.5]


def no_target(draw: Draw, column: Column) -> Column:
    return []


TARGETS = (two_classes, three_classes, one_row_of_a_class, few_of_a_class, sorted_classes, amount, nearly_constant_amount)
LINEAR = {"classification": "logistic", "regression": "ridge", "clustering": "kmeans"}


def table(features: Sequence[Callable[[Draw], Column]], target: Callable[..., Column], seed: int = 0) -> dict[str, Column]:
    draw = np.random.default_rng(seed)
    columns = {f"column_{place}": make(draw) for place, make in enumerate(features)}
    return columns | ({"y": found} if (found := target(draw, columns["column_0"])) else {})


def run_every_step(columns: dict[str, Column], boosted: bool, root: Path) -> tuple[Layout, str]:
    """The project after each step has run, and the text of its page."""
    pl.DataFrame(columns, strict=False).write_csv(root / "t.csv")
    asked = InitOptions(target="y") if "y" in columns else InitOptions(kind="clustering")
    init_project.run("left", "t.csv", None, asked, root, root, date(2026, 1, 1))
    yaml, layout = YAML(), Layout(root)
    params = yaml.load(layout.params.read_text())
    kind = params["problems"]["left"]
    model = "lightgbm" if boosted and kind != "clustering" else LINEAR[kind]
    params["left"]["tune"] = {"models": [model], "n_trials": 1, "repeats": 1, "folds": 3, "workers": 1}
    params["left"]["evaluate"] = {"resamples": 50, "diagnose_seconds": 2, "explain_rows": 50}
    yaml.dump(params, layout.params)
    known = loading.load(layout.params)
    for step, own in STEPS.items():
        import_module(f"evergreen.tasks.{step}").run(known, "left" if own else None, layout)
    return layout, page.build(known, layout, {}).read_text()


@pytest.mark.parametrize(
    ("features", "target", "boosted"),
    [
        ([category] * 3, two_classes, False),
        ([flag] * 3, two_classes, True),
        ([category, number, flag, sparse(day)], three_classes, False),
        ([number, category], one_row_of_a_class, True),
        ([day], two_classes, False),
        ([category], amount, True),
        ([number] * 220 + [category] * 80, two_classes, True),
        ([number, category], sorted_classes, False),
        ([number, missing, constant, sparse(category)], amount, True),
        ([day_or_text, text, number], two_classes, False),
        ([wide_number, bit], amount, False),
        ([huge_number, category], two_classes, True),
        ([category, sparse(number), day, flag], no_target, False),
    ],
    ids=[
        "all categories",
        "all flags",
        "the strongest column is a category",
        "one row of a class",
        "one date",
        "one category",
        "300 features",
        "sorted by the target",
        "a column without values",
        "dates mixed with text",
        "numbers of any size",
        "numbers beyond 32 bits",
        "no target",
    ],
)
def test_each_step_ends_well_and_the_page_is_whole(features: Any, target: Any, boosted: bool, tmp_path: Path):
    layout, text = run_every_step(table(features, target), boosted, tmp_path)
    found = read_json(layout.report("left") / "explanation" / "explanation.json")
    assert found["importance"]
    assert found["card"]
    assert "Left out: " not in text


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    features=st.lists(st.sampled_from(FEATURES), min_size=1, max_size=5),
    target=st.sampled_from(TARGETS),
    boosted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_table_of_any_columns_ends_well_or_is_refused_in_one_line(features: Any, target: Any, boosted: bool, seed: int):
    text, refused = "", ""
    with TemporaryDirectory() as folder:
        try:
            text = run_every_step(table(features, target, seed), boosted, Path(folder))[1]
        except (DataError, StepError) as error:
            refused = str(error)
    assert text or refused
    assert "\n" not in refused
    assert "Left out: " not in text
