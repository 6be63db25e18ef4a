"""`make soak`: mixed load on a server with two workers, during rollouts, a rollback and every fault of bench.soak_faults.

    make soak                                      twenty minutes, with PostgreSQL if it is installed
    python -m bench.soak --seconds 120 --rate 40   shorter, and gentler
    python -m bench.soak --sqlite                  with a database in a file

It uses a small project in a temporary folder. Rows, lists, purchases, labels, odd rows and invalid requests are sent at fixed
times (open loop). Meanwhile versions come and go, processes are killed, the disk of the spool fills up, the database is locked,
or crashes and comes back (PostgreSQL), the clock is stepped (with a C compiler), purchases come in floods, and a hostile
client sends endless headers. Afterwards each prediction is compared with the batch score of its version, and each acknowledged
prediction, purchase and label must be stored once. The disk fills up where this user may mount a file system.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import sqlalchemy as sa

from bench import soak_faults
from bench.load import Client, Load
from bench.soak_faults import Clock, Disk, Lock
from evergreen.flows import settings
from evergreen.monitoring.ledger import refused_rows, schema, spool
from evergreen.monitoring.ledger.schema import LABELS
from evergreen.serving.event_log import EVENTS
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.postgres import Postgres, programs
from tests.serving.server import Server

PROBLEM, SHOP = "redeem", "recommend"
WORKERS = 2
GAP = 1e-5
"""Largest accepted difference between a prediction and the batch score of its version."""
SETTLED = 3.0
"""Seconds after a rollback until the old version must be gone, and after a kill until connections must hold."""
FLAT_MB = 2.0
"""Largest accepted growth of a worker towards the end, in megabytes per minute."""
WARM_SECONDS, ENOUGH = 60.0, 30
"""Warm-up of a worker in seconds, and the number of measurements after it that a slope needs."""
CANARY = Rollout(strategy="canary", steps=(0.5,), step_minutes=600, timeout_hours=100)
PLAN = (
    (0.08, "rollout of v2 begins"),
    (0.16, "v2 is promoted"),
    (0.20, "rollout of v3 begins"),
    (0.28, "v3 is aborted"),
    (0.32, "rollout of v4 begins"),
    (0.38, "v4 is promoted"),
    (0.44, "v4 is rolled back"),
    (0.48, "a client sends endless headers"),
    (0.52, "a worker is killed"),
    (0.54, "the drainer is killed"),
    (0.56, "the disk is full"),
    (0.59, "a worker is killed on the full disk"),
    (0.62, "the disk has space"),
    (0.65, "the database is locked"),
    (0.69, "the database is free"),
    (0.71, "the clock is 1 hour back"),
    (0.73, "the clock is 26 hours ahead"),
    (0.75, "the clock is right"),
    (0.77, "the database is gone"),
    (0.79, "the database is back"),
)
"""Fraction of the time -> what happens."""
CALM = 0.83
"""Fraction of the time after which memory must not grow."""
KINDS = ("predict",) * 9 + ("scoring",) * 3 + ("recommend",) * 3 + ("events",) * 2 + ("labels",) * 2 + ("invalid", "odd")
"""Of twenty-one requests."""
FLOODS, FLOOD = 6, 400
"""Floods of purchases, and the purchases of each, in one request."""
MOST_MB = 700.0
"""Largest accepted memory of a worker."""
MOST_SECONDS = 30.0
"""Longest accepted wait for a response, also while the database is locked."""
INVALID = (
    (f"/v1/predict/{PROBLEM}", b"{"),
    (f"/v1/predict/{PROBLEM}", b'{"nosuch": 1}'),
    (f"/v1/predict/{PROBLEM}", b"[" * 5000),
    ("/v1/predict/nosuch", b"{}"),
    (f"/v2/models/{PROBLEM}/infer", b'{"inputs": 3}'),
    (f"/v1/recommend/{SHOP}", b'{"users": [7], "k": -1}'),
    (f"/v1/events/{SHOP}", b'{"user": null}'),
    (f"/v1/labels/{PROBLEM}", b'{"id": 3}'),
)
log = logging.getLogger("bench")


@dataclass
class Seen:
    """Responses and acknowledgements."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    predictions: list[tuple[float, str, int, int, float]] = field(default_factory=list)
    """Time, id, version, row number and probability."""
    events: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    broken: list[float] = field(default_factory=list)
    """Times when a connection ended before its response."""
    wrong: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """Ids of predictions for odd rows."""
    failures: list[tuple[float, str, int, str]] = field(default_factory=list)
    """Time, kind, status and error of responses of status 500 and above."""
    memory: list[tuple[float, int, float]] = field(default_factory=list)
    """Time, process id and megabytes of a worker."""
    hostile: int = 0
    """Connections with endless headers that the server closed."""
    happened: dict[str, float] = field(default_factory=dict)


