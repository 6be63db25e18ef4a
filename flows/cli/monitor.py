"""`evergreen monitor`: drift, performance, and whether to retrain."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evergreen.flows.cli.common import Names, as_day, find, me, print_json, print_table, read_params, say
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout


def monitor(
    names: Names = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="Evaluate the end of that day (YYYY-MM-DD).", show_default="today")
    ] = None,
    withdraw: Annotated[
        str | None, typer.Option(help="Withdraw the run of that day (YYYY-MM-DD): it counts no more. Needs --reason.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why the run is withdrawn.")] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Monitoring run: drift, performance, and whether to retrain; in automatic mode the retraining starts."""
    from evergreen.flows.cli import progress

    place, day = find(root), as_day(as_of)
    known = read_params(place)
    problems = list(dict.fromkeys(names or known.problems))
    for name in problems:
        known.section(name)
    if withdraw is not None:
        _withdraw(place, problems, withdraw, reason, as_json)
        return

    def start() -> Any:
        from evergreen.flows import current_project
        from evergreen.flows import monitoring as flow

        with current_project.calling(place) as root:
            return flow.monitoring(root, problems, day and str(day), return_state=True)

    interrupted = "stopped. The same command runs again and completes a retraining that began."
    found = progress.run_flow(place, problems, start, interrupted)
    _report(found, as_json)


def _withdraw(place: Layout, problems: list[str], day: str, reason: str | None, as_json: bool) -> None:
    from evergreen.flows import settings
    from evergreen.monitoring.ledger.decisions import end_of_day

    when = as_day(day, "--withdraw")
    if not reason or when is None:
        raise ParamsError("evergreen monitor --withdraw DAY: needs --reason TEXT, which the record keeps")
    for problem in problems:
        settings.decision_log(place).withdraw(problem, end_of_day(when), me(), reason)
        if not as_json:
            say(f"{problem}: the monitoring run of {when} counts no more")
    if as_json:
        print_json({"withdrawn": str(when), "problems": problems})


def _report(found: "list[Any]", as_json: bool) -> None:
    from evergreen.flows import monitoring as flow

    failed = [each.error for each in found if each.error]
    if as_json:
        results = {
            each.problem: {
                "decision": each.decision and each.decision.model_dump(mode="json"),
                "retraining": each.retraining and each.retraining.model_dump(mode="json"),
                "delegated": each.delegated,
                "notes": each.notes,
                "error": each.error,
            }
            for each in found
        }
        print_json({"ok": not failed, "problems": results})
    else:
        print_table(flow.COLUMNS, [flow.to_cells(each) for each in found])
        for each in found:
            for line in each.notes if each.decision else ():
                say(f"{each.problem}: {line}")
            if each.retraining:
                say(f"{each.problem}: retrained: {each.retraining.outcome}")
            elif each.delegated:
                say(f"{each.problem}: the automation on the Prefect server starts the retraining")
            elif each.decision and each.decision.retrain:
                say(f"{each.problem}: to do so: evergreen retrain {each.problem} --reason '{each.decision.trigger}'")
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    if failed:
        raise typer.Exit(1)
