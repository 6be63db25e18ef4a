"""`make bench-scale`: how each step of a training grows, on the worked example's store with 1, 3 and 10 times its households.

    python -m bench.scale 1 3 10 30    these scales; 10 takes about five minutes on two cores

Households are drawn with replacement from the store and get keys of their own, with all of their lines, campaigns and coupons:
what is sold to whom, and when, keeps its distributions. Items do not grow. `redeem` is trained with one configuration, then
scored. Per step: CPU seconds and peak memory, what it wrote, and the exponent between two scales, which is 1 where the cost
is proportional to the lines. A fixed part, such as imports, makes it smaller.
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
from ruamel.yaml import YAML

from evergreen.tasks.core import memory
from evergreen.tasks.core.paths import Layout, read_json
from evergreen.tasks.data.readers import PACKAGE
from evergreen.tasks.release import lineage

ROOT = Path(__file__).parents[1]
PROBLEM, ENTITY = "redeem", "household_id"
OWN_KEYS = {"basket_id": 10**12}
"""Keys of a household's own, and the distance between those of its copies."""
STEPS = ("ingest", "validate", "features", "tune", "train", "evaluate", "explain")
WRITES = {"ingest": "data/raw", "validate": "data/tables", "features": "data/features", "train": "models"}
log = logging.getLogger("bench")


def project(folder: Path, scale: int, seed: int = 0) -> int:
    """A project with tables of `scale` times the households under data-in. Returns the number of lines."""
    (folder / "data-in").mkdir(parents=True)
    params: Any = YAML().load((ROOT / "params.yaml").read_text())
    lines, drawn = 0, pl.DataFrame()
    for name, given in params["ingest"].items():
        table = pl.read_parquet(resources.files(PACKAGE) / "data" / f"{given.pop('store')}.parquet")
        if ENTITY in table.columns:
            if drawn.is_empty():
                drawn = _draw(table[ENTITY].unique().sort(), scale, seed)
            table = _copies(table, drawn)
        lines = max(lines, table.height)
        table.write_parquet(folder / "data-in" / f"{name}.parquet")
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


def _copies(table: pl.DataFrame, drawn: pl.DataFrame) -> pl.DataFrame:
    found = table.join(drawn.cast({ENTITY: table.schema[ENTITY]}), on=ENTITY, maintain_order="left")
    apart = [
        (pl.col(key).cast(pl.Int64) + pl.col("copy") * step).alias(key)
        for key, step in OWN_KEYS.items()
        if key in table.columns
    ]
    return found.with_columns(pl.col("key").alias(ENTITY), *apart).drop("key", "copy")


def measure(scale: int) -> dict[str, Any]:
    """Of one scale: lines, and per step CPU seconds, peak MB and MB written."""
    with tempfile.TemporaryDirectory(prefix="evergreen-scale-") as name:
        folder = Path(name)
        lines = project(folder, scale)
        _run(folder, "train", PROBLEM)
        used = _run(folder, "score", PROBLEM)
        found = {step: _cost(folder, step) for step in STEPS}
        written = _megabytes(folder / "data" / "scores")
        cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / memory.PER_MB
        found["score"] = {"cpu_seconds": cpu, "peak_mb": peak, "written_mb": written}
        return {"scale": scale, "lines": lines, "steps": found}


def _run(folder: Path, *words: str) -> resource.struct_rusage:
    """What the command and its processes used."""
    with (folder / "output.txt").open("w+") as output:
        command = [str(Path(sys.executable).with_name("evergreen")), *words]
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=_environment())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"evergreen {' '.join(words)} failed:\n{output.read()[-2000:]}")
    return used


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "PREFECT_", "MLFLOW_"))} | {
        name: os.environ[name] for name in ("EVERGREEN_MEMORY_MB", "EVERGREEN_DASK") if name in os.environ
    }


def _cost(folder: Path, step: str) -> dict[str, float]:
    layout = Layout(folder)
    cost = read_json(layout.cost(step, None if step in ("ingest", "validate") else PROBLEM))
    written = _megabytes(folder / WRITES[step]) if step in WRITES else 0.0
    return {"cpu_seconds": cost["cpu_seconds"], "peak_mb": cost["peak_mb"], "written_mb": written}


def _megabytes(folder: Path) -> float:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) / 2**20


def report(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table, in Markdown: one line per step, CPU seconds, peak MB and MB written at each scale, and the exponents."""
    scales = [each["scale"] for each in results]
    yield "| step | " + " | ".join(f"{scale} x: CPU s, peak MB, MB written" for scale in scales) + " | exponents |"
    yield "| --- |" + " --- |" * (len(scales) + 1)
    for step in (*STEPS, "score"):
        costs = [each["steps"][step] for each in results]
        cells = [f"{cost['cpu_seconds']:.1f}, {cost['peak_mb']:,.0f}, {cost['written_mb']:,.0f}" for cost in costs]
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
