"""An invalid params.yaml is refused in one line: file, key, value, rule, and the most similar valid name."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from evergreen.tasks.config import params
from evergreen.tasks.config.loading import load, schema
from evergreen.tasks.config.params import Params, Section
from evergreen.tasks.core.errors import ParamsError
from tests import ROOT, store

OWN = ROOT / "params.yaml"

GOOD = """\
project: {name: shop}
problems: {spend: regression}
ingest:
  sales: {csv: sales.csv, time: day}
  goods: {csv: goods.csv}
validate:
  sales: {max_bad_share: 0.1, unique: [id]}
spend:
  question: How much?
  features:
    entity: customer
    horizon_days: 28
    cutoffs: {first: "2024-01-28"}
    target: {table: sales, function: sum, column: amount}
  tune: {n_trials: 5}
"""


def refused(tmp_path: Path, old: str, new: str) -> str:
    """The error for GOOD with `old` replaced by `new`."""
    assert old in GOOD
    (tmp_path / "params.yaml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ParamsError, match=r"^params.yaml") as caught:
        load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_valid_file_is_read_with_its_defaults(tmp_path):
    (tmp_path / "params.yaml").write_text(GOOD)
    read = load(tmp_path / "params.yaml")
    section = read.section("spend")
    assert isinstance(section, params.Tabular)
    assert section.features.cutoffs.first == date(2024, 1, 28)
    assert (section.tune.n_trials, section.tune.method, section.evaluate.windows) == (5, None, 3)
    assert read.kind("spend") == "regression"


@pytest.mark.parametrize("project", ["own", "small"])
def test_the_params_of_the_project_are_valid(project, tmp_path):
    path = OWN if project == "own" else store.project(tmp_path, households=6, weeks=12) / "params.yaml"
    assert set(load(path).sections) == {"recommend", "redeem", "spend", "segments"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("n_trials: 5", "n_trails: 40", "params.yaml: spend.tune.n_trails = 40: unknown key; did you mean n_trials?"),
        ("horizon_days", "horizn_days", "spend.features.horizn_days = 28: unknown key; did you mean horizon_days?"),
        ("max_bad_share", "max_share", "validate.sales.max_share = 0.1: unknown key; did you mean max_bad_share?"),
        ("csv: goods.csv", "cvs: goods.csv", "ingest.goods.cvs = goods.csv: unknown key; did you mean csv?"),
        ("project: {name", "project: {nam", "project.nam = shop: unknown key; did you mean name?"),
        ("ingest:", "ingset:", "ingset: unknown key; did you mean ingest?"),
        ("regression", "regresion", "problems.spend = regresion: must be 'classification', 'regression'"),
        (
            "table: sales, function",
            "table: sale, function",
            "spend.features: table sale is not under ingest; did you mean sales?",
        ),
        ("  sales: {max_bad", "  salse: {max_bad", "validate.salse: no such table under ingest; did you mean sales?"),
        (
            "unique: [id]",
            "references: {id: {to: good.id}}",
            "references.id.to = good.id: no table good under ingest; did you mean goods?",
        ),
        ("unique: [id]", "references: {id: {to: goods}}", "references.id.to = goods: "),
    ],
)
def test_the_error_for_a_typo_suggests_the_most_similar_name(tmp_path, old, new, says):
    assert says in refused(tmp_path, old, new)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("n_trials: 5", "n_trials: 0", "spend.tune.n_trials = 0: must be greater than or equal to 1"),
        ("n_trials: 5", "n_trials: many", "spend.tune.n_trials = many: must be a valid integer"),
        ("max_bad_share: 0.1", "max_bad_share: 1.5", "validate.sales.max_bad_share = 1.5: must be less than or equal to 1"),
        ("n_trials: 5", "method: best", "spend.tune.method = best: must be 'grid', 'random', 'tpe' or 'staged'"),
        (
            "goods: {csv: goods.csv}",
            "goods: {csv: a, sql: b, url: c}",
            "needs exactly one of store, csv, parquet, jsonl, excel, sql; has csv, sql",
        ),
        ("goods: {csv: goods.csv}", "goods: {sql: b}", "sql and url go together"),
        ("time: day", "time: day, local_timezone: UTC", "stored_timezone and local_timezone go together"),
        ("n_trials: 5", "space: {ridge: {alpha: {low: 2, high: 1}}}", "spend.tune.space.ridge.alpha"),
        ("entity: customer", "", "spend.features.entity: is missing; add it"),
    ],
)
def test_the_error_for_a_value_out_of_bounds_gives_the_rule(tmp_path, old, new, says):
    assert says in refused(tmp_path, old, new)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"2024-01-28"', "2024-01-28", 'spend.features.cutoffs.first = 2024-01-28: dates need quotes; write "2024-01-28"'),
        ('"2024-01-28"', '"28.1.2024"', "spend.features.cutoffs.first = 28.1.2024: must be a valid date"),
        (
            "name: shop",
            "name: shop, as_of: 2024-02-30",
            "invalid date or number: day is out of range for month. Put dates in quotes",
        ),
    ],
)
def test_the_error_for_an_invalid_date_shows_the_format(tmp_path, old, new, says):
    assert says in refused(tmp_path, old, new)


def test_two_problems_of_one_name_are_refused(tmp_path):
    for old, new in (
        ("project: {name: shop}", "project: {name: shop}\nspend: {}"),
        ("spend: regression", "spend: regression, spend: clustering"),
    ):
        said = refused(tmp_path, old, new)
        assert 'duplicate key "spend"' in said
        assert "A key may occur once" in said


def test_a_problem_needs_a_section_and_a_section_a_problem(tmp_path):
    said = refused(tmp_path, "spend: regression", "spend: regression, lapse: classification")
    assert "problems.lapse: has no section lapse at the top level of the file; add one" in said
    said = refused(tmp_path, "{spend: regression}", "{}")
    assert (
        "spend: unknown key; known are project, ingest, validate, problems, serve; a problem also needs a line under problems"
        in said
    )
    assert "ingest is a reserved name" in refused(tmp_path, "{spend: regression}", "{ingest: regression, spend: regression}")


@pytest.mark.parametrize("name", ["../spend", "a b", "a.b", "a@b", "'1'", "''", "'${key}'", "ä", '"a\\nb"', "x" * 65])
def test_a_name_that_no_folder_or_stage_can_have_is_refused(tmp_path, name):
    assert "a name starts with a letter" in refused(
        tmp_path, "{spend: regression}", f"{{{name}: regression, spend: regression}}"
    )
    assert "a name starts with a letter" in refused(tmp_path, "goods:", f"{name}:")


@pytest.mark.parametrize("name", ["validation", "all"])
def test_a_reserved_name_is_refused(tmp_path, name):
    assert f"{name} is a reserved name" in refused(
        tmp_path, "{spend: regression}", f"{{{name}: regression, spend: regression}}"
    )


def test_invalid_yaml_and_other_files_are_refused(tmp_path):
    assert "line 3" in refused(tmp_path, "problems: {", "problems: {{")
    (tmp_path / "params.yaml").write_bytes(b"\xff")
    with pytest.raises(ParamsError, match="must be UTF-8"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"a: \x00")
    with pytest.raises(ParamsError, match=r"special characters are not allowed.*must be UTF-8"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1\n")
    with pytest.raises(ParamsError, match=r"needs the keys project, ingest.*found list"):
        load(tmp_path / "params.yaml")


def test_the_error_for_an_unknown_problem_suggests_the_most_similar(tmp_path):
    (tmp_path / "params.yaml").write_text(GOOD)
    with pytest.raises(ParamsError, match=r"spnd: no such problem in params.yaml; did you mean spend"):
        load(tmp_path / "params.yaml").section("spnd")


def sections(model: type[BaseModel] = Section) -> list[type[BaseModel]]:
    """The models of the sections of params.yaml."""
    below = [found for each in model.__subclasses__() for found in (each, *sections(each))]
    return [each for each in below if each.__module__.startswith("evergreen.tasks.config.")]


def test_every_field_has_a_description():
    silent = [
        f"{model.__name__}.{name}"
        for model in sections()
        for name, field in model.model_fields.items()
        if not field.description and not issubclass(_plain(field.annotation), BaseModel)
    ]
    assert len(sections()) > 30
    assert silent == []


def _plain(annotation: Any) -> type:
    return annotation if isinstance(annotation, type) else object


@pytest.mark.parametrize("project", ["own", "small"])
def test_the_schema_holds_the_files_and_refuses_a_typo(project, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    path = OWN if project == "own" else store.project(tmp_path, households=6, weeks=12) / "params.yaml"
    file = YAML(typ="safe", pure=True).load(path.read_text())
    rules = jsonschema.Draft202012Validator(json.loads(schema()))
    assert [error.message for error in rules.iter_errors(file)] == []
    file["redeem"]["tune"]["n_trails"] = 4
    assert not rules.is_valid(file)


def test_a_model_of_params_is_frozen(tmp_path):
    (tmp_path / "params.yaml").write_text(GOOD)
    read = load(tmp_path / "params.yaml")
    assert isinstance(read, Params)
    with pytest.raises(ValueError, match="frozen"):
        read.project.seed = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_params_narrow_to_some_problems_in_their_order_and_name_an_unknown_one():
    known = load(ROOT / "params.yaml")
    assert [*known.narrow(["spend", "redeem"]).problems] == ["spend", "redeem"]
    assert known.narrow(()).problems == known.problems
    with pytest.raises(ParamsError, match=r"redem: no such problem in params\.yaml; did you mean redeem"):
        known.narrow(["spend", "redem"])
