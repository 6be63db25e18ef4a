"""The section of the page about the validation of the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evergreen.monitoring.report import formatting
from evergreen.tasks.core.paths import Layout


@dataclass(frozen=True)
class Rule:
    """What became of one rule."""

    name: str
    type: str
    columns: str
    severity: str
    ok: bool
    result: str
    checked: int | None
    failed: int | None
    share: float | None
    example: str


@dataclass(frozen=True)
class Table:
    """The validation of one table."""

    name: str
    read: int | None
    kept: int | None
    quarantined: int | None
    duplicates: int | None
    received: int
    """Rows among those read that servers received."""
    rules: list[Rule]
    errors: int
    warnings: int
    passed: bool
    page: str | None
    """Address of its page in Great Expectations' own form."""

    @property
    def bad_share(self) -> float:
        return (self.quarantined or 0) / self.read if self.read else 0.0


def validated_tables(layout: Layout, results: Mapping[str, Any]) -> list[Table]:
    """The validated tables, from what validate wrote."""
    return [_table(layout, str(name), each) for name, each in (results.get("tables") or {}).items()]


def _table(layout: Layout, name: str, result: Mapping[str, Any]) -> Table:
    path = layout.validation / result["page"] if result.get("page") else None
    rules = [_rule(rule) for rule in result.get("rules") or []]
    failed = [rule for rule in rules if not rule.ok]
    warnings = sum(rule.severity == "warning" for rule in failed)
    return Table(
        name=name,
        read=result.get("read"),
        kept=result.get("kept"),
        quarantined=result.get("quarantined"),
        duplicates=result.get("duplicates"),
        received=result.get("received") or 0,
        rules=sorted(rules, key=lambda rule: (rule.ok, rule.severity == "warning")),
        errors=len(failed) - warnings,
        warnings=warnings,
        passed=bool(result.get("passed", True)),
        page=path.relative_to(layout.page.parent).as_posix() if path and path.is_file() else None,
    )


def _rule(rule: Mapping[str, Any]) -> Rule:
    ok, severity = bool(rule.get("passed")), str(rule.get("severity"))
    bad = "warned" if severity == "warning" else "set aside" if rule.get("level") == "row" else "stops the run"
    return Rule(
        name=str(rule.get("name") or rule.get("type")),
        type=str(rule.get("type")),
        columns=", ".join(rule.get("columns") or ()),
        severity=severity,
        ok=ok,
        result="holds" if ok else "cannot be computed" if rule.get("problem") else bad,
        checked=rule.get("checked"),
        failed=rule.get("failed"),
        share=rule.get("share"),
        example=rule.get("problem") or _example(rule.get("examples") or ()) or _observed(rule.get("observed")),
    )


def _example(examples: Sequence[Mapping[str, Any]]) -> str:
    """The first row that breaks a rule."""
    if not examples:
        return ""
    values: Mapping[str, Any] = examples[0]["values"]
    return ", ".join([f"row {examples[0]['row']}", *(f"{name} {value}" for name, value in values.items())])


def _observed(value: Any) -> str:
    return "" if value is None or isinstance(value, Mapping | list) else f"seen: {formatting.setting(value)}"