class Soak:
    """One run against a server on `port`."""

    def __init__(
        self,
        layout: Layout,
        server: Server,
        rows: Sequence[Mapping[str, Any]],
        users: Sequence[Any],
        items: Any,
        disk: Disk,
        clock: Clock,
        postgres: Postgres | None,
    ) -> None:
        self.layout, self.server, self.rows, self.users, self.items = layout, server, rows, users, items
        self.client, self.seen = Client(int(server.url.rpartition(":")[2])), Seen()
        self._draw = np.random.default_rng(7)
        self._registry, self._rollouts = settings.registry(layout), settings.rollouts(layout)
        self._disk, self._lock, self._clock, self._postgres = disk, Lock(layout), clock, postgres
        self.load = Load(1.0, 0.0)

    async def run(self, seconds: float, rate: float) -> None:
        plan = asyncio.create_task(self._follow(seconds))
        watch, floods = asyncio.create_task(self._watch()), asyncio.create_task(self._flood(seconds))
        self.load = Load(rate, seconds)
        try:
            await self.load.run(self._ask)
            await asyncio.gather(plan, floods)
        finally:
            watch.cancel()
            self.client.close()

    async def _ask(self, number: int) -> bool:
        kind = KINDS[int(self._draw.integers(len(KINDS)))]
        ask: Callable[[int], Any] = getattr(self, f"_{kind}")
        try:
            await ask(number)
        except (ConnectionError, OSError):
            self.seen.broken.append(time.monotonic())
        return True

    async def _post(self, kind: str, path: str, body: Any) -> Any:
        reply = await self.client.post(path, body if isinstance(body, bytes) else json.dumps(body).encode())
        self.seen.statuses[kind, reply.status] += 1
        if reply.status >= 500:
            self.seen.failures.append((time.monotonic(), kind, reply.status, reply.body[:200].decode(errors="replace")))
        return reply.json() if reply.status == 200 else None

    async def _predict(self, number: int) -> None:
        place = number % len(self.rows)
        if response := await self._post("predict", f"/v1/predict/{PROBLEM}", self.rows[place]):
            self._note(response["id"], response["version"], place, response["probability_1"])

    async def _scoring(self, number: int) -> None:
        places = [(number + more) % len(self.rows) for more in range(5)]
        body = {"dataframe_records": [self.rows[each] for each in places]}
        if response := await self._post("scoring", f"/v1/models/{PROBLEM}/invocations", body):
            for place, id_, version, chance in zip(
                places, response["ids"], response["versions"], response["probability_1"], strict=True
            ):
                self._note(id_, version, place, chance)

    def _note(self, id_: str, version: int, place: int, chance: float) -> None:
        self.seen.predictions.append((time.monotonic(), id_, version, place, chance))

    async def _recommend(self, number: int) -> None:
        user = self.users[number % len(self.users)]
        response = await self._post("recommend", f"/v1/recommend/{SHOP}", {"users": [user], "k": 5})
        if response and (response["lists"][0]["user"] != user or not response["lists"][0]["items"]):
            self.seen.wrong.append(f"the list of {user}: {response}")

    async def _events(self, number: int) -> None:
        """At least once: repeated with the same id if the response did not arrive."""
        event = {
            "id": f"soak-{number}",
            "user": self.users[number % len(self.users)],
            "item": self.items[number % len(self.items)],
        }
        for _ in range(5):
            with suppress(ConnectionError, OSError):
                response = await self._post("events", f"/v1/events/{SHOP}", {**event, "basket": f"b{number}"})
                if response and response["accepted"] + response["duplicate"] == 1:
                    self.seen.events.append(event["id"])
                return
            self.seen.broken.append(time.monotonic())

    async def _labels(self, number: int) -> None:
        """For an earlier prediction, or for an unknown id."""
        known = self.seen.predictions
        id_ = known[int(self._draw.integers(len(known)))][1] if known and number % 10 else f"unknown-{number}"
        if await self._post("labels", f"/v1/labels/{PROBLEM}", {"id": id_, "value": number % 2}):
            self.seen.labels.append(id_)

    async def _invalid(self, number: int) -> None:
        path, body = INVALID[number % len(INVALID)]
        if await self._post("invalid", path, body) is not None:
            self.seen.wrong.append(f"{path} took {body[:40]!r}")

    async def _odd(self, number: int) -> None:
        """A row with an odd value, or a label or purchase at the edge of the calendar: accepted or rejected."""
        edge = soak_faults.EDGES[number % len(soak_faults.EDGES)]
        if number % 3 == 0:
            row = soak_faults.odd_row(number, self.rows[number % len(self.rows)])
            response = await self._post("odd", f"/v1/predict/{PROBLEM}", row)
            if response:
                self.seen.odd.append(response["id"])
        elif number % 3 == 1:
            await self._post("odd", f"/v1/labels/{PROBLEM}", {"entity": "1", "at": edge, "value": 1, "known_at": edge})
        else:
            event = {"user": self.users[0], "item": self.items[0], "time": edge, "id": f"edge-{number}"}
            await self._post("odd", f"/v1/events/{SHOP}", event)

    async def _flood(self, seconds: float) -> None:
        for flood in range(FLOODS):
            await asyncio.sleep(seconds / (FLOODS + 1))
            ids = [f"flood-{flood}-{number}" for number in range(FLOOD)]
            events = [
                {
                    "id": id_,
                    "user": self.users[number % len(self.users)],
                    "item": self.items[number % len(self.items)],
                    "basket": id_,
                }
                for number, id_ in enumerate(ids)
            ]
            with suppress(ConnectionError, OSError):
                response = await self._post("flood", f"/v1/events/{SHOP}", events)
                if response and response["accepted"] + response["duplicate"] == FLOOD:
                    self.seen.events += ids

    async def _follow(self, seconds: float) -> None:
        began = time.monotonic()
        for part, what in PLAN:
            await asyncio.sleep(max(0.0, began + part * seconds - time.monotonic()))
            if "headers" in what:
                self.seen.hostile = await soak_faults.be_hostile(int(self.server.url.rpartition(":")[2]))
            else:
                await asyncio.to_thread(self._act, what)
            self.seen.happened[what] = time.monotonic()
            log.info("%5.0f s  %s", time.monotonic() - began, what)
        await asyncio.sleep(max(0.0, began + CALM * seconds - time.monotonic()))
        self.seen.happened["calm"] = time.monotonic()

    def _act(self, what: str) -> None:
        if "begins" in what:
            self._rollouts.begin(PROBLEM, int(what.split()[2][1:]), CANARY, "soak", "soak")
        elif "promoted" in what:
            self._rollouts.promote(self._registry, PROBLEM, "soak", "soak")
        elif "aborted" in what:
            self._rollouts.abort(PROBLEM, "soak", "soak")
        elif "rolled back" in what:
            settings.deployments(self.layout).rollback(self._registry, PROBLEM, None, "soak", "soak")
        elif "drainer" in what:
            soak_faults.kill_drainer(self.server.process.pid)
        elif "worker" in what:
            os.kill(self.server.workers()[0], signal.SIGKILL)
        elif "clock" in what:
            self._clock.step(-1 if "back" in what else 26 if "ahead" in what else 0)
        else:
            acts: Mapping[str, Callable[[], None]] = {
                "the disk is full": self._disk.fill,
                "the disk has space": self._disk.free,
                "the database is locked": self._lock.take,
                "the database is free": self._lock.release,
                "the database is gone": self._postgres.stop if self._postgres else _do_nothing,
                "the database is back": self._postgres.start if self._postgres else _do_nothing,
            }
            acts[what]()

    async def _watch(self) -> None:
        while True:
            for pid in await asyncio.to_thread(self.server.workers):
                with suppress(psutil.Error):
                    self.seen.memory.append((time.monotonic(), pid, psutil.Process(pid).memory_info().rss / 2**20))
            await asyncio.sleep(1.0)


