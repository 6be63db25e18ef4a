"""`evergreen keys`: access keys of servers and their scopes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evergreen.flows.cli.common import find, print_json, print_table, say, short, with_shared_options

if TYPE_CHECKING:
    from evergreen.serving.keys import Key

keys = typer.Typer(help="API keys of the server: add, list, revoke.", no_args_is_help=True)


def add(
    name: Annotated[str, typer.Argument(help="Name of the user of the key.")],
    scope: Annotated[list[str], typer.Option(help="predict, events, labels or admin (all of them); may be given again.")],
    problem: Annotated[
        list[str] | None, typer.Option(help="A problem that the key is for; may be given again. None: all problems.")
    ] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Make a key. Its secret is printed once and never stored."""
    from evergreen.flows import settings

    layout, problems = find(root), sorted(set(problem or ()))
    if problems:
        from evergreen.tasks.config.loading import load

        params = load(layout.params)
        for each in problems:
            params.section(each)
    secret = settings.keys(layout).add(name, scope, problems)
    if as_json:
        print_json({"name": name, "scopes": sorted(set(scope)), "problems": problems, "secret": secret})
    else:
        typer.echo(secret)
        say("Shown only once. Send it as Authorization: Bearer KEY.")


def list_(*, root: Path, as_json: bool) -> None:
    """List all keys, revoked ones too, without their secrets."""
    from evergreen.flows import settings

    found = settings.keys(find(root)).list()
    if as_json:
        print_json({"keys": [_shown(key) for key in found]})
        return
    cells = [
        (
            key.name,
            ", ".join(sorted(key.scopes)),
            ", ".join(sorted(key.problems)) or "all",
            short(key.created),
            short(key.revoked) if key.revoked else "",
        )
        for key in found
    ]
    print_table(("name", "scopes", "problems", "made (UTC)", "revoked"), cells)


def revoke(
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Revoke a key; running servers reject it within two seconds."""
    from evergreen.flows import settings

    key = settings.keys(find(root)).revoke(name)
    if as_json:
        print_json(_shown(key))
    else:
        say(f"{key.name}: revoked; running servers reject it within two seconds")


def _shown(key: "Key") -> dict[str, Any]:
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "problems": sorted(key.problems),
        "created": key.created,
        "revoked": key.revoked,
    }


for _name, _command in (("add", add), ("list", list_), ("revoke", revoke)):
    keys.command(_name)(with_shared_options(_command))
