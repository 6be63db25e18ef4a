"""The registry of models, on an SQLite file in a folder whose name holds a space."""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
from mlflow.tracking import MlflowClient
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from skops import io

from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import ModelError, StepError
from evergreen.tasks.core.paths import Layout, write_json
from evergreen.tasks.model_files import onnx_export as compiling
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.release.candidate import Candidate
from evergreen.tasks.release.deployments import Deployments
from evergreen.tasks.release.mlflow_model import requirements
from evergreen.tasks.release.mlflow_store import MlflowStore, Version
from evergreen.tasks.release.model_registry import Registry
from evergreen.tasks.release.promotion_gate import Verdict
from tests import ROOT
from tests.kills import KilledError

KNOWN = loading.load(ROOT / "params.yaml")
EXAMPLE = pd.DataFrame({"age": [30.0, 40.0, 50.0, 60.0], "empty": [np.nan] * 4, "colour": ["red", "blue", "blue", "red"]})
LINEAGE = {
    "git.commit": "c0ffee",
    "git.dirty": "false",
    "git.changed": "",
    "dvc.data/features/redeem": "f00d",
    "cutoff": "2017-12-03",
}
BEGAN = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def verdict(promote: bool = True, reason: str = "promoted: better by far", high: float = 0.3) -> Verdict:
    decision = "better" if promote else "cannot tell"
    numbers = {"candidate": 0.9, "other": 0.7, "gain": 0.2, "low": 0.1, "high": high}
    return Verdict(
        decision=decision, promote=promote, reason=reason, metric="roc_auc", rows=99, against="baseline prior", **numbers
    )


def fit(strength: float = 1.0) -> Any:
    prepare = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["colour"]), ("passthrough", ["age"]))
    return make_pipeline(prepare, LogisticRegression(C=strength)).fit(EXAMPLE, [0, 0, 1, 1])


def write_candidate(layout: Layout, model: Any, trials: int = 3) -> None:
    """What tune, train and evaluate leave behind."""
    skops_models.save(model, layout.model("redeem") / "model.skops")
    example = [{**row, "empty": None} for row in EXAMPLE.to_dict("records")]
    card = {"kind": "classification", "config": {"model": "logistic", "C": 1.0}, "cutoff": "2017-12-03"}
    write_json(layout.model("redeem") / "model.json", {**card, "features": list(EXAMPLE), "example": example})
    write_json(layout.model("redeem") / "levels.json", {"colour": ["blue", "red"]})
    layout.features("redeem").mkdir(parents=True, exist_ok=True)
    pl.DataFrame(schema={"age": pl.Float64, "empty": pl.Float64, "colour": pl.String}).write_parquet(
        layout.features("redeem") / "rows.parquet"
    )
    layout.tuning("redeem").mkdir(parents=True, exist_ok=True)
    states = ["failed", "killed", *["complete"] * (trials - 2)]
    pl.DataFrame(
        [
            {
                "number": number,
                "state": state,
                "model": "logistic",
                "config": json.dumps({"model": "logistic", "C": number}),
                "score": 0.8 if state == "complete" else None,
                "std": None,
                "reason": "" if state == "complete" else state,
                "started": BEGAN + timedelta(minutes=number),
                "ended": BEGAN + timedelta(minutes=number, seconds=30) if state != "killed" else None,
                "seconds": 30.0 if state != "killed" else None,
            }
            for number, state in enumerate(states)
        ],
        schema_overrides={"std": pl.Float64},
    ).write_parquet(layout.tuning("redeem") / "trials.parquet")
    report = layout.report("redeem")
    write_json(report / "metrics.json", {"roc_auc": {"score": 0.9, "low": 0.8, "high": None}, "hits@10": {"score": 0.5}})
    write_json(report / "evaluation" / "evaluation.json", {"primary": "roc_auc"})
    (report / "plots").mkdir(exist_ok=True)
    (report / "plots" / "roc.csv").write_text("x,y\n0,1\n")
    write_json(layout.cost("train", "redeem"), {"cpu_seconds": 1.0, "peak_mb": 10.0})
    write_json(layout.cost("train", "spend"), {"cpu_seconds": 1.0, "peak_mb": 10.0})