def _do_nothing() -> None:
    """SQLite cannot be gone."""


def expected(layout: Layout, rows: pl.DataFrame, versions: int) -> dict[int, np.ndarray]:
    """Version -> its batch score of each row, by the registered pipeline."""
    registry = settings.registry(layout)
    return {
        each: np.asarray(registry.load(PROBLEM, each).predict_proba(rows.to_pandas()))[:, 1] for each in range(1, versions + 1)
    }


def verdicts(soak: Soak, scores: Mapping[int, np.ndarray]) -> list[tuple[bool, str]]:
    """Each claim, and whether it holds."""
    seen = soak.seen
    gaps = [abs(scores[version][place] - chance) for _, _, version, place, chance in seen.predictions]
    by_version = Counter(version for _, _, version, *_ in seen.predictions)
    at = seen.happened
    rolled, kills = at["v4 is rolled back"], [at[each] for each in at if "worker is killed" in each]
    stale = sum(version == 4 and moment > rolled + SETTLED for moment, _, version, *_ in seen.predictions)

    def is_locked(moment: float) -> bool:
        times = ("the database is locked", "the database is free"), ("the database is gone", "the database is back")
        return any(at[since] - SETTLED <= moment <= at[until] + MOST_SECONDS for since, until in times)

    unexpected = [each for each in seen.failures if each[2] != 503 or not is_locked(each[0])]
    failed = Counter((kind, status) for _, kind, status, _ in unexpected)
    after = Counter(
        max((each for each in at if at[each] <= moment), key=at.__getitem__, default="start") for moment, *_ in unexpected
    )
    refused = sum(status == 503 and is_locked(moment) for moment, _, status, _ in seen.failures)
    rejected = {key: count for key, count in seen.statuses.items() if 400 <= key[1] < 500 and key[0] not in ("invalid", "odd")}
    away = [moment for moment in seen.broken if not any(each - 1 <= moment <= each + SETTLED for each in kills)]
    engine = sa.create_engine(settings.read(soak.layout).database)
    with engine.connect() as connection:
        events = Counter(connection.execute(sa.select(EVENTS.c.id)).scalars())
        labels = set(connection.execute(sa.select(LABELS.c.id)).scalars())
        ids = sa.select(schema.IDS.c.id, sa.func.count()).group_by(schema.IDS.c.id)
        stored = dict(connection.execute(ids).tuples().all())
    written = Counter(settings.ledger(soak.layout).read(PROBLEM, features=False, labels=False).rows["id"].to_list())
    acknowledged = [*(id_ for _, id_, *_ in seen.predictions), *seen.odd]
    missing = [id_ for id_ in acknowledged if written[id_] == 0]
    twice = [id_ for id_ in acknowledged if written[id_] > 1 or stored.get(id_, 0) > 1]
    lost, aside = spool.Spool(settings.spool_folder(soak.layout)).lost(), refused_rows.count(settings.spool_folder(soak.layout))
    waits = np.quantile(soak.load.latencies, (0.5, 0.99, 1.0))
    growth, most = slopes(seen), max((size for *_, size in seen.memory), default=0.0)
    champion, (named, *_) = settings.deployments(soak.layout).champion(PROBLEM), seen.predictions[-1:]
    return [
        (max(gaps) <= GAP and not seen.wrong, f"{len(gaps)} predictions, by version {dict(sorted(by_version.items()))}: "
         f"at most {max(gaps):.1e} from the batch score; {len(seen.wrong)} otherwise wrong {seen.wrong[:2]}"),
        (not stale and champion == named[2], f"{stale} predictions of v4 later than {SETTLED:g} s after its rollback; "
         f"the record's champion v{champion} answers at the end"),
        (all(events[each] == 1 for each in seen.events), f"{len(seen.events)} purchases acknowledged, each stored once"),
        (labels >= set(seen.labels), f"{len(set(seen.labels))} labels acknowledged, {len(set(seen.labels) - labels)} lost"),
        (len(missing) <= lost + aside and not twice,
         f"{len(acknowledged)} predictions acknowledged, {len(twice)} stored twice, "
         f"{len(missing)} not stored: {lost} counted as lost by killed workers, {aside} set aside with a reason"),
        (not failed, f"responses of status 500 and above: {dict(failed) or 'none'} {dict(after) or ''}; "
         f"{refused} of 503 while the database is locked or gone"),
        (not rejected, f"valid requests that were rejected: {rejected or 'none'}"),
        (not away, f"{len(seen.broken)} connections broke, {len(away)} of them not because of a kill"),
        (seen.hostile == soak_faults.HOSTILE_CONNECTIONS,
         f"{seen.hostile} of {soak_faults.HOSTILE_CONNECTIONS} connections with endless headers closed"),
        (waits[2] <= MOST_SECONDS,
         "a response took {:.0f} ms (median), {:.0f} ms (p99), {:.0f} ms (most)".format(*(1000 * waits))),
        (most <= MOST_MB and all(each <= FLAT_MB for each in growth.values()),
         f"memory of a worker: at most {most:.0f} MB; MB per minute towards the end: "
         + (", ".join(f"{each:+.2f}" for each in growth.values()) or "not enough measurements")),
    ]  # fmt: skip


