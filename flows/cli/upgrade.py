"""`evergreen upgrade`: bring the database and the .gitignore of an earlier version to the present ones."""

from contextlib import nullcontext, suppress
from pathlib import Path

from evergreen.flows.cli.common import find, print_json, say


def upgrade(*, root: Path, as_json: bool) -> None:
    """Bring the database and the .gitignore of an earlier version to the present ones. Stop servers and schedules first."""
    from evergreen.flows import settings
    from evergreen.flows.operations import upgrade as upgrading
    from evergreen.flows.operations.init_project import ignore
    from evergreen.tasks.core.errors import ProjectError
    from evergreen.tasks.core.schema_revision import describe

    address, ignored = settings.Settings().database, list[str]()  # an address needs no project folder
    with suppress(ProjectError) if address else nullcontext():
        place = find(root)
        address = address or settings.read(place).database
        ignored = ignore(place.root)
    done = upgrading.run(address)
    if as_json:
        print_json({**done._asdict(), "ignored": ignored})
        return
    if ignored:
        say(f".gitignore: {', '.join(ignored)} added")
    if done.before is None:
        say(f"{done.address}: no tables yet; the first command makes them")
    elif done.before == done.after:
        say(f"{done.address}: revision {done.after}; nothing to do")
    else:
        say(f"{done.address}: upgraded, {describe(done.before)} before, revision {done.after} now")
