"""Names of columns are data: a table with any names goes through every step, or `evergreen init` refuses it and says why."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evergreen.flows.operations import init_project
from evergreen.monitoring.drift import reference_data
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.tasks import diagnose, evaluate, explain, features, ingest, train, tune, validate
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import DataError, EvergreenError, SourceError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.scoring import batch
from evergreen.tasks.scoring.scorer import Scorer

ROWS = 200
OF_STEPS = ("row", "entity", "target", "place", "cutoff", "count", "at", "label", "learned", "kinds", "rows", "self", "value")
"""Names that steps use for columns, variables and parameters of their own."""
OF_PEOPLE = ("line\nbreak", 'qu"ote', "a.b", "a,b", "😀", "y" * 300, " lead", "trail ", "Case", "case", "select", "# no", "12")
SHORT = {
    "tune: {n_trials: 20, folds: 5}": "tune: {folds: 2, repeats: 1, n_trials: 1, models: [logistic]}",
    "evaluate: {windows: 3}": "evaluate: {windows: 1, resamples: 50, explain_rows: 50, diagnose_seconds: 0, slices: SLICES}",
}


def table(names: tuple[str, ...], target: str = "the target") -> pl.DataFrame:
    """Numbers and categories in turn, of which the first two fix the target but for noise."""
    draw = np.random.default_rng(0)
    columns = [
        pl.Series(name, draw.normal(size=ROWS).round(3) if place % 2 else draw.choice(["a", "b", "c"], ROWS))
        for place, name in enumerate(names)
    ]
    good = columns[1].to_numpy() + (columns[0] == "a").to_numpy() * 1.5 + draw.normal(0, 0.5, ROWS)
    return pl.DataFrame([*columns, pl.Series(target, np.where(good > 0, "Yes", "No"))])


def start(root: Path, rows: pl.DataFrame, target: str = "the target") -> None:
    rows.write_csv(root / "t.csv")
    init_project.run("p", "t.csv", None, InitOptions(target=target), root, root, date(2026, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("names", [OF_STEPS, OF_PEOPLE])
def test_a_table_with_any_names_goes_through_every_step(tmp_path: Path, names: tuple[str, ...]):
    rows, layout = table(names), Layout(tmp_path)
    start(tmp_path, rows)
    text = layout.params.read_text()
    for before, after in SHORT.items():
        assert before in text
        text = text.replace(before, after.replace("SLICES", json.dumps(names[:2])))
    layout.params.write_text(text)
    known = loading.load(layout.params)
    assert set(known.section("p").features.columns) == set(names)  # type: ignore[union-attr]
    for step in (ingest, validate):
        step.run(known, None, layout)
    for step in (features, tune, train, evaluate, diagnose, explain):
        step.run(known, "p", layout)
    model, ledger = skops_models.load(layout.model("p") / "model.skops"), Ledger(f"sqlite:///{tmp_path}/ledger.db")

    def record(frame, at) -> int:
        return ledger.append_frame("p", 1, frame.frame, at=at, features=frame.features, outputs=frame.outputs)

    more = rows.with_columns(**{"*": pl.lit("1e5"), "^a.*$": pl.lit("007")})  # columns that training lacks come back as well
    more.write_csv(tmp_path / "new.csv")
    result = batch.run(Scorer(known, "p", layout, model, 1), tmp_path / "new.csv", tmp_path / "out.csv", record=record, rows=90)
    assert (result.not_scored, result.logged) == (0, ROWS)
    given, scored = ((tmp_path / name).read_text() for name in ("new.csv", "out.csv"))
    header = given.split("the target")[0]
    assert scored.startswith(header)
    assert pl.read_csv(tmp_path / "out.csv", has_header=False, skip_rows=0, infer_schema=False).height == ROWS + 1
    assert set(ledger.read("p").features.columns) == set(names)
    reference = reference_data.build(known, "p", layout, model, 1)
    learned = reference.parts["features"].rows
    assert {name: sorted(learned[name].cast(pl.String)) for name in names} == {
        name: sorted(rows[name].cast(pl.String)) for name in names
    }


@pytest.mark.parametrize("target", ["row", "len", "count", "value", "self", "line\nbreak", "entity"])
def test_the_target_may_have_any_name(tmp_path: Path, target: str):
    """Validation and features of the draft run within `init`."""
    start(tmp_path, table(("", "a"), target), target)
    assert loading.load(tmp_path / "params.yaml").section("p").features.target == target  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("prediction", DataError, "column prediction: scored rows get a column of that name; rename it"),
        ("probability_Yes", DataError, "column probability_Yes: scored rows get a column of that name; rename it"),
        ("not_scored", DataError, "column not_scored: scored rows get a column of that name; rename it"),
        ("*", SourceError, r"column '\*': such a name means a pattern of names. Rename it in the file or by a query"),
        ("^a.*$", SourceError, r"column '\^a\.\*\$': such a name means a pattern of names"),
        ("__row", SourceError, "column '__row': Evergreen writes a column of that name itself. Rename it"),
        ("\0a", SourceError, r"column '\\x00a': a name cannot contain a NUL character. Rename it"),
        ("_entity", SourceError, "column '_entity': Evergreen writes a column of that name itself. Rename it"),
    ],
)
def test_a_name_that_a_step_needs_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, error: type[EvergreenError], says: str
):
    with pytest.raises(error, match=says):
        start(tmp_path, table(("a", "b", name)))
    assert [each.name for each in tmp_path.iterdir()] == ["t.csv"]


def test_a_probability_that_is_no_prediction_is_a_feature(tmp_path: Path):
    start(tmp_path, table(("a", "b", "probability_rain")))
    assert "probability_rain" in loading.load(tmp_path / "params.yaml").section("p").features.columns  # type: ignore[union-attr]


# `init` proves its draft


def test_what_a_later_step_would_refuse_is_refused_and_nothing_is_written(tmp_path: Path):
    days = [date(2999, 1, 1 + place % 28) for place in range(60)]
    pl.DataFrame({"when": days, "x": range(60), "y": [0, 1, 2] * 20}).sort("when").write_csv(tmp_path / "t.csv")
    asked = InitOptions(target="y", time="when")
    with pytest.raises(DataError, match=r"train p would refuse this table: .* is after today.* Nothing was written\."):
        init_project.run("p", "t.csv", None, asked, tmp_path, tmp_path, date(2026, 1, 1))
    assert [each.name for each in tmp_path.iterdir()] == ["t.csv"]
