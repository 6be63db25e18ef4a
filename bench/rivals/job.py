"""What the scripts beside this one share: the rows of a job, and what is told of it. Needs pandas and psutil alone."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

WARM, MEASURED = 3, 30
"""Single rows that are answered first, and those whose time counts."""


def read() -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """The job (target, metric, seconds, preset, out), its training rows, and its test rows without the target."""
    job = json.loads(Path(sys.argv[1]).read_text())
    train, test = (pd.read_parquet(job[name]) for name in ("train", "test"))
    return job, train, test.drop(columns=job["target"])


def median_ms(answer: Callable[[Any], Any], rows: list[Any]) -> float:
    """Wall time of `answer` for one row."""
    taken = []
    for row in rows[: WARM + MEASURED]:
        began = time.perf_counter()
        answer(row)
        taken.append(time.perf_counter() - began)
    return 1000 * sorted(taken[WARM:])[len(taken[WARM:]) // 2]


def cpu_seconds() -> float:
    """Of this process and of those that it started, ended or not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = (each.cpu_times() for each in psutil.Process().children(recursive=True))
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(each.user + each.system for each in running)


def tell(job: dict[str, Any], answers: pd.DataFrame, **more: Any) -> None:
    """`answers`: `prediction`, or one column of probabilities per class; `more`: fields of an Outcome."""
    out = Path(job["out"])
    answers.to_parquet(out / "answers.parquet", index=False)
    (out / "told.json").write_text(json.dumps(more))
