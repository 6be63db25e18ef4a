"""Two versions of a recommender for the same users: how much the lists resemble each other."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evergreen.flows.console.visits import Visit

if TYPE_CHECKING:
    from evergreen.monitoring.rollout.sequential_tests import Overlap
    from evergreen.serving.loaded_model import ListModel

USERS = 100
"""Users whose lists are compared, drawn from those that both versions know."""
SHOWN = 15


@dataclass(frozen=True)
class ListPair:
    """The lists of one user."""

    user: str
    overlap: float
    """Rank-biased, from 0 to 1."""
    shared: int
    """Items that both lists have."""
    length: int
    """Of the longer list."""


@dataclass(frozen=True)
class EqualLists:
    overlap: "Overlap"
    same: int
    """Users with the same items in the same order."""
    least: list[ListPair]
    """The lists that resemble each other least."""


def compare(visit: Visit, problem: str, one: "ListModel", two: "ListModel") -> EqualLists | None:
    """The lists that both versions make now, with the same histories. None where they know no user in common."""
    import polars as pl

    from evergreen.monitoring.rollout import overlap
    from evergreen.tasks import problems
    from evergreen.tasks.problems.recommender.list_request import Request

    for each in (one, two):
        each.recommender.refresh()
    shared = set(two.recommender.users())
    known = [each for each in one.recommender.users() if each in shared]
    seed = visit.params.project.seed
    users = random.Random(seed).sample(known, min(USERS, len(known)))
    if not users:
        return None
    asked = [Request(users=(user,), explain=False) for user in users]
    left, right = ([_items(model.recommend(each)[0]) for each in asked] for model in (one, two))
    frames = [pl.DataFrame({"items": lists}, {"items": pl.List(pl.String)}) for lists in (left, right)]
    found = problems.predictions(visit.params.kind(problem)).resemblance(*frames)
    if found is None:
        return None
    names = [str(user) for user in users]
    pairs = [
        ListPair(user, float(value), len({*mine} & {*theirs}), max(len(mine), len(theirs)))
        for user, value, mine, theirs in zip(names, found, left, right, strict=True)
    ]
    return EqualLists(
        overlap=overlap.summarise(pl.DataFrame({"entity": names, "value": found}), seed),
        same=sum(mine == theirs for mine, theirs in zip(left, right, strict=True)),
        least=[each for each in sorted(pairs, key=lambda each: each.overlap)[:SHOWN] if each.overlap < 1],
    )


def _items(found: Mapping[str, Any]) -> list[str]:
    return [str(each["item"]) for each in found["items"]]
