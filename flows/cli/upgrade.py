"""`evergreen upgrade`: bring the database of an earlier version to the present tables."""

from pathlib import Path

from evergreen.flows.cli.common import find, print_json, say


def upgrade(*, root: Path, as_json: bool) -> None:
    """Bring the database of an earlier version to the present tables. Stop servers and schedules first."""
    from evergreen.flows import settings
    from evergreen.flows.operations import upgrade as upgrading
    from evergreen.tasks.core.schema_revision import describe

    address = settings.Settings().database or settings.read(find(root)).database  # the first needs no project folder
    done = upgrading.run(address)
    if as_json:
        print_json(done._asdict())
    elif done.before is None:
        say(f"{done.address}: no tables yet; the first command makes them")
    elif done.before == done.after:
        say(f"{done.address}: revision {done.after}; nothing to do")
    else:
        say(f"{done.address}: upgraded, {describe(done.before)} before, revision {done.after} now")
