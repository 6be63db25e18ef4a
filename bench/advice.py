"""`python -m bench.advice`: whether the next step that a diagnosis names is right, on planted tables.

    python -m bench.advice                                      20 cases with 3 seeds each: about two minutes on one core
    python -m bench.advice --seeds 7 8 --cases "noise"          two seeds of the cases whose name contains it

Each case plants what is wrong with a table or a model. A step is right, harmful (it sends a person the wrong way), or neither.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import KindName, Tabular
from evergreen.tasks.diagnosis import experiments

log = logging.getLogger("bench")
OVERFIT = {"model": "lightgbm", "num_leaves": 40, "min_child_samples": 1, "n_estimators": 60, "learning_rate": 0.3}
SECONDS = 15.0
"""CPU seconds of a diagnosis."""
COMPLEX = {"richer model", "longer search"}


@dataclass(frozen=True)
class Case:
    """A planted table, the model that is diagnosed, and which steps are right and which are harmful."""

    name: str
    config: dict[str, Any]
    right: Collection[str]
    harmful: Collection[str] = frozenset(COMPLEX)
    rows: int = 700
    completed: int | None = None
    """Trials that a search of 20 seconds completed; None: it was not cut."""
    kind: KindName = "regression"


RIDGE, LOGISTIC = {"model": "ridge"}, {"model": "logistic"}
STRAIGHT, STRAIGHT_CLASSES = {**RIDGE, "spline_knots": 0}, {**LOGISTIC, "spline_knots": 0}
CASES = (
    Case("line, deep trees", OVERFIT, {"simpler model"}),
    Case("classes, deep trees", OVERFIT, {"simpler model"}, kind="classification"),
    Case("rare classes, deep trees", OVERFIT, {"simpler model"}, rows=3000, kind="classification"),
    Case("few rows, deep trees", OVERFIT, {"simpler model"}, rows=150),
    Case("bend, straight line", STRAIGHT, {"richer model"}, {"simpler model", "stop", "leak"}),
    Case("product, straight line", STRAIGHT, {"richer model"}, {"simpler model", "stop", "leak"}),
    Case("cross, logistic", STRAIGHT_CLASSES, {"richer model"}, {"simpler model", "stop", "leak"}, kind="classification"),
    Case("bend, cut search", STRAIGHT, {"longer search"}, {"richer model", "simpler model", "leak"}, completed=4),
    Case("noise, cut search", RIDGE, {"stop"}, completed=4),
    Case("noise, ridge", RIDGE, {"stop"}),
    Case("noise of classes, deep trees", OVERFIT, {"stop"}, kind="classification"),
    Case("rare noise, logistic", LOGISTIC, {"stop"}, rows=1500, kind="classification"),
    Case("few rows of noise", OVERFIT, {"stop"}, rows=90),
    Case("paid, known afterwards", {"model": "lightgbm"}, {"leak"}, kind="classification"),
    Case("state, known afterwards", LOGISTIC, {"leak"}, kind="classification"),
    Case("parts of a sum", RIDGE, {"leak"}),
    Case("customers, many rows each", RIDGE, {"leak"}, rows=900),
    Case("repeated rows", {"model": "lightgbm", "num_leaves": 4}, {"stop"}, rows=1500),
    Case("many weak columns, few rows", RIDGE, {"more data"}, COMPLEX | {"stop", "leak"}, rows=160),
    Case("line with noise, many rows", RIDGE, {"better features"}, COMPLEX | {"leak"}, rows=4000),
)


def plant(case: Case, seed: int) -> pl.DataFrame:
    """The table of a case, its target `y`."""
    draw, rows = np.random.default_rng(seed), case.rows
    columns: dict[str, Any] = {f"x{place}": draw.normal(size=rows) for place in range(5)}
    line = columns["x0"] + 0.7 * columns["x1"]
    amount, error = line + draw.normal(size=rows), draw.normal(size=rows)
    positive = draw.random(rows) < 1 / (1 + np.exp(-line))
    rare = draw.random(rows) < 1 / (1 + np.exp(4 - 1.5 * line))
    group, customer = draw.integers(0, 4, rows), draw.integers(0, 60, rows)
    part, weak = np.abs(amount), draw.normal(size=(rows, 40))
    return pl.DataFrame(
        {
            "line, deep trees": lambda: {**columns, "y": amount},
            "classes, deep trees": lambda: {**columns, "y": positive},
            "rare classes, deep trees": lambda: {**columns, "y": rare},
            "few rows, deep trees": lambda: {**columns, "y": amount},
            "bend, straight line": lambda: {**columns, "y": columns["x0"] ** 2 + 0.3 * error},
            "product, straight line": lambda: {**columns, "y": columns["x0"] * columns["x1"] + columns["x2"] + 0.3 * error},
            "cross, logistic": lambda: {**columns, "y": columns["x0"] * columns["x1"] > 0},
            "bend, cut search": lambda: {**columns, "y": columns["x0"] ** 2 + 0.3 * error},
            "noise, cut search": lambda: {**columns, "y": error},
            "noise, ridge": lambda: {**columns, "y": error},
            "noise of classes, deep trees": lambda: {**columns, "y": draw.random(rows) < 0.4},
            "rare noise, logistic": lambda: {**columns, "y": draw.random(rows) < 0.05},
            "few rows of noise": lambda: {**columns, "y": error},
            "paid, known afterwards": lambda: {
                **columns,
                "paid": np.where(positive, draw.gamma(2, 9, rows), 0.0),
                "y": positive,
            },
            "state, known afterwards": lambda: {**columns, "state": np.where(positive, "closed", "open"), "y": positive},
            "parts of a sum": lambda: {**columns, "net": part, "tax": group * 1.0, "y": part + group},
            "customers, many rows each": lambda: {
                **columns,
                "customer": np.char.add("c", customer.astype(str)),
                "y": draw.normal(size=60)[customer] + 0.05 * error,
            },
            "repeated rows": lambda: {
                "a": group * 1.0,
                "b": customer % 3 * 1.0,
                "y": group + customer % 3 * (group > 1) + error,
            },
            "many weak columns, few rows": lambda: {
                **{f"w{place}": weak[:, place] for place in range(40)},
                "y": weak.sum(axis=1) / 6 + 0.5 * error,
            },
            "line with noise, many rows": lambda: {**columns, "y": amount},
        }[case.name]()
    ).with_columns(pl.col(pl.Boolean).cast(pl.Int64))


def advise(case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """The diagnosis of a case."""
    table = plant(case, seed)
    types = {name: "number" if table[name].dtype.is_numeric() else "category" for name in table.columns if name != "y"}
    features = {"table": "t", "target": "y", "columns": types}
    tune = {"budget_seconds": 20.0} if case.completed is not None else {}
    section = Tabular.model_validate({"question": "?", "features": features, "tune": tune})
    kind: Any = problems.kind(case.kind)
    kind.build({"t": table.lazy()}, {}, section, None)["rows"].write_parquet(folder / "rows.parquet")
    data = kind.load(folder, section)
    config = {**kind.defaults(case.config["model"], section), **case.config}
    trials = None
    if case.completed is not None:
        folds = [[0.5] * section.tune.folds] * case.completed
        done = {"state": ["complete"] * case.completed, "folds": folds}
        trials = pl.DataFrame({**done, "model": ["other"] * case.completed, "config": "{}", "score": 0.5})
    return experiments.diagnose(kind, data, section, config, seed, SECONDS, trials)[0]


def run(cases: Iterable[Case], seeds: Iterable[int]) -> pl.DataFrame:
    """One row per case and seed."""
    found = []
    for case in cases:
        for seed in seeds:
            began = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                step = advise(case, seed, Path(folder)).get("step", "none")
            verdict = "right" if step in case.right else "harmful" if step in case.harmful else "neither"
            found.append(
                {"case": case.name, "seed": seed, "step": step, "verdict": verdict, "cpu": time.process_time() - began}
            )
            log.info("%-30s %3d  %-16s %-8s %5.1f CPU s", *found[-1].values())
    return pl.DataFrame(found)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--cases", default="", help="a part of their names")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = run([each for each in CASES if given.cases in each.name], given.seeds)
    sys.stdout.write(f"{found['verdict'].value_counts(sort=True)}\n")
    sys.exit(0 if "harmful" not in found["verdict"].to_list() else 1)


if __name__ == "__main__":
    main()
