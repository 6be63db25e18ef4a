"""`make bench-statistics`: the true rate of each statistical claim, by simulation.

    python -m bench.statistics                        all subjects
    python -m bench.statistics drift gate             some of them
    python -m bench.statistics drift --scale 0.1      a tenth of the runs
    python -m bench.statistics drift --seed 7         other random numbers
    python -m bench.statistics drift --setting Zipf   the settings of drift whose name contains this

Figures go to bench/results/statistics-SUBJECT.csv. The status is 1 when a claim does not hold.
"""

import argparse
import csv
import importlib
import logging
import pkgutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import cast

import bench.statistics
from bench.statistics.claim import Claim, Simulation

RESULTS = Path(__file__).parents[1] / "results"
NOT_SUBJECTS = {"__main__", "claim"}
log = logging.getLogger("bench")


def subjects() -> list[str]:
    return [name for _, name, _ in pkgutil.iter_modules(bench.statistics.__path__) if name not in NOT_SUBJECTS]


def run(subject: str, scale: float, seed: int, *words: str) -> list[Claim]:
    module = cast(Simulation, importlib.import_module(f"bench.statistics.{subject}"))
    claims = []
    for claim in module.simulate(scale, seed, *words):
        log.info(
            "%-5s %6.1f %% ± %.1f  [%g, %g] %%  %s: %s (%s runs)",
            "holds" if claim.holds else "FAILS",
            100 * claim.rate,
            100 * claim.standard_error,
            100 * claim.low,
            100 * claim.high,
            claim.subject,
            claim.setting,
            f"{claim.runs:,}",
        )
        claims.append(claim)
    return claims


def save(subject: str, claims: list[Claim]) -> None:
    RESULTS.mkdir(exist_ok=True)
    derived = ("rate", "standard_error", "holds")
    rows = [asdict(claim) | {name: getattr(claim, name) for name in derived} for claim in claims]
    with (RESULTS / f"statistics-{subject}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m bench.statistics", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(subjects())}; all without a name")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", help="only settings whose name contains this; for drift alone")
    chosen = parser.parse_args(words)
    if unknown := set(chosen.subjects) - set(subjects()):
        parser.error(f"no subject is named {', '.join(sorted(unknown))}; there are {', '.join(subjects())}")
    if chosen.setting and chosen.subjects != ["drift"]:
        parser.error("--setting chooses among the settings of drift; name drift alone")
    failed = 0
    for subject in chosen.subjects or subjects():
        log.info("-- %s", subject)
        claims = run(subject, chosen.scale, chosen.seed, *filter(None, [chosen.setting]))
        if not claims:
            parser.error(f"no setting of {subject} contains {chosen.setting!r}")
        save(subject, claims)
        failed += sum(not claim.holds for claim in claims)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
