"""Rules in the vocabulary of Great Expectations, and its result pages. This module is the library's one home."""

import difflib
import logging
import os
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.data import Expectation, Rules
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.data.rules import (
    NO_ROWS,
    ROW,
    Outcome,
    RuleResult,
    as_json_value,
    missing_column,
    not_computed,
    row_result,
)

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


def run_expectations(name: str, view: pl.DataFrame, rules: Rules) -> tuple[list[RuleResult], Any]:
    """Results in the order of `rules.expectations`, and the library's own result (None without expectations)."""
    if not rules.expectations:
        return [], None
    found: dict[int, RuleResult] = {}
    for number, expectation in enumerate(rules.expectations):
        columns = _columns(expectation)
        if problem := missing_column(view, columns, "the table"):
            found[number] = not_computed(_name(expectation), expectation.type, columns, expectation.severity, problem)
    computable = {number: each for number, each in enumerate(rules.expectations) if number not in found}
    results = _run_suite(name, view, computable) if computable else None
    for result in results.results if results else ():
        number = result.expectation_config.meta["rule"]
        found[number] = _rule_result(view, computable[number], result)
    if len(found) != len(rules.expectations):
        lost = next(each for number, each in enumerate(rules.expectations) if number not in found)
        raise ParamsError(f"params.yaml: validate.{name}.expectations: {lost.type} was not checked; is it a duplicate?")
    return [found[number] for number in sorted(found)], results


def _columns(expectation: Expectation) -> tuple[str, ...]:
    """The columns that an expectation checks."""
    if expectation.type == "expect_column_to_exist":
        return ()
    single = [expectation.kwargs[key] for key in ("column", "column_A", "column_B") if key in expectation.kwargs]
    return tuple(dict.fromkeys([*single, *expectation.kwargs.get("column_list", ())]))


def _name(expectation: Expectation) -> str:
    columns = ", ".join(_columns(expectation))
    return expectation.name or f"{expectation.type.removeprefix('expect_')} {columns}".strip()


def _run_suite(name: str, view: pl.DataFrame, rules: Mapping[int, Expectation]) -> Any:
    """One pass over the table. Rows are identified by position: key columns make it a hundred times slower."""
    import great_expectations as gx

    suite = gx.ExpectationSuite(
        name=name,
        expectations=[
            {"type": each.type, "kwargs": _arguments(name, number, view, each), "meta": {"rule": number}}
            for number, each in rules.items()
        ],
    )
    asset = _context().data_sources.add_or_update_pandas("tables").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": view.drop(ROW).to_pandas()})
    return batch.validate(suite, result_format={"result_format": "COMPLETE"})


@cache
def _context() -> Any:
    """A context of Great Expectations without files and progress bars."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    silence()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _arguments(name: str, number: int, view: pl.DataFrame, expectation: Expectation) -> dict[str, Any]:
    """The arguments. Bounds of a time column, which are text in YAML, become times."""
    kwargs = dict(expectation.kwargs)
    if not any(view.schema[column].is_temporal() for column in _columns(expectation)):
        return kwargs
    for key in ("min_value", "max_value"):
        if isinstance(kwargs.get(key), str):
            try:
                kwargs[key] = datetime.fromisoformat(kwargs[key])
            except ValueError:
                where = f"params.yaml: validate.{name}.expectations.{number}.kwargs.{key} = {kwargs[key]}"
                raise ParamsError(f"{where}: must be a date or time such as 2017-12-31") from None
    return kwargs


def _rule_result(view: pl.DataFrame, expectation: Expectation, result: Any) -> RuleResult:
    columns, name = _columns(expectation), _name(expectation)
    if raised := _first_exception(result.exception_info):
        types = ", ".join(f"{column} is {view.schema[column]}" for column in columns)
        problem = f"cannot be computed, {types or 'no column'}: {raised}"
        return not_computed(name, expectation.type, columns, expectation.severity, problem)
    positions = result.result.get("unexpected_index_list")
    if positions is not None:
        at = np.asarray(positions, dtype=np.int64)
        checked = int(result.result["element_count"])
        return row_result(view, name, expectation.type, columns, expectation.severity, checked, at, bool(result.success))
    outcome = Outcome(
        name=name,
        type=expectation.type,
        columns=columns,
        severity=expectation.severity,
        level="table",
        passed=bool(result.success),
        observed=as_json_value(result.result.get("observed_value")),
    )
    return RuleResult(outcome, NO_ROWS)


def _first_exception(info: Any) -> str | None:
    """The message of the first exception of an expectation or of a metric that it needs."""
    parts = [info] if "raised_exception" in info else list(info.values())
    messages = [str(part["exception_message"]) for part in parts if part.get("raised_exception")]
    return messages[0].strip().splitlines()[0].rstrip(".") if messages else None


def render_pages(folder: Path, results: Mapping[str, Any]) -> dict[str, str]:
    """Data Docs: one page per table with a result, as table -> path relative to the parent of `folder`.

    `results`: table -> result of run_expectations. Styles are loaded from the network. A failure is logged, not raised.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    found: dict[str, str] = {}
    folder.mkdir()
    for name, result in results.items():
        if result is None:
            continue
        try:
            page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(_without_row_lists(result)))
        except Exception as error:  # noqa: BLE001  (a page for people, no result)
            log.warning("validate: %s: Great Expectations could not render its page: %s", name, error)
            continue
        (folder / f"{name}.html").write_text(page, encoding="utf8")
        found[name] = f"{folder.name}/{name}.html"
    return found


def _without_row_lists(results: Any) -> Any:
    """The result with JSON values, without the lists of all rows, which would be rendered one by one."""
    for result in results.results:
        result.result.update({key: as_json_value(value) for key, value in result.result.items()})
        for key in ("unexpected_list", "unexpected_index_list", "unexpected_index_query", "partial_unexpected_counts"):
            result.result.pop(key, None)
    return results
