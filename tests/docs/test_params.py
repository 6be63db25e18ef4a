"""Every YAML block of the documentation is a valid part of params.yaml."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from evergreen.tasks.config import loading
from tests import ROOT
from tests.docs.pages import Block, every
from tests.docs.projects import merged

CHURN = {
    "problems": {"churn": "classification"},
    "ingest": {"churn": {"csv": "customers.csv"}},
    "churn": {"question": "Is left yes?", "features": {"table": "churn", "target": "left", "columns": {"plan": "category"}}},
}
"""The tutorial's problem, which pages change."""


@pytest.mark.parametrize(
    "block",
    [block for block in every() if block.language == "yaml" and block.mark != "not params"],
    ids=lambda block: block.where,
)
def test_a_yaml_block_is_a_part_of_params(block: Block, tmp_path: Path):
    whole = merged(YAML().load((ROOT / "params.yaml").read_text()), CHURN)
    given = YAML().load(block.text)
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(merged(whole, given), file)
    loading.load(tmp_path / "params.yaml")
