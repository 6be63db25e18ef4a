"""The models that are tried on tables: each with its estimator, fixed settings, defaults, search space and warm starts.

The kinds name their own from these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evergreen.tasks.config.params import Range
from evergreen.tasks.problems.base import Config

LIGHTGBM = {
    "n_jobs": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
    "subsample": 0.7,
    "subsample_freq": 1,
    "max_bin": 63,
}
"""Settings of every LightGBM model: one thread, the same trees each time, and histograms coarse enough to be quick."""

BOOSTING = {
    "n_estimators": 150,
    "learning_rate": 0.05,
    "num_leaves": 6,
    "min_child_samples": 50,
    "colsample_bytree": 0.3,
    "reg_lambda": 5.0,
}
BOOSTING_SPACE = {
    "n_estimators": Range(low=80, high=250, integer=True),
    "learning_rate": Range(low=0.02, high=0.1, log=True),
    "num_leaves": Range(low=3, high=16, integer=True, log=True),
    "min_child_samples": Range(low=10, high=200, integer=True, log=True),
    "colsample_bytree": Range(low=0.2, high=0.8),
    "reg_lambda": Range(low=0.1, high=50.0, log=True),
}


PLAIN_LIGHTGBM = {**LIGHTGBM, "max_bin": 255, "extra_trees": False}
BOOSTING_OF_CLASSES = {
    "extra_trees": False,
    "n_estimators": 250,
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_child_samples": 20,
    "colsample_bytree": 0.5,
    "reg_lambda": 1.0,
}
BOOSTING_OF_NUMBERS = {
    "extra_trees": False,
    "n_estimators": 378,
    "learning_rate": 0.052,
    "num_leaves": 9,
    "min_child_samples": 5,
    "colsample_bytree": 0.92,
    "reg_lambda": 0.048,
}
"""Defaults of boosting for plain tables, by what is predicted. Those of classes are by hand and hold with several classes and
few rows; those of numbers are the best of the candidates of `python -m bench.portfolio` on 16 public tables."""
PLAIN_BOOSTING_SPACE = {
    "extra_trees": Range(values=(False, True)),
    "n_estimators": Range(low=80, high=1000, integer=True, log=True),
    "learning_rate": Range(low=0.02, high=0.15, log=True),
    "num_leaves": Range(low=3, high=192, integer=True, log=True),
    "min_child_samples": Range(low=3, high=100, integer=True, log=True),
    "colsample_bytree": Range(low=0.2, high=1.0),
    "reg_lambda": Range(low=0.01, high=50.0, log=True),
}
NATIVE = {"encode": "native", "encode_high": "native"}
OWN_DEFAULTS = NATIVE | {
    "extra_trees": False,
    "n_estimators": 100,
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_child_samples": 20,
    "colsample_bytree": 1.0,
    "reg_lambda": 0.01,
}
"""LightGBM's, which are tried first, so that no search falls behind them."""
PORTFOLIO = (
    NATIVE
    | {
        "extra_trees": True,
        "n_estimators": 353,
        "learning_rate": 0.058,
        "num_leaves": 10,
        "min_child_samples": 19,
        "colsample_bytree": 0.44,
        "reg_lambda": 6.7,
    },
    NATIVE
    | {
        "extra_trees": False,
        "n_estimators": 363,
        "learning_rate": 0.043,
        "num_leaves": 22,
        "min_child_samples": 4,
        "colsample_bytree": 0.58,
        "reg_lambda": 0.01,
    },
    {
        "extra_trees": True,
        "n_estimators": 189,
        "learning_rate": 0.107,
        "num_leaves": 7,
        "min_child_samples": 29,
        "colsample_bytree": 0.64,
        "reg_lambda": 9.25,
    },
    BOOSTING_OF_NUMBERS,
    {
        "extra_trees": True,
        "n_estimators": 407,
        "learning_rate": 0.054,
        "num_leaves": 76,
        "min_child_samples": 10,
        "colsample_bytree": 0.97,
        "reg_lambda": 0.316,
    },
    NATIVE
    | {
        "extra_trees": False,
        "n_estimators": 500,
        "learning_rate": 0.05,
        "num_leaves": 128,
        "min_child_samples": 5,
        "colsample_bytree": 0.9,
        "reg_lambda": 0.1,
    },
    NATIVE
    | {
        "extra_trees": False,
        "n_estimators": 1000,
        "learning_rate": 0.05,
        "num_leaves": 64,
        "min_child_samples": 10,
        "colsample_bytree": 0.8,
        "reg_lambda": 0.1,
    },
    NATIVE
    | {
        "extra_trees": False,
        "n_estimators": 500,
        "learning_rate": 0.05,
        "num_leaves": 32,
        "min_child_samples": 10,
        "colsample_bytree": 0.6,
        "reg_lambda": 1.0,
    },
)
"""Boosting of plain tables that is tried right after its defaults: what greedy selection (`python -m bench.portfolio`) found on
26 public tables, and large trees for large tables: three by hand, picked by eye on eight of those tables with all of their
12,579 to 51,920 rows."""
STRAIGHT = {"spline_knots": 0}
UNSHRUNK = STRAIGHT | {"alpha": 1e-4, "target_log": False}
BY_LEVEL = {"encode_high": "onehot", "alpha": 1.0}
BY_RANK = {"scale": "quantile", "log": False}
"""A linear model without splines, which bounds no column; one nearly without a penalty, for a target that the columns add up
to; one with an effect of each category; and a network of ranks: they follow the first two of PORTFOLIO, but see
`probing.cheap_first`."""
PAIRED = {"column_pairs": 8}
"""With differences and ratios: the defaults, and the large trees of PORTFOLIO."""
FOREST = {"n_jobs": 1, "n_estimators": 100}
TREE_ROWS = 10_000
"""A tree of a forest learns from so many rows at most, drawn for it: time and size stay within bounds."""
FOREST_DEFAULTS = {"min_samples_leaf": 3, "max_features": 0.4}
FOREST_SPACE = {
    "min_samples_leaf": Range(low=1, high=30, integer=True, log=True),
    "max_features": Range(low=0.1, high=0.8),
}
FOR_LINES = {
    "missing_indicator": Range(values=(True,)),
    "spline_knots": Range(values=(5, 0)),
    "log": Range(values=(False, True)),
    "encode_high": Range(values=("target", "onehot")),
}
FOR_TREES = {"encode": Range(values=("target", "onehot"))}
FOR_BOOSTING = {
    "encode": Range(values=("target", "onehot", "native")),
    "encode_high": Range(values=("target", "native")),
    "column_pairs": Range(values=(0, 8)),
}
"""Choices of the pipeline for linear models of plain tables, for forests, and for boosting."""
FOR_AMOUNTS = {"target_log": Range(values=("auto", False))}
NETWORK_DEFAULTS = {"hidden_units": 64, "hidden_layers": 1, "alpha": 0.03, "learning_rate_init": 0.002}
NETWORK_SPACE = {
    "hidden_units": Range(low=16, high=256, integer=True, log=True),
    "hidden_layers": Range(values=(1, 2)),
    "alpha": Range(low=1e-5, high=1.0, log=True),
    "learning_rate_init": Range(low=5e-4, high=1e-2, log=True),
}
FOR_NETWORKS = {
    "missing_indicator": Range(values=(True,)),
    "scale": Range(values=("standard", "quantile")),
    "log": Range(values=(True, False)),
}
"""Neural networks of plain tables."""

