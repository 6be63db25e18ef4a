"""Rules in the vocabulary of Great Expectations, and its result pages. This module is the library's one home."""

import difflib
import gc
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, TypedDict

import numpy as np
import polars as pl

from evergreen.tasks.config.data import Expectation, Rules
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.data.column_statistics import distinct, extremes, missing, of, supports, with_nulls
from evergreen.tasks.data.column_statistics import names as column_names
from evergreen.tasks.data.column_statistics import rows as row_count
from evergreen.tasks.data.earlier_results import as_json
from evergreen.tasks.data.repeated_rows import EarlierRows, all_copies
from evergreen.tasks.data.row_blocks import AT, ROW, RowBlocks
from evergreen.tasks.data.rules import (
    Found,
    Outcome,
    Tally,
    add_rows,
    as_json_value,
    missing_column,
    not_computed,
    positions_of,
)

COMPLETE = {"result_format": {"result_format": "COMPLETE"}}
PARTIAL = 20
"""Failing rows that the library lists on its page."""
UNIQUE = "expect_column_values_to_be_unique"
PER_ROW = {
    "expect_column_values_to_not_be_null",
    "expect_column_values_to_be_null",
    "expect_column_values_to_be_between",
    "expect_column_values_to_be_in_set",
    "expect_column_values_to_not_be_in_set",
    "expect_column_value_lengths_to_be_between",
    "expect_column_value_lengths_to_equal",
    "expect_column_values_to_match_regex",
    "expect_column_values_to_not_match_regex",
    "expect_column_values_to_match_regex_list",
    "expect_column_values_to_not_match_regex_list",
    "expect_column_values_to_match_strftime_format",
    "expect_column_values_to_match_json_schema",
    "expect_column_values_to_be_dateutil_parseable",
    "expect_column_values_to_be_json_parseable",
    "expect_column_pair_values_to_be_equal",
    "expect_column_pair_values_a_to_be_greater_than_b",
    "expect_column_pair_values_to_be_in_set",
    "expect_multicolumn_sum_to_equal",
    "expect_multicolumn_values_to_be_equal",
    "expect_select_column_values_to_be_unique_within_record",
}
"""Expectations that say of each row by itself whether it fails."""
FROM_STATISTICS = {
    "expect_column_mean_to_be_between",
    "expect_column_sum_to_be_between",
    "expect_column_stdev_to_be_between",
    "expect_column_median_to_be_between",
    "expect_column_quantile_values_to_be_between",
    "expect_column_unique_value_count_to_be_between",
    "expect_column_proportion_of_unique_values_to_be_between",
    "expect_column_proportion_of_non_null_values_to_be_between",
    "expect_table_row_count_to_be_between",
    "expect_table_row_count_to_equal",
    "expect_table_column_count_to_be_between",
    "expect_table_column_count_to_equal",
    "expect_table_columns_to_match_ordered_list",
    "expect_table_columns_to_match_set",
    "expect_column_to_exist",
}
"""Expectations whose result the statistics of column_statistics decide."""
FEW_VALUES: dict[str, Callable[[RowBlocks, str], pl.DataFrame]] = {
    "expect_column_min_to_be_between": extremes,
    "expect_column_max_to_be_between": extremes,
    "expect_column_distinct_values_to_be_in_set": distinct,
    "expect_column_distinct_values_to_contain_set": distinct,
    "expect_column_distinct_values_to_equal_set": distinct,
}
"""Expectations whose result a few of the values decide."""
RANDOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Of an element of a page, in another one of the same page."""
RENDERED_AT = re.compile(r"\?d=[0-9TZ.]+")
"""The time in the address of a picture."""
log = logging.getLogger(__name__)


def silence() -> None:
    """Turn off telemetry and logging of Great Expectations. Some of its modules set their own log level on import."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for name in ("great_expectations", *logging.root.manager.loggerDict):
        if name.split(".")[0] == "great_expectations":
            logging.getLogger(name).setLevel(logging.ERROR)


def check_expectations(params: Params) -> None:
    """Check type and arguments of every expectation. Raises ParamsError for an invalid one."""
    for table, rules in params.validate_.items():
        for number, expectation in enumerate(rules.expectations):
            _implementation(f"params.yaml: validate.{table}.expectations.{number}", expectation)


