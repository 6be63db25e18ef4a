"""One self-contained page about everything Evergreen made: reports/index.html.

It reads what the steps left behind and draws it; what is not there, the page says so. It asks the network for nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evergreen.monitoring.report import formatting, left_out, problem_section
from evergreen.monitoring.report.left_out import Attempts
from evergreen.monitoring.report.problem_section import Answer
from evergreen.monitoring.report.production_section import ProductionRecords
from evergreen.monitoring.report.step_costs import step_costs, total_cost
from evergreen.monitoring.report.step_files import read
from evergreen.monitoring.report.validation_section import Table, validated_tables
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout, writing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Health:
    level: str
    """good, watch or bad."""
    sentence: str


SILENT = Health("watch", "The summary could not be made.")


def build(
    params: Params,
    layout: Layout,
    champions: Mapping[str, Mapping[str, Any]],
    records: Mapping[str, ProductionRecords] = MappingProxyType({}),
) -> Path:
    """Write the page from the files of `layout`, whole or not at all, and return its path.

    A chart or a section that fails is left out with its reason in its place.

    `champions`: problem -> {version, aliases, since, by, reason, verdict, lineage}; a problem without one is not deployed yet.
    `records`: problem -> its stored records in production.
    Equal files, champions and records give the same page, except for its build time. Raises StorageError.
    """
    answers = [problem_section.answer(name, params, layout, champions.get(name), records.get(name)) for name in params.problems]
    results = read(layout.validation / "results.json") or {}
    tried = Attempts("page")
    tables = tried.get("Validation", [], validated_tables, layout, results)
    page = (
        environment()
        .get_template("page.html")
        .render(
            project=params.project,
            built=datetime.now(UTC),
            answers=answers,
            health=tried.get("the summary", SILENT, _health, answers, tables, results.get("problems") or []),
            stops=results.get("problems") or [],
            tables=tables,
            shared=tried.get("What the shared steps cost", [], step_costs, layout, None),
            total=tried.get("the cost of all steps", None, total_cost, layout),
            glossary=tried.get("Glossary", [], _glossary, answers),
            left_out=tried.reasons,
        )
    )
    with writing(layout.page) as scratch:
        scratch.write_text(page, encoding="utf8")
    log.info("page: %s (%s)", layout.relative(layout.page), formatting.memory(max(1, len(page) / 2**20)))
    return layout.page


def environment() -> Environment:
    env = Environment(
        loader=PackageLoader("evergreen.monitoring"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "number": formatting.number,
        "signed": formatting.signed,
        "count": lambda value: formatting.MISSING if formatting.absent(value) else f"{int(value):,}",
        "counted": formatting.counted,
        "share": formatting.share,
        "duration": formatting.duration,
        "memory": formatting.memory,
        "day": formatting.day,
        "short_day": formatting.short_day,
        "moment": formatting.moment,
        "plain": formatting.plain,
        "label": formatting.label,
        "setting": formatting.setting,
    }
    env.globals["section"] = lambda template, title, **context: _render(env, template, title, context)
    return env


def _render(env: Environment, template: str, title: str, context: Mapping[str, Any]) -> Markup:
    """A section of the page, or the reason in its place where the template fails."""
    try:
        return Markup(env.get_template(template).render(context))
    except Exception as error:  # noqa: BLE001  # one section may not take the page away
        reasons = {title: left_out.reason(title, error)}
        return Markup(env.get_template("left_out.html").render(title=title, reasons=reasons))


def _health(answers: Sequence[Answer], tables: Sequence[Table], stops: Sequence[str]) -> Health:
    """The state of everything in one line, the worst first."""
    missing = [each.name for each in answers if each.evaluation is None]
    worse = [each.name for each in answers if each.standing == "worse"]
    unsure = [each.name for each in answers if each.standing in ("cannot tell", "same")]
    waiting = [each.name for each in answers if each.evaluation is not None and not each.champion]
    warned = sum(each.warnings for each in tables)
    apart = sum(each.quarantined or 0 for each in tables)
    told = [
        f"validation stopped the run: {stops[0]}" if stops else "",
        _told(missing, "has no evaluated model", "have no evaluated model"),
        _told(worse, "is worse than its baseline", "are worse than their baselines"),
        _told(unsure, "does not beat its baseline", "do not beat their baselines"),
        _told(waiting, "is not deployed yet", "are not deployed yet"),
    ]
    level = "bad" if stops or missing or worse else "watch" if unsure or waiting else "good"
    well = sum(each.standing == "better" and each.status == "deployed" for each in answers)
    if level == "good":
        whole = "The question is" if len(answers) == 1 else f"All {len(answers)} questions are"
        told = [f"{whole} answered by a deployed model that beats its baseline"]
    elif well:
        told.append(
            f"{well} of {formatting.counted(len(answers), 'question')} answered by a deployed model that beats its baseline"
        )
    if tables and not stops:
        told.append(
            f"the data passed validation with {formatting.counted(apart, 'row')} set aside "
            f"and {formatting.counted(warned, 'warning')}"
            if apart or warned
            else "the data passed validation"
        )
    said = "; ".join(part for part in (each.rstrip(".") for each in told) if part)
    return Health(level, (said[:1].upper() + said[1:] + ".") if said else "No problem is declared in params.yaml.")


def _told(names: Sequence[str], one: str, more: str) -> str:
    listed = " and ".join(part for part in (", ".join(names[:-1]), names[-1] if names else "") if part)
    return f"{listed} {one if len(names) == 1 else more}" if names else ""


def _glossary(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """Each metric on the page once: its name and what it means."""
    found: dict[str, tuple[str, str]] = {}
    for score in (score for answer in answers for score in answer.scores):
        sentence = formatting.meaning(score.name)
        if sentence:
            if formatting.is_novel(score.name):
                found["novel"] = formatting.NOVEL
            found.setdefault(formatting.stem(score.name), (formatting.METRICS[formatting.stem(score.name)][0], sentence))
    return sorted(found.values(), key=lambda item: item[0].lower())