Stage = Literal["baseline", "linear", "trees", "boosting", "network", "ensemble"]
"""How much a model costs to run and to understand, the least first."""
BLEND = "blend"
"""The model that is several: "members" of its configuration are theirs, "weights" one number each."""


@dataclass(frozen=True)
class Family:
    """One model of a kind: its estimator, fixed settings, search space and defaults."""

    estimator: Callable[..., Any]
    """A scikit-learn estimator class."""
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    space: Mapping[str, Range] = field(default_factory=dict[str, Range])
    native: bool = False
    """It understands missing values and does not care for the scale of numbers."""
    prepared: bool = True
    """It needs the steps of the pipeline before it; a baseline may not."""
    stage: Stage = "boosting"
    """When a staged search tries it."""
    choices: Mapping[str, Range] = field(default_factory=dict[str, Range])
    """Choices of the pipeline that are searched for it where params do not say them; the first of each is its default."""

    def make(self, config: Config, seed: int) -> Any:
        """The unfitted estimator; keys of `config` that are no parameter of it belong to the pipeline."""
        known = self.estimator(**self.fixed).get_params()
        given = {name: value for name, value in config.items() if name in known}
        seeded = {"random_state": seed} if "random_state" in known else {}
        return self.estimator(**{**self.fixed, **seeded, **given})
