"""`evergreen keys`: who may ask what of a server."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from evergreen.flows.cli.common import HERE, Debug, Json, Root, app, find, print_json, print_table, say, short

if TYPE_CHECKING:
    from evergreen.serving.keys import Key

keys = typer.Typer(help="API keys of the server: add, list, revoke.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Who will use it.")],
    scope: Annotated[list[str], typer.Option(help="predict, events, labels or admin (all of them); may be given again.")],
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a key. Its secret is printed once and kept nowhere."""
    from evergreen.flows import settings

    secret = settings.keys(find(root)).add(name, scope)
    if as_json:
        print_json({"name": name, "scopes": sorted(set(scope)), "secret": secret})
    else:
        typer.echo(secret)
        say("This is the only time that it is shown. Send it as Authorization: Bearer KEY.")


@keys.command("list")
def list_(root: Root = HERE, as_json: Json = False, debug: Debug = False) -> None:
    """Every key there ever was, without its secret."""
    from evergreen.flows import settings

    found = settings.keys(find(root)).list()
    if as_json:
        print_json({"keys": [_shown(key) for key in found]})
        return
    cells = [
        (key.name, ", ".join(sorted(key.scopes)), short(key.created), short(key.revoked) if key.revoked else "")
        for key in found
    ]
    print_table(("name", "scopes", "made (UTC)", "revoked"), cells)


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose key ends.")],
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """End a key for good; running servers refuse it within two seconds."""
    from evergreen.flows import settings

    key = settings.keys(find(root)).revoke(name)
    if as_json:
        print_json(_shown(key))
    else:
        say(f"{key.name}: revoked; running servers refuse it within two seconds")


def _shown(key: "Key") -> dict[str, Any]:
    return {"name": key.name, "scopes": sorted(key.scopes), "created": key.created, "revoked": key.revoked}
