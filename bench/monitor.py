"""`make bench-monitor`: false alarms, power and cost of monitoring, beside Evidently's defaults.

    python -m bench.monitor              all of it, in about a quarter of an hour
    python -m bench.monitor cost         one: alarms, power, cost
    python -m bench.monitor alarms 300   with so many reports per size

Figures go to bench/results/monitor.csv and the curves of power to bench/results/monitor.svg. Evidently's defaults are its own
statistics and thresholds, chosen by its own rule; a report of it alarms where any column is flagged, as one of ours does.
"""

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.monitoring.drift import detection, reference_data
from evergreen.monitoring.drift.reference_data import ENTITY, WEEK, Reference
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.tasks.config.operations import Monitor

log = logging.getLogger("bench")

RESULTS = Path(__file__).parent / "results"
START, WEEKS = date(2024, 1, 1), 26
"""Rows of the reference take turns in so many weeks."""
SIZES = (50, 200, 1_000, 5_000, 50_000)
REFERENCES = (1_000, 1_001, 20_000)
"""Rows of the reference: Evidently's rule changes between the first two."""
REPORTS = 200
PER_REFERENCE = 5
"""Windows that are compared with each reference drawn."""
TRIES = 40
"""Windows for each point of a curve of power."""
SHIFTS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Standard deviations."""
MIXES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
"""Share of rows whose category becomes another one."""
COSTS = (100_000, 300_000, 1_000_000)
LEVELS = np.array([f"level {place:02}" for place in range(50)])
SHARES = 1 / np.arange(1, 51) / (1 / np.arange(1, 51)).sum()
ANY = Monitor(min_effect=0.0)
"""Every sure change counts, however small."""


def columns(draw: np.random.Generator, rows: int) -> pl.DataFrame:
    """Twenty columns: numbers, heavy tails, zeros, counts, gaps, categories of 5 and of 50 levels."""
    gaps = [pl.Series(np.where(draw.random(rows) < 0.1, np.nan, draw.normal(size=rows)), nan_to_null=True) for _ in range(2)]
    return pl.DataFrame(
        {
            **{f"number {place}": draw.normal(size=rows) for place in range(6)},
            **{f"amount {place}": np.exp(2 * draw.normal(size=rows)) for place in range(3)},
            "heavy": draw.standard_t(2, rows),
            "mostly zero": np.where(draw.random(rows) < 0.8, 0.0, draw.exponential(size=rows)),
            "count": draw.poisson(0.3, rows).astype(float),
            **{f"gaps {place}": each for place, each in enumerate(gaps)},
            **{f"many {place}": draw.choice(LEVELS, rows, p=SHARES) for place in range(3)},
            **{f"few {place}": draw.choice(LEVELS[:5], rows) for place in range(3)},
        }
    )


def referring(frame: pl.DataFrame) -> Reference:
    week = pl.Series(WEEK, [START + timedelta(weeks=place % WEEKS) for place in range(frame.height)])
    known = frame.with_columns(pl.lit(None, pl.Int64).alias(ENTITY), week)
    return reference_data.of("bench", 1, "regression", {"features": known})


def predicted(frame: pl.DataFrame) -> Predictions:
    nobody = pl.Series([None] * frame.height, dtype=pl.String)
    return Predictions(pl.DataFrame({"entity": nobody, "cutoff": [START + timedelta(weeks=WEEKS)] * frame.height}), frame)


def flagged(was: pl.DataFrame, now: pl.DataFrame) -> list[str]:
    """The columns that Evidently's defaults flag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently.legacy.calculations.stattests import get_stattest
        from evidently.legacy.core import ColumnType

        found = []
        for name in was.columns:
            kind = ColumnType.Numerical if was[name].dtype.is_numeric() else ColumnType.Categorical
            left, right = (frame[name].drop_nulls().to_pandas() for frame in (was, now))
            if get_stattest(left, right, kind, None)(left, right, kind, None).drifted:
                found.append(name)
    return found


