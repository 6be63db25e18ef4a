"""The `evergreen` command. Its help imports no heavy library: each command imports what it needs.

The commands of training and of asking are here; flows/commands/ holds the others.
"""

import dataclasses
import errno
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import evergreen.flows.cli.commands  # noqa: F401  # they add themselves
from evergreen.flows.cli.common import (
    HERE,
    AsOf,
    Debug,
    Json,
    Name,
    Names,
    Root,
    Version,
    app,
    as_day,
    as_moment,
    as_object,
    cell,
    find,
    me,
    number,
    print_json,
    print_table,
    read_params,
    say,
    short,
)
from evergreen.tasks.core.errors import EvergreenError, ParamsError

if TYPE_CHECKING:
    from evergreen.flows.operations.status import Outcome
    from evergreen.flows.prefect_runtime.server import Server
    from evergreen.tasks.core.paths import Layout

SHOWN = 10
"""So many refused events are printed."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
INTERRUPTED = 130


def main() -> None:
    """Run the command line. Expected errors are one line on stderr and exit status 1."""
    try:
        app()
    except EvergreenError as error:
        if "--debug" in sys.argv:
            raise
        _fail(f"error: {error}", 1)
    except OSError as error:
        if "--debug" in sys.argv or error.errno not in FULL:
            raise
        _fail(
            f"error: {error.filename}: {error.strerror}. Free space or allow writing there, then run the same command again.", 1
        )


def _fail(line: str, code: int) -> None:
    typer.echo(line, err=True)
    sys.exit(code)


@app.command()
def train(
    names: Names = None,
    as_of: Annotated[
        str | None, typer.Option(help="Live on that day (YYYY-MM-DD): sets project.as_of in params.yaml, where DVC sees it.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Time for each problem's search, refit and evaluation: sets NAME.tune.budget_seconds in params.yaml.",
        ),
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Read databases again too; changed files are noticed.")] = False,
    no_deploy: Annotated[
        bool, typer.Option("--no-deploy", help="Register the candidates, and leave the champions alone.")
    ] = False,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train, judge, register and deploy. What is fresh is skipped; a run that was killed goes on where it was."""
    _train(find(root), names or [], as_of, refresh, not no_deploy, as_json, seconds)


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="What the problem and its table are called from now on.")],
    data: Annotated[str, typer.Option(help="csv or parquet file; with --address, a query.")],
    target: Annotated[str | None, typer.Option(help="Column to predict; none: clustering.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="classification, regression, clustering or recommendation.", show_default="inferred")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of dates that orders the rows.", show_default="inferred")] = None,
    entity: Annotated[str | None, typer.Option(help="Column that says whom a row is about.", show_default="inferred")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column that is no feature; may be given again.")] = None,
    address: Annotated[
        str | None, typer.Option(help="SQLAlchemy address of a database, or env:NAME; --data is a query then.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="recommendation: column of the user.")] = None,
    item: Annotated[str | None, typer.Option(help="recommendation: column of the item.")] = None,
    basket: Annotated[
        str | None, typer.Option(help="recommendation: column of the basket.", show_default="one per time")
    ] = None,
    order: Annotated[str | None, typer.Option(help="recommendation without dates: column that numbers the orders.")] = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read a table, infer what it holds, and draft a problem in params.yaml; where there is no project, begin one."""
    from evergreen.flows.operations import init_project
    from evergreen.tasks.onboarding.schema_inference import Asked, as_kind, shown

    asked = Asked(target, as_kind(kind), time, entity, tuple(drop or ()), user, item, basket, order)
    started = init_project.run(name, data, address, asked, root, Path.cwd(), date.today())
    found = started.found
    if as_json:
        told = {"problem": name, "root": started.root, "made": started.made, "warnings": started.warnings}
        print_json({**told, **dataclasses.asdict(dataclasses.replace(found, warnings=()))})
        return
    print_table(("column", "role", "holds", "why"), list(shown(found)))
    about = [("kind", found.kind), ("target", found.target), ("positive", found.positive)]
    about += [("entity", found.entity), ("time", found.time)]
    for key, value in about:
        if value:
            reason = found.reasons.get(key, "")
            say(f"{key}: {value}{f' ({reason})' if reason else ''}")
    for line in started.warnings:
        say(f"warning: {line}")
    features = f", {len(found.features)} features" if found.kind != "recommendation" else ""
    say(f"{name}: {found.rows:,} rows{features}. Written in {started.root}: {', '.join(started.made)}")
    say(f"Look at the section {name} in params.yaml, then: evergreen train {name} --seconds 60")


@app.command()
def demo(root: Root = HERE, as_json: Json = False, debug: Debug = False) -> None:
    """The whole story: live through the last weeks, then train, judge and deploy every problem, and write the page about it."""
    from evergreen.flows.operations import simulation_state

    place = find(root)
    if names := simulation_state.due(place):
        from evergreen.flows.prefect_runtime import server

        with server.running(place, say) as prefect:  # Prefect reads its address once: one server for both
            _live(place, names, prefect)
            _train(place, [], None, False, True, as_json)
    else:
        _train(place, [], None, False, True, as_json)
    for line in simulation_state.lines(place):
        say(line)
    say(f"The page: {place.page.as_uri()}")


def _live(place: "Layout", names: list[str], prefect: "Server") -> None:
    """Live through the last weeks of `names`, and show it."""
    from evergreen.flows import simulation, steps
    from evergreen.flows.cli import progress

    _one_thread()
    say(f"the last weeks of {', '.join(names)}: params.yaml lives on the day of each, and is then as it was")
    try:
        with progress.shown(lambda: steps.here.get(None), names):
            simulation.run(place, names, prefect, me())
    except KeyboardInterrupt:
        say("stopped. What was lived through stays; the same command goes on from there.")
        raise typer.Exit(INTERRUPTED) from None


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _train(
    place: "Layout",
    names: Sequence[str],
    as_of: str | None,
    refresh: bool,
    deploy: bool,
    as_json: bool,
    seconds: float | None = None,
) -> None:
    from evergreen.flows.operations import status as results
    from evergreen.tasks import ingest
    from evergreen.tasks.core.paths import locking

    params = read_params(place)
    problems = list(dict.fromkeys(names or params.problems))
    for name in problems:
        params.section(name)
    _one_thread()
    if len(problems) > 1:
        os.environ.setdefault("EVERGREEN_WORKERS", "1")  # the branches share the cores
    with locking(place.var / "train.lock", "train"):
        if as_of:
            _live_on(place, as_of)
        if seconds:
            _spend(place, problems, seconds)
        refresh = refresh or ingest.moved(params, place)
        if not refresh and results.nothing_to_do(place, problems, deploy):
            outcomes = [results.Outcome(problem) for problem in problems]
        else:
            outcomes = _flow(place, problems, refresh, deploy)
        rows = {row.problem: row for row in results.rows(place, problems)}
    _report(outcomes, rows, place, as_json)


def _flow(place: "Layout", problems: list[str], refresh: bool, deploy: bool) -> "list[Outcome]":
    """Run the training flow and show it. The server starts first: prefect is imported while it does."""
    from evergreen.flows.cli import progress
    from evergreen.flows.prefect_runtime import server

    with server.running(place, say) as prefect:
        from evergreen.flows import steps, training

        try:
            with progress.shown(lambda: steps.here.get(None), problems):
                return training.run(place, problems, prefect, refresh=refresh, deploy=deploy, by=me())
        except KeyboardInterrupt:
            say("stopped. What was finished stays; the same command goes on from there.")
            raise typer.Exit(INTERRUPTED) from None


def _report(outcomes: "Sequence[Outcome]", rows: dict[str, Any], place: "Layout", as_json: bool) -> None:
    failed = [each.error for each in outcomes if each.error]
    if as_json:
        told = {
            each.problem: {**dataclasses.asdict(each), "status": each.status, **dataclasses.asdict(rows[each.problem])}
            for each in outcomes
        }
        print_json({"ok": not failed, "page": str(place.page), "problems": told})
    else:
        _print_rows(rows.values())
        if all(each.status == "unchanged" for each in outcomes):
            say("Nothing to do: all is fresh. --refresh reads the sources again.")
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def status(root: Root = HERE, as_json: Json = False, debug: Debug = False) -> None:
    """Who is champion of each problem, since when, and the newest decision."""
    from evergreen.flows.operations import status as results

    place = find(root)
    rows = results.rows(place, read_params(place).problems)
    if as_json:
        print_json({row.problem: dataclasses.asdict(row) for row in rows})
    else:
        _print_rows(rows)
        for row in rows:
            if row.compiled and row.compiled != "yes":
                say(f"{row.problem}: answers without a compiled model ({row.compiled.removeprefix('no: ')})")
            if row.rollout:
                say(f"{row.problem}: {row.rollout}")


@app.command()
def history(
    name: Name,
    at: Annotated[str | None, typer.Option(help="Only what was decided up to then: YYYY-MM-DD, or with a time (UTC).")] = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Every decision about a problem, why it was retrained, and who was champion at a moment."""
    from evergreen.flows import settings

    place = find(root)
    known = read_params(place)
    moment = as_moment(at) if at else None
    deployments = settings.deployments(place)
    decisions = sorted(deployments.history(name, moment), key=lambda each: each.at)
    if not decisions:  # what was decided stays known when its problem is gone from params.yaml
        known.section(name)
    champion = deployments.champion(name, moment)
    begun = [each for each in settings.looks(place).retrainings(name) if moment is None or each.begun <= moment]
    if as_json:
        told = {"decisions": decisions, "retrainings": begun}
        shown = {key: [each.model_dump(mode="json") for each in rows] for key, rows in told.items()}
        print_json({"problem": name, "champion": champion, **shown})
        return
    rows = [(each.at, each.action, f"v{each.version}", each.by, each.reason) for each in decisions]
    rows += [(each.begun, "retrain", "", each.by, each.reason) for each in begun]
    cells = [(short(at), *more) for at, *more in sorted(rows, key=lambda row: row[0])]
    print_table(("when (UTC)", "action", "version", "by", "reason"), cells)
    say(f"{name}: champion {f'v{champion}' if champion else 'none'}{f' at {at}' if at else ''}")


@app.command()
def rollback(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
    to: Annotated[int | None, typer.Option(help="The version to go back to; none: the champion before this one.")] = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an earlier version champion again, or, while a version is on trial, end its trial."""
    from evergreen.flows import settings
    from evergreen.flows.operations import status as results
    from evergreen.tasks.core.paths import locking

    place = find(root)
    read_params(place).section(name)
    with locking(place.var / "train.lock", "rollback"):
        decision = settings.rollouts(place).rollback(settings.registry(place), name, to, me(), reason)
        results.page(place)
    if as_json:
        print_json(decision.model_dump(mode="json"))
        return
    now, was = decision.version, decision.previous
    if decision.action == "abort":
        now, was = was, f"{now}, on trial"
    print_table(("problem", "champion", "was", "reason"), [(name, f"v{now}", f"v{was}", decision.reason)])


@app.command()
def score(
    name: Name,
    data: Annotated[
        Path | None,
        typer.Option(
            help="csv, parquet: rows of features, or only the key of whom to answer for. None: all, by the newest features."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="csv or parquet; written whole or not at all. Without --data: data/scores/NAME.parquet.")
    ] = None,
    version: Version = None,
    k: Annotated[int | None, typer.Option("--k", help="Recommendation: length of a list; none: as in params.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", help="As on that day (YYYY-MM-DD): by histories, or without --data features, up to it."),
    ] = None,
    novel: Annotated[bool, typer.Option("--novel", help="Recommendation: only what the user never bought.")] = False,
    because: Annotated[bool, typer.Option("--because", help="Recommendation: a column that says why.")] = False,
    no_ledger: Annotated[bool, typer.Option("--no-ledger", help="Leave the answers out of the ledger.")] = False,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer each row of a file; order is kept, and a row without an answer says why. A recommender writes a list."""
    from evergreen.flows.operations import batch_scoring

    place = find(root)
    known = read_params(place)
    known.section(name)
    lists = batch_scoring.Lists(k, as_day(as_of), novel, because)
    if data is None:
        result = batch_scoring.newest(place, known, name, out=out, version=version, lists=lists, ledger=not no_ledger)
    elif out is None:
        raise ParamsError(f"--data {data}: needs --out FILE, where the answers go")
    else:
        result = batch_scoring.run(place, known, name, data, out, version, lists, ledger=not no_ledger, say=say)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        cells = (name, f"v{result.version}", f"{result.rows:,}", f"{result.not_scored:,}", result.out)
        print_table(("problem", "version", "rows", "not scored", "out"), [cells])


@app.command()
def ask(
    name: Name,
    who: Annotated[list[str] | None, typer.Argument(help="Keys of users; none: a stranger.", show_default=False)] = None,
    items: Annotated[str, typer.Option(help="What lies in the basket: keys of items, with commas between.")] = "",
    at: Annotated[str | None, typer.Option(help="Where: a value of features.place.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Length of a list; none: as in params, as for all below.")] = None,
    show: Annotated[str | None, typer.Option(help="all, again, new or blend.")] = None,
    blend: Annotated[float | None, typer.Option(help="With blend: share of places for new items.")] = None,
    diversity: Annotated[float | None, typer.Option(help="From 0 to 1.")] = None,
    explore: Annotated[float | None, typer.Option(help="Share of places for new products.")] = None,
    rules: Annotated[
        str, typer.Option(help='JSON, such as {"max_per_category": 2}; the keys are those of answers.rules.')
    ] = "{}",
    as_of: AsOf = None,
    version: Version = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Recommend: the list of each user, or of a stranger with a basket, and why each item is in it."""
    from evergreen.flows.operations import recommend

    place = find(root)
    wanted = {"users": tuple(who or ()), "items": tuple(filter(None, items.split(","))), "place": at, "k": k, "show": show}
    wanted |= {
        "blend": blend,
        "diversity": diversity,
        "explore": explore,
        "rules": as_object("--rules", rules),
        "as_of": as_day(as_of),
    }
    found = recommend.ask(place, read_params(place), name, wanted, version)
    for line in found.notes:
        say(line)
    if as_json:
        print_json({"problem": name, "version": found.version, "lists": found.lists, "notes": found.notes})
    else:
        columns = list(found.lists[0]) if found.lists else []
        print_table(columns, [[cell(value) for value in row.values()] for row in found.lists])


@app.command()
def events(
    name: Name,
    data: Annotated[Path, typer.Option(help="csv or parquet: purchases, one line of a basket per row.")],
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell a recommender of new purchases: they count in every later answer. What cannot be counted says why."""
    from evergreen.flows.operations import recommend

    place = find(root)
    found = recommend.observe(place, read_params(place), name, data)
    refused = [{"event": dict(each.event), "reason": each.reason} for each in found.refused]
    if as_json:
        print_json({"problem": name, "counted": found.counted, "known": found.known, "refused": refused})
        return
    print_table(
        ("problem", "counted", "known already", "refused"),
        [(name, f"{found.counted:,}", f"{found.known:,}", f"{len(refused):,}")],
    )
    for each in found.refused[:SHOWN]:
        say(f"refused: {each.reason}")
    if len(refused) > SHOWN:
        say(f"and {len(refused) - SHOWN:,} more; --json shows all")


@app.command()
def params(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema instead: what each key means.")] = False,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check params.yaml and print it with every default filled in."""
    from evergreen.tasks.config import params as tasks_params

    if schema:
        typer.echo(tasks_params.schema())
        return
    found = read_params(find(root))
    whole = found.model_dump(mode="json", by_alias=True, exclude={"sections"})
    whole.update({name: section.model_dump(mode="json") for name, section in found.sections.items()})
    if as_json:
        print_json(whole)
        return
    from ruamel.yaml import YAML

    YAML(typ="rt").dump(whole, sys.stdout)


@app.command()
def report(root: Root = HERE, as_json: Json = False, debug: Debug = False) -> None:
    """Rebuild the page, reports/index.html."""
    from evergreen.flows.operations import status as results

    path = results.page(find(root))
    if as_json:
        print_json({"page": str(path)})
    else:
        typer.echo(path)


@app.command()
def doctor(root: Root = HERE, as_json: Json = False, debug: Debug = False) -> None:
    """Check this machine and project, and say what to do."""
    from evergreen.flows.operations.doctor import examine

    findings = examine(root.resolve())
    if as_json:
        print_json({each.subject: {"ok": each.ok, "found": each.found, "advice": each.advice} for each in findings})
    else:
        print_table(
            ("", "what", "found", "what to do"),
            [("✓" if e.ok else "✗", e.subject, e.found, "" if e.ok else e.advice) for e in findings],
        )
    if not all(each.ok for each in findings):
        raise typer.Exit(1)


def _live_on(place: "Layout", text: str) -> None:
    """Write project.as_of and say so: DVC and every step read it from params.yaml alone."""
    from evergreen.flows.operations.params_edit import set_as_of

    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ParamsError(f"--as-of {text}: is not a day; write it as YYYY-MM-DD") from None
    before = read_params(place).project.as_of
    if day > date.today():
        raise ParamsError(f"--as-of {text}: lies after today, {date.today()}; name a day that has passed")
    if set_as_of(place.params, day):
        say(f"params.yaml: project.as_of = {day} (was {before or 'the newest day in the data'})")


def _spend(place: "Layout", problems: Sequence[str], seconds: float) -> None:
    """Write tune.budget_seconds of `problems` and say so."""
    from evergreen.flows.operations.params_edit import set_seconds

    for name in problems:
        if set_seconds(place.params, name, seconds):
            say(f"params.yaml: {name}.tune.budget_seconds = {seconds:g}")


def _print_rows(rows: Any) -> None:
    cells = [
        (
            row.problem,
            f"{row.model} v{row.version}" if row.version else "none",
            f"{row.metric} {number(row.score)} [{number(row.low)}, {number(row.high)}]" if row.score is not None else "",
            number(row.baseline),
            row.verdict or "",
            f"{row.cpu_seconds:.0f}" if row.cpu_seconds is not None else "",
        )
        for row in rows
    ]
    print_table(("problem", "champion", "score", "baseline", "newest decision", "CPU s"), cells)


if __name__ == "__main__":
    main()
