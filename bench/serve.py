"""`make bench-serve`: Evergreen's server beside MLflow's, BentoML and MLServer, on the same model, rows and machine, in turn.

    make bench-serve                                    all: about ten minutes, on a machine that does nothing else
    python -m bench.serve --project DIR --systems evergreen empty --seconds 5

The model is the champion of `--problem` in a project that was trained (`make demo`); the bench works in a copy of it. Each
system is one server process, set up as its documentation says, in an environment of its own (made under .venv-bench when it is
first needed). Before it is timed, its answers are compared with those of the pipeline itself. Load: wrk, 32 connections, one
row per request. Then, of Evergreen alone, a recommender under requests that come at their times, one in ten a new purchase.
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
"""Most that an answer may differ from the pipeline's own."""
CHECKED = 50
"""Rows whose answers are compared."""
WARM_SECONDS = 5.0
ASKED_PER_SECOND, NEW_EVENTS = 200, 10
"""Of the recommender: requests per second, and every how many-th of them is a purchase."""
log = logging.getLogger("bench")


@dataclass(frozen=True)
class Task:
    """What all systems serve."""

    project: Path
    problem: str
    model: Path
    """The MLflow model folder of the champion."""
    rows: Sequence[Mapping[str, Any]]
    """Rows of features as JSON has them, none missing."""
    chances: np.ndarray
    """What the pipeline says of each: the probability of the last class."""
    folder: Path


@dataclass(frozen=True)
class System:
    """A server of the model. `body`: a row as it wants it; `chance`: the probability in its answer."""

    start: Callable[[Task], Any]
    """A context in which it runs on PORT."""
    path: str
    body: Callable[[Mapping[str, Any]], Any]
    chance: Callable[[Any], float] | None


MODEL_NEEDS = ("scikit-learn", "lightgbm", "skops", "pandas", "numpy", "polars", "pyarrow", "pydantic", "ruamel.yaml")
"""What the pipeline needs to be read: in each environment at the versions that made it."""


def requirements(*named: str) -> tuple[str, ...]:
    return (*named, *(f"{each}=={installed(each)}" for each in MODEL_NEEDS))


def read(project: Path, problem: str, folder: Path) -> Task:
    """A copy of the project in `folder`, its champion and rows to ask with. Raises ModelError where there is none."""
    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    from evergreen.flows import settings
    from evergreen.tasks.core.paths import Layout

    for name in [each for each in os.environ if each.startswith("EVERGREEN_")]:
        del os.environ[name]  # nothing but the copy is asked or written
    if not (project / "var" / "mlflow.db").exists():
        raise SystemExit(f"{project}: nothing was trained here; make demo does, or name a project with --project")
    copy = folder / "project"
    copy.mkdir()
    shutil.copy(project / "params.yaml", copy)
    for part in ("data", "models", "var"):
        shutil.copytree(project / part, copy / part, ignore=shutil.ignore_patterns("*.lock", "prefect", "serving", "spool"))
    registry = settings.registry(Layout(copy))
    champion = registry.version(problem, "champion")
    if champion is None:
        raise SystemExit(f"{project}: {problem} has no champion; make demo trains one, or name a project with --project")
    model = registry.load(problem, champion.version)
    table = pl.read_parquet(copy / "data" / "features" / problem / "rows.parquet")
    names = json.loads((copy / "models" / problem / "model" / "model.json").read_text())["features"]
    rows = table.select(names).drop_nulls().tail(200)
    chances = np.asarray(model.predict_proba(rows.to_pandas()))[:, -1]
    address = settings.read(Layout(copy)).mlflow_uri
    source = MlflowClient(address, address).get_model_version_download_uri(problem, str(champion.version))
    saved = download_artifacts(source, dst_path=str(folder), tracking_uri=address)
    return Task(copy, problem, Path(saved), rows.to_dicts(), chances, folder)


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
    """The same HTTP server, with the same options, around an app that says {}."""
    options = ["--loop", "uvloop", "--http", "httptools", "--ws", "none", "--lifespan", "off", "--no-access-log"]
    command = [sys.executable, "-m", "uvicorn", "bench.rivals.empty:app", "--host", HOST, "--port", str(PORT), *options]
    with running([*command, "--no-server-header"], ROOT, PORT, "/"):
        yield


@contextmanager
def mlflow(task: Task) -> Iterator[None]:
    """`mlflow models serve` of the registered model, asked for probabilities in place of classes."""
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
    """Its own programs come first, and the classes of our pipeline are found."""
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


def _last_chance(answer: Mapping[str, Any]) -> float:
    return float(answer[[name for name in answer if name.startswith("probability_")][-1]])


