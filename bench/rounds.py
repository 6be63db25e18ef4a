"""`python -m bench.rounds`: promote, reject and settle one rollout from three processes at once, with kills.

    python -m bench.rounds                                 10,000 rounds on SQLite
    python -m bench.rounds --rounds 2000 --postgres        on PostgreSQL, in a server of its own
    python -m bench.rounds --rounds 200 --mlflow           with MLflow's registry in place of a table of aliases

In each round v1 is champion and v2 has a rollout in progress. Within a few milliseconds one process promotes v2, one rejects it
(a rollback, or an abort), and one settles (moves the alias to the record's champion, repeats the gate's verdict on v2, or takes
the rollout's next step). In a share of rounds one of the three is killed (SIGKILL) at a random moment. Afterwards the rejected
version must not be champion or in a rollout, and the alias must follow the record once `update_alias` ran.
"""

import argparse
import logging
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa

from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.release.deployments import TABLE, make_decision
from evergreen.tasks.release.mlflow_store import Version
from evergreen.tasks.release.model_registry import Registry
from evergreen.tasks.release.rollout_state import fold
from evergreen.tasks.release.rollouts import Rollouts
from tests import projects
from tests.postgres import Postgres

CANARY = Rollout(strategy="canary", steps=(0.5,), step_minutes=600, timeout_hours=100)
SPREAD = 0.003
"""The three begin within so many seconds; a kill comes within twice as many."""
BATCH = 100
"""Rounds that are prepared, and checked, together."""
PATIENCE = 60.0
"""Longest time of one action in seconds."""
ALIASES = sa.Table(
    "bench_aliases", sa.MetaData(),
    sa.Column("problem", sa.String(64), primary_key=True), sa.Column("alias", sa.String(16), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)  # fmt: skip
log = logging.getLogger("bench")


class Aliases:
    """What of a registry decisions use: aliases in a table, and versions 1 and 2 of every problem."""

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "aliases", ALIASES.metadata)

    def version(self, problem: str, which: int | str) -> Version | None:
        with database.transaction(self._engine, "aliases") as link:
            wanted = sa.select(ALIASES.c.alias, ALIASES.c.version).where(ALIASES.c.problem == problem)
            known = {alias: version for alias, version in link.execute(wanted)}  # noqa: C416
        number = which if isinstance(which, int) else known.get(which, 0)
        names = tuple(alias for alias, version in known.items() if version == number)
        made = Version(
            problem=problem, version=number, run_id="", created=datetime.now(UTC), aliases=names, tags={}, metrics={}
        )
        return made if number in (1, 2) else None

    def require(self, problem: str, version: int) -> Version:
        found = self.version(problem, version)
        assert found
        return found

    def set_alias(self, problem: str, alias: str, version: int) -> None:
        with database.transaction(self._engine, "aliases") as link:
            database.lock(link, f"bench {problem}")
            link.execute(sa.delete(ALIASES).where(ALIASES.c.problem == problem, ALIASES.c.alias == alias))
            link.execute(sa.insert(ALIASES).values(problem=problem, alias=alias, version=version))

    def drop_alias(self, problem: str, alias: str) -> None:
        with database.transaction(self._engine, "aliases") as link:
            link.execute(sa.delete(ALIASES).where(ALIASES.c.problem == problem, ALIASES.c.alias == alias))


@dataclass(frozen=True)
class Place:
    """Where decisions are kept. `mlflow`: a project whose registry holds `dear` v1 and v2; None: a table of aliases."""

    address: str
    mlflow: Path | None = None

    def registry(self) -> Registry:
        if self.mlflow is None:
            return cast(Registry, Aliases(self.address))
        from evergreen.flows import settings
        from evergreen.tasks.core.paths import Layout

        return settings.registry(Layout(self.mlflow))


Act = Callable[[Rollouts, Registry, str], Any]


def _step(rollouts: Rollouts, registry: Registry, problem: str) -> None:
    """The last step of a rollout, as servers and monitoring take it."""
    if state := rollouts.current(problem):
        rollouts.try_promote(registry, state, "rollout", "on")


