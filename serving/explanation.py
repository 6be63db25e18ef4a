"""Why a row has its answer: what each column adds to it, in the time of a request.

Shapley values by sampling (Štrumbelj and Kononenko, 2014), as tasks.explain has them: the columns go, in random orders and
their reverse, from another row's values to the row's own. The other rows are the version's example, so that together with
their mean answer the parts add up to what was said.
"""

from typing import Any

import numpy as np

from evergreen.serving.loaded_model import Asked, Rows

ORDERS = 4
"""Random orders for each other row; as many reversed."""
MOST_ANSWERS = 2_000
"""Most answers that the parts may ask for: fewer orders where there are many columns."""
SHOWN = 10
"""Columns that are named, the strongest first."""


def contributions(served: Rows, asked: Asked) -> list[dict[str, Any]]:
    """The columns that matter most to this answer: column, value and what it adds to `of`; the last is the mean and the rest.

    `of`: the probability of the last class, or the prediction. Of groups, which have no order, whether it is this one.
    """
    own = asked.features
    others = [served.read(row).features for row in served.example] or [own]
    draw = np.random.default_rng(0)
    names = [name for name in own if any(own[name] != other[name] for other in others)]
    turns = max(1, min(ORDERS, MOST_ANSWERS // (2 * max(1, len(names)) * len(others))))
    rows, paths = [dict(own), *map(dict, others)], list[tuple[int, list[str]]]()
    for other in others:
        for _ in range(turns):
            order = [names[each] for each in draw.permutation(len(names))]
            for path in (order, order[::-1]):
                paths.append((len(rows), path))
                mixed = dict(other)
                for name in path[:-1]:
                    mixed = {**mixed, name: own[name]}
                    rows.append(mixed)
    said = _numbers(served, rows)
    added = dict.fromkeys(names, 0.0)
    for number, (start, path) in enumerate(paths):
        other = said[1 + number // (2 * turns)]
        steps = [other, *said[start : start + len(path) - 1], said[0]] if path else []
        for name, before, after in zip(path, steps, steps[1:], strict=False):
            added[name] += (after - before) / len(paths)
    strongest = sorted(added, key=lambda name: -abs(added[name]))
    found: list[dict[str, Any]] = [{"column": name, "value": own[name], "adds": added[name]} for name in strongest[:SHOWN]]
    rest = sum(added[name] for name in strongest[SHOWN:])
    return [*found, {"column": None, "value": "all other columns", "adds": rest}, _mean(said, len(others))]


def _mean(said: np.ndarray, others: int) -> dict[str, Any]:
    return {"column": None, "value": "mean answer to the example", "adds": float(said[1 : 1 + others].mean())}


def _numbers(served: Rows, rows: list[dict[str, Any]]) -> np.ndarray:
    answers = served.answer([served.read(row) for row in rows])
    chances = [name for name in answers[0] if name != "prediction"]
    if chances:
        return np.array([answer[chances[-1]] for answer in answers])
    if isinstance(answers[0]["prediction"], float):
        return np.array([answer["prediction"] for answer in answers])
    return np.array([float(answer["prediction"] == answers[0]["prediction"]) for answer in answers])
