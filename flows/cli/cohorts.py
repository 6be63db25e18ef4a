"""`evergreen cohorts`: predictions, labels and scores per week and version."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evergreen.flows.cli.common import (
    Name,
    Version,
    find,
    number,
    print_json,
    print_table,
    read_params,
    say,
)

MOST_ROWS = 100_000
"""Predictions of changed cohorts that are scored at once, without --refresh."""


def cohorts(
    name: Name,
    weeks: Annotated[int, typer.Option(min=1, help="How many of the newest weeks that have predictions.")] = 12,
    version: Version = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Score what changed since the last monitoring run, however much.")
    ] = False,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Per week and version: predictions, the share with labels, and the realised and estimated score."""
    from evergreen.flows import settings
    from evergreen.monitoring.performance.measurement import cohort_scorer
    from evergreen.tasks import problems
    from evergreen.tasks.problems.prediction_type import realised_metric

    place = find(root)
    params = read_params(place)
    kind, section = problems.predictions(params.kind(name)), params.section(name)
    metric = realised_metric(kind, section).name
    judge = cohort_scorer(kind, section, params.project.seed)
    most = None if refresh else MOST_ROWS
    found = settings.ledger(place).cohorts(name, judge, most_rows=most)
    found = [each for each in found if version in (None, each.version)]
    shown = sorted({each.week for each in found})[-weeks:]
    found = [each for each in found if each.week in shown]
    if as_json:
        print_json({"problem": name, "metric": metric, "cohorts": [_as_json(each) for each in found]})
        return
    cells = [
        (
            str(each.week),
            f"v{each.version}",
            f"{each.predictions:,}",
            f"{each.matured / each.predictions:.0%}",
            _score(each.score),
            _score(each.estimated),
            "" if each.estimation_error is None else f"{each.estimation_error:+.3g}",
        )
        for each in found
    ]
    more = list(dict.fromkeys(name for each in found if each.score for name in each.score.more))
    cells = [
        (*cell, *(_score(each.score and each.score.more.get(name)) for name in more))
        for cell, each in zip(cells, found, strict=True)
    ]
    print_table(("week of", "version", "predictions", "matured", metric, "estimated", "estimation error", *more), cells)
    if changed := [each for each in found if each.changed]:
        say(
            f"{len(changed)} of them changed since they were scored; the next monitoring run scores them, or --refresh does now"
        )
    why = {each.score.reason for each in found if each.score and each.score.reason}
    for reason in sorted(why):
        say(f"no score: {reason}")
    for each in found:
        if each.score and each.score.left_out:
            say(f"{each.week}, v{each.version}: {each.score.left_out}")


def _score(found: Any) -> str:
    if found is None or found.score is None:
        return ""
    return number(found.score) + ("" if found.low is None else f" [{number(found.low)}, {number(found.high)}]")


def _as_json(cohort: Any) -> dict[str, Any]:
    scores = {name: each and each.model_dump() for name, each in (("score", cohort.score), ("estimated", cohort.estimated))}
    counts = {each: getattr(cohort, each) for each in ("week", "version", "predictions", "matured", "changed")}
    return {**counts, **scores, "estimation_error": cohort.estimation_error}
