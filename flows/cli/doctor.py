"""`evergreen doctor`: check this machine and project."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import print_json, print_table, say


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended without a loss.")] = False,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Check versions, services, disk and state; print what to do."""
    from evergreen.flows.operations import doctor as checks

    findings = checks.examine(root.resolve())
    if repair and (done := checks.repair(findings)):
        for line in done:
            say(line)
        findings = checks.examine(root.resolve())
    if as_json:
        print_json({each.subject: {"ok": each.ok, "found": each.found, "advice": each.advice} for each in findings})
    else:
        print_table(
            ("", "what", "found", "what to do"),
            [("✓" if e.ok else "✗", e.subject, e.found, "" if e.ok else e.advice) for e in findings],
        )
    if not all(each.ok for each in findings):
        raise typer.Exit(1)
