"""`make bench-serve`: Evergreen's server, MLflow's, BentoML and MLServer with the same model, rows and machine, in turn.

    make bench-serve                                    all systems: about ten minutes on an idle machine
    python -m bench.serve --project DIR --systems evergreen empty --seconds 5

The model is the champion of `--problem` in a trained project (`make demo`), of which the bench makes a copy. Each system is one
server process, set up by its documentation, in its own environment (created under .venv-bench on first use). Before the timing,
its predictions are compared with the pipeline's. Load: wrk, 32 connections, one row per request. Then, for Evergreen only, a
recommender under open-loop load; one request in ten is a purchase.
"""

import argparse
import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.environments import python
from bench.load import HOST, Client, Load, Pace, running, wrk

ROOT = Path(__file__).parents[1]
RIVALS = ROOT / "bench" / "rivals"
PORT = 18440
GAP = 1e-6
"""Largest accepted difference from the pipeline's predictions."""
CHECKED = 50
"""Rows that are compared."""
WARM_SECONDS = 5.0
ASKED_PER_SECOND, NEW_EVENTS = 200, 10
"""Recommender: requests per second, and one purchase per this many requests."""
log = logging.getLogger("bench")


@dataclass(frozen=True)
class Task:
    """The model and rows that all systems serve."""

    project: Path
    problem: str
    model: Path
    """The MLflow model folder of the champion."""
    rows: Sequence[Mapping[str, Any]]
    """Rows of features as JSON values, none missing."""
    probabilities: np.ndarray
    """The pipeline's probability of the last class for each row."""
    folder: Path


@dataclass(frozen=True)
class System:
    """A server of the model. `body`: a row in its format; `probability`: reads the probability from its response."""

    start: Callable[[Task], Any]
    """Context manager that runs it on PORT."""
    path: str
    body: Callable[[Mapping[str, Any]], Any]
    probability: Callable[[Any], float] | None


MODEL_NEEDS = ("scikit-learn", "lightgbm", "skops", "pandas", "numpy", "polars", "pyarrow", "pydantic", "ruamel.yaml")
"""Packages that load the pipeline; each environment gets the versions that trained it."""


def requirements(*named: str) -> tuple[str, ...]:
    return (*named, *(f"{each}=={installed(each)}" for each in MODEL_NEEDS))


def read(project: Path, problem: str, folder: Path) -> Task:
    """A copy of the project in `folder`, its champion and rows to send. Exits if there is none."""
    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    from evergreen.flows import settings
    from evergreen.tasks.core.paths import Layout

    for name in [each for each in os.environ if each.startswith("EVERGREEN_")]:
        del os.environ[name]  # use only the copy
    if not (project / "var" / "mlflow.db").exists():
        raise SystemExit(f"{project}: there is no trained project; run make demo, or name one with --project")
    copy = folder / "project"
    copy.mkdir()
    shutil.copy(project / "params.yaml", copy)
    for part in ("data", "models", "var"):
        shutil.copytree(project / part, copy / part, ignore=shutil.ignore_patterns("*.lock", "prefect", "serving", "spool"))
    registry = settings.registry(Layout(copy))
    champion = registry.version(problem, "champion")
    if champion is None:
        raise SystemExit(f"{project}: {problem} has no champion; run make demo, or name a project with --project")
    model = registry.load(problem, champion.version)
    table = pl.read_parquet(copy / "data" / "features" / problem / "rows.parquet")
    names = json.loads((copy / "models" / problem / "model" / "model.json").read_text())["features"]
    rows = table.select(names).drop_nulls().tail(200)
    probabilities = np.asarray(model.predict_proba(rows.to_pandas()))[:, -1]
    address = settings.read(Layout(copy)).mlflow_uri
    source = MlflowClient(address, address).get_model_version_download_uri(problem, str(champion.version))
    saved = download_artifacts(str(copy / source), dst_path=str(folder), tracking_uri=address)
    return Task(copy, problem, Path(saved), rows.to_dicts(), probabilities, folder)


@contextmanager
def evergreen(task: Task) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "evergreen.flows.cli.main",
        "serve",
        "--root",
        str(task.project),
        "--port",
        str(PORT),
        "--workers",
        "1",
    ]
    with running(command, ROOT, PORT, "/ready"):
        yield


@contextmanager
def empty(task: Task) -> Iterator[None]:
    """The same HTTP server and options with an application that returns {}."""
    options = ["--loop", "uvloop", "--http", "httptools", "--ws", "none", "--lifespan", "off", "--no-access-log"]
    command = [sys.executable, "-m", "uvicorn", "bench.rivals.empty:app", "--host", HOST, "--port", str(PORT), *options]
    with running([*command, "--no-server-header"], ROOT, PORT, "/"):
        yield