Own = tuple[Registry, Layout]
Shared = tuple[Registry, Layout, Version]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing else: making one takes seconds, copying it does not."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    Registry(f"sqlite:///{file}", "", file.parent).mark_stale_runs_killed()
    return file


def open_shop(root: Path, empty: Path) -> Own:
    """A project with one candidate, and a registry that is empty."""
    layout = Layout(root)
    write_candidate(layout, fit())
    shutil.copy(empty, layout.var / "mlflow.db")
    return Registry(f"sqlite:///{layout.var / 'mlflow.db'}", str(layout.var / "artifacts"), layout.root), layout


@pytest.fixture
def own(tmp_path: Path, empty: Path) -> Own:
    return open_shop(tmp_path / "my shop", empty)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, empty: Path) -> Shared:
    """A registry with one version, which tests leave as it is."""
    registry, layout = open_shop(tmp_path_factory.mktemp("shared") / "my shop", empty)
    return registry, layout, registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)


def kill(*_words: Any) -> None:
    raise KilledError("kill -9")


def client_of(shop: Own | Shared) -> MlflowClient:
    return MlflowClient(shop[0]._store.uri, shop[0]._store.uri)


def artefact(shop: Own, version: Version) -> Path:
    """The estimator's file among MLflow's own."""
    source = client_of(shop).get_model_version_download_uri("redeem", str(version.version))
    return shop[1].root / source / "model.skops"


def test_the_first_version_is_challenger_and_carries_numbers_lineage_and_verdict(shared: Shared):
    _, _, version = shared
    assert (version.problem, version.version, version.aliases) == ("redeem", 1, ("challenger",))
    scores = {"roc_auc": 0.9, "roc_auc_low": 0.8, "hits_10": 0.5}
    assert version.metrics == {**scores, "cpu_seconds.train": 1.0, "peak_mb.train": 10.0}
    tags = version.tags
    assert (tags["git.commit"], tags["dvc.data/features/redeem"], tags["cutoff"]) == ("c0ffee", "f00d", "2017-12-03")
    assert (tags["model"], tags["kind"], tags["metric"]) == ("logistic", "classification", "roc_auc")
    assert (tags["verdict.decision"], tags["verdict.promote"], tags["verdict.gain"]) == ("better", "true", "0.2")


