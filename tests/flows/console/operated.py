"""A project in operation, for the tests of the console: two versions of each problem, predictions with labels, a suggestion."""

import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import uvicorn

from evergreen.flows import settings
from evergreen.flows.console import app
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.prediction_rows import Variant
from evergreen.monitoring.ledger.records import Decision, Drift, Window
from evergreen.tasks import problems
from evergreen.tasks.config import loading
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core.paths import Layout
from tests import projects, store
from tests.projects import Deployed

NOW = datetime.now(UTC).replace(microsecond=0)
ROWS = 60


def lay(folder: Path, deployed: Deployed) -> Layout:
    """`dear` with v1 as champion, v2 registered, 60 predictions of yesterday with labels, and a drift alarm; `recommend`
    likewise, without predictions."""
    layout = deployed(folder, ("dear", "recommend"))
    projects.register(layout, "dear", "prior")
    projects.register(layout, "recommend", "popularity")
    houses = pl.read_parquet(layout.root / "data-in" / "houses.parquet").head(ROWS)
    frame = houses.select(
        pl.format("house-{}", pl.int_range(ROWS)).alias("id"),
        pl.format("street {}", pl.int_range(ROWS) % 7).alias("entity"),
        "size", "colour", "built",
        prediction=pl.lit("yes"), probability_no=pl.lit(0.3), probability_yes=pl.lit(0.7),
    )  # fmt: skip
    ledger = settings.ledger(layout)
    ledger.append_frame(
        "dear", 1, frame, at=NOW - timedelta(days=1), key="entity", id="id", features=("size", "colour", "built"),
        outputs=("prediction", "probability_no", "probability_yes"),
    )  # fmt: skip
    labels = [Label(value, id=each) for each, value in zip(frame["id"], houses["dear"], strict=True)]
    ledger.add_labels("dear", labels)
    suggest(layout, NOW)
    plots = layout.report("dear") / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    (plots / "calibration.csv").write_text("series,predicted,observed\nmodel,0.1,0.12\nmodel,0.6,0.55\n")
    return layout


def lay_wide(folder: Path, columns: Sequence[str], rows: int = 120) -> Layout:
    """One problem, `wide`, of numbers in `columns` alone, with v1 as champion and 20 predictions."""
    draw = np.random.default_rng(0)
    frame = pl.DataFrame({name: draw.normal(size=rows).round(3) for name in columns})
    frame = frame.with_columns(target=np.where(frame[:, 0] > 0, "yes", "no"))
    store.project(folder, households=20, weeks=12)
    (folder / "data-in").mkdir(exist_ok=True)
    frame.write_parquet(folder / "data-in" / "wide.parquet")
    features = {"table": "wide", "target": "target", "columns": dict.fromkeys(columns, "number")}
    text = (folder / "params.yaml").read_text().replace("problems:\n", "problems:\n  wide: classification\n", 1)
    text = text.replace("ingest:\n", "ingest:\n  wide: {parquet: data-in/wide.parquet}\n", 1)
    (folder / "params.yaml").write_text(f"{text}\nwide: {json.dumps({'question': 'Wide?', 'features': features})}\n")
    layout, known = Layout(folder), loading.load(folder / "params.yaml")
    built = problems.kind("classification").build({"wide": frame.lazy()}, {}, known.section("wide"), None)
    layout.features("wide").mkdir(parents=True)
    for part, each in built.items():
        each.write_parquet(layout.features("wide") / f"{part}.parquet")
    projects.deploy(layout, "wide", "logistic")
    few = frame.head(20).with_columns(id=pl.format("w-{}", pl.int_range(20)), entity=pl.format("e{}", pl.int_range(20)))
    few = few.with_columns(prediction=pl.lit("yes"), probability_no=pl.lit(0.3), probability_yes=pl.lit(0.7))
    settings.ledger(layout).append_frame(
        "wide", 1, few, at=NOW, key="entity", id="id", features=tuple(columns),
        outputs=("prediction", "probability_no", "probability_yes"),
    )  # fmt: skip
    return layout


def suggest(layout: Layout, at: datetime) -> Decision:
    """A monitoring run that suggests to retrain `dear`."""
    window = Window(
        problem="dear", version=1, since=at - timedelta(days=7), until=at, rows=ROWS, new_labels=ROWS,
        drift=Drift(changes=(), reference_rows=300, alarm=True), performance=None,
    )  # fmt: skip
    reason = "retrain: the last training is 400 days old, of every 90"
    decision = Decision(problem="dear", at=at, retrain=True, trigger="age", reason=reason, window=window)
    return settings.decision_log(layout).record(decision)


def begin_rollout(layout: Layout, problem: str = "dear") -> None:
    """A canary of v2."""
    policy = Rollout(strategy="canary", steps=(0.05, 0.5))
    settings.rollouts(layout).begin(problem, 2, policy, "ann", "promoted: better", {})


def add_lists(layout: Layout, users: int = 60) -> None:
    """Lists of `recommend` made now, v1's and v2's in turn, with the purchases of each user; v2's lists have more hits."""
    ledger, at = settings.ledger(layout), datetime.now(UTC)
    roles: dict[int, Variant] = {1: "champion", 2: "candidate"}
    for version, variant in roles.items():
        chosen = range(version - 1, users, 2)
        items = [["milk", "bread"] if user % 4 else [f"rare {user}", "milk"] for user in chosen]
        frame = pl.DataFrame({"id": [f"list-{user}" for user in chosen], "user": [f"user {user}" for user in chosen]})
        frame = frame.with_columns(items=pl.Series(items))
        ledger.append_frame(
            "recommend", version, frame, at=at, key="user", id="id", features=(), outputs=("items",), variant=variant
        )
    ledger.add_labels("recommend", [Label(["milk"], id=f"list-{user}") for user in range(users)])


@contextmanager
def running(layout: Layout, host: str = "127.0.0.1") -> Iterator[str]:
    """The console of a project in this process; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app.build(layout, host, "ann"), log_config=None))
    bound = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def open_console(layout: Layout, host: str = "127.0.0.1") -> Iterator[httpx.Client]:
    """A visitor of the console; `host`: what it believes to be bound to."""
    with running(layout, host) as url, httpx.Client(base_url=url, follow_redirects=True, timeout=60) as client:
        yield client


def token(client: httpx.Client, path: str = "/problems/dear") -> str:
    """Of the forms of a page."""
    found = re.search(r'name="token" value="([^"]+)"', client.get(path).text)
    assert found
    return found[1]


def post(client: httpx.Client, path: str, **form: str) -> httpx.Response:
    return client.post(path, data={"token": token(client), **form})
