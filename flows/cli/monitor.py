"""Watching, retraining, why, and schedules."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evergreen.flows.cli.common import (
    HERE,
    Debug,
    Json,
    Name,
    Names,
    Root,
    app,
    as_day,
    find,
    me,
    number,
    print_json,
    print_table,
    read_params,
    say,
    short,
)

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.decisions import Begun
    from evergreen.monitoring.ledger.records import Decision
    from evergreen.tasks.config.params import Params

SHOWN = 8
"""So many changes are printed."""
INTERRUPTED = 130


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


@app.command()
def monitor(
    names: Names = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="Look as at the end of that day (YYYY-MM-DD).", show_default="today")
    ] = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at production: drift, performance, and whether to retrain; in automatic mode the retraining starts."""
    from evergreen.flows.cli import progress
    from evergreen.flows.prefect_runtime import server

    place, day = find(root), as_day(as_of)
    known = read_params(place)
    problems = list(dict.fromkeys(names or known.problems))
    for name in problems:
        known.section(name)
    _one_thread()
    with server.running(place, say) as prefect:
        from evergreen.flows import monitoring as watching
        from evergreen.flows import steps
        from evergreen.flows.prefect_runtime import stale_runs

        prefect.wait()
        try:
            with progress.shown(lambda: steps.here.get(None), problems):
                state = watching.monitoring(str(place.root), problems, day and str(day), return_state=True)
        except KeyboardInterrupt:
            say("stopped. The same command looks again, and completes a retraining that began.")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            stale_runs.deliver()
        found: Any = state.result(raise_on_failure=False)
    if isinstance(found, BaseException):
        raise found
    _report(found, as_json)


