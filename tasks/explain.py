"""Explain the evaluated model on unseen rows: importance, contributions, dependence, error slices, cost and model card."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Section, Tabular
from evergreen.tasks.core import received_counts
from evergreen.tasks.core.paths import MODEL, Layout, read_json, writing
from evergreen.tasks.explanation.column_values import MAX_COLUMNS
from evergreen.tasks.explanation.error_slices import find_error_slices
from evergreen.tasks.explanation.example_explanations import MAX_PREDICTIONS, Contributions, explain_examples
from evergreen.tasks.explanation.model_card import card, markdown
from evergreen.tasks.explanation.model_outputs import MAX_CLASSES
from evergreen.tasks.explanation.partial_dependence import partial_dependence
from evergreen.tasks.explanation.permutation_importance import SHUFFLES, permutation_importance
from evergreen.tasks.explanation.serving_cost import measure_serving_cost
from evergreen.tasks.model_files.onnx_export import compile_for_explanation
from evergreen.tasks.model_files.onnx_runtime import Compiled
from evergreen.tasks.model_files.trained_model import load_evaluated_model
from evergreen.tasks.problems.base import ExplainedKind, Fold, Model, RowKind
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.rows import Rows
from evergreen.tasks.search import time_budget

log = logging.getLogger(__name__)

SLICE_ROWS = 20_000
"""Most rows that error slices are looked for in."""
OTHER_WORK = 1.5
"""Time of an explanation in relation to that of its predictions."""
MIN_AFFORDABLE = 0.02
"""A smaller share of an explanation is none."""
MIN_ROWS = 50
"""Rows to explain, where time is short."""


class Result(Section):
    explanation: str
    """Path of explanation.json."""
    card: str
    """Path of card.md."""
    top_features: list[str]
    """The columns that matter most, up to three."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Explain the evaluated model of `problem`; writes the folder explanation: explanation.json, its tables and card.md.

    Raises StepError where train did not run for these windows.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section: Any = params.section(problem)
    kind = problems.kind(params.kind(problem))
    data = kind.load(layout.features(problem), section)
    fold = kind.splits(data, section).tests[-1]
    model, _ = load_evaluated_model(layout.model(problem), problem, fold)
    found: dict[str, Any] = {"problem": problem, "kind": kind.name, "of": str(fold.test)}
    if sample := problems.describe_sample(kind, data):
        found["sample"] = sample
    tables: dict[str, pl.DataFrame] = {}
    if isinstance(kind, RowKind):
        few, many = _test_rows(kind, data, fold, section, params.project.seed)
        share = affordable_share(kind, model, few, _seconds_left(params, problem, layout))
        compiled = compile_for_explanation(model, data.features)
        if share < MIN_AFFORDABLE:
            found["note"] = "The time budget left no time for an explanation; a longer tune.budget_seconds leaves some."
        else:
            given = few, many, section, params.project.seed, problem, compiled, share
            explanation, tables = explain(kind, model, *given)
            found |= explanation
    else:
        found["note"] = f"{kind.name} predicts lists; each item of a list comes with its own explanation."
    found["serving"] = measure_serving_cost(layout.model(problem) / MODEL, kind, data, section)
    found["card"] = _card(params, problem, layout, found)
    folder = layout.report(problem) / "explanation"
    _write(folder, found, tables)
    top = [str(each["column"]) for each in found.get("importance", [])[:3] if (each["importance"] or 0) > 0]
    most = f"the most important columns are {', '.join(top)}" if top else "no column is important"
    log.info("%s: explain: %s", problem, found.get("note") or most)
    return Result(explanation=str(folder / "explanation.json"), card=str(folder / "card.md"), top_features=top)


def _test_rows(kind: RowKind, data: Rows, fold: Fold, section: Tabular, seed: int) -> tuple[Rows, Rows]:
    """evaluate.explain_rows rows of the test window to explain, and up to SLICE_ROWS of them for error slices."""
    test = row_subset.places(data, (fold.test,), labelled=isinstance(kind, ExplainedKind))
    order = row_subset.by_entity(data, test, seed)
    few, many = (row_subset.subset(data, np.sort(order[:most])) for most in (section.evaluate.explain_rows, SLICE_ROWS))
    return few, many


