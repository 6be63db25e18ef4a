"""`evergreen labels`: upload ground-truth labels."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evergreen.flows.cli.common import (
    Name,
    find,
    local_file,
    print_json,
    print_table,
    read_params,
    say,
)

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.rejected_labels import KeptLabel

SHOWN = 10
"""Number of rejected rows that are printed."""


def labels(
    name: Name,
    data: Annotated[
        str | None,
        typer.Option(help="csv or parquet, a file or s3://BUCKET/KEY: id, or entity key and cutoff or at; and the label."),
    ] = None,
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
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Show the newest rejected labels, with the rule that each broke.")
    ] = False,
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
    if rejected:
        _show_rejected(settings.ledger(place).rejected_labels(name), name, as_json)
        return
    if data is None:
        raise typer.BadParameter("name a file of labels, or give --rejected", param_hint="--data")
    columns = ledger_labels.Columns(label=label, id=id, entity=entity, time=time, known=known)
    with local_file(data) as path:
        given = read_all(path)
    found = ledger_labels.label(settings.ledger(place), name, kind, section, given, columns)
    counts = {each: getattr(found, each) for each in ("matched", "pending", "duplicate", "changed")}
    if as_json:
        reasons = [{"row": each.index, "reason": each.reason} for each in found.rejected]
        print_json({"problem": name, **counts, "rejected": reasons})
    else:
        for each in found.rejected[:SHOWN]:
            say(f"row {each.index + 1}: {each.reason}")
        if found.rejected:
            say(f"evergreen labels {name} --rejected shows the newest of all")
        row = [f"{n:,}" for n in (*counts.values(), len(found.rejected))]
        print_table(("matched", "pending", "duplicate", "changed", "rejected"), [row])
    if found.rejected and not any(counts.values()):
        raise typer.Exit(1)


def _show_rejected(kept: "Sequence[KeptLabel]", name: str, as_json: bool) -> None:
    if as_json:
        print_json({"problem": name, "rejected": [{**asdict(each), "at": each.at.isoformat()} for each in kept]})
        return
    print_table(("sent", "label", "rule"), [(f"{each.at:%Y-%m-%d %H:%M}", each.label, each.reason) for each in kept])
