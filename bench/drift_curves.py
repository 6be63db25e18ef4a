"""Curves of power beside Evidently's and NannyML's defaults, and false alarms of each on calm windows.

    python -m bench.drift_curves          RUNS references per world, each with one calm window and its changed twins
    python -m bench.drift_curves 40 7     with so many, and this seed

Twenty columns, 26 weeks of 154 rows as reference, windows of 1,000 rows. NannyML gets an environment of its own and chunks by
week. A calm window counts as alarm where any column is flagged, a changed one where the changed column is; NannyML's domain
classifier judges all columns at once. Figures go to bench/results/drift-curves.csv.
"""

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from bench.environments import python
from bench.monitor import flagged
from bench.statistics.drift import World, autoregressive, day, monitor, refer, replace, window
from evergreen.tasks.config.operations import Monitor

RESULTS = Path(__file__).parent / "results"
RIVAL = Path(__file__).parent / "rivals" / "with_nannyml.py"
NANNYML = ("nannyml==0.13.1", "statsmodels")
KNOWN, ROWS, RUNS = 26, 1_000, 20
WORLDS = {"weeks are equal": 0.0, "weeks differ by 0.1 sd": 0.1}
SHIFTS = (0.05, 0.1, 0.15, 0.3)
log = logging.getLogger("bench")


@dataclass(frozen=True)
class Case:
    name: str
    column: str | None
    """The one that changes; None: calm."""
    frame: pl.DataFrame


def cases(now: pl.DataFrame, draw: np.random.Generator) -> list[Case]:
    zeros, cents = replace("number 3", 0.3, pl.lit(0.0)), replace("amount 0", 0.05, pl.col("amount 0") * 100)
    return [
        Case("calm", None, now),
        *(Case(f"mean + {by:g} sd", "number 3", now.with_columns(pl.col("number 3") + by)) for by in SHIFTS),
        Case("zeros in 30 %", "number 3", zeros(now, draw)),
        Case("cents in 5 %", "amount 0", cents(now, draw)),
    ]


def run(sd: float, draw: np.random.Generator, folder: Path) -> Iterator[tuple[Case, dict[str, bool]]]:
    """Each case with whether ours and Evidently's raise; for NannyML the tables are written to `folder`."""
    world = World(draw, weeks=autoregressive(draw, sd, 0.0))
    weeks = np.repeat(np.arange(KNOWN), 4_000 // KNOWN)
    was = world.features(draw.integers(0, world.people, len(weeks)), weeks)
    now = world.features(draw.integers(0, world.people, ROWS), np.full(ROWS, KNOWN + 1))
    reference, found = refer(was, week=weeks), cases(now, draw)
    folder.mkdir(parents=True)
    was.with_columns(at=pl.Series([day(int(each)) for each in weeks])).cast({"at": pl.Datetime}).write_parquet(
        folder / "reference.parquet"
    )
    dated = [each.frame.with_columns(at=pl.lit(day(KNOWN + 1 + place))) for place, each in enumerate(found)]
    pl.concat(dated).cast({"at": pl.Datetime}).write_parquet(folder / "windows.parquet")
    for case in found:
        drift = monitor(reference, [window(case.frame, KNOWN + 1)], Monitor(min_effect=0.0, min_fault=0.0))[-1]
        picked = [case.column] if case.column else was.columns
        ours = [each.column for each in drift.changes if each.significant]
        yield (
            case,
            {
                "evergreen": raised(case, ours),
                "evidently": raised(case, flagged(was.select(picked), case.frame.select(picked))),
            },
        )


def raised(case: Case, columns: list[str]) -> bool:
    return case.column in columns if case.column else bool(columns)


def curves(runs: int, seed: int) -> Iterator[dict[str, str | int | float]]:
    rival = python("nannyml", NANNYML)
    for world, sd in WORLDS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = [list(run(sd, np.random.default_rng([seed, each]), Path(folder) / f"{each:04}")) for each in range(runs)]
            subprocess.run([rival, RIVAL, folder], check=True, stdout=subprocess.DEVNULL)
            theirs = json.loads((Path(folder) / "nannyml.json").read_text())
        for place, (case, _) in enumerate(found[0]):
            hits = {who: np.mean([each[place][1][who] for each in found]) for who in ("evergreen", "evidently")}
            hits["nannyml"] = np.mean([raised(case, each[place]["columns"]) for each in theirs])
            hits["nannyml's domain classifier"] = np.mean([each[place]["classifier"] for each in theirs])
            yield {"world": world, "case": case.name, "runs": runs} | {who: float(rate) for who, rate in hits.items()}


def main(words: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs, seed = (int(words[place]) if len(words) > place else default for place, default in enumerate((RUNS, 0)))
    rows = []
    for row in curves(runs, seed):
        rows.append(row)
        log.info("  ".join(f"{key} {value}" for key, value in row.items()))
        RESULTS.mkdir(exist_ok=True)
        pl.DataFrame(rows).write_csv(RESULTS / "drift-curves.csv")


if __name__ == "__main__":
    main(sys.argv[1:])
