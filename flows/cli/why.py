"""`evergreen why`: the evidence of the last monitoring run and retraining."""

from typing import TYPE_CHECKING

from evergreen.flows.cli.common import Name, number, open_problem, print_json, print_table, say, short

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.decisions import RetrainingRecord
    from evergreen.monitoring.ledger.records import Decision
from pathlib import Path

SHOWN = 8
"""Number of changes that are printed."""


def why(
    name: Name,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Why a problem was or was not retrained: the newest monitoring run with its evidence, and the newest retraining."""
    from evergreen.flows import settings

    place, _ = open_problem(root, name)
    log = settings.decision_log(place)
    found, past = log.runs(name, last=1), log.retrainings(name)
    decision, last = found[-1].decision if found else None, past[-1] if past else None
    if as_json:
        records = {
            "decision": decision and decision.model_dump(mode="json"),
            "retraining": last and last.model_dump(mode="json"),
        }
        print_json({"problem": name, **records})
        return
    if decision:
        _evidence(decision)
    else:
        say(f"{name}: no monitoring run yet; run evergreen monitor {name}")
    if last:
        _retraining(last)
    elif decision:
        say(f"{name}: never retrained by a decision")


def _evidence(decision: "Decision") -> None:
    window = decision.window
    say(f"{decision.problem}: {short(decision.at)}: {decision.reason}")
    until = f"{short(window.since)} to {short(window.until)}"
    say(f"window {until}: {window.rows:,} predictions of v{window.version}, {window.new_labels:,} rows with new labels")
    if window.performance:
        found = window.performance
        cells = [
            (name, number(each.score), number(each.low), number(each.high), f"{each.rows:,}", each.reason or "")
            for name, each in (("expected", found.expected), ("realised", found.realised), ("estimated", found.estimated))
        ]
        print_table((found.metric, "score", "low", "high", "rows", ""), cells)
    changes = [each for each in window.drift.changes if each.significant][:SHOWN]
    cells = [
        (
            each.column,
            each.aspect,
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
        say(f"drift was not tested: {window.drift.skipped}")
    if window.drift.unknown:
        say(window.drift.unknown)
    if window.drift.faults:
        say("data faults: repair the data; a retraining would learn them, so they ask for none")


def _retraining(last: "RetrainingRecord") -> None:
    ended = f"ended {short(last.ended)}, {number(last.cpu_minutes)} CPU minutes" if last.ended else "not finished yet"
    say(f"last retraining: {short(last.started)}, by {last.by}, reason: {last.reason} ({ended})")
    if last.outcome:
        say(f"{f'v{last.version}: ' if last.version else ''}{last.outcome}")