def test_the_run_holds_params_and_the_files_of_this_problem_alone(shared: Shared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(shared[1].root)  # MLflow's own tools run in the project's folder
    client = client_of(shared)
    run = client.get_run(shared[2].run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["git.commit"] == "c0ffee"
    assert (run.data.params["model"], run.data.params["features.horizon_days"]) == ("logistic", "28")
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"costs", "evaluation", "lineage.json", "metrics.json", "plots", "verdict.json"}
    assert [each.path for each in client.list_artifacts(run.info.run_id, "costs")] == ["costs/train@redeem.json"]


def test_each_trial_is_a_child_run_with_its_own_time_and_end(shared: Shared):
    client = client_of(shared)
    run = client.get_run(shared[2].run_id)
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    found = {each.info.run_name: each for each in children}
    assert {name: each.info.status for name, each in found.items()} == {
        "trial 0": "FAILED",
        "trial 1": "KILLED",
        "trial 2": "FINISHED",
    }
    last = found["trial 2"]
    assert last.info.start_time == (BEGAN + timedelta(minutes=2)).timestamp() * 1000
    assert last.info.end_time == last.info.start_time + 30_000
    assert (last.data.params["C"], last.data.metrics["score"]) == ("2", 0.8)


def test_a_name_that_is_not_there_gives_nothing(shared: Shared):
    registry, _, version = shared
    assert registry.version("redeem", "challenger") == version
    assert registry.version("redeem", 1) == version
    assert registry.version("redeem", 7) is None
    assert registry.version("redeem", "nobody") is None
    assert registry.version("spend", 1) is None
    assert registry.version("spend", "champion") is None
    assert registry.versions("spend") == []
    with pytest.raises(ModelError, match="redeem v7: no such version is registered; known are v1"):
        registry.set_alias("redeem", "champion", 7)
    with pytest.raises(ModelError, match="spend v1: no such version is registered; known are none: train first"):
        registry.load("spend", 1)


def test_a_loaded_model_predicts_what_the_fitted_one_did(shared: Shared):
    registry, layout, _ = shared
    expected = skops_models.load(layout.model("redeem") / "model.skops").predict_proba(EXAMPLE)
    np.testing.assert_array_equal(registry.load("redeem", 1).predict_proba(EXAMPLE), expected)


def test_mlflow_itself_serves_the_champion_with_signature_and_example(shared: Shared, monkeypatch: pytest.MonkeyPatch):
    registry, layout, _ = shared
    monkeypatch.chdir(layout.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///var/mlflow.db")
    registry.set_alias("redeem", "champion", 1)
    served = mlflow.pyfunc.load_model("models:/redeem@champion")
    registry.drop_alias("redeem", "champion")
    signature = served.metadata.get_input_schema()
    assert signature is not None
    assert [str(each.type) for each in signature.inputs] == ["DataType.double", "DataType.double", "DataType.string"]
    saved = served.metadata.load_input_example()
    np.testing.assert_array_equal(served.predict(saved), registry.load("redeem", 1).predict(EXAMPLE))


def test_the_same_candidate_twice_is_one_version_with_the_newest_verdict(own: Own):
    registry, layout = own
    first = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    write_json(layout.report("redeem") / "metrics.json", {"roc_auc": {"score": 0.91}})
    again = registry.register(KNOWN, "redeem", layout, verdict(promote=False, high=float("nan")), LINEAGE | {"digest": "new"})
    assert (again.version, again.run_id) == (first.version, first.run_id)
    assert (again.tags["verdict.decision"], again.tags["digest"]) == ("cannot tell", "new")
    assert again.metrics["roc_auc"] == 0.91
    assert len(registry.versions("redeem")) == first.version


def test_other_params_that_give_the_same_model_are_no_error(own: Own):
    registry, layout = own
    first = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    section = KNOWN.section("redeem")
    longer = section.model_copy(update={"tune": section.tune.model_copy(update={"n_trials": section.tune.n_trials + 1})})
    changed = KNOWN.model_copy(update={"sections": {**KNOWN.sections, "redeem": longer}})
    again = registry.register(changed, "redeem", layout, verdict(), LINEAGE)
    assert (again.version, again.run_id) == (first.version, first.run_id)
    assert client_of(own).get_run(first.run_id).data.params["tune.n_trials"] == str(section.tune.n_trials)


def test_other_data_or_another_model_is_another_version(own: Own):
    registry, layout = own
    first = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    data = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE | {"dvc.data/features/redeem": "beef"})
    write_candidate(layout, fit(strength=0.1))
    model = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    assert [data.version - first.version, model.version - data.version] == [1, 1]
    assert [each.version for each in registry.versions("redeem")][-3:] == [first.version, data.version, model.version]
    assert registry.version("redeem", "challenger") == model
    assert [each.aliases for each in registry.versions("redeem")] == [(), (), ("challenger",)]


def test_the_champion_registered_again_does_not_become_challenger(own: Own):
    registry, layout = own
    first = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    registry.drop_alias("redeem", "challenger")
    registry.set_alias("redeem", "champion", first.version)
    assert registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE).aliases == ("champion",)
    registry.drop_alias("redeem", "champion")


def test_deployments_move_the_aliases_of_mlflow(own: Own):
    registry, layout = own
    deployments = Deployments(f"sqlite:///{layout.var / 'evergreen.db'}")
    for change in ({}, {"dvc.data/features/redeem": "beef"}):
        made = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE | change)
        deployments.deploy(registry, "redeem", made.version, verdict(), "flow")
    assert [each.aliases for each in registry.versions("redeem")] == [(), ("champion",)]
    deployments.rollback(registry, "redeem", None, "ann", "complaints")
    assert [each.aliases for each in registry.versions("redeem")] == [("champion",), ()]


