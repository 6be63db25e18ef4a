"""Artifacts of a run on a Prefect server: scores and verdict, the decision of a monitoring run, links, progress.

They are for people: where one cannot be made, the run goes on. Outside a run nothing is made.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any
from uuid import UUID

from prefect import artifacts
from prefect.context import FlowRunContext, TaskRunContext

from evergreen.flows import running_steps, settings
from evergreen.flows.prefect_runtime import deployments
from evergreen.monitoring.ledger.records import Decision
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout, read_json

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0
"""Between two updates of a progress artifact."""


def _for_people(work: Callable[..., None]) -> Callable[..., None]:
    """Skip `work` outside a run, and log a failure of it."""

    @wraps(work)
    def tried(*given: Any) -> None:
        if FlowRunContext.get() is None and TaskRunContext.get() is None:
            return
        try:
            work(*given)
        except Exception as error:  # noqa: BLE001  # the run matters more
            log.warning("no artifact: %s", " ".join(str(error).split())[:200])

    return tried


def key(params: Params, problem: str, what: str) -> str:
    """Key of an artifact, whose versions the server lists together: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{deployments.queue(params)} {problem} {what}".lower()).strip("-")


@_for_people
def publish_verdict(layout: Layout, problem: str, version: int, verdict: dict[str, Any], action: str) -> None:
    """The scores of a challenger as a table, with the gate's verdict above, and links to its MLflow run and the page."""
    params = load(layout.params)
    judged = {
        "metric": f"{verdict['metric']}, judged",
        f"v{version}": _number(verdict["candidate"]),
        "compared with": f"{verdict['against']}: {_number(verdict['other'])}",
        "gain": f"{_number(verdict['gain'])} {_interval(verdict)}",
        "rows": verdict["rows"],
    }
    scores = read_json(layout.report(problem) / "metrics.json").items()
    artifacts.create_table_artifact(
        table=[
            judged,
            *({"metric": name, f"v{version}": f"{_number(each.get('score'))} {_interval(each)}"} for name, each in scores),
        ],
        key=key(params, problem, "verdict"),
        description=f"**{problem}** v{version}: {verdict['reason']}{'; its rollout begins' if action == 'begin' else ''}",
    )
    registry = settings.registry(layout)
    run = registry.run_page(registry.require(problem, version))
    lines = [
        f"- Report page: `{layout.page.relative_to(layout.root)}` in the project's folder",
        f"- MLflow run: {f'[v{version}]({run})' if run.startswith('http') else run}",
    ]
    artifacts.create_markdown_artifact(
        "\n".join([f"# {problem} v{version}", *lines]), key=key(params, problem, "links"), description="Page and MLflow run"
    )


def _number(value: float | None) -> str:
    """Four significant digits; "" for what is not known."""
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def _interval(found: Mapping[str, Any]) -> str:
    """[low, high]; "" for what is not known."""
    low, high = (_number(found.get(name)) for name in ("low", "high"))
    return f"[{low}, {high}]" if low and high else ""


@_for_people
def publish_decision(layout: Layout, decision: Decision) -> None:
    """The decision of a monitoring run with its evidence."""
    artifacts.create_markdown_artifact(
        decision_text(decision),
        key=key(load(layout.params), decision.problem, "decision"),
        description=f"{decision.problem}: {decision.reason}",
    )


def decision_text(decision: Decision) -> str:
    """A decision and its evidence as markdown."""
    window = decision.window
    lines = [
        f"# {decision.problem}: {'retrain' if decision.retrain else 'no retraining'}",
        "",
        decision.reason,
        "",
        f"Window {window.since:%Y-%m-%d} to {window.until:%Y-%m-%d}: {window.rows:,} predictions of v{window.version}, "
        f"{window.new_labels:,} rows with new labels.",
    ]
    if found := window.performance:
        lines += ["", f"| {found.metric} | score | low | high | rows |", "| --- | --- | --- | --- | --- |"]
        for name in ("expected", "realised", "estimated"):
            each = getattr(found, name)
            numbers = " | ".join("" if value is None else f"{value:.4g}" for value in (each.score, each.low, each.high))
            lines.append(f"| {name} | {numbers} | {each.rows:,} |")
    if window.drift.skipped:
        lines += ["", f"Drift was not tested: {window.drift.skipped}."]
    changes = [each for each in window.drift.changes if each.significant]
    if changes:
        lines += ["", "| column | what changed | alarm | effect | how |", "| --- | --- | --- | --- | --- |"]
        for each in changes:
            cells = (
                each.column,
                each.aspect,
                "**alarm**" if each.alarm else "no",
                "" if each.effect is None else f"{each.effect:.3g}",
                each.reason,
            )
            lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


class Progress:
    """The progress of a step as an artifact of its run, made at the first line that says `trial N of M`."""

    def __init__(self, layout: Layout, step: str, problem: str | None) -> None:
        self.layout, self.step, self.problem = layout, step, problem
        self.artifact: UUID | None = None
        self._next = 0.0

    def follow(self, line: str) -> None:
        """Update the artifact by a line of the step."""
        if (percent := running_steps.percent(line)) is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            _show(self, percent)

    def finish(self) -> None:
        """Set the artifact to 100 %, if the step made one."""
        if self.artifact:
            _show(self, 100.0)


@_for_people
def _show(progress: Progress, percent: float) -> None:
    if progress.artifact is None:
        where = progress.problem or "all"
        made = artifacts.create_progress_artifact(
            percent, key=key(load(progress.layout.params), where, progress.step), description=f"{progress.step} of {where}"
        )
        progress.artifact = made if isinstance(made, UUID) else None
    else:
        with suppress(ValueError):  # the artifact was deleted in the UI
            artifacts.update_progress_artifact(progress.artifact, percent)