def _report(found: "list[Any]", as_json: bool) -> None:
    from evergreen.flows import monitoring as watching

    failed = [each.error for each in found if each.error]
    if as_json:
        told = {
            each.problem: {
                "decision": each.decision and each.decision.model_dump(mode="json"),
                "retraining": each.retraining and each.retraining.model_dump(mode="json"),
                "answered": each.answered,
                "notes": each.notes,
                "error": each.error,
            }
            for each in found
        }
        print_json({"ok": not failed, "problems": told})
    else:
        print_table(watching.COLUMNS, [watching.cells(each) for each in found])
        for each in found:
            for line in each.notes if each.decision else ():
                say(f"{each.problem}: {line}")
            if each.retraining:
                say(f"{each.problem}: retrained: {each.retraining.outcome}")
            elif each.answered:
                say(f"{each.problem}: the automation on the Prefect server starts the retraining")
            elif each.decision and each.decision.retrain:
                say(f"{each.problem}: to do so: evergreen retrain {each.problem} --reason '{each.decision.ground}'")
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def retrain(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a challenger on what is known now; the gate judges it, and the champion answers until it is promoted."""
    from evergreen.flows.cli import progress
    from evergreen.flows.prefect_runtime import server

    place = find(root)
    read_params(place).section(name)
    _one_thread()
    with server.running(place, say) as prefect:
        from evergreen.flows import retraining, steps
        from evergreen.flows.prefect_runtime import stale_runs

        prefect.wait()
        try:
            with progress.shown(lambda: steps.here.get(None), [name]):
                state = retraining.retraining(
                    str(place.root), name, reason, by=me(), ground=retraining.PERSON, return_state=True
                )
        except KeyboardInterrupt:
            say("stopped. The same command goes on from there.")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            stale_runs.deliver()
        done: Any = state.result(raise_on_failure=False)
    if isinstance(done, BaseException):
        raise done
    if as_json:
        print_json(done)
        return
    version = f"v{done['version']}" if done["version"] else ""
    promoted = {True: "yes", False: "no", None: ""}[done["promoted"]]
    print_table(
        ("problem", "challenger", "promoted", "CPU min", "why"),
        [(name, version, promoted, number(done["cpu_minutes"]), done["outcome"])],
    )


@app.command()
def why(name: Name, root: Root = HERE, as_json: Json = False, debug: Debug = False) -> None:
    """Why a problem was or was not retrained last time: the newest look with its evidence, and the newest retraining."""
    from evergreen.flows import settings

    place = find(root)
    read_params(place).section(name)
    looks = settings.looks(place)
    found, past = looks.looks(name, last=1), looks.retrainings(name)
    decision, last = found[-1].decision if found else None, past[-1] if past else None
    if as_json:
        told = {"decision": decision and decision.model_dump(mode="json"), "retraining": last and last.model_dump(mode="json")}
        print_json({"problem": name, **told})
        return
    if decision:
        _evidence(decision)
    else:
        say(f"{name}: nobody has looked yet; run evergreen monitor {name}")
    if last:
        _retraining(last)
    elif decision:
        say(f"{name}: was never retrained by a decision")


def _evidence(decision: "Decision") -> None:
    window = decision.window
    say(f"{decision.problem}: {short(decision.at)}: {decision.reason}")
    until = f"{short(window.since)} to {short(window.until)}"
    say(f"window {until}: {window.rows:,} predictions of v{window.version}, {window.new_labels:,} rows with new truth")
    if window.performance:
        found = window.performance
        cells = [
            (name, number(each.score), number(each.low), number(each.high), f"{each.rows:,}", each.reason or "")
            for name, each in (("expected", found.expected), ("realised", found.realised), ("estimated", found.estimated))
        ]
        print_table((found.metric, "score", "low", "high", "rows", ""), cells)
    changes = [each for each in window.drift.changes if each.drifts][:SHOWN]
    cells = [
        (
            each.column,
            each.what,
            "ALARM" if each.alarm else "no",
            number(each.effect),
            number(each.importance),
            each.reason,
        )
        for each in changes
    ]
    if cells:
        print_table(("changed", "what", "alarm", "effect", "importance", "how"), cells)
    if window.drift.skipped:
        say(f"nothing is said about drift: {window.drift.skipped}")


def _retraining(last: "Begun") -> None:
    ended = f"ended {short(last.ended)}, {number(last.cpu_minutes)} CPU minutes" if last.ended else "not finished yet"
    say(f"last retraining: {short(last.begun)}, by {last.by}, because of {last.reason} ({ended})")
    if last.outcome:
        say(f"{f'v{last.version}: ' if last.version else ''}{last.outcome}")


@app.command()
def schedule(
    no_work: Annotated[
        bool, typer.Option("--no-work", help="With a Prefect server: register, and leave the work to other workers.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print what is scheduled, and do nothing.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write prefect.yaml, for prefect deploy, and end.")] = False,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train, score and monitor when NAME.schedule in params.yaml says, until Ctrl-C; on a Prefect server if one is named."""
    from evergreen.flows.prefect_runtime import deployments as schedules
    from evergreen.flows.prefect_runtime import server

    place = find(root)
    known = read_params(place)
    _one_thread()
    if show or write:
        _planned(known, as_json)
        if write:
            say(f"written: {schedules.write(place)}")
        return
    pool = schedules.POOL if os.environ.get("PREFECT_API_URL") else None
    with server.running(place, say, scheduling=True) as prefect:
        _planned(known, as_json)
        prefect.wait()
        made = schedules.register(place, known, pool)
        if not pool:
            schedules.bury(made)
        for each in schedules.catch_up(made):
            say(f"{each.flow} {each.problem}: a run was missed; it is caught up now")
        if no_work:
            return
        say(f"{len(made)} deployments, worked on here. Ctrl-C ends it.")
        schedules.work(place, known, pool)


def _planned(known: "Params", as_json: bool) -> None:
    """Check and print what is scheduled. Imports prefect, which reads its settings once: a server must be named before."""
    from evergreen.flows.prefect_runtime import deployments as schedules

    schedules.check(known)
    planned = schedules.plan(known, ".")
    if as_json:
        print_json([vars(each) for each in planned])
        return
    cells = [(each.flow, each.problem, each.cron or "when asked for", each.zone if each.cron else "") for each in planned]
    print_table(("flow", "problem", "when", "time zone"), cells)