def _log_failures(seen: Seen) -> None:
    """Each error with its number, and when it came first and last, in seconds after what had happened before."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for moment, kind, _, error in seen.failures:
        earlier = [each for each in seen.happened if seen.happened[each] <= moment]
        last = max(earlier, key=seen.happened.__getitem__, default="start")
        found.setdefault((last, kind, error), []).append(moment - seen.happened.get(last, moment))
    for (last, kind, error), times in found.items():
        log.info("%d of %s, %.1f to %.1f s after %s: %s", len(times), kind, min(times), max(times), last, error)


def slopes(seen: Seen) -> dict[int, float]:
    """Worker -> growth in megabytes per minute after its warm-up and the last event (least squares)."""
    born: dict[int, float] = {}
    late: dict[int, list[tuple[float, float]]] = {}
    for at, pid, size in seen.memory:
        if at >= max(seen.happened["calm"], born.setdefault(pid, at) + WARM_SECONDS):
            late.setdefault(pid, []).append((at / 60, size))
    return {pid: _slope(found) for pid, found in late.items() if len(found) >= ENOUGH}


def _slope(points: Sequence[tuple[float, float]]) -> float:
    x, y = np.transpose(points)
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--sqlite", action="store_true", help="a database in a file, although PostgreSQL is installed")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    log.setLevel(logging.INFO)
    projects.forget_settings()
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-soak-") as folder,
        tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as database,
    ):
        postgres = None if options.sqlite or programs() is None else Postgres(Path(database))
        if postgres:
            postgres.start()
            os.environ["EVERGREEN_DATABASE"] = postgres.address
        try:
            _soak(Path(folder), options.seconds, options.rate, postgres)
        finally:
            if postgres:
                with suppress(subprocess.CalledProcessError):
                    postgres.stop()


def _soak(folder: Path, seconds: float, rate: float, postgres: Postgres | None) -> None:
    """Prepare a project, run the load and print the verdicts. Raises SystemExit if one does not hold."""
    layout = projects.lay_deployed(folder, (PROBLEM, SHOP))
    for strength in (0.01, 0.1, 0.3):
        projects.register(layout, PROBLEM, "logistic", C=strength)
    names = json.loads((layout.model(PROBLEM) / "model.json").read_text())["features"]
    rows = pl.read_parquet(layout.features(PROBLEM) / "rows.parquet").select(names).tail(200)
    lines = pl.read_parquet(layout.features(SHOP) / "lines.parquet")
    users, items = lines["user"].unique().sort().to_list(), lines["item"].unique().sort().to_list()
    as_json = [{name: None if value != value else value for name, value in row.items()} for row in rows.to_dicts()]
    disk, clock = Disk(layout), Clock(folder)
    try:
        server = Server(layout, "--workers", str(WORKERS), seconds=400, env={**os.environ, **clock.environment})
        try:
            soak = Soak(layout, server, as_json, users, items, disk, clock, postgres)
            asyncio.run(soak.run(seconds, rate))
        finally:
            disk.free()
            server.stop()
        found = verdicts(soak, expected(layout, rows, 4))
    finally:
        disk.unmount()
    log.info(
        "%g requests a second for %g s; database %s; disk %s; clock %s",
        rate, seconds, "PostgreSQL" if postgres else "SQLite",
        "filled" if disk.mounted else "not filled: no file system may be mounted",
        "stepped" if clock.environment else "not stepped: no C compiler",
    )  # fmt: skip
    log.info("| holds | what |\n| --- | --- |")
    for fine, line in found:
        log.info("| %s | %s |", "yes" if fine else "NO", line)
    _log_failures(soak.seen)
    log.info(
        "requests: %s",
        ", ".join(f"{kind} {status}: {count}" for (kind, status), count in sorted(soak.seen.statuses.items())),
    )
    if not all(fine for fine, _ in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