def _implementation(where: str, expectation: Expectation) -> Any:
    """The expectation's class. Great Expectations itself silently drops an unknown type."""
    import great_expectations  # noqa: F401  (fills the registry)
    from great_expectations.exceptions.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import get_expectation_impl, list_registered_expectation_implementations
    from pydantic.v1 import ValidationError

    try:
        found = get_expectation_impl(expectation.type)
    except ExpectationNotFoundError:
        known = list_registered_expectation_implementations()
        near = difflib.get_close_matches(expectation.type, known, n=1, cutoff=0.5)
        advice = f"; did you mean {near[0]}?" if near else "; see the gallery of Great Expectations"
        raise ParamsError(f"{where}.type = {expectation.type}: no such expectation{advice}") from None
    try:
        found(**expectation.kwargs)
    except (ValidationError, TypeError) as error:
        raise ParamsError(f"{where}.kwargs: {_argument_error(found, error)} ({expectation.type})") from None
    return found


def _argument_error(found: Any, error: Exception) -> str:
    first = getattr(error, "errors", list)()[:1]
    if not first:
        return str(error)
    key = str(first[0]["loc"][0])
    if first[0]["type"] == "value_error.extra":
        internal = ("id", "meta", "notes", "rendered_content", "severity", "windows")
        return f"{key}: unknown argument{nearest(key, [name for name in found.__fields__ if name not in internal])}"
    return first[0]["msg"] if key == "__root__" else f"{key}: {first[0]['msg']}"


class Expected(TypedDict):
    """What an expectation about single rows found in one block."""

    found: Found
    result: dict[str, Any]
    """Of the library, without the lists of all rows."""


