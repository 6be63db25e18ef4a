"""`evergreen labels`: upload ground-truth labels."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import (
    Name,
    find,
    print_json,
    print_table,
    read_params,
    say,
)

SHOWN = 10
"""Number of rejected rows that are printed."""


def labels(
    name: Name,
    data: Annotated[Path, typer.Option(help="csv or parquet: id, or entity key and cutoff or at; and the label.")],
    label: Annotated[str | None, typer.Option(help="Column of the label.", show_default="label, or as in params")] = None,
    id: Annotated[str | None, typer.Option("--id", help="Column of ids of predictions.", show_default="id")] = None,
    entity: Annotated[str | None, typer.Option(help="Column of the entity of a row.", show_default="as in params")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Column of the prediction's time, or of its cutoff.", show_default="cutoff, at or time"),
    ] = None,
    known: Annotated[
        str | None, typer.Option(help="Column of the time at which the label became known.", show_default="known_at; else now")
    ] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Upload ground-truth labels for past predictions; idempotent, late and in any order. A changed label keeps its history."""
    from evergreen.flows import settings
    from evergreen.monitoring.ledger import labels as ledger_labels
    from evergreen.tasks import problems
    from evergreen.tasks.scoring.chunks import read_all

    place = find(root)
    params = read_params(place)
    section, kind = params.section(name), problems.predictions(params.kind(name))
    columns = ledger_labels.Columns(label=label, id=id, entity=entity, time=time, known=known)
    found = ledger_labels.label(settings.ledger(place), name, kind, section, read_all(data), columns)
    counts = {each: getattr(found, each) for each in ("matched", "pending", "duplicate", "changed")}
    if as_json:
        rejected = [{"row": each.index, "reason": each.reason} for each in found.rejected]
        print_json({"problem": name, **counts, "rejected": rejected})
    else:
        for each in found.rejected[:SHOWN]:
            say(f"row {each.index + 1}: {each.reason}")
        row = [f"{n:,}" for n in (*counts.values(), len(found.rejected))]
        print_table(("matched", "pending", "duplicate", "changed", "rejected"), [row])
    if found.rejected and not any(counts.values()):
        raise typer.Exit(1)
