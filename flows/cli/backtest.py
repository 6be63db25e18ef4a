"""`evergreen backtest`: what a retraining policy would have done."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evergreen.flows.cli.common import (
    Name,
    find,
    number,
    print_json,
    print_table,
    read_params,
    say,
)

COLUMNS = ("policy", "quality", "over never", "retrained", "promoted", "CPU min", "gain per CPU min", "alarms", "false")


def backtest(
    name: Name,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="never, weekly, monthly, drift, performance, labels, or params: NAME.retrain; may be given again.",
            show_default="params",
        ),
    ] = None,
    first: Annotated[str | None, typer.Option("--from", help="Last day of the first window.", show_default="earliest")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day of the last window.", show_default="newest")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric of quality; the gate keeps its own.", show_default="the kind's first")
    ] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Backtest retraining policies on past windows, with only the data known then, and recommend one."""
    from evergreen.flows.operations import backtest, status

    place = find(root)
    params = read_params(place)
    days = [_day(option, text) for option, text in (("--from", first), ("--to", last))]
    found = backtest.run(place, params, name, policy or [backtest.OWN], days[0], days[1], metric, say)
    status.page_after(place, "the backtest")
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_table(COLUMNS, [_cells(each, found.metric) for each in found.outcomes])
    for each in found.outcomes:
        for name, estimate in each.more.items():
            say(f"{each.policy}: {name} {_interval(estimate)} in {estimate.rows} windows")
    say(f"CPU minutes: {found.cost}")
    if found.recommendation:
        say(f"{name}: recommended: {found.recommendation.policy}, {found.recommendation.reason}")
    say(f"curves: {backtest.folder(place, name) / backtest.CURVES}")


def _cells(each: Any, metric: str) -> tuple[str, ...]:
    return (
        each.policy,
        f"{metric} {_interval(each.quality)}",
        _interval(each.gain) if each.retrainings else "",
        str(each.retrainings),
        str(each.promoted),
        f"{each.cpu_minutes:.1f}",
        number(each.gain_per_cpu_minute),
        str(each.alarms),
        str(each.false_alarms),
    )


def _interval(found: Any) -> str:
    if found.score is None:
        return "not known"
    return number(found.score) + (f" [{number(found.low)}, {number(found.high)}]" if found.low is not None else "")


def _day(option: str, text: str | None) -> Any:
    from datetime import date

    from evergreen.tasks.core.errors import ParamsError

    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ParamsError(f"{option} {text}: not a day; write it as YYYY-MM-DD") from None