@dataclass
class _RowRule:
    """An expectation about single rows while the blocks pass."""

    tally: Tally
    results: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Expectations:
    """The expectations of one table: those about single rows block by block, the others from statistics that are merged, or
    from few values that have the same result; what needs its columns as a whole is computed at once, and said in the log.
    """

    def __init__(self, name: str, view: RowBlocks, rules: Rules, earlier: EarlierRows | None = None) -> None:
        """Raises ParamsError for a bound that is no time."""
        self._name, self._view, self._given, self._earlier = name, view, dict(enumerate(rules.expectations)), earlier
        self._found: dict[int, Outcome] = {}
        self._rows: dict[int, _RowRule] = {}
        self._results: dict[int, Any] = {}
        self.failed = False
        """Whether an expectation about single rows could not be computed in a block."""
        for number, each in self._given.items():
            columns = _columns(each)
            if problem := missing_column(view.schema, columns, "the table"):
                self._found[number] = not_computed(_name(each), each.type, columns, each.severity, problem)
            elif is_per_row(each):
                self._rows[number] = _RowRule(_tally(each))
            else:
                self._compute(number, each)
        self._by_block = [number for number, rule in self._rows.items() if not rule.results]
        used = (column for number in self._by_block for column in self._needed(self._given[number]))
        self._columns = list(dict.fromkeys(used))

    @property
    def nullable_columns(self) -> list[str]:
        """Columns of whole numbers and truth values that are checked block by block: pandas holds them as another type where
        a value is missing anywhere in the column.
        """
        kinds = self._view.schema.schema
        return [each for each in self._columns if kinds[each].is_integer() or kinds[each] == pl.Boolean]

    def find(self, block: pl.DataFrame, rows: range, nullable: Mapping[str, bool]) -> dict[str, Expected]:
        """What the rules find in one block, by their number as text: `rows` of the file (from 0); `nullable`: of
        `nullable_columns` whether a value is missing anywhere. A rule that cannot be computed is not in it any more.
        """
        mine = {number: self._given[number] for number in self._by_block if number not in self._found}
        if not mine or (block.is_empty() and self._view.read):
            return {}
        results = self._run(block.select(AT, *self._columns), mine, nullable)
        found = {number: self._expected(number, block, rows, results.pop(number)) for number in list(results)}
        gc.collect()  # the library's results refer to one another, and hold the rows of the block
        return {str(number): each for number, each in found.items() if each is not None}

    def _expected(self, number: int, block: pl.DataFrame, rows: range, result: Any) -> Expected | None:
        at = None if _first_exception(result.exception_info) else result.result.pop("unexpected_index_list", None)
        if at is None:
            self._found[number] = self._outcome(number, result)
            self._results[number] = result
            self.failed = True
            return None
        positions = positions_of(block, np.sort(np.asarray(at, dtype=np.int64)))
        found = self._rows[number].tally.find(block, rows, int(result.result["element_count"]), positions)
        return {"found": found, "result": without_row_lists(result).result}

    def add(self, rows: range, expected: Mapping[str, Expected]) -> None:
        """Add what was found in one block; blocks come in their order."""
        for number, each in expected.items():
            rule = self._rows[int(number)]
            rule.tally.add(rows, each["found"])
            rule.results.append(each["result"])

    def finish(self) -> tuple[list[Outcome], list[Tally], Any]:
        """Outcomes in the order of the rules, the row rules that quarantine their rows, and the library's result or None."""
        broken: list[Tally] = []
        for number, rule in self._rows.items():
            if number in self._found or not rule.results:
                continue
            merged = self._results[number] = self._merged(number, rule.results)
            self._found[number] = rule.tally.outcome(bool(merged.success))
            if rule.tally.severity == "error" and not merged.success:
                broken.append(rule.tally)
        if len(self._found) != len(self._given):
            lost = next(each for number, each in self._given.items() if number not in self._found)
            raise ParamsError(
                f"params.yaml: validate.{self._name}.expectations: {lost.type} was not checked; is it a duplicate?"
            )
        results = [self._results[number] for number in sorted(self._results)]
        docs = _suite_result(self._name, results) if results else None
        return [self._found[number] for number in sorted(self._found)], broken, docs

    def _merged(self, number: int, results: Sequence[dict[str, Any]]) -> Any:
        """The library's result of a rule about single rows."""
        from great_expectations.core import ExpectationValidationResult

        each = self._given[number]
        arguments = _arguments(self._name, number, self._view.schema, each)
        success, result = merge(results, each.kwargs.get("mostly", 1))
        return ExpectationValidationResult(
            success=success,
            expectation_config=_implementation("", each)(**arguments, meta={"rule": number}).configuration,
            result=result,
            exception_info={"raised_exception": False, "exception_traceback": None, "exception_message": None},
            meta={},
        )

    # Rules about the table or a column

    def _compute(self, number: int, each: Expectation) -> None:
        if each.type == UNIQUE and not each.kwargs.get("row_condition"):
            self._find_repeats(number, each)
            return
        result = self._from_statistics(number, each)
        if result is None:
            few = None if each.kwargs.get("row_condition") else FEW_VALUES.get(each.type)
            values = few(self._view, each.kwargs["column"]) if few else self._whole(each)
            result = self._run(values, {number: each})[number]
            at = result.result.get("unexpected_index_list")
            if at is not None and not _first_exception(result.exception_info):
                self._keep_rows(number, each, result, values[ROW].to_numpy()[np.sort(np.asarray(at, dtype=np.int64))])
                return
        self._results[number] = without_row_lists(result)
        self._found[number] = self._outcome(number, result)

    def _keep_rows(self, number: int, each: Expectation, result: Any, rows: np.ndarray) -> None:
        """Of a row rule that was checked at once: the values of ROW that fail, ascending."""
        rule = self._rows[number] = _RowRule(_tally(each), [as_json(without_row_lists(result).result)])
        add_rows(rule.tally, self._view, rows.astype(np.int64))

    def _find_repeats(self, number: int, each: Expectation) -> None:
        """Only values that are there twice can fail: the library judges these alone, and the others are counted."""
        column = each.kwargs["column"]
        repeated = self._view.chosen(all_copies(self._view, [column], self._earlier), [column])
        present = repeated.filter(pl.col(column).is_not_null())
        if present.schema[column].is_float():
            present = present.filter(pl.col(column).is_not_nan())
        result = self._run(present, {number: each}, with_nulls(self._view, [column]))[number]
        at = result.result.get("unexpected_index_list") if not _first_exception(result.exception_info) else None
        if at is None:
            self._results[number], self._found[number] = result, self._outcome(number, result)
            return
        result.result["missing_count"] = missing(self._view, column)
        result.result["element_count"] = row_count(self._view)
        failing = present.filter(pl.col(AT).is_in(at))[ROW].to_numpy()
        self._keep_rows(number, each, result, failing)

    def _from_statistics(self, number: int, each: Expectation) -> Any:
        """The library's result from statistics of column_statistics; None where it needs another one."""
        from great_expectations.execution_engine.pandas_execution_engine import PandasExecutionEngine

        if each.type not in FROM_STATISTICS or each.kwargs.get("row_condition") or each.kwargs.get("allow_relative_error"):
            return None
        arguments = _arguments(self._name, number, self._view.schema, each)
        expectation, engine = _implementation("", each)(**arguments, meta={"rule": number}), PandasExecutionEngine()
        needed = expectation.get_validation_dependencies(execution_engine=engine, runtime_configuration=dict(COMPLETE))
        configured = list(needed.metric_configurations.values())
        domains = {metric.metric_name: metric.metric_domain_kwargs.get("column") for metric in configured}
        if not domains or not all(supports(self._view, metric, column) for metric, column in domains.items()):
            return None
        metrics = {
            metric.id: of(self._view, metric.metric_name, domains[metric.metric_name], *_quantiles(metric))
            for metric in configured
        }
        return expectation.metrics_validate(metrics, dict(COMPLETE), engine)

    def _whole(self, each: Expectation) -> pl.DataFrame:
        if self._view.read > self._view.rows:
            log.info("validate: %s: %s needs its columns as a whole, in memory", self._name, _name(each))
        return self._view.values(self._needed(each))

    def _needed(self, each: Expectation) -> list[str]:
        """The columns that an expectation reads; all where it has a condition on others, or names none."""
        columns = list(_columns(each))
        return column_names(self._view) if each.kwargs.get("row_condition") or not columns else columns

    def _outcome(self, number: int, result: Any) -> Outcome:
        """Of a rule about the table, or of one that could not be computed."""
        each = self._given[number]
        columns, name = _columns(each), _name(each)
        if raised := _first_exception(result.exception_info):
            types = ", ".join(f"{column} is {self._view.schema.schema[column]}" for column in columns)
            problem = f"cannot be computed, {types or 'no column'}: {raised}"
            return not_computed(name, each.type, columns, each.severity, problem)
        return Outcome(
            name=name,
            type=each.type,
            columns=columns,
            severity=each.severity,
            level="table",
            passed=bool(result.success),
            observed=as_json_value(result.result.get("observed_value")),
        )

    def _run(
        self, values: pl.DataFrame, expectations: Mapping[int, Expectation], nullable: Mapping[str, bool] | None = None
    ) -> dict[int, Any]:
        """The library's result per number. AT in the index identifies rows: key columns make it a hundred times slower."""
        import great_expectations as gx

        suite = gx.ExpectationSuite(
            name=self._name,
            expectations=[
                {"type": each.type, "kwargs": _arguments(self._name, number, values, each), "meta": {"rule": number}}
                for number, each in expectations.items()
            ],
        )
        asset = _context().data_sources.add_or_update_pandas("tables").add_dataframe_asset(self._name)
        batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": _as_pandas(values, nullable or {})})
        found = batch.validate(suite, **COMPLETE)
        return {each.expectation_config.meta["rule"]: each for each in found.results}


