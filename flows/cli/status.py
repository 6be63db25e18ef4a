"""`evergreen status`: the champion of each problem."""

import dataclasses
from pathlib import Path
from typing import Any

from evergreen.flows.cli.common import (
    find,
    number,
    print_json,
    print_table,
    read_params,
    say,
)


def status(*, root: Path, as_json: bool) -> None:
    """The champion of each problem with its score, and the newest decision."""
    from evergreen.flows.operations import state_checks
    from evergreen.flows.operations import status as results

    place = find(root)
    rows = results.rows(place, read_params(place).problems)
    if as_json:
        print_json({row.problem: dataclasses.asdict(row) for row in rows})
    else:
        print_champions(rows)
        for row in rows:
            if row.compiled and row.compiled != "yes":
                say(f"{row.problem}: serves without a compiled model ({row.compiled.removeprefix('no: ')})")
            if row.realised:
                say(f"{row.problem}: realised {row.realised}")
            if row.rollout:
                say(f"{row.problem}: {row.rollout}")
        for each in (state_checks.check_journal(place), state_checks.check_lag(place)):
            if not each.ok:
                say(f"{each.subject}: {each.found}; {each.advice}")


def print_champions(rows: Any) -> None:
    """Print one row per problem, from `status.rows`."""
    cells = [
        (
            row.problem,
            f"{row.model} v{row.version}" if row.version else "none",
            f"{row.metric} {number(row.score)} [{number(row.low)}, {number(row.high)}]" if row.score is not None else "",
            number(row.baseline),
            row.verdict or "",
            f"{row.cpu_seconds:.0f}" if row.cpu_seconds is not None else "",
        )
        for row in rows
    ]
    print_table(("problem", "champion", "score", "baseline", "newest decision", "CPU s"), cells)
