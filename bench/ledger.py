"""`make bench-ledger`: a ledger of many predictions: a day's monitoring, cohorts, retention and what other writers wait for.

    python -m bench.ledger                     5 million predictions of 20 features over 14 months, in a quarter of an hour
    python -m bench.ledger 20                  20 million
    python -m bench.ledger 5 --database FILE   in a file that stays

Figures go to bench/results/ledger.csv. Half of the predictions have a label by id, four weeks later.
"""

import argparse
import logging
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa
import sqlalchemy.event
from pydantic import TypeAdapter

from evergreen.monitoring.ledger import blocks
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.schema import LABELS
from evergreen.monitoring.ledger.writing import write_block
from evergreen.monitoring.performance.measurement import cohort_scorer
from evergreen.tasks import problems
from evergreen.tasks.config.params import Problem

log = logging.getLogger("bench")

RESULTS = Path(__file__).parent / "results" / "ledger.csv"
PROBLEM = "churn"
DAYS = 420
RETENTION = timedelta(days=400)
BLOCK, ENTITIES = 5_000, 200_000
DELAY = 28 * 86_400 * 1_000_000
"""Microseconds from a prediction to its label."""
FEATURES = [*(f"n{place:02}" for place in range(16)), *(f"c{place}" for place in range(4))]
OUTPUTS = ["prediction", "probability_0", "probability_1"]


def draw(random: np.random.Generator, rows: int) -> tuple[pl.DataFrame, list[str]]:
    """Features and outputs, and the labels."""
    numbers = {name: random.normal(size=rows).round(4) for name in FEATURES[:16]}
    texts = {name: random.choice(list("abcdefgh"), rows) for name in FEATURES[16:]}
    chance = 1 / (1 + np.exp(1 - numbers["n00"] - numbers["n01"]))
    outputs = {"prediction": (chance > 0.5).astype(int), "probability_0": 1 - chance, "probability_1": chance}
    return pl.DataFrame({**numbers, **texts, **outputs}), [str(each) for each in (random.random(rows) < chance).astype(int)]


def fill(ledger: Ledger, total: int, end: datetime, days: int = DAYS) -> None:
    """Predictions as the drainer writes them, and their labels; without waiting for the disk."""
    random, per_day = np.random.default_rng(1), total // days

    @sqlalchemy.event.listens_for(ledger._engine, "connect")
    def quick(link: Any, _record: Any) -> None:
        link.execute("PRAGMA synchronous = OFF")
        link.execute("PRAGMA cache_size = -4000000")

    ledger._engine.dispose()
    for back in range(days, 0, -1):
        begin = int((end - timedelta(days=back)).timestamp() * 1e6)
        times = np.sort(random.integers(0, 86_400_000_000, per_day)) + begin
        with ledger.connect() as connection:
            for part in np.array_split(times, max(1, per_day // BLOCK)):
                _fill_block(connection, random, part.tolist(), labelled=back > 28)
    ledger._engine.dispose()
    sqlalchemy.event.remove(ledger._engine, "connect", quick)


def _fill_block(connection: sa.Connection, random: np.random.Generator, at: list[int], labelled: bool) -> None:
    frame, labels = draw(random, len(at))
    head = {
        "id": [random.bytes(16).hex() for _ in at], "variant": ["champion"] * len(at), "at": at, "cutoff": [None] * len(at),
        "entity": random.integers(0, ENTITIES, len(at)).astype(str).tolist(),
    }  # fmt: skip

    def pack(_: Sequence[int]) -> tuple[bytes, bytes]:
        return blocks.pack_frame(frame, OUTPUTS), blocks.pack_frame(frame, FEATURES)

    write_block(connection, PROBLEM, 1, head, pack)
    if labelled:
        rows = zip(head["id"], at, labels, random.random(len(at)) < 0.5, strict=True)
        values = [
            {"problem": PROBLEM, "id": id_, "day": moment // 86_400_000_000, "value": value, "known_at": moment + DELAY}
            for id_, moment, value, known in rows
            if known
        ]
        connection.execute(sa.insert(LABELS), values)


@contextmanager
def writing_labels(ledger: Ledger) -> Iterator[list[float]]:
    """Send a label every 20 ms beside the block's work; yields the seconds that each took."""
    done, waits = threading.Event(), list[float]()

    def send() -> None:
        while not done.wait(0.02):
            begin = time.perf_counter()
            ledger.add_labels(PROBLEM, [Label(1, id=f"sent {len(waits)}")])
            waits.append(time.perf_counter() - begin)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield waits
    finally:
        done.set()
        sender.join()


def measure(address: str, now: datetime) -> Iterator[dict[str, Any]]:
    features = {"table": "t", "target": "churn", "columns": dict.fromkeys(FEATURES, "number")}
    section: Any = TypeAdapter(Problem).validate_python({"question": "?", "features": features})
    ledger, scorer = Ledger(address), cohort_scorer(problems.predictions("classification"), section)
    today, week = now.date(), timedelta(days=7)
    steps: dict[str, Callable[[], object]] = {
        "tidy, the first time": lambda: ledger.tidy(PROBLEM, today),
        "cohorts, the first time": lambda: ledger.cohorts(PROBLEM, scorer),
        "read a week": lambda: ledger.read(PROBLEM, since=now - week, until=now),
        "read four weeks, no features": lambda: ledger.read(PROBLEM, since=now - 5 * week, until=now - week, features=False),
        "count labels of 60 days": lambda: ledger.count_labelled(PROBLEM, now - timedelta(days=60), now, now),
        "tidy": lambda: ledger.tidy(PROBLEM, today),
        "cohorts": lambda: ledger.cohorts(PROBLEM, scorer),
        "compact": lambda: ledger.compact(PROBLEM, today - RETENTION, scorer),
    }
    for name, work in steps.items():
        begin, cpu = time.perf_counter(), time.process_time()
        with writing_labels(Ledger(address)) as waits:
            work()
        yield {
            "step": name,
            "seconds": round(time.perf_counter() - begin, 2),
            "cpu": round(time.process_time() - cpu, 2),
            "labels": len(waits),
            **{
                f"label_{name}_ms": round(1000 * float(wait))
                for name, wait in zip(("p50", "p99", "max"), _quantiles(waits), strict=True)
            },
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


def _quantiles(waits: Sequence[float]) -> list[float]:
    return np.quantile(waits or [0.0], (0.5, 0.99, 1.0)).tolist()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("millions", nargs="?", type=float, default=5)
    parser.add_argument("--database", type=Path)
    parser.add_argument("--days", type=int, default=DAYS)
    asked = parser.parse_args()
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with tempfile.TemporaryDirectory() as folder:
        path = asked.database or Path(folder) / "ledger.db"
        if not path.exists():
            begin = time.perf_counter()
            fill(Ledger(f"sqlite:///{path}"), int(asked.millions * 1e6), end, asked.days)
            log.info("filled in %.0f s", time.perf_counter() - begin)
        rows = []
        for row in measure(f"sqlite:///{path}", end - timedelta(microseconds=1)):
            rows.append(row | {"millions": asked.millions, "file_mb": path.stat().st_size // 2**20})
            log.info("%s", rows[-1])
        RESULTS.parent.mkdir(exist_ok=True)
        pl.DataFrame(rows).write_csv(RESULTS)


if __name__ == "__main__":
    main()
