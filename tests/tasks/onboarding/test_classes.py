"""Classes of a target: how they are named, which is positive, and which are refused."""

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from evergreen.flows.operations import init_project
from evergreen.tasks import features, ingest, problems, validate
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.onboarding import schema_inference
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.schema_inference import InferredSchema
from tests.tasks.onboarding.grouped_tables import codes12, floatclass, labelled, pos12, sloppy_target
from tests.tasks.onboarding.reading import as_init_reads

TODAY = date(2026, 1, 1)


def of(table: pl.DataFrame) -> InferredSchema:
    return schema_inference.infer_schema(as_init_reads(table), InitOptions(target="y"), TODAY)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (sloppy_target()["y"], r"'no' \(\d+ rows\) and .*'yes' \(\d+ rows\)|'Yes' \(\d+ rows\) and "),
        (["a", "b", "b  c", "b c"] * 100, r"'b  c' \(100 rows\) and 'b c' \(100 rows\)"),
        (["GROSS", "groß", "klein"] * 100, r"'GROSS' \(100 rows\) and 'groß' \(100 rows\)"),
    ],
)
def test_classes_that_differ_by_blanks_or_case_alone_are_refused_by_name(target, says):
    with pytest.raises(DataError, match=rf"--target y: classes differ by blanks or case alone: .*({says})"):
        of(labelled(target))


@pytest.mark.parametrize("target", [["ab", "a b", "abc"] * 100, ["A1", "A2", "B"] * 100, ["+", "-", "- +"] * 100])
def test_other_classes_are_left_alone(target):
    assert of(labelled(target)).kind == "classification"


WRITTEN = [[1, 2, 3], [1.0, 2.0, 3.0], ["1", "2", "3"], [" 1", "2", "3 "], ["1.0", "2.0", "3.0"]]


@pytest.mark.parametrize("values", WRITTEN, ids=str)
def test_whole_numbers_are_classes_however_they_are_written(values):
    assert floatclass()["y"].n_unique() == 3
    table = labelled([values[place % 3] for place in range(300)])
    found = of(table)
    assert (found.kind, found.reasons["kind"]) == ("classification", "y has 3 distinct integers")


@pytest.mark.parametrize(
    ("values", "counts", "positive", "reason"),
    [
        ([1, 2], (300, 100), "2", "the rarer one: 100 rows; 1 has 300"),
        ([1, 2], (100, 300), "1", "the rarer one: 100 rows; 2 has 300"),
        ([1.0, 2.0], (300, 100), "2", "the rarer one: 100 rows; 1 has 300"),
        (["1.0", "2.0"], (300, 100), "2", "the rarer one: 100 rows; 1 has 300"),
        ([1, 5], (300, 100), "5", "the rarer one: 100 rows; 1 has 300"),
        ([0, 1], (100, 300), "1", "by its name"),
        ([0.0, 1.0], (100, 300), "1", "by its name"),
        ([-1, 1], (100, 300), "1", "by its name"),
        (["no", "yes"], (100, 300), "yes", "by its name"),
        ([3, 4], (200, 200), "4", "3 and 4 have 200 rows each"),
    ],
)
def test_the_positive_class_is_said_with_its_reason(values, counts, positive, reason):
    found = of(labelled([values[0]] * counts[0] + [values[1]] * counts[1]))
    assert (found.positive_class, found.reasons["positive_class"]) == (positive, reason)


@pytest.mark.parametrize(("table", "positive"), [(codes12(), "2"), (pos12(), "1"), (floatclass(), None)])
def test_numbered_classes_are_learned_under_the_names_that_init_gives(
    tmp_path: Path, table: pl.DataFrame, positive: str | None
):
    table.write_csv(tmp_path / "t.csv")
    init_project.run("codes", "t.csv", None, InitOptions(target="y"), tmp_path, tmp_path, TODAY)
    known, layout = loading.load(tmp_path / "params.yaml"), Layout(tmp_path)
    for step in (ingest, validate):
        step.run(known, None, layout)
    features.run(known, "codes", layout)
    kind, section = problems.kind("classification"), known.section("codes")
    data = kind.load(layout.features("codes"), section)
    model = kind.fit(data, kind.splits(data, section).tests[0].train, kind.defaults("logistic", section), section, 0)
    assert [str(name) for name in model.classes_] == (["1", "2"] if positive else ["1", "2", "3"])
    assert str(getattr(model, "pos_label", None)) == str(positive)
