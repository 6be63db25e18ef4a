"""`evergreen refresh`: tell DVC what changed at the sources that it cannot see."""

from pathlib import Path

from evergreen.flows.cli.common import find, print_json, read_params, say


def refresh(*, root: Path, as_json: bool) -> None:
    """Write sources.lock: the state of sources in S3, and what servers received. Then `dvc repro` reads what changed."""
    from evergreen.flows.operations import event_snapshots

    place = find(root)
    changed = event_snapshots.update(place, read_params(place))
    if as_json:
        print_json({"changed": changed})
    else:
        say("sources.lock changed; dvc repro reads the sources again" if changed else "Nothing changed.")
