"""`evergreen init`: from a file to a problem in params.yaml."""

import dataclasses
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import (
    print_json,
    print_table,
    say,
)


def init(
    name: Annotated[str, typer.Argument(help="What the problem and its table are called from now on.")],
    data: Annotated[str, typer.Option(help="csv or parquet file, or s3://BUCKET/KEY; with --url, a query.")],
    target: Annotated[str | None, typer.Option(help="Column to predict; none: clustering.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="classification, regression, clustering or recommendation.", show_default="inferred")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Column of dates that orders the rows; none: no column does.", show_default="inferred")
    ] = None,
    entity: Annotated[
        str | None, typer.Option(help="Column of the entity of a row; none: no column is.", show_default="inferred")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column that is no feature; may be given again.")] = None,
    url: Annotated[str | None, typer.Option(help="SQLAlchemy URL of a database, or env:NAME; --data is then a query.")] = None,
    user: Annotated[str | None, typer.Option(help="recommendation: column of the user.")] = None,
    item: Annotated[str | None, typer.Option(help="recommendation: column of the item.")] = None,
    basket: Annotated[
        str | None, typer.Option(help="recommendation: column of the basket.", show_default="one per time")
    ] = None,
    order: Annotated[str | None, typer.Option(help="recommendation without dates: column that numbers the orders.")] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Read a table, infer what it holds, and draft a problem in params.yaml; where there is no project, begin one."""
    from evergreen.flows.operations import init_project
    from evergreen.tasks.onboarding.options import InitOptions, parse_kind
    from evergreen.tasks.onboarding.schema_inference import describe_columns

    asked = InitOptions(target, parse_kind(kind), time, entity, tuple(drop or ()), user, item, basket, order)
    started = init_project.run(name, data, url, asked, root, Path.cwd(), date.today())
    found = started.found
    if as_json:
        summary = {"problem": name, "root": started.root, "made": started.made, "warnings": started.warnings}
        print_json({**summary, **dataclasses.asdict(dataclasses.replace(found, warnings=()))})
        return
    print_table(("column", "role", "holds", "why"), list(describe_columns(found)))
    about = [("kind", found.kind), ("target", found.target), ("positive_class", found.positive_class)]
    about += [("entity", found.entity), ("time", found.time)]
    for key, value in about:
        if value:
            reason = found.reasons.get(key, "")
            say(f"{key}: {value}{f' ({reason})' if reason else ''}")
        if key in found.costs:
            say(f"  {found.costs[key]}")
    for line in started.warnings:
        say(f"warning: {line}")
    features = f", {len(found.features)} features" if found.kind != "recommendation" else ""
    say(f"{name}: {found.rows:,} rows{features}. Written in {started.root}: {', '.join(started.made)}")
    say(f"Look at the section {name} in params.yaml, then: evergreen train {name} --seconds 60")
