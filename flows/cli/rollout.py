"""`evergreen rollout`: show or control a rollout."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from evergreen.flows.cli.common import Name, me, open_problem, print_json, print_table, say, short

Act = Annotated[
    Literal["status", "pause", "resume", "promote", "abort"],
    typer.Argument(help="status also judges the rollout, as servers do; the others need --reason."),
]


def rollout(
    act: Act,
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Show or control a rollout: status, pause, resume, promote, abort."""
    from evergreen.flows import settings
    from evergreen.flows.operations import rollouts as rolling

    place, _ = open_problem(root, name)
    judgement = None
    if act == "status":
        judgement = rolling.advance(place, [name]).get(name)
    else:
        rolling.steer(place, name, act, me(), reason)
    summary = rolling.summarize(place, name)
    champion = settings.deployments(place).champion(name)
    if as_json:
        print_json({**summary, "champion": champion, "judgement": judgement})
        return
    _show(name, champion, summary)
    if judgement:
        say(judgement)


def _show(name: str, champion: int | None, summary: dict[str, Any]) -> None:
    stands = summary["rollout"]
    if stands:
        counts = stands["requests"]
        print_table(
            ("problem", "strategy", "champion", "candidate", "share", "since (UTC)", "state", "requests", "errors"),
            [
                (
                    name,
                    stands["policy"]["strategy"],
                    f"v{stands['champion']}",
                    f"v{stands['candidate']}",
                    f"{stands['share']:.0%}",
                    short(stands["since"]),
                    stands["state"],
                    f"{counts['candidate']['requests']:,} and {counts['champion']['requests']:,}",
                    f"{counts['candidate']['errors']:,} and {counts['champion']['errors']:,}",
                )
            ],
        )
    else:
        say(f"{name}: no rollout in progress; champion {f'v{champion}' if champion else 'none'}")
    for each in summary["servers"]:
        serves = f"v{each['champion']}" if each["champion"] else "nothing"
        trial = f", candidate v{each['candidate']}" if each["candidate"] else ""
        error = f"; {each['error']}" if each["error"] else ""
        say(f"server {each['server']}: {serves}{trial}{error}")