def _as_pandas(values: pl.DataFrame, nullable: Mapping[str, bool]) -> Any:
    """As pandas types whole columns: numbers and truth values with missing ones somewhere (`nullable`) are of another type."""
    rows = values.drop(ROW, AT, strict=False).with_columns(
        pl.col(column).cast(pl.Float64)
        for column, some in nullable.items()
        if some and column in values.columns and values.schema[column].is_integer()
    )
    found = rows.to_pandas()
    for column, some in nullable.items():
        if some and column in values.columns and values.schema[column] == pl.Boolean:
            found[column] = found[column].astype(object)
    if AT in values.columns:
        found.index = values[AT].to_numpy().astype(np.int64)
    return found


def _quantiles(metric: Any) -> list[Any]:
    quantiles = metric.metric_value_kwargs.get("quantiles")
    return [] if quantiles is None else [quantiles]


def is_per_row(expectation: Expectation) -> bool:
    """Whether it says of each row by itself whether it fails."""
    condition = str(expectation.kwargs.get("row_condition") or "")
    return expectation.type in PER_ROW and "(" not in re.sub(r"col\(", "", condition) and "@" not in condition


def _suite_result(name: str, results: Sequence[Any]) -> Any:
    import great_expectations as gx
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

    passed = sum(bool(each.success) for each in results)
    return ExpectationSuiteValidationResult(
        suite_name=name,
        success=passed == len(results),
        results=list(results),
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(results) - passed,
            "success_percent": 100 * passed / len(results),
        },
        meta={"great_expectations_version": gx.__version__},
    )