def test_a_file_changed_after_registration_is_not_loaded(own: Own):
    registry, layout = own
    version = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    file = artefact(own, version)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ModelError, match=rf"redeem v{version.version}: .*model\.skops is not the file that was registered"):
        registry.load("redeem", version.version)
    file.unlink()
    with pytest.raises(ModelError, match=rf"redeem v{version.version}: cannot read .*model\.skops"):
        registry.load("redeem", version.version)


def test_a_version_without_a_compiled_model_says_why(shared: Shared):
    registry, _, version = shared
    assert re.fullmatch(r"no: .*rows\.parquet: 0 rows with 3 features; needs at least one of each\.", version.tags["compiled"])
    assert registry.load_compiled("redeem", version.version) is None


def test_a_compiled_model_comes_with_its_version_and_is_refused_once_it_changed(own: Own, monkeypatch: pytest.MonkeyPatch):
    model = fit()

    def said(asked: pd.DataFrame) -> dict[str, np.ndarray]:
        return {"prediction": model.predict(asked)}

    monkeypatch.setattr(compiling, "attempt", lambda *_: compiling.compare(model, said, EXAMPLE, EXAMPLE, 0))
    registry, layout = own
    version = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    assert (version.tags["compiled"], version.tags["compiled.rows"]) == ("yes", "8")
    compiled = registry.load_compiled("redeem", version.version)
    assert compiled is not None
    assert compiled.predict_row({"age": 50.0, "colour": "blue"})["prediction"] == 1
    file = artefact(own, version).parent / "compiled" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ModelError, match=r"model\.onnx is not the file that was registered"):
        registry.load_compiled("redeem", version.version)


def test_a_type_outside_our_list_is_neither_registered_nor_loaded(own: Own, monkeypatch: pytest.MonkeyPatch):
    client = client_of(own)
    registry, layout = own
    version = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    untrusted = layout.root / "untrusted.skops"
    io.dump(make_pipeline(FunctionTransformer(subprocess.getoutput), fit()), untrusted)
    artefact(own, version).write_bytes(untrusted.read_bytes())
    client.set_model_version_tag("redeem", str(version.version), "sha256", hashlib.sha256(untrusted.read_bytes()).hexdigest())
    with pytest.raises(ModelError, match=r"holds subprocess\.getoutput, which is not in TRUSTED"):
        registry.load("redeem", version.version)
    (layout.model("redeem") / "model.skops").write_bytes(untrusted.read_bytes())
    with pytest.raises(ModelError, match=r"holds subprocess\.getoutput, which is not in TRUSTED"):
        registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)


def test_requirements_name_what_the_file_needs_and_nothing_else(tmp_path: Path):
    numbers = np.random.default_rng(0).normal(size=(40, 2))
    boosted = lightgbm.LGBMRegressor(n_estimators=1, verbosity=-1, n_jobs=1).fit(numbers, numbers[:, 0])
    for name, model in (("plain", fit()), ("boosted", boosted)):
        skops_models.save(model, tmp_path / name)
    plain = [each.partition("==")[0] for each in requirements(tmp_path / "plain")]
    assert plain == ["mlflow", "numpy", "pandas", "scikit-learn", "skops"]
    assert f"lightgbm=={lightgbm.__version__}" in requirements(tmp_path / "boosted")


def test_a_run_that_was_killed_leaves_no_version_and_is_swept_and_made_again(own: Own, monkeypatch: pytest.MonkeyPatch):
    client = client_of(own)
    registry, layout = own
    before = len(registry.versions("redeem"))
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(
        "evergreen.tasks.release.mlflow_store.owner", lambda: {"host": socket.gethostname(), "process": f"{gone.pid} 1"}
    )
    monkeypatch.setattr(registry._store, "run", lambda run_id: nullcontext())
    monkeypatch.setattr(registry, "_publish", kill)
    with pytest.raises(KilledError, match="kill -9"):
        registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    monkeypatch.undo()
    assert len(registry.versions("redeem")) == before
    dead = registry.mark_stale_runs_killed()
    assert len(dead) == 1
    assert client.get_run(dead[0]).info.status == "KILLED"
    assert registry.mark_stale_runs_killed() == []
    assert registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE).version == before + 1


