"""`evergreen history`: every decision about a problem."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import Name, as_moment, find, print_json, print_table, read_params, say, short


def history(
    name: Name,
    at: Annotated[str | None, typer.Option(help="Only decisions up to that moment: YYYY-MM-DD, or with a time (UTC).")] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Every decision about a problem, every retraining with its reason, and the champion at a moment."""
    from evergreen.flows import settings

    place = find(root)
    known = read_params(place)
    moment = as_moment(at) if at else None
    deployments = settings.deployments(place)
    decisions = sorted(deployments.history(name, moment), key=lambda each: each.at)
    if not decisions:  # what was decided stays known when its problem is gone from params.yaml
        known.section(name)
    champion = deployments.champion(name, moment)
    begun = [each for each in settings.decision_log(place).retrainings(name) if moment is None or each.started <= moment]
    if as_json:
        records = {"decisions": decisions, "retrainings": begun}
        shown = {key: [each.model_dump(mode="json") for each in rows] for key, rows in records.items()}
        print_json({"problem": name, "champion": champion, **shown})
        return
    rows = [(each.at, each.action, f"v{each.version}", each.by, each.reason) for each in decisions]
    rows += [(each.started, "retrain", "", each.by, each.reason) for each in begun]
    cells = [(short(at), *more) for at, *more in sorted(rows, key=lambda row: row[0])]
    print_table(("when (UTC)", "action", "version", "by", "reason"), cells)
    say(f"{name}: champion {f'v{champion}' if champion else 'none'}{f' at {at}' if at else ''}")