@contextmanager
def mlflow(task: Task) -> Iterator[None]:
    """`mlflow models serve` of the registered model, with probabilities instead of classes."""
    environment = python("mlflow", requirements(f"mlflow=={installed('mlflow')}"))
    copy = task.folder / "mlflow"
    if not copy.exists():
        shutil.copytree(task.model, copy)
        about = (copy / "MLmodel").read_text()
        (copy / "MLmodel").write_text(about.replace("predict_fn: predict\n", "predict_fn: predict_proba\n"))
    command = [str(environment.with_name("mlflow")), "models", "serve", "-m", str(copy), "--env-manager", "local"]
    with _rival(environment, [*command, "-h", HOST, "-p", str(PORT)], task.folder, "/ping"):
        yield


@contextmanager
def bentoml(task: Task) -> Iterator[None]:
    environment = python("bentoml", requirements("bentoml==1.4.39"))
    command = [str(environment.with_name("bentoml")), "serve", "bento:Model", "--working-dir", str(RIVALS), "--host", HOST]
    file = str(task.model / "model.skops")
    with _rival(environment, [*command, "--port", str(PORT)], task.folder, "/readyz", MODEL=file, BENTOML_DO_NOT_TRACK="True"):
        yield


@contextmanager
def mlserver(task: Task) -> Iterator[None]:
    environment = python("mlserver", requirements("mlserver==1.7.1", "mlserver-sklearn==1.7.1"))
    folder = task.folder / "mlserver"
    folder.mkdir(exist_ok=True)
    lay_out = [str(environment), str(RIVALS / "ml_server.py"), str(task.model / "model.skops"), str(folder), str(PORT)]
    subprocess.run(lay_out, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    with _rival(environment, [str(environment.with_name("mlserver")), "start", str(folder)], folder, "/v2/models/model/ready"):
        yield


def _rival(environment: Path, command: Sequence[str], cwd: Path, ready: str, **more: str) -> Any:
    """With its own programs first in PATH, and our pipeline classes importable."""
    path = f"{environment.parent}:{os.environ['PATH']}"
    return running(command, cwd, PORT, ready, PYTHONPATH=str(ROOT), PATH=path, MLFLOW_DISABLE_TELEMETRY="true", **more)


def _split(row: Mapping[str, Any]) -> Any:
    return {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}


def _tensors(row: Mapping[str, Any]) -> Any:
    def tensor(name: str, value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            return {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value], "parameters": {"content_type": "str"}}
        return {"name": name, "shape": [1, 1], "datatype": "FP64", "data": [value]}

    inputs = [tensor(name, value) for name, value in row.items()]
    return {"parameters": {"content_type": "pd"}, "inputs": inputs, "outputs": [{"name": "predict_proba"}]}


def _last_probability(response: Mapping[str, Any]) -> float:
    return float(response[[name for name in response if name.startswith("probability_")][-1]])


def systems(problem: str) -> dict[str, System]:
    return {
        "evergreen": System(evergreen, f"/v1/predict/{problem}", dict, _last_probability),
        "empty": System(empty, "/", dict, None),
        "mlflow": System(mlflow, "/invocations", _split, lambda response: response["predictions"][0][-1]),
        "bentoml": System(bentoml, "/predict", lambda row: {"rows": [row]}, lambda response: response[0]),
        "mlserver": System(mlserver, "/v2/models/model/infer", _tensors, lambda response: response["outputs"][0]["data"][-1]),
    }


def measure(system: System, task: Task, seconds: float) -> Pace:
    """Start, compare, warm up, time. Raises RuntimeError if a prediction differs from the pipeline's."""
    bodies = [json.dumps(system.body(row)).encode() for row in task.rows]
    with system.start(task):
        if system.probability is not None:
            asyncio.run(_compare(system, bodies[:CHECKED], task.probabilities))
        wrk(PORT, system.path, bodies, WARM_SECONDS)
        return wrk(PORT, system.path, bodies, seconds)


async def _compare(system: System, bodies: Sequence[bytes], probabilities: np.ndarray) -> None:
    assert system.probability is not None
    client = Client(PORT)
    for body, probability in zip(bodies, probabilities, strict=False):
        reply = await client.post(system.path, body)
        if reply.status != 200:
            raise RuntimeError(f"{system.path}: status {reply.status}: {reply.body[:300]!r}")
        if abs(gap := system.probability(reply.json()) - probability) > GAP:
            raise RuntimeError(f"{system.path}: a prediction differs from the pipeline's by {gap:.2g}")
    client.close()


def recommend(task: Task, problem: str, seconds: float) -> Pace:
    """Lists of ten for random users; every tenth request is a purchase.

    Each user's list was requested once before: a list is cached until its user buys.
    """
    users, items = _users_and_items(task.project, problem)
    with evergreen(task):
        asyncio.run(_warm_cache(problem, users))
        load = Load(ASKED_PER_SECOND, WARM_SECONDS)
        asyncio.run(_recommend(load, problem, users, items))
        load = Load(ASKED_PER_SECOND, seconds)
        asyncio.run(_recommend(load, problem, users, items))
    return load.pace()


async def _recommend(load: Load, problem: str, users: Sequence[Any], items: Sequence[Any]) -> None:
    client = Client(PORT)
    draw = np.random.default_rng(int(load.seconds))
    user, item = draw.choice(len(users), 100_000), draw.choice(len(items), 100_000)

    async def ask(number: int) -> bool:
        if number % NEW_EVENTS == 0:
            event = {"id": f"bench-{load.seconds:g}-{number}", "user": users[user[number]], "item": items[item[number]]}
            reply = await client.post(f"/v1/events/{problem}", json.dumps({**event, "basket": f"b{number}"}).encode())
            accepted = reply.json().get("accepted")
            if accepted != 1:
                raise RuntimeError(f"an event was not accepted: {reply.status} {reply.body[:300]!r}")
            return False
        reply = await client.post(f"/v1/recommend/{problem}", json.dumps({"users": [users[user[number]]], "k": 10}).encode())
        if reply.status != 200 or not reply.json()["lists"][0]["items"]:
            raise RuntimeError(f"no list: {reply.status} {reply.body[:300]!r}")
        return True

    await load.run(ask)
    client.close()


async def _warm_cache(problem: str, users: Sequence[Any]) -> None:
    client = Client(PORT)
    for user in users:
        await client.post(f"/v1/recommend/{problem}", json.dumps({"users": [user], "k": 10}).encode())
    client.close()


def _users_and_items(project: Path, problem: str) -> tuple[list[Any], list[Any]]:
    """Users, and the items bought most, as JSON values."""
    lines = pl.read_parquet(project / "data" / "features" / problem / "lines.parquet")
    counts = lines.group_by("item").len().sort("len", "item", descending=True)
    return lines["user"].unique().sort().to_list(), counts["item"].head(1000).to_list()


def show(paces: Mapping[str, Sequence[Pace]]) -> None:
    """Print a Markdown table; the mean of systems measured twice. A ratio above one: Evergreen serves more requests."""
    mean = {name: Pace(*np.mean([astuple(each) for each in found], axis=0).tolist()) for name, found in paces.items()}
    ours = mean.get("evergreen")
    log.info("| server | requests/s | p50, ms | p99, ms | Evergreen's throughput |")
    log.info("| --- | --- | --- | --- | --- |")
    for name, pace in mean.items():
        ratio = f"{ours.per_second / pace.per_second:.3g} x" if ours and name != "evergreen" else ""
        log.info("| %s | %.0f | %.2f | %.2f | %s |", name, pace.per_second, pace.p50_ms, pace.p99_ms, ratio)


def main() -> None:
    known = list(systems(""))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--project", type=Path, default=ROOT)
    parser.add_argument("--problem", default="redeem")
    parser.add_argument("--recommender", default="recommend")
    parser.add_argument("--systems", nargs="*", choices=known, default=known)
    parser.add_argument("--seconds", type=float, default=12.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="evergreen bench ") as folder:
        task = read(options.project.resolve(), options.problem, Path(folder))
        paces: dict[str, list[Pace]] = {}
        failed: list[str] = []
        again = [name for name in ("empty", "evergreen") if name in options.systems and len(options.systems) > 1]
        for name in (*options.systems, *again):
            try:
                pace = measure(systems(options.problem)[name], task, options.seconds)
            except (RuntimeError, subprocess.SubprocessError) as error:
                failed.append(f"{name}: {error}")
                log.error("%s", failed[-1])
                continue
            log.info("%-10s %8.0f requests/s  p50 %8.2f ms  p99 %8.2f ms", name, pace.per_second, pace.p50_ms, pace.p99_ms)
            paces.setdefault(name, []).append(pace)
        show(paces)
        if options.recommender and "evergreen" in options.systems:
            try:
                pace = recommend(task, options.recommender, 2 * options.seconds)
            except* (RuntimeError, ConnectionError) as errors:
                failed.append(f"recommend: {errors.exceptions[0]}")
                log.error("%s", failed[-1])
            else:
                numbers = (ASKED_PER_SECOND, NEW_EVENTS, pace.p50_ms, pace.p99_ms)
                log.info("recommend at %d requests/s, one in %d a purchase: p50 %.2f ms, p99 %.2f ms", *numbers)
    if failed:
        raise SystemExit(f"not measured: {len(failed)}")


if __name__ == "__main__":
    main()