def test_a_run_is_running_while_its_training_lasts(own: Own):
    client, (registry, layout) = client_of(own), own
    opened = registry.open_run(KNOWN, "redeem")
    info = client.get_run(opened).info
    assert (info.status, info.end_time) == ("RUNNING", None)
    version = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE, opened)
    assert version.run_id == opened
    found = client.get_run(opened)
    assert (found.info.status, found.info.run_name) == (
        "FINISHED",
        Candidate(KNOWN, "redeem", layout, verdict(), LINEAGE).name(),
    )
    assert found.info.end_time
    registry.close_run(opened, "FAILED")
    assert client.get_run(opened).info.status == "FINISHED"


def test_a_training_that_makes_a_known_model_leaves_no_run(own: Own):
    client, (registry, layout) = client_of(own), own
    first = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    opened = registry.open_run(KNOWN, "redeem")
    assert registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE, opened).run_id == first.run_id
    assert client.get_run(opened).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_training_that_ends_early_ends_its_run_and_a_second_attempt_has_its_own(own: Own, status: Any):
    client, (registry, layout) = client_of(own), own
    opened = registry.open_run(KNOWN, "redeem")
    registry.close_run(opened, status)
    assert client.get_run(opened).info.status == status
    assert registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE, opened).run_id != opened


def test_a_run_of_a_living_process_is_left_alone(own: Own):
    client = client_of(own)
    registry, layout = own
    run_id = registry._store.begin_run(Candidate(KNOWN, "redeem", layout, verdict(), LINEAGE))
    assert registry.mark_stale_runs_killed() == []
    client.set_tag(run_id, "process", f"{os.getpid()} 1")
    assert registry.mark_stale_runs_killed() == [run_id], "another process has had this number since"


def test_a_failure_ends_the_run_as_failed(own: Own, monkeypatch: pytest.MonkeyPatch):
    client = client_of(own)
    registry, layout = own
    monkeypatch.setattr("evergreen.tasks.release.mlflow_model.write", lambda *words: json.loads("broken"))
    with pytest.raises(json.JSONDecodeError, match="Expecting value"):
        registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.candidate != ''")
    assert run.info.status == "FAILED"
    assert registry.versions("redeem") == []


def test_a_database_that_is_none_is_one_line_with_its_place(tmp_path: Path):
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(
        ModelError, match=r"MLflow at sqlite:.*mlflow.db: .*file is not a database.*Check the address"
    ) as refused:
        Registry(f"sqlite:///{tmp_path}/mlflow.db", "", tmp_path)
    assert "\n" not in str(refused.value)
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.ERROR), "MLflow would print a traceback"


def test_without_the_steps_before_it_says_which_file_is_missing(own: Own):
    registry, layout = own
    (layout.tuning("redeem") / "trials.parquet").unlink()
    with pytest.raises(StepError, match=r"trials\.parquet: is missing\. .*evergreen train redeem"):
        registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)


def test_threads_register_side_by_side(own: Own):
    registry, layout = own
    other = Layout(layout.root.parent / "other")
    write_candidate(other, fit(strength=0.5))
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda place: registry.register(KNOWN, "redeem", place, verdict(), LINEAGE), (layout, other)))
    assert len({each.version for each in made}) == 2


def test_an_address_nobody_answers_is_one_line_without_its_password(tmp_path: Path):
    with pytest.raises(ModelError, match=r"MLflow at nosuch://me:\*\*\*@host/db: .*Check the address"):
        Registry("nosuch://me:secret@host/db", str(tmp_path), tmp_path)


