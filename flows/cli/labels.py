"""`evergreen labels` and `evergreen cohorts`: what turned out, and how good the predictions of each week were."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evergreen.flows.cli.common import (
    HERE,
    Debug,
    Json,
    Name,
    Root,
    Version,
    app,
    find,
    number,
    print_json,
    print_table,
    read_params,
    say,
)

SHOWN = 10
"""So many refused rows are printed."""


@app.command()
def labels(
    name: Name,
    data: Annotated[Path, typer.Option(help="csv or parquet: id, or the key of the entity and cutoff or at; and the truth.")],
    truth: Annotated[str | None, typer.Option(help="Column of the truth.", show_default="truth, or as in params")] = None,
    id: Annotated[str | None, typer.Option("--id", help="Column of ids of predictions.", show_default="id")] = None,
    entity: Annotated[
        str | None, typer.Option(help="Column that says whom a row is about.", show_default="as in params")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Column of the prediction's moment, or of the last day it knew.", show_default="cutoff, at or time"),
    ] = None,
    known: Annotated[
        str | None, typer.Option(help="Column of when the truth became known.", show_default="known_at; else now")
    ] = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell what became of predictions: late, in any order, again. Each truth is kept once, a changed one with the old."""
    from evergreen.flows import settings
    from evergreen.monitoring.ledger import labels as truths
    from evergreen.tasks.scoring.chunks import whole

    place = find(root)
    params = read_params(place)
    section, kind = params.section(name), params.kind(name)
    columns = truths.Columns(truth=truth, id=id, entity=entity, time=time, known=known)
    told = truths.label(settings.ledger(place), name, kind, section, whole(data), columns)
    counts = {each: getattr(told, each) for each in ("matched", "waiting", "repeated", "changed")}
    if as_json:
        print_json(
            {"problem": name, **counts, "refused": [{"row": each.place, "reason": each.reason} for each in told.refused]}
        )
        return
    for each in told.refused[:SHOWN]:
        say(f"row {each.place + 1}: {each.reason}")
    print_table(
        ("matched", "waiting", "repeated", "changed", "refused"), [[f"{n:,}" for n in (*counts.values(), len(told.refused))]]
    )


@app.command()
def cohorts(
    name: Name,
    weeks: Annotated[int, typer.Option(min=1, help="How many of the newest weeks that have predictions.")] = 12,
    version: Version = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Per week and version: predictions, the share whose truth is known, and the score, realised and as it was expected."""
    from evergreen.flows import settings
    from evergreen.monitoring import performance
    from evergreen.tasks import problems

    place = find(root)
    params = read_params(place)
    kind, section = problems.kind(params.kind(name)), params.section(name)
    judge = performance.judge(kind, section, params.project.seed)
    found = [each for each in settings.ledger(place).cohorts(name, judge) if version in (None, each.version)]
    shown = sorted({each.week for each in found})[-weeks:]
    found = [each for each in found if each.week in shown]
    if as_json:
        print_json({"problem": name, "metric": kind.metrics[0].name, "cohorts": [_told(each) for each in found]})
        return
    cells = [
        (
            str(each.week),
            f"v{each.version}",
            f"{each.predictions:,}",
            f"{each.matured / each.predictions:.0%}",
            _score(each.score),
            _score(each.estimated),
            "" if each.off is None else f"{each.off:+.3g}",
        )
        for each in found
    ]
    metric = kind.metrics[0].name
    print_table(("week of", "version", "predictions", "matured", metric, "estimated before", "off by"), cells)
    why = {each.score.reason for each in found if each.score and each.score.reason}
    for reason in sorted(why):
        say(f"no score: {reason}")


def _score(found: Any) -> str:
    if found is None or found.score is None:
        return ""
    return number(found.score) + ("" if found.low is None else f" [{number(found.low)}, {number(found.high)}]")


def _told(cohort: Any) -> dict[str, Any]:
    scores = {name: each and each.model_dump() for name, each in (("score", cohort.score), ("estimated", cohort.estimated))}
    counts = {each: getattr(cohort, each) for each in ("week", "version", "predictions", "matured")}
    return {**counts, **scores, "off": cohort.off}
