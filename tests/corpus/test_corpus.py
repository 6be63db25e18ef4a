"""Every file of the corpus is read as people mean it, by `init` and by the steps after it; or one line says why not."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evergreen.flows.operations import init_project
from evergreen.tasks import features, ingest, validate
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import EvergreenError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.onboarding.schema_inference import InitOptions
from tests.corpus.readings import READINGS
from tests.corpus.tables import ROWS, TABLES, Table, column, file

TODAY = date(2026, 1, 1)


@pytest.fixture(autouse=True)
def no_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """git and DVC take a second for each project."""
    monkeypatch.setattr(init_project.lineage, "set_up", lambda _layout: [])


def begin(folder: Path, table: Table) -> tuple[Params, pl.DataFrame, tuple[str, ...]]:
    """The params that `init` drafts, the table that ingest reads with them, and the warnings."""
    name = f"t{table.suffix}"
    table.write(folder / name)
    started = init_project.run("t", name, None, InitOptions(target=table.target), folder, folder, TODAY)
    params, layout = loading.load(folder / "params.yaml"), Layout(folder)
    ingest.run(params, None, layout)
    validate.run(params, None, layout)
    features.run(params, "t", layout)
    return params, pl.read_parquet(layout.raw("t")), started.warnings


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if table.kind])
def test_a_file_is_read_as_people_mean_it(tmp_path: Path, name: str):
    table = TABLES[name]
    params, rows, warnings = begin(tmp_path, table)
    assert (params.kind("t"), rows.height) == (table.kind, table.rows)
    types, roles = params.ingest["t"].types, params.section("t").features.roles
    assert {each: types.get(each) for each in table.types} == table.types
    assert {each: roles.get(each) for each in table.roles} == table.roles
    assert {each: rows[each][0] for each in table.first} == table.first
    assert any(re.search(table.says, line) for line in (*warnings, ""))


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if not table.kind])
def test_a_file_without_a_table_is_refused_in_one_line(tmp_path: Path, name: str):
    with pytest.raises(EvergreenError, match=TABLES[name].says) as caught:
        begin(tmp_path, TABLES[name])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "params.yaml").exists()


ROLE = {"integer": "number", "number": "number", "boolean": "number", "text": "category", "date": "date", "datetime": "date"}


@pytest.mark.parametrize("name", READINGS)
def test_a_column_is_read_alike_by_init_and_ingest(tmp_path: Path, name: str):
    values, kind, found = READINGS[name]
    table = Table(file(column([f'"{each}"' for each in values], ";")))
    params, rows, _ = begin(tmp_path, table)
    read: list[Any] = [found[place % len(found)] for place in range(ROWS)]
    assert (params.ingest["t"].types["c"], rows["c"].to_list()) == (kind, read)
    assert params.section("t").features.roles.get("c") == ROLE[kind]