def test_a_run_deleted_in_the_ui_comes_back_when_its_model_is_registered_again(own: Own):
    registry, layout = own
    first = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    client_of(own).delete_run(first.run_id)
    again = registry.register(KNOWN, "redeem", layout, verdict(promote=False), LINEAGE)
    assert (again.version, again.run_id) == (first.version, first.run_id)
    assert client_of(own).get_run(first.run_id).info.lifecycle_stage == "active"


def test_a_version_deleted_in_the_ui_is_registered_again_and_rollbacks_pass_it(own: Own):
    registry, layout = own
    deployments = Deployments(f"sqlite:///{layout.var / 'evergreen.db'}")
    for change in ({}, {"dvc.data/features/redeem": "beef"}, {"dvc.data/features/redeem": "cafe"}):
        made = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE | change)
        deployments.deploy(registry, "redeem", made.version, verdict(), "flow")
    client_of(own).delete_model_version("redeem", "2")
    assert registry.damage("redeem", 2) == "it is not in the registry; somebody may have deleted it there"
    assert deployments.rollback(registry, "redeem", None, "ann", "complaints").version == 1
    again = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE | {"dvc.data/features/redeem": "beef"})
    assert again.version == 4


def test_a_registered_model_deleted_in_the_ui_starts_anew(own: Own):
    registry, layout = own
    registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    client_of(own).delete_registered_model("redeem")
    registry.drop_alias("redeem", "challenger")
    assert registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE).version == 1


def test_the_run_has_its_source_datasets_note_and_true_times(own: Own):
    registry, layout = own
    write_json(layout.cost("tune", "redeem"), {"cpu_seconds": 3.5, "peak_mb": 9.0, "started": BEGAN.isoformat()})
    version = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    run = client_of(own).get_run(version.run_id)
    assert run.info.start_time == BEGAN.timestamp() * 1000
    assert run.data.tags["mlflow.source.name"] == "evergreen train redeem"
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["mlflow.note.content"].endswith("promoted: better by far\n")
    assert run.data.metrics["cpu_seconds.tune"] == 3.5
    assert [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs] == [("redeem features", "f00d")]
    ended = run.info.end_time
    registry.register(KNOWN, "redeem", layout, verdict(promote=False), LINEAGE)
    assert client_of(own).get_run(version.run_id).info.end_time == ended


def test_models_and_trials_are_comparable_by_the_same_metric(own: Own):
    registry, layout = own
    version = registry.register(KNOWN, "redeem", layout, verdict(), LINEAGE)
    client = client_of(own)
    run = client.get_run(version.run_id)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert {each.key: each.value for each in model.metrics}["roc_auc"] == 0.9
    assert model.params["model"] == "logistic"
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert [each.data.metrics["roc_auc"] for each in children if each.info.status == "FINISHED"] == [0.8]


def test_params_are_those_that_were_set_and_that_a_model_depends_on(shared: Shared):
    params = client_of(shared).get_run(shared[2].run_id).data.params
    assert not [name for name in params if name.startswith(("gate.", "rollout.", "schedule.", "retrain.", "monitor."))]
    assert params["tune.n_trials"] == str(KNOWN.section("redeem").tune.n_trials)
    assert "tune.workers" not in params, "a default that nobody set"


def test_figures_lie_in_the_run_of_their_version(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(shared[1].root)
    (tmp_path / "roc.svg").write_text("<svg/>")
    shared[0].log_figures(shared[2].problem, shared[2].version, tmp_path)
    assert [each.path for each in client_of(shared).list_artifacts(shared[2].run_id, "figures")] == ["figures/roc.svg"]
    with pytest.raises(ModelError, match="no such version is registered"):
        shared[0].log_figures(shared[2].problem, 99, tmp_path)


def test_a_registry_that_could_not_be_made_is_made_when_there_is_space(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk / "cache"))
    file = small_disk / "var" / "mlflow.db"
    store = partial(MlflowStore, f"sqlite:///{file}", str(small_disk / "artifacts"), small_disk)
    for _ in range(2):
        with pytest.raises(ModelError, match="database or disk is full"):
            store()
        assert not file.exists(), "half of the tables are no database"
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert store().versions("dear") == []
