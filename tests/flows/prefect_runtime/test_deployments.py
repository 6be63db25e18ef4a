"""What params schedule, as deployments: names, times, zones, limits; and prefect.yaml, which says the same."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from evergreen.flows.prefect_runtime import deployments
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout
from tests import ROOT


def mill(folder: Path, **sections: dict) -> Params:
    """Params with a problem for each of `sections`: its schedule, or its whole retrain and schedule."""
    features = {"table": "jobs", "target": "late", "columns": {"size": "number"}}
    whole = {
        "project": {"name": "old mill"},
        "ingest": {"jobs": {"csv": "jobs.csv"}},
        "problems": dict.fromkeys(sections, "regression"),
        **{name: {"question": "?", "features": features, "schedule": asked} for name, asked in sections.items()},
    }
    (folder / "params.yaml").write_text(json.dumps(whole))
    return load(folder / "params.yaml")


def test_each_time_in_params_is_a_deployment_with_its_zone_and_a_retraining_can_always_be_asked_for(tmp_path: Path) -> None:
    params = mill(tmp_path, late={"monitor": "0 6 * * *", "score": "0 5 * * *", "timezone": "America/New_York"}, cost={})
    planned = deployments.plan(params, "/mill")
    assert [(each.flow, each.problem, each.cron, each.waits) for each in planned] == [
        ("retraining", "late", None, True),
        ("scoring", "late", "0 5 * * *", False),
        ("monitoring", "late", "0 6 * * *", False),
        ("retraining", "cost", None, True),
    ]
    assert {each.zone for each in planned if each.cron} == {"America/New_York"}
    assert len({(each.flow, each.name) for each in planned}) == len(planned)


def test_a_deployment_has_its_cron_in_its_zone_and_one_run_at_a_time(tmp_path: Path) -> None:
    params = mill(tmp_path, late={"train": "0 3 * * 1", "timezone": "Europe/Paris"})
    (planned,) = deployments.plan(params, "/mill")
    made = deployments.deployment(planned, params)
    (asked,) = made.schedules
    assert (asked.schedule.cron, asked.schedule.timezone) == ("0 3 * * 1", "Europe/Paris")
    assert (made.concurrency_limit, made.concurrency_options.collision_strategy.name) == (1, "ENQUEUE")
    assert made.entrypoint == planned.entrypoint == "evergreen.flows.retraining.retraining"
    assert made.parameters == {"root": "/mill", "problem": "late", "reason": "scheduled"}


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({}, r"no problem has a schedule; say when, such as late\.schedule"),
        ({"monitor": "61 6 * * *"}, r"late\.schedule\.monitor = 61 6 \* \* \*: "),
    ],
    ids=["nothing", "no such minute"],
)
def test_a_time_that_is_none_is_told_before_anything_is_made(tmp_path: Path, asked: dict, rule: str) -> None:
    with pytest.raises(ParamsError, match=rule):
        deployments.check(mill(tmp_path, late=asked))


def test_a_zone_that_is_none_is_told_by_params(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"late\.schedule\.timezone = Mars/Base: no such time zone"):
        mill(tmp_path, late={"timezone": "Mars/Base"})


def test_what_is_written_for_prefect_deploy_is_what_is_planned(tmp_path: Path) -> None:
    params = mill(tmp_path, late={"monitor": "0 6 * * *", "timezone": "Europe/Paris"})
    written = YAML(typ="safe").load(deployments.write(Layout(tmp_path)))
    assert [(each["name"], each["entrypoint"]) for each in written["deployments"]] == [
        (each.name, each.entrypoint) for each in deployments.plan(params, ".")
    ]
    assert written["deployments"][1]["schedules"] == [{"cron": "0 6 * * *", "timezone": "Europe/Paris", "active": True}]


def test_prefect_yaml_of_this_project_says_what_its_params_say() -> None:
    assert (ROOT / "prefect.yaml").read_text() == deployments.as_yaml(load(ROOT / "params.yaml"))


def test_names_keep_to_what_prefect_allows(tmp_path: Path) -> None:
    params = mill(tmp_path, late={})
    odd = params.model_copy(update={"project": params.project.model_copy(update={"name": "a/b & c"})})
    assert deployments.plan(odd, ".")[0].name == "a-b - c.late"
