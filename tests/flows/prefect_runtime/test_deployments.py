"""What params schedule, as deployments: names, times, zones, limits; and prefect.yaml, which says the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from evergreen.flows import current_project
from evergreen.flows.prefect_runtime import deployments
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError, ProjectError
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
    planned = deployments.plan(params)
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
    (planned,) = deployments.plan(params)
    made = deployments.deployment(planned, params)
    (asked,) = made.schedules
    assert (asked.schedule.cron, asked.schedule.timezone) == ("0 3 * * 1", "Europe/Paris")
    assert (made.concurrency_limit, made.concurrency_options.collision_strategy.name) == (1, "ENQUEUE")
    assert made.entrypoint == planned.entrypoint == "evergreen.flows.retraining.retraining"
    assert made.parameters == {"root": ".", "problem": "late", "reason": "scheduled"}


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


def test_pruning_is_a_deployment_of_the_project_where_params_schedule_it(tmp_path: Path) -> None:
    params = mill(tmp_path, late={})
    whole = json.loads((tmp_path / "params.yaml").read_text())
    whole["project"]["prune"] = "0 3 * * 0"
    (tmp_path / "params.yaml").write_text(json.dumps(whole))
    params = load(tmp_path / "params.yaml")
    planned = deployments.plan(params)[-1]
    assert (planned.name, planned.flow, planned.cron, planned.zone) == ("old mill.project", "pruning", "0 3 * * 0", "UTC")
    made = deployments.deployment(planned, params, deployments.POOL)
    assert made.tags == ["evergreen:old mill", "project:old mill"]
    assert made.parameters == {"root": "."}
    assert "  - name: old mill.project\n    description: 'Evergreen: pruning, project old mill.'" in deployments.as_yaml(params)
    deployments.check(params)
    odd = params.model_copy(update={"project": params.project.model_copy(update={"prune": "0 25 * * 0"})})
    with pytest.raises(ParamsError, match=r"project\.prune = 0 25 \* \* 0: "):
        deployments.check(odd)


def test_a_zone_that_is_none_is_told_by_params(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"late\.schedule\.timezone = Mars/Base: no such time zone"):
        mill(tmp_path, late={"timezone": "Mars/Base"})


def test_what_is_written_for_prefect_deploy_is_what_is_planned(tmp_path: Path) -> None:
    params = mill(tmp_path, late={"monitor": "0 6 * * *", "timezone": "Europe/Paris"})
    written = YAML(typ="safe").load(deployments.write(Layout(tmp_path)))
    assert [(each["name"], each["entrypoint"]) for each in written["deployments"]] == [
        (each.name, each.entrypoint) for each in deployments.plan(params)
    ]
    assert written["deployments"][1]["schedules"] == [{"cron": "0 6 * * *", "timezone": "Europe/Paris", "active": True}]


def test_prefect_yaml_of_this_project_says_what_its_params_say() -> None:
    assert (ROOT / "prefect.yaml").read_text() == deployments.as_yaml(load(ROOT / "params.yaml"))


def test_names_keep_to_what_prefect_allows(tmp_path: Path) -> None:
    params = mill(tmp_path, late={})
    odd = params.model_copy(update={"project": params.project.model_copy(update={"name": "a/b & c"})})
    assert deployments.plan(odd)[0].name == "a-b - c.late"


def test_the_id_of_a_project_names_its_deployments_events_and_queue_and_no_path_does(tmp_path: Path) -> None:
    params = mill(tmp_path, late={"train": "0 3 * * 1"})
    other = params.model_copy(update={"project": params.project.model_copy(update={"id": "north"})})
    (one,), (two,) = (deployments.plan(each) for each in (params, other))
    assert (one.name, two.name) == ("old mill.late", "old mill-north.late")
    assert (deployments.resource(params, "late"), deployments.resource(other, "late")) == (
        "evergreen.problem.old mill.late",
        "evergreen.problem.north.late",
    )
    made = deployments.deployment(two, other, deployments.POOL)
    assert made.work_queue_name == "old mill-north"
    assert made.tags == ["evergreen:north", "project:old mill", "problem:late"]
    assert str(tmp_path) not in f"{made.parameters} {made.job_variables} {deployments.as_yaml(other)}"


def test_prefect_yaml_has_the_automation_of_a_problem_that_retrains_by_itself(tmp_path: Path) -> None:
    section = {
        "question": "?",
        "features": {"table": "jobs", "target": "late", "columns": {"size": "number"}},
        "retrain": {"mode": "automatic", "on_drift": True},
    }
    params = mill(tmp_path, late={})
    whole = json.loads((tmp_path / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(json.dumps({**whole, "late": section}))
    params = load(tmp_path / "params.yaml")
    (written,) = YAML(typ="safe").load(deployments.as_yaml(params))["deployments"]
    (made,) = deployments.deployment(deployments.plan(params)[0], params, deployments.POOL).triggers
    (asked,) = written["triggers"]
    assert (made.name, made.match.model_dump(), made.parameters) == (asked["name"], asked["match"], asked["parameters"])


def test_another_folder_with_the_same_name_and_no_id_is_refused(tmp_path: Path) -> None:
    params = mill(tmp_path, late={})
    there = [SimpleNamespace(description=f"Evergreen. {deployments.FROM} elsewhere:/mill")]
    with pytest.raises(
        ParamsError, match=r"project.name = old mill: the server's deployments of this name are those of elsewhere:/mill"
    ):
        deployments._check_folder(Layout(tmp_path), params, there)
    with_id = params.model_copy(update={"project": params.project.model_copy(update={"id": "north"})})
    deployments._check_folder(Layout(tmp_path), with_id, there)
    here = [SimpleNamespace(description=f"Evergreen. {deployments.FROM} {deployments.folder(Layout(tmp_path))}")]
    deployments._check_folder(Layout(tmp_path), params, here)


def test_a_worker_without_its_variable_or_with_another_project_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mill(tmp_path, late={})
    monkeypatch.setenv(current_project.KEY, "north")
    monkeypatch.delenv(current_project.VARIABLE, raising=False)
    with pytest.raises(
        ProjectError, match=r"EVERGREEN_ROOT: not set on this worker. Set it to the folder of the project north"
    ):
        current_project.of(current_project.HERE)
    monkeypatch.setenv(current_project.VARIABLE, str(tmp_path))
    with pytest.raises(ProjectError, match=r"is the project old mill; this run belongs to the project north"):
        current_project.of(current_project.HERE)
    monkeypatch.setenv(current_project.KEY, "old mill")
    assert current_project.of(current_project.HERE).root == tmp_path