ACTS: dict[str, dict[str, Act]] = {
    "promote": {"promote": lambda rollouts, registry, problem: rollouts.promote(registry, problem, "ann", "fine")},
    "reject": {
        "rollback": lambda rollouts, registry, problem: rollouts.rollback(registry, problem, None, "eve", "complaints"),
        "rollback to v1": lambda rollouts, registry, problem: rollouts.rollback(registry, problem, 1, "eve", "complaints"),
        "abort": lambda rollouts, registry, problem: rollouts.abort(problem, "bob", "no"),
    },
    "settle": {
        "alias": lambda rollouts, registry, problem: rollouts.deployments.update_alias(registry, problem),
        "verdict": lambda rollouts, registry, problem: rollouts.apply_verdict(
            registry, problem, 2, projects.verdict(), "flow", CANARY
        ),
        "step": _step,
    },
}  # fmt: skip
"""What each of the three processes does, one of each at random."""


def work(place: Place, role: str, pipe: Connection) -> None:
    """A process that does what it is asked, until its pipe closes."""
    rollouts, registry = Rollouts(place.address), place.registry()
    pipe.send("ready")
    while True:
        try:
            problem, act, wait = pipe.recv()
        except EOFError:
            return
        time.sleep(wait)
        try:
            ACTS[role][act](rollouts, registry, problem)
            pipe.send("done")
        except ModelError:
            pipe.send("refused")
        except Exception as error:  # noqa: BLE001 - told, and counted as wrong
            pipe.send(f"{type(error).__name__}: {error}")


class Clerk:
    """Prepares rounds and checks them, in a process of its own: the others are forked from one without connections."""

    def __init__(self, place: Place) -> None:
        self._rollouts, self._registry, self._place = Rollouts(place.address), place.registry(), place

    def prepare(self, problems: Sequence[str]) -> None:
        for problem in problems:
            if self._place.mlflow:
                with self._rollouts.deployments._transaction() as link:
                    link.execute(sa.delete(TABLE).where(TABLE.c.problem == problem))
            given = {"policy": CANARY.model_dump(mode="json")}
            rows = [make_decision(problem, 1, "deploy", "ann", "first", None),
                    make_decision(problem, 2, "begin", "ann", "try", 1, given)]  # fmt: skip
            assert self._rollouts.deployments.try_append(rows, 0)
            self._registry.set_alias(problem, "champion", 1)

    def check(self, problem: str, outcomes: dict[str, str]) -> tuple[str, str]:
        """How the round ended, and what is wrong with that ("": nothing)."""
        deployments = self._rollouts.deployments
        deployments.update_alias(self._registry, problem)
        rows = deployments.numbered(problem)
        ends = [row.action for _, row in rows][2:]
        named = self._registry.version(problem, "champion")
        champion, state = deployments.champion(problem), fold(rows)
        rejected = any(row.action == "abort" or (row.action == "rollback" and row.previous == 2) for _, row in rows)
        wrong = [f"{role}: {each}" for role, each in outcomes.items() if each not in ("done", "refused", "killed")]
        if rejected and (champion != 1 or state):
            wrong.append(f"the rejected version is champion or in a rollout: {ends}")
        if state and state.candidate == champion:
            wrong.append(f"the champion has a rollout beside itself: {ends}")
        if outcomes["reject"] == "done" and not rejected:
            wrong.append(f"a rejection that was reported is not recorded: {ends}")
        if outcomes["promote"] == "done" and "promote" not in ends:
            wrong.append(f"a promotion that was reported is not recorded: {ends}")
        if named is None or named.version != champion:
            wrong.append(f"the alias stands at {named and named.version}, the champion is {champion}: {ends}")
        return ", ".join(ends) or "nothing", "; ".join(wrong)


def keep(place: Place, pipe: Connection) -> None:
    """The clerk's process."""
    clerk = Clerk(place)
    pipe.send("ready")
    while True:
        try:
            what, *given = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(clerk, what)(*given))


