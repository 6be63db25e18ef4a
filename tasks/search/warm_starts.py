"""Warm starts: the best configurations of one search are tried first in the next."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import Config
from evergreen.tasks.search.ensemble import BLEND
from evergreen.tasks.search.space import clamp_config
from evergreen.tasks.search.specification import Search

log = logging.getLogger(__name__)

COUNT = 3
"""Configurations that one search passes on to the next."""


def warm_starts(search: Search, portfolio: Sequence[Config] = ()) -> list[Config]:
    """tune.warm_starts and then the `portfolio` of the kind as configurations of the space, without duplicates, defaults and
    unknown models or hyper-parameters."""
    found: list[Config] = []
    for each in (*search.tune.warm_starts, *(each for each in portfolio if each["model"] in search.space)):
        model = each.get("model")
        if model not in search.space:
            log.info("%s: tune: warm_starts: %s is not a model of this search", search.name, model)
            continue
        known = {name: each[name] for name in search.defaults[model] if name in each}
        config = clamp_config({**search.defaults[model], **known}, search.space[model])
        if config not in (*search.defaults.values(), *found):
            found.append(config)
    return found


def best_configs(params: Params, problem: str, layout: Layout) -> list[dict[str, Any]]:
    """For tune.warm_starts: the COUNT best configurations of the last search of `problem`, in JSON types.

    Without defaults, which each search tries, and without blends. Empty where no search was run.
    """
    path = layout.tuning(problem) / "trials.parquet"
    if not path.exists():
        return []
    kind, section = problems.kind(params.kind(problem)), params.section(problem)
    metric = problems.metric(kind, section.tune.metric, f"{problem}.tune.metric")
    trials = pl.read_parquet(path).filter(pl.col("state") == "complete", ~pl.col("default"))
    best = trials.sort("score", descending=metric.greater_is_better, maintain_order=True)
    found: list[dict[str, Any]] = []
    for text in best["config"]:
        config = json.loads(text)
        if config["model"] != BLEND and config not in found:
            found.append(config)
    return found[:COUNT]
