"""`python -m bench.shops`: init, training, lists and page of thirteen planted shapes of shop, without anything set by hand.

    python -m bench.shops                       all; some fifteen CPU minutes
    python -m bench.shops --shapes news robots  some of them

Each line of the report says what `init` chose, which model was deployed, and where its score stands among those of the ladder.
The status is 1 where a shape came out wrong: init, a step or a list failed, or a model of the ladder is surely better than the
one that was deployed.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.flows import settings
from evergreen.flows.operations import init_project, status
from evergreen.serving.recommender_service import OnlineRecommender
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout, read_json
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.problems.recommender.list_request import Request
from tests.flows import in_process

log = logging.getLogger("bench")
NAME, FIRST, DAYS, GROUPS, PER_GROUP = "next", datetime(2024, 1, 1), 168, 4, 15
Draw = np.random.Generator
Line = tuple[Any, ...]
"""user, basket, item, days after FIRST, and for some shapes what COLUMNS names."""
COLUMNS = {"ratings": "stars", "returns": "quantity", "out of stock": "quantity"}


def _groups(draw: Draw, users: int, visits: int = 8) -> Iterator[Line]:
    """Users who buy from one of four groups of items."""
    for user in range(users):
        for turn, day in enumerate(np.sort(draw.uniform(0, DAYS, visits))):
            for item in draw.permutation(PER_GROUP)[:3]:
                yield f"u{user}", f"b{user} {turn}", f"g{user % GROUPS} no {item}", day


def few_shoppers(draw: Draw, users: int = 200) -> Iterator[Line]:
    """Four items of a user's own each week, and a popular one."""
    for user in range(users):
        for turn, day in enumerate(np.arange(draw.uniform(0, 7), DAYS, 7)):
            for item in (*(f"of {user} no {own}" for own in range(4)), f"popular {draw.integers(12)}"):
                yield f"u{user}", f"b{user} {turn}", item, day


def once(draw: Draw, lines: int = 8, baskets: bool = True) -> Iterator[Line]:
    """Each user likes one group and takes each item of it once. Without baskets: films, each of another day."""
    for user in range(300):
        day = draw.uniform(0, DAYS - 90)
        for step, item in enumerate(draw.permutation(PER_GROUP)[:lines]):
            yield (
                f"u{user}",
                f"b{user}" if baskets else f"b{user} {step}",
                f"g{user % GROUPS} no {item}",
                day + step * (0.001 if baskets else 9),
            )


def news(draw: Draw, lifetime: int = 3, users: int = 400) -> Iterator[Line]:
    for user in range(users):
        for day in draw.permutation(DAYS)[:8]:
            yield f"u{user}", f"b{user} {day}", f"story {day // lifetime} {draw.integers(6)}", float(day)


def subscriptions(draw: Draw) -> Iterator[Line]:
    for user in range(300):
        first = draw.integers(28)
        for turn in range(6):
            yield f"u{user}", f"b{user} {turn}", f"paper {user % 30}", float(min(first + round(turn * 30.44), DAYS - 1))


def ratings(draw: Draw) -> Iterator[Line]:
    for line in _groups(draw, 200):
        yield *line, int(draw.integers(1, 6))


def bundles(draw: Draw) -> Iterator[Line]:
    for user in range(200):
        for turn, day in enumerate(np.sort(draw.uniform(0, DAYS, 6))):
            pair = draw.integers(40)
            for half in range(2):
                yield f"u{user}", f"b{user} {turn}", f"pair {pair} {half}", day


def reseller(draw: Draw) -> Iterator[Line]:
    yield from _groups(draw, 200)
    for day in range(0, DAYS, 2):
        for item in draw.permutation(GROUPS * PER_GROUP)[:30]:
            yield "reseller", f"r{day}", f"g{item % GROUPS} no {item // GROUPS}", float(day)


def robots(draw: Draw) -> Iterator[Line]:
    yield from _groups(draw, 200)
    for robot in range(5):
        for item in range(GROUPS * PER_GROUP):
            yield f"robot {robot}", f"r{robot}", f"g{item % GROUPS} no {item // GROUPS}", 160.0 + robot


def out_of_stock(draw: Draw) -> Iterator[Line]:
    """The most popular item sells no more for the last six weeks."""
    for user, basket, item, day in _groups(draw, 200):
        yield user, basket, "sold out" if day < DAYS - 42 and draw.random() < 0.4 else item, day, 1


def returns(draw: Draw) -> Iterator[Line]:
    for user, basket, item, day in _groups(draw, 200):
        yield user, basket, item, day, 1
        if draw.random() < 0.2:
            yield user, f"{basket} back", item, min(day + 1, DAYS - 1), -1


