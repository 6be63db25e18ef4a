"""`evergreen recommend`: lists for users, or for an anonymous basket."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import (
    AsOf,
    Name,
    Version,
    as_day,
    as_object,
    cell,
    find,
    print_json,
    print_table,
    read_params,
    say,
)


def recommend(
    name: Name,
    who: Annotated[list[str] | None, typer.Argument(help="User ids; omit for an anonymous user.", show_default=False)] = None,
    items: Annotated[str, typer.Option(help="Item ids in the basket, comma-separated.")] = "",
    at: Annotated[str | None, typer.Option(help="Place: a value of features.place.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Length of a list; default: params, as for the options below.")] = None,
    show: Annotated[str | None, typer.Option(help="all, rebuy, discover or blend.")] = None,
    blend: Annotated[float | None, typer.Option(help="With blend: share of the list for new items.")] = None,
    diversity: Annotated[float | None, typer.Option(help="From 0 to 1.")] = None,
    explore: Annotated[float | None, typer.Option(help="Share of the list for exploration.")] = None,
    rules: Annotated[
        str, typer.Option(help='JSON, such as {"max_per_category": 2}; the keys are those of lists.rules.')
    ] = "{}",
    as_of: AsOf = None,
    version: Version = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Recommend items to users, or to an anonymous user with a basket, with a reason for each item."""
    from evergreen.flows.operations.recommend import recommend as run

    place = find(root)
    wanted = {"users": tuple(who or ()), "items": tuple(filter(None, items.split(","))), "place": at, "k": k, "show": show}
    wanted |= {
        "blend": blend,
        "diversity": diversity,
        "explore": explore,
        "rules": as_object("--rules", rules),
        "as_of": as_day(as_of),
    }
    found = run(place, read_params(place), name, wanted, version)
    for line in found.notes:
        say(line)
    if as_json:
        print_json({"problem": name, "version": found.version, "lists": found.lists, "notes": found.notes})
    else:
        columns = list(found.lists[0]) if found.lists else []
        print_table(columns, [[cell(value) for value in row.values()] for row in found.lists])