def merge(results: Sequence[Mapping[str, Any]], mostly: float) -> tuple[bool, dict[str, Any]]:
    """Whether a rule about single rows holds for all rows, and the library's result, from those of their blocks."""
    found = dict(results[0])
    for key in ("element_count", "missing_count", "unexpected_count"):
        if key in found:
            found[key] = sum(each[key] for each in results)
    for key in ("partial_unexpected_list", "partial_unexpected_index_list"):
        if key in found:
            found[key] = [value for each in results for value in each.get(key, ())][:PARTIAL]
    rows, failed = found["element_count"], found["unexpected_count"]
    present = rows - found.get("missing_count", 0)
    shares = {
        "unexpected_percent": _percent(failed, present),
        "missing_percent": _percent(found.get("missing_count", 0), rows),
        "unexpected_percent_total": _percent(failed, rows),
        "unexpected_percent_nonmissing": _percent(failed, present),
    }
    found.update({key: share for key, share in shares.items() if key in found})
    return not present or (float(present) - float(failed)) / float(present) >= mostly, found


def _percent(number: int, of_all: int) -> float | None:
    return number / of_all * 100 if of_all else None


def _columns(expectation: Expectation) -> tuple[str, ...]:
    """The columns that an expectation checks."""
    if expectation.type == "expect_column_to_exist":
        return ()
    single = [expectation.kwargs[key] for key in ("column", "column_A", "column_B") if key in expectation.kwargs]
    return tuple(dict.fromkeys([*single, *expectation.kwargs.get("column_list", ())]))


def checked_columns(rules: Rules) -> set[str]:
    """The columns that the library looks at."""
    return {column for each in rules.expectations for column in _columns(each)}


def _tally(expectation: Expectation) -> Tally:
    return Tally(_name(expectation), expectation.type, _columns(expectation), expectation.severity)


def _name(expectation: Expectation) -> str:
    columns = ", ".join(_columns(expectation))
    return expectation.name or f"{expectation.type.removeprefix('expect_')} {columns}".strip()


@cache
def _context() -> Any:
    """A context of Great Expectations without files and progress bars."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    silence()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    gc.freeze()  # a collection after each block need not look at the library
    return context


def _arguments(name: str, number: int, values: pl.DataFrame, expectation: Expectation) -> dict[str, Any]:
    """The arguments. Bounds of a time column, which are text in YAML, become times."""
    kwargs = dict(expectation.kwargs)
    if not any(values.schema[column].is_temporal() for column in _columns(expectation) if column in values.columns):
        return kwargs
    for key in ("min_value", "max_value"):
        if isinstance(kwargs.get(key), str):
            try:
                kwargs[key] = datetime.fromisoformat(kwargs[key])
            except ValueError:
                where = f"params.yaml: validate.{name}.expectations.{number}.kwargs.{key} = {kwargs[key]}"
                raise ParamsError(f"{where}: must be a date or time such as 2017-12-31") from None
    return kwargs


def _first_exception(info: Any) -> str | None:
    """The message of the first exception of an expectation or of a metric that it needs."""
    parts = [info] if "raised_exception" in info else list(info.values())
    messages = [str(part["exception_message"]) for part in parts if part.get("raised_exception")]
    return messages[0].strip().splitlines()[0].rstrip(".") if messages else None


def render_page(name: str, result: Any) -> str | None:
    """The Data Docs of one table in HTML, without time and random ids: the same result gives the same page. Styles
    are loaded from the network. A failure is logged, not raised: None.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    try:
        page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
    except Exception as error:  # noqa: BLE001  (a page for people, no result)
        log.warning("validate: %s: Great Expectations could not render its page: %s", name, error)
        return None
    ids = {each: f"id-{place}" for place, each in enumerate(dict.fromkeys(RANDOM_ID.findall(page)))}
    return RENDERED_AT.sub("", RANDOM_ID.sub(lambda found: ids[found[0]], page))


def without_row_lists(result: Any) -> Any:
    """The result with JSON values, without the lists of all rows, which would be rendered one by one."""
    result.result.update({key: as_json_value(value) for key, value in result.result.items()})
    for key in ("unexpected_list", "unexpected_index_list", "unexpected_index_query", "partial_unexpected_counts"):
        result.result.pop(key, None)
    return result
