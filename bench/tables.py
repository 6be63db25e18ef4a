"""`python -m bench.tables`: init, train and score on ten public tables, as a person would use them.

    python -m bench.tables                                      about 15 minutes, on a machine that does nothing else
    python -m bench.tables --seconds 20 --tables OJ mpg

Four fifths of the rows become a CSV file; the last fifth is scored afterwards. The report has the interval of the training's
own score, the score on the fifth, and that of LightGBM with its defaults on the same rows.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl

from bench.automl import SYSTEMS, Table, judge, split
from evergreen.tasks.core.paths import Layout, read_json

log = logging.getLogger("bench")


TABLES = {
    each.name: each
    for each in (
        Table("carData", "TitanicSurvival", "survived", "roc_auc", "yes"),
        Table("ISLR", "OJ", "Purchase", "roc_auc", "CH"),
        Table("modeldata", "attrition", "Attrition", "roc_auc", "Yes"),
        Table("carData", "Mroz", "lfp", "roc_auc", "yes"),
        Table("ISLR", "Wage", "wage", "rmse"),
        Table("ISLR", "Carseats", "Sales", "rmse"),
        Table("ggplot2", "mpg", "hwy", "rmse"),
        Table("AER", "HousePrices", "price", "rmse"),
        Table("Ecdat", "Computers", "price", "rmse"),
        Table("ggplot2", "diamonds", "price", "rmse"),
    )
}


def run(table: Table, folder: Path, seconds: float) -> dict[str, Any]:
    """One row of the report."""
    task = split(table, folder, seconds)
    task.train.to_csv(folder / "train.csv", index=False)
    task.test.drop(columns=table.target).to_csv(folder / "test.csv", index=False)
    command, began = str(Path(sys.executable).with_name("evergreen")), time.perf_counter()
    project, name = folder / "project", table.name
    project.mkdir()
    for words in (
        ["init", name, "--data", "../train.csv", "--target", table.target],
        ["train", name, "--seconds", f"{seconds:g}"],
        ["score", name, "--data", "../test.csv", "--out", "scored.csv"],
    ):
        subprocess.run([command, *words], cwd=project, check=True, capture_output=True, text=True)
    took = time.perf_counter() - began
    printed = read_json(Layout(project).report(name) / "metrics.json")[table.metric]
    held_out = judge(task, pd.read_csv(project / "scored.csv").rename(columns=lambda each: each.removeprefix("probability_")))
    return {
        "table": name,
        "rows": len(task.train) + len(task.test),
        "metric": table.metric,
        "low": printed["low"],
        "printed": printed["score"],
        "high": printed["high"],
        "held out": held_out,
        "LightGBM": judge(task, SYSTEMS["lightgbm"](task).answers),
        "inside": bool(printed["low"] <= held_out <= printed["high"]),
        "wall s": took,
    }


def report(names: Iterable[str], seconds: float) -> pl.DataFrame:
    """One row per table; one that fails is named and left out."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(run(TABLES[name], Path(folder), seconds))
                log.info("%s", rows[-1])
            except subprocess.CalledProcessError as error:
                log.error("%s: %s", name, error.stderr.strip().splitlines()[-1])
    return pl.DataFrame(rows)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, float_precision=4, tbl_width_chars=160):
        sys.stdout.write(f"{report(given.tables, given.seconds)}\n")


if __name__ == "__main__":
    main()
