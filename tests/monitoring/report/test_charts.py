"""The charts: one spec per plot, drawn for the page without a request and by `dvc plots` for several revisions."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
import vl_convert
import yaml
from dvc_render.vega import VegaRenderer

from evergreen.monitoring.report import charts, dvc_templates, vega
from evergreen.monitoring.report.marks import constant, dots, lines, number
from evergreen.monitoring.report.plots import PLOTS
from evergreen.tasks.config.params import SECTIONS
from tests import ROOT
from tests.monitoring.report.plot_tables import plot_tables
from tests.monitoring.report.tree import Tree

DVC_PLOTS = ROOT / ".dvc" / "plots"
TABLES = {name: table for kind in SECTIONS for name, table in plot_tables(kind).items()}
CURVE = lines(number("x"), number("y"))
CURVE_TABLE = pl.DataFrame({"x": [1, 2], "y": [1, 2]})


def test_the_tables_of_a_step_are_drawn_into_files_and_unknown_ones_left_out(tmp_path: Path):
    plots, folder = tmp_path / "plots", tmp_path / "figures"
    plots.mkdir()
    folder.mkdir()
    known = plot_tables("classification")
    for name, table in known.items():
        table.write_csv(plots / f"{name}.csv")
    CURVE_TABLE.write_csv(plots / "unheard_of.csv")
    charts.save(plots, folder)
    assert {path.stem for path in folder.iterdir()} == {name for name in known if name in PLOTS}
    assert all(path.read_text().startswith("<svg") for path in folder.iterdir())


def drawn(*names: str) -> str:
    table = pl.DataFrame([{"series": name, "x": x, "y": x} for name in names for x in (1, 2, 3)])
    return str(vega.render("Curve", CURVE, table))


def test_every_plot_of_a_kind_has_a_spec_and_an_entry_in_dvc_yaml():
    listed = [path for entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"] for path in entry.items()]
    problems = yaml.safe_load((ROOT / "params.yaml").read_text())["problems"]
    expected = {(f"reports/{each}/plots/{name}.csv", name) for each in problems for name in plot_tables(problems[each])}
    off = ("ablations", "hidden_items")  # evaluate.ablation_users is 0 there, and sources.content false
    expected -= {(f"reports/recommend/plots/{name}.csv", name) for name in off}
    assert {(path, entry["template"]) for path, entry in listed} == expected
    assert all(entry["title"] == path.split("/")[1] for path, entry in listed)


def test_the_templates_in_the_repository_are_written_from_the_specs():
    found = {path.name: path.read_text() for path in DVC_PLOTS.glob("*.json")}
    assert found == dvc_templates.templates(), "run make plots"
    assert {f"{name}.json" for name in TABLES} == set(found)


@pytest.mark.parametrize("name", TABLES)
def test_dvc_draws_two_revisions_from_rows_of_text(name: str):
    text = [{column: str(value) for column, value in row.items()} for row in TABLES[name].to_dicts()]
    rows = [{**row, "rev": revision} for revision in ("main", "workspace") for row in text]
    given = {"template": name, "template_dir": str(DVC_PLOTS), "title": "redeem", "revs_with_datapoints": ["main", "workspace"]}
    spec = json.loads(VegaRenderer(rows, name, **given).partial_html())
    said = Tree(vl_convert.vegalite_to_svg(spec, vl_version="5.8", allowed_base_urls=[])).said
    for expected in (f"redeem: {PLOTS[name].title}", "main", "workspace"):
        assert expected in said
    assert "undefined" not in said
    assert "NaN" not in said


@pytest.mark.parametrize("name", TABLES)
def test_the_page_and_dvc_write_the_same_words_and_numbers_at_the_axes(name: str):
    """The page's rows are numbers, DVC's are text."""
    plot, table = PLOTS[name], TABLES[name]
    spec = plot.of(table)
    assert spec is not None
    numbers = vega.numbers(spec)
    frame = {"width": vega.WIDTH, "height": plot.height, "config": vega.CONFIG}
    text = [{column: str(value) for column, value in row.items()} for row in table.to_dicts()]
    parsed = {"values": text, "format": {"parse": dict.fromkeys(numbers, "number")}}
    pages = [vl_convert.vegalite_to_svg(frame | spec | {"data": data}) for data in ({"values": table.to_dicts()}, parsed)]
    assert Tree(pages[0]).said == Tree(pages[1]).said


def test_baselines_are_grey_and_the_others_take_the_palette_in_order():
    strokes = re.findall(r'<path d="M[^"]*L[^"]*" stroke="([^"]*)"', drawn("model", "baseline a", "rival"))
    assert strokes[:3] == [vega.MODEL, vega.BASELINE, vega.SECOND]


def test_a_single_series_has_no_legend():
    assert "model" in Tree(drawn("model", "baseline")).said
    assert "model" not in Tree(drawn("model")).said


def test_a_spec_that_names_an_address_is_refused():
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        vega.render("Stolen", CURVE | {"data": {"url": "http://127.0.0.1:9/rows.csv"}}, pl.DataFrame({"series": ["a"]}))


def test_a_dot_costs_few_bytes():
    table = pl.DataFrame({"x": range(500), "y": range(500)})
    svg = vega.render("Dots", dots(number("x"), number("y"), color=constant(vega.MODEL)), table)
    assert svg.count("<circle") == 500
    assert len(svg) < 60 * 500


def test_a_long_series_is_thinned_between_its_ends():
    table = pl.DataFrame([{"series": name, "x": x} for name in ("model", "baseline") for x in range(1000)])
    thin = charts._thinned(table, 50)
    assert thin.height == 100
    assert thin.group_by("series", maintain_order=True).agg(pl.min("x").alias("low"), pl.max("x").alias("high")).rows() == [
        ("model", 0, 999),
        ("baseline", 0, 999),
    ]


def test_a_file_has_the_colours_of_the_light_scheme(tmp_path: Path):
    vega.save(tmp_path / "curve.svg", CURVE, pl.DataFrame({"series": ["model"] * 2, "x": [1, 2], "y": [1, 2]}))
    text = (tmp_path / "curve.svg").read_text()
    assert text.startswith("<svg ")
    assert vega.LIGHT[vega.MODEL] in text
    assert "var(--" not in text


def test_the_light_scheme_is_that_of_the_style_sheet():
    style = (ROOT / "monitoring" / "templates" / "style.css").read_text()
    first = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", style[: style.index("@media")]))
    assert {name: first[name[len("var(") : -1]] for name in vega.LIGHT} == vega.LIGHT


@pytest.mark.parametrize(
    ("table", "drawn"),
    [
        (pl.DataFrame({"day": [1, 2, 3], "rows": [5, 6, 9]}), True),
        (pl.DataFrame({"who": ["a", "b"], "rows": [5, 6]}), True),
        (pl.DataFrame({"who": ["a", "b"], "what": ["c", None], "rows": [5, 6]}), False),
        (pl.DataFrame({"label": ["a"], "rows": [1]}), True),
    ],
    ids=["two numbers", "a name and a number", "two names", "columns of another shape"],
)
def test_a_plot_that_is_not_known_is_drawn_from_its_columns(table: pl.DataFrame, drawn: bool):
    chart = charts.draw("confusion" if "label" in table.columns else "odd_one", table)
    assert (chart.svg is not None) == drawn
    assert bool(chart.rows) != drawn


@pytest.mark.parametrize("values", [("True", "False"), ("onehot", "ordinal"), ("None", "balanced"), ("0.1", "10.0")])
def test_a_validation_curve_of_any_values_is_drawn_from_its_file(values: tuple[str, str], tmp_path: Path):
    told = {"parameter": "log", "chosen": values[0], "log": False, "metric": "roc_auc", "score": 0.5, "low": 0.4, "high": 0.6}
    rows = [{"value": value, "series": series, **told} for value in values for series in ("training", "validation")]
    pl.DataFrame(rows).write_csv(tmp_path / "curve.csv")
    chart = charts.draw("validation_curve_1", pl.read_csv(tmp_path / "curve.csv"))
    said = Tree(str(chart.svg)).said.lower()
    for text in ("chosen", *(value.lower() for value in values if not value[0].isdigit())):
        assert text in said


def test_texts_of_a_chart_are_those_of_its_table():
    table = pl.DataFrame(
        {
            "source": ['a id="b" #0f0010', "b"],
            "ndcg": [0.4133, 0.0123],
            "recall": 0.1,
            "ndcg_novel": 0.0456,
            "recall_novel": 0.2,
        }
    )
    chart = charts.draw("candidates", table)
    assert chart.svg is not None
    said = Tree(str(chart.svg)).said
    for text in ('a id="b" #0f0010', "0.413", "0.0123", "0.0456"):
        assert text in said


def test_no_rule_of_the_console_changes_the_marks_of_the_pages_that_it_shows():
    drawn = set(re.findall(r"svg\.([\w-]+)", (ROOT / "monitoring" / "templates" / "style.css").read_text()))
    rules = re.findall(
        r"(?:^|[,}])\s*\.([\w-]+)", (ROOT / "flows" / "templates" / "console" / "console.css").read_text(), re.MULTILINE
    )
    assert drawn
    assert not drawn & set(rules)


def test_plots_of_new_items_come_first_where_they_are_judged():
    names = ["sources", "sources_novel", "ndcg_by_history", "ndcg_novel_by_history", "unknown"]
    plain = ["ndcg_by_history", "ndcg_novel_by_history", "sources", "sources_novel", "unknown"]
    assert sorted(names, key=lambda name: charts.order(name, "ndcg")) == plain
    first = sorted(names, key=lambda name: charts.order(name, "ndcg_novel"))
    assert first == ["ndcg_novel_by_history", "ndcg_by_history", "sources_novel", "sources", "unknown"]