class Process:
    """A forked process that answers on a pipe."""

    def __init__(self, target: Callable[..., None], *given: Any) -> None:
        self._target, self._given = target, given
        self.start()

    def start(self) -> None:
        context = get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_run, args=(self._target, self.pipe, (*self._given, other)), daemon=True)
        self.process.start()
        other.close()
        assert self.receive() == "ready"

    def ask(self, *what: Any) -> Any:
        self.pipe.send(what)
        return self.receive()

    def receive(self) -> Any:
        if not self.pipe.poll(PATIENCE):
            raise RuntimeError(f"no answer within {PATIENCE:g} s")
        return self.pipe.recv()

    def kill(self) -> str:
        """Kill it; returns what it had answered before, or killed. Another one takes its place."""
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        try:
            reply = str(self.pipe.recv()) if self.pipe.poll() else "killed"
        except (EOFError, ConnectionError):
            reply = "killed"
        self.pipe.close()
        self.start()
        return reply

    def close(self) -> None:
        self.pipe.close()
        self.process.join(5)
        self.process.kill()


def _run(target: Callable[..., None], parents: Connection, given: tuple[Any, ...]) -> None:
    parents.close()
    target(*given)


def play(workers: dict[str, Process], problem: str, draw: random.Random, kills: float) -> tuple[dict[str, str], str]:
    """One round: what each role reported, and the role that was killed ("": none)."""
    for role, each in workers.items():
        each.pipe.send((problem, draw.choice([*ACTS[role]]), draw.random() * SPREAD))
    victim = draw.choice([*workers]) if draw.random() < kills else ""
    outcomes: dict[str, str] = {}
    if victim:
        time.sleep(draw.random() * 2 * SPREAD)
        outcomes[victim] = workers[victim].kill()
    for role, each in workers.items():
        if role != victim:
            outcomes[role] = each.receive()
    return outcomes, victim


def run(place: Place, rounds: int, kills: float, seed: int) -> int:
    """Play rounds and print what came of them. Returns the number of wrong ones."""
    draw, ended = random.Random(seed), Counter[str]()
    wrong = killed = done = 0
    clerk = Process(keep, place)
    workers = {role: Process(work, place, role) for role in ACTS}
    log.info("the processes are ready")
    began = time.monotonic()
    batch = 1 if place.mlflow else BATCH
    while done < rounds:
        problems = [_problem(place, number) for number in range(done, min(done + batch, rounds))]
        clerk.ask("prepare", problems)
        for problem in problems:
            outcomes, victim = play(workers, problem, draw, kills)
            killed += outcomes.get(victim) == "killed"
            how, found = clerk.ask("check", problem, outcomes)
            ended[how] += 1
            wrong += bool(found)
            if found:
                log.info("round %s: %s (%s)", problem, found, outcomes)
        done += len(problems)
        if done % 1000 < batch:
            log.info("%d rounds, %d killed, %d wrong, %.1f rounds/s", done, killed, wrong, done / (time.monotonic() - began))
    for each in (*workers.values(), clerk):
        each.close()
    log.info("%d rounds, %d of them with a kill that came in time: %d wrong", done, killed, wrong)
    for how, count in ended.most_common():
        log.info("| %s | %d |", how, count)
    return wrong


def _problem(place: Place, number: int) -> str:
    return "dear" if place.mlflow else f"p{number}"


def _lay_mlflow(folder: Path) -> None:
    layout = projects.lay_deployed(folder, ("dear",))
    projects.register(layout, "dear", "logistic", C=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--kills", type=float, default=0.25, help="share of rounds in which one process is killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--mlflow", action="store_true", help="with MLflow's registry")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    log.setLevel(logging.INFO)
    projects.forget_settings()
    with tempfile.TemporaryDirectory(prefix="rounds", dir="/tmp") as folder, ExitStack() as stack:
        address = f"sqlite:///{folder}/evergreen.db"
        if options.postgres:
            postgres = Postgres(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg", dir="/tmp"))))
            postgres.start()
            stack.callback(postgres.stop)
            address = postgres.address
        project = Path(folder).resolve() / "project" if options.mlflow else None
        if project:  # in a process of its own: this one must have no connections when it forks
            maker = get_context("spawn").Process(target=_lay_mlflow, args=(project,))
            maker.start()
            maker.join()
        if run(Place(address, project), options.rounds, options.kills, options.seed):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