SHAPES: dict[str, Callable[[Draw], Iterable[Line]]] = {
    "few shoppers": few_shoppers,
    "orders without dates": lambda draw: _groups(draw, 200),
    "one purchase per item": lambda draw: once(draw, 7, baskets=False),
    "visitors without an account": once,
    "news": news,
    "seasons": lambda draw: news(draw, 42),
    "subscriptions": subscriptions,
    "ratings": ratings,
    "bundles": bundles,
    "reseller": reseller,
    "robots": robots,
    "out of stock": out_of_stock,
    "returns": returns,
}


def table(shape: str, seed: int) -> pl.DataFrame:
    """who, till, what and at; or, without dates, `turn`, the number of a user's order."""
    names = ["who", "till", "what", "after", *([COLUMNS[shape]] if shape in COLUMNS else [])]
    rows = pl.DataFrame(list(SHAPES[shape](np.random.default_rng(seed))), schema=names, orient="row")
    rows = rows.unique(["who", "till", "what"], keep="first", maintain_order=True).sort("after", maintain_order=True)
    if shape == "orders without dates":
        return rows.with_columns(turn=pl.col("after").rank("dense").over("who").cast(pl.Int64)).drop("after")
    at = pl.lit(FIRST) + pl.duration(microseconds=(pl.col("after") * 8.64e10).cast(pl.Int64))
    return rows.with_columns(at=at).drop("after")


def run(shape: str, folder: Path, seed: int) -> dict[str, Any]:
    """One row of the report. Raises whatever a step raises."""
    rows = table(shape, seed)
    rows.write_csv(folder / "lines.csv")
    (root := folder / "project").mkdir()
    dated = "at" in rows.columns
    asked = InitOptions(kind="recommendation", user="who", item="what", basket="till", time="at" if dated else None,
                        order=None if dated else "turn")  # fmt: skip
    today = (FIRST + timedelta(days=DAYS)).date() if dated else date.today()
    started = init_project.run(NAME, "../lines.csv", None, asked, root, root, today)
    layout = Layout(root)
    with pytest.MonkeyPatch.context() as patch:
        in_process.replace_tasks(patch)
        outcome = in_process.train(layout, NAME, True, "bench")
    if outcome.error:
        raise RuntimeError(outcome.error)
    return {"shape": shape, **_chosen(layout), **_answers(layout, rows), "init says": " / ".join(started.warnings)}


def _chosen(layout: Layout) -> dict[str, Any]:
    params = loading.load(layout.params)
    best = read_json(layout.tuning(NAME) / "best.json")
    trials = pl.read_parquet(layout.tuning(NAME) / "trials.parquet").drop_nulls("score").sort("score", descending=True)
    evaluation = read_json(layout.report(NAME) / "evaluation" / "evaluation.json")
    found = next(each for each in evaluation["metrics"] if each["name"] == evaluation["primary"])
    section = params.section(NAME)
    assert section.predicts == "lists"
    ladder = ", ".join(f"{name} {score:.3f}" for name, score in trials.select("model", "score").iter_rows())
    return {
        "judged by": section.features.judge_by if section.features.order is None else "last_orders",
        "shows": section.lists.show,
        "model": best["config"]["model"],
        "score": round(found["score"], 3),
        "baseline": round(found["baseline"], 3),
        "rows": pl.read_parquet(layout.report(NAME) / "evaluation" / "predictions.parquet").height,
        "ladder": ladder,
    }


def _answers(layout: Layout, rows: pl.DataFrame) -> dict[str, Any]:
    """Lists of a known and of an unknown user; and the page."""
    params, registry = loading.load(layout.params), settings.registry(layout)
    version = settings.deployments(layout).champion(NAME)
    if version is None:
        raise RuntimeError("nothing is deployed")
    recommender = OnlineRecommender(params, NAME, layout, registry.load(NAME, version), version, settings.events(layout))
    known = recommender.recommend(Request(users=(rows["who"][-1],)))
    anonymous = recommender.recommend(Request(users=("nobody",)))
    sent = recommender.record_events([{"user": "nobody", "item": rows["what"][0], "basket": "first"}], datetime.now(UTC))
    page = status.page(layout).read_text()
    if not len(known.item) or not len(anonymous.item) or sent.accepted != 1 or NAME not in page:
        raise RuntimeError(f"lists of {len(known.item)} and {len(anonymous.item)} items, {sent}")
    return {"list": len(known.item), "list of nobody": len(anonymous.item), "first": str(known.explanation[0])}


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(prog="python -m bench.shops", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--seed", type=int, default=0)
    chosen, failed = parser.parse_args(words), 0
    for shape in chosen.shapes:
        with tempfile.TemporaryDirectory() as folder:
            try:
                log.info("%s", json.dumps(run(shape, Path(folder), chosen.seed)))
            except Exception:  # the others go on
                failed += 1
                log.exception("%s: FAILED", shape)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