def alarms(reports: int) -> Iterator[dict[str, Any]]:
    """Share of reports on undrifted windows that alarm, and of Evidently's columns that are flagged."""
    for size in SIZES:
        for known in REFERENCES:
            ours = theirs = 0
            share = 0.0
            count = max(1, reports // PER_REFERENCE)
            for seed in range(count):
                draw = np.random.default_rng([seed, size, known])
                was = columns(draw, known)
                made = referring(was)
                for place in range(PER_REFERENCE):
                    now = columns(draw, size)
                    ours += any(each.significant for each in detection.compare(made, predicted(now), ANY, 0).changes)
                    if place == 0:
                        found = flagged(was, now)
                        theirs, share = theirs + bool(found), share + len(found) / was.width
            yield {
                "table": "alarms",
                "reference": known,
                "rows": size,
                "reports": count * PER_REFERENCE,
                "evergreen": ours / (count * PER_REFERENCE),
                "evidently": theirs / count,
                "evidently_columns": share / count,
            }


def power(tries: int) -> Iterator[dict[str, Any]]:
    """Share of windows in which the one column of twenty that drifts is found: `evergreen` as drift, `alarm` as an alarm."""

    def shifted(by: float) -> Callable[[pl.DataFrame, np.random.Generator], pl.DataFrame]:
        return lambda frame, _: frame.with_columns(pl.col("number 3") + by)

    def mixed(by: float) -> Callable[[pl.DataFrame, np.random.Generator], pl.DataFrame]:
        def work(frame: pl.DataFrame, draw: np.random.Generator) -> pl.DataFrame:
            changed = pl.Series(draw.random(frame.height) < by)
            return frame.with_columns(pl.when(changed).then(pl.lit(str(LEVELS[20]))).otherwise("many 1").alias("many 1"))

        return work

    cases = [(f"a number, {rows:,} rows", "number 3", rows, by, shifted(by)) for rows in (200, 2_000, 20_000) for by in SHIFTS]
    cases += [("a category of 50 levels, 200 rows", "many 1", 200, by, mixed(by)) for by in MIXES]
    cache: dict[int, tuple[pl.DataFrame, Reference]] = {}
    for name, column, rows, by, change in cases:
        known = 1_000 if rows == 200 else 20_000
        hits = np.zeros(3)
        for seed in range(tries):
            draw = np.random.default_rng([seed, rows, int(by * 1000)])
            if known not in cache:
                frame = columns(np.random.default_rng(known), known)
                cache[known] = frame, referring(frame)
            was, made = cache[known]
            now = change(columns(draw, rows), draw)
            found = detection.compare(made, predicted(now), Monitor(), 0)
            mine = [each for each in found.changes if each.column == column]
            theirs = column in flagged(was.select(column), now.select(column))
            hits += [any(each.significant for each in mine), any(each.alarm for each in mine), theirs]
        ours, alarm, theirs = hits / tries
        yield {"table": "power", "case": name, "reference": known, "rows": rows, "change": by, "windows": tries}  | {
            "evergreen": ours, "alarm": alarm, "evidently": theirs,
        }  # fmt: skip


def cost() -> Iterator[dict[str, Any]]:
    """CPU seconds and memory of one look, each in a process of its own, in turn; our first one makes the draws too."""
    for rows in COSTS:
        found: dict[str, Any] = {"table": "cost", "rows": rows}
        for who in ("nothing", "evergreen", "evidently"):
            done = subprocess.run(
                [sys.executable, "-m", "bench.monitor", "one", who, str(rows)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                cwd=RESULTS.parents[1],
                env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
            )
            found |= {f"{who}_{name}": value for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
        found["ratio"] = round(found["evidently_cpu_s"] / found["evergreen_again_cpu_s"], 1)
        yield found


def one(who: str, rows: int) -> dict[str, float]:
    """Of this process: a window of `rows` rows beside a reference of as many (for us capped as params do)."""
    draw = np.random.default_rng(0)
    was, now = columns(draw, rows), columns(draw, rows)
    found: dict[str, float] = {}
    if who == "evergreen":
        made = referring(was)
        seen = predicted(now)
        for name in ("first_cpu_s", "again_cpu_s"):
            began = time.process_time()
            detection.compare(made, seen, Monitor(), 0)
            found[name] = round(time.process_time() - began, 2)
    if who == "evidently":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from evidently import Report
            from evidently.presets import DataDriftPreset

            left, right = was.to_pandas(), now.to_pandas()
            began = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                Report([DataDriftPreset()]).run(right, left).save_html(f"{folder}/report.html")
            found["cpu_s"] = round(time.process_time() - began, 2)
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def draw(table: pl.DataFrame) -> None:
    """The curves of power: Evergreen as lines, Evidently's defaults dashed, a colour for each case."""
    from evergreen.monitoring.report import marks, vega

    x = marks.number("change", "shift in standard deviations, or share of rows changed")
    color = marks.BY_SERIES | {"field": "case"}
    spec = marks.lines(x, marks.percent("found", "found"), color=color)
    spec["encoding"]["strokeDash"] = marks.dashes("by")
    found = table.unpivot(["evergreen", "evidently"], index=["case", "change"], variable_name="by", value_name="found")
    vega.save(RESULTS / "monitor.svg", spec, found, height=320)


def main(words: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if words[:1] == ["one"]:
        sys.stdout.write(json.dumps(one(words[1], int(words[2]))) + "\n")
        return
    number = next((int(each) for each in words if each.isdigit()), None)
    chosen = [each for each in words if not each.isdigit()] or ["alarms", "power", "cost"]
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "alarms": lambda: alarms(number or REPORTS),
        "power": lambda: power(number or TRIES),
        "cost": cost,
    }
    path = RESULTS / "monitor.csv"
    kept = [row for row in pl.read_csv(path).to_dicts() if row["table"] not in chosen] if path.exists() else []
    for name in chosen:
        log.info("-- %s", name)
        for row in parts[name]():
            kept.append(row)
            log.info("  ".join(f"{key} {_short(value)}" for key, value in row.items() if key != "table"))
    RESULTS.mkdir(exist_ok=True)
    pl.DataFrame(kept, infer_schema_length=None).write_csv(path)
    curves = pl.DataFrame([row for row in kept if row["table"] == "power"], infer_schema_length=None)
    if curves.height:
        draw(curves)


def _short(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
