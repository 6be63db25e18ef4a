"""Proof of a params template: ingest, validation and features accept it, as the next command runs them.

Small tables are proved with all rows, larger ones with a sample. Of the drafted rules only those that can stop a run are
checked: the built-in ones and missing values. Great Expectations takes seconds to import; it computes the warnings later.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from evergreen.tasks import features, ingest, problems, validate
from evergreen.tasks.config.data import Expectation, Rules
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import DataError, EvergreenError
from evergreen.tasks.core.paths import Layout

ROWS = 20_000
"""Rows of the sample."""
NOT_NULL = "expect_column_values_to_not_be_null"


def prove(params: Params, problem: str, written: pl.LazyFrame, folder: Path) -> None:
    """Run ingest, the rules that can stop a run, and features for the new `problem`, whose table bears its name.

    `written`: the rows as their source holds them. `folder`: an existing one for temporary files.
    Raises DataError with the reason where a step refuses the table or the settings.
    """
    count = written.select(pl.len()).collect(engine="streaming").item()
    whole, layout = count <= ROWS, Layout(folder)
    written.gather_every(max(1, count // ROWS)).collect(engine="streaming").write_parquet(folder / "written.parquet")
    source = params.ingest[problem].model_copy(
        update={"csv": None, "jsonl": None, "excel": None, "sql": None, "url": None, "parquet": str(folder / "written.parquet")}
    )
    alone = params.model_copy(update={"ingest": {problem: source}, "problems": {problem: params.problems[problem]}})
    with _refusing(problem, folder):
        ingest.run(alone, None, layout)
        rules = params.validate_.get(problem, Rules())
        checked = _check(problem, table_parts.scan(layout.raw(problem)).collect(), rules, source.time)
        layout.table(problem).parent.mkdir(parents=True)
        checked.write_parquet(layout.table(problem))
        features.run(alone, problem, layout)
        if whole:
            section, kind = alone.section(problem), problems.kind(alone.kind(problem))
            kind.splits(kind.load(layout.features(problem), section), section)


def _check(name: str, table: pl.DataFrame, rules: Rules, time: str | None) -> pl.DataFrame:
    """The rows that validation keeps. Raises DataError where it stops."""
    must = [each for each in rules.expectations if each.type == NOT_NULL and each.severity == "error"]
    found = validate.check(name, table, rules.model_copy(update={"expectations": ()}), time)
    if found.problems:
        raise DataError(found.problems[0])
    kept = found.kept.filter(pl.all_horizontal(pl.lit(True), *(_there(each) for each in must)))
    if table.height - found.counts.duplicates - kept.height > rules.max_bad_share * table.height:
        names = ", ".join(each.kwargs["column"] for each in must)
        raise DataError(f"{table.height - kept.height:,} of {table.height:,} rows have no {names}, more than max_bad_share")
    return kept


def _there(rule: Expectation) -> pl.Expr:
    return pl.col(rule.kwargs["column"]).is_not_null()


@contextmanager
def _refusing(problem: str, folder: Path) -> Generator[None]:
    log = logging.getLogger("evergreen.tasks")
    level = log.level
    log.setLevel(logging.ERROR)  # reading the table has told the warnings
    try:
        yield
    except EvergreenError as error:
        reason = str(error).replace(f"{folder}/", "").strip()
        raise DataError(f"evergreen train {problem} would refuse this table: {reason} Nothing was written.") from error
    finally:
        log.setLevel(level)
