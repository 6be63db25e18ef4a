"""The `evergreen` command. Its help imports no heavy library: each verb has a file of its name, which imports what it needs."""

import sys
from importlib import import_module

import typer

from evergreen.flows.cli.common import with_shared_options
from evergreen.tasks.core import garbage, paths
from evergreen.tasks.core.errors import EvergreenError

GROUPS = {
    "Start": ("demo", "init", "params", "doctor"),
    "Train": ("train", "refresh", "retrain", "backtest"),
    "Predict": ("score", "serve", "recommend", "events", "labels", "keys", "export"),
    "Operate": ("console", "monitor", "suggestion", "schedule", "rollout", "rollback", "prune", "upgrade"),
    "Inspect": ("status", "history", "why", "cohorts", "reproduce", "report"),
}
"""Group of the help -> its verbs, in the order in which a person meets them."""


def _build() -> typer.Typer:
    made = typer.Typer(
        help="Keeps machine-learning models fresh: validate, tune, judge, deploy, watch, retrain.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for group, verbs in GROUPS.items():
        for verb in verbs:
            command = getattr(import_module(f"evergreen.flows.cli.{verb}"), verb)
            if isinstance(command, typer.Typer):
                made.add_typer(command, name=verb, rich_help_panel=group)
            else:
                made.command(verb, rich_help_panel=group)(with_shared_options(command))
    return made


app = _build()


def main() -> None:
    """Run the command line. Expected errors are one line on stderr and exit status 1."""
    garbage.collect_seldom()
    try:
        app()
    except EvergreenError as error:
        if "--debug" in sys.argv:
            raise
        _fail(f"error: {error}", 1)
    except OSError as error:
        line = paths.refusal(error)
        if "--debug" in sys.argv or line is None:
            raise
        _fail(f"error: {line}", 1)


def _fail(line: str, code: int) -> None:
    typer.echo(line, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
