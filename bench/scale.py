"""`make bench-scale`: how each step of a training grows, on the worked example's store with 1, 3 and 10 times its households.

    python -m bench.scale 1 3 10 30    these scales; 10 takes about five minutes on two cores

Copies are written HOUSEHOLDS at a time, so that the memory of this process does not grow with the scale.

Households are drawn with replacement from the store and get keys of their own, with all of their lines, campaigns and coupons:
what is sold to whom, and when, keeps its distributions. Items do not grow. `redeem` is trained with one configuration, then
scored. Per step: CPU seconds, peak memory, what its process read and wrote (/proc/PID/io), and the exponent between two scales,
which is 1 where the cost is proportional to the lines. A fixed part, such as imports, makes it smaller.
"""

import argparse
import itertools
import json
import logging
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from evergreen.tasks.core import memory, transfers
from evergreen.tasks.core.paths import Layout, read_json
from evergreen.tasks.data.readers import PACKAGE
from evergreen.tasks.release import lineage

ROOT = Path(__file__).parents[1]
PROBLEM, ENTITY = "redeem", "household_id"
OWN_KEYS = {"basket_id": 10**12}
"""Keys of a household's own, and the distance between those of its copies."""
STEPS = ("ingest", "validate", "features", "tune", "train", "evaluate", "explain")
HOUSEHOLDS = 2_500
"""Copies that are written at a time: about as many as the store has."""
PASSED_ON = ("EVERGREEN_MEMORY_MB", "EVERGREEN_LEARNING_MB", "EVERGREEN_DASK")
COSTS = {"cpu_seconds": 1, "peak_mb": 0, "read_mb": 0, "written_mb": 0}
"""What is measured of a step, and the digits that are shown; the last two where the system counts them."""
log = logging.getLogger("bench")


def project(folder: Path, scale: int, seed: int = 0) -> int:
    """A project with tables of `scale` times the households under data-in. Returns the number of lines."""
    (folder / "data-in").mkdir(parents=True)
    params: Any = YAML().load((ROOT / "params.yaml").read_text())
    lines, drawn = 0, pl.DataFrame()
    for name, given in params["ingest"].items():
        table = pl.read_parquet(resources.files(PACKAGE) / "data" / f"{given.pop('store')}.parquet")
        path = folder / "data-in" / f"{name}.parquet"
        if ENTITY in table.columns:
            if drawn.is_empty():
                drawn = _draw(table[ENTITY].unique().sort(), scale, seed)
            lines = max(lines, _write_copies(table, drawn, path))
        else:
            table.write_parquet(path)
        given["parquet"] = f"data-in/{name}.parquet"
    for other in set(params["problems"]) - {PROBLEM}:
        del params["problems"][other], params[other]
    params[PROBLEM]["tune"] = {"models": ["lightgbm"], "method": "random", "n_trials": 1, "folds": 2}
    params[PROBLEM]["evaluate"]["diagnose_seconds"] = 0
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    shutil.copy(ROOT / "flows" / "templates" / "dvc.yaml", folder)
    lineage.set_up(Layout(folder))
    return lines


def _draw(households: pl.Series, scale: int, seed: int) -> pl.DataFrame:
    """Household -> the key of its copy, and how many copies came before it; each once at scale 1."""
    draw = np.random.default_rng([seed, scale])
    more = draw.choice(households.to_numpy(), (scale - 1) * len(households))
    drawn = pl.DataFrame({ENTITY: np.concatenate([households.to_numpy(), more])})
    return drawn.with_columns(key=pl.int_range(1, pl.len() + 1), copy=pl.int_range(pl.len()).over(ENTITY))


def _write_copies(table: pl.DataFrame, drawn: pl.DataFrame, path: Path) -> int:
    """Write the lines of all copies, HOUSEHOLDS after HOUSEHOLDS, each in the order of the table. Returns how many."""
    parts = (_copies(table, drawn.slice(start, HOUSEHOLDS)).to_arrow() for start in range(0, drawn.height, HOUSEHOLDS))
    first = next(parts)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        lines = 0
        for part in itertools.chain([first], parts):
            writer.write_table(part)
            lines += part.num_rows
    return lines


def _copies(table: pl.DataFrame, drawn: pl.DataFrame) -> pl.DataFrame:
    found = table.join(drawn.cast({ENTITY: table.schema[ENTITY]}), on=ENTITY, maintain_order="left")
    apart = [
        (pl.col(key).cast(pl.Int64) + pl.col("copy") * step).alias(key)
        for key, step in OWN_KEYS.items()
        if key in table.columns
    ]
    return found.with_columns(pl.col("key").alias(ENTITY), *apart).drop("key", "copy")


def measure(scale: int) -> dict[str, Any]:
    """Of one scale: lines, and per step CPU seconds, peak MB, and MB read and written."""
    with tempfile.TemporaryDirectory(prefix="evergreen-scale-") as name:
        folder = Path(name)
        lines = project(folder, scale)
        _run(folder, "train", PROBLEM)
        used, moved = _run(folder, "score", PROBLEM)
        found = {step: _cost(folder, step) for step in STEPS}
        cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / memory.PER_MB
        found["score"] = {"cpu_seconds": cpu, "peak_mb": peak, **moved}
        return {"scale": scale, "lines": lines, "steps": found}


def _run(folder: Path, *words: str) -> tuple[resource.struct_rusage, dict[str, float]]:
    """What the command and its processes used, and what the command itself read and wrote."""
    with (folder / "output.txt").open("w+") as output:
        command = [str(Path(sys.executable).with_name("evergreen")), *words]
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=_environment())
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it ended, and can still be asked
        moved = transfers.megabytes(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"evergreen {' '.join(words)} failed:\n{output.read()[-2000:]}")
    return used, moved


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "PREFECT_", "MLFLOW_"))} | {
        name: os.environ[name] for name in PASSED_ON if name in os.environ
    }


def _cost(folder: Path, step: str) -> dict[str, float]:
    layout = Layout(folder)
    cost = read_json(layout.cost(step, None if step in ("ingest", "validate") else PROBLEM))
    return {name: cost[name] for name in COSTS if name in cost}


def report(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table, in Markdown: one line per step, its COSTS at each scale, and the exponents."""
    scales = [each["scale"] for each in results]
    yield "| step | " + " | ".join(f"{scale} x: CPU s, peak MB, MB read, MB written" for scale in scales) + " | exponents |"
    yield "| --- |" + " --- |" * (len(scales) + 1)
    for step in (*STEPS, "score"):
        costs = [each["steps"][step] for each in results]
        cells = [", ".join(f"{cost[name]:,.{digits}f}" for name, digits in COSTS.items() if name in cost) for cost in costs]
        yield f"| {step} | " + " | ".join(cells) + f" | {', '.join(_exponents(results, step))} |"
    yield "lines: " + ", ".join(f"{each['lines']:,}" for each in results)


def _exponents(results: Sequence[dict[str, Any]], step: str) -> Iterator[str]:
    for one, two in itertools.pairwise(results):
        cpu = [each["steps"][step]["cpu_seconds"] for each in (one, two)]
        yield f"{math.log(cpu[1] / cpu[0]) / math.log(two['lines'] / one['lines']):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scales", type=int, nargs="*", default=[1, 3, 10], help="times the households of the store")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results = []
    for scale in sorted(parser.parse_args().scales):
        log.info("scale %d", scale)
        results.append(measure(scale))
        log.info("%s", json.dumps(results[-1]))
    for line in report(results):
        log.info("%s", line)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