def systems(problem: str) -> dict[str, System]:
    return {
        "evergreen": System(evergreen, f"/v1/predict/{problem}", dict, _last_chance),
        "empty": System(empty, "/", dict, None),
        "mlflow": System(mlflow, "/invocations", _split, lambda answer: answer["predictions"][0][-1]),
        "bentoml": System(bentoml, "/predict", lambda row: {"rows": [row]}, lambda answer: answer[0]),
        "mlserver": System(mlserver, "/v2/models/model/infer", _tensors, lambda answer: answer["outputs"][0]["data"][-1]),
    }


def measure(system: System, task: Task, seconds: float) -> Pace:
    """Start, compare, warm, time. Raises RuntimeError where an answer is another than the pipeline's."""
    bodies = [json.dumps(system.body(row)).encode() for row in task.rows]
    with system.start(task):
        if system.chance is not None:
            asyncio.run(_compare(system, bodies[:CHECKED], task.chances))
        wrk(PORT, system.path, bodies, WARM_SECONDS)
        return wrk(PORT, system.path, bodies, seconds)


async def _compare(system: System, bodies: Sequence[bytes], chances: np.ndarray) -> None:
    assert system.chance is not None
    client = Client(PORT)
    for body, chance in zip(bodies, chances, strict=False):
        reply = await client.post(system.path, body)
        if reply.status != 200:
            raise RuntimeError(f"{system.path}: status {reply.status}: {reply.body[:300]!r}")
        if abs(said := system.chance(reply.json()) - chance) > GAP:
            raise RuntimeError(f"{system.path}: an answer is {said:.2g} away from the pipeline's")
    client.close()


def recommend(task: Task, problem: str, seconds: float) -> Pace:
    """Lists of ten, each for another user; every tenth request is a purchase of one of them.

    Everybody was asked for once before: a list is kept until its user buys.
    """
    users, items = _shop(task.project, problem)
    with evergreen(task):
        asyncio.run(_ask_everybody(problem, users))
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


async def _ask_everybody(problem: str, users: Sequence[Any]) -> None:
    client = Client(PORT)
    for user in users:
        await client.post(f"/v1/recommend/{problem}", json.dumps({"users": [user], "k": 10}).encode())
    client.close()


def _shop(project: Path, problem: str) -> tuple[list[Any], list[Any]]:
    """Users and items that the newest weeks know, as JSON has them."""
    lines = pl.read_parquet(project / "data" / "features" / problem / "lines.parquet")
    counts = lines.group_by("item").len().sort("len", "item", descending=True)
    return lines["user"].unique().sort().to_list(), counts["item"].head(1000).to_list()


def show(paces: Mapping[str, Sequence[Pace]]) -> None:
    """A table in Markdown. Of what was measured twice the mean; a ratio above one: Evergreen answers more."""
    mean = {name: Pace(*np.mean([astuple(each) for each in found], axis=0).tolist()) for name, found in paces.items()}
    ours = mean.get("evergreen")
    log.info("| server | requests/s | p50, ms | p99, ms | Evergreen answers ... as many |")
    log.info("| --- | --- | --- | --- | --- |")
    for name, pace in mean.items():
        ratio = f"{ours.per_second / pace.per_second:.3g} x" if ours and name != "evergreen" else ""
        log.info("| %s | %.0f | %.2f | %.2f | %s |", name, pace.per_second, pace.p50_ms, pace.p99_ms, ratio)


def main() -> None:
    known = list(systems(""))
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("--project", type=Path, default=ROOT)
    given.add_argument("--problem", default="redeem")
    given.add_argument("--recommender", default="recommend")
    given.add_argument("--systems", nargs="*", choices=known, default=known)
    given.add_argument("--seconds", type=float, default=12.0)
    asked = given.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="evergreen bench ") as folder:
        task = read(asked.project.resolve(), asked.problem, Path(folder))
        paces: dict[str, list[Pace]] = {}
        failed: list[str] = []
        again = [name for name in ("empty", "evergreen") if name in asked.systems and len(asked.systems) > 1]
        for name in (*asked.systems, *again):
            try:
                pace = measure(systems(asked.problem)[name], task, asked.seconds)
            except (RuntimeError, subprocess.SubprocessError) as error:
                failed.append(f"{name}: {error}")
                log.error("%s", failed[-1])
                continue
            log.info("%-10s %8.0f requests/s  p50 %8.2f ms  p99 %8.2f ms", name, pace.per_second, pace.p50_ms, pace.p99_ms)
            paces.setdefault(name, []).append(pace)
        show(paces)
        if asked.recommender and "evergreen" in asked.systems:
            try:
                pace = recommend(task, asked.recommender, 2 * asked.seconds)
            except* (RuntimeError, ConnectionError) as errors:
                failed.append(f"recommend: {errors.exceptions[0]}")
                log.error("%s", failed[-1])
            else:
                about = (ASKED_PER_SECOND, NEW_EVENTS, pace.p50_ms, pace.p99_ms)
                log.info("recommend at %d requests/s, one in %d a purchase: p50 %.2f ms, p99 %.2f ms", *about)
    if failed:
        raise SystemExit(f"not measured: {len(failed)}")


if __name__ == "__main__":
    main()