def _seconds_left(params: Params, problem: str, layout: Layout) -> float:
    """What the wall time of the command leaves to the explanation; infinite where there is no such limit."""
    return time_budget.clock(params, problem, layout, "explain").left() if time_budget.commanded() else math.inf


def affordable_share(kind: RowKind, model: Model, rows: Rows, seconds: float) -> float:
    """The share of an explanation of `rows` that `seconds` are enough for, at most 1, by the time of one prediction of them."""
    if seconds == math.inf:
        return 1.0
    began, columns = time.monotonic(), rows.features.shape[1]
    kind.predict_rows(model, rows.features)
    per_row = (time.monotonic() - began) / max(len(rows), 1)
    shuffled = len(rows) * (columns + (SHUFFLES - 1) * min(columns, MAX_COLUMNS))
    expected = OTHER_WORK * per_row * (shuffled + MAX_PREDICTIONS)
    return min(max(seconds, 0.0) / max(expected, 1e-9), 1.0)


def explain(
    kind: RowKind,
    model: Model,
    rows: Rows,
    many: Rows,
    section: Tabular,
    seed: int,
    label: str = "",
    compiled: Compiled | None = None,
    share: float = 1.0,
) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """What explanation.json holds about `model`, and its tables by name.

    `rows`: of the one part ROWS, unseen in training. `many`: more such rows, for error slices. `compiled`: the same model.
    `share`: of the rows and predictions, where time is short.
    """
    if share < 1:
        fewer = row_subset.evenly(np.arange(len(rows)), min(len(rows), max(MIN_ROWS, round(share * len(rows)))))
        rows = row_subset.subset(rows, fewer)
    log.info("%s: explain: feature importance on %d rows", label, len(rows))
    importance = permutation_importance(kind, model, rows, section, seed)
    found: dict[str, Any] = {
        "rows": len(rows),
        "metric": kind.importance_metric,
        "importance": importance.head(MAX_COLUMNS).to_dicts(),
    }
    if not isinstance(kind, ExplainedKind):
        return found, {"permutation": importance}
    (predict, outputs), columns = kind.outputs(model, MAX_CLASSES), importance["column"].to_list()
    log.info("%s: explain: contributions of columns to predictions", label)
    contributions = Contributions(predict, outputs, rows, columns, seed, compiled, int(share * MAX_PREDICTIONS))
    found["contributions_error"] = contributions.error
    found["mean_prediction"] = dict(zip(outputs, contributions.base.tolist(), strict=True))
    found["examples"] = explain_examples(rows, contributions)
    found["error_slices"] = find_error_slices(kind, model, many, section, columns, seed)
    tables = {
        "permutation": importance,
        "contributions": contributions.table(),
        "dependence": partial_dependence(predict, outputs, rows, columns),
    }
    return found, {name: table for name, table in tables.items() if table.height}


def _card(params: Params, problem: str, layout: Layout, explanation: dict[str, Any]) -> list[dict[str, Any]]:
    """The model card, from what this step and the steps before it found."""
    report = layout.report(problem)
    diagnosis = report / "diagnosis" / "diagnosis.json"
    return card(
        params,
        problem,
        model=read_json(layout.model(problem) / "model.json"),
        evaluation=read_json(report / "evaluation" / "evaluation.json"),
        best=read_json(layout.tuning(problem) / "best.json"),
        diagnosis=read_json(diagnosis) if diagnosis.exists() else {},
        explanation=explanation,
        costs=_step_costs(layout, problem),
        received=received_counts.read(layout.features(problem)),
    )


def _step_costs(layout: Layout, problem: str) -> dict[str, dict[str, float]]:
    """Step -> the cost of its last run."""
    paths = sorted((layout.var / "costs").glob(f"*@{problem}.json"))
    return {path.stem.partition("@")[0]: read_json(path) for path in paths}


def _write(folder: Path, found: dict[str, Any], tables: dict[str, pl.DataFrame]) -> None:
    with writing(folder) as scratch:
        scratch.mkdir()
        (scratch / "explanation.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
        (scratch / "card.md").write_text(markdown(found["card"]))
        for name, table in tables.items():
            table.write_csv(scratch / f"{name}.csv")
