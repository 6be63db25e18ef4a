"""`evergreen upgrade`: bring the database, dvc.yaml and .gitignore of an earlier version to the present ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evergreen.flows.cli.common import find, print_json, say

if TYPE_CHECKING:
    from evergreen.flows.operations.upgrade import Upgrade
    from evergreen.flows.operations.upgrade_stages import StagesUpgrade


def upgrade(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be changed.")] = False,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Bring database, dvc.yaml and .gitignore of an earlier version to the present ones. Stop servers and schedules first."""
    from evergreen.flows import settings
    from evergreen.flows.operations import upgrade as upgrading
    from evergreen.flows.operations import upgrade_stages
    from evergreen.flows.operations.init_project import ignore
    from evergreen.tasks.core.errors import ProjectError

    address, place = settings.Settings().database, None  # an address needs no project folder
    try:
        place = find(root)
        address = address or settings.read(place).database
    except ProjectError:
        if not address:
            raise
    stages, ignored = upgrade_stages.NOTHING, list[str]()
    if place:
        upgrade_stages.run(place, dry_run=True)  # says what is wrong with dvc.yaml before anything changes
    done = upgrading.run(address, dry_run)
    if place:
        stages, ignored = upgrade_stages.run(place, dry_run), ignore(place.root, dry_run)
    if as_json:
        print_json({**done._asdict(), "ignored": ignored, "stages": stages._asdict(), "changed": not dry_run})
        return
    for line in (*_database(done, dry_run), *_stages(stages), *_ignored(ignored)):
        say(line)
    if dry_run:
        say("Nothing was changed.")


def _database(done: "Upgrade", dry_run: bool) -> Iterator[str]:
    from evergreen.tasks.core.schema_revision import describe

    if done.before is None:
        yield f"{done.address}: no tables yet; the first command makes them"
    elif done.before == done.after:
        yield f"{done.address}: revision {done.after}; nothing to do"
    elif dry_run:
        yield f"{done.address}: {describe(done.before)} now, an upgrade makes it revision {done.after}"
    else:
        yield f"{done.address}: upgraded, {describe(done.before)} before, revision {done.after} now"


def _stages(done: "StagesUpgrade") -> Iterator[str]:
    yield from (f"dvc.yaml: {each}" for each in done.changed)
    yield from (f"dvc.yaml: {each}. The stage was edited by hand and stays; make this change there" for each in done.edited)
    if done.changed:
        yield "dvc.yaml: the next evergreen train, or dvc repro, runs these stages again"


def _ignored(entries: Sequence[str]) -> Iterator[str]:
    if entries:
        yield f".gitignore: {', '.join(entries)} added"
