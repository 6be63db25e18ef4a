"""`evergreen score`: batch scoring."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evergreen.flows.cli.common import Name, Version, as_day, local_file, open_problem, print_json, print_table, say
from evergreen.tasks.core.errors import ParamsError

if TYPE_CHECKING:
    from evergreen.tasks.config.params import Params
    from evergreen.tasks.core.paths import Layout


def score(
    name: Name,
    data: Annotated[
        str | None,
        typer.Option(
            help="csv or parquet, a file or s3://BUCKET/KEY: rows of features, or entity keys alone. "
            "Default: what is new in NAME.schedule.input of a "
            "plain table; otherwise every entity, with its newest features."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="csv or parquet, written atomically. Default without --data: data/scores/NAME.parquet.")
    ] = None,
    version: Version = None,
    k: Annotated[int | None, typer.Option("--k", help="Recommendation: length of a list; default: params.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", help="Use histories (without --data: features) up to that day (YYYY-MM-DD)."),
    ] = None,
    novel: Annotated[bool, typer.Option("--novel", help="Recommendation: only items that the user never bought.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Recommendation: add a column with the reason for each item.")
    ] = False,
    no_ledger: Annotated[bool, typer.Option("--no-ledger", help="Do not write the predictions to the ledger.")] = False,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Predict every row of a file, in its order. A row without a prediction carries the reason. Recommenders write lists."""
    from evergreen.flows.operations import batch_scoring

    place, known = open_problem(root, name)
    lists = batch_scoring.Lists(k, as_day(as_of), novel, explain)
    section = known.section(name)
    plain = section.features.by_cutoff is False and section.schedule.input
    if plain and data is None and out is None and version is None and not lists.given():
        _score_new(place, known, name, ledger=not no_ledger, as_json=as_json)
        return
    if data is None:
        result = batch_scoring.newest(place, known, name, out=out, version=version, lists=lists, ledger=not no_ledger)
    elif out is None:
        raise ParamsError(f"--data {data}: needs --out FILE for the predictions")
    else:
        with local_file(data) as path:
            result = batch_scoring.run(place, known, name, path, out, version, lists, ledger=not no_ledger, say=say)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        unseen = ", ".join(f"{column} {count:,}" for column, count in result.unseen.items()) or "0"
        cells = (name, f"v{result.version}", f"{result.rows:,}", f"{result.not_scored:,}", unseen, result.out)
        print_table(("problem", "version", "rows", "not scored", "new categories", "out"), [cells])


def _score_new(place: "Layout", known: "Params", name: str, *, ledger: bool, as_json: bool) -> None:
    """Score what is new in schedule.input, as `evergreen schedule` does."""
    from evergreen.flows.operations import scheduled_scoring

    result = scheduled_scoring.run(place, known, name, ledger=ledger, say=say)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    cells = [(file, "scored", out) for file, out in result.scored.items()]
    cells += [(file, "set aside", reason) for file, reason in result.set_aside.items()]
    print_table(("input", name, ""), cells)
    say(f"{name}: {result.rows:,} rows scored by v{result.version}; {result.known:,} inputs were scored before")
