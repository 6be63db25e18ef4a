"""How the recommender grows: generated purchases of 1, 10 and 100 times as many households and items as a small store has.

    python -m bench.recommend 10    one scale, its figures as one JSON object

Items are bought by Zipf's law inside each household's few categories, most lines are favourites of the household, and a line in
five is of any category. The more households, the fewer lines each has, so that all fits into a few GB: see SCALES.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

HOUSEHOLDS, ITEMS, CATEGORIES = 2_500, 24_000, 300
"""At scale 1."""
SCALES = {1: 200, 10: 100, 100: 20}
"""Scale -> lines per household, on average."""
FAVOURITES, ASKED, BATCH, BASKETS = 25, 100, 2_000, 50
AS_OF = date(2024, 12, 31)
SECTION = {
    "question": "What next?",
    "features": {"table": "lines", "user": "user", "item": "item", "basket": "basket"},
    "pipeline": {"ranker_windows": 2, "ranker_users": 1000},
}


def purchases(scale: int, seed: int = 0) -> pl.DataFrame:
    """user, basket, item, day: one row per line, in a year up to AS_OF."""
    draw = np.random.default_rng([seed, scale])
    users, items, groups = HOUSEHOLDS * scale, ITEMS * scale, CATEGORIES
    size = draw.geometric(1 / SCALES[scale], users)
    user = np.repeat(np.arange(users, dtype=np.int32), size)
    likes = _item(draw, draw.integers(0, groups, (users, 4)).repeat(-(-FAVOURITES // 4), 1)[:, :FAVOURITES], items, groups)
    kind = draw.random(len(user))
    item = likes[user, (draw.random(len(user)) ** 2 * FAVOURITES).astype(np.int32)]
    other = kind > 0.6
    own = likes[user[other], draw.integers(0, FAVOURITES, other.sum())] % groups
    anywhere = draw.integers(0, groups, other.sum())
    item[other] = _item(draw, np.where(kind[other] > 0.8, anywhere, own), items, groups)
    visits = np.maximum(size // 6, 1)
    visit = (draw.random(len(user)) * visits[user]).astype(np.int64)
    day = (user.astype(np.int64) * 7919 + visit * 104_729) % 365
    frame = pl.DataFrame({"user": user, "basket": user.astype(np.int64) * 10_000 + visit, "item": item, "day": day})
    return frame.with_columns(day=pl.lit(AS_OF) - pl.duration(days=pl.col("day")))


def _item(draw: np.random.Generator, group: np.ndarray, items: int, groups: int) -> np.ndarray:
    """An item of each group, the first ones by far the most often: place p with a chance of about 1 / p."""
    place = np.exp(draw.random(group.shape) * np.log(items // groups)).astype(np.int32) - 1
    return (place * groups + group).astype(np.int32)


def categories(scale: int) -> pl.DataFrame:
    item = np.arange(ITEMS * scale, dtype=np.int32)
    return pl.DataFrame({"item": item, "category": (item % CATEGORIES).astype(str)})


@dataclass
class Spent:
    cpu: float
    """Seconds of this process."""
    peak_gb: float
    """Most memory it held so far."""


def spend(work: Callable[[], Any]) -> tuple[Any, Spent]:
    clock = time.process_time()
    result = work()
    return result, Spent(time.process_time() - clock, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def run(scale: int) -> dict[str, Any]:
    """What one scale costs, in a process of its own."""
    from evergreen.tasks.config.params import Recommend
    from evergreen.tasks.problems.recommendation.kind import KIND
    from evergreen.tasks.problems.recommender.user_histories import Histories

    section = Recommend.model_validate(SECTION)
    with tempfile.TemporaryDirectory() as folder:
        generated = purchases(scale)
        frames = {"lines": generated, "items": categories(scale), "known": pl.DataFrame({"as_of": [AS_OF]})}
        frames["lines"] = Histories.of(generated).frame()
        for name, frame in frames.items():
            frame.write_parquet(Path(folder) / f"{name}.parquet")
        del frames, generated
        data, load = spend(lambda: KIND.load(Path(folder), section))
    cutoffs = KIND.cutoffs(data)
    model, fit = spend(lambda: KIND.fit(data, cutoffs, KIND.defaults("two_stage", section), section, 7))
    draw = np.random.default_rng(1)
    one = [_seconds(lambda user=user: _answer(model, [user])) for user in draw.choice(data.histories.users, ASKED)]
    _, batch = spend(lambda: _answer(model, draw.choice(data.histories.users, BATCH, replace=False)))
    update = [_seconds(lambda basket=basket: model.observe(basket)) for basket in _baskets(draw, data.histories.users, scale)]
    return {
        "scale": scale,
        "households": len(data.histories.users),
        "items": len(data.histories.items),
        "catalogue": len(model.catalogue_),
        "lines": len(data.histories),
        "load_cpu_s": load.cpu,
        "fit_cpu_s": fit.cpu,
        "fit_peak_gb": fit.peak_gb,
        "answer_ms": [1000 * float(np.quantile(one[5:], share)) for share in (0.5, 0.99)],
        "batch_cpu_ms_each": 1000 * batch.cpu / BATCH,
        "update_ms": [1000 * float(np.quantile(update[5:], share)) for share in (0.5, 0.99)],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _answer(model: Any, users: Any) -> Any:
    import pandas as pd

    return model.predict(pd.DataFrame({"user": users}))


def _seconds(work: Callable[[], Any]) -> float:
    """CPU seconds: what others do on the machine does not count."""
    clock = time.process_time()
    work()
    return time.process_time() - clock


def _baskets(draw: np.random.Generator, users: np.ndarray, scale: int) -> list[Any]:
    """New baskets of ten lines, each of another household."""
    import pandas as pd

    item = draw.integers(0, ITEMS * scale, (BASKETS, 10))
    return [
        pd.DataFrame({"user": user, "basket": -1 - place, "item": item[place], "day": AS_OF + timedelta(days=1)})
        for place, user in enumerate(draw.choice(users, BASKETS))
    ]


if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    print(json.dumps(run(int(sys.argv[1]))))  # noqa: T201
